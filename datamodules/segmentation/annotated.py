"""What the annotated sets share: pairs of an image and a mask, their checks, and the loaders."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.base import ResumableDataModule, TensorLoader
from datamodules.segmentation.batch import AnnotatedBatch
from datamodules.segmentation.images import (
    LISTED,
    ImagesError,
    Resize,
    fitted,
    listed,
    nearest,
    read_mask,
    read_rgb,
    whole_image,
    whole_mask,
)
from datamodules.segmentation.palette import palette
from datamodules.segmentation.pixels import PixelSampler, TrainingPixels


class Pair(NamedTuple):
    """An image and its mask."""

    image: Path
    mask: Path


class AnnotatedDataModule(ResumableDataModule):
    """Trains on single pixels of a few images, and tests on whole images, which are decoded when they are needed.

    A subclass saves the hyper-parameters `image_size`, `num_members`, `pixels_per_batch`, `evaluation_batch_size`,
    `num_workers` and `seed`, says what `class_names` and `ignore_label` are, and calls `open_parts` in its `setup`.

    Attributes:
        train_images: uint8 [image, 3, height, width], after `setup`.
        train_masks: uint8 [image, height, width], as they are learnt.
        train_pixels: what the training loader picks from.
        test_set: test images and their masks, read when they are asked for.
    """

    task = "segmentation"
    train_images: Tensor | None = None
    train_masks: Tensor | None = None
    train_pixels: TrainingPixels | None = None
    test_set: "AnnotatedFiles | None" = None

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, by their numbers."""
        raise NotImplementedError(f"{type(self).__name__} must define class_names")

    @property
    def ignore_label(self) -> int:
        """Label of pixels that are not annotated, which may be the number of a class."""
        raise NotImplementedError(f"{type(self).__name__} must define ignore_label")

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Constructor arguments of a method that the data determine."""
        return {
            "num_classes": len(self.class_names),
            "image_size": self.hparams.image_size,
            "num_members": self.hparams.num_members,
            "noise_seed": self.hparams.seed,  # of a backbone that draws noise: another one in each run
        }

    @property
    def evaluation_arguments(self) -> dict[str, Any]:
        """Arguments of the metrics."""
        return {"num_classes": len(self.class_names), "ignore_label": self.ignore_label}

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Colours of the classes, [class, 3]."""
        return palette(len(self.class_names))

    def open_parts(
        self,
        train: Sequence[Pair],
        test: Sequence[Pair],
        resize: Resize = nearest,
        clean: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    ) -> None:
        """Decode the training images; remember the files of the test images.

        Args:
            train: to learn from.
            test: to test on.
            resize: of all masks.
            clean: what a training mask is made into, after resizing; None: it stays.
        """
        files, self.test_set = (
            AnnotatedFiles(part, self.hparams.image_size, self.ignore_label, resize) for part in (train, test)
        )
        self.train_images, self.train_masks, *_ = files[torch.arange(len(train))]
        if clean is not None:
            self.train_masks = torch.from_numpy(np.stack([clean(mask) for mask in self.train_masks.numpy()]))
        self.train_pixels = TrainingPixels(self.train_masks, self.ignore_label)

    def train_dataloader(self) -> TensorLoader:
        """Batches of pixels, an order for each member, the same on all ranks."""
        options, pixels = self.hparams, self.train_pixels
        sampler = PixelSampler(len(pixels), options.pixels_per_batch, options.num_members, options.seed)
        return TensorLoader(pixels, sampler)  # without workers: picking takes less time than handing over

    def test_dataloader(self) -> TensorLoader:
        """Test images in order, each on one rank."""
        return self.evaluation_loader(self.test_set)


