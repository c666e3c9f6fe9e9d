"""Noise schedules of diffusion models with discrete steps, in float64.

A schedule is the vector of the variances beta_t that the forward process q(x_t | x_{t-1}) adds, t = 0 being the first
noisy step: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020, whose beta_1 is entry 0 here.
"""

import math

import torch
from torch import Tensor


def linear(num_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """Betas in equal steps from start to end (Ho et al., 2020, section 4).

    Args:
        num_steps: steps of the process.
        beta_start: variance added by the first step, in (0, beta_end].
        beta_end: variance added by the last step, below 1.

    Returns:
        [num_steps] float64.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(num_steps, beta_start, beta_end)
    return torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)


def scaled_linear(num_steps: int) -> Tensor:
    """The linear schedule of 1,000 steps from 1e-4 to 0.02, its betas times 1000 / num_steps for another number.

    So all numbers of steps end at about the same noise (Nichol and Dhariwal's code, and TabDDPM's).

    Args:
        num_steps: steps of the process, more than 20.

    Returns:
        [num_steps] float64.

    Raises:
        ValueError: ``num_steps`` is 20 or less, for which the last beta would be 1 or more.
    """
    if num_steps <= 20:
        raise ValueError(f"num_steps={num_steps}: the scaled linear schedule needs more than 20; choose cosine instead")
    return linear(num_steps, 0.1 / num_steps, 20 / num_steps)


def quadratic(num_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """Betas whose square roots go in equal steps from start to end, as in CSDI (Tashiro et al., NeurIPS 2021).

    Arguments, result and errors are those of `linear`.
    """
    _check(num_steps, beta_start, beta_end)
    return torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_steps, dtype=torch.float64).square()


def cosine(num_steps: int, offset: float = 0.008, largest_beta: float = 0.999) -> Tensor:
    """Betas under which alphas_cumprod falls as a squared cosine (Nichol, Dhariwal, Improved DDPM, ICML 2021, eq. 17).

    Args:
        num_steps: steps of the process.
        offset: the paper's s, which keeps the first betas from being too small.
        largest_beta: the last betas, which approach 1, are cut to this.

    Returns:
        [num_steps] float64.

    Raises:
        ValueError: an argument is out of range.
    """
    if num_steps < 1 or offset < 0 or not 0 < largest_beta < 1:
        raise ValueError(
            f"num_steps={num_steps}, offset={offset}, largest_beta={largest_beta}: a cosine schedule needs at least "
            "one step, an offset of at least 0 and a largest beta between 0 and 1"
        )
    time = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    signal = torch.cos((time + offset) / (1 + offset) * (math.pi / 2)).square()
    return (1 - signal[1:] / signal[:-1]).clamp(max=largest_beta)


def alphas_cumprod(betas: Tensor) -> Tensor:
    """Product of 1 - beta up to each step: the part of the variance of x_t that is signal; float64, the same shape."""
    return torch.cumprod(1 - betas.double(), dim=0)


def strided_steps(num_steps: int, count: int) -> Tensor:
    """Steps for a sampler that makes fewer than there are: evenly spaced, rounded, with the first and the last one.

    With steps = strided_steps(num_steps, count), ``alphas_cumprod[steps]`` is the schedule of the process that makes
    these steps only, and a network is told step ``steps[i]`` at its step i (Nichol and Dhariwal, 2021, section 4).

    Args:
        num_steps: steps of the whole process.
        count: how many of them, in 1..num_steps; a single one is the last.

    Returns:
        [count] int64, ascending.

    Raises:
        ValueError: ``count`` is out of range.
    """
    if not 1 <= count <= num_steps:
        raise ValueError(f"count={count}: choose between 1 and all num_steps={num_steps} steps")
    if count == 1:
        return torch.tensor([num_steps - 1])
    return torch.linspace(0, num_steps - 1, count, dtype=torch.float64).round().long()


def _check(num_steps: int, beta_start: float, beta_end: float) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: a diffusion process needs at least one step")
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"beta_start={beta_start}, beta_end={beta_end}: they must satisfy 0 < start <= end < 1")
