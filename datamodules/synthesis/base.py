"""What all tables share: three parts, a codec fitted to the training part, requests for synthetic tables."""

from typing import Any, Literal

import numpy as np
import pandas as pd

from datamodules.base import BatchIndexSampler, ResumableDataModule
from datamodules.sources import SourceError
from datamodules.synthesis.codec import EncodedTable, TableCodec
from datamodules.synthesis.preprocessing import Table, Task
from datamodules.synthesis.rows import RequestLoader, RowLoader, SamplingRequest

Evaluation = Literal["published", "quick", "validation"]
SEEDS = {"published": (5, 10), "quick": (1, 3), "validation": (5, 3)}  # of sampling, of evaluation
DRY_RUN_ROWS = 500


class TableDataModule(ResumableDataModule):
    """A table for synthesis; a subclass sets `table_task`, and in `setup` calls `prepare` with its parts.

    It saves the hyper-parameters `batch_size`, `seed`, `num_samples`, `evaluation`, `sampling_seeds` and
    `evaluation_seeds`, `catboost` and `mlp`.

    Attributes:
        parts: the tables "train", "val" and, unless evaluation="validation", "test"; after `setup`.
        codec: names, types and values of the training part; after `setup`, or from a checkpoint.
        encoded: the training part as models see it; after `setup`.
    """

    task = "synthesis"
    table_task: Task
    columns_class: type  # of the codec's columns

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Table] | None = None
        self.codec: TableCodec | None = None
        self.encoded: EncodedTable | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """The training part in its own values, made when asked for; after `setup`."""
        return self.codec.frame(self.parts["train"])

    @property
    def model_arguments(self) -> dict[str, Any]:
        """None: a method takes what it needs of the table when it is attached, and nothing is read before."""
        return {}

    @property
    def evaluation_arguments(self) -> dict[str, Any]:
        """Arguments of the metrics."""
        options = self.hparams
        return {
            "task": self.table_task,
            "catboost": options.catboost,
            "mlp": options.mlp,
            "evaluation_seeds": options.evaluation_seeds or SEEDS[options.evaluation][1],
        }

    @property
    def num_rows_drawn(self) -> int:
        """Rows of a synthetic table; after `setup`."""
        return self.hparams.num_samples or len(self.encoded.target)

    def check_arguments(self) -> None:
        """Raise ValueError if one of the arguments that all tables have is out of range."""
        options = self.hparams
        for key in ("num_samples", "sampling_seeds", "evaluation_seeds"):
            if options[key] is not None and options[key] < 1:
                raise ValueError(f"{key}={options[key]}: it must be at least 1; leave it out for its default.")
        if options.spread_ties and options.normalisation != "quantile":
            raise ValueError(
                f"spread_ties goes with normalisation='quantile', not with {options.normalisation!r}: leave one out."
            )

    def prepare(self, parts: dict[str, Table], codec: TableCodec, spread_ties: bool) -> None:
        """Encode the training part."""
        # A seed of its own: how ties are spread belongs to the data.
        generator = np.random.default_rng(0) if spread_ties else None
        if self.hparams.evaluation == "validation":
            parts = {part: table for part, table in parts.items() if part != "test"}  # so nothing can look at it
        self.parts, self.codec = parts, codec
        self.encoded = codec.encode(parts["train"], generator)

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints hold: all that a trained model takes to draw rows, and the sums of the files."""
        return {**self.codec.state_dict(), "data_sha256": self.data_sha256}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the codec; where a run continues, make sure that it has the table that it began with.

        Raises:
            SourceError: it has not.
            ValueError: the state was written by another version of the program.
        """
        if self.codec is None:
            self.codec = TableCodec.from_state(state, self.columns_class)
        elif state["data_sha256"] != self.data_sha256:
            files = ", ".join(self.data_sha256)
            raise SourceError(f"{files} changed since this run began: put it back, or start over with force=true")

    def train_dataloader(self) -> RowLoader:
        """Row numbers for all steps of the training."""
        sampler = BatchIndexSampler(
            len(self.encoded.target), self.hparams.batch_size, True, self.hparams.seed, self.rank, self.world_size
        )
        if self.trainer.max_steps < 1:
            raise ValueError(
                f"trainer.max_steps={self.trainer.max_steps}: training on a table is counted in steps; set max_steps"
            )
        return RowLoader(sampler, self.trainer.max_steps * self.trainer.accumulate_grad_batches)

    def test_dataloader(self) -> RequestLoader:
        """Requests for this rank's synthetic tables, one for each sampling seed."""
        options = self.hparams
        num_rows, seeds = self.num_rows_drawn, options.sampling_seeds or SEEDS[options.evaluation][0]
        if self.trainer.fast_dev_run:
            num_rows = min(num_rows, DRY_RUN_ROWS)
        mine = range(self.rank, seeds, self.world_size)
        # A rank without a table would leave the test at once, and the others would wait for it: it draws one again.
        return RequestLoader([SamplingRequest(seed, num_rows) for seed in mine or [self.rank % seeds]])
