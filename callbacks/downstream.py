"""How good completed series are for a prediction: a logistic regression on top of them, its AUROC and AUPRC."""

import logging
import warnings
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from callbacks.rank_zero import on_rank_zero

log = logging.getLogger("genpred")
Classifier = Literal["multinomial", "binary"]


class DownstreamScores(NamedTuple):
    """What `downstream_scores` finds.

    Attributes:
        scores: "auroc", the area under the receiver operating characteristic, 0.5 being chance; "auprc", the average
            precision; "auroc_std", the standard deviation of the AUROC over `draws`.
        draws: [1000] the AUROC of bootstrap draws of the scored rows, with the classifier held fixed; on the same rows
            the same draws for every method, see `bootstrap_auroc`.
    """

    scores: dict[str, float]
    draws: NDArray[np.float64]


def check_classes(label: NDArray[np.int64], classifier: Classifier) -> None:
    """Make sure that `downstream_scores` can be had of series with these labels.

    Args:
        label: [row] int, in the order of the rows.
        classifier: see there.

    Raises:
        ValueError: if a half lacks a class.
    """
    half = len(label) // 2
    fitted, scored = np.unique(label[:half]), np.unique(label[half:])
    if len(fitted) < 2 or not np.array_equal(fitted, scored) or (classifier == "binary" and len(fitted) != 2):
        raise ValueError(
            f"of the {len(label)} evaluated series the first half has the classes {fitted.tolist()}, the second "
            f"{scored.tolist()}; a {classifier} classifier is fitted on the one and scored on the other and needs the "
            f"same {'two' if classifier == 'binary' else 'two or more'} in both. Evaluate more series: raise "
            "data.test_rows, or leave it out"
        )


def downstream_scores(
    series: np.ndarray, label: np.ndarray, classifier: Classifier, standardised: bool = False
) -> DownstreamScores:
    """Scores of a logistic regression on completed series: fitted on the first half of the rows, scored on the second.

    "multinomial": softmax regression (lbfgs), macro averages of one-vs-rest scores. "binary": liblinear, P(class 1).
    Both with C = 1, tolerance 1e-10, at most 10,000 iterations, in float64: as GP-VAE's authors score (Fortuin et al.,
    AISTATS 2020, and their code).

    Args:
        series: [row, column], in the data set's file order.
        label: [row] int.
        classifier: which of the two.
        standardised: bring each column to mean 0 and variance 1 over the first half before, which the authors do not.

    Raises:
        ValueError: if a half lacks a class.
    """
    check_classes(label, classifier)
    half = len(label) // 2
    classes = np.unique(label)
    # A column of zeros has no slope but the penalty's own: its weight is exactly 0, and dropping it changes nothing.
    used = series[:half].any(axis=0)
    inputs = series[:, used].astype(np.float64)
    if standardised:
        inputs = StandardScaler().fit(inputs[:half]).transform(inputs)
    elif classifier == "multinomial":
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
        classes, probability = classes[1:], probability[:, 1:]
    truth = label[half:, None] == classes  # [row, class], one class if binary
    columns = list(zip(truth.T, probability.T, strict=True))
    draws = np.mean([bootstrap_auroc(*column) for column in columns], axis=0)
    scores = {
        "auroc": float(np.mean([roc_auc_score(*column) for column in columns])),
        "auprc": float(np.mean([average_precision_score(*column) for column in columns])),
        "auroc_std": float(np.nanstd(draws, ddof=1)),
    }
    return DownstreamScores(scores, draws)


def bootstrap_auroc(
    positive: NDArray[np.bool_], score: NDArray[np.float64], num_draws: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """AUROC of bootstrap draws of the rows: each draws as many rows as there are, with replacement.

    The draws depend on the number of rows and the seed only, so that the AUROCs of several classes, or of several
    methods on the same rows, are those of the same draws.

    Args:
        positive: [row] bool.
        score: [row], higher where positive is likelier.
        num_draws: bootstrap draws.
        seed: of the draws.

    Returns:
        [num_draws] float64; NaN for a draw of one class only.
    """
    num_rows = len(score)
    generator = np.random.default_rng(seed)
    weight = generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=num_draws).astype(np.float64)
    # Rows of equal score form one group; a positive wins against the negatives of lower groups, and half of its own.
    _, group = np.unique(score, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    positives, negatives = (
        np.add.reduceat((weight * each)[:, order], starts, axis=1) for each in (positive, ~positive)
    )
    won = (positives * (negatives.cumsum(axis=1) - negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.divide(won, pairs, out=np.full(num_draws, np.nan), where=pairs > 0)


class DownstreamClassifier(Metric):
    """`downstream_scores` of the completed series of all ranks, as published and with standardised columns.

    A series is completed with its observed values and, everywhere else, the imputed mean: values hidden to be scored
    are not put back. With ``rounded`` the completed series is rounded (half to even).

    Rows are gathered on every rank and ordered by index; rank 0 fits, the others wait for the numbers. An error of
    rank 0 is raised on all of them.

    Attributes:
        draws: after ``compute`` the AUROC as published of bootstrap draws of the scored rows, see `DownstreamScores`.

    Args:
        rounded: whether completed series are rounded; they are then stored as bytes.
        classifier: see `downstream_scores`.
    """

    full_state_update = False
    draws: NDArray[np.float64]

    def __init__(self, rounded: bool, classifier: Classifier) -> None:
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

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars: "auroc", "auprc", "auroc_std" as published, "auroc_standardised", "auprc_standardised".

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

        def fit() -> DownstreamScores:
            series = dim_zero_cat(self.series).reshape(len(order), -1)[order].cpu().numpy()  # [row, time * feature]
            label = dim_zero_cat(self.label)[order].cpu().numpy()
            scores, draws = downstream_scores(series, label, self.classifier)
            standardised = downstream_scores(series, label, self.classifier, standardised=True).scores
            further = {f"{name}_standardised": standardised[name] for name in ("auroc", "auprc")}
            return DownstreamScores(scores | further, draws)

        scores, self.draws = on_rank_zero(fit)
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in scores.items()}
