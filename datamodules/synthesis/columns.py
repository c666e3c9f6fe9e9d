"""Columns of the user's own table: their kinds, inferred or told, and the way to a model's columns and back.

Gaps are something to be learnt too. In a column of categories they are a category of their own; a column of numbers or
dates that has gaps brings a column of categories along that says where, and takes its training median there.
"""

import datetime
import difflib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.sources import SourceError
from datamodules.synthesis.preprocessing import Table, Task

Kind = Literal["number", "integer", "date", "category", "drop"]
Cells = Literal["truth", "number", "date", "text"]
NUMERICAL = ("number", "integer", "date")
KINDS = {  # that suit a column, by what its cells are
    "truth": ("category",),
    "number": ("number", "integer", "category"),
    "date": ("date", "category"),
    "text": (*NUMERICAL, "category"),
}

MOST_INTEGER_CATEGORIES = 10  # an integer column of so many values or fewer is one of categories
MOST_CATEGORIES = 10_000
LARGEST = 2**53  # up to here float64 holds every integer
GAP = "(missing)"  # what a gap is called among categories

DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
CLOCK = r"[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?"
DATE = re.compile(f"{DAY}({CLOCK})?")
ZONED_DATE = re.compile(f"({DAY}{CLOCK}) ?(Z|[+-][0-9]{{2}}(:?[0-9]{{2}})?)")
UNITS = {10: "D", 16: "m", 19: "s"}  # by the length of a date's text; of longer ones "us"
UNIT_NAMES = {"D": "days", "m": "minutes", "s": "seconds", "us": "microseconds"}


class TableError(SourceError):
    """A table that cannot be used; the message names the file, the column, the row where there is one, and a remedy."""

    def __init__(self, message: str) -> None:
        # Names of columns, and messages of pandas and scikit-learn, may have line breaks in them.
        super().__init__(" ".join(message.split()))


class _CellError(ValueError):
    """A cell that is not of its column's kind; the message says what it is."""

    def __init__(self, row: int, what: str, remedy: str) -> None:
        super().__init__(what)
        self.row, self.remedy = row, remedy


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: as in the file.
        kind: "number", "integer", "date" or "category".
        dtype: pandas' name of its type in the table; of a Categorical, that of its categories.
        cells: what they are: "truth", "number", "date" (by type) or "text".
        has_gaps: whether rows lack it.
        fill: what stands in a gap of a numerical column.
        unit: in which a date is counted, "D", "m", "s" or "us".
        text_form: of a date that the table holds as text, such as "0000-00-00 00:00"; None: a date by type.
        whole: all of its categories are whole numbers, which are written without a point.
        categories: of a Categorical, in its order, as text; None: another type.
        ordered: a Categorical's order is one of rank.
    """

    name: str
    kind: Kind
    dtype: str
    cells: Cells
    has_gaps: bool = False
    fill: float = 0.0
    unit: str = "s"
    text_form: str | None = None
    whole: bool = False
    categories: tuple[str, ...] | None = None
    ordered: bool = False

    @property
    def mask(self) -> str | None:
        """Name of the column of categories that says where this numerical one has gaps; None: it has none."""
        return f"{self.name} {GAP}" if self.has_gaps and self.kind in NUMERICAL else None


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
                raise TableError(f"{told(name, kind)}: choose one of {', '.join(get_args(Kind))}")
        dtype = frame[target].dtype
        is_number = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)
        if task == "regression" and target not in kinds and is_number:
            kinds = {**kinds, target: "integer" if _are_whole(frame[target].dropna()) else "number"}
        columns = tuple(
            _column(frame[name], kinds.get(name), f"{place}: column {name}", name == target and task != "regression")
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
            return _texts(frame[column.name], column)
        return self._array(frame, column)

    def table(self, frame: pd.DataFrame) -> Table:
        """Arrays of some rows.

        Raises:
            TableError: a cell is not of its column's kind.
        """
        numbers, categories, masks = [], [], []
        for column in self.features:
            if column.kind == "category":
                categories.append(_texts(frame[column.name], column))
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
                columns[column.name] = _categories(texts[column.name], column)
            else:
                mask = None if column.name == self.target else column.mask
                gaps = np.zeros(len(table.y), dtype=bool) if mask is None else texts[mask] == "yes"
                columns[column.name] = _cells(numbers[column.name], gaps, column)
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
            return float(_numbers(pd.Series([value]), column)[0])
        except _CellError as error:
            raise ValueError(f"{name}={value!r}: {error}") from error

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


def told(name: str, kind: str) -> str:
    """How the command line tells a column's kind."""
    if name.isidentifier():
        return f"data.columns.{name}={kind}"
    return shlex.quote(f"data.columns={{{json.dumps(name, ensure_ascii=False)}: {kind}}}")


