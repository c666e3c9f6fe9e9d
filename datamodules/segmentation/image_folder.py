"""Images without annotation, from folders and zip archives, for the pre-training of a diffusion model."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules import sources
from datamodules.base import BatchIndexSampler, ResumableDataModule, TensorLoader
from datamodules.segmentation.batch import ImageBatch
from datamodules.segmentation.facts import UNLABELLED
from datamodules.segmentation.images import (
    SUFFIXES,
    ImagesError,
    centre_square,
    channels_first,
    is_hidden,
    listed,
    read_rgb,
)

log = logging.getLogger("genpred")

# Part of the cache's key: raise it whenever the same files give other arrays.
FORMAT_VERSION = 1
BLOCK = 1024  # files that are read ahead


class ImageFolder(ResumableDataModule):
    """Square images of one size, cut from the middle of images of any size; each content is there once.

    They are decoded once, by all cores, and kept at `image_size` as bytes on disk. The rows are sorted by the SHA-256
    of the files' contents, and the same sum chooses the rows that are held out for validation and test: neither names
    nor the order of the files matter, and an image stays in its part when others join.

    Args:
        paths: folders (searched with all that lies below) and zip archives of images, or names of known sets: "lfw",
            "celeba_unlabelled", "horses_unlabelled". A single one may be given as such.
        image_size: height and width, in pixels.
        flip: mirror half of the training images, others in each epoch.
        validation_fraction: part of the images that is held out, for validation and for test, in (0, 1).
        on_error: what a file that does not decode does: "raise", or "skip", which lists it and leaves it out.
        batch_size: training images of a batch on one process.
        evaluation_batch_size: images of a validation or test batch on one process.
        num_workers: worker processes of each loader.
        seed: seed of the training order and of the mirror images.

    Attributes:
        train_set: training images, after `setup`.
        held_out_set: images of validation and test, after `setup`.

    Raises:
        ValueError: an argument is out of range.
        SourceError: by `prepare_data` and `setup`: there are no images, or (an ImagesError) files do not decode, or the
            cache cannot be written.
    """

    task = "pretraining"
    comparable = False

    def __init__(
        self,
        paths: str | Sequence[str] | None = None,
        image_size: int = 64,
        flip: bool = True,
        validation_fraction: float = 0.05,
        on_error: Literal["raise", "skip"] = "raise",
        batch_size: int = 16,
        evaluation_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        paths = [paths] if isinstance(paths, str) else list(paths or [])
        if not paths:
            raise ValueError(
                f"data.paths is not set: name folders or zip archives of images, such as data.paths=[my_images], "
                f"or one of {', '.join(UNLABELLED)}."
            )
        if image_size < 1:
            raise ValueError(f"image_size={image_size}: it must be at least 1 pixel.")
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction={validation_fraction}: it must lie between 0 and 1.")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: it must be 'raise' or 'skip'.")
        self.save_hyperparameters()
        self.train_set: Images | None = None
        self.held_out_set: Images | None = None

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Constructor arguments of a method that the data determine."""
        return {"image_size": self.hparams.image_size}

    @property
    def evaluation_arguments(self) -> dict[str, Any]:
        """Arguments of the metrics: none."""
        return {}

    @property
    def data_variant(self) -> str:
        """Not published data."""
        return "own"

    @property
    def data_sha256(self) -> dict[str, str]:
        """For each of `paths` the sum of the sorted sums of its images, whatever their names."""
        sums: dict[str, list[str]] = {}
        for path, its_sums in self._contents.items():
            sums.setdefault(path.resolve().name, []).extend(its_sums.values())
        return {name: hashlib.sha256("".join(sorted(each)).encode()).hexdigest() for name, each in sums.items()}

    @property
    def skipped(self) -> dict[str, str]:
        """Files that were left out since they do not decode, and why; valid after `prepare_data`."""
        return sources.open_arrays(self._folder())[1]["skipped"]

    def prepare_data(self) -> None:
        """Decode the images, or find them in the cache."""
        sources.ensure_arrays(self._folder(), self._build)
        if self.hparams.on_error == "raise" and self.skipped:  # found by a run that skipped them
            raise _undecodable(self.skipped)

    def setup(self, stage: str | None = None) -> None:
        """Open the images; idempotent."""
        folder = self._folder()
        sums = sources.open_arrays(folder)[0]["sha256"]
        held_out = _held_out(sums, self.hparams.validation_fraction)
        self.train_set = Images(folder, np.flatnonzero(~held_out))
        self.held_out_set = Images(folder, np.flatnonzero(held_out))

    def train_dataloader(self) -> TensorLoader:
        """Shuffled training batches, mirrored where `flip` is set."""
        options, dataset = self.hparams, self.train_set
        if not options.flip:
            return self.train_loader(dataset)
        sampler = MirrorSampler(
            len(dataset), options.batch_size, True, seed=options.seed, rank=self.rank, world_size=self.world_size
        )
        return TensorLoader(dataset, sampler, num_workers=options.num_workers)

    def val_dataloader(self) -> TensorLoader:
        """Batches of what is held out, in the order of the sums."""
        return self.evaluation_loader(self.held_out_set)

    def test_dataloader(self) -> TensorLoader:
        """The same batches as for validation."""
        return self.evaluation_loader(self.held_out_set)

    @cached_property
    def _contents(self) -> dict[Path, dict[str, str]]:
        """For each of `paths`, the SHA-256 of its images by name."""
        contents = {path: _sums(path) for path in map(_locate, self.hparams.paths)}
        for path, sums in contents.items():
            if not sums:
                raise ImagesError(f"{path} holds no image: their names must end in one of {', '.join(SUFFIXES)}.")
        return contents

    def _files(self) -> dict[str, tuple[Path, str]]:
        """Place and name of one file for each content, in the order of the sums."""
        files = {sha256: (path, name) for path, sums in self._contents.items() for name, sha256 in sums.items()}
        return dict(sorted(files.items()))

    def _folder(self) -> Path:
        facts = [FORMAT_VERSION, self.hparams.image_size, *self._files()]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return sources.data_home() / "image_folder" / key

    def _build(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The images, uint8 [image, 3, height, width], and the sums of their files, uint8 [image, 32]."""
        files, size = self._files(), self.hparams.image_size
        log.info("decoding %d images at %d x %d pixels", len(files), size, size)
        kept, failures = [], {}
        # Written one after the other to a file without a name, since all of them need not fit in memory.
        with tempfile.TemporaryFile(dir=sources.data_home()) as written:
            for sha256, place, image in _decoded(files, size):
                if isinstance(image, ImagesError):
                    failures[place] = str(image)
                else:
                    kept.append(sha256)
                    written.write(image.data)
            if failures:
                if self.hparams.on_error == "raise":
                    raise _undecodable(failures)
                log.warning("%d images do not decode and are left out:%s", len(failures), listed(_lines(failures)))
            if len(kept) < 2:
                raise ImagesError(
                    f"{', '.join(self.hparams.paths)}: {len(kept)} image, but training needs two or more."
                )
            written.flush()
            images = np.memmap(written, np.uint8, "r", shape=(len(kept), 3, size, size))
        sums = np.frombuffer(bytes.fromhex("".join(kept)), np.uint8).reshape(-1, 32)
        return {"images": images, "sha256": sums}, {
            "skipped": dict(sorted(failures.items())),
            "pillow": PIL.__version__,
        }


class Images:
    """Images of the cache; indexing by an int64 tensor gives an `ImageBatch`.

    Numbers from `len(self)` on stand for the mirror images of the rows from 0 on.

    Args:
        folder: of the arrays.
        rows: int64 [row], those of the array that are used.
    """

    def __init__(self, folder: Path, rows: NDArray[np.int64]) -> None:
        self.folder, self.rows = folder, rows
        self.images = sources.open_arrays(folder)[0]["images"]

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory map would be sent to workers as a copy.
        return type(self), (self.folder, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> ImageBatch:
        index, mirrored = indices % len(self), indices >= len(self)
        images = torch.from_numpy(np.asarray(self.images[self.rows[index.numpy()]]))
        images[mirrored] = images[mirrored].flip(-1)
        return ImageBatch(images, index)


class MirrorSampler(BatchIndexSampler):
    """Adds `num_rows` to the rows that an epoch shows as mirror images: a function of seed, epoch and row."""

    def rows(self) -> Tensor:
        """This rank's rows of the current epoch in order, int64 [rows of this rank], in [0, 2 * num_rows)."""
        rows = super().rows()
        key = (self.seed * 0x9E3779B97F4A7C15 + self.epoch + 0xD1B54A32D192ED03) % 2**63  # not the order's
        mirrored = torch.randint(2, (self.num_rows,), generator=torch.Generator().manual_seed(key))
        return rows + self.num_rows * mirrored[rows]


def _held_out(sums: NDArray[np.uint8], fraction: float) -> NDArray[np.bool_]:
    """Which images are held out, bool [image], by the start of their sums, uint8 [image, 32]; never none or all."""
    position = sums[:, :8].copy().view(">u8").ravel() / 2.0**64  # in [0, 1), ascending
    held_out = position < fraction
    held_out[0], held_out[-1] = True, False
    return held_out


def _locate(path: str) -> Path:
    """A folder or a zip archive by its path, or by the name of a known set."""
    if path in UNLABELLED:
        found = sources.find_unverified(UNLABELLED[path])
        if found is None:
            raise sources.SourceError(
                f"{path}: {UNLABELLED[path]} is neither in GENPRED_MIRROR nor at "
                f"{sources.cached_path(UNLABELLED[path])}. Put it there, or set data.paths to images of your own."
            )
        return found
    place = Path(path).expanduser()
    if not place.exists():
        raise ImagesError(
            f"data.paths: {path} is neither a folder nor a file, nor one of {', '.join(UNLABELLED)} (looked for at "
            f"{place.absolute()})."
        )
    return place


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | None]:
    """The archive, or None for a folder."""
    if path.is_dir():
        yield None
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ImagesError(f"{path}: it is not a folder and not a zip archive that can be read: {error}.") from error
    with archive:
        yield archive


