"""How synthetic tables are scored: by what predictors learn from them, by privacy, and by likeness."""

import datetime
import inspect
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import pandas as pd
import torch.distributed as dist

from callbacks.catboost_evaluator import NUM_THREADS, catboost_predictions
from callbacks.encoding import Table, Task
from callbacks.ml_efficiency import MLEfficiency, ml_efficiency
from callbacks.mlp_evaluator import mlp_predictions
from callbacks.privacy import privacy_scores
from callbacks.quality import quality_scores
from callbacks.rank_zero import on_rank_zero

log = logging.getLogger("genpred")
EVALUATORS = {"catboost": (catboost_predictions, NUM_THREADS), "mlp": (mlp_predictions, 1)}  # and their threads
KEPT = ".evaluation"  # folder of a run for the scores of single trainings
LONGEST_EVALUATION = datetime.timedelta(days=2)  # other ranks wait so long for the one that evaluates


class Request(Protocol):
    """What is read of a batch."""

    seed: int


class Codec(Protocol):
    """What is asked of the DataModule's codec."""

    def table(self, frame: pd.DataFrame) -> Table:
        """A synthetic table's arrays."""


class SynthesisMetrics(L.Callback):
    """Scores the tables that the test has drawn, one for each sampling seed, on rank 0; all ranks get the numbers.

    The DataModule has the real tables "train", "val" and "test" in ``parts``, and a ``codec``. Logged:

    - ``test/<score>_<evaluator>``, the mean of a score of `ml_efficiency.prediction_scores` over all sampling and
      evaluation seeds, and ``..._std``, its population standard deviation, as published. Evaluators are stopped by the
      validation part.
    - ``test/dcr`` and the like, see `privacy.privacy_scores`, of the first table, held-out rows being both other parts.
    - ``quality/column_shapes`` and the like, see `quality.quality_scores`, of the first table beside the training part.

    Without a part "test" the names begin with ``val/``, and settings can be chosen by them. An evaluator that is
    stopped by the rows that it is scored on scores too well, and better where its scores are noisier; so one half of
    the validation part stops it and the other is scored, and then the other way round, and the two scores are averaged:
    each row counts once. Rows of the training part would not do to stop it: the generator may have copied them, and
    without them it would be another one. Scores are a little lower than by the whole part, alike for all settings.

    Args:
        task: of the table, "binclass", "multiclass" or "regression".
        catboost: arguments of `catboost_predictions`; None: it is left out.
        mlp: arguments of `mlp_predictions`; None: it is left out.
        evaluation_seeds: trainings of each evaluator on each table.

    Raises:
        ValueError: an evaluator has no such argument.
    """

    def __init__(
        self,
        task: Task,
        catboost: Mapping[str, Any] | None,
        mlp: Mapping[str, Any] | None,
        evaluation_seeds: int = 10,
    ) -> None:
        self.task = task
        self.evaluators = {
            name: dict(params) for name, params in (("catboost", catboost), ("mlp", mlp)) if params is not None
        }
        for name, params in self.evaluators.items():
            known = list(inspect.signature(EVALUATORS[name][0]).parameters)[2:]  # without data and seed
            if unknown := sorted(params.keys() - set(known)):
                raise ValueError(f"data.{name}.{unknown[0]} is not known; there are {', '.join(known)}")
        self.evaluation_seeds = evaluation_seeds
        self.frames: dict[int, pd.DataFrame] = {}
        self._kept: Path | None = None

    def on_test_epoch_start(self, *_: Any) -> None:
        """Forget the tables of another test."""
        self.frames = {}

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: pd.DataFrame, batch: Request, *_: Any
    ) -> None:
        """Keep a table."""
        self.frames[batch.seed] = outputs
        log.info("drew table %d: %d rows", batch.seed, len(outputs))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring the tables together, score them once, and log."""
        data = trainer.datamodule
        group = dist.new_group(backend="gloo", timeout=LONGEST_EVALUATION) if trainer.world_size > 1 else None
        if group is not None:
            gathered: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
            dist.gather_object(self.frames, gathered, dst=0, group=group)
            for frames in gathered or []:
                self.frames |= frames
        self._kept = Path(trainer.default_root_dir) / KEPT
        scores = on_rank_zero(lambda: self._scores(data.parts, data.codec, trainer.fast_dev_run), group)
        pl_module.log_dict(scores, reduce_fx="max", sync_dist=True)  # all ranks have the same numbers
        if group is not None:
            dist.destroy_process_group(group)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the scores of single trainings, which are only of use to a run that is cut off among them."""
        if trainer.is_global_zero and self._kept is not None:
            shutil.rmtree(self._kept, ignore_errors=True)

    def _scores(self, parts: Mapping[str, Table], codec: Codec, fast: bool) -> dict[str, float]:
        tables = [codec.table(self.frames[seed]) for seed in sorted(self.frames)]
        scored = "test" if "test" in parts else "val"
        others = zip(*(table for part, table in parts.items() if part != "train"), strict=True)
        held_out = [None if each[0] is None else np.concatenate(each) for each in others]
        scores = self._efficiency(tables, parts, 1 if fast else self.evaluation_seeds)
        privacy = privacy_scores(tables[0], parts["train"], tuple(held_out), self.task)
        quality = quality_scores(tables[0], parts["train"], self.task)
        return (
            scores
            | {f"{scored}/{name}": value for name, value in privacy.items()}
            | {f"quality/{name}": value for name, value in quality.items()}
        )

    def _efficiency(self, tables: Sequence[Table], parts: Mapping[str, Table], seeds: int) -> dict[str, float]:
        if "test" in parts:
            scored, pairs = "test", [(parts["val"], parts["test"])]
        else:
            first, second = halves(parts["val"])
            scored, pairs = "val", [(first, second), (second, first)]
        scores = {}
        for name, params in self.evaluators.items():
            evaluator, threads = EVALUATORS[name]
            log.info("training %s %d times on synthetic rows", name, len(pairs) * len(tables) * seeds)
            how = {"threads": threads, "folder": self._kept}
            results = [
                ml_efficiency(tables, stopping, rows, self.task, evaluator, params, range(seeds), **how).scores
                for stopping, rows in pairs
            ]
            keys = [key for key in results[0] if key.startswith("test/")]
            result = MLEfficiency({key: np.mean([each[key] for each in results], axis=0) for key in keys})
            for key, mean in result.mean.items():
                label = f"{scored}/{key.removeprefix('test/')}_{name}"
                scores |= {label: mean, f"{label}_std": result.std[key]}
        return scores


def halves(table: Table) -> tuple[Table, Table]:
    """A table in two, each with half of every class, or of every range of a real target; always the same two."""
    order = np.random.default_rng(0).permutation(len(table[2]))
    order = order[np.argsort(table[2][order], kind="stable")]
    first, second = (
        tuple(None if array is None else array[rows] for array in table) for rows in (order[::2], order[1::2])
    )
    return first, second
