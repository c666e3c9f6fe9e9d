"""The multinomial diffusion process of categorical columns, all columns of a table at once.

Hoogeboom et al., Argmax Flows and Multinomial Diffusion, NeurIPS 2021, section 4, as TabDDPM has it (Kotelnikov et al.,
ICML 2023). In a column of K categories a step keeps the category with probability alpha_t and otherwise draws one of
the K; the network's logits stand for x_0, and p(x_{t-1} | x_t) is the posterior with their softmax in place of x_0.

Categories are int64 [batch, column]. What has an entry for every category of every column has the columns one after the
other (`Segments`): [batch, category] as a network reads and writes it, [category, batch] in between, since sums over a
column's categories then add up contiguous rows. Everything follows from alphas_cumprod, the [num_steps] float64 vector
of `schedules.alphas_cumprod`, or an ascending part of it; steps are int64 indices into it, [batch], or [1] for all.

A step's posterior is a mixture, of which its probabilities and its KL divergence are made here: with
f_j = abar_{t-1} x_0j + (1 - abar_{t-1}) / K, the probability of x_{t-1} = j given x_0 alone,

    q(x_{t-1} = j | x_t, x_0) = kept [j = x_t] + drawn f_j,  kept = alpha_t f_{x_t} / Z,  drawn = (1 - alpha_t) / (K Z).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.processes.segments import Segments

_LOG_ZERO = -1e6  # a logarithm of 0 whose product with 0 is 0, far below every logarithm of a softmax that occurs


def q_sample(
    start: Tensor,
    alphas_cumprod: Tensor,
    step: Tensor,
    segments: Segments,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw x_t of q(x_t | x_0): x_0 with probability abar_t, otherwise any of the column's categories, x_0 included.

    Args:
        start: x_0, int64 [batch, column].
        alphas_cumprod: [num_steps] float64.
        step: t.
        segments: the columns.
        generator: source of randomness on the data's device; None: torch's global one.

    Returns:
        x_t, int64 [batch, column].
    """
    kept = torch.rand(start.shape, generator=generator, device=start.device) < alphas_cumprod[step][:, None]
    return torch.where(kept, start, uniform_sample(len(start), segments, generator))


def uniform_sample(num_rows: int, segments: Segments, generator: torch.Generator | None = None) -> Tensor:
    """Categories drawn uniformly, as x_T is: int64 [num_rows, column] on the device of ``segments``."""
    shape, device = (num_rows, segments.num_columns), segments.sizes.device
    # A remainder of 62 bits favours no category by more than a part in 10^14.
    return torch.randint(2**62, shape, generator=generator, device=device) % segments.sizes[:, 0]


def posterior(probabilities: Tensor, noisy: Tensor, alphas_cumprod: Tensor, step: Tensor, segments: Segments) -> Tensor:
    """Probabilities of q(x_{t-1} | x_t, x_0) with x_0 known by its distribution (Hoogeboom et al., section 4).

    Args:
        probabilities: of x_0, [category, batch]: a softmax of logits, or a one-hot vector.
        noisy: x_t, int64 [batch, column].
        alphas_cumprod: [num_steps] float64.
        step: t; at t = 0 the result is the distribution of x_0 itself, given its noisy version.
        segments: the columns.

    Returns:
        [category, batch], each column's adding up to 1.
    """
    signal, lost, alpha, beta = _coefficients(alphas_cumprod, step, probabilities.dtype)
    before = signal * probabilities + segments.expand(lost / segments.sizes)  # f, [category, batch]
    place = noisy.t() + segments.offsets
    kept, drawn = alpha * before.gather(0, place), beta / segments.sizes  # [column, batch], times Z
    total = kept + drawn
    return (before * segments.expand(drawn / total)).scatter_add(0, place, kept / total)


