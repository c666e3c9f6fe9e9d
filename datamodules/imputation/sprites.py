"""SPRITES: video-game characters in motion, in colour, with missing entries.

The frames are those of Li and Mandt, Disentangled Sequential Autoencoder, ICML 2018, put together from their sprite
sheets by their recipe. The use for imputation, and the rate of 0.6, are those of Fortuin et al., GP-VAE, AISTATS 2020,
whose masks are not available; ours reproduce the published figures of mean and forward imputation.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules import sources
from datamodules.base import ResumableDataModule, TensorLoader
from datamodules.imputation.batch import SeriesBatch

# Part of the cache's key: raise it whenever the same sheets give other arrays.
FORMAT_VERSION = 1
SIZE = 64  # height and width of a frame in pixels
ATTRIBUTES = ("body", "bottomwear", "topwear", "hair")  # from the lowest layer upwards; the shoes, on top, are fixed
VARIANTS = 6  # of each attribute
NUM_CHARACTERS = VARIANTS ** len(ATTRIBUTES)
FITTED_CHARACTERS = 1000  # of the training split; the others make the test split
HELD_OUT = 1000  # last sequences of the training split, for validation
# In a sheet of 21 x 13 cells: a row for each action's first direction, and the columns of its eight frames.
SHEET_ROWS = {"walk": 9, "spellcard": 1, "slash": 13}
SHEET_COLUMNS = {
    "walk": (8, 1, 2, 3, 4, 5, 6, 7),
    "spellcard": (0, 1, 2, 3, 4, 5, 4, 6),
    "slash": (0, 1, 2, 3, 4, 5, 4, 0),
}
DIRECTIONS = {"front": 1, "left": 0, "right": 2}  # rows below the action's first
# The label of a sequence: 3 * action + direction, in the orders above.
_SHEET_CELLS = [
    [(row + below, column) for column in SHEET_COLUMNS[action]]
    for action, row in SHEET_ROWS.items()
    for below in DIRECTIONS.values()
]
CELLS = list(dict.fromkeys(cell for cells in _SHEET_CELLS for cell in cells))  # 63 distinct (row, column)
CELL_OF_FRAME = np.array([[CELLS.index(cell) for cell in cells] for cells in _SHEET_CELLS])  # [label, time]
NUM_LABELS, NUM_FRAMES = CELL_OF_FRAME.shape
SHEETS = [*(f"{attribute}/{variant}.png" for attribute in ATTRIBUTES for variant in range(VARIANTS)), "shoes/1.png"]


class Sprites(ResumableDataModule):
    """Sequences of one character each, performing one of three actions in one of three directions.

    Eight frames of 64 x 64 pixels in red, green and blue, on black, values k / 256; a time step is a frame flattened by
    row, column, channel. 1,000 characters make 9,000 training sequences, the other 296 make 2,664 test sequences, in
    the published order; the class of a sequence is 3 * action (walk, spellcard, slash) + direction (front, left,
    right). Entries are missing completely at random. The mask of a sequence depends on `data_seed`, its split and its
    row only, and is drawn anew, always the same, whenever the row is read.

    Args:
        missing_rate: probability of hiding an entry, rounded to a multiple of 2**-16.
        mask_unit: what is hidden at once. "channel": each of the 12,288 entries of a frame alone; "pixel": the three
            channels of a pixel together. The published figures cannot tell which was used.
        data_seed: seed of the masks, at least 0.
        fit_on: "all" trains on the whole training part including the validation rows, as published; "train" leaves
            them out. The validation rows are always the last 1,000 training sequences.
        batch_size: training rows of a batch on one process.
        evaluation_batch_size: rows of a validation or test batch on one process.
        num_workers: worker processes of each loader.
        seed: seed of the training order.
        train_rows: use the first so many training rows only.
        validation_rows: use the first so many validation rows only.
        test_rows: use the first so many test rows only.

    Raises:
        ValueError: `missing_rate` or `data_seed` is out of range.
        SourceError: by `prepare_data` and `setup`, when the sheets cannot be had or the cache cannot be written.
    """

    task = "imputation"

    other_data = ("missing_rate", "test_rows")

    def __init__(
        self,
        missing_rate: float = 0.6,
        mask_unit: Literal["channel", "pixel"] = "channel",
        data_seed: int = 0,
        fit_on: Literal["all", "train"] = "all",
        batch_size: int = 64,
        evaluation_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        train_rows: int | None = None,
        validation_rows: int | None = None,
        test_rows: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < missing_rate < 1:
            raise ValueError(f"missing_rate={missing_rate}: it must lie between 0 and 1, both excluded.")
        if data_seed < 0:
            raise ValueError(f"data_seed={data_seed}: it must be at least 0.")
        self.save_hyperparameters()
        self.train_set: SpriteSequences | None = None
        self.validation_set: SpriteSequences | None = None
        self.test_set: SpriteSequences | None = None

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Constructor arguments of a method that the data determine."""
        return {
            "num_features": SIZE * SIZE * 3,
            "num_steps": NUM_FRAMES,
            "likelihood": "gaussian",
            "image_shape": [SIZE, SIZE, 3],
        }

    @property
    def evaluation_arguments(self) -> dict[str, Any]:
        """Arguments of the metrics: no rounding, and no classifier, as in the published table."""
        return {"num_features": SIZE * SIZE * 3, "rounded": False, "classifier": None}

    @property
    def data_variant(self) -> str:
        """How the data relate to the published ones: the same frames, reconstructed masks."""
        return "reconstructed"

    @property
    def data_sha256(self) -> dict[str, str]:
        """SHA-256 of the sheets that the frames were made from, by name; valid after `prepare_data`."""
        return sources.open_arrays(self._folder())[1]["data_sha256"]

    def prepare_data(self) -> None:
        """Cut the sheets into layers of frames, or find these in the cache."""
        sources.ensure_arrays(self._folder(), build_layers)

    def setup(self, stage: str | None = None) -> None:
        """Open the layers; idempotent."""
        options = self.hparams
        layers = sources.open_arrays(self._folder())[0]
        parts = {}
        for split in ("train", "test"):
            masks = RowMasks(options.missing_rate, options.mask_unit, options.data_seed, split)
            parts[split] = (layers, *split_rows(split), masks)
        rows = np.arange(len(parts["train"][1]))
        fitted = rows if options.fit_on == "all" else rows[:-HELD_OUT]
        self.train_set = SpriteSequences(*parts["train"], fitted[: options.train_rows])
        self.validation_set = SpriteSequences(*parts["train"], rows[-HELD_OUT:][: options.validation_rows])
        self.test_set = SpriteSequences(*parts["test"], np.arange(len(parts["test"][1]))[: options.test_rows])

    def train_dataloader(self) -> TensorLoader:
        """Shuffled training batches."""
        return self.train_loader(self.train_set)

    def val_dataloader(self) -> TensorLoader:
        """Validation batches in file order."""
        return self.evaluation_loader(self.validation_set)

    def test_dataloader(self) -> TensorLoader:
        """Test batches in file order."""
        return self.evaluation_loader(self.test_set)

    def _folder(self) -> Path:
        facts = {"format_version": FORMAT_VERSION, "sheets": [sources.SOURCES[name].sha256 for name in SHEETS]}
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return sources.data_home() / "sprites" / key


