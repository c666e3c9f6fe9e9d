"""How imputations are scored over the entries that were hidden: errors, densities, quantiles, and a classifier on top.

MSE, MAE and one-sample NLL are those of Fortuin et al., GP-VAE: Deep Probabilistic Time Series Imputation (AISTATS
2020) and of the code its tables were made with; the CRPS is that of Tashiro et al., CSDI (NeurIPS 2021).
"""

from collections.abc import Callable
from typing import Protocol

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from callbacks.downstream import Classifier, DownstreamClassifier, check_classes


class Batch(Protocol):
    """What is read from a batch of series."""

    values: Tensor  # [batch, time, feature], read where observed
    observed_mask: Tensor  # [batch, time, feature] bool
    target: Tensor  # [batch, time, feature]
    target_mask: Tensor  # [batch, time, feature] bool, True where scored
    label: Tensor  # [batch] int64
    index: Tensor  # [batch] int64, row in the data set's file order


class Predictive(Protocol):
    """What is asked of the output of ``validation_step`` and ``test_step``, a predictive distribution.

    The noise of all three methods belongs to the rows that are given, so that no score depends on the batches.
    """

    mean: Tensor  # [batch, time, feature]

    def sample(self, num_samples: int, *, rows: Tensor) -> Tensor:
        """[sample, batch, time, feature]."""

    def log_prob(self, value: Tensor, rows: Tensor) -> Tensor | None:
        """[batch, time, feature], nats, under one latent sample."""

    def log_mixture(self, value: Tensor, num_samples: int, rows: Tensor) -> Tensor | None:
        """[batch, time, feature], nats, of the density averaged over latent samples."""


