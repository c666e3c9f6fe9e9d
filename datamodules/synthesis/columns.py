"""Columns of the user's own table: their kinds, inferred or told, and the way to a model's columns and back.

Gaps are something to be learnt too. In a column of categories they are a category of their own; a column of numbers or
dates that has gaps brings a column of categories along that says where, and takes its training median there.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.own_tables import TableError, nearest
from datamodules.synthesis.cells import (
    GAP,
    LARGEST,
    NUMERICAL,
    ZONED_DATE,
    CellError,
    Cells,
    Column,
    Kind,
    categories_of,
    cells_of,
    date_of,
    dates_of,
    numbers_of,
    plain,
    texts_of,
    told,
)
from datamodules.synthesis.preprocessing import Table, Task

log = logging.getLogger("genpred")

KINDS = {  # that suit a column, by what its cells are
    "truth": ("category",),
    "number": ("number", "integer", "category"),
    "date": ("date", "category"),
    "text": (*NUMERICAL, "category"),
}

MOST_INTEGER_CATEGORIES = 10  # an integer column of so many values or fewer is one of categories
MOST_CATEGORIES = 10_000
UNITS = {10: "D", 16: "m", 19: "s"}  # by the length of a date's text; of longer ones "us"


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
                raise TableError(f"{place}: there is no column {name!r}.{nearest(name, frame.columns)}")
        for name, kind in kinds.items():
            if kind not in get_args(Kind):
                raise TableError(f"{told(name, kind)}: choose one of {', '.join(get_args(Kind))}")
        dtype = frame[target].dtype
        is_number = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)
        if task == "regression" and target not in kinds and is_number:
            kinds = {**kinds, target: "integer" if _are_whole(frame[target].dropna()) else "number"}
        columns = tuple(
            _column(
                frame[name],
                kinds.get(name),
                f"{place}: column {name}",
                is_target=name == target,
                is_class=name == target and task != "regression",
            )
            for name in frame.columns
            if kinds.get(name) != "drop"
        )
        found = {column.name: column for column in columns}
        if target not in found:
            raise TableError(f"{place}: the target {target!r} cannot be dropped")
        for column in columns:
            if column.mask in found and column.name != target:
                raise TableError(
                    f"{place}: column {column.name!r} has gaps, and a column that says where would have the name of "
                    f"column {column.mask!r}: rename one of the two"
                )
        if task is None:
            classes = frame[target].nunique()
            task = "regression" if found[target].kind != "category" else "binclass" if classes == 2 else "multiclass"
        if (task == "regression") != (found[target].kind in ("number", "integer")):
            suitable = "number" if task == "regression" else "category"
            if found[target].kind == "date":
                raise TableError(
                    f"{place}: the target {target!r} is of dates, which cannot be predicted: convert it to numbers, "
                    "such as days since a date, or name another data.target"
                )
            raise TableError(
                f"{place}: the target {target!r} is of kind {found[target].kind}, which does not suit "
                f"data.table_task={task}; set another task, or {told(target, suitable)}"
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
        masks = [column.mask for column in self.features if column.mask is not None]
        return (*(column.name for column in self.features if column.kind == "category"), *masks)

    def mask_of(self, name: str) -> str | None:
        """Name of the column of ``X_cat`` that says where numerical column `name` has gaps; None if it has none."""
        return next((column.mask for column in self.features if column.name == name), None)

    def with_fills(self, frame: pd.DataFrame) -> "OwnColumns":
        """The same columns, where the medians of these rows, those of the training part, stand in gaps."""
        columns = (
            column if column.mask is None else replace(column, fill=_fill(self._array(frame, column), column))
            for column in self.columns
        )
        return replace(self, columns=tuple(columns))

    def target_values(self, frame: pd.DataFrame) -> NDArray:
        """The target of some rows: [row] classes as text, or float64.

        Raises:
            TableError: a cell is not of its column's kind.
        """
        column = next(column for column in self.columns if column.name == self.target)
        if column.kind == "category":
            return texts_of(frame[column.name], column)
        return self._array(frame, column)

    def table(self, frame: pd.DataFrame) -> Table:
        """Arrays of some rows.

        Raises:
            TableError: a cell is not of its column's kind.
        """
        numbers, categories, masks = [], [], []
        for column in self.features:
            if column.kind == "category":
                categories.append(texts_of(frame[column.name], column))
                continue
            array = self._array(frame, column)
            gaps = np.isnan(array)
            if column.has_gaps:
                masks.append(np.where(gaps, "yes", "no").astype(object))
            numbers.append(np.where(gaps, column.fill, array))
        return Table(
            np.column_stack(numbers) if numbers else None,
            np.column_stack([*categories, *masks]) if categories or masks else None,
            self.target_values(frame),
        )

    def frame(self, table: Table) -> pd.DataFrame:
        """Rows with the columns, types and gaps of the training table."""
        numbers = {} if table.X_num is None else dict(zip(self.numerical, table.X_num.T, strict=True))
        texts = {} if table.X_cat is None else dict(zip(self.categorical, table.X_cat.T, strict=True))
        (numbers if self.task == "regression" else texts)[self.target] = table.y
        columns = {}
        for column in self.columns:
            if column.kind == "category":
                columns[column.name] = categories_of(texts[column.name], column)
            else:
                mask = None if column.name == self.target else column.mask
                gaps = np.zeros(len(table.y), dtype=bool) if mask is None else texts[mask] == "yes"
                columns[column.name] = cells_of(numbers[column.name], gaps, column)
        return pd.DataFrame(columns)

    def value(self, name: str, value: Any) -> Any:
        """A value that a column is to have, as its array holds it.

        Raises:
            ValueError: it is not of the column's kind: no number, not whole, too large, no date, or finer than the
                column's dates.
        """
        column = next((each for each in self.columns if each.name == name), None)
        if column is None or column.kind == "category":
            return value
        try:
            number = float(numbers_of(pd.Series([value]), column)[0])
        except CellError as error:
            raise ValueError(f"{name}={value!r}: {error}") from error
        if column.kind != "number":
            return number
        with np.errstate(over="ignore"):
            own = float(self._cell(column, number))  # as a column of float32 has it
        return own if np.isfinite(own) else number

    def shown(self, name: str, number: np.number) -> str:
        """A number of a numerical column's array as text for a message: a date as the table has it."""
        cell = self._cell(next(each for each in self.columns if each.name == name), number)
        return plain(cell) if isinstance(cell, int | float | np.number) else str(cell)

    def _cell(self, column: Column, number: float) -> Any:
        """A number of a numerical column's array as a cell of the table."""
        return cells_of(np.array([number]), np.zeros(1, dtype=bool), column).iloc[0]

    def state_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a checkpoint."""
        return asdict(self) | {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo `state_dict`.

        Raises:
            ValueError: the state was written by another version of the program.
        """
        try:
            return cls(**state | {"columns": tuple(Column(**column) for column in state["columns"])})
        except TypeError as error:
            raise ValueError(f"columns were written by another version of the program: {error}") from error

    def _array(self, frame: pd.DataFrame, column: Column) -> NDArray[np.float64]:
        """A numerical column of some rows: [row], NaN for gaps."""
        return _checked_numbers(frame[column.name], column, f"{self.place}: column {column.name}")


