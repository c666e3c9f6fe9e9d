"""The user's own table, CSV or Parquet: what its columns are is inferred, and can be told."""

import logging
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from datamodules import sources
from datamodules.own_tables import TableError, check_fractions, separator_of
from datamodules.synthesis.base import Evaluation, TableDataModule
from datamodules.synthesis.cells import Kind
from datamodules.synthesis.codec import TableCodec
from datamodules.synthesis.columns import OwnColumns
from datamodules.synthesis.preprocessing import Normalisation, Table, Task

log = logging.getLogger("genpred")

# What pandas takes for a gap in a CSV file; it does not hand the list out.
GAP_TEXTS = ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
             "NA", "NULL", "NaN", "None", "n/a", "nan", "null")  # fmt: skip
NULLABLE = {
    pa.from_numpy_dtype(dtype.numpy_dtype): dtype
    for dtype in (pd.Int8Dtype(), pd.Int16Dtype(), pd.Int32Dtype(), pd.Int64Dtype(),
                  pd.UInt8Dtype(), pd.UInt16Dtype(), pd.UInt32Dtype(), pd.UInt64Dtype())
}  # fmt: skip
BLOCK = 2**24  # bytes of a file that are looked through at a time
PART_NAMES = {"train": "training", "val": "validation", "test": "test"}
LARGER = {  # how each part gets more rows
    "train": "set a smaller data.validation_fraction or data.test_fraction",
    "val": "set a larger data.validation_fraction",
    "test": "set a larger data.test_fraction",
}