class RowMasks:
    """Masks that are a function of a row's number, from the counter-based generator Philox.

    Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011. Neither order nor batch nor
    process matters, and nothing is stored.

    Args:
        missing_rate: probability of hiding, rounded to a multiple of 2**-16.
        unit: "channel" or "pixel", see `Sprites`.
        data_seed: seed of all masks, at least 0.
        split: rows of the same number in "train" and "test" have different masks.
    """

    def __init__(
        self, missing_rate: float, unit: Literal["channel", "pixel"], data_seed: int, split: Literal["train", "test"]
    ) -> None:
        self.threshold = np.uint16(min(round(missing_rate * 2**16), 2**16 - 1))
        self.repeats = 3 if unit == "pixel" else 1
        self.seed = 2 * data_seed + ("train", "test").index(split)

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True where observed, bool [row, time, feature]."""
        num_units = NUM_FRAMES * SIZE * SIZE * 3 // self.repeats
        observed = np.empty((len(rows), num_units), dtype=bool)
        for row, mask in zip(rows, observed, strict=True):
            # Four numbers from each 64 bits, the lowest first on any machine.
            raw = np.random.Philox(key=[self.seed, int(row)]).random_raw(num_units // 4)
            np.greater_equal(raw.astype("<u8", copy=False).view("<u2"), self.threshold, out=mask)
        return observed.repeat(self.repeats, axis=1).reshape(len(rows), NUM_FRAMES, -1)


class SpriteSequences:
    """Sequences put together from layers when they are read; indexing by an int64 tensor gives a `SeriesBatch`.

    Args:
        layers: `lower`, `upper`, `palette` as `build_layers` gives them.
        characters: [sequence] character of each sequence of the split, 0..1295.
        labels: int64 [sequence] action and direction, 0..8.
        masks: gives the masks of rows.
        rows: the rows that are used.
    """

    def __init__(
        self,
        layers: dict[str, np.ndarray],
        characters: NDArray[np.int64],
        labels: NDArray[np.int64],
        masks: RowMasks,
        rows: NDArray[np.int64],
    ) -> None:
        self.lower, self.upper = layers["lower"], layers["upper"]
        self.palette = (layers["palette"] / 256).astype(np.float32)
        self.characters, self.labels = characters, labels
        self.masks = masks
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> SeriesBatch:
        rows = self.rows[indices.numpy()]
        lower, upper = np.divmod(self.characters[rows][:, None], VARIANTS)
        cells = CELL_OF_FRAME[self.labels[rows]]  # [batch, time]
        top, bottom = self.upper[upper, cells], self.lower[lower, cells]  # [batch, time, pixel]
        colours = np.take(self.palette, np.where(top, top, bottom), axis=0)  # [batch, time, pixel, channel]
        target = torch.from_numpy(colours).flatten(2)
        observed_mask = torch.from_numpy(self.masks(rows))
        return SeriesBatch(
            values=target * observed_mask,
            observed_mask=observed_mask,
            target=target,
            target_mask=~observed_mask,
            label=torch.from_numpy(self.labels[rows]),
            index=indices,
        )


def split_rows(split: Literal["train", "test"]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Character and label of each sequence of a split, in the order of the published loader."""
    characters = np.random.RandomState(423).permutation(NUM_CHARACTERS)
    train = split == "train"
    characters = characters[:FITTED_CHARACTERS] if train else characters[FITTED_CHARACTERS:]
    order_state = np.random.RandomState(0)
    order = order_state.permutation(NUM_LABELS * FITTED_CHARACTERS)
    if not train:
        order = order_state.permutation(NUM_LABELS * len(characters))
    labels, character = np.divmod(order, len(characters))  # all characters of the first label come first
    return characters[character], labels


