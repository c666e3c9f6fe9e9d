"""Fills that need no training: rules that complete each feature of a series from its own observed values.

The mean and the last observation carried forward are the floor of Tables 1 and 2. A feature that is never observed in a
series is filled with 0, which for standardised data is the population mean; so is the gap before the first observation
where the last one is carried forward, and the gap after the last one where the next is carried backward.
"""

from typing import Literal

import torch
from torch import Tensor

from lightning_modules.distributions.predictive import PointPrediction
from lightning_modules.imputation.base import Imputer


def mean_fill(values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> Tensor:
    """Mean over the observed times of each series and feature; [batch, time, feature] in and out."""
    observed = (values * observed_mask).sum(1, keepdim=True)  # [batch, 1, feature]
    return (observed / observed_mask.sum(1, keepdim=True).clamp(min=1)).expand_as(values)


def median_fill(values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> Tensor:
    """Median over the observed times, the mean of the middle two if even; [batch, time, feature] in and out."""
    ordered = values.masked_fill(~observed_mask, torch.inf).sort(1).values  # [batch, time, feature]
    count = observed_mask.sum(1, keepdim=True)  # [batch, 1, feature]
    lower, upper = ordered.gather(1, (count - 1).clamp(min=0) // 2), ordered.gather(1, count // 2)
    return torch.where(count > 0, (lower + upper) / 2, 0).expand_as(values)


def forward_fill(values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> Tensor:
    """Last observed value of each series and feature; [batch, time, feature] in and out."""
    last = _last_observed(observed_mask)
    return values.gather(1, last.clamp(min=0)) * (last >= 0)


def next_fill(values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> Tensor:
    """Next observed value of each series and feature; [batch, time, feature] in and out."""
    return forward_fill(values.flip(1), observed_mask.flip(1)).flip(1)


def linear_fill(values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> Tensor:
    """Straight line in time between the neighbouring observed values, beyond the outermost ones their value.

    Args:
        values: [batch, time, feature].
        observed_mask: [batch, time, feature] bool.
        times: [batch, time] time stamps, ascending; None for 0..T-1.

    Returns:
        [batch, time, feature].
    """
    num_steps = values.shape[1]
    if times is None:
        times = torch.arange(num_steps, dtype=values.dtype, device=values.device).expand(values.shape[:2])
    times = times[..., None].expand_as(values)
    last = _last_observed(observed_mask)
    following = num_steps - 1 - _last_observed(observed_mask.flip(1)).flip(1)  # num_steps: nothing follows
    left = torch.where(last >= 0, last, following).clamp(max=num_steps - 1)
    right = torch.where(following < num_steps, following, last).clamp(min=0)
    elapsed, gap = times - times.gather(1, left), times.gather(1, right) - times.gather(1, left)
    weight = torch.where(gap > 0, elapsed / gap, 0).to(values.dtype)
    observed = values * observed_mask
    return torch.lerp(observed.gather(1, left), observed.gather(1, right), weight)


def _last_observed(observed_mask: Tensor) -> Tensor:
    """Position of the last observation up to each time, -1 where there is none yet; [batch, time, feature] int64."""
    position = torch.arange(1, observed_mask.shape[1] + 1, device=observed_mask.device)[:, None]  # [time, 1]
    return (observed_mask * position).cummax(1).values - 1


FILLS = {
    "mean": mean_fill,
    "median": median_fill,
    "forward": forward_fill,  # the published name of "last"
    "last": forward_fill,
    "next": next_fill,
    "linear": linear_fill,
}


class Constant(Imputer):
    """Imputation by a fixed rule.

    Args:
        fill: "mean" or "median" of the feature's observed values in the series; "forward" or "last", the last
            observation carried forward; "next", the next one carried backward; "linear", interpolated in time.
    """

    def __init__(self, fill: Literal["mean", "median", "forward", "last", "next", "linear"] = "mean") -> None:
        super().__init__()
        if fill not in FILLS:
            raise ValueError(f"fill={fill!r} is not known; choose one of {sorted(FILLS)}")
        self.save_hyperparameters()
        self.fill = FILLS[fill]

    def forward(self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> PointPrediction:
        """The filled series as a point prediction; of the rules, only "linear" asks for the times."""
        return PointPrediction(self.fill(values, observed_mask, times))
