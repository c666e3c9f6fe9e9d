"""The Gaussian diffusion process in closed form: forward process, its inversion, and the posterior of one step.

Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020. Everything follows from alphas_cumprod, the
[num_steps] float64 vector of `schedules.alphas_cumprod`; steps are indices into it, an int64 tensor whose axes are the
first ones of the data, such as [batch] (or [1] for one step of all). Coefficients are computed in float64, since
1 - alphas_cumprod cancels at the first steps, and then take the type of the data.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

ReverseVariance = Literal["large", "small", "zero"]


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


def reverse_coefficients(alphas_cumprod: Tensor, variance: ReverseVariance) -> Tensor:
    """What a reverse step takes of x_t, of the predicted noise and of new noise: every sampler is linear in the three.

    With the posterior's variance this is equation 11 of Ho et al., with none the DDIM of Song, Meng, Ermon (Denoising
    Diffusion Implicit Models, ICLR 2021, equation 12 with sigma = 0). For fewer steps than in training, give a part
    of alphas_cumprod, ``alphas_cumprod[schedules.strided_steps(num_steps, count)]`` (Nichol and Dhariwal, 2021,
    section 4): the coefficients are those of the process that makes these steps only.

    Args:
        alphas_cumprod: [num_steps] float64, or an ascending part of its entries.
        variance: of the new noise: "large" is beta_t; "small" is the variance of q(x_{t-1} | x_t, x_0); "zero" is none,
            where the predicted noise is kept instead of replaced. The last step, t = 0, adds none in any case.

    Returns:
        [num_steps, 3] float64: factors of x_t, of the predicted noise, and of standard normal noise.

    Raises:
        ValueError: ``variance`` is another word.
    """
    if variance not in get_args(ReverseVariance):
        raise ValueError(f"variance={variance!r}: choose one of {', '.join(get_args(ReverseVariance))}")
    before = torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])
    alpha = alphas_cumprod / before
    small = (1 - alpha) * (1 - before) / (1 - alphas_cumprod)
    replaced = torch.zeros_like(small) if variance == "zero" else small
    # x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1} - replaced) predicted noise + new noise, x_0 as predicted.
    from_predicted = (1 - before - replaced).sqrt() - ((1 - alphas_cumprod) / alpha).sqrt()
    added = (1 - alpha) * (before < 1) if variance == "large" else replaced
    return torch.stack([alpha.rsqrt(), from_predicted, added.sqrt()], dim=-1)


def reverse_step(noisy: Tensor, predicted: Tensor, noise: Tensor, coefficients: Tensor, step: Tensor) -> Tensor:
    """x_{t-1}, from x_t and the noise that a network sees in it.

    Args:
        noisy: x_t, any shape.
        predicted: the noise in it, as a network predicts it, of the same shape.
        noise: standard normal, of the same shape.
        coefficients: [num_steps, 3] float64 of `reverse_coefficients`.
        step: t.
    """
    from_noisy, from_predicted, from_noise = (_like(part, noisy) for part in coefficients[step].unbind(-1))
    return from_noisy * noisy + from_predicted * predicted + from_noise * noise


def _like(coefficient: Tensor, data: Tensor) -> Tensor:
    """The coefficient of each step with as many axes as the data, in their type."""
    return coefficient.to(data.dtype).reshape(coefficient.shape + (1,) * (data.ndim - coefficient.ndim))
