"""How synthetic tables are scored: by what predictors learn from them, by privacy, and by likeness."""

import datetime
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import lightning as L
import numpy as np
import pandas as pd
import torch.distributed as dist

from callbacks.catboost_evaluator import catboost_predictions
from callbacks.encoding import Table, Task
from callbacks.ml_efficiency import ml_efficiency
from callbacks.mlp_evaluator import mlp_predictions
from callbacks.privacy import privacy_scores
from callbacks.quality import quality_scores
from callbacks.rank_zero import on_rank_zero

log = logging.getLogger("genpred")
EVALUATORS = {"catboost": catboost_predictions, "mlp": mlp_predictions}
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

    - ``{test,val}/<score>_<evaluator>``, the mean of a score of `ml_efficiency.prediction_scores` over all sampling and
      evaluation seeds, and ``..._std``, its population standard deviation, as published. Evaluators are stopped by the
      validation part, so that its scores are a little too good, alike for all methods.
    - ``test/dcr`` and the like, see `privacy.privacy_scores`, of the first table, held-out rows being both other parts.
    - ``quality/column_shapes`` and the like, see `quality.quality_scores`, of the first table beside the training part.

    Args:
        task: of the table, "binclass", "multiclass" or "regression".
        catboost: arguments of `catboost_predictions`; None: it is left out.
        mlp: arguments of `mlp_predictions`; None: it is left out.
        evaluation_seeds: trainings of each evaluator on each table.
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
        self.evaluation_seeds = evaluation_seeds
        self.frames: dict[int, pd.DataFrame] = {}

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
        scores = on_rank_zero(lambda: self._scores(data.parts, data.codec, trainer.fast_dev_run), group)
        pl_module.log_dict(scores, reduce_fx="max", sync_dist=True)  # all ranks have the same numbers
        if group is not None:
            dist.destroy_process_group(group)

    def _scores(self, parts: Mapping[str, Table], codec: Codec, fast: bool) -> dict[str, float]:
        tables = [codec.table(self.frames[seed]) for seed in sorted(self.frames)]
        held_out = [
            None if each[0] is None else np.concatenate(each) for each in zip(parts["val"], parts["test"], strict=True)
        ]
        scores = self._efficiency(tables, parts, 1 if fast else self.evaluation_seeds)
        privacy = privacy_scores(tables[0], parts["train"], tuple(held_out), self.task)
        quality = quality_scores(tables[0], parts["train"], self.task)
        return (
            scores
            | {f"test/{name}": value for name, value in privacy.items()}
            | {f"quality/{name}": value for name, value in quality.items()}
        )

    def _efficiency(self, tables: Sequence[Table], parts: Mapping[str, Table], seeds: int) -> dict[str, float]:
        scores = {}
        for name, params in self.evaluators.items():
            log.info("training %s %d times on synthetic rows", name, len(tables) * seeds)
            result = ml_efficiency(
                tables, parts["val"], parts["test"], self.task, EVALUATORS[name], params, range(seeds)
            )
            for key, mean in result.mean.items():
                scores |= {f"{key}_{name}": mean, f"{key}_{name}_std": result.std[key]}
        return scores
