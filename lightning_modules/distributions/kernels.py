"""Stationary covariance functions of time, for Gaussian process priors.

Every kernel has the signature (times, length_scale, variance=1.0, jitter=0.0) and returns

    K_{t,u} = variance * c(|time_t - time_u| / length_scale) + jitter * [t = u],    c(0) = 1,

for times of any spacing. Smooth kernels on a dense grid are singular to working precision: give float64 times and a
jitter (1e-3 is GP-VAE's choice for its Cauchy kernel). Duplicate times need a jitter too.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _scaled_distance(times: Tensor, length_scale: float, variance: float, jitter: float) -> Tensor:
    """Distances between all pairs of times in length scales, [..., T, T], after a check of every argument."""
    if not times.is_floating_point():
        raise TypeError(f"times have dtype {times.dtype}; convert them to a floating type, best torch.float64")
    if times.ndim == 0:
        raise ValueError("times have no axis; expected [..., T]")
    if not times.isfinite().all():
        raise ValueError("times contain values that are not finite; drop or fill those steps first")
    for name, value in {"length_scale": length_scale, "variance": variance}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; give a positive finite number")
    if not 0 <= jitter < math.inf:
        raise ValueError(f"jitter is {jitter}; give 0 or a small positive number, such as 1e-3")
    return (times[..., :, None] - times[..., None, :]).abs() / length_scale


def _covariance(correlation: Tensor, variance: float, jitter: float) -> Tensor:
    """Variance and jitter put on correlations [..., T, T]."""
    identity = torch.eye(correlation.shape[-1], dtype=correlation.dtype, device=correlation.device)
    return variance * correlation + jitter * identity


def cauchy(times: Tensor, length_scale: float, variance: float = 1.0, jitter: float = 0.0) -> Tensor:
    """Cauchy kernel, c(r) = 1 / (1 + r^2): a mixture of RBF kernels of all length scales.

    The rational quadratic kernel with alpha = 1 and length scale length_scale / sqrt(2). Fortuin et al. (AISTATS 2020,
    section 3.2); their code is this with variance = sigma, which is not squared, and jitter = 1e-3.

    Args:
        times: [..., T], of a floating type, in any unit.
        length_scale: distance at which the correlation is 1/2, in the unit of the times.
        variance: of the process at a point, without the jitter.
        jitter: added to the diagonal.

    Returns:
        Covariance [..., T, T] in the dtype of the times.

    Raises:
        ValueError: if an argument is out of range, or times are not finite.
        TypeError: if the times are not of a floating type.
    """
    distance = _scaled_distance(times, length_scale, variance, jitter)
    return _covariance(1 / (1 + distance.square()), variance, jitter)


def rbf(times: Tensor, length_scale: float, variance: float = 1.0, jitter: float = 0.0) -> Tensor:
    """Radial basis function kernel, c(r) = exp(-r^2 / 2), infinitely smooth.

    The code of GP-VAE writes exp(-(t - u)^2 / l^2), which is this with length_scale = l / sqrt(2), and has no jitter.
    Arguments, result and errors are those of `cauchy`, but for the correlation at one length scale, exp(-1/2).
    """
    distance = _scaled_distance(times, length_scale, variance, jitter)
    return _covariance(torch.exp(-0.5 * distance.square()), variance, jitter)


def matern12(times: Tensor, length_scale: float, variance: float = 1.0, jitter: float = 0.0) -> Tensor:
    """Matern kernel of smoothness 1/2, c(r) = exp(-r): the Ornstein-Uhlenbeck process, continuous and Markov.

    The "matern" kernel in the code of GP-VAE, exp(-|t - u| / sqrt(l)), is this with length_scale = sqrt(l).
    Arguments, result and errors are those of `cauchy`, but for the correlation at one length scale, exp(-1).
    """
    distance = _scaled_distance(times, length_scale, variance, jitter)
    return _covariance(torch.exp(-distance), variance, jitter)


def matern32(times: Tensor, length_scale: float, variance: float = 1.0, jitter: float = 0.0) -> Tensor:
    """Matern kernel of smoothness 3/2, c(r) = (1 + s) exp(-s) with s = sqrt(3) r: differentiable once.

    Rasmussen and Williams (2006), equation 4.17. Arguments, result and errors are those of `cauchy`.
    """
    distance = math.sqrt(3) * _scaled_distance(times, length_scale, variance, jitter)
    return _covariance((1 + distance) * torch.exp(-distance), variance, jitter)


def matern52(times: Tensor, length_scale: float, variance: float = 1.0, jitter: float = 0.0) -> Tensor:
    """Matern kernel of smoothness 5/2, c(r) = (1 + s + s^2 / 3) exp(-s) with s = sqrt(5) r: differentiable twice.

    Rasmussen and Williams (2006), equation 4.17. Arguments, result and errors are those of `cauchy`.
    """
    distance = math.sqrt(5) * _scaled_distance(times, length_scale, variance, jitter)
    return _covariance((1 + distance + distance.square() / 3) * torch.exp(-distance), variance, jitter)


KERNELS: dict[str, Callable[..., Tensor]] = {
    "cauchy": cauchy,
    "rbf": rbf,
    "matern12": matern12,
    "matern32": matern32,
    "matern52": matern52,
}
