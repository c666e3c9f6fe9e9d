"""One column of the user's own table: its cells as numbers or texts, and back, exactly and in its own type."""

import datetime
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Kind = Literal["number", "integer", "date", "category", "drop"]
Cells = Literal["truth", "number", "date", "text"]
NUMERICAL = ("number", "integer", "date")
LARGEST = 2**53  # up to here float64 holds every integer
GAP = "(missing)"  # what a gap is called among categories

DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
CLOCK = r"[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?"
DATE = re.compile(f"{DAY}({CLOCK})?")
ZONED_DATE = re.compile(f"({DAY}{CLOCK}) ?(Z|[+-][0-9]{{2}}(:?[0-9]{{2}})?)")
UNIT_NAMES = {"D": "days", "m": "minutes", "s": "seconds", "us": "microseconds"}


class CellError(ValueError):
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


def told(name: str, kind: str) -> str:
    """How the command line tells a column's kind."""
    if name.isidentifier():
        return f"data.columns.{name}={kind}"
    return shlex.quote(f"data.columns={{{json.dumps(name, ensure_ascii=False)}: {kind}}}")


def date_of(text: str) -> np.datetime64:
    """An ISO date without a zone, to the microsecond; NaT if a text is none."""
    try:
        return np.datetime64(text[:26] if DATE.fullmatch(text) else "NaT", "us")
    except ValueError:
        return np.datetime64("NaT", "us")


def dates_of(values: pd.Series) -> NDArray[np.datetime64]:
    """Dates to the microsecond, NaT for gaps: numpy's, for pandas may stop at the year 2262.

    Raises:
        CellError: there is something else.
    """
    if pd.api.types.is_datetime64_dtype(values.dtype):
        return values.to_numpy().astype("datetime64[us]")
    codes, texts = pd.factorize(values)
    dates = np.array([*(date_of(str(text)) for text in texts), "NaT"], dtype="datetime64[us]")
    wrong = np.flatnonzero(np.isnat(dates[:-1]))
    if len(wrong):
        text = str(texts[wrong[0]])
        row = int((codes == wrong[0]).argmax())
        if ZONED_DATE.fullmatch(text):
            raise CellError(row, f"{text!r} has a time zone", "convert all to one zone and leave the zone out")
        raise CellError(row, f"{text!r} is no ISO date such as 2020-12-31 23:59:59", "correct it, or set another kind")
    return dates[codes]  # a gap's code is -1


def numbers_of(values: pd.Series, column: Column) -> NDArray[np.float64]:
    """A numerical column's cells as float64, NaN for gaps; dates counted from 1970 in the column's unit.

    Raises:
        CellError: a cell is not of the column's kind.
    """
    rows = np.flatnonzero(values.notna())

    def refuse(wrong: Any, what: str, remedy: str) -> None:
        wrong = np.asarray(wrong, dtype=bool)
        if wrong.any():
            value = values.iloc[rows[wrong.argmax()]]
            shown = repr(value) if isinstance(value, str) else str(value)
            raise CellError(int(rows[wrong.argmax()]), f"{shown} {what}", remedy)

    drop = f"leave the column out with {told(column.name, 'drop')}"
    as_category = f"take its values for categories with {told(column.name, 'category')}"
    if column.kind == "date":
        dates = dates_of(values)[rows]
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


def plain(number: Any) -> str:
    """A number as text, without needless digits; very large and very small ones with an exponent."""
    if number == 0 or 1e-5 <= abs(number) < 1e16:
        return np.format_float_positional(number, trim="-")
    return str(number)


def cells_of(numbers: NDArray[np.float64], gaps: NDArray[np.bool_], column: Column) -> pd.Series:
    """A numerical column's cells of the table's own type."""
    if column.kind == "number":
        is_float = pd.api.types.is_float_dtype(column.dtype)
        return pd.Series(np.where(gaps, np.nan, numbers)).astype(column.dtype if is_float else "float64")
    if column.kind == "integer":
        if pd.api.types.is_float_dtype(column.dtype):
            return pd.Series(np.where(gaps, np.nan, np.rint(numbers))).astype(column.dtype)
        dtype = pd.api.types.pandas_dtype(column.dtype if pd.api.types.is_integer_dtype(column.dtype) else "Int64")
        limits = np.iinfo(getattr(dtype, "numpy_dtype", dtype))  # a target may lie beyond those of the training part
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


def texts_of(values: pd.Series, column: Column) -> NDArray:
    """Categories as text, each by itself: it depends on no other row; gaps are `GAP`."""
    present = values.notna().to_numpy()
    cells = values[present]
    if column.cells == "number" and not column.whole:
        cells = cells.astype(column.dtype)
    cells = (cells.astype(object) if column.cells == "date" else cells).to_numpy()
    texts = np.full(len(values), GAP, dtype=object)
    if cells.dtype.kind == "f":
        cells = cells + 0.0  # without a negative zero, which is the same category
        name = (lambda cell: str(int(cell)) if cell.is_integer() else str(cell)) if column.whole else str
    else:
        name = str
    texts[present] = _each(cells, name)
    return texts


def categories_of(texts: NDArray, column: Column) -> pd.Series:
    """A categorical column's cells of the table's own type, from text."""
    if column.categories is not None:
        known = categories_of(np.array(column.categories, dtype=object), replace(column, categories=None))
        codes = pd.Index(column.categories, dtype=object).get_indexer(np.asarray(texts, dtype=object))
        return pd.Series(pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(known, column.ordered)))
    cells = _each(texts, lambda text: None if text == GAP else _category(text, column))
    return pd.Series(cells, dtype=column.dtype)


def _each(values: NDArray, function: Callable[[Any], Any]) -> NDArray:
    """An object array of what a function makes of each value [row]; it is called once for each distinct one."""
    codes, distinct = pd.factorize(values)
    made = np.empty(len(distinct), dtype=object)
    made[:] = [function(value) for value in distinct]
    return made[codes]


def _category(text: str, column: Column) -> Any:
    """A category's value, from its text."""
    if column.cells == "truth":
        return text == "True"
    if column.cells == "number":
        return int(text) if column.whole else float(text)
    if column.cells == "date":
        return datetime.date.fromisoformat(text) if column.dtype == "object" else pd.Timestamp(text)
    return text
