"""The user's own images, a few of them annotated: a folder of images and masks."""

import hashlib
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np

from datamodules import sources
from datamodules.segmentation.annotated import (
    AnnotatedDataModule,
    Checked,
    Pair,
    check_arguments,
    check_pairs,
    raise_problems,
    some,
)
from datamodules.segmentation.facts import UNANNOTATED
from datamodules.segmentation.images import SUFFIXES, ImagesError, is_hidden, is_predicted, most_frequent, read_rgb

log = logging.getLogger("genpred")

MASK_SUFFIXES = (".png", ".npy")


class OwnImages(AnnotatedDataModule):
    """Images of the user's own, of any sizes. Those with a mask are learnt from, those without are to be predicted.

    A folder has the images in ``images/`` and the masks in ``masks/``, under the same names but for the suffix; or both
    beside each other: ``x.npy`` is a mask, and ``x.png`` is one where there is an ``x`` of another image format. Masks
    are ``.npy`` (integers, [height, width]) or ``.png`` (numbers of classes as grey levels or entries of a palette),
    of the size of their images when these are held upright. Strokes of a brush are enough: all else has the
    `ignore_label`. ``classes.json``, a list of the classes' names, is optional.

    Test images lie in ``test/``, in the same form as the others, or are chosen at random. Where there is only one mask
    the scores are those of the training image, which the log says.

    Images keep their shape, see `images.whole_image`; `images.at_own_size` takes labels back to an image's own size.
    Masks that are reduced keep what is annotated, see `images.most_frequent`; a class of which nothing is left in a
    training mask all the same is told in a warning. All annotated pixels are learnt, however few a class has.

    Args:
        path: the folder.
        image_size: pixels to which the longer side of an image is resized.
        ignore_label: label of what is not annotated; it may be the number of a class, which is then not learnt.
        test_fraction: part of the annotated images that is for test where there is no ``test/``, in [0, 1).
        split_seed: of the choice of test images.
        num_members: members of the ensemble that is trained, each with an order of its own.
        pixels_per_batch: pixels of a training step, of each member.
        evaluation_batch_size: images of a test batch on one process.
        num_workers: worker processes of the test loader.
        seed: of the training orders.

    Raises:
        ValueError: an argument is out of range.
        ImagesError: by all that needs the files: some of them are faulty; it names the first 20.
    """

    comparable = False

    def __init__(
        self,
        path: str | None = None,
        image_size: int = 256,
        ignore_label: int = UNANNOTATED,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        num_members: int = 10,
        pixels_per_batch: int = 64,
        evaluation_batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if path is None:
            raise ValueError("data.path is not set: name a folder with images and masks, such as data.path=my_images")
        if not 0 <= ignore_label <= 255:
            raise ValueError(f"ignore_label={ignore_label}: it must lie between 0 and 255.")
        if not 0 <= test_fraction < 1:
            raise ValueError(f"test_fraction={test_fraction}: it must lie between 0 and 1, the latter excluded.")
        if not 0 <= split_seed < 2**32:
            raise ValueError(f"split_seed={split_seed}: it must lie between 0 and 2**32 - 1.")
        check_arguments(image_size, num_members, pixels_per_batch)
        self.save_hyperparameters()

    @cached_property
    def files(self) -> "Files":
        """The files of the folder, checked, when first asked for."""
        place = Path(self.hparams.path)
        files, checked = _checked(place, self.hparams.ignore_label)
        more = f"; all of them: python -m experiments.segment --check {place}"
        raise_problems(_problems(files, checked, self.hparams.ignore_label), place, more)
        return files

    @property
    def labels(self) -> set[int]:
        """Labels of all masks, but for the `ignore_label`."""
        return set().union(*self.files.labels.values()) - {self.hparams.ignore_label}

    @property
    def unlabelled(self) -> list[Path]:
        """Images without a mask, which are to be predicted."""
        return self.files.unlabelled

    @property
    def class_names(self) -> list[str]:
        """Names from ``classes.json``, or else "class 0" and so on."""
        if self.files.names is not None:
            return self.files.names
        return [f"class {number}" for number in range(max(self.labels) + 1)]

    @property
    def ignore_label(self) -> int:
        """Label of pixels that are not annotated."""
        return self.hparams.ignore_label

    @property
    def data_variant(self) -> str:
        """Not published data."""
        train, test = self._parts()
        return "own, scored on the training images" if train is test else "own"

    @cached_property
    def data_sha256(self) -> dict[str, str]:
        """One sum over the names and contents of the annotated images and their masks."""
        place = Path(self.hparams.path)
        files = sorted(file for pair in [*self.files.annotated, *self.files.test] for file in pair)
        lines = [f"{sources.file_sha256(file)} {file.relative_to(place).as_posix()}\n" for file in files]
        return {place.resolve().name: hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()}

    def prepare_data(self) -> None:
        """Check the folder.

        Raises:
            ImagesError: files are faulty; it names the first 20.
        """
        train, test = self._parts()
        found = self.labels | {self.ignore_label}
        unseen = [name for number, name in enumerate(self.class_names) if number not in found]
        if unseen:
            log.warning("%s: no mask has the classes %s", self.hparams.path, ", ".join(unseen))
        if train is test:
            log.warning(
                "%s: all %d annotated images are learnt from, and the scores are those of the same images: put others "
                "into %s to test on",
                self.hparams.path, len(train), Path(self.hparams.path) / "test",
            )  # fmt: skip

    def setup(self, stage: str | None = None) -> None:
        """Split, and decode the training images; once."""
        if self.train_images is not None:
            return
        train, test = self._parts()
        self.open_parts(train, test, partial(most_frequent, ignore_label=self.ignore_label))
        left = [set(np.bincount(mask.ravel()).nonzero()[0].tolist()) for mask in self.train_masks.numpy()]
        for number in sorted(self.labels):
            drawn = [i for i, pair in enumerate(train) if number in self.files.labels[pair.mask]]
            lost = [train[i].mask for i in drawn if number not in left[i]]
            if not drawn and train is not test:
                log.warning(
                    "%s: '%s' is in masks of test pictures alone, so that it cannot be learnt: set another "
                    "data.split_seed, or name the test pictures by laying them into %s",
                    self.hparams.path, self.class_names[number], Path(self.hparams.path) / "test",
                )  # fmt: skip
            if lost:
                log.warning(
                    "%s: no pixel of '%s' is left in %d of the %d training masks that have it, such as %s, at "
                    "data.image_size=%d: raise it, or draw the class broader",
                    self.hparams.path, self.class_names[number], len(lost), len(drawn), lost[0].name,
                    self.hparams.image_size,
                )  # fmt: skip

    def _parts(self) -> tuple[list[Pair], list[Pair]]:
        """Training and test pairs; the same list twice where nothing is left for test."""
        annotated, options = self.files.annotated, self.hparams
        if self.files.test:
            return annotated, self.files.test
        if options.test_fraction == 0 or len(annotated) == 1:
            return annotated, annotated
        num_test = min(max(round(options.test_fraction * len(annotated)), 1), len(annotated) - 1)
        order = np.random.RandomState(options.split_seed).permutation(len(annotated))
        return tuple([annotated[i] for i in sorted(part)] for part in (order[num_test:], order[:num_test]))


class Files(NamedTuple):
    """What a folder holds."""

    annotated: list[Pair]
    test: list[Pair]  # of its folder `test`
    unlabelled: list[Path]
    names: list[str] | None  # of classes.json
    problems: list[str]  # with names alone
    labels: Mapping[Path, set[int]]  # of each mask


def check_folder(path: str | Path, ignore_label: int = UNANNOTATED) -> list[str]:
    """All that is wrong with a folder for `OwnImages`: a line for each fault, which names the file and the remedy.

    Beyond what `OwnImages` itself checks, the images without a mask are decoded as well.
    """
    try:
        files, checked = _checked(Path(path), ignore_label)
    except ImagesError as error:
        return [str(error)]

    def undecodable(image: Path) -> list[str]:
        try:
            read_rgb(image)
        except ImagesError as error:
            return [f"{image}: {error}"]
        return []

    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        unlabelled = list(pool.map(undecodable, files.unlabelled))
    return [*_problems(files, checked, ignore_label), *(line for lines in unlabelled for line in lines)]


def pictures(folder: Path) -> list[Path]:
    """The images of a folder in one of the layouts of `OwnImages`, with a mask or without, sorted.

    Raises:
        ImagesError: there is none, two have the same name but for the suffix, or masks and images do not fit together.
    """
    pairs, unlabelled, problems = _listing(folder)
    raise_problems(problems, folder)
    if not pairs and not unlabelled:
        raise ImagesError(
            f"{folder}: there is no image; their names must end in one of {', '.join(SUFFIXES)}, and what an ensemble "
            "has drawn is none."
        )
    return sorted([*(pair.image for pair in pairs), *unlabelled])


def _checked(path: Path, ignore_label: int) -> tuple[Files, list[Checked]]:
    """The files of a folder, and what was found in its pairs."""
    if not path.is_dir():
        raise ImagesError(f"data.path: {path} is not a folder (looked for at {path.absolute()}).")
    annotated, unlabelled, problems = _listing(path)
    apart = (path / "images").is_dir()
    beside = {each: (path / "masks" / each.relative_to(path / "images") if apart else each) for each in unlabelled}
    drawn = [mask for image, each in beside.items() if (mask := each.with_suffix(".png")) != image and mask.is_file()]
    if drawn:
        log.warning(
            "%s: %d masks that an ensemble has drawn, such as %s, are not learnt from: save those that you accept "
            "anew, with an editor or as .npy",
            path, len(drawn), drawn[0],
        )  # fmt: skip
    test, left, more = _listing(path / "test") if (path / "test").is_dir() else ([], [], [])
    problems += more + [f"{image}: it lies in test/ without a mask; annotate it, or move it out" for image in left]
    names, wrong = _class_names(path / "classes.json")
    pairs = [*annotated, *test]
    checked = check_pairs(pairs, None if names is None else len(names), ignore_label)
    labels = {pair.mask: each.labels for pair, each in zip(pairs, checked, strict=True)}
    return Files(annotated, test, unlabelled, names, problems + wrong, labels), checked


def _problems(files: Files, checked: list[Checked], ignore_label: int) -> list[str]:
    """All problems of a folder, those that are seen in all its masks together included."""
    problems = [*files.problems, *(line for each in checked for line in each.problems)]
    if not files.annotated and not problems:
        problems.append(
            "there is no image with a mask to learn from: give images in images/ masks of the same names in masks/, or "
            "lay .jpg and masks beside each other; masks that an ensemble has drawn do not count"
        )
    for pair, each in zip([*files.annotated, *files.test], checked, strict=True):
        if each.labels == {ignore_label}:
            problems.append(f"{pair.mask}: nothing is annotated, all pixels have the label {ignore_label}; remove it")
    labels = set().union(*(each.labels for each in checked)) - {ignore_label}
    if len(labels) == 1:
        problems.append(
            f"the masks have one class alone, {min(labels)}: there is nothing to tell apart; should {ignore_label} be "
            f"a class, number it otherwise, or set data.ignore_label to a label that is not used"
        )
    elif labels and files.names is None:
        missing = sorted(set(range(max(labels))) - labels - {ignore_label})
        if missing:
            problems.append(
                f"the masks have labels up to {max(labels)}, but {some(missing)} in none of them: number the classes "
                f"without gaps, list all of them in classes.json, or set data.ignore_label if {max(labels)} means that "
                f"a pixel is not annotated"
            )
    return problems


def _listing(folder: Path) -> tuple[list[Pair], list[Path], list[str]]:
    """Pairs, images without a mask, and what does not fit together, sorted by path."""
    apart = (folder / "images").is_dir()
    images_folder, masks_folder = (folder / "images", folder / "masks") if apart else (folder, folder)
    images, masks = _by_stem(images_folder, SUFFIXES, apart), _by_stem(masks_folder, MASK_SUFFIXES, apart)
    if not apart:  # what of the PNG are masks?
        for stem, paths in images.items():
            others = [path for path in paths if path.suffix.lower() != ".png"]
            images[stem] = others or paths
            masks[stem] = [path for path in masks.get(stem, []) if path not in images[stem]]
    pairs, unlabelled, problems = [], [], []
    for stem, (first, *others) in images.items():
        found = masks.get(stem, [])
        if others:
            problems.append(f"{first}: {others[0].name} has the same name but for its suffix; rename one")
        elif len(found) > 1:
            problems.append(f"{first}: it has two masks, {found[0].name} and {found[1].name}; remove one")
        elif found:
            pairs.append(Pair(first, found[0]))
        else:
            unlabelled.append(first)
    if apart and masks_folder.is_dir():
        others = [each for each in sorted(masks_folder.rglob("*")) if each.suffix.lower() in (*SUFFIXES, ".jfif")]
        problems += [
            f"{each}: masks are .png or .npy; save it as one of them"
            for each in others
            if each.suffix.lower() not in MASK_SUFFIXES and not is_hidden(each.relative_to(masks_folder).as_posix())
        ]
    orphans = [path for stem, paths in masks.items() if stem not in images for path in paths]
    problems += [f"{mask}: there is no image of the same name in {images_folder}" for mask in orphans]
    return pairs, unlabelled, problems


def _by_stem(folder: Path, suffixes: tuple[str, ...], deep: bool) -> dict[str, list[Path]]:
    """The files with one of the suffixes, by their path without it; what an ensemble has drawn is none of them."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*") if deep else folder.glob("*")):
        name = path.relative_to(folder)
        suffix = path.suffix.lower()
        if suffix not in suffixes or not path.is_file() or is_hidden(name.as_posix()):
            continue
        if name.name.endswith(".uncertainty.npy") or (suffix == ".png" and is_predicted(path)):
            continue
        found.setdefault(name.with_suffix("").as_posix(), []).append(path)
    return found


def _class_names(path: Path) -> tuple[list[str] | None, list[str]]:
    """The names in a classes.json, if there is one, and what is wrong with it."""
    if not path.exists():
        return None, []
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        return None, [f"{path}: it is not JSON: {error}"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None, [f'{path}: it must be a list of names, such as ["background", "cell"]']
    if len(set(names)) < len(names):
        return None, [f"{path}: two classes have the same name"]
    if len(names) > 256:
        return None, [f"{path}: {len(names)} classes, but a mask can tell 256 apart"]
    return names, []
