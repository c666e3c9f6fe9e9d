"""Imputed series with their truth, for the tests of what scores them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    values: Tensor
    observed_mask: Tensor
    target: Tensor
    target_mask: Tensor
    label: Tensor
    index: Tensor
    mean: Tensor
    log_prob: Tensor

    def rows(self, where):
        return Batch(*(tensor[where] for tensor in self))


def series(rows=33, time=4, feature=3, classes=3, binary=False, seed=0):
    """A labelled data set with hidden entries, its imputation and densities."""
    g = torch.Generator().manual_seed(seed)
    shape = (rows, time, feature)
    label = torch.arange(rows) % classes
    truth = torch.randn(shape, generator=g) + 0.7 * torch.randn((classes, time, feature), generator=g)[label]
    mean = truth + torch.randn(shape, generator=g)
    if binary:
        truth, mean = (truth > 0).float(), mean.sigmoid()
    observed = torch.rand(shape, generator=g) < 0.6
    target_mask = ~observed & (torch.rand(shape, generator=g) < 0.8)
    log_prob = -torch.rand(shape, generator=g) * 3
    return Batch(
        truth * observed, observed, truth * target_mask, target_mask, label, torch.arange(rows), mean, log_prob
    )


def completed(data, rounded):
    flat = np.where(data.observed_mask, data.values, data.mean).reshape(len(data.label), -1).astype(np.float64)
    return np.round(flat) if rounded else flat


def shards(data, sizes):
    """Rows of each rank, shuffled and in batches of 5."""
    order = torch.randperm(len(data.label), generator=torch.Generator().manual_seed(2))
    return [[data.rows(part) for part in share.split(5)] if len(share) else [] for share in order.split(sizes)]
