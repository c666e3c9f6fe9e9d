"""Part 1 of the benchmark of GP-VAE's training step, the Gaussian process alone.

Sample + KL, forward and backward, of BandedGaussian and of the dense algebra that other implementations use (a [T, T]
factor per series, solved against the identity; a generic Gaussian KL).
"""

import multiprocessing
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from experiments.benchmarks.measure import alternate, largest_error, peak_memory, ratio
from lightning_modules.distributions.banded import BandedGaussian
from lightning_modules.distributions.gaussian_process import GaussianProcessPrior
from lightning_modules.distributions.kernels import cauchy

# (batch, time, latent, length scale): Healing MNIST, Physionet, long series.
SIZES = ((64, 10, 256, 2.0), (64, 48, 35, 7.0), (16, 1000, 64, 7.0))
DENSE_LIMIT = 2**28  # entries of [batch, latent, T, T] beyond which the dense form runs with a batch of 1

Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def banded_step(batch: int, num_steps: int, latent: int, length_scale: float) -> Step:
    """Ours: from mean, diagonal, off_diagonal [batch, latent, T (- 1)] and noise to a sample and the KL."""
    prior = GaussianProcessPrior(prior_covariance(num_steps, length_scale))

    def step(mean: Tensor, diagonal: Tensor, off_diagonal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        posterior = BandedGaussian(mean, diagonal, off_diagonal)
        return posterior.transform(noise), sum(posterior.kl_divergence(prior))

    return step


def dense_step(
    batch: int, num_steps: int, latent: int, length_scale: float, dtype: torch.dtype = torch.float32
) -> Step:
    """The same with dense matrices: U [batch, latent, T, T], U^-T by a triangular solve, the generic Gaussian KL."""
    factor = torch.linalg.cholesky(prior_covariance(num_steps, length_scale).to(dtype)).expand(batch, latent, -1, -1)
    prior = MultivariateNormal(torch.zeros(num_steps, dtype=dtype), scale_tril=factor, validate_args=False)
    identity = torch.eye(num_steps, dtype=dtype)

    def step(mean: Tensor, diagonal: Tensor, off_diagonal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        upper = torch.diag_embed(diagonal) + torch.diag_embed(off_diagonal, offset=1)
        scale_tril = torch.linalg.solve_triangular(upper.mT, identity.expand_as(upper), upper=False)
        posterior = MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)
        return mean + (scale_tril @ noise.unsqueeze(-1)).squeeze(-1), kl_divergence(posterior, prior)

    return step


FORMS = {"banded": banded_step, "dense": dense_step}


def prior_covariance(num_steps: int, length_scale: float) -> Tensor:
    """Cauchy covariance [T, T] at times 0..T-1, float64."""
    return cauchy(torch.arange(num_steps, dtype=torch.float64), length_scale, jitter=1e-3)


def posterior_arguments(batch: int, num_steps: int, latent: int) -> tuple[Tensor, ...]:
    """Mean, diagonal, off-diagonal as a fresh GP-VAE encoder gives them, and noise; the first three are leaves."""
    generator = torch.Generator().manual_seed(0)
    mean, first, second, noise = torch.randn(4, batch, latent, num_steps, generator=generator)
    parts = 0.1 * mean, 1 + first.sigmoid(), second.sigmoid()[..., 1:].contiguous()
    return *(part.requires_grad_() for part in parts), noise


def differentiated(step: Step, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    """Sample and KL with the gradients of sum(sample^2) / 2 + sum(KL) by mean, diagonal and off-diagonal."""
    sample, divergence = step(*arguments)
    gradients = torch.autograd.grad(0.5 * sample.square().sum() + divergence.sum(), arguments[:3])
    return [sample.detach(), divergence.detach(), *gradients]


def errors(size: tuple[int, int, int, float]) -> dict[str, float]:
    """Error of each form on two series, the largest of any result relative to the largest entry of its truth.

    The truth is the dense form in float64.
    """
    _, num_steps, _, length_scale = size
    size = (1, num_steps, 2, length_scale)
    arguments = posterior_arguments(*size[:3])
    doubles = tuple(part.detach().double().requires_grad_(part.requires_grad) for part in arguments)
    truth = differentiated(dense_step(*size, dtype=torch.float64), doubles)
    return {form: largest_error(differentiated(FORMS[form](*size), arguments), truth) for form in FORMS}


def _peak_growth(form: str, size: tuple[int, int, int, float], queue: multiprocessing.Queue) -> None:
    step, arguments = FORMS[form](*size), posterior_arguments(*size[:3])
    before = peak_memory()
    differentiated(step, arguments)
    queue.put(peak_memory() - before)


def peak_growth(form: str, size: tuple[int, int, int, float]) -> int:
    """Bytes by which a step lifts the peak resident memory of a fresh process above its arguments and libraries."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak_growth, args=(form, size, queue))
    process.start()
    growth = queue.get(timeout=600)
    process.join()
    return growth


def gp_part(repeats: int) -> None:
    """Prints part 1: times of alternating runs in this process, memory of one step in a process of its own."""
    print("GP part: sample + KL, forward + backward, float32")
    header = (
        f"{'form':8}{'batch':>6}{'time':>6}{'latent':>8}{'median ms':>12}{'minimum ms':>12}{'peak MB':>10}{'error':>10}"
    )
    print(f"{header}  dense / banded", flush=True)
    for batch, num_steps, latent, length_scale in SIZES:
        fits = batch * latent * num_steps**2 <= DENSE_LIMIT
        sizes = dict.fromkeys(FORMS, (batch, num_steps, latent, length_scale))
        if not fits:
            sizes["dense"] = (1, num_steps, latent, length_scale)
        steps = {form: FORMS[form](*size) for form, size in sizes.items()}
        arguments = {form: posterior_arguments(*size[:3]) for form, size in sizes.items()}
        error = errors(sizes["banded"])
        if not error["banded"] < 1e-4:
            raise RuntimeError(f"banded results are off by {error['banded']:.1e}, more than 1e-4, at T = {num_steps}")
        runs = {form: partial(differentiated, steps[form], arguments[form]) for form in FORMS}
        if fits:
            seconds = alternate(runs, repeats)
        else:  # one run of many seconds is enough
            seconds = alternate({"banded": runs["banded"]}, max(3, repeats // 10))
            seconds |= alternate({"dense": runs["dense"]}, 1, warm_up=False)
        comparison = ratio(seconds["dense"], seconds["banded"])
        for form in FORMS:
            shape = f"{form:8}{sizes[form][0]:6d}{num_steps:6d}{latent:8d}"
            timing = f"{1e3 * statistics.median(seconds[form]):12.2f}{1e3 * min(seconds[form]):12.2f}"
            memory = f"{peak_growth(form, sizes[form]) / 1e6:10.0f}"
            print(f"{shape}{timing}{memory}{error[form]:10.0e}  {comparison if form == 'dense' else ''}", flush=True)
        if not fits:
            print(
                f"The last ratio is that of dense at batch 1 to banded at batch {batch}: dense does not fit at {batch}."
            )
