"""The user's own table, CSV or Parquet: what its columns are is inferred, and can be told."""

import logging
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from datamodules import sources
from datamodules.own_tables import TableError, check_fractions, separator_of
from datamodules.synthesis.base import Evaluation, TableDataModule
from datamodules.synthesis.cells import Kind
from datamodules.synthesis.codec import TableCodec
from datamodules.synthesis.columns import OwnColumns
from datamodules.synthesis.preprocessing import Normalisation, Table, Task

log = logging.getLogger("genpred")


class CSV(TableDataModule):
    r"""A table of the user's own, split at random into a training, a validation and a test part.

    Rows whose target is missing are left out; other gaps are learnt, see `OwnColumns`.

    Args:
        path: the table, ``.csv`` or ``.parquet``.
        target: column that predictors are to learn.
        table_task: "binclass", "multiclass" or "regression"; None: regression for a numerical target, else classes.
        columns: kinds of some columns, "number", "integer", "date", "category" or "drop"; of others they are inferred:
            integers of at most 10 values are categories.
        separator: between the cells of a CSV file; "\t" for tabs.
        validation_fraction: part of the rows that stops the training of predictors, in (0, 1).
        test_fraction: part of the rows that predictors are scored on.
        split_seed: of the split, which is by class where there are classes.
        normalisation: of the numerical columns, see `TableTransform.fit`.
        spread_ties: spread equal numbers over their ranks, see `QuantileTransform.transform`.
        num_samples: rows of a synthetic table; None: as many as the training part has.
        evaluation: "published": 5 synthetic tables, 10 trainings of each evaluator on each; "quick": 1 and 3;
            "validation": 5 and 3, scored on the validation part, the test part left out: to compare settings by.
        sampling_seeds: another number of tables.
        evaluation_seeds: another number of trainings on each.
        catboost: arguments of CatBoost, see `callbacks.catboost_evaluator`; None: it is not trained.
        mlp: likewise of the multilayer perceptron, see `callbacks.mlp_evaluator`.
        batch_size: training rows of a batch on one process.
        seed: of the training order.

    Raises:
        ValueError: an argument is out of range.
        TableError: the table cannot be used.
    """

    columns_class = OwnColumns
    comparable = False

    def __init__(
        self,
        path: str | None = None,
        target: str | None = None,
        table_task: Task | None = None,
        columns: dict[str, Kind] | None = None,
        separator: str = ",",
        validation_fraction: float = 0.16,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        normalisation: Normalisation = "quantile",
        spread_ties: bool = True,
        num_samples: int | None = None,
        evaluation: Evaluation = "quick",
        sampling_seeds: int | None = None,
        evaluation_seeds: int | None = None,
        catboost: dict[str, Any] | None = None,
        mlp: dict[str, Any] | None = None,
        batch_size: int = 4096,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("path", path), ("target", target)):
            if value is None:
                raise ValueError(
                    f"data.{name} is not set: name your table and the column to be predicted, such as "
                    f"data.path=my.csv data.target=price"
                )
        check_fractions(validation_fraction, test_fraction)
        separator = separator_of(separator)
        self.save_hyperparameters()
        self.check_arguments()

    @cached_property
    def table(self) -> tuple[pd.DataFrame, OwnColumns]:
        """The rows that have a target, and what the columns are; read when first asked for."""
        options = self.hparams
        frame = read_table(Path(options.path), options.separator)
        place = Path(options.path).name
        if options.target in frame.columns:
            gaps = frame[options.target].isna()
            if gaps.any() and not gaps.all():
                log.warning("%s: %d rows without %s are left out", place, gaps.sum(), options.target)
                frame = frame[~gaps].reset_index(drop=True)
        return frame, OwnColumns.infer(frame, options.target, options.columns or {}, options.table_task, place)

    @property
    def table_task(self) -> Task:
        """Task of the table."""
        return self.table[1].task

    @property
    def data_variant(self) -> str:
        """Not published data."""
        return "own"

    @cached_property
    def data_sha256(self) -> dict[str, str]:
        """SHA-256 of the table, by its name."""
        return {Path(self.hparams.path).name: sources.file_sha256(Path(self.hparams.path))}

    def setup(self, stage: str | None = None) -> None:
        """Split, and fit what is fitted to the training part; once.

        Raises:
            TableError: the table cannot be used.
        """
        if self.parts is not None:
            return
        options, (frame, columns) = self.hparams, self.table
        classes = columns.target_values(frame) if columns.task != "regression" else None
        try:
            rest, test = _split(np.arange(len(frame)), classes, options.test_fraction, options.split_seed)
            share = options.validation_fraction / (1 - options.test_fraction)
            train, val = _split(rest, classes, share, options.split_seed)
            columns = columns.with_fills(frame.iloc[train])
            table = columns.table(frame)
            parts = {
                name: Table(*(None if array is None else array[rows] for array in table))
                for name, rows in (("train", train), ("val", val), ("test", test))
            }
            codec = TableCodec.fit(parts["train"], columns, columns.task, options.normalisation)
            self.prepare(parts, codec, options.spread_ties)
        except TableError:
            raise
        except ValueError as error:
            raise TableError(f"{columns.place}: {error}") from error