class AnnotatedFiles:
    """Images and masks on disk; indexing by an int64 tensor gives an `AnnotatedBatch`.

    Args:
        pairs: the files.
        image_size: height and width, in pixels.
        ignore_label: of what lies beside an image that is not square.
        resize: of masks.
    """

    def __init__(self, pairs: Sequence[Pair], image_size: int, ignore_label: int, resize: Resize = nearest) -> None:
        self.pairs, self.image_size, self.ignore_label, self.resize = list(pairs), image_size, ignore_label, resize

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, indices: Tensor) -> AnnotatedBatch:
        images, masks, extent = zip(*(self._read(self.pairs[index]) for index in indices.tolist()), strict=True)
        images, masks = (torch.from_numpy(np.stack(each)) for each in (images, masks))
        return AnnotatedBatch(images, masks, torch.tensor(extent), indices)

    def _read(self, pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[int, int]]:
        try:
            image = read_rgb(pair.image)
            mask = whole_mask(read_mask(pair.mask), self.image_size, self.ignore_label, self.resize)
            width, height = fitted(*image.size, self.image_size)
            return whole_image(image, self.image_size), mask, (height, width)
        except ImagesError as error:
            raise ImagesError(f"{pair.image} and {pair.mask.name}: {error}") from error


def check_arguments(image_size: int, num_members: int, pixels_per_batch: int) -> None:
    """Raise ValueError for a number that is too small."""
    numbers = {
        "image_size": (image_size, 1),
        "num_members": (num_members, 1),
        "pixels_per_batch": (pixels_per_batch, 2),
    }
    for name, (value, least) in numbers.items():
        if value < least:  # the batch's own mean and deviation normalise it
            raise ValueError(f"{name}={value}: it must be at least {least}.")


class Checked(NamedTuple):
    """What was found in the files of a pair."""

    problems: list[str]  # a line for each fault, which names the file
    labels: set[int]  # in the mask; empty if it cannot be read


def check_pairs(
    pairs: Sequence[Pair], num_classes: int | None, ignore_label: int, square: bool = False
) -> list[Checked]:
    """Decode all files of the pairs and see what is wrong with them.

    Args:
        pairs: the files.
        num_classes: labels must lie below; None: they need not.
        ignore_label: may occur besides.
        square: whether images have to be.
    """

    def check(pair: Pair) -> Checked:
        problems, size, mask = [], None, None
        try:
            size = read_rgb(pair.image).size
        except ImagesError as error:
            problems.append(f"{pair.image}: {error}")
        try:
            mask = read_mask(pair.mask)
        except ImagesError as error:
            problems.append(f"{pair.mask}: {error}")
        if square and size is not None and size[0] != size[1]:
            problems.append(f"{pair.image}: it has {size[0]} x {size[1]} pixels, but must be square")
        if mask is None:
            return Checked(problems, set())
        if size is not None and mask.shape != size[::-1]:
            turned = "; was it drawn before the image was turned upright, as its EXIF orientation says?"
            problems.append(
                f"{pair.mask}: it has {mask.shape[1]} x {mask.shape[0]} pixels, but {pair.image.name} has {size[0]} x "
                f"{size[1]}{turned if mask.shape == size else ''}"
            )
        labels = set(np.bincount(mask.ravel()).nonzero()[0].tolist())
        beyond = [] if num_classes is None else sorted(labels.difference(range(num_classes), [ignore_label]))
        if beyond:
            problems.append(
                f"{pair.mask}: it has the label {some(beyond)}, but there are {num_classes} classes, 0 to "
                f"{num_classes - 1}, and {ignore_label} for what is not annotated"
            )
        return Checked(problems, labels)

    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        return list(pool.map(check, pairs))


def some(labels: Sequence[int]) -> str:
    """The first five of some labels."""
    return ", ".join(map(str, labels[:5])) + (", ..." if len(labels) > 5 else "")


def raise_problems(problems: Sequence[str], place: object, more: str = "") -> None:
    """Raise an ImagesError that lists the first problems, if there are any; `more` is said where it leaves some out."""
    if problems:
        told = listed(list(problems)) + (more if len(problems) > LISTED else "")
        raise ImagesError(f"{place} cannot be used; {len(problems)} to be put right:{told}")
