"""How imputations are scored: MSE, MAE and NLL over the entries that were hidden, and the AUROC of a classifier on top.

The definitions are those of Fortuin et al., GP-VAE: Deep Probabilistic Time Series Imputation (AISTATS 2020) and of the
code its tables were made with.
"""

import logging
import warnings
from collections.abc import Callable
from typing import Literal, Protocol

import lightning as L
import numpy as np
import torch
import torch.distributed
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

log = logging.getLogger("genpred")


class Batch(Protocol):
    """What is read from a batch of series."""

    values: Tensor  # [batch, time, feature], read where observed
    observed_mask: Tensor  # [batch, time, feature] bool
    target: Tensor  # [batch, time, feature]
    target_mask: Tensor  # [batch, time, feature] bool, True where scored
    label: Tensor  # [batch] int64
    index: Tensor  # [batch] int64, row in the data set's file order


class Outputs(Protocol):
    """What is read from the output of ``validation_step`` and ``test_step``."""

    mean: Tensor  # [batch, time, feature]
    log_prob: Tensor | None  # [batch, time, feature], nats


class ImputationErrors(Metric):
    """Mean squared error, mean absolute error and negative log-likelihood per entry of ``target_mask``.

    Sums in float64 over all entries of all ranks, divided once by their number: neither the size of a batch nor that of
    a rank's share matters. With ``rounded`` the mean is rounded (half to even) before both errors, so on binary data
    MSE and MAE are both the error rate; the NLL never rounds.

    Args:
        rounded: whether the mean is rounded before it is compared.
    """

    full_state_update = False

    def __init__(self, rounded: bool) -> None:
        super().__init__()
        self.rounded = rounded
        for name in ("squared_error", "absolute_error", "negative_log_prob"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("entries", "entries_with_density"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, target: Tensor, target_mask: Tensor, log_prob: Tensor | None) -> None:
        """Add a batch.

        Args:
            mean: [batch, time, feature] imputed mean.
            target: [batch, time, feature] truth.
            target_mask: [batch, time, feature] bool, True where scored; elsewhere nothing is read, not even a NaN.
            log_prob: [batch, time, feature] log-density of the truth, nats, or None if the method has none.

        Raises:
            ValueError: if the shapes differ.
        """
        tensors = {"mean": mean, "target": target, "target_mask": target_mask}
        if log_prob is not None:
            tensors["log_prob"] = log_prob
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"shapes differ: {shapes}; all have to be [batch, time, feature]")
        if self.rounded:
            mean = mean.round()
        error = torch.where(target_mask, mean.double() - target.double(), 0.0)
        count = target_mask.sum()
        self.squared_error += error.square().sum()
        self.absolute_error += error.abs().sum()
        self.entries += count
        if log_prob is not None:
            self.negative_log_prob -= torch.where(target_mask, log_prob.double(), 0.0).sum()
            self.entries_with_density += count

    def compute(self) -> dict[str, Tensor]:
        """The scores: float64 scalars "mse", "mae" and, if densities were given, "nll" (nats per entry).

        Raises:
            ValueError: if no entry was scored.
        """
        if self.entries == 0:
            raise ValueError(
                "no entry to score: target_mask is False everywhere in the evaluation set. "
                "Hide some known values from the model, or evaluate on data whose truth is known."
            )
        scores = {"mse": self.squared_error / self.entries, "mae": self.absolute_error / self.entries}
        if self.entries_with_density > 0:
            scores["nll"] = self.negative_log_prob / self.entries_with_density
        return scores


