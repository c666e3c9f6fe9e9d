"""Healing MNIST: rotating binary digits with missing pixels.

Krishnan, Shalit and Sontag, Deep Kalman Filters, 2015, in the form of Fortuin et al., GP-VAE, AISTATS 2020. The
published arrays are not available; this generator reproduces the published figures of mean and forward imputation.
"""

import gzip
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from scipy.ndimage import rotate
from torch import Tensor

from datamodules import sources
from datamodules.base import ResumableDataModule, TensorLoader
from datamodules.imputation.batch import SeriesBatch
from datamodules.imputation.missingness import Mechanism, draw_observed

# Part of the cache's key: raise it whenever the same arguments give other arrays.
FORMAT_VERSION = 1
CHUNK = 500  # sequences generated at a time; part of the random streams of the masks


class HealingMNIST(ResumableDataModule):
    """Sequences of one digit each, rotated on by a random angle from frame to frame, binarised, with missing pixels.

    Frame t is frame t - 1 (grey, 8 bit) rotated by Normal(0, rotation_std) degrees with cubic splines; frame 0 is
    already rotated once. Pixels above 127 are white. Targets are the clean frames. Sequences are in the order of the
    digits' files, and their class is the digit. Everything depends on `data_seed` and the arguments before it only.

    Args:
        source: "mnist" (28 x 28 pixels; 60,000 and 10,000 sequences) or "digits" (8 x 8; the digits of scikit-learn,
            nothing to download: the first 1,200 for training, the remaining 597 for testing).
        num_frames: time steps of a sequence.
        rotation_std: standard deviation of the rotation between frames, in degrees.
        missingness: mechanism that hides pixels, see `missingness`. "mnar" is that of the published tables.
        data_seed: seed of rotations and masks.
        sequences_per_digit: training sequences made of each digit; for "digits" only.
        fit_on: "all" trains on the whole training part including the validation rows, as published; "train" leaves
            them out. The validation rows are always those of the last 10,000 training digits (150 for "digits").
        batch_size: training rows of a batch on one process.
        evaluation_batch_size: rows of a validation or test batch on one process.
        num_workers: worker processes of each loader.
        seed: seed of the training order.
        train_rows: use the first so many training rows only.
        validation_rows: use the first so many validation rows only.
        test_rows: use the first so many test rows only.

    Raises:
        ValueError: an argument is out of range.
        SourceError: by `prepare_data` and `setup`, when the digits cannot be had or the cache cannot be written.
    """

    task = "imputation"

    other_data = ("num_frames", "rotation_std", "missingness", "test_rows")

    def __init__(
        self,
        source: Literal["mnist", "digits"] = "mnist",
        num_frames: int = 10,
        rotation_std: float = 20.0,
        missingness: Mechanism = "mnar",
        data_seed: int = 0,
        sequences_per_digit: int = 1,
        fit_on: Literal["all", "train"] = "all",
        batch_size: int = 64,
        evaluation_batch_size: int = 500,
        num_workers: int = 0,
        seed: int = 0,
        train_rows: int | None = None,
        validation_rows: int | None = None,
        test_rows: int | None = None,
    ) -> None:
        super().__init__()
        if sequences_per_digit != 1 and source == "mnist":
            raise ValueError(
                f"sequences_per_digit={sequences_per_digit}: MNIST gives one sequence a digit, as published. "
                f"Use source='digits', or leave sequences_per_digit at 1."
            )
        for name, value in (("num_frames", num_frames), ("sequences_per_digit", sequences_per_digit)):
            if value < 1:
                raise ValueError(f"{name}={value}: it must be at least 1.")
        if rotation_std < 0:
            raise ValueError(f"rotation_std={rotation_std}: a standard deviation in degrees cannot be negative.")
        self.save_hyperparameters()
        self.train_set: HealingSequences | None = None
        self.validation_set: HealingSequences | None = None
        self.test_set: HealingSequences | None = None

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return (28, 28) if self.hparams.source == "mnist" else (8, 8)

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Constructor arguments of a method that the data determine."""
        height, width = self.image_shape
        return {
            "num_features": height * width,
            "num_steps": self.hparams.num_frames,
            "likelihood": "bernoulli",
            "image_shape": [height, width],
            "num_classes": 10,
        }

    @property
    def evaluation_arguments(self) -> dict[str, Any]:
        """Arguments of the metrics: imputations are rounded, the classifier tells ten digits apart."""
        height, width = self.image_shape
        return {"num_features": height * width, "rounded": True, "classifier": "multinomial"}

    @property
    def data_variant(self) -> str:
        """How the data relate to the published ones: "reconstructed", or "digits" for the small stand-in set."""
        return "reconstructed" if self.hparams.source == "mnist" else "digits"

    @property
    def data_sha256(self) -> dict[str, str]:
        """SHA-256 of the raw files that the sequences were generated from, by name; valid after `prepare_data`."""
        sums: dict[str, str] = {}
        for split in ("train", "test"):
            sums |= sources.open_arrays(self._folder(split))[1]["data_sha256"]
        return sums

    def prepare_data(self) -> None:
        """Generate the sequences, or find them in the cache."""
        for split in ("train", "test"):
            self.generate(split)

    def generate(self, split: Literal["train", "test"]) -> Path:
        """Generate one split unless the cache holds it intact.

        Returns:
            Folder with `frames` and `observed`, uint8 [sequence, time, ceil(pixels / 8)] of packed bits, and `labels`,
            int64 [sequence].
        """
        folder = self._folder(split)
        sources.ensure_arrays(folder, lambda: self._build(split))
        return folder

    def setup(self, stage: str | None = None) -> None:
        """Open the sequences; idempotent."""
        options = self.hparams
        arrays = {split: sources.open_arrays(self._folder(split))[0] for split in ("train", "test")}
        copies = options.sequences_per_digit
        rows = np.arange(len(arrays["train"]["labels"]))
        first_held_out = len(rows) - copies * (10_000 if options.source == "mnist" else 150)
        fitted = rows if options.fit_on == "all" else rows[:first_held_out]
        held_out = rows[first_held_out::copies]  # one sequence of each digit
        self.train_set = HealingSequences(arrays["train"], fitted[: options.train_rows], self.image_shape)
        self.validation_set = HealingSequences(arrays["train"], held_out[: options.validation_rows], self.image_shape)
        test_rows = np.arange(len(arrays["test"]["labels"]))[: options.test_rows]
        self.test_set = HealingSequences(arrays["test"], test_rows, self.image_shape)

    def train_dataloader(self) -> TensorLoader:
        """Shuffled training batches."""
        return self.train_loader(self.train_set)

    def val_dataloader(self) -> TensorLoader:
        """Validation batches in file order."""
        return self.evaluation_loader(self.validation_set)

    def test_dataloader(self) -> TensorLoader:
        """Test batches in file order."""
        return self.evaluation_loader(self.test_set)

    def _facts(self, split: str) -> dict[str, Any]:
        names = ("source", "num_frames", "rotation_std", "missingness", "data_seed")
        copies = self.hparams.sequences_per_digit if split == "train" else 1
        return {
            "format_version": FORMAT_VERSION,
            "split": split,
            "sequences_per_digit": copies,
            **{name: self.hparams[name] for name in names},
        }

    def _folder(self, split: str) -> Path:
        facts = json.dumps(self._facts(split), sort_keys=True)
        return sources.data_home() / "healing_mnist" / hashlib.sha256(facts.encode()).hexdigest()[:16]

    def _build(self, split: Literal["train", "test"]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        facts = self._facts(split)
        load = load_mnist if self.hparams.source == "mnist" else load_digits
        images, labels, sums = load(split)
        images, labels = (np.repeat(array, facts["sequences_per_digit"], axis=0) for array in (images, labels))
        # Separate streams, so that all mechanisms hide entries of the same frames.
        split_number = ("train", "test").index(split)
        angle_generator, mask_generator = (
            np.random.default_rng([self.hparams.data_seed, split_number, purpose]) for purpose in (0, 1)
        )
        angles = angle_generator.normal(0.0, self.hparams.rotation_std, (len(images), self.hparams.num_frames))
        frames = rotated_frames(images, angles)
        observed = np.empty_like(frames)
        num_pixels = images[0].size
        for start in range(0, len(frames), CHUNK):
            rows = slice(start, start + CHUNK)
            white = np.unpackbits(frames[rows], axis=-1, count=num_pixels).view(bool)
            mask = draw_observed(self.hparams.missingness, white, self.image_shape, mask_generator)
            observed[rows] = np.packbits(mask, axis=-1)
        facts |= {"data_sha256": sums, "numpy": np.__version__, "scipy": scipy.__version__}
        return {"frames": frames, "observed": observed, "labels": labels.astype(np.int64)}, facts


class HealingSequences:
    """Rows of packed sequences; indexing by an int64 tensor gives a `SeriesBatch`.

    Args:
        arrays: `frames`, `observed`, `labels` as `HealingMNIST.generate` stores them.
        rows: the rows of these arrays that make up the split.
        image_shape: height and width of a frame.
    """

    def __init__(self, arrays: dict[str, np.ndarray], rows: NDArray[np.int64], image_shape: tuple[int, int]) -> None:
        self.frames = arrays["frames"]
        self.observed = arrays["observed"]
        self.labels = np.asarray(arrays["labels"])
        self.rows = rows
        self.num_pixels = image_shape[0] * image_shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> SeriesBatch:
        rows = self.rows[indices.numpy()]
        observed_mask = torch.from_numpy(self._unpack(self.observed[rows]).view(bool))  # [batch, time, pixel]
        target = torch.from_numpy(self._unpack(self.frames[rows])).float()
        return SeriesBatch(
            values=target * observed_mask,
            observed_mask=observed_mask,
            target=target,
            target_mask=~observed_mask,
            label=torch.from_numpy(self.labels[rows]),
            index=indices,
        )

    def _unpack(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.unpackbits(bits, axis=-1, count=self.num_pixels)


def rotated_frames(images: NDArray[np.uint8], angles: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Rotate every image again and again, and binarise each step.

    Args:
        images: uint8 [sequence, height, width].
        angles: [sequence, time], rotation from one step to the next in degrees.

    Returns:
        uint8 [sequence, time, ceil(height * width / 8)], packed bits, 1 where the rotated pixel is above 127.
    """
    num_sequences, num_frames = angles.shape
    packed = np.empty((num_sequences, num_frames, -(-images[0].size // 8)), dtype=np.uint8)

    def fill(start: int) -> None:
        stop = min(start + CHUNK, num_sequences)
        grey = np.empty((stop - start, num_frames, *images.shape[1:]), dtype=np.uint8)
        for row in range(start, stop):
            frame = images[row]
            for t in range(num_frames):
                frame = rotate(frame, angles[row, t], reshape=False, order=3)
                grey[row - start, t] = frame
        packed[start:stop] = np.packbits((grey > 127).reshape(stop - start, num_frames, -1), axis=-1)

    # Threads, not processes: the rotation releases the interpreter's lock, and threads need no guarded main module.
    # The affinity is what a batch system grants; it is known on Linux only.
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(num_cores) as pool:
        list(pool.map(fill, range(0, num_sequences, CHUNK)))
    return packed


def load_mnist(split: Literal["train", "test"]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, str]]:
    """MNIST in the order of its files.

    Returns:
        images uint8 [digit, 28, 28], labels uint8 [digit], and the SHA-256 of the two raw files by name.

    Raises:
        SourceError: a file cannot be had.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    names = (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
    paths = [sources.fetch(name) for name in names]
    images, labels = (np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8) for path in paths)
    # IDX: a header of 4 bytes and 4 more for each dimension.
    sums = {name: sources.file_sha256(path) for name, path in zip(names, paths, strict=True)}
    return images[16:].reshape(-1, 28, 28), labels[8:], sums


def load_digits(split: Literal["train", "test"]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, str]]:
    """The 1,797 digits of scikit-learn (UCI optical recognition of handwritten digits) in file order.

    Returns:
        images uint8 [digit, 8, 8] scaled from 0..16 to 0..255, labels uint8 [digit], and the SHA-256 of the bytes of
        all images. Training: the first 1,200.
    """
    from sklearn.datasets import load_digits as load

    bunch = load()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.uint8)
    rows = slice(0, 1200) if split == "train" else slice(1200, None)
    return images[rows], labels[rows], {"digits": hashlib.sha256(images.tobytes()).hexdigest()}
