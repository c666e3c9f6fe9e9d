"""Columns of the user's own table: their kinds, inferred or told, and the way to a model's columns and back.

Gaps are something to be learnt too. In a column of categories they are a category of their own; a column of numbers or
dates that has gaps brings a column of categories along that says where, and takes its median there.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.sources import SourceError
from datamodules.synthesis.preprocessing import Table, Task

Kind = Literal["number", "integer", "date", "category", "drop"]
NUMERICAL = ("number", "integer", "date")

MOST_INTEGER_CATEGORIES = 10  # an integer column of so many values or fewer is one of categories
MOST_CATEGORIES = 10_000
GAP = "(missing)"  # what a gap is called among categories


class TableError(SourceError):
    """A table that cannot be used; the message names the file, the column, the row where there is one, and a remedy."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: as in the file.
        kind: "number", "integer", "date" or "category".
        dtype: pandas' name of its type in the training table.
        has_gaps: whether training rows lack it.
        fill: what stands in a gap of a numerical column.
        unit: in which a date is counted, "D", "s" or "us".
        text_format: of a date that the file holds as text; None: a date by type.
    """

    name: str
    kind: Kind
    dtype: str
    has_gaps: bool = False
    fill: float = 0.0
    unit: str = "s"
    text_format: str | None = None

    @property
    def mask(self) -> str:
        """Name of the column that says where this one has gaps."""
        return f"{self.name} {GAP}"


@dataclass(frozen=True)
class OwnColumns:
    """All columns of a table in their order, and which one is the target.

    Attributes:
        place: file or table, named in errors.
        columns: in the table's order, without dropped ones.
        target: name of the target.
        task: "binclass", "multiclass" or "regression".
    """

    place: str
    columns: tuple[Column, ...]
    target: str
    task: Task

    @classmethod
    def infer(
        cls, frame: pd.DataFrame, target: str, kinds: Mapping[str, Kind], task: Task | None, place: str
    ) -> "OwnColumns":
        """Look at a table.

        Args:
            frame: all of its rows.
            target: name of the target.
            kinds: what is told of some columns.
            task: None: regression for a numerical target, else classes.
            place: what the table is called in messages.

        Raises:
            TableError: in one line, which column cannot be used and what to do about it.
        """
        for name in [target, *kinds]:
            if name not in frame.columns:
                near = difflib.get_close_matches(name, map(str, frame.columns), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(str, frame.columns))}"
                raise TableError(f"{place}: there is no column {name!r}; {hint}")
        for name, kind in kinds.items():
            if kind not in get_args(Kind):
                raise TableError(f"data.columns.{name}={kind!r}: choose one of {', '.join(get_args(Kind))}")
        if task == "regression" and target not in kinds and pd.api.types.is_numeric_dtype(frame[target].dtype):
            whole = (frame[target].dropna() % 1 == 0).all()
            kinds = {**kinds, target: "integer" if whole else "number"}
        columns = tuple(
            _column(frame[name], kinds.get(name), f"{place}: column {name}", name == target and task != "regression")
            for name in frame.columns
            if kinds.get(name) != "drop"
        )
        found = {column.name: column for column in columns}
        if target not in found:
            raise TableError(f"{place}: the target {target!r} cannot be dropped")
        if task is None:
            classes = frame[target].nunique()
            task = "regression" if found[target].kind != "category" else "binclass" if classes == 2 else "multiclass"
        if (task == "regression") != (found[target].kind in ("number", "integer")):
            raise TableError(
                f"{place}: the target {target!r} is of kind {found[target].kind}, which does not suit "
                f"data.table_task={task}; set the task, or data.columns.{target}"
            )
        return cls(place, columns, target, task)

    @property
    def features(self) -> list[Column]:
        """The columns beside the target."""
        return [column for column in self.columns if column.name != self.target]

    @property
    def numerical(self) -> tuple[str, ...]:
        """Names of the columns of ``X_num``."""
        return tuple(column.name for column in self.features if column.kind in NUMERICAL)

    @property
    def categorical(self) -> tuple[str, ...]:
        """Names of the columns of ``X_cat``: those of categories, then those that say where there are gaps."""
        gaps = [column.mask for column in self.features if column.kind in NUMERICAL and column.has_gaps]
        return (*(column.name for column in self.features if column.kind == "category"), *gaps)

    def table(self, frame: pd.DataFrame) -> Table:
        """Arrays of some rows.

        Raises:
            TableError: a cell is not of its column's kind.
        """
        numbers, categories, masks = [], [], []
        for column in self.features:
            values = frame[column.name]
            if column.kind == "category":
                categories.append(_texts(values))
                continue
            array = _numbers(values, column, f"{self.place}: column {column.name}")
            gaps = np.isnan(array)
            if column.has_gaps:
                masks.append(np.where(gaps, "yes", "no").astype(object))
            numbers.append(np.where(gaps, column.fill, array))
        target = next(column for column in self.columns if column.name == self.target)
        place = f"{self.place}: column {self.target}"
        is_class = target.kind == "category"
        y = _texts(frame[self.target]) if is_class else _numbers(frame[self.target], target, place)
        return Table(
            np.column_stack(numbers) if numbers else None,
            np.column_stack([*categories, *masks]) if categories or masks else None,
            y,
        )

    def frame(self, table: Table) -> pd.DataFrame:
        """Rows with the columns, types and gaps of the training table."""
        numbers = {} if table.X_num is None else dict(zip(self.numerical, table.X_num.T, strict=True))
        texts = {} if table.X_cat is None else dict(zip(self.categorical, table.X_cat.T, strict=True))
        columns = {}
        for column in self.columns:
            if column.name == self.target:
                values = table.y
                columns[column.name] = (
                    _categories(values, column) if column.kind == "category" else _cells(values, None, column)
                )
            elif column.kind == "category":
                columns[column.name] = _categories(texts[column.name], column)
            else:
                gaps = texts[column.mask] == "yes" if column.has_gaps else None
                columns[column.name] = _cells(numbers[column.name], gaps, column)
        return pd.DataFrame(columns)

    def value(self, name: str, value: Any) -> Any:
        """A value that a column is to have, as its array holds it.

        Raises:
            ValueError: it is not of the column's kind.
        """
        column = next((each for each in self.columns if each.name == name), None)
        if column is None or column.kind == "category":
            return value
        try:
            return float(_numbers(pd.Series([value]), column, f"{name}={value!r}")[0])
        except TableError as error:
            raise ValueError(str(error)) from error

    def state_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a checkpoint."""
        return asdict(self) | {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo `state_dict`."""
        return cls(**state | {"columns": tuple(Column(**column) for column in state["columns"])})


def _column(values: pd.Series, kind: Kind | None, place: str, is_class: bool) -> Column:
    """A column's kind and what has to be known of it."""
    gaps = values.isna()
    if gaps.all():
        raise TableError(f"{place} has no value at all: leave it out with data.columns.{values.name}=drop")
    present = values[~gaps]
    if kind is None:
        kind = _inferred(present)
        # A numerical target of two values, such as 0 and 1, is one of classes.
        if is_class and kind == "number" and present.nunique() == 2:
            kind = "category"
    common = {"name": values.name, "kind": kind, "dtype": str(values.dtype), "has_gaps": bool(gaps.any())}
    if kind == "category":
        count = present.nunique()
        if count > MOST_CATEGORIES or (count == len(values) > MOST_INTEGER_CATEGORIES):
            raise TableError(
                f"{place} has {count} categories in {len(values)} rows: it looks like a key or a text, which cannot be "
                f"learnt; leave it out with data.columns.{values.name}=drop"
            )
        return Column(**common)
    if kind == "date":
        is_text = not pd.api.types.is_datetime64_any_dtype(values.dtype)
        dates = _dates(present, place)
        unit = "D" if (dates == dates.dt.normalize()).all() else "s" if (dates.dt.microsecond == 0).all() else "us"
        text_format = None
        if is_text:
            between = "T" if present.astype(str).str.contains("T").any() else " "
            clock = {"D": "", "s": f"{between}%H:%M:%S", "us": f"{between}%H:%M:%S.%f"}[unit]
            text_format = f"%Y-%m-%d{clock}"
        column = Column(**common, unit=unit, text_format=text_format)
    else:
        column = Column(**common)
    median = float(np.nanmedian(_numbers(values, column, place)))
    if kind == "integer" and (np.rint(numbers := _numbers(present, column, place)) != numbers).any():
        raise TableError(f"{place} is not one of integers: tell its kind with data.columns.{values.name}=number")
    return Column(**common | {"fill": round(median) if kind != "number" else median}, unit=column.unit,
                  text_format=column.text_format)  # fmt: skip


def _inferred(present: pd.Series) -> Kind:
    """Kind of a column by its values, none missing."""
    if pd.api.types.is_bool_dtype(present.dtype) or isinstance(present.dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_datetime64_any_dtype(present.dtype):
        return "date"
    if pd.api.types.is_numeric_dtype(present.dtype):
        numbers = present.to_numpy(dtype=np.float64)
        if not (np.isfinite(numbers) & (np.rint(numbers) == numbers)).all():
            return "number"
        return "category" if present.nunique() <= MOST_INTEGER_CATEGORIES else "integer"
    distinct = pd.Series(present.astype(str).unique())
    looks_so = distinct.str.match(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$").all()
    if looks_so and pd.to_datetime(distinct, format="ISO8601", errors="coerce", utc=True).notna().all():
        return "date"
    return "category"


def _dates(values: pd.Series, place: str) -> pd.Series:
    """Dates without a zone, NaT where there is none."""
    try:
        dates = pd.to_datetime(values, format=None if pd.api.types.is_datetime64_any_dtype(values) else "ISO8601")
    except (ValueError, TypeError) as error:
        raise TableError(f"{place} holds something else than ISO dates: {error}; set its kind to category") from error
    if getattr(dates.dt, "tz", None) is not None:
        raise TableError(f"{place} has dates with time zones: convert them to one zone and leave the zone out")
    return dates


def _numbers(values: pd.Series, column: Column, place: str) -> NDArray[np.float64]:
    """A column's cells as float64, NaN for gaps; dates counted from 1970 in the column's unit."""
    if column.kind == "date":
        dates = _dates(values, place)
        counted = (dates - pd.Timestamp(0)) / pd.Timedelta(1, column.unit)
        return counted.to_numpy(np.float64)
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = numbers.isna() & values.notna()
    if wrong.any():
        row = wrong.to_numpy().argmax()
        raise TableError(
            f"{place}, row {row}: {values.iloc[row]!r} is no number; correct it, or set the kind to category"
        )
    array = numbers.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(array).any():
        raise TableError(f"{place}, row {np.isinf(array).argmax()}: infinite; give a finite value, or an empty cell")
    return array


def _cells(numbers: NDArray[np.float64], gaps: NDArray[np.bool_] | None, column: Column) -> pd.Series:
    """A numerical column's cells of the table's own type."""
    gaps = np.zeros(len(numbers), dtype=bool) if gaps is None else gaps
    if column.kind == "number":
        values = pd.Series(np.where(gaps, np.nan, numbers))
        return values.astype(column.dtype) if pd.api.types.is_float_dtype(column.dtype) else values
    whole = pd.Series(np.rint(numbers).astype(np.int64)).astype("Int64").mask(gaps)
    if column.kind == "integer":
        # A float column of integers has gaps in the file alone; as floats they would be written with a point.
        return whole.astype(column.dtype) if pd.api.types.is_integer_dtype(column.dtype) else whole
    dates = pd.Timestamp(0) + pd.to_timedelta(whole.astype("float64"), unit=column.unit)
    if column.text_format is None:
        return dates.astype(column.dtype)
    return dates.dt.strftime(column.text_format).where(~pd.Series(gaps), None)


def _texts(values: pd.Series) -> NDArray:
    """Categories as text; whole floats, which are integers beside gaps, without a point."""
    if pd.api.types.is_float_dtype(values.dtype) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    present = values.notna().to_numpy()
    texts = np.full(len(values), GAP, dtype=object)
    texts[present] = values[present].astype(str).to_numpy(dtype=object)
    return texts


def _categories(texts: NDArray, column: Column) -> pd.Series:
    """A categorical column's cells of the table's own type, from text."""
    values = pd.Series(np.asarray(texts, dtype=object))
    gaps = values == GAP
    values = values.mask(gaps, None)
    kind = pd.api.types.pandas_dtype("object" if column.dtype == "category" else column.dtype)
    if pd.api.types.is_bool_dtype(kind):
        values = values.map({"True": True, "False": False, None: None})
        return values.astype("boolean" if gaps.any() else kind)
    if pd.api.types.is_numeric_dtype(kind):
        numbers = pd.to_numeric(values)
        if (numbers.dropna() % 1 == 0).all():
            return numbers.astype("Int64" if pd.api.types.is_float_dtype(kind) or gaps.any() else kind)
        return numbers.astype(kind)
    return values.astype(column.dtype) if column.dtype != "object" else values
