"""Raw files of the annotated sets; their sums are not published (see `datamodules.sources.fetch_unpinned`)."""

from datamodules.source_table import Source

ANNOTATED_SETS = Source(
    name="datasets.tar.gz",
    path="ddpm-segmentation/datasets.tar.gz",
    urls=("https://storage.yandexcloud.net/yandex-research/ddpm-segmentation/datasets.tar.gz",),
    sha256=(),
    license="of the annotations not stated; the images keep the terms of LSUN, FFHQ, CelebAMask-HQ and ADE20K",
    citation="Baranchuk, Rubachev, Voynov, Khrulkov and Babenko, Label-efficient semantic segmentation with diffusion "
    "models, 2022",
)
