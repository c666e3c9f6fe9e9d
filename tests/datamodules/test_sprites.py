"""Frames against whole sheets composed by Pillow, order and masks against their definitions, published baselines."""

import hashlib
import typing

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import sources
from datamodules.imputation import sprites
from datamodules.imputation.batch import SeriesBatch
from datamodules.imputation.sprites import SHEETS, RowMasks, Sprites, build_layers, split_rows
from lightning_modules.imputation.constant import forward_fill, mean_fill

ATTRIBUTES = ("body", "bottomwear", "topwear", "hair")
# Numbers of the cells of a sheet, counted row by row, for each label: action * 3 + (front, left, right).
CELL_NUMBERS = [
    [138, 131, 132, 133, 134, 135, 136, 137], [125, 118, 119, 120, 121, 122, 123, 124],
    [151, 144, 145, 146, 147, 148, 149, 150],
    [26, 27, 28, 29, 30, 31, 30, 32], [13, 14, 15, 16, 17, 18, 17, 19], [39, 40, 41, 42, 43, 44, 43, 45],
    [182, 183, 184, 185, 186, 187, 186, 182], [169, 170, 171, 172, 173, 174, 173, 169],
    [195, 196, 197, 198, 199, 200, 199, 195],
]  # fmt: skip


def made_up_sheet(name, generator):
    """Squares of one colour, opaque or absent; some bottoms are half transparent, as in the real sheets."""
    squares = generator.random((84, 52)) < {"body": 0.5, "shoes": 0.1}.get(name.split("/")[0], 0.25)
    colour = generator.integers(1, 256, 3)
    pixels = np.zeros((84, 52, 4), dtype=np.uint8)
    pixels[squares] = [*colour, 255]
    if name == "bottomwear/4.png":
        pixels[..., 3][squares & (generator.random((84, 52)) < 0.3)] = 128
    return Image.fromarray(pixels.repeat(16, axis=0).repeat(16, axis=1))


@pytest.fixture(scope="module")
def sheets():
    generator = np.random.default_rng(0)
    return {name: made_up_sheet(name, generator) for name in SHEETS}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory, sheets):
    """Folders of a mirror of sheets that are made up, and of a cache made from them; the sources that name them."""
    mirror, cache = tmp_path_factory.mktemp("mirror"), tmp_path_factory.mktemp("home")
    known = {}
    for name, sheet in sheets.items():
        path = mirror / sources.SOURCES[name].path
        path.parent.mkdir(exist_ok=True, parents=True)
        sheet.save(path, compress_level=1)
        sums = (sources.file_sha256(path),)
        known[name] = sources.Source(name, sources.SOURCES[name].path, (), sums, "", "")
    return {"GENPRED_MIRROR": str(mirror), "GENPRED_DATA": str(cache)}, known


@pytest.fixture
def home(made_up, monkeypatch):
    """A cache of this file's own: the layers of sheets that are made up."""
    for name, folder in made_up[0].items():
        monkeypatch.setenv(name, folder)
    for name, source in made_up[1].items():
        monkeypatch.setitem(sources.SOURCES, name, source)


def opened(**options):
    module = Sprites(**options)
    module.prepare_data()
    module.setup()
    return module


def composed(sheets, character):
    """The whole sheet of a character as the authors' recipe has it, uint8 [1344, 832, 3]."""
    variants = np.unravel_index(character, (6, 6, 6, 6))
    image = Image.new("RGBA", sheets["shoes/1.png"].size, "black")
    for attribute, variant in zip((*ATTRIBUTES, "shoes"), (*variants, 1), strict=True):
        image = Image.alpha_composite(image, sheets[f"{attribute}/{variant}.png"])
    return np.asarray(image)[..., :3]


def frames_of(sheet, label):
    """[time, 64, 64, 3] in 256ths."""
    cells = sheet.reshape(21, 64, 13, 64, 3).swapaxes(1, 2).reshape(273, 64, 64, 3)
    return cells[CELL_NUMBERS[label]] / 256


def test_sequences_are_those_of_whole_sheets(home, sheets):
    module = opened()
    characters = np.random.RandomState(423).permutation(1296)
    assert characters[:5].tolist() == [1116, 1135, 17, 469, 1293]
    shuffled = np.random.RandomState(0)
    chosen = np.random.default_rng(1)
    for dataset, members in ((module.train_set, characters[:1000]), (module.test_set, characters[1000:])):
        order = shuffled.permutation(9 * len(members))
        assert len(dataset) == len(order)
        rows = chosen.choice(len(order), 6, replace=False)
        batch = dataset[torch.from_numpy(rows)]
        labels = order[rows] // len(members)
        assert batch.label.tolist() == labels.tolist()
        for target, label, place in zip(batch.target, labels, order[rows] % len(members), strict=True):
            expected = frames_of(composed(sheets, members[place]), label)
            assert np.array_equal(target.numpy().reshape(8, 64, 64, 3), expected)


