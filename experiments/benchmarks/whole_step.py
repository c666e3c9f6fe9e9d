"""Part 2 of the benchmark of GP-VAE's training step, the whole of it, beside other ways to compute it.

A whole step is zero_grad, loss, backward, clipping and the optimiser's update, on one and the same batch of random data
of the real shape; the forms take turns in one process.
"""

import copy
import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.ndimage import zoom
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from datamodules.imputation.batch import SeriesBatch
from datamodules.imputation.healing_mnist import HealingSequences, load_digits, rotated_frames
from datamodules.imputation.missingness import draw_observed
from experiments.benchmarks.measure import alternate, largest_error, ratio
from experiments.build import build_module
from experiments.config import compose
from lightning_modules.imputation.gpvae import GPVAE
from lightning_modules.networks.conv import ImagePreprocessor

BATCH = 64
MISSING_RATE = 0.8  # of PhysioNet 2012
INSTALL = "PyPOTS is not installed, so its step was not run. To compare with it: pip install -e '.[bench]'"


def build(name: str, *overrides: str) -> tuple[GPVAE, float]:
    """The experiment's freshly initialised module, and the norm at which its gradients are clipped."""
    experiment = compose(name, list(overrides))
    torch.manual_seed(0)
    return build_module(experiment), experiment.config["trainer"]["gradient_clip_val"]


def training_step(module: GPVAE, batch: SeriesBatch, clip: float) -> Callable[[], float]:
    """Ours: a closure that takes one step and returns the loss."""
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> float:
        optimizer.zero_grad()
        loss = module.loss(batch)["loss"]
        loss.backward()
        clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        return loss.item()

    return step


def pypots_step(module: GPVAE, batch: SeriesBatch) -> Callable[[], float]:
    """The same in PyPOTS, as its own training loop does it: a model of the sizes of `module`, no clipping.

    Raises:
        ImportError: PyPOTS is not installed.
        RuntimeError: its model has another number of parameters.
    """
    from pypots import imputation

    hparams = module.hparams
    other = imputation.GPVAE(
        n_steps=hparams.num_steps,
        n_features=hparams.num_features,
        latent_size=hparams.latent_dim,
        encoder_sizes=tuple(hparams.encoder_sizes),
        decoder_sizes=tuple(hparams.decoder_sizes),
        kernel=hparams.kernel,
        beta=hparams.beta,
        sigma=hparams.kernel_variance,
        length_scale=hparams.length_scale,
        window_size=hparams.window,
        batch_size=len(batch.values),
        device="cpu",
        verbose=False,
    )
    ours, theirs = (sum(each.numel() for each in model.parameters()) for model in (module, other.model))
    if ours != theirs:
        raise RuntimeError(f"not the same model: PyPOTS has {theirs} parameters, ours {ours}")
    inputs = {"X": batch.values, "missing_mask": batch.observed_mask.float()}  # its mask is 1 where observed
    other.model.train()

    def step() -> float:
        other.optimizer.zero_grad()
        loss = other.model(inputs, calc_criterion=True)["loss"].sum()
        loss.backward()
        other.optimizer.step()
        return loss.item()

    return step


