"""Time of a pre-training step of our UNet, beside the same network of diffusers; needs the extra `bench`.

Run: python -m experiments.benchmarks.pretraining_step [--repeats 7] [--threads 1] [--batch 16]

A step is zero_grad, the squared error of the predicted noise, backward and AdamW's update, on one and the same batch of
random images; the loss's other term costs the same for both and is left out. Both implementations take turns in one
process, diffusers in either memory format, of which the quicker one counts. The two networks compute the same.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.measure import alternate, timing_options
from experiments.benchmarks.whole_step import print_times
from lightning_modules.networks.unet import UNet
from lightning_modules.segmentation.diffusion import DiffusionPretraining

INSTALL = "diffusers is not installed, so its step was not run. To compare with it: pip install -e '.[bench]'"
BATCH = 16
PUBLISHED_BLOCKS = (5, 6, 7, 8, 12)  # decoder blocks whose features Baranchuk et al. (ICLR 2022) use
FORMATS = {"": torch.contiguous_format, ", channels last": torch.channels_last}


def build(**arguments: Any) -> DiffusionPretraining:
    """The module with its defaults, freshly initialised."""
    torch.manual_seed(0)
    return DiffusionPretraining(**arguments)


def diffusers_network(module: DiffusionPretraining) -> nn.Module:
    """The network of `module` in diffusers, for attention at the coarsest level only.

    Raises:
        ImportError: diffusers is not installed.
        RuntimeError: the network has another number of parameters.
    """
    from diffusers import UNet2DModel

    hparams = module.hparams
    coarser = len(hparams.channel_multipliers) - 1
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=hparams.image_size,
        in_channels=3,
        out_channels=6,
        block_out_channels=tuple(hparams.base_width * multiplier for multiplier in hparams.channel_multipliers),
        layers_per_block=hparams.num_residual_blocks,
        down_block_types=("ResnetDownsampleBlock2D",) * coarser + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * coarser,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=hparams.channels_per_head,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        dropout=hparams.dropout,
    )
    ours, theirs = (sum(each.numel() for each in model.parameters()) for model in (module.network, network))
    if ours != theirs:
        raise RuntimeError(f"not the same network: diffusers' has {theirs} parameters, ours {ours}")
    return network


def random_batch(module: DiffusionPretraining, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images, the noise that is to be predicted, and steps."""
    hparams, generator = module.hparams, torch.Generator().manual_seed(1)
    noisy, noise = torch.randn(2, size, 3, hparams.image_size, hparams.image_size, generator=generator)
    return noisy, noise, torch.randint(hparams.num_diffusion_steps, (size,), generator=generator)


def training_step(
    network: nn.Module, batch: tuple[Tensor, Tensor, Tensor], memory_format: torch.memory_format, half: bool
) -> Callable[[], float]:
    """A closure that takes one step and returns the loss.

    Args:
        network: ours, or diffusers'.
        batch: of `random_batch`.
        memory_format: of the images and of the network, which is moved.
        half: autocast to bfloat16.
    """
    network.to(memory_format=memory_format).train()
    noisy, noise = (each.contiguous(memory_format=memory_format) for each in batch[:2])
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = network(noisy, batch[2])
        predicted = (output if isinstance(output, Tensor) else output.sample).float()[:, :3]
        loss = F.mse_loss(predicted, noise)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def times(half: bool, batch_size: int, repeats: int) -> None:
    """Prints the times of both, and their ratio."""
    module = build()
    batch = random_batch(module, batch_size)
    print(f"\ntraining step in {'bfloat16 (autocast)' if half else 'float32'}, batch {list(batch[0].shape)}")
    steps: dict[str, Callable[[], object]] = {
        "genpred": training_step(module.network, batch, torch.channels_last, half)
    }
    try:
        for name, memory_format in FORMATS.items():
            steps[f"diffusers{name}"] = training_step(diffusers_network(module), batch, memory_format, half)
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        print(INSTALL)
    seconds = alternate(steps, repeats)
    theirs = min(seconds.keys() - {"genpred"}, key=lambda name: statistics.median(seconds[name]), default="diffusers")
    print_times(seconds, theirs, "genpred", f"{theirs} / genpred at least 1")


def giga_multiply_adds(run: Callable[[], object]) -> float:
    """Multiplications of a run, in units of 1e9."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9


def early_exit() -> None:
    """Prints the multiply-adds of the published network, and what remains when it stops behind a decoder block."""
    with torch.device("meta"):
        network, images = UNet(), torch.empty(1, 3, 256, 256)
        step = torch.zeros(1, dtype=torch.int64)
    whole = giga_multiply_adds(lambda: network(images, step))
    print(f"\npublished network, an image of 256 pixels: {whole:.2f} G multiply-adds")
    for block in PUBLISHED_BLOCKS:
        part = giga_multiply_adds(lambda last=block: network.decoder_maps(images, step, [last]))
        print(f"to decoder block {block:2}: {part:8.2f} G, {part / whole:.1%}")
    print("Target: to block 12 at most 60 %", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description="Time of a pre-training step, beside diffusers.")
    parser.add_argument("--batch", type=int, default=BATCH, help="images of a batch")
    options = timing_options(parser, arguments, repeats=7)
    for half in (False, True):
        times(half, options.batch, options.repeats)
    early_exit()


if __name__ == "__main__":
    main()