def test_batches(home):
    module = opened()
    assert module.model_arguments == {
        "num_features": 12288, "num_steps": 8, "likelihood": "gaussian", "image_shape": [64, 64, 3],
    }  # fmt: skip
    assert module.evaluation_arguments == {"num_features": 12288, "rounded": False, "classifier": None}
    assert (module.task, module.data_variant) == ("imputation", "reconstructed")
    assert module.data_sha256 == {name: sources.SOURCES[name].sha256[0] for name in SHEETS}
    rows = torch.tensor([5, 2, 2])
    batch = module.test_set[rows]
    assert isinstance(batch, SeriesBatch)
    assert batch.times is None
    types = [torch.float32, torch.bool, torch.float32, torch.bool, torch.int64, torch.int64]
    assert [tensor.dtype for tensor in batch[:6]] == types
    assert all(tensor.shape == (3, 8, 12288) for tensor in batch[:4])
    assert torch.equal(batch.observed_mask, ~batch.target_mask)
    assert torch.equal(batch.values, torch.where(batch.observed_mask, batch.target, 0.0))
    assert batch.target.max() < 1
    assert batch.index.tolist() == [5, 2, 2]
    assert batch.label.unique().tolist() != []
    assert torch.equal(batch.target[1], batch.target[2])
    assert torch.equal(batch.observed_mask[1], batch.observed_mask[2])


def test_validation_rows_and_limits(home):
    published, separate = opened(), opened(fit_on="train")
    assert [len(s) for s in (published.train_set, published.validation_set, published.test_set)] == [9000, 1000, 2664]
    assert [len(s) for s in (separate.train_set, separate.validation_set, separate.test_set)] == [8000, 1000, 2664]
    rows = torch.tensor([0, 17, 999])
    training, validation = published.train_set[8000 + rows], published.validation_set[rows]
    assert all(torch.equal(a, b) for a, b in zip(training[:5], validation[:5], strict=True))
    assert validation.index.tolist() == rows.tolist()
    assert not torch.equal(published.test_set[rows].observed_mask, published.train_set[rows].observed_mask)
    limited = opened(train_rows=7, validation_rows=5, test_rows=3, batch_size=4, evaluation_batch_size=2)
    assert [len(b.index) for b in limited.train_dataloader()] == [4, 3]
    assert [b.index.tolist() for b in limited.val_dataloader()] == [[0, 1], [2, 3], [4]]
    assert [b.index.tolist() for b in limited.test_dataloader()] == [[0, 1], [2]]


def test_a_mask_belongs_to_its_row():
    rows = np.array([3, 0, 8999])
    masks = RowMasks(0.6, "channel", 0, "train")
    expected = masks(rows)
    assert expected.shape == (3, 8, 12288)
    for row, mask in zip(rows, expected, strict=True):
        assert np.array_equal(masks(np.array([row]))[0], mask)
    # The first entries of row 3, so that neither a release of numpy nor a change here moves the data in silence.
    assert np.packbits(expected[0, 0, :64]).tobytes().hex() == "00e260465c0b0628"
    for other in (RowMasks(0.6, "channel", 1, "train"), RowMasks(0.6, "channel", 0, "test")):
        assert (other(rows) == expected).mean() == pytest.approx(0.4**2 + 0.6**2, abs=0.005)


@pytest.mark.parametrize("rate", [0.001, 0.25, 0.6, 0.999])
def test_entries_are_missing_independently(rate):
    hidden = ~RowMasks(rate, "channel", 0, "test")(np.arange(20))
    deviation = np.sqrt(rate * (1 - rate) / hidden.size)
    assert hidden.mean() == pytest.approx(rate, abs=5 * deviation + 2**-17)
    for first, second in (
        (hidden[1:], hidden[:-1]), (hidden[:, 1:], hidden[:, :-1]), (hidden[..., 1:], hidden[..., :-1]),
        (hidden[..., 3:], hidden[..., :-3]), (hidden[..., 192:], hidden[..., :-192]),
    ):  # fmt: skip
        both = (first & second).mean()
        assert both == pytest.approx(rate**2, abs=6 * np.sqrt(rate**2 * (1 - rate**2) / first.size))


def test_channels_of_a_pixel_go_together_on_request(home):
    module = opened(mask_unit="pixel", missing_rate=0.3)
    mask = module.train_set[torch.arange(4)].observed_mask.view(4, 8, 4096, 3)
    assert torch.equal(mask, mask[..., :1].expand_as(mask))
    assert mask.float().mean().item() == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / (4 * 8 * 4096)))
    across = mask[:, :, 1:, 0] & mask[:, :, :-1, 0]
    assert across.float().mean().item() == pytest.approx(0.49, abs=0.01)


