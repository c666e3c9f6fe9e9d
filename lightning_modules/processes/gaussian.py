"""The Gaussian diffusion process in closed form: forward process, its inversion, and the posterior of one step.

Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020. Everything follows from alphas_cumprod, the
[num_steps] float64 vector of `schedules.alphas_cumprod`; steps are indices into it, an int64 tensor whose axes are the
first ones of the data, such as [batch] (or [1] for one step of all). Coefficients are computed in float64, since
1 - alphas_cumprod cancels at the first steps, and then take the type of the data. A variance that is learnt, and the
variational bound that trains it, are those of Nichol and Dhariwal, Improved DDPM, ICML 2021.
"""

import math
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


def learned_log_variance(fraction: Tensor, alphas_cumprod: Tensor, step: Tensor) -> Tensor:
    """Log variance of a reverse step, between its bounds (Nichol and Dhariwal, 2021, equation 15).

    Args:
        fraction: 1 is beta_t, -1 the variance of q(x_{t-1} | x_t, x_0), linear in the logarithm; a network's output,
            any shape. As in the authors' code nothing keeps it between the two.
        alphas_cumprod: [num_steps] float64, at least two steps.
        step: t; at t = 0, where the posterior has no variance, that of t = 1 takes its place, as in the authors' code.

    Returns:
        The shape of ``fraction``.
    """
    before = torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])
    beta = 1 - alphas_cumprod / before
    posterior = beta * (1 - before) / (1 - alphas_cumprod)
    posterior = torch.cat([posterior[1:2], posterior[1:]])
    largest, smallest = _like(beta[step].log(), fraction), _like(posterior[step].log(), fraction)
    return (largest + smallest + fraction * (largest - smallest)) / 2


def reverse_mean(noisy: Tensor, noise: Tensor, alphas_cumprod: Tensor, step: Tensor, clip: bool = False) -> Tensor:
    """Mean of the reverse step: that of q(x_{t-1} | x_t, x_0) at the x_0 that the predicted noise implies.

    Args:
        noisy: x_t, any shape.
        noise: the noise in it, as a network predicts it, of the same shape.
        alphas_cumprod: [num_steps] float64.
        step: t.
        clip: keep x_0 in [-1, 1], where images lie.
    """
    start = predict_start_from_noise(noisy, noise, alphas_cumprod, step)
    return posterior_mean_variance(start.clamp(-1, 1) if clip else start, noisy, alphas_cumprod, step)[0]


def bound_term(
    start: Tensor, noisy: Tensor, mean: Tensor, log_variance: Tensor, alphas_cumprod: Tensor, step: Tensor
) -> Tensor:
    """Term t of the negative variational bound on log p(x_0), for images (Ho et al., equations 5 and 13).

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) where t > 0; at t = 0 the negative log-likelihood of the 8-bit image.

    Args:
        start: x_0, [batch, ...], values k / 127.5 - 1 with k = 0..255.
        noisy: x_t, the same shape.
        mean: of p(x_{t-1} | x_t), the same shape.
        log_variance: of p(x_{t-1} | x_t), the same shape.
        alphas_cumprod: [num_steps] float64.
        step: [batch], t.

    Returns:
        [batch], nats, mean over the image's numbers.
    """
    true_mean, true_variance = posterior_mean_variance(start, noisy, alphas_cumprod, step)
    # Where t = 0 the variance is 0; its logarithm stays out of the branch that is not taken.
    first = (step == 0).reshape(true_variance.shape)
    true_log_variance = torch.where(first, 1.0, true_variance).log()
    difference = (true_mean - mean).square()
    kl = 0.5 * (
        log_variance - true_log_variance + (true_log_variance - log_variance).exp() - 1
        + difference * (-log_variance).exp()
    )  # fmt: skip
    term = torch.where(first, -discretised_log_likelihood(start, mean, log_variance), kl)
    return term.flatten(1).mean(1)


def discretised_log_likelihood(start: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-probability of 8-bit values under a normal distribution, in nats (Ho et al., equation 13).

    The value k / 127.5 - 1 has the probability of the interval half a step to either side; 0 and 255 have the tails.

    Args:
        start: values, any shape.
        mean: the same shape.
        log_variance: the same shape.

    Returns:
        The same shape; at least log(1e-12).
    """
    scale = (-log_variance / 2).exp()
    above = torch.where(start > 1 - 1e-3, torch.inf, (start - mean + 1 / 255) * scale)
    below = torch.where(start < -1 + 1e-3, -torch.inf, (start - mean - 1 / 255) * scale)
    # In the lower half the mirrored interval: a difference of upper tails keeps its digits. (special.ndtr is 1 + erf,
    # which has none left in the tails.)
    flip = (start > mean).to(start.dtype) * 2 - 1
    upper, lower = torch.maximum(flip * above, flip * below), torch.minimum(flip * above, flip * below)
    probability = (torch.erfc(lower * math.sqrt(0.5)) - torch.erfc(upper * math.sqrt(0.5))) / 2
    return probability.clamp(min=1e-12).log()


def _like(coefficient: Tensor, data: Tensor) -> Tensor:
    """The coefficient of each step with as many axes as the data, in their type."""
    return coefficient.to(data.dtype).reshape(coefficient.shape + (1,) * (data.ndim - coefficient.ndim))
