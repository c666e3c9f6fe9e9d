"""Sums of log densities over the observed entries of a series: the first term of a masked ELBO."""

import math

from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal
from torch.nn.functional import binary_cross_entropy_with_logits

from lightning_modules.distributions.student import StudentT4


def masked_log_likelihood(observation: Distribution | StudentT4, values: Tensor, mask: Tensor) -> Tensor:
    """Log density of each series, summed over the entries in a mask.

    A normal whose scale is one number for all entries needs a sum of squares only, which takes a quarter of the passes
    over memory that its densities take one by one; a Bernoulli's mask goes into the cross entropy itself. In value and
    gradients it is the same.

    Args:
        observation: over [batch, time, feature].
        values: [batch, time, feature], finite outside the mask, too.
        mask: [batch, time, feature] bool, True where the density counts.

    Returns:
        [batch], nats.
    """
    if isinstance(observation, Bernoulli):
        weight = mask.to(values.dtype)
        losses = binary_cross_entropy_with_logits(observation.logits, values, weight, reduction="none")
        return -losses.sum((1, 2))
    if not isinstance(observation, Normal) or any(observation.scale.stride()):
        return (observation.log_prob(values) * mask).sum((1, 2))
    scale = observation.scale[0, 0, 0]  # strides of 0: one number stands for all entries
    errors = (values - observation.loc) * mask
    squares = errors.square().sum((1, 2)) / (2 * scale.square())
    return -squares - mask.sum((1, 2)) * (scale.log() + 0.5 * math.log(2 * math.pi))
