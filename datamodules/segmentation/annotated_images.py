"""The annotated sets of Baranchuk et al., Label-efficient semantic segmentation with diffusion models, ICLR 2022.

Their images and masks are one archive, with one split; the five splits behind the published deviations are not known.
Beside them there are the horses of Borenstein and Ullman, ECCV 2002.
"""

import hashlib
import json
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import joblib
import numpy as np
from filelock import FileLock

from datamodules import sources
from datamodules.segmentation.annotated import AnnotatedDataModule, Pair, check_arguments, check_pairs, raise_problems
from datamodules.segmentation.facts import DATASETS, SetName
from datamodules.segmentation.pixels import ignore_small_regions
from datamodules.source_table_segmentation import ANNOTATED_SETS

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif")  # of the published images
FIXED_SEED = 0  # of the split of a set that was published without one


class AnnotatedImages(AnnotatedDataModule):
    """A published set: some 20 to 50 annotated images to learn from, and others to test on. No augmentation.

    A class that has fewer than 20 pixels in a training image is not learnt from it.

    It is read from the folder ``images/<name>`` of a mirror or of the cache's folder ``raw``, or else from the
    published archive, which is downloaded. Such a folder that has a ``classes.json``, the list of the classes' names,
    holds other images than the published ones in the same form, and does not count as comparable.

    Args:
        name: of the set, see `facts.DATASETS`.
        image_size: height and width to which images (bilinear) and masks (nearest) are resized, in pixels.
        split: "released", the published one, or "resplit": all images are shuffled and parted anew in the published
            numbers. "weizmann_horse" has no published split: "released" is one that is shuffled with a fixed seed.
        split_seed: of "resplit".
        train_images: use the first so many training images, by their names; None: all.
        test_images: likewise of the test images.
        num_members: members of the ensemble that is trained, each with an order of its own.
        pixels_per_batch: pixels of a training step, of each member.
        evaluation_batch_size: images of a test batch on one process.
        num_workers: worker processes of the test loader.
        seed: of the training orders.

    Raises:
        ValueError: an argument is out of range.
        SourceError: by `prepare_data` and `setup`: the set cannot be had, or (an ImagesError) files of it are faulty.
    """

    def __init__(
        self,
        name: SetName,
        image_size: int = 256,
        split: Literal["released", "resplit"] = "released",
        split_seed: int = 0,
        train_images: int | None = None,
        test_images: int | None = None,
        num_members: int = 10,
        pixels_per_batch: int = 64,
        evaluation_batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if name not in DATASETS:
            raise ValueError(f"name={name!r}: it must be one of {', '.join(get_args(SetName))}.")
        if split not in ("released", "resplit"):
            raise ValueError(f"split={split!r}: it must be 'released' or 'resplit'.")
        if not 0 <= split_seed < 2**32:
            raise ValueError(f"split_seed={split_seed}: it must lie between 0 and 2**32 - 1.")
        check_arguments(image_size, num_members, pixels_per_batch)
        facts = DATASETS[name]
        for part, limit, there in (
            ("train", train_images, facts.train_images),
            ("test", test_images, facts.test_images),
        ):
            if limit is not None and not 1 <= limit <= there:
                raise ValueError(f"{part}_images={limit}: {name} has {there} of them; choose 1 to {there}.")
        self.save_hyperparameters()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by their numbers."""
        return DATASETS[self.hparams.name].classes

    @property
    def ignore_label(self) -> int:
        """Label of pixels that are neither learnt nor scored."""
        return DATASETS[self.hparams.name].ignore_label

    @property
    def data_variant(self) -> str:
        """How the data relate to the published ones: "published", "resplit", "own split" or "other images"."""
        folder = _find(self.hparams.name)
        if folder is not None and (folder / "classes.json").exists():
            return "other images"
        if not DATASETS[self.hparams.name].published:
            return "own split"
        return "published" if self.hparams.split == "released" else "resplit"

    @property
    def comparable(self) -> bool:
        """Whether published figures are of these images, all of them, in this size."""
        options = self.hparams
        return (
            self.data_variant in ("published", "resplit")
            and options.image_size == DATASETS[options.name].resolution
            and options.train_images is None
            and options.test_images is None
        )

    @cached_property
    def data_sha256(self) -> dict[str, str]:
        """One sum over the names and contents of all images and masks of the set; valid after `prepare_data`."""
        folder = self._folder()
        train, test = self._listing(folder)
        files = sorted(file for pair in [*train, *test] for file in pair)
        with ThreadPoolExecutor(joblib.cpu_count()) as pool:
            sums = pool.map(sources.file_sha256, files)
            lines = [f"{each} {file.relative_to(folder).as_posix()}\n" for file, each in zip(files, sums, strict=True)]
        return {
            f"images/{self.hparams.name}": hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
        }

    def prepare_data(self) -> None:
        """Find or download the set, and check every file of it.

        Raises:
            ImagesError: files are faulty or missing; it names the first 20.
        """
        name, facts = self.hparams.name, DATASETS[self.hparams.name]
        folder = _find(name) or _unpack(name)
        _check_classes(folder, facts.classes)
        train, test = self._listing(folder)
        found = check_pairs([*train, *test], len(facts.classes), facts.ignore_label, square=True)
        raise_problems([line for each in found for line in each.problems], folder)

    def setup(self, stage: str | None = None) -> None:
        """Split, and decode the training images; once."""
        if self.train_images is not None:
            return
        options, facts = self.hparams, DATASETS[self.hparams.name]
        train, test = self._listing(self._folder())
        if options.split == "resplit" or not facts.published:
            train, test = _shuffled(train, test, options.split_seed if options.split == "resplit" else FIXED_SEED)
        clean = partial(ignore_small_regions, ignore_label=self.ignore_label)
        self.open_parts(train[: options.train_images], test[: options.test_images], clean=clean)

    def _folder(self) -> Path:
        folder = _find(self.hparams.name)
        if folder is None:
            raise sources.SourceError(f"{self.hparams.name} is not at hand. Call prepare_data(), which fetches it.")
        return folder

    def _listing(self, folder: Path) -> tuple[list[Pair], list[Pair]]:
        """The pairs of the training and of the test part, sorted by their paths."""
        facts = DATASETS[self.hparams.name]
        if not facts.published:
            pairs = _pairs(folder, (".jpg", ".jpeg"), ".png")
            if len(pairs) <= facts.train_images:
                raise sources.SourceError(
                    f"{folder} has {len(pairs)} images with masks, too few for {facts.train_images} to learn from and "
                    f"others to test on. Complete it."
                )
            return pairs[: facts.train_images], pairs[facts.train_images :]
        train, test = (_pairs(folder / "real" / part, SUFFIXES, ".npy") for part in ("train", "test"))
        counts, expected = (len(train), len(test)), (facts.train_images, facts.test_images)
        if counts != expected and (0 in counts or not (folder / "classes.json").exists()):
            raise sources.SourceError(
                f"{folder} has {counts[0]} training and {counts[1]} test images, but {self.hparams.name} has "
                f"{expected[0]} and {expected[1]}. Complete it, or remove it so that it is fetched anew."
            )
        return train, test


def _find(name: str) -> Path | None:
    return sources.find_unverified(f"images/{name}")


def _pairs(folder: Path, suffixes: tuple[str, ...], mask_suffix: str) -> list[Pair]:
    """The images below a folder and their masks, which have the same stem, sorted by path.

    Raises:
        ImagesError: an image has no mask, or a mask no image.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in suffixes]
    masks = {path for path in files if path.suffix.lower() == mask_suffix}
    pairs = [Pair(image, image.with_suffix(mask_suffix)) for image in images]
    problems = [f"{image}: it has no mask {mask.name} beside it" for image, mask in pairs if mask not in masks]
    orphans = sorted(masks - {mask for _, mask in pairs})
    problems += [f"{mask}: it has no image of the same name beside it" for mask in orphans]
    raise_problems(problems, folder)
    return pairs


