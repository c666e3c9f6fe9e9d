"""Single pixels of the training images, as an ensemble of pixel classifiers learns from them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.base import BatchIndexSampler
from datamodules.segmentation.batch import PixelBatch

FEWEST = 20  # pixels of a class in a training image; fewer are not learnt


def ignore_small_regions(mask: NDArray[np.uint8], ignore_label: int) -> NDArray[np.uint8]:
    """The mask with `ignore_label` in place of each class that has fewer than 20 pixels in it, as published."""
    small = np.bincount(mask.ravel(), minlength=256) < FEWEST
    return np.where(small[mask], np.uint8(ignore_label), mask)


class TrainingPixels:
    """All annotated pixels, in the order of images and rows; an int64 tensor of their numbers gives a `PixelBatch`.

    Args:
        masks: uint8 [image, height, width].
        ignore_label: of the pixels that are not annotated.
    """

    def __init__(self, masks: Tensor, ignore_label: int) -> None:
        self.labels = masks.flatten()
        self.pixels_per_image = masks[0].numel()
        self.annotated = (self.labels != ignore_label).nonzero().squeeze(1)

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitem__(self, numbers: Tensor) -> PixelBatch:
        pixels = self.annotated[numbers.long()]
        return PixelBatch(
            image=pixels // self.pixels_per_image,
            position=pixels % self.pixels_per_image,
            label=self.labels[pixels].long(),
        )


class PixelSampler(BatchIndexSampler):
    """Numbers of pixels, int32 [pixel, member], for the steps of an ensemble that is trained on all processes alike.

    Each member goes through all pixels in an order of its own, a permutation drawn from (seed, member, epoch) only. A
    last batch that is not full is left out. All ranks get the same pixels.

    Args:
        num_pixels: annotated pixels of the training images.
        pixels_per_batch: pixels of a step, of each member.
        num_members: members of the ensemble.
        seed: of the orders.

    Raises:
        ValueError: an argument is out of range, or the pixels do not fill a batch.
    """

    def __init__(self, num_pixels: int, pixels_per_batch: int, num_members: int, seed: int = 0) -> None:
        super().__init__(num_pixels, pixels_per_batch, shuffle=True, seed=seed)
        if num_members < 1:
            raise ValueError(f"num_members={num_members}: an ensemble needs at least one member.")
        if num_pixels < pixels_per_batch:
            raise ValueError(
                f"The training masks have {num_pixels} annotated pixels, which do not fill a batch of "
                f"{pixels_per_batch}: annotate more, or lower data.pixels_per_batch."
            )
        self.num_members = num_members

    def rows(self) -> Tensor:
        """The pixels of the current epoch in order, int32 [pixel, member]."""
        orders = torch.empty(self.num_rows, self.num_members, dtype=torch.int32)
        for member in range(self.num_members):
            # Odd and large factors: no member of a seed meets the orders of another member, epoch or seed.
            key = (self.seed * 0x9E3779B97F4A7C15 + member * 0xD1B54A32D192ED03 + self.epoch) % 2**63
            generator = torch.Generator().manual_seed(key)
            orders[:, member] = torch.randperm(self.num_rows, dtype=torch.int32, generator=generator)
        return orders[: len(self) * self.batch_size]

    def __len__(self) -> int:
        return self.num_rows // self.batch_size
