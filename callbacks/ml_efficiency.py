"""Machine-learning efficiency: how well a predictor that has seen synthetic rows alone does on real ones."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, r2_score, roc_auc_score, root_mean_squared_error

from callbacks.encoding import EncodedTables, Table, Task


class Evaluator(Protocol):
    """`catboost_predictions` of `callbacks.catboost_evaluator`, or `mlp_predictions` of `callbacks.mlp_evaluator`."""

    def __call__(self, data: EncodedTables, seed: int, **params: Any) -> dict[str, NDArray[np.float64]]:
        """Train on the table "train" and predict the target of "val" and "test"."""


@dataclass(frozen=True)
class MLEfficiency:
    """Scores of evaluators.

    Attributes:
        scores: float64 [synthetic table, evaluation seed] for each metric: "val/f1", "test/f1" and so on, see
            `prediction_scores`.
    """

    scores: dict[str, NDArray[np.float64]]

    @property
    def mean(self) -> dict[str, float]:
        """Mean of each metric over all tables and seeds."""
        return {name: float(values.mean()) for name, values in self.scores.items()}

    @property
    def std(self) -> dict[str, float]:
        """Population standard deviation of each metric over all tables and seeds, as published."""
        return {name: float(values.std()) for name, values in self.scores.items()}


def ml_efficiency(
    synthetic_tables: Sequence[Table],
    val: Table,
    test: Table,
    task: Task,
    evaluator: Evaluator,
    params: Mapping[str, Any],
    evaluation_seeds: Sequence[int] = range(10),
    jobs: int | None = None,
    threads: int = 1,
    folder: Path | None = None,
) -> MLEfficiency:
    """Train an evaluator on each synthetic table with each seed and score it on real rows.

    Published: five tables that one trained model has drawn with five seeds, times ten evaluation seeds. So the standard
    deviation says nothing about another training of the model. The row "Real" is the real training part alone.

    Args:
        synthetic_tables: what evaluators are trained on.
        val: real rows that stop the training.
        test: real rows.
        task: "binclass", "multiclass" or "regression".
        evaluator: what is trained, see `Evaluator`.
        params: its arguments beside data and seed.
        evaluation_seeds: one training for each, on each table.
        jobs: trainings at a time, each in a process of its own if there are several; None: as many as the cores that
            this process may use have room for. The scores do not depend on it.
        threads: with which the evaluator trains.
        folder: keeps the scores of each training as soon as it ends, so that a call with the same tables which comes
            after one that was cut off trains the others only; None: nothing is kept.

    Raises:
        ValueError: in one line, which table, column or row cannot be used and what to do about it.
        Exception: what the evaluator raises.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs}: give the number of trainings at a time, or None for as many as the cores allow")
    if not len(synthetic_tables) or not len(evaluation_seeds):
        raise ValueError(
            f"{len(synthetic_tables)} synthetic table(s) and {len(evaluation_seeds)} evaluation seed(s): give at least "
            "one of each"
        )
    encoded = []
    for i, table in enumerate(synthetic_tables):
        try:
            data = EncodedTables.encode({"train": table, "val": val, "test": test}, task)
        except ValueError as error:
            raise ValueError(f"synthetic table {i} as train: {error}") from error
        encoded.append(data)
    for part in ("val", "test"):
        _check_scorable(encoded[0].targets[part], part, task)
    trainings = [(data, seed) for data in encoded for seed in evaluation_seeds]
    # Processes that are started afresh: a fork of one that has used CUDA or threads is not safe.
    jobs = jobs or max(1, joblib.cpu_count() // threads)
    parallel = joblib.Parallel(n_jobs=min(jobs, len(trainings)), backend="loky")
    score = joblib.Memory(folder, verbose=0).cache(_train_and_score)
    rows = parallel(joblib.delayed(_quietly)(score, evaluator, *training, task, params) for training in trainings)
    shape = (len(encoded), len(evaluation_seeds))
    return MLEfficiency({name: np.array([row[name] for row in rows]).reshape(shape) for name in rows[0]})


def prediction_scores(task: Task, target: NDArray, prediction: NDArray[np.float64]) -> dict[str, float]:
    """Scores of a prediction, by the published definitions.

    Args:
        task: "binclass", "multiclass" or "regression".
        target: [row], classes 0, 1, ..., or numbers.
        prediction: [row] probability of class 1, which is predicted above 0.5; [row, class] probabilities; or [row]
            numbers.

    Returns:
        In regression "r2" and "rmse", in the target's unit. Otherwise "f1", mean over the classes that occur in the
        target or the prediction, "acc", and for two classes "roc_auc".

    Raises:
        ValueError: a prediction is not finite.
    """
    if not np.isfinite(prediction).all():
        count = int((~np.isfinite(prediction)).sum())
        raise ValueError(
            f"{count} of {prediction.size} predictions of the evaluator are not finite: change its learning rate"
        )
    if task == "regression":
        return {
            "r2": float(r2_score(target, prediction)),
            "rmse": float(root_mean_squared_error(target, prediction)),
        }
    label = np.rint(prediction).astype(np.int64) if task == "binclass" else prediction.argmax(axis=1)
    scores = {
        "f1": float(f1_score(target, label, average="macro", zero_division=0)),
        "acc": float(accuracy_score(target, label)),
    }
    if task == "binclass":
        scores["roc_auc"] = float(roc_auc_score(target, prediction))
    return scores


def _quietly(score: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What `score` gives, without joblib's remark that it took long to note down large tables."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Persisting input arguments", UserWarning)
        return score(*arguments)


def _train_and_score(
    evaluator: Evaluator, data: EncodedTables, seed: int, task: Task, params: Mapping[str, Any]
) -> dict[str, float]:
    present = np.unique(data.targets["train"])
    if data.num_classes and len(present) == 1:  # nothing to learn but this; evaluators refuse it
        predictions = {part: _certain(int(present[0]), len(data.targets[part]), data) for part in ("val", "test")}
    else:
        predictions = evaluator(data, seed, **params)
    return {
        f"{part}/{name}": value
        for part in ("val", "test")
        for name, value in prediction_scores(task, data.targets[part], predictions[part]).items()
    }


def _certain(label: int, num_rows: int, data: EncodedTables) -> NDArray[np.float64]:
    """What an evaluator predicts that has seen one class alone."""
    if data.num_classes == 2:
        return np.full(num_rows, float(label))
    return np.tile(np.eye(data.num_classes)[label], (num_rows, 1))


def _check_scorable(target: NDArray, part: str, task: Task) -> None:
    """Make sure that each score is defined.

    Raises:
        ValueError: all targets are the same.
    """
    if task != "multiclass" and (target == target[0]).all():
        score = "R2" if task == "regression" else "the area under the ROC curve"
        raise ValueError(f"{part} y has one value only, so that {score} is not defined: give it other or more rows")