def read_table(path: Path, separator: str) -> pd.DataFrame:
    """A table's rows.

    Raises:
        TableError: it is not there, of another format, or broken.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise TableError(f"{path}: it must end in .csv or .parquet")
    try:
        frame = _read_csv(path, separator) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    frame = frame.rename(columns=str)
    _check_names(frame.columns, path)
    if len(frame) < 10:
        raise TableError(f"{path} has {len(frame)} rows, too few to learn from")
    return frame


def _read_csv(path: Path, separator: str) -> pd.DataFrame:
    """A CSV file's rows; integers beside gaps as Int64."""
    # pandas renames a name that is there twice.
    header = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False)
    _check_names(pd.Index([name for name in header.iloc[0] if name]), path)
    # In one piece, for otherwise a column's type may change on the way.
    frame = pd.read_csv(path, sep=separator, low_memory=False)
    if not isinstance(frame.index, pd.RangeIndex):
        raise TableError(f"{path}: its rows have more cells than its header; give every column a name")
    # pandas makes floats of integers beside gaps: they would be inexact beyond 2**53, and written with a point.
    whole = [j for j, name in enumerate(frame) if _is_whole_with_gaps(frame[name])]
    if whole:
        exact = pd.read_csv(path, sep=separator, usecols=whole, dtype="Int64")
        for name in exact:
            frame[name] = exact[name]
    return frame


def _is_whole_with_gaps(values: pd.Series) -> bool:
    present = values.dropna()
    if values.dtype != np.float64 or not 0 < len(present) < len(values):
        return False
    return bool(((np.rint(present) == present) & (present.abs() < 2**63)).all())


def _check_names(names: pd.Index, path: Path) -> None:
    if names.duplicated().any():
        raise TableError(f"{path}: column {names[names.duplicated()][0]!r} is there twice; rename one")


def _split(rows: np.ndarray, classes: np.ndarray | None, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in two parts, the second of a fraction of them; by class, where classes [row of the table] are given."""
    if classes is None:
        return tuple(train_test_split(rows, test_size=fraction, random_state=seed))
    names, counts = np.unique(classes[rows], return_counts=True)
    if counts.min() < 2:
        rarest = names[counts.argmin()]
        raise ValueError(
            f"class {rarest!r} of the target has too few rows for a training, a validation and a test part "
            f"({(classes == rarest).sum()} in all): leave such rows out, or merge classes"
        )
    second = math.ceil(fraction * len(rows))
    if min(second, len(rows) - second) < len(names):
        raise ValueError(
            f"{len(names)} classes do not fit in parts of {fraction:.0%} and {1 - fraction:.0%} of {len(rows)} rows: "
            f"leave rows of rare classes out, or merge classes"
        )
    return tuple(train_test_split(rows, test_size=fraction, random_state=seed, stratify=classes[rows]))
