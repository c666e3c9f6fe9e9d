"""The Gaussian diffusion process in closed form: forward process, its inversion, and the posterior of one step.

Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020. Everything follows from alphas_cumprod, the
[num_steps] float64 vector of `schedules.alphas_cumprod`; steps are indices into it, an int64 tensor whose axes are the
first ones of the data, such as [batch] (or [1] for one step of all). Coefficients are computed in float64, since
1 - alphas_cumprod cancels at the first steps, and then take the type of the data.
"""

import torch
from torch import Tensor


def q_sample(start: Tensor, noise: Tensor, alphas_cumprod: Tensor, step: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, a draw of q(x_t | x_0) (equation 4).

    Args:
        start: x_0, any shape.
        noise: standard normal, of the shape of ``start``.
        alphas_cumprod: [num_steps] float64.
        step: t.
    """
    signal = alphas_cumprod[step]
    return _like(signal.sqrt(), start) * start + _like((1 - signal).sqrt(), start) * noise


def predict_start_from_noise(noisy: Tensor, noise: Tensor, alphas_cumprod: Tensor, step: Tensor) -> Tensor:
    """The x_0 of which ``q_sample`` makes ``noisy`` with this noise (equation 15).

    Args:
        noisy: x_t, any shape.
        noise: the noise in it, as a network predicts it, of the same shape.
        alphas_cumprod: [num_steps] float64.
        step: t.
    """
    signal = alphas_cumprod[step]
    return _like(signal.rsqrt(), noisy) * noisy - _like((1 / signal - 1).sqrt(), noisy) * noise


def posterior_mean_variance(
    start: Tensor, noisy: Tensor, alphas_cumprod: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the Gaussian q(x_{t-1} | x_t, x_0) (equations 6 and 7).

    Args:
        start: x_0, any shape.
        noisy: x_t, the same shape.
        alphas_cumprod: [num_steps] float64.
        step: t; at t = 0 the posterior is the point x_0.

    Returns:
        The mean, of the shape of ``start``; the variance, which all entries of a step share, with as many axes.
    """
    signal = alphas_cumprod[step]
    signal_before = torch.where(step > 0, alphas_cumprod[(step - 1).clamp(min=0)], 1.0)
    alpha = signal / signal_before
    from_start = signal_before.sqrt() * (1 - alpha) / (1 - signal)
    from_noisy = alpha.sqrt() * (1 - signal_before) / (1 - signal)
    mean = _like(from_start, start) * start + _like(from_noisy, noisy) * noisy
    return mean, _like((1 - alpha) * (1 - signal_before) / (1 - signal), start)


def _like(coefficient: Tensor, data: Tensor) -> Tensor:
    """The coefficient of each step with as many axes as the data, in their type."""
    return coefficient.to(data.dtype).reshape(coefficient.shape + (1,) * (data.ndim - coefficient.ndim))