def build_layers() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All frames of all characters, in two layers of colours that stand in a palette.

    A frame of the character with the number c is `upper[c % 6]` where that is not 0, else `lower[c // 6]`. Stored so,
    81,648 distinct frames take 57 MB instead of 1 GB.

    Returns:
        `lower`, uint8 [216, 63, 4096], body, bottomwear and topwear on black; `upper`, uint8 [6, 63, 4096], hair and
        shoes, 0 where both are transparent; `palette`, uint8 [colour, 3], whose entry 0 is not used; and facts.

    Raises:
        SourceError: a sheet cannot be had.
        ValueError: the sheets do not allow this form.
    """
    paths = {name: sources.fetch(name) for name in SHEETS}
    strips = {name: _cut_out(path) for name, path in paths.items()}
    body, bottomwear, topwear, hair = (
        [strips[f"{attribute}/{variant}.png"] for variant in range(VARIANTS)] for attribute in ATTRIBUTES
    )
    palette = _Palette()
    lower, upper = [], []
    black = Image.new("RGBA", body[0].size, "black")
    for first in body:
        clothed = Image.alpha_composite(black, first)
        for second in bottomwear:
            half = Image.alpha_composite(clothed, second)
            lower += [palette.numbers(Image.alpha_composite(half, third)) for third in topwear]
    for strip in hair:
        # Shoes and hair are opaque or absent: joined first, they cover the rest as they would one after the other.
        upper.append(palette.numbers(Image.alpha_composite(strip, strips["shoes/1.png"])))
    arrays = {"lower": np.stack(lower), "upper": np.stack(upper), "palette": palette.colours()}
    sums = {name: sources.file_sha256(path) for name, path in paths.items()}
    return arrays, {"data_sha256": sums, "numpy": np.__version__, "pillow": PIL.__version__}


def _cut_out(path: Path) -> Image.Image:
    """The cells of a sheet that frames are made of, one below the other, RGBA."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGBA"))
    cells = [pixels[SIZE * row : SIZE * (row + 1), SIZE * column : SIZE * (column + 1)] for row, column in CELLS]
    return Image.fromarray(np.concatenate(cells))


class _Palette:
    """Numbers the colours that it meets, from 1; 0 stands for a transparent pixel."""

    def __init__(self) -> None:
        self._found: list[int] = [0]
        self._number = np.zeros(2**24, dtype=np.uint8)

    def numbers(self, strip: Image.Image) -> NDArray[np.uint8]:
        """uint8 [cell, pixel] of an RGBA strip of cells."""
        pixels = np.asarray(strip).reshape(-1, SIZE * SIZE, 4).astype(np.int32)
        opaque = pixels[..., 3] == 255
        if (pixels[..., 3][~opaque] > 0).any():
            raise ValueError("the sheets of hair or shoes have half-transparent pixels: they cannot be a layer.")
        code = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]  # [cell, pixel]
        new = np.unique(code[opaque & (self._number[code] == 0)])
        first = len(self._found)
        if first + len(new) > 256:
            raise ValueError(f"the sheets have more than 255 colours ({first - 1 + len(new)} so far).")
        self._number[new] = np.arange(first, first + len(new))
        self._found += new.tolist()
        return self._number[code] * opaque

    def colours(self) -> NDArray[np.uint8]:
        """uint8 [colour, channel]."""
        return np.array([[code >> 16, code >> 8 & 255, code & 255] for code in self._found], dtype=np.uint8)
