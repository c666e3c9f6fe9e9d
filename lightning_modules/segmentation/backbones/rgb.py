"""Colour and position of a pixel: the floor that learned features must beat."""

import torch
from torch import Tensor

from lightning_modules.segmentation.backbones.frozen import FrozenBackbone


class RGBBackbone(FrozenBackbone):
    """Red, green, blue, and the pixel centre's x and y, all in [0, 1], at the image's own resolution.

    Attributes:
        channels: (5,), one map.
    """

    channels = (5,)

    def __init__(self) -> None:
        super().__init__()
        self.weights_sha256 = {}

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """One map [batch, 5, height, width]: r, g, b, x from the left, y from the top."""
        batch, _, height, width = images.shape
        x = ((torch.arange(width, device=images.device) + 0.5) / width).to(images)
        y = ((torch.arange(height, device=images.device) + 0.5) / height).to(images)
        position = torch.stack(torch.meshgrid(x, y, indexing="xy"))  # [2, height, width]
        return [torch.cat([images, position.expand(batch, -1, -1, -1)], dim=1)]