class CSV(TableDataModule):
    r"""A table of the user's own, split at random into a training, a validation and a test part.

    Rows whose target is missing are left out; other gaps are learnt, see `OwnColumns`.

    Args:
        path: the table, ``.csv`` or ``.parquet``.
        target: column that predictors are to learn.
        table_task: "binclass", "multiclass" or "regression"; None: regression for a numerical target, else classes.
        columns: kinds of some columns, "number", "integer", "date", "category" or "drop"; of others they are inferred:
            integers of at most 10 values are categories, and so are numbers of which one is written with a leading
            zero, as 02139. What is told to be "category" is read as it is written, and only an empty cell is a gap.
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
        kinds = options.columns or {}
        # The target of a regression is a number, however it is written.
        as_read = {options.target: "number", **kinds} if options.table_task == "regression" else kinds
        frame = read_table(Path(options.path), options.separator, as_read)
        place = Path(options.path).name
        if options.target in frame.columns:
            gaps = frame[options.target].isna()
            if gaps.any() and not gaps.all():
                log.warning("%s: %d rows without %s are left out", place, gaps.sum(), options.target)
                frame = frame[~gaps]  # its index goes on counting the file's rows
        columns = OwnColumns.infer(frame, options.target, kinds, options.table_task, place)
        if len(columns.columns) < 2:
            raise TableError(f"{place} has no column beside the target {options.target!r}: there is nothing to learn")
        if columns.task != "regression" and frame[options.target].nunique() < 2:
            raise TableError(
                f"{place}: the target {options.target!r} is the same in every row: name another data.target, or add "
                "rows of another class"
            )
        return frame, columns

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
        target = columns.target_values(frame)
        classes = target if columns.task != "regression" else None
        try:
            rest, test = _split(np.arange(len(frame)), classes, options.test_fraction, options.split_seed)
            share = options.validation_fraction / (1 - options.test_fraction)
            train, val = _split(rest, classes, share, options.split_seed)
            rows = {"train": train, "val": val, "test": test}
            (self._check_numbers if classes is None else self._check_classes)(columns, target, rows)
            columns = columns.with_fills(frame.iloc[train])
            table = columns.table(frame)
            parts = {name: Table(*(None if array is None else array[rows[name]] for array in table)) for name in rows}
            codec = TableCodec.fit(parts["train"], columns, columns.task, options.normalisation)
            self.prepare(parts, codec, options.spread_ties)
        except TableError:
            raise
        except ValueError as error:
            raise TableError(f"{columns.place}: {error}") from error

    @property
    def _groups(self) -> dict[str, int]:
        """Of each part whose target is looked at: into how many groups its rows are dealt, which are scored apart."""
        options = self.hparams
        if options.catboost is None and options.mlp is None:
            return {"train": 1}
        # Without a test part each half of the validation part stops the predictors of the other.
        return {"train": 1, "val": 2} if options.evaluation == "validation" else {"train": 1, "val": 1, "test": 1}

    def _check_classes(self, columns: OwnColumns, classes: NDArray, rows: Mapping[str, NDArray[np.int64]]) -> None:
        """Make sure of what else would be found missing after the whole training: classes [row] in parts of the rows.

        Raises:
            TableError: the training part lacks a class, or one of two classes is missing where predictors are scored.
        """
        names, counts = np.unique(classes, return_counts=True)
        for part, needed in self._groups.items():
            if part != "train" and columns.task != "binclass":
                continue  # only the area under the ROC curve needs every class
            for name, count in zip(names, counts, strict=True):
                found = int((classes[rows[part]] == name).sum())
                if found < needed:
                    why = "to be learnt" if part == "train" else "for the area under the ROC curve"
                    raise TableError(
                        f"{columns.place}: the {PART_NAMES[part]} part has {found} row(s) of class {name!r} of the "
                        f"target {columns.target!r}, which needs {needed} there {why} ({count} of {len(classes)} rows "
                        f"have it): add rows of it, or {LARGER[part]}"
                        + (", or leave its rows out, or merge classes" if len(names) > 2 else "")
                    )

    def _check_numbers(self, columns: OwnColumns, target: NDArray, rows: Mapping[str, NDArray[np.int64]]) -> None:
        """Make sure of what else would be found missing after the whole training: different targets in each part.

        Raises:
            TableError: all targets of the training part, or of what predictors are scored on, are the same.
        """
        for part, groups in self._groups.items():
            ordered = np.sort(target[rows[part]])  # and dealt in turn, which is how the metrics halve it
            for group in (ordered[first::groups] for first in range(groups)):
                if (group == group[0]).all():
                    which = "" if groups == 1 else "one half of "
                    why = "nothing can be learnt" if part == "train" else "R2 is not defined"
                    raise TableError(
                        f"{columns.place}: the target {columns.target!r} is {columns.shown(columns.target, group[0])} "
                        f"in each of the {len(group)} row(s) of {which}the {PART_NAMES[part]} part, so that {why}: add "
                        f"rows with other values, {LARGER[part]}, or try another data.split_seed"
                    )


def read_table(path: Path, separator: str, kinds: Mapping[str, Kind] | None = None) -> pd.DataFrame:
    """A table's rows.

    Args:
        path: ``.csv`` or ``.parquet``.
        separator: between the cells of a CSV file.
        kinds: what is told of some columns; a CSV file is read accordingly.

    Raises:
        TableError: it is not there, of another format, or broken.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise TableError(f"{path}: it must end in .csv or .parquet")
    try:
        frame = _read_csv(path, separator, kinds or {}) if path.suffix == ".csv" else _read_parquet(path)
    except TableError:
        raise
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    frame = frame.rename(columns=str)
    _check_names(frame.columns, path)
    if len(frame) < 10:
        raise TableError(f"{path} has {len(frame)} rows, too few to learn from")
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    """A Parquet file's rows; a column that pandas has made an index of is a column again."""
    frame = pd.read_parquet(path)
    # Beside gaps pandas makes floats of integers, unless it has written the file itself.
    schema = pyarrow.parquet.read_schema(path)
    whole = [name for name in schema.names if pa.types.is_integer(schema.field(name).type) and name in frame.columns]
    if whole := [name for name in whole if frame[name].dtype.kind == "f"]:
        exact = pyarrow.parquet.read_table(path, columns=whole).to_pandas(
            types_mapper=NULLABLE.get, ignore_metadata=True
        )
        for name in whole:
            frame[name] = exact[name].array
    for name in frame.select_dtypes(pd.ArrowDtype):
        frame[name] = _own_type(frame[name])
    if isinstance(frame.index, pd.RangeIndex):  # not in the file
        return frame
    if named := [name for name in frame.index.names if name is not None]:
        frame = frame.reset_index(level=named, allow_duplicates=True)
    return frame.reset_index(drop=True)


def _own_type(values: pd.Series) -> pd.Series:
    """A column of a type of Arrow's as one of pandas' own: dates, moments, categories and long texts."""
    kind = values.dtype.pyarrow_dtype
    if pa.types.is_timestamp(kind):
        return values.astype(f"datetime64[{kind.unit}]" if kind.tz is None else pd.DatetimeTZDtype(kind.unit, kind.tz))
    if pa.types.is_date(kind):
        return values.astype(object)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return values.astype("str")
    return values.astype("category") if pa.types.is_dictionary(kind) else values


