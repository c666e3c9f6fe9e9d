"""Raw files of annotated sets and networks; no sums of them are published (`datamodules.sources.fetch_unpinned`)."""

from datamodules.source_table import Source

_ADDRESS = "https://storage.yandexcloud.net/yandex-research/ddpm-segmentation"
_CITATION = (
    "Baranchuk, Rubachev, Voynov, Khrulkov and Babenko, Label-efficient semantic segmentation with diffusion models, "
    "2022"
)

ANNOTATED_SETS = Source(
    name="datasets.tar.gz",
    path="ddpm-segmentation/datasets.tar.gz",
    urls=(f"{_ADDRESS}/datasets.tar.gz",),
    sha256=(),
    license="of the annotations not stated; the images keep the terms of LSUN, FFHQ, CelebAMask-HQ and ADE20K",
    citation=_CITATION,
)

# Pre-trained networks by the name that a configuration gives them, "published:<method>/<domain>".
_ENDINGS = {"ddpm": "pt", "mae": "pth", "swav": "pth", "swav_w2": "pth"}
_DOMAINS = ("lsun_bedroom", "ffhq", "lsun_cat", "lsun_horse")
PUBLISHED_WEIGHTS = {
    f"{method}/{domain}": Source(
        name=f"{method}/{domain}.{ending}",
        path=f"ddpm-segmentation/models/{method}_checkpoints/{domain}.{ending}",
        urls=(f"{_ADDRESS}/models/{method}_checkpoints/{domain}.{ending}",),
        sha256=(),
        license="MIT; the images keep the terms of LSUN and FFHQ",
        citation=_CITATION,
    )
    for method, ending in _ENDINGS.items()
    for domain in _DOMAINS
}