class ImputationErrors(Metric):
    """Errors and negative log-likelihoods per entry of ``target_mask``.

    Sums in float64 over all entries of all ranks, divided once by their number: neither the size of a batch nor that of
    a rank's share matters. With ``rounded`` the mean is rounded (half to even) before the errors, so on binary data
    MSE and MAE are both the error rate; the NLL never rounds.

    Attributes:
        by_feature: after ``compute`` the same scores for each feature alone, [feature], NaN where none was scored.

    Args:
        num_features: features of the series.
        rounded: whether the mean is rounded before it is compared.
    """

    full_state_update = False
    by_feature: dict[str, Tensor]

    def __init__(self, num_features: int, rounded: bool) -> None:
        super().__init__()
        self.rounded = rounded
        for name in ("squared_error", "absolute_error", "absolute_target", "negative_log_prob", "negative_log_mixture"):
            self.add_state(name, torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("entries", "entries_with_density", "entries_with_mixture"):
            self.add_state(name, torch.zeros(num_features, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        mean: Tensor,
        target: Tensor,
        target_mask: Tensor,
        log_prob: Tensor | None,
        log_mixture: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            mean: [batch, time, feature] imputed mean.
            target: [batch, time, feature] truth.
            target_mask: [batch, time, feature] bool, True where scored; elsewhere nothing is read, not even a NaN.
            log_prob: [batch, time, feature] log-density of the truth, nats, or None if the method has none.
            log_mixture: the same under several latent samples, or None.

        Raises:
            ValueError: if the shapes differ.
        """
        tensors = {"mean": mean, "target": target, "target_mask": target_mask}
        tensors |= {} if log_prob is None else {"log_prob": log_prob}
        tensors |= {} if log_mixture is None else {"log_mixture": log_mixture}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if len({*shapes.values(), (*mean.shape[:2], len(self.entries))}) > 1:
            raise ValueError(f"shapes differ: {shapes}; all have to be [batch, time, {len(self.entries)} features]")
        if self.rounded:
            mean = mean.round()

        def total(value: Tensor) -> Tensor:
            return torch.where(target_mask, value.double(), 0.0).sum((0, 1))  # [feature]

        error = mean.double() - target.double()
        count = target_mask.sum((0, 1))
        self.squared_error += total(error.square())
        self.absolute_error += total(error.abs())
        self.absolute_target += total(target.abs())
        self.entries += count
        if log_prob is not None:
            self.negative_log_prob -= total(log_prob)
            self.entries_with_density += count
        if log_mixture is not None:
            self.negative_log_mixture -= total(log_mixture)
            self.entries_with_mixture += count

    def compute(self) -> dict[str, Tensor]:
        """The scores: float64 scalars.

        Returns:
            "mse", "mae", "rmse" (root of the MSE), "mre" (sum of absolute errors over sum of absolute truths) and, if
            densities were given, "nll" and "nll_mixture", nats per entry.

        Raises:
            ValueError: if no entry was scored.
        """
        if self.entries.sum() == 0:
            raise ValueError(
                "no entry to score: target_mask is False everywhere in the evaluation set. "
                "Hide some known values from the model, or evaluate on data whose truth is known."
            )
        self.by_feature = self._scores(lambda sums: sums)
        return {name: value[0] for name, value in self._scores(lambda sums: sums.sum(0, keepdim=True)).items()}

    def _scores(self, pool: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        entries = pool(self.entries)
        scores = {"mse": pool(self.squared_error) / entries, "mae": pool(self.absolute_error) / entries}
        scores["rmse"] = scores["mse"].sqrt()
        if self.absolute_target.any():
            scores["mre"] = pool(self.absolute_error) / pool(self.absolute_target)
        if self.entries_with_density.any():
            scores["nll"] = pool(self.negative_log_prob) / pool(self.entries_with_density)
        if self.entries_with_mixture.any():
            scores["nll_mixture"] = pool(self.negative_log_mixture) / pool(self.entries_with_mixture)
        return scores


class ImputationIntervals(Metric):
    """CRPS, and coverage and width of central intervals, from the quantiles of samples at the entries scored.

    CRPS in CSDI's normalised form: the mean over the levels 0.05, 0.10, ..., 0.95 of the sum of twice the quantile
    losses, divided by the sum of the absolute truths. Coverage: the part of the truths in the central interval.

    Attributes:
        by_feature: after ``compute`` the same scores for each feature alone, [feature], NaN where none was scored.

    Args:
        num_features: features of the series.
    """

    full_state_update = False
    by_feature: dict[str, Tensor]
    PERCENT = (50, 90, 95)  # intervals

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.levels = torch.arange(1, 20, dtype=torch.float64) / 20
        tails = torch.tensor([(100 - percent) / 200 for percent in self.PERCENT], dtype=torch.float64)
        self.bounds = torch.stack([tails, 1 - tails])  # [side, interval]
        for name in ("quantile_loss", "absolute_target"):
            self.add_state(name, torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("covered", "width"):
            self.add_state(
                name, torch.zeros(num_features, len(self.PERCENT), dtype=torch.float64), dist_reduce_fx="sum"
            )
        self.add_state("entries", torch.zeros(num_features, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, samples: Tensor, target: Tensor, target_mask: Tensor) -> None:
        """Add a batch.

        Args:
            samples: [sample, batch, time, feature].
            target: [batch, time, feature] truth.
            target_mask: [batch, time, feature] bool, True where scored; elsewhere nothing is read.
        """
        feature = target_mask.nonzero()[:, 2]  # [entry]
        truth = target[target_mask].double()  # [entry]
        levels = torch.cat([self.levels, self.bounds.flatten()]).to(truth)
        quantiles = _quantiles(samples[:, target_mask], levels)  # [level, entry]
        quantiles, bounds = quantiles[: len(self.levels)], quantiles[len(self.levels) :].unflatten(0, (2, -1))
        above = (quantiles >= truth).double()
        loss = 2 * ((quantiles - truth) * (above - self.levels.to(truth)[:, None])).mean(0)  # [entry]
        lower, upper = bounds  # [interval, entry] each
        inside = ((truth >= lower) & (truth <= upper)).double()
        self.quantile_loss.index_add_(0, feature, loss)
        self.absolute_target.index_add_(0, feature, truth.abs())
        self.covered.index_add_(0, feature, inside.T)
        self.width.index_add_(0, feature, (upper - lower).T)
        self.entries += target_mask.sum((0, 1))

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars "crps", "coverage_50", "width_50" (in the units of the data), and the same for 90 and 95.

        A point has no interval: where all samples are alike only the CRPS is given, which is then the MRE.
        """
        self.by_feature = self._scores(lambda sums: sums)
        return {name: value[0] for name, value in self._scores(lambda sums: sums.sum(0, keepdim=True)).items()}

    def _scores(self, pool: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        scores = {"crps": pool(self.quantile_loss) / pool(self.absolute_target)} if self.absolute_target.any() else {}
        if not self.width.any():
            return scores
        covered, width = (pool(sums) / pool(self.entries)[:, None] for sums in (self.covered, self.width))
        for column, percent in enumerate(self.PERCENT):
            scores[f"coverage_{percent}"], scores[f"width_{percent}"] = covered[:, column], width[:, column]
        return scores


def _quantiles(samples: Tensor, levels: Tensor) -> Tensor:
    """Quantiles [level, entry] in the levels' type of samples [sample, entry], between order statistics linearly.

    torch's own refuses more than 2**24 numbers; and on a CPU NumPy sorts ten times as fast as torch, which sorts the
    places, too.
    """
    if samples.is_cpu:
        known = samples.T.to(torch.promote_types(samples.dtype, torch.float32))  # NumPy has no bfloat16
        ordered = torch.from_numpy(np.sort(known.contiguous().numpy())).T
    else:
        ordered = samples.sort(0).values
    ordered = ordered.to(levels.dtype)
    position = levels * (len(samples) - 1)
    below = position.long().clamp(max=max(len(samples) - 2, 0))
    above = (below + 1).clamp(max=len(samples) - 1)
    return torch.lerp(ordered[below], ordered[above], (position - below)[:, None])  # [level, entry]


class ImputationMetrics(L.Callback):
    """Logs ``val/mse``, ``val/mae``, ``val/nll``, ..., and as ``test/...`` all that this file and `downstream` define.

    Reads the batch (`Batch`) and what the step returned (`Predictive`) by their attributes. Densities and intervals are
    scored for methods that have them only. Evaluation loaders must give each series to one rank only, un-padded.

    Args:
        num_features: features of the series.
        rounded: whether imputed means are rounded before they are compared and classified (binary images).
        classifier: see `downstream_scores`; None: no classifier.
        samples: draws from which quantiles are taken in the test; 0: no intervals, as for binary data.
        mixture_samples: latent draws over which the test's density is averaged.
    """

    def __init__(
        self,
        num_features: int,
        rounded: bool,
        classifier: Classifier | None,
        samples: int = 0,
        mixture_samples: int = 20,
    ) -> None:
        self.errors = ImputationErrors(num_features, rounded)
        self.intervals = ImputationIntervals(num_features) if samples else None
        self.classifier = DownstreamClassifier(rounded, classifier) if classifier else None
        self.samples, self.mixture_samples = samples, mixture_samples

    @property
    def by_feature(self) -> dict[str, Tensor]:
        """Scores of the last epoch's errors and intervals for each feature, [feature], NaN where none was scored."""
        intervals = {} if self.intervals is None else self.intervals.by_feature
        return self.errors.by_feature | intervals

    @property
    def draws(self) -> dict[str, NDArray[np.float64]]:
        """Scores of the last test for bootstrap draws of the scored series, [draw], by their names; NaN for none."""
        return {} if self.classifier is None else {"test/auroc": self.classifier.draws}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make sure before the training that its test can be scored.

        Raises:
            ValueError: the classifier lacks a class.
        """
        if self.classifier is not None:
            check_classes(np.asarray(trainer.datamodule.test_set.labels), self.classifier.classifier)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        self.errors.to(pl_module.device).reset()

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        for metric in (self.errors, self.intervals, self.classifier):
            if metric is not None:
                metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Predictive,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        if not trainer.sanity_checking:
            log_prob = outputs.log_prob(batch.target, rows=batch.index)
            self.errors.update(outputs.mean, batch.target, batch.target_mask, log_prob)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Predictive,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        log_prob = outputs.log_prob(batch.target, rows=batch.index)
        log_mixture = outputs.log_mixture(batch.target, self.mixture_samples, rows=batch.index)
        # Before the mean is read: a method whose mean is that of its samples need not draw twice.
        samples = outputs.sample(self.samples, rows=batch.index) if self.intervals is not None else None
        self.errors.update(outputs.mean, batch.target, batch.target_mask, log_prob, log_mixture)
        if samples is not None:
            self.intervals.update(samples, batch.target, batch.target_mask)
        if self.classifier is not None:
            self.classifier.update(outputs.mean, batch.values, batch.observed_mask, batch.label, batch.index)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the scores of all ranks."""
        if not trainer.sanity_checking:
            self._log(pl_module, "val", self.errors.compute())

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the scores of all ranks."""
        metrics = (self.errors, self.intervals, self.classifier)
        for metric in (metric for metric in metrics if metric is not None):
            self._log(pl_module, "test", metric.compute())

    @staticmethod
    def _log(pl_module: L.LightningModule, stage: str, scores: dict[str, Tensor]) -> None:
        # compute() has gathered all ranks already. The maximum of equal numbers is that number to the last bit, and
        # asking for it spares users Lightning's warning about numbers that were not reduced.
        metrics = {f"{stage}/{name}": value for name, value in scores.items()}
        pl_module.log_dict(metrics, reduce_fx="max", sync_dist=True)