def downstream_auroc(series: np.ndarray, label: np.ndarray, classifier: Literal["multinomial", "binary"]) -> float:
    """AUROC of a logistic regression on completed series: fitted on the first half of the rows, scored on the second.

    "multinomial": softmax regression (lbfgs), macro average of one-vs-rest AUROCs. "binary": liblinear, P(class 1).
    Both with C = 1, tolerance 1e-10, at most 10,000 iterations, no scaling of inputs, in float64.

    Args:
        series: [row, column], in the data set's file order.
        label: [row] int.
        classifier: which of the two.

    Returns:
        The AUROC, 0.5 being chance.

    Raises:
        ValueError: if a half lacks a class.
    """
    half = len(label) // 2
    classes, scored = np.unique(label[:half]), np.unique(label[half:])
    if len(classes) < 2 or not np.array_equal(classes, scored) or (classifier == "binary" and len(classes) != 2):
        raise ValueError(
            f"of the {len(label)} evaluated series the first half has the classes {classes.tolist()}, the second "
            f"{scored.tolist()}; a {classifier} classifier is fitted on the one and scored on the other and needs the "
            f"same {'two' if classifier == 'binary' else 'two or more'} in both. Evaluate all series, or none of this "
            "with auroc=False."
        )
    # A column of zeros has no slope but the penalty's own: its weight is exactly 0, and dropping it changes nothing.
    used = series[:half].any(axis=0)
    inputs = series[:, used].astype(np.float64)
    if classifier == "multinomial":
        # Moving the inputs only moves the intercepts, which are not penalised here: the same weights, the same
        # probabilities, but lbfgs gets there in a quarter of the iterations. (liblinear does penalise its intercept.)
        inputs -= inputs[:half].mean(axis=0)
    solver = {"multinomial": "lbfgs", "binary": "liblinear"}[classifier]
    regression = LogisticRegression(solver=solver, C=1.0, tol=1e-10, max_iter=10_000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        regression.fit(inputs[:half], label[:half])
    for warning in caught:
        log.warning("downstream classifier: %s", " ".join(str(warning.message).split()))
    probability = regression.predict_proba(inputs[half:])  # [row, class]
    if classifier == "binary":
        return float(roc_auc_score(label[half:] == classes[1], probability[:, 1]))
    return float(np.mean([roc_auc_score(label[half:] == c, probability[:, j]) for j, c in enumerate(classes)]))


class DownstreamAUROC(Metric):
    """`downstream_auroc` of the completed series of all ranks.

    A series is completed with its observed values and, everywhere else, the imputed mean: values hidden to be scored
    are not put back. With ``rounded`` the completed series is rounded (half to even).

    Rows are gathered on every rank and ordered by index; rank 0 fits, the others wait for the number. An error of
    rank 0 is raised on all of them.

    Args:
        rounded: whether completed series are rounded; they are then stored as bytes.
        classifier: see `downstream_auroc`.
    """

    full_state_update = False

    def __init__(self, rounded: bool, classifier: Literal["multinomial", "binary"]) -> None:
        super().__init__()
        self.rounded = rounded
        self.classifier = classifier
        for name in ("series", "label", "index"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("unusable", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        # A rank without rows has to take part in the gathering with the types of the others: hence the empty tensors,
        # and series that are flat until they are used.
        dtype = torch.uint8 if self.rounded else torch.float32
        self.series: list[Tensor] = [torch.empty(0, dtype=dtype, device=self.device)]
        self.label: list[Tensor] = [torch.empty(0, dtype=torch.int64, device=self.device)]
        self.index: list[Tensor] = [torch.empty(0, dtype=torch.int64, device=self.device)]

    def update(self, mean: Tensor, values: Tensor, observed_mask: Tensor, label: Tensor, index: Tensor) -> None:
        """Add a batch.

        Args:
            mean: [batch, time, feature] imputed mean.
            values: [batch, time, feature], read where observed.
            observed_mask: [batch, time, feature] bool.
            label: [batch] int64.
            index: [batch] int64 row in the data set's file order.
        """
        completed = torch.where(observed_mask, values.float(), mean.float())
        if self.rounded:
            completed = completed.round()
            stored = completed.to(torch.uint8)
            self.unusable += (stored != completed).sum()
        else:
            stored = completed
            self.unusable += (~stored.isfinite()).sum()
        self.series.append(stored.flatten())
        self.label.append(label)
        self.index.append(index)

    def compute(self) -> Tensor:
        """The AUROC, a float64 scalar.

        Raises:
            ValueError: on every rank, if a completed value cannot be used, a row came twice, or a half lacks a class.
        """
        if self.unusable > 0:
            allowed = "a finite number that rounds to 0..255" if self.rounded else "a finite number"
            raise ValueError(
                f"{int(self.unusable)} value(s) of the completed series are not {allowed}, so no classifier can be "
                "fitted to them: the imputed mean has diverged, look at test/mse and the training curves."
            )
        index, order = dim_zero_cat(self.index).sort()
        if (index[1:] == index[:-1]).any():
            raise ValueError(
                f"{len(index)} series were evaluated, but only {len(index.unique())} different ones: each has to be "
                "given once. Under several processes pass use_distributed_sampler=False to the Trainer."
            )

        def fit() -> float:
            series = dim_zero_cat(self.series).reshape(len(order), -1)[order]  # [row, time * feature]
            label = dim_zero_cat(self.label)[order]
            return downstream_auroc(series.cpu().numpy(), label.cpu().numpy(), self.classifier)

        return torch.tensor(_on_rank_zero(fit), dtype=torch.float64, device=self.device)


def _on_rank_zero(function: Callable[[], float]) -> float:
    """Call ``function`` on rank 0 and give its result, or its failure as a ValueError, to every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return function()
    outcome: list[float | str | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome = [function()]
        except Exception as error:  # whatever it is, the other ranks are waiting
            log.exception("rank 0 failed")
            outcome = [f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"]
    torch.distributed.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], str):
        raise ValueError(outcome[0])
    return outcome[0]


class ImputationMetrics(L.Callback):
    """Logs ``val/mse``, ``val/mae``, ``val/nll``, and the same as ``test/...`` with ``test/auroc``.

    Reads the batch (`Batch`) and what the step returned (`Outputs`) by their attributes. ``nll`` is logged for methods
    with a density only. Evaluation loaders must give each series to one rank only, un-padded.

    Args:
        rounded: whether imputed means are rounded before they are compared and classified (binary images).
        classifier: see `downstream_auroc`.
        auroc: whether to fit the classifier at all.
    """

    def __init__(self, rounded: bool, classifier: Literal["multinomial", "binary"], auroc: bool = True) -> None:
        self.errors = ImputationErrors(rounded)
        self.auroc = DownstreamAUROC(rounded, classifier) if auroc else None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        self.errors.to(pl_module.device).reset()

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        self.errors.to(pl_module.device).reset()
        if self.auroc is not None:
            self.auroc.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        if not trainer.sanity_checking:
            self.errors.update(outputs.mean, batch.target, batch.target_mask, outputs.log_prob)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self.errors.update(outputs.mean, batch.target, batch.target_mask, outputs.log_prob)
        if self.auroc is not None:
            self.auroc.update(outputs.mean, batch.values, batch.observed_mask, batch.label, batch.index)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the scores of all ranks."""
        if not trainer.sanity_checking:
            self._log(pl_module, "val", self.errors.compute())

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the scores of all ranks."""
        scores = self.errors.compute()
        if self.auroc is not None:
            scores["auroc"] = self.auroc.compute()
        self._log(pl_module, "test", scores)

    @staticmethod
    def _log(pl_module: L.LightningModule, stage: str, scores: dict[str, Tensor]) -> None:
        # compute() has gathered all ranks already. The maximum of equal numbers is that number to the last bit, and
        # asking for it spares users Lightning's warning about numbers that were not reduced.
        metrics = {f"{stage}/{name}": value for name, value in scores.items()}
        pl_module.log_dict(metrics, reduce_fx="max", sync_dist=True)