def reverse_step(
    logits: Tensor,
    noisy: Tensor,
    alphas_cumprod: Tensor,
    step: Tensor,
    segments: Segments,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw x_{t-1} of p(x_{t-1} | x_t), the posterior with the softmax of a network's logits in place of x_0.

    Args:
        logits: of x_0, [batch, category].
        noisy: x_t, int64 [batch, column].
        alphas_cumprod: [num_steps] float64; for fewer steps than in training, a part of its entries.
        step: t.
        segments: the columns.
        generator: source of randomness on the data's device; None: torch's global one.

    Returns:
        x_{t-1}, int64 [batch, column].
    """
    probabilities = segments.log_softmax(logits).exp()
    return segments.draw(posterior(probabilities, noisy, alphas_cumprod, step, segments), generator)


def posterior_kl(
    logits: Tensor, start: Tensor, noisy: Tensor, alphas_cumprod: Tensor, step: Tensor, segments: Segments
) -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) of each row; at t = 0 it is -log p(x_0 | x_t), the decoder's term.

    TabDDPM's loss of a row is (num_steps * posterior_kl + prior_kl) / num_columns: num_steps is one over the
    probability of the step drawn, and the division makes it a mean over columns.

    With l_j = log(p's f_j / q's f_j), it is log(Z_p / Z_q) - kept l_{x_t} - drawn sum_j f_j l_j, where kept, drawn and
    f_j are q's: of all categories only x_0 and x_t have a term that is not the same for all.

    Args:
        logits: of x_0, [batch, category].
        start: x_0, int64 [batch, column].
        noisy: x_t, int64 [batch, column].
        alphas_cumprod: [num_steps] float64.
        step: t.
        segments: the columns.

    Returns:
        [batch], nats, the sum over the columns.
    """
    log_p = segments.log_softmax(logits)  # [category, batch]
    signal, lost, alpha, beta = _coefficients(alphas_cumprod, step, log_p.dtype)  # [1, batch] each
    lost, beta = lost / segments.sizes, beta / segments.sizes  # [column, batch]
    places = torch.stack([start.t(), noisy.t()]) + segments.offsets  # [2, column, batch]: of x_0, of x_t

    before = signal * (places == places[0]) + lost  # q's f at both
    total = alpha * before[1] + beta
    alpha, beta = alpha / total, beta / total  # over q's Z
    weights = torch.stack([beta * signal, alpha * before[1]])  # of l_{x_0} and l_{x_t}

    # log p's f = log(signal p + lost) is made of log p, so that no p is too small for it at t = 0.
    log_signal, log_lost = signal.log(), _log(lost)
    log_pair = log_p.gather(0, places.flatten(0, 1)).view_as(places)
    log_before = torch.logaddexp(log_pair + log_signal, log_lost)  # [2, column, batch]
    pair = weights * (log_before - _log(before))

    # The sum of l over all categories: log(f / lost) of each, less what q has at x_0.
    log_odds = log_signal - log_lost
    ratios = segments.sum(_softplus(log_p + segments.expand(log_odds))) - _softplus(log_odds)
    log_totals = (alpha * log_before[1].exp() + beta).log()  # log(Z_p / Z_q)
    return (log_totals - beta * lost * ratios - pair.sum(0)).sum(0)


def prior_kl(alphas_cumprod: Tensor, segments: Segments) -> Tensor:
    """KL(q(x_T | x_0) || uniform), the sum over the columns; it is the same for all x_0. A float64 number, nats.

    Args:
        alphas_cumprod: [num_steps] float64.
        segments: the columns.
    """
    signal, sizes = alphas_cumprod[-1], segments.sizes
    lost = (1 - signal) / sizes
    at_start, elsewhere = torch.log1p(signal * (sizes - 1)), torch.log1p(-signal)  # of K q(x_T | x_0)
    return ((signal + lost) * at_start + (sizes - 1) * lost * elsewhere).sum()


def _coefficients(alphas_cumprod: Tensor, step: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """abar_{t-1}, 1 - abar_{t-1}, alpha_t and 1 - alpha_t, each [1, batch]; differences are taken in float64."""
    before = F.pad(alphas_cumprod, (1, 0), value=1.0)[step]
    alpha = alphas_cumprod[step] / before
    return torch.stack([before, 1 - before, alpha, 1 - alpha]).to(dtype).split(1)


def _log(value: Tensor) -> Tensor:
    return value.log().clamp(min=_LOG_ZERO)


def _softplus(value: Tensor) -> Tensor:
    """log(1 + e^value), to the last digit of float64 too."""
    return F.softplus(value, threshold=40.0)