def _shuffled(train: list[Pair], test: list[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """All pairs in two new parts of the same sizes, each sorted by the images' names."""
    pool = sorted([*train, *test], key=lambda pair: (pair.image.name, pair.image))
    order = np.random.RandomState(seed).permutation(len(pool))
    return tuple([pool[i] for i in sorted(part)] for part in (order[: len(train)], order[len(train) :]))


def _check_classes(folder: Path, classes: tuple[str, ...]) -> None:
    path = folder / "classes.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise sources.SourceError(f"{path}: it is not JSON: {error}.") from error
    if found != list(classes):
        raise sources.SourceError(f"{path}: the masks of this set need the classes {json.dumps(classes)}.")


def _unpack(name: str) -> Path:
    """The folder of a set from the published archive, which is downloaded if need be."""
    target = sources.cached_path(f"images/{name}")
    if not DATASETS[name].published:
        raise sources.SourceError(
            f"{name} is neither in GENPRED_MIRROR nor at {target}, and cannot be downloaded from here. Put its images "
            f"there, each a .jpg with a mask .png of the same name beside it, whose pixels are 0 or 1."
        )
    archive = sources.fetch_unpinned(ANNOTATED_SETS, tarfile.is_tarfile)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                _extract(archive, name, target)
    except sources.NOT_THE_ARCHIVE as error:
        raise sources.SourceError(
            f"{archive} is damaged: {error}. Remove it, and {archive}.sha256 as well, so that it is fetched anew."
        ) from error
    except OSError as error:
        raise sources.SourceError(
            f"cannot write {target}: {error}. Set GENPRED_DATA to a folder with room that can be written to."
        ) from error
    return target


def _extract(archive: Path, name: str, target: Path) -> None:
    """Unpack what lies in a folder `name`, wherever in the archive; the target gets its name when it is whole."""
    unfinished = target.with_name(f"{name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    with tarfile.open(archive) as opened:
        for member in opened:
            parts = PurePosixPath(member.name).parts
            if member.isfile() and name in parts:
                inner = PurePosixPath(*parts[parts.index(name) + 1 :]).as_posix()
                opened.extract(member.replace(name=inner), unfinished, filter="data")
    if not unfinished.exists():
        raise KeyError(f"there is no folder {name} in it")
    os.rename(unfinished, target)
