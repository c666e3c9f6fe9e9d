"""What the backbones share: weights that never change, and a forward pass that keeps no gradients."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from lightning_modules.segmentation.base import PixelBackbone

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FrozenBackbone(PixelBackbone):
    """A backbone in evaluation mode, whatever mode it is told, without gradients, and in its own precision.

    Subclasses write ``feature_maps`` and call ``freeze`` at the end of their constructors. A trainer's mixed precision
    does not reach the backbone: the features of an image must not depend on how the classifier is trained.

    Attributes:
        weights_sha256: SHA-256 of each file of weights by its name; empty where there is none.
    """

    weights_sha256: Mapping[str, str]

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """What ``forward`` answers, without its checks."""
        raise NotImplementedError(f"{type(self).__name__} must define feature_maps(images)")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images, see `PixelBackbone.forward`.

        Raises:
            ValueError: ``images`` is no float tensor [batch, 3, height, width], or has a size that does not pass.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images of shape {list(images.shape)} and type {images.dtype}: a backbone reads float images "
                "[batch, 3, height, width] in [0, 1]"
            )
        device = images.device.type  # the meta device, of shapes without numbers, knows no mixed precision
        own = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with torch.no_grad(), own:
            return self.feature_maps(images)

    def freeze(self) -> None:
        """Evaluation mode, and no parameter is trained."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Nothing changes: a frozen network stays in evaluation mode when its owner is trained."""
        return super().train(False)


class Normalise(nn.Module):
    """(image - mean) / std with a mean and a standard deviation for each colour.

    Args:
        mean: of red, green, blue, for images in [0, 1].
        std: likewise.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 3, height, width] to the same shape."""
        return (images - self.mean) / self.std
