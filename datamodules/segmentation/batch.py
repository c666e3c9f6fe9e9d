"""The batches of the segmentation data sets."""

from typing import NamedTuple

from torch import Tensor


class ImageBatch(NamedTuple):
    """Images without annotation."""

    images: Tensor  # [batch, 3, height, width] uint8, red, green, blue
    index: Tensor  # [batch] int64, row in the part


class AnnotatedBatch(NamedTuple):
    """Images with the class of each pixel."""

    images: Tensor  # [batch, 3, height, width] uint8, red, green, blue
    masks: Tensor  # [batch, height, width] uint8, numbers of classes, or the label of what is not annotated
    extent: Tensor  # [batch, 2] int64, height and width of the picture in the upper left corner; the rest is padding
    index: Tensor  # [batch] int64, row in the part


class PixelBatch(NamedTuple):
    """The pixels of a training step; each member of an ensemble has its own."""

    image: Tensor  # [pixel, member] int64, row in the training part
    position: Tensor  # [pixel, member] int64, row * width + column
    label: Tensor  # [pixel, member] int64, number of the class
