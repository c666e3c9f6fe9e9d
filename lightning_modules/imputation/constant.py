"""Fills that need no training: the mean of a series' own observed values, and the last observation carried forward.

They are the floor of Tables 1 and 2. A variable that is never observed in a series is filled with 0, which for
standardised data is the population mean; so is the gap before the first observation.
"""

from typing import Literal

import torch
from torch import Tensor

from lightning_modules.distributions.predictive import PointPrediction
from lightning_modules.imputation.base import Imputer


def mean_fill(values: Tensor, observed_mask: Tensor) -> Tensor:
    """Mean over the observed times of each series and feature; [batch, time, feature] in and out."""
    observed = (values * observed_mask).sum(1, keepdim=True)  # [batch, 1, feature]
    return (observed / observed_mask.sum(1, keepdim=True).clamp(min=1)).expand_as(values)


def forward_fill(values: Tensor, observed_mask: Tensor) -> Tensor:
    """Last observed value of each series and feature; [batch, time, feature] in and out."""
    time = torch.arange(1, values.shape[1] + 1, device=values.device)[:, None]  # [time, 1]
    last = (observed_mask * time).cummax(1).values  # [batch, time, feature], 0: nothing observed yet
    return values.gather(1, (last - 1).clamp(min=0)) * (last > 0)


FILLS = {"mean": mean_fill, "forward": forward_fill}


class Constant(Imputer):
    """Imputation by a fixed rule.

    Args:
        fill: "mean" (of the series' observed values) or "forward" (last observation carried forward).
    """

    def __init__(self, fill: Literal["mean", "forward"] = "mean") -> None:
        super().__init__()
        if fill not in FILLS:
            raise ValueError(f"fill={fill!r} is not known; choose one of {sorted(FILLS)}")
        self.save_hyperparameters()
        self.fill = FILLS[fill]

    def forward(self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> PointPrediction:
        """The filled series as a point prediction; ``times`` play no part."""
        return PointPrediction(self.fill(values, observed_mask))