def _column(values: pd.Series, kind: Kind | None, place: str, is_class: bool) -> Column:
    """A column's kind and what has to be known of it."""
    name, drop = values.name, f"leave it out with {told(values.name, 'drop')}"
    gaps = values.isna()
    if gaps.all():
        raise TableError(f"{place} has no value at all: {drop}")
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
        count = present.nunique()
        if count > MOST_CATEGORIES or (count == len(values) > MOST_INTEGER_CATEGORIES):
            raise TableError(
                f"{place} has {count} categories in {len(values)} rows: it looks like a key or a text, which cannot be "
                f"learnt; {drop}"
            )
        column = replace(column, whole=cells == "number" and _are_whole(contents))
        texts = _texts(contents, column)
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
    dates = _dates(present)
    exact = [unit for unit in ("D", "s", "us") if (dates.astype(f"datetime64[{unit}]") == dates).all()]
    return {"unit": exact[0]}


def _looks_like_date(text: str) -> bool:
    """Whether a text is a date; one with a zone is refused where it is read, and not taken for a category."""
    zoned = ZONED_DATE.fullmatch(text)
    return not np.isnat(_date(zoned[1] if zoned else text))


def _date(text: str) -> np.datetime64:
    """An ISO date without a zone, to the microsecond; NaT if a text is none."""
    try:
        return np.datetime64(text[:26] if DATE.fullmatch(text) else "NaT", "us")
    except ValueError:
        return np.datetime64("NaT", "us")


def _dates(values: pd.Series) -> NDArray[np.datetime64]:
    """Dates to the microsecond, NaT for gaps: numpy's, for pandas may stop at the year 2262.

    Raises:
        _CellError: there is something else.
    """
    if pd.api.types.is_datetime64_dtype(values.dtype):
        return values.to_numpy().astype("datetime64[us]")
    codes, texts = pd.factorize(values)
    dates = np.array([*(_date(str(text)) for text in texts), "NaT"], dtype="datetime64[us]")
    wrong = np.flatnonzero(np.isnat(dates[:-1]))
    if len(wrong):
        text = str(texts[wrong[0]])
        row = int((codes == wrong[0]).argmax())
        if ZONED_DATE.fullmatch(text):
            raise _CellError(row, f"{text!r} has a time zone", "convert all to one zone and leave the zone out")
        raise _CellError(row, f"{text!r} is no ISO date such as 2020-12-31 23:59:59", "correct it, or set another kind")
    return dates[codes]  # a gap's code is -1


def _numbers(values: pd.Series, column: Column) -> NDArray[np.float64]:
    """A numerical column's cells as float64, NaN for gaps; dates counted from 1970 in the column's unit.

    Raises:
        _CellError: a cell is not of the column's kind.
    """
    rows = np.flatnonzero(values.notna())

    def refuse(wrong: Any, what: str, remedy: str) -> None:
        wrong = np.asarray(wrong, dtype=bool)
        if wrong.any():
            value = values.iloc[rows[wrong.argmax()]]
            shown = repr(value) if isinstance(value, str) else str(value)
            raise _CellError(int(rows[wrong.argmax()]), f"{shown} {what}", remedy)

    drop = f"leave the column out with {told(column.name, 'drop')}"
    as_category = f"take its values for categories with {told(column.name, 'category')}"
    if column.kind == "date":
        dates = _dates(values)[rows]
        counted = dates.astype(f"datetime64[{column.unit}]")
        refuse(counted != dates, f"is finer than the column's {UNIT_NAMES[column.unit]}", "round it")
        numbers = pd.Series(counted.astype(np.int64))
        too_large = "lies too far from 1970 to be counted in microseconds", f"round the dates to seconds, or {drop}"
    else:
        numbers = pd.to_numeric(values.iloc[rows], errors="coerce")
        refuse(numbers.isna(), "is no number", f"correct it, or {as_category}")
        array = numbers.to_numpy(np.float64)
        refuse(np.isinf(array), "is infinite", "give a finite value, or an empty cell")
        if column.kind == "integer":
            refuse(np.rint(array) != array, "is not whole", f"correct it, or tell {told(column.name, 'number')}")
        too_large = "is beyond 2**53, where integers are not exact", f"{drop}, or {as_category}"
    if column.kind != "number":
        refuse((numbers > LARGEST) | (numbers < -LARGEST), *too_large)
    array = np.full(len(values), np.nan)
    array[rows] = numbers.to_numpy(np.float64)
    return array