def _read(path: Path, archive: zipfile.ZipFile | None, name: str) -> bytes:
    """Content of an image in a folder or in an archive.

    Raises:
        ImagesError: it cannot be read; the reason alone.
    """
    try:
        return (path / name).read_bytes() if archive is None else archive.read(name)
    except (OSError, RuntimeError, *sources.NOT_THE_ARCHIVE) as error:  # RuntimeError: it is encrypted
        raise ImagesError(f"it cannot be read: {error}") from error


def _sums(path: Path) -> dict[str, str]:
    """SHA-256 of the images in a folder or an archive, by their names in it, sorted.

    They are computed again only if a file's size or time of change is another than the last time.
    """
    with _opened(path) as archive:
        if archive is None:
            names = [found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file()]
        else:
            names = archive.namelist()
        names = sorted(name for name in names if _is_image(name))
        stats = [os.stat(path)] if archive is not None else [os.stat(path / name) for name in names]
        stamp = [str(path.absolute()), names, [(stat.st_size, stat.st_mtime_ns) for stat in stats]]
        key = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:32]
        known = sources.data_home() / "image_folder" / "sums" / f"{key}.json"
        with contextlib.suppress(OSError, ValueError):
            return json.loads(known.read_text())

        def sha256(name: str) -> str:
            try:
                return hashlib.sha256(_read(path, archive, name)).hexdigest()
            except ImagesError as error:
                raise ImagesError(f"{path}: {name}: {error}. Repair or remove it.") from error

        with ThreadPoolExecutor(joblib.cpu_count()) as pool:
            sums = dict(zip(names, pool.map(sha256, names), strict=True))
    with contextlib.suppress(OSError):  # a cache that can only be read costs time, no more
        known.parent.mkdir(parents=True, exist_ok=True)
        unfinished = known.with_name(f"{key}.{os.getpid()}.unfinished")
        unfinished.write_text(json.dumps(sums))
        os.replace(unfinished, known)
    return sums


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def _decoded(
    files: dict[str, tuple[Path, str]], size: int
) -> Iterator[tuple[str, str, NDArray[np.uint8] | ImagesError]]:
    """Sum, place, and pixels [3, size, size] of each file in order, or why it has none; decoded by all cores."""
    with contextlib.ExitStack() as stack:
        archives = {path: stack.enter_context(_opened(path)) for path in {path for path, _ in files.values()}}

        def decode(file: tuple[Path, str]) -> NDArray[np.uint8] | ImagesError:
            path, name = file
            try:
                image = read_rgb(_read(path, archives[path], name), shortest=2 * size)
            except ImagesError as error:
                return error
            return channels_first(centre_square(image, size))

        pool = stack.enter_context(ThreadPoolExecutor(joblib.cpu_count()))
        items = list(files.items())
        for first in range(0, len(items), BLOCK):
            block = items[first : first + BLOCK]
            for (sha256, (path, name)), image in zip(block, pool.map(decode, dict(block).values()), strict=True):
                yield sha256, f"{path}: {name}" if path.is_file() else str(path / name), image


def _undecodable(failures: dict[str, str]) -> ImagesError:
    return ImagesError(
        f"{len(failures)} of the images cannot be used. Repair or remove them, or leave them out with "
        f"data.on_error=skip:{listed(_lines(failures))}"
    )


def _lines(failures: dict[str, str]) -> list[str]:
    return [f"{place}: {reason}" for place, reason in sorted(failures.items())]
