"""The contract of synthesis: fitted to a table, a method draws rows that can stand in for it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import lightning as L
import pandas as pd
import torch
from torch import Tensor


class EncodedTable(Protocol):
    """The training part as models see it (the data side defines the type)."""

    numericals: Tensor  # [row, feature] float32; in regression feature 0 is the target
    categories: Tensor  # [row, column] int64, each below its column's count
    target: Tensor  # [row] int64, number of the class; in regression float32 z-scores


class Conditions(Protocol):
    """Columns that are given beforehand, as models see them."""

    target: int | None  # number of the class
    numericals: Mapping[int, float]  # feature and value
    categories: Mapping[int, int]  # column and number of the category


class Codec(Protocol):
    """What is known of the table's columns, and the way back to its own values and types."""

    num_numericals: int
    category_counts: Sequence[int]  # number of categories of each categorical column
    class_counts: Sequence[int]  # training rows of each class; empty in regression

    def decode(
        self,
        numericals: Tensor,
        categories: Tensor,
        target: Tensor | None,
        conditions: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Rows [row, feature], [row, column], [row] as rows of the table, drawn with these conditions."""

    def encode_conditions(self, conditions: Mapping[str, Any]) -> Conditions:
        """Values of columns, by the columns' names, as models see them."""

    def for_evaluation(self) -> "Codec":
        """The codec whose rows are scored: a benchmark's real target is not rounded, as published."""


class TableSource(Protocol):
    """What a method takes from the DataModule, after its ``setup``."""

    codec: Codec
    encoded: EncodedTable | None
    frame: pd.DataFrame  # the training part in its own values; not asked for where a trained model is loaded


class SamplingRequest(Protocol):
    """A batch of the test: so many rows, drawn with this seed."""

    seed: int
    num_rows: int


class Synthesizer(L.LightningModule):
    """A method that makes rows: subclasses write ``attach`` and ``sample``, and the training where there is one."""

    codec: Codec | None = None

    def setup(self, stage: str) -> None:
        """Take the table from the Trainer's DataModule, once."""
        if self.codec is None:
            self.attach(self.trainer.datamodule)

    def attach(self, source: TableSource) -> None:
        """Take what the method needs of a table, and build the parts whose sizes depend on it.

        Args:
            source: its ``encoded`` is None where a trained model is loaded to draw from.
        """
        self.codec = source.codec

    def sample(
        self, num_rows: int, generator: torch.Generator, conditions: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Draw rows with the columns, types, categories and ranges of the training table.

        Args:
            num_rows: how many.
            generator: source of randomness, on the module's device.
            conditions: values that some columns have in every row, by the columns' names.
        """
        raise NotImplementedError(f"{type(self).__name__} must define sample(num_rows, generator, conditions)")

    def test_step(self, batch: SamplingRequest, batch_index: int) -> pd.DataFrame:
        """Draw a table; the metric callbacks score it. Its real target is as the codec has it `for_evaluation`."""
        codec, self.codec = self.codec, self.codec.for_evaluation()
        try:
            return self.sample(batch.num_rows, torch.Generator(self.device).manual_seed(batch.seed))
        finally:
            self.codec = codec