def _checked_numbers(values: pd.Series, column: Column, place: str) -> NDArray[np.float64]:
    """`_numbers` of a table.

    Raises:
        TableError: a cell is not of the column's kind.
    """
    try:
        return _numbers(values, column)
    except _CellError as error:
        raise TableError(f"{place}, row {error.row}: {error}; {error.remedy}") from error


def _cells(numbers: NDArray[np.float64], gaps: NDArray[np.bool_], column: Column) -> pd.Series:
    """A numerical column's cells of the table's own type."""
    if column.kind == "number":
        is_float = pd.api.types.is_float_dtype(column.dtype)
        return pd.Series(np.where(gaps, np.nan, numbers)).astype(column.dtype if is_float else "float64")
    if column.kind == "integer":
        if pd.api.types.is_float_dtype(column.dtype):
            return pd.Series(np.where(gaps, np.nan, np.rint(numbers))).astype(column.dtype)
        dtype = column.dtype if pd.api.types.is_integer_dtype(column.dtype) else "Int64"
        limits = np.iinfo(dtype.lower())  # a target may lie beyond those of the training part
        whole = np.clip(np.rint(numbers), max(limits.min, -LARGEST), min(limits.max, LARGEST)).astype(np.int64)
        return pd.Series(whole).astype("Int64").mask(gaps).astype(dtype)
    dates = np.rint(numbers).astype(np.int64).astype(f"datetime64[{column.unit}]")
    dates[gaps] = np.datetime64("NaT")
    if column.text_form is not None:
        between, length = column.text_form[10:11], len(column.text_form)
        texts = np.datetime_as_string(dates.astype("datetime64[us]"))
        cells = [None if gap else text[:length].replace("T", between) for text, gap in zip(texts, gaps, strict=True)]
        return pd.Series(cells, dtype=column.dtype)
    if column.dtype == "object":
        return pd.Series(dates.astype("datetime64[D]").astype(object), dtype=object)
    return pd.Series(dates.astype("datetime64[us]")).astype(column.dtype)


def _texts(values: pd.Series, column: Column) -> NDArray:
    """Categories as text, each by itself: it depends on no other row; gaps are `GAP`."""
    present = values.notna().to_numpy()
    cells = values[present]
    if column.cells == "number" and not column.whole:
        cells = cells.astype(column.dtype)
    cells = (cells.astype(object) if column.cells == "date" else cells).to_numpy()
    texts = np.full(len(values), GAP, dtype=object)
    if column.whole and cells.dtype.kind == "f":
        texts[present] = [str(int(cell)) if cell.is_integer() else str(cell) for cell in cells]
    else:
        texts[present] = [str(cell) for cell in cells]
    return texts


def _categories(texts: NDArray, column: Column) -> pd.Series:
    """A categorical column's cells of the table's own type, from text."""
    if column.categories is not None:
        known = _categories(np.array(column.categories, dtype=object), replace(column, categories=None))
        codes = pd.Index(column.categories, dtype=object).get_indexer(np.asarray(texts, dtype=object))
        return pd.Series(pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(known, column.ordered)))
    cells = [None if text == GAP else _category(text, column) for text in texts]
    return pd.Series(cells, dtype=column.dtype)


def _category(text: str, column: Column) -> Any:
    """A category's value, from its text."""
    if column.cells == "truth":
        return text == "True"
    if column.cells == "number":
        return int(text) if column.whole else float(text)
    if column.cells == "date":
        return datetime.date.fromisoformat(text) if column.dtype == "object" else pd.Timestamp(text)
    return text
