"""The contract of segmentation: a frozen backbone makes low-resolution feature maps, a classifier labels pixels."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class AnnotatedBatch(Protocol):
    """Annotated images (the data side defines the type)."""

    images: Tensor  # [batch, 3, height, width] uint8, red, green, blue
    masks: Tensor  # [batch, height, width] uint8, numbers of classes, or the label of what is not annotated
    extent: Tensor  # [batch, 2] int64, height and width of the picture in the upper left corner; the rest is padding
    index: Tensor  # [batch] int64, row in the part


class PixelBatch(Protocol):
    """The pixels of a training step: each member of an ensemble has its own."""

    image: Tensor  # [pixel, member] int64, row in the training part
    position: Tensor  # [pixel, member] int64, row * width + column of the pixel
    label: Tensor  # [pixel, member] int64, number of the class


class Segmentation(NamedTuple):
    """What a method answers and the metric callbacks read."""

    labels: Tensor  # [batch, height, width] int64, numbers of classes
    uncertainty: Tensor  # [batch, height, width] float32, Jensen-Shannon divergence of the members, nats


class PixelBackbone(nn.Module):
    """A frozen network whose activations describe pixels: subclasses write ``forward`` and set ``channels``.

    Attributes:
        channels: of each map, in the order of ``forward``'s answer.
        feature_dtype: smallest type that keeps the maps whole.
        kept_buffers: names of buffers that belong to a run and are stored with it, such as a noise that was drawn.
    """

    channels: Sequence[int]
    feature_dtype: torch.dtype = torch.float32
    kept_buffers: Sequence[str] = ()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps at the resolutions at which the network has them; nothing is up-sampled.

        Args:
            images: [batch, 3, height, width] float32 in [0, 1], square.

        Returns:
            Maps [batch, channels, h, w]. Their bilinear up-sampling (align_corners=False) to the image's size,
            concatenated in this order, is a pixel's feature vector.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(images)")
