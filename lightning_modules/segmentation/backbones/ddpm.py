"""DDPM: decoder activations of a diffusion model's UNet that looks at a noisy version of the image.

Baranchuk, Rubachev, Voynov, Khrulkov, Babenko: Label-Efficient Semantic Segmentation with Diffusion Models, ICLR 2022,
section 3: the image takes noise as at a few small steps, the UNet is told the step, and the outputs of some blocks in
the middle of its decoder describe the pixels. All images and steps share one noise. Departures: the noise is drawn on
the CPU, so that it does not depend on the device; what follows the last block is not computed, and all steps of an
image pass through the network together, neither of which changes a feature.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.networks.unet import AttentionBlock, ResidualBlock, UNet
from lightning_modules.processes import schedules
from lightning_modules.processes.gaussian import q_sample
from lightning_modules.segmentation.backbones import loading
from lightning_modules.segmentation.backbones.frozen import FrozenBackbone

_ADDRESS = "https://storage.yandexcloud.net/yandex-research/ddpm-segmentation/models/ddpm_checkpoints/"


class DDPMBackbone(FrozenBackbone):
    """Decoder blocks of a diffusion UNet at a few steps; maps are ordered by step, within a step by block.

    The defaults are the published network and choice: 15 maps of 8,448 channels in all.

    Args:
        checkpoint: a published file, the bare state dict of the UNet; or a checkpoint of `DiffusionPretraining`, or its
            run's folder, whose checkpoints/last.ckpt is meant: of it the averaged weights are used, and the network's
            sizes are those that it holds, whatever the arguments are; or "untrained", random weights. The latter are
            not those that pre-training starts with: these have zeros in the last layer of each residual and attention
            block, so that the network is linear and reads no step, too weak to compare a trained one with. Here, those
            layers are drawn like all others.
        blocks: numbers of decoder blocks, ascending; a block includes its up-sampling.
        steps: of the diffusion process, from 0 on, in the order of the maps.
        noise_seed: of the noise that all images and steps share; an experiment gives its data's seed, hence the run's.
        untrained_seed: of the weights of "untrained".
        image_size: side of the images to describe, in pixels.
        torso: type of the convolutions inside the blocks. Published features are of "float16", which keeps them
            whole when they are stored with 16 bits.
        trained_size: side of the images at which ``attention_resolutions`` are counted, see `UNet`, in pixels.
        out_channels: of the UNet's prediction; 6 where it has a variance, 3 where not.
        base_width: see `UNet`.
        channel_multipliers: see `UNet`.
        num_residual_blocks: see `UNet`.
        attention_resolutions: see `UNet`.
        channels_per_head: see `UNet`.
        num_diffusion_steps: of the process that the UNet was trained with, under the scaled linear schedule.

    Attributes:
        noise: [1, 3, image_size, image_size], kept in checkpoints.

    Raises:
        ValueError: ``checkpoint`` is None or does not fit, or blocks or steps do not exist.
    """

    kept_buffers = ("noise",)

    def __init__(
        self,
        checkpoint: str | None = None,
        blocks: Sequence[int] = (5, 6, 7, 8, 12),
        steps: Sequence[int] = (50, 150, 250),
        noise_seed: int = 0,
        untrained_seed: int = 0,
        image_size: int = 256,
        torso: Literal["float32", "float16", "bfloat16"] = "float16",
        trained_size: int = 256,
        out_channels: int = 6,
        base_width: int = 256,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_residual_blocks: int = 2,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        channels_per_head: int = 64,
        num_diffusion_steps: int = 1000,
    ) -> None:
        super().__init__()
        if checkpoint is None:
            raise ValueError(
                "checkpoint=None: give the path of a UNet's weights, such as lsun_bedroom.pt, ffhq.pt, lsun_cat.pt or "
                f"lsun_horse.pt from {_ADDRESS}; in a configuration also 'published:ddpm/lsun_bedroom' and likewise "
                "ddpm/ffhq, ddpm/lsun_cat and ddpm/lsun_horse, which are downloaded; or the folder of a pre-training "
                f"run, such as runs/unet_images/<variant>/seed0; or '{loading.UNTRAINED}'"
            )
        sizes = {
            "image_size": trained_size, "out_channels": out_channels, "base_width": base_width,
            "channel_multipliers": channel_multipliers, "num_residual_blocks": num_residual_blocks,
            "attention_resolutions": attention_resolutions, "channels_per_head": channels_per_head,
        }  # fmt: skip
        self.weights_sha256, state = {}, None
        if checkpoint != loading.UNTRAINED:
            path = _file_of(checkpoint)
            state = loading.read_checkpoint(path)
            if "hyper_parameters" in state:
                sizes, num_diffusion_steps, state = _of_pretraining(state, str(path))
            self.weights_sha256[path.name] = loading.file_sha256(path)
        with loading.seeded(untrained_seed):
            self.network = UNet(**sizes)
            if state is None:
                _draw_zeros(self.network)
        if state is not None:
            loading.load_strictly(self.network, state, str(path))
        self._choose(blocks, steps, num_diffusion_steps)
        self.network.cast_torso(getattr(torch, torso)).to(memory_format=torch.channels_last)
        if torso == "float16":
            self.feature_dtype = torch.float16
        generator = torch.Generator().manual_seed(noise_seed)
        noise = torch.randn(1, 3, image_size, image_size, generator=generator, device="cpu")
        self.register_buffer("noise", noise)
        self.freeze()

    def _choose(self, blocks: Sequence[int], steps: Sequence[int], num_diffusion_steps: int) -> None:
        """Keep which blocks and steps are wanted, and what they need of the process."""
        count = len(self.network.output_blocks)
        if not blocks or list(blocks) != sorted(set(blocks) & set(range(count))):
            raise ValueError(f"blocks={list(blocks)}: choose ascending numbers from 0 to {count - 1}")
        if not steps or len(set(steps)) < len(steps) or not set(steps) <= set(range(num_diffusion_steps)):
            raise ValueError(f"steps={list(steps)}: choose different numbers from 0 to {num_diffusion_steps - 1}")
        self.blocks, self.num_steps = list(blocks), len(steps)
        self.channels = tuple(self.network.decoder_channels[block] for block in blocks) * len(steps)
        self.register_buffer("steps", torch.tensor(list(steps)), persistent=False)  # [step]
        alphas_cumprod = schedules.alphas_cumprod(schedules.scaled_linear(num_diffusion_steps))
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    @property
    def noise_sha256(self) -> str:
        """SHA-256 of the noise's bytes, float32 in the order of its axes, in hexadecimal."""
        return loading.tensors_sha256(self.noise)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Outputs of the blocks at the steps, float32 [batch, channels, h, w]."""
        if images.shape[-2:] != self.noise.shape[-2:]:
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels, but the noise is for "
                f"{self.noise.shape[-2]} x {self.noise.shape[-1]}: set image_size to the side of the images"
            )
        start = (2 * images - 1)[None]  # [1, batch, 3, height, width]
        noisy = q_sample(start, self.noise, self.alphas_cumprod, self.steps)  # [step, batch, 3, height, width]
        noisy = noisy.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        maps = self.network.decoder_maps(noisy, self.steps.repeat_interleave(len(images)), self.blocks)
        by_step = [each.unflatten(0, (self.num_steps, -1)) for each in maps]  # of a block: [step, batch, channel, h, w]
        return [each[step] for step in range(self.num_steps) for each in by_step]


def _file_of(checkpoint: str) -> Path:
    """The file that a checkpoint names: itself, or the last checkpoint of a run's folder."""
    path = Path(checkpoint).expanduser()
    if not path.is_dir():
        return path
    last = path / "checkpoints" / "last.ckpt"
    if not last.exists():
        raise ValueError(f"checkpoint={checkpoint} is a folder without checkpoints/last.ckpt: is it that of a run?")
    return last


def _of_pretraining(checkpoint: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], int, dict[str, Tensor]]:
    """Sizes of the network, diffusion steps and averaged weights in a checkpoint of `DiffusionPretraining`."""
    chosen, prefix = loading.entry(checkpoint, "hyper_parameters", origin), "average."
    names = ("image_size", "base_width", "channel_multipliers", "num_residual_blocks", "attention_resolutions")
    missing = {*names, "channels_per_head", "num_diffusion_steps"} - chosen.keys()
    tensors = loading.entry(checkpoint, "state_dict", origin)
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if missing or not state:
        raise ValueError(
            f"{origin} has no {sorted(missing)[0] if missing else 'averaged weights'}: it is a checkpoint, but not one "
            "of DiffusionPretraining"
        )
    sizes = {name: chosen[name] for name in (*names, "channels_per_head")}
    return sizes, chosen["num_diffusion_steps"], state


def _draw_zeros(network: UNet) -> None:
    """Give random weights to the layers that start at zero."""
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            module.out_layers[-1].reset_parameters()
        elif isinstance(module, AttentionBlock):
            module.proj_out.reset_parameters()
