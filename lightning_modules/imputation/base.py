"""The contract of imputation: given values and a mask, a predictive distribution over the whole series."""

from typing import Protocol

import lightning as L
import torch
from torch import Tensor


class SeriesBatch(Protocol):
    """The fields of a batch that imputers read (the data side defines the type)."""

    values: Tensor  # [batch, time, feature] float32, 0 where not observed
    observed_mask: Tensor  # [batch, time, feature] bool
    target: Tensor  # [batch, time, feature] float32, the truth where known
    index: Tensor  # [batch] int64, row in the data set
    times: Tensor | None  # float64 [batch, time] time stamps; None: 0..T-1


class Predictive(Protocol):
    """Predictive distribution over [batch, time, feature]: what a method answers and the metric callbacks read.

    ``rows`` are the [batch] int64 row numbers of the series in their data set. Where they are given, the noise belongs
    to the row: a score then depends neither on the batch size nor on the number of processes.
    """

    mean: Tensor  # probabilities for binary data

    def sample(self, num_samples: int, generator: torch.Generator | None = None, rows: Tensor | None = None) -> Tensor:
        """[num_samples, batch, time, feature]: joint draws of whole series."""

    def log_prob(self, value: Tensor, rows: Tensor | None = None) -> Tensor | None:
        """[batch, time, feature] log density per entry in nats, by one latent draw; None where there is no density."""

    def log_mixture(self, value: Tensor, num_samples: int, rows: Tensor | None = None) -> Tensor | None:
        """The same by the mean density over that many latent draws; ``log_prob`` where that is exact."""


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

    def validation_step(self, batch: SeriesBatch, batch_index: int) -> Predictive:
        """Impute; the metric callbacks ask the predictive distribution for what they score."""
        return self(batch.values, batch.observed_mask, batch.times)

    def test_step(self, batch: SeriesBatch, batch_index: int) -> Predictive:
        """As in validation."""
        return self.validation_step(batch, batch_index)