def _read_csv(path: Path, separator: str, kinds: Mapping[str, Kind]) -> pd.DataFrame:
    """A CSV file's rows; integers beside gaps as Int64, categories as they are written."""
    # pandas renames a name that is there twice.
    header = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False)
    _check_names(pd.Index([name for name in header.iloc[0] if name]), path)
    only = header.iloc[0, 0]
    if header.shape[1] == 1 and (others := [each for each in ";\t|," if each in only]):
        raise TableError(f"{path}: its header is one column, {only!r}: set data.separator='{others[0]}'")
    options: dict[str, Any] = {}
    if "category" in kinds.values():
        names = pd.read_csv(path, sep=separator, nrows=0).columns  # as pandas calls columns without a name
        told = {name: str for name in names if kinds.get(name) == "category"}
        gaps = {name: [""] if name in told else GAP_TEXTS for name in names}
        options = {"dtype": told, "na_values": gaps, "keep_default_na": False}
    # In one piece, for otherwise a column's type may change on the way.
    frame = pd.read_csv(path, sep=separator, low_memory=False, **options)
    if not isinstance(frame.index, pd.RangeIndex):
        raise TableError(f"{path}: its rows have more cells than its header; give every column a name")
    _keep_as_written(frame, path, separator, kinds)
    # pandas makes floats of integers beside gaps: they would be inexact beyond 2**53, and written with a point.
    whole = [j for j, name in enumerate(frame) if _is_whole_with_gaps(frame[name])]
    if whole:
        exact = pd.read_csv(path, sep=separator, usecols=whole, dtype="Int64")
        for name in exact:
            frame[name] = exact[name]
    return frame


def _keep_as_written(frame: pd.DataFrame, path: Path, separator: str, kinds: Mapping[str, Kind]) -> None:
    """Put texts in place of numbers and truth values that would be written otherwise: 02139, TRUE.

    A column of truth values of which one is written in two ways, such as TRUE and True, stays one of truth values.
    """
    free = {j: frame[name] for j, name in enumerate(frame) if name not in kinds}
    truths = [
        j
        for j, values in free.items()
        if values.dtype in (bool, object) and pd.api.types.infer_dtype(values, skipna=True) == "boolean"
    ]
    suspects = []
    if truths:  # as pandas itself writes them they need no second look at the whole file
        first = pd.read_csv(path, sep=separator, usecols=truths, nrows=1000, dtype=str)
        written = (set(first[name].dropna()) for name in first)
        suspects = [j for j, texts in zip(truths, written, strict=True) if not texts or not texts <= {"True", "False"}]
    numbers = [j for j, values in free.items() if j not in truths and pd.api.types.is_numeric_dtype(values.dtype)]
    if numbers and _may_have_leading_zeros(path, separator):
        suspects += numbers
    if not suspects:
        return
    cells = pd.read_csv(path, sep=separator, usecols=suspects, dtype=str)
    for j, name in zip(sorted(suspects), cells, strict=True):
        texts = cells[name].dropna().drop_duplicates()
        if j in truths:
            if len(texts) == frame[name].nunique():
                frame[name] = cells[name]
        elif texts.str.match(r"\s*0[0-9]").any():
            log.info("%s: column %s has leading zeros: its numbers are taken for categories", path.name, name)
            frame[name] = cells[name]


def _may_have_leading_zeros(path: Path, separator: str) -> bool:
    """Whether a cell begins with a zero and a digit: by the bytes, since to read all cells as text takes far longer."""
    content = np.memmap(path, np.uint8, "r")
    ends = np.isin(np.arange(256), [separator.encode()[-1], *b'"\r\n'])  # what may stand before a cell
    for start in range(2, len(content), BLOCK):  # before are a name and the end of its line
        block = np.asarray(content[start - 2 : start + BLOCK + 1])
        zeros = np.flatnonzero(block[2:-1] == ord("0")) + 2
        before, after = block[zeros - 1], block[zeros + 1]
        begins = ends[before] | ((before == ord(" ")) & ends[block[zeros - 2]])
        if (begins & (after >= ord("0")) & (after <= ord("9"))).any():
            return True
    return False


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
