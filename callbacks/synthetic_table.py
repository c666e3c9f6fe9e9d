"""Synthetic tables as files."""

import csv
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import pandas as pd

from callbacks.files import whole_file


def write_table(frame: pd.DataFrame, file: BinaryIO, suffix: str) -> None:
    """Write a table to an open file, as ``.csv`` or ``.parquet``."""
    if suffix == ".parquet":
        frame.to_parquet(file, index=False)
    else:
        texts = frame.select_dtypes(exclude=["number", "bool", "datetime"])
        returns = any(texts[name].drop_duplicates().astype(str).str.contains("\r", regex=False).any() for name in texts)
        # pandas leaves a carriage return bare, at which readers end the row.
        frame.to_csv(file, index=False, quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)


class SyntheticTable(L.Callback):
    """Writes the first table of a test, in the types of the training part (the scores are of an unrounded target).

    Args:
        path: ``.csv`` or ``.parquet``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: pd.DataFrame,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write it, whole or not at all."""
        if batch_idx == 0 and trainer.is_global_zero:
            with whole_file(self.path) as file:
                write_table(trainer.datamodule.codec.in_own_types(outputs), file, self.path.suffix)