def random_series(num_steps: int, num_features: int) -> SeriesBatch:
    """Standard normal series [BATCH, time, feature] with MISSING_RATE of the entries missing at random."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(BATCH, num_steps, num_features, generator=generator)
    observed_mask = torch.rand(target.shape, generator=generator) >= MISSING_RATE
    rows = torch.arange(BATCH)
    return SeriesBatch(target * observed_mask, observed_mask, target, ~observed_mask, torch.zeros_like(rows), rows)


def healing_series(num_frames: int) -> SeriesBatch:
    """Healing MNIST made of scikit-learn's digits, enlarged to 18 of 28 pixels; no files needed.

    White noise would not do: the time of the tabulated convolution depends on the number of distinct 3x3 patches. That
    and the fraction of white pixels are within a tenth of those of MNIST.
    """
    images, labels, _ = load_digits("train")
    large = np.stack([np.pad(zoom(image, 2.25, order=1), 5) for image in images[:BATCH]])
    generator = np.random.default_rng(0)
    packed = rotated_frames(large, generator.normal(0.0, 20.0, (BATCH, num_frames)))
    white = np.unpackbits(packed, axis=-1, count=large[0].size).view(bool)
    observed = np.packbits(draw_observed("mnar", white, large.shape[1:], generator), axis=-1)
    arrays = {"frames": packed, "observed": observed, "labels": labels[:BATCH].astype(np.int64)}
    return HealingSequences(arrays, np.arange(BATCH), large.shape[1:])[torch.arange(BATCH)]


def plain_convolutions(preprocessor: ImagePreprocessor, values: Tensor, observed_mask: Tensor | None = None) -> Tensor:
    """What `forward_binary` gives, [..., height, width] to [..., 1, height, width], by convolutions over pixels."""
    channels = [values] if observed_mask is None else [values, observed_mask.to(values.dtype)]
    return preprocessor(torch.stack(channels, dim=-3))


def gradients(module: GPVAE, batch: SeriesBatch) -> list[Tensor]:
    """Loss and its gradients by all parameters, with random numbers that are the same in every call."""
    torch.manual_seed(0)
    loss = module.loss(batch)["loss"]
    return [loss.detach(), *torch.autograd.grad(loss, list(module.parameters()))]


def print_times(seconds: dict[str, list[float]], slow: str, fast: str, target: str) -> None:
    """A line for each form, and how many times quicker one is than the other."""
    print(f"{'form':20}{'median ms':>12}{'minimum ms':>12}")
    for form, values in seconds.items():
        print(f"{form:20}{1e3 * statistics.median(values):12.1f}{1e3 * min(values):12.1f}")
    if slow in seconds:
        print(f"{slow} / {fast}: {ratio(seconds[slow], seconds[fast])}")
    print(f"Target: {target}", flush=True)


def physionet_part(repeats: int) -> None:
    """Prints a whole step of gpvae_physionet beside PyPOTS'."""
    module, clip = build("gpvae_physionet")
    batch = random_series(module.hparams.num_steps, module.hparams.num_features)
    print(f"\ngpvae_physionet, whole step, batch {list(batch.values.shape)}")
    steps = {"genpred": training_step(module, batch, clip)}
    try:
        steps["PyPOTS"] = pypots_step(module, batch)
    except ModuleNotFoundError as error:
        if error.name != "pypots":
            raise
        print(INSTALL)
    print_times(alternate(steps, repeats), "PyPOTS", "genpred", "PyPOTS / genpred at least 5")


def healing_part(repeats: int) -> None:
    """Prints a whole step of gpvae_hmnist with both forms of the preprocessor, for both presets."""
    batch = None
    for preset in ("paper", "plus"):
        tabulated, clip = build("gpvae_hmnist", f"preset={preset}")
        plain = copy.deepcopy(tabulated)
        plain.preprocessor.forward_binary = partial(plain_convolutions, plain.preprocessor)
        batch = batch or healing_series(tabulated.hparams.num_steps)
        print(f"\ngpvae_hmnist, preset {preset}, whole step, batch {list(batch.values.shape)}")
        error = largest_error(gradients(tabulated, batch), gradients(plain, batch))
        if not error < 1e-3:
            raise RuntimeError(f"preset {preset}: loss or gradients of the tabulated form are off by {error:.1e}")
        print(f"Loss and gradients of the two forms agree to {error:.0e}")
        steps = {
            "tabulated": training_step(tabulated, batch, clip),
            "plain convolutions": training_step(plain, batch, clip),
        }
        target = "tabulated at most 70 ms on two cores"
        print_times(alternate(steps, repeats), "plain convolutions", "tabulated", target)
