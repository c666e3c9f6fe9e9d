"""Time and memory of GP-VAE's training step on SPRITES, with the blockwise convolution and with plain ones.

Run: python -m experiments.benchmarks.sprites_step. A whole step of gpvae_sprites for both presets, on one and the same
batch; the two forms take turns in one process, and their memory is measured in processes of their own.
"""

import argparse
import copy
import multiprocessing
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from datamodules.imputation.batch import SeriesBatch
from experiments.benchmarks.measure import alternate, largest_error, peak_memory, timing_options
from experiments.benchmarks.whole_step import build, gradients, print_times, training_step
from lightning_modules.imputation.gpvae import GPVAE
from lightning_modules.networks.conv import ImagePreprocessor

BATCH = 64
FORMS = ("blockwise", "plain convolutions")


def coloured_series(batch: int, image_shape: Sequence[int], num_steps: int) -> SeriesBatch:
    """Coloured noise in an ellipse that walks through black frames, 0.6 of all entries missing; no files needed.

    The blockwise convolution takes the longer the more pixels have a neighbour that is neither black nor missing: 27 %
    here as in SPRITES.
    """
    generator = torch.Generator().manual_seed(0)
    height, width, channels = image_shape
    centre = width * (0.4 + 0.2 * torch.rand(batch, 1, 1, 1, generator=generator))
    centre = centre + torch.arange(num_steps).view(-1, 1, 1)  # [batch, time, 1, 1]
    row, column = torch.arange(height)[:, None] - height / 2, torch.arange(width) - centre
    inside = (row / (0.41 * height)) ** 2 + (column / (0.187 * width)) ** 2 < 1  # [batch, time, height, width]
    colours = torch.rand(*inside.shape, channels, generator=generator)
    target = (colours * inside[..., None]).flatten(2)
    observed_mask = torch.rand(target.shape, generator=generator) >= 0.6
    rows = torch.arange(batch)
    return SeriesBatch(target * observed_mask, observed_mask, target, ~observed_mask, torch.zeros_like(rows), rows)


def plain_convolutions(preprocessor: ImagePreprocessor, pixels: Tensor) -> Tensor:
    """What `forward_pixels` gives, [..., height, width, channel] in and out, by torch's convolutions."""
    return preprocessor(pixels.movedim(-1, -3)).movedim(-3, -1)


def modules(preset: str) -> tuple[dict[str, GPVAE], float]:
    """The freshly initialised model in both forms, and the norm at which its gradients are clipped."""
    blockwise, clip = build("gpvae_sprites", f"preset={preset}")
    plain = copy.deepcopy(blockwise)
    plain.preprocessor.forward_pixels = partial(plain_convolutions, plain.preprocessor)
    return dict(zip(FORMS, (blockwise, plain), strict=True)), clip


def series_for(module: GPVAE, batch: int) -> SeriesBatch:
    """A batch for this model."""
    return coloured_series(batch, module.hparams.image_shape, module.hparams.num_steps)


def difference(preset: str) -> float:
    """How far loss and gradients of the two forms are apart, on at most 8 series.

    In float64: in float32 a ReLU whose input rounds to the other side of 0 moves gradients by 1e-3 alone.
    """
    both, _ = modules(preset)
    batch = series_for(both["blockwise"], min(BATCH, 8))
    fields = (field.double() if torch.is_tensor(field) and field.is_floating_point() else field for field in batch)
    batch = type(batch)(*fields)
    return largest_error(*(gradients(both[form].double(), batch) for form in FORMS))


def time_part(preset: str, repeats: int) -> None:
    """Prints the times of a whole step in both forms.

    Raises:
        RuntimeError: the two forms do not compute the same.
    """
    both, clip = modules(preset)
    batch = series_for(both["blockwise"], BATCH)
    print(f"\ngpvae_sprites, preset {preset}, whole step, batch {list(batch.values.shape)}", flush=True)
    error = difference(preset)
    if not error < 1e-3:
        raise RuntimeError(f"preset {preset}: loss or gradients of the blockwise form are off by {error:.1e}")
    print(f"Loss and gradients of the two forms agree to {error:.0e}", flush=True)
    steps = {form: training_step(module, batch, clip) for form, module in both.items()}
    print_times(alternate(steps, repeats, warm_up=False), *reversed(FORMS), "plain convolutions / blockwise at least 3")


def _peak_growth(preset: str, form: str, batch_size: int, threads: int, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(threads)
    both, clip = modules(preset)
    step = training_step(both[form], series_for(both[form], batch_size), clip)
    before = peak_memory()
    step()
    queue.put(peak_memory() - before)


def peak_growth(preset: str, form: str, batch_size: int) -> int:
    """Bytes by which a step lifts the peak resident memory of a fresh process above model, batch and libraries."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (preset, form, batch_size, torch.get_num_threads(), queue)
    process = context.Process(target=_peak_growth, args=arguments)
    process.start()
    growth = queue.get(timeout=600)
    process.join()
    return growth


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints times and memory for the chosen presets."""
    parser = argparse.ArgumentParser(description="Time and memory of GP-VAE's training step on SPRITES.")
    parser.add_argument("--presets", nargs="+", choices=("paper", "plus"), default=["paper", "plus"])
    options = timing_options(parser, arguments, repeats=3)
    for preset in options.presets:
        time_part(preset, options.repeats)
        for form in FORMS:
            print(f"{form}: {peak_growth(preset, form, BATCH) / 1e6:.0f} MB at the peak of a step", flush=True)


if __name__ == "__main__":
    main()
