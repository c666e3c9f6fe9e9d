"""A convolutional decoder of frames, for the GP-VAE's image models."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .mlp import glorot_


class FrameDecoder(nn.Module):
    """Dense layers onto a picture of a quarter of the sides, which transposed convolutions double twice.

    Linear(latent_dim -> hidden), ReLU, Linear(hidden -> 2 channels of a quarter's height and width), ReLU, transposed
    4x4 convolution of stride 2 (-> channels), ReLU, and another one onto the frame's own channels: the generator of
    Radford, Metz, Chintala, Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
    Networks, ICLR 2016, in small. Glorot-initialised.

    Args:
        latent_dim: size of a time step's latent.
        image_shape: [height, width] of a frame, or [height, width, channels], pixels; sides that 4 divides.
        channels: between the transposed convolutions.
        hidden: width of the hidden dense layer.

    Raises:
        ValueError: a side is not a multiple of 4, or `channels` or `hidden` is less than 1.
    """

    def __init__(self, latent_dim: int, image_shape: Sequence[int], channels: int, hidden: int = 256) -> None:
        super().__init__()
        height, width, colours = (*image_shape, 1)[:3]
        if height % 4 or width % 4:
            raise ValueError(
                f"FrameDecoder: image_shape is {list(image_shape)}; height and width must be multiples of 4"
            )
        if min(channels, hidden) < 1:
            raise ValueError(f"FrameDecoder: channels={channels} and hidden={hidden} must be at least 1")
        quarter = (height // 4, width // 4, 2 * channels)
        self.dense = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, math.prod(quarter)), nn.ReLU()
        )
        self.unflatten = nn.Unflatten(-1, quarter)
        self.doublings = nn.Sequential(
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, colours, 4, stride=2, padding=1),
        )
        glorot_(self).to(memory_format=torch.channels_last)  # the convolutions are faster so

    def forward(self, latent: Tensor) -> Tensor:
        """[batch, time, latent] to [batch, time, height * width * channels], the channels of a pixel side by side."""
        coarse = self.unflatten(self.dense(latent.flatten(0, 1)))  # [batch * time, height / 4, width / 4, 2 channels]
        frames = self.doublings(coarse.permute(0, 3, 1, 2))  # [batch * time, colour, height, width]
        return frames.permute(0, 2, 3, 1).flatten(1).unflatten(0, latent.shape[:2])
