"""Small backbones, images and weights for their tests."""

import math

import torch

from lightning_modules.segmentation.backbones.frozen import IMAGENET_MEAN, IMAGENET_STD

SMALL_UNET = {
    "base_width": 32, "channel_multipliers": (1, 2, 2), "num_residual_blocks": 1, "attention_resolutions": (8,),
    "channels_per_head": 16,
}  # fmt: skip
SMALL_DDPM = SMALL_UNET | {"trained_size": 32, "image_size": 32, "blocks": (1, 2, 4), "steps": (50, 250)}
SMALL_MAE = {"trained_size": 24, "patch_size": 8, "width": 32, "depth": 4, "num_heads": 4, "num_blocks": 3}


def sizes(maps):
    return [tuple(each.shape[1:]) for each in maps]


def numbers(state, seed=0):
    """Random tensors of these shapes: small weights, positive variances, so that activations stay moderate."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, value in state.items():
        if not value.is_floating_point():
            drawn[name] = torch.zeros_like(value, device="cpu")
        elif name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
            drawn[name] = 0.5 + torch.rand(value.shape, generator=generator)
        else:
            fan_in = math.prod(value.shape[1:]) if value.dim() > 1 else 100
            drawn[name] = torch.randn(value.shape, generator=generator) / math.sqrt(fan_in)
    return drawn


def normalised(images):
    return (images - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


def photographs(count, side, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