def _column(values: pd.Series, kind: Kind | None, place: str, is_target: bool, is_class: bool) -> Column:
    """A column's kind and what has to be known of it."""
    name, drop = values.name, f"leave it out with {told(values.name, 'drop')}"
    gaps = values.isna()
    if gaps.all():
        raise TableError(f"{place} has no value at all: " + ("name another data.target" if is_target else drop))
    present = values[~gaps]
    is_categorical = isinstance(values.dtype, pd.CategoricalDtype)
    contents = pd.Series(values.cat.categories) if is_categorical else present
    cells = _contents(contents, place, drop)
    if kind is None:
        kind = "category" if is_categorical else _inferred(present, cells)
        # A numerical target of two values, such as 0 and 1, is one of classes.
        if is_class and kind == "number" and present.nunique() == 2:
            kind = "category"
    suitable = ("category",) if is_categorical else KINDS[cells]
    if kind not in suitable:
        what = {"truth": "truth values", "number": "numbers", "date": "dates", "text": "text"}[cells]
        raise TableError(
            f"{place} is of type {values.dtype} with {what}, which kind {kind} does not suit; tell "
            f"{' or '.join(told(name, each) for each in suitable)}, or convert it"
        )
    column = Column(name, kind, str(contents.dtype), cells, bool(gaps.any()))
    if kind == "category":
        counts = present.value_counts()
        count = int((counts > 0).sum())
        if count > MOST_CATEGORIES or (count == len(present) > MOST_INTEGER_CATEGORIES):
            # Of a CSV file, numbers with leading zeros are text.
            are_numbers = cells == "text" and bool(pd.to_numeric(present, errors="coerce").notna().all())
            commas = cells == "text" and bool(present.astype(str).str.fullmatch(r"\s*[+-]?[0-9]+,[0-9]+\s*").all())
            raise TableError(
                f"{place} has {count} categories in {len(present)} rows: it looks like a key or a text, which cannot "
                f"be learnt; {drop}"
                + (f", or take it for numbers with {told(name, 'number')}" if are_numbers else "")
                + (", or write its decimals with a point" if commas else "")
            )
        once = int((counts == 1).sum())
        if cells == "text" and count > MOST_INTEGER_CATEGORIES and 2 * once > len(present):
            log.warning(
                "%s: %d of its %d texts stand in one row only, and synthetic rows will repeat them to the letter: "
                "%s if they tell of persons",
                place, once, count, drop,
            )  # fmt: skip
        column = replace(column, whole=cells == "number" and _are_whole(contents))
        texts = texts_of(contents, column)
        if (texts == GAP).any():
            raise TableError(f"{place} has the category {GAP!r}, which is what gaps are called: rename it, or empty it")
        if is_categorical:
            column = replace(column, categories=tuple(texts.tolist()), ordered=bool(values.cat.ordered))
        return column
    if kind == "date":
        column = replace(column, **_date_form(present, cells))
    return replace(column, fill=_fill(_checked_numbers(values, column, place), column))