def test_workers_read_the_same(home):
    module = opened(test_rows=5, evaluation_batch_size=2)
    others = opened(test_rows=5, evaluation_batch_size=3, num_workers=1)
    for name in ("values", "observed_mask", "label"):
        ours, theirs = (
            torch.cat([getattr(batch, name) for batch in each.test_dataloader()]) for each in (module, others)
        )
        assert torch.equal(ours, theirs)


def test_sheets_of_another_kind_are_refused(home, monkeypatch):
    many = np.full((64 * 63, 64, 4), 255, dtype=np.uint8)
    many[..., :3] = np.random.default_rng(2).integers(0, 256, (64 * 63, 64, 3))
    half = np.full_like(many, 128)
    monkeypatch.setattr(sprites, "VARIANTS", 1)
    for name, strip, message in (("hair/0.png", half, "half-transparent"), ("topwear/0.png", many, "255 colours")):

        def cut_out(path, name=name, strip=strip):
            return Image.fromarray(strip if "/".join(path.parts[-2:]) == name else np.zeros_like(strip))

        monkeypatch.setattr(sprites, "_cut_out", cut_out)
        with pytest.raises(ValueError, match=message):
            build_layers()


def test_setup_without_data_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path))
    with pytest.raises(sources.SourceError, match=r"missing or incomplete .* prepare_data\(\)"):
        Sprites().setup()


@pytest.mark.parametrize(
    ("options", "message"), [({"missing_rate": 1.0}, "missing_rate=1.0"), ({"data_seed": -1}, "data_seed=-1")]
)
def test_impossible_arguments_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        Sprites(**options)


def test_the_constructor_can_be_checked_by_its_annotations():
    hints = typing.get_type_hints(Sprites.__init__)
    assert typing.get_args(hints["mask_unit"]) == ("channel", "pixel")
    assert typing.get_args(hints["fit_on"]) == ("all", "train")


def test_every_character_performs_everything_once():
    seen = set()
    for split in ("train", "test"):
        characters, labels = split_rows(split)
        assert len(set(characters.tolist())) == {"train": 1000, "test": 296}[split]
        seen |= set(zip(characters.tolist(), labels.tolist(), strict=True))
    assert seen == {(character, label) for character in range(1296) for label in range(9)}


@pytest.fixture
def real(tmp_path, monkeypatch):
    if any(sources.find(name) is None for name in SHEETS):
        pytest.skip("the sprite sheets are neither in GENPRED_MIRROR nor in the cache")
    monkeypatch.setattr(sources, "fetch", {name: sources.find(name) for name in SHEETS}.__getitem__)
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path))
    return opened()


@pytest.mark.data
def test_real_frames_are_those_of_whole_sheets(real):
    paths = {name: sources.fetch(name) for name in SHEETS}
    whole = {name: Image.open(path).convert("RGBA") for name, path in paths.items()}
    generator = np.random.default_rng(3)
    for dataset in (real.train_set, real.test_set):
        rows = generator.choice(len(dataset), 20, replace=False)
        batch = dataset[torch.from_numpy(rows)]
        for row, target, label in zip(rows, batch.target, batch.label, strict=True):
            expected = frames_of(composed(whole, dataset.characters[row]), label)
            assert np.array_equal(target.numpy().reshape(8, 64, 64, 3), expected)
    assert real.data_sha256.keys() == set(SHEETS)
    assert all(digest in sources.SOURCES[name].sha256 for name, digest in real.data_sha256.items())


@pytest.mark.data
@pytest.mark.slow
def test_real_sequences_are_all_different(real):
    digests = set()
    for dataset in (real.train_set, real.test_set):
        for rows in torch.arange(len(dataset)).split(100):
            digests |= {hashlib.sha1(target.numpy().tobytes()).digest() for target in dataset[rows].target}
    assert len(digests) == 11_664


@pytest.mark.data
@pytest.mark.slow
def test_published_baselines(real):
    """Errors on the 2,664 test sequences; published: mean 0.013, forward 0.028 (GP-VAE, Table 1)."""
    totals, entries = torch.zeros(3, dtype=torch.float64), 0
    for batch in real.test_dataloader():
        fills = [fill(batch.values, batch.observed_mask) for fill in (lambda *_: 0.0, mean_fill, forward_fill)]
        errors = [(fill - batch.target).square() * batch.target_mask for fill in fills]
        totals += torch.stack([error.sum(dtype=torch.float64) for error in errors])
        entries += batch.target_mask.sum()
    zero, mean, forward = (totals / entries).tolist()
    assert zero == pytest.approx(0.057, abs=0.001)
    assert mean == pytest.approx(0.0127, abs=0.0002)
    assert forward == pytest.approx(0.0276, abs=0.0003)
