"""The contract of imputation: given values and a mask, a predictive distribution over the whole series."""

from typing import NamedTuple, Protocol

import lightning as L
import torch
from torch import Tensor


class SeriesBatch(Protocol):
    """The fields of a batch that imputers read (the data side defines the type)."""

    values: Tensor  # [batch, time, feature] float32, 0 where not observed
    observed_mask: Tensor  # [batch, time, feature] bool
    target: Tensor  # [batch, time, feature] float32, the truth where known
    index: Tensor  # [batch] int64, row in the data set
    times: Tensor | None  # [batch, time] time stamps; None: 0..T-1


class Predictive(Protocol):
    """Predictive distribution over [batch, time, feature]."""

    mean: Tensor

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """[num_samples, batch, time, feature]."""

    def log_prob(self, value: Tensor, rows: Tensor | None = None) -> Tensor | None:
        """[batch, time, feature] log density per entry in nats; None where the method has none."""


class Imputation(NamedTuple):
    """What an evaluation step hands to the metric callbacks."""

    mean: Tensor  # [batch, time, feature]; probabilities for binary data
    log_prob: Tensor | None  # [batch, time, feature] log density of the truth, nats


class Imputer(L.LightningModule):
    """A method that fills in missing entries: subclasses write ``forward`` and the training."""

    def forward(self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> Predictive:
        """Predictive distribution of the whole series.

        Args:
            values: [batch, time, feature], 0 where not observed.
            observed_mask: [batch, time, feature] bool, True where observed.
            times: [batch, time] time stamps, ascending; None for the regular grid 0..T-1.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(values, observed_mask, times)")

    def validation_step(self, batch: SeriesBatch, batch_index: int) -> Imputation:
        """Impute, and score the truth's density, for the metric callbacks."""
        predictive = self(batch.values, batch.observed_mask, batch.times)
        return Imputation(predictive.mean, predictive.log_prob(batch.target, rows=batch.index))

    def test_step(self, batch: SeriesBatch, batch_index: int) -> Imputation:
        """As in validation."""
        return self.validation_step(batch, batch_index)