def _contents(values: pd.Series, place: str, drop: str) -> Cells:
    """What values are, none of them missing."""
    dtype, types = values.dtype, pd.api.types
    if isinstance(dtype, pd.DatetimeTZDtype):
        raise TableError(
            f"{place} has dates with time zones: convert them to one zone and leave the zone out, or {drop}"
        )
    if types.is_bool_dtype(dtype):
        return "truth"
    if types.is_integer_dtype(dtype) or types.is_float_dtype(dtype):
        return "number"
    if types.is_datetime64_dtype(dtype):
        return "date"
    # Files of Arrow have truth values with gaps, and days, as objects.
    found = {"boolean": "truth", "date": "date", "string": "text"}.get(types.infer_dtype(values, skipna=False))
    if found is None or not (types.is_object_dtype(dtype) or isinstance(dtype, pd.StringDtype)):
        classes = ", ".join(sorted({type(value).__name__ for value in values}))
        raise TableError(
            f"{place} holds values of type {classes}, which cannot be learnt; {drop}, or save it as numbers, truth "
            f"values, dates or text"
        )
    return found


def _inferred(present: pd.Series, cells: Cells) -> Kind:
    """Kind of a column by its values, none missing."""
    if cells == "number":
        if not _are_whole(present):
            return "number"
        return "category" if present.nunique() <= MOST_INTEGER_CATEGORIES else "integer"
    if cells == "text" and all(_looks_like_date(text) for text in present.unique()):
        return "date"
    return "date" if cells == "date" else "category"


def _are_whole(numbers: pd.Series) -> bool:
    """Whether numbers, none missing, are integers; floats beyond 2**53 do not count as such."""
    if pd.api.types.is_integer_dtype(numbers.dtype):
        return True
    array = numbers.to_numpy(np.float64)
    return bool(((np.rint(array) == array) & (np.abs(array) <= LARGEST)).all())


def _fill(numbers: NDArray[np.float64], column: Column) -> float:
    """Median of numbers, NaN for gaps; what the column has for it already if all are missing."""
    if np.isnan(numbers).all():
        return column.fill
    median = float(np.nanmedian(numbers))
    return median if column.kind == "number" else float(round(median))


def _date_form(present: pd.Series, cells: Cells) -> dict[str, Any]:
    """Unit and form of dates; texts of several forms get that of the longest."""
    if cells == "text":
        form = re.sub("[0-9]", "0", max(present, key=len))
        return {"unit": UNITS.get(len(form), "us"), "text_form": form}
    dates = dates_of(present)
    exact = [unit for unit in ("D", "s", "us") if (dates.astype(f"datetime64[{unit}]") == dates).all()]
    return {"unit": exact[0]}


def _looks_like_date(text: str) -> bool:
    """Whether a text is a date; one with a zone is refused where it is read, and not taken for a category."""
    zoned = ZONED_DATE.fullmatch(text)
    return not np.isnat(date_of(zoned[1] if zoned else text))


def _checked_numbers(values: pd.Series, column: Column, place: str) -> NDArray[np.float64]:
    """`_numbers` of a table.

    Raises:
        TableError: a cell is not of the column's kind.
    """
    try:
        return numbers_of(values, column)
    except CellError as error:
        raise TableError(f"{place}, row {values.index[error.row]}: {error}; {error.remedy}") from error
