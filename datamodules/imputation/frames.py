"""CSV and Parquet files as columns: read as numbers, written back with the gaps filled and nothing else touched.

The cells of a CSV file stay text and those of a Parquet file keep their type, so that what is written back is what was
read, to the last bit.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from datamodules.own_tables import TableError

TimeUnit = Literal["second", "minute", "hour", "day"]
MICROSECONDS: dict[TimeUnit, int] = {"second": 10**6, "minute": 60 * 10**6, "hour": 3600 * 10**6, "day": 86400 * 10**6}
# How a cell of text says that its value is missing; blanks around it do not matter.
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "None", "null", "NULL")
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
INFINITE = r"(?i)^[+-]?inf(inity)?$"
FINER = "finer than a microsecond: round the stamps to microseconds"
NOT_NUMBERS = (
    "; write decimals with a point and leave cells empty where a value is missing, or name the variables without this "
    "column: data.variables=[...]"
)
UNREADABLE = "\ufffd"  # stands for bytes that are not UTF-8
PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # pandas' name for an index without a name


class Frame:
    """A CSV or Parquet file.

    Args:
        path: the file, for messages.
        table: its columns; those of a CSV file are text without nulls.
        separator: between the cells of a CSV file; None for Parquet.
    """

    def __init__(self, path: Path, table: pa.Table, separator: str | None) -> None:
        self.path, self.table, self.separator = path, table, separator

    def place(self, row: int, column: str) -> str:
        """Where a cell is: the line of a text file counts its header, both count from 1."""
        if self.separator is None:
            return f"{self.path}, row {row + 1}, column '{column}'"
        return f"{self.path}, line {self._line(row)}, column '{column}'"

    def numbers(self, name: str, hint: str = NOT_NUMBERS) -> NDArray[np.float64]:
        """A column as float64 [row], NaN where missing.

        Raises:
            TableError: a cell holds text or an infinity, with ``hint`` at the end; or the column holds no numbers.
        """
        column = _decoded(self.table.column(name))
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            text = pc.utf8_trim_whitespace(column)
            missing = pc.is_in(text, value_set=pa.array([*MISSING, None], column.type))
            infinite = pc.match_substring_regex(text, INFINITE)
            self._refuse(infinite, name, lambda row: "an infinite number; leave the cell empty if the value is missing")
            valid = pc.or_kleene(missing, pc.match_substring_regex(text, NUMBER))
            self._refuse(
                pc.invert(valid), name, lambda row: f"{column[row].as_py()!r} stands where a number belongs{hint}"
            )
            column = pc.if_else(missing, pa.scalar(None, column.type), text)
        elif not (
            pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)
        ):
            raise TableError(f"{self.path}, column '{name}' is of type {column.type}, not of numbers{hint}")
        numbers = pc.fill_null(pc.cast(column, pa.float64(), safe=False), np.nan).to_numpy()
        self._refuse(np.isinf(numbers), name, lambda row: "an infinite number; leave it empty if the value is missing")
        return numbers

    def stamps(self, name: str, unit: TimeUnit | None) -> NDArray[np.float64] | NDArray[np.int64]:
        """A column of time stamps [row]: numbers as they are (no unit), dates in microseconds since 1970 in UTC.

        Raises:
            TableError: a stamp is missing, negative, or not of the kind that the unit announces.
        """
        column = _decoded(self.table.column(name))
        if unit is None:
            numbers = self.numbers(name, "; for dates name the unit to count in, such as data.time_unit=hour")
            self._refuse(np.isnan(numbers), name, lambda row: "the time stamp is missing")
            self._refuse(
                numbers < 0,
                name,
                lambda row: f"the time stamp {numbers[row]:g} is negative; count from an earlier moment",
            )
            return numbers
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            raise TableError(f"{self.path}, column '{name}' holds numbers, not dates: leave data.time_unit out")
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            # Days become moments first; a time zone is only how a moment is shown.
            moments = pc.cast(column, pa.timestamp("us", getattr(column.type, "tz", None)), safe=False)
            self._refuse(pc.is_null(moments), name, lambda row: "the time stamp is missing")
            if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
                finer = pc.not_equal(pc.cast(moments, column.type, safe=False), column)
                self._refuse(finer, name, lambda row: f"{column[row]} is {FINER}")
            return pc.cast(moments, pa.int64()).to_numpy()
        texts = pd.Series(column.to_pylist(), dtype=object)
        # "now" and "today", which pandas understands, are no moments.
        texts = texts.where(texts.astype(str).str.match(r"\s*[+-]?\d"))
        dates = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
        self._refuse(
            dates.isna().to_numpy(), name, lambda row: f"{column[row].as_py()!r} is not a date such as 2026-03-31T14:05"
        )
        moments = dates.dt.tz_localize(None).to_numpy()
        whole = moments.astype("datetime64[us]")
        self._refuse(whole != moments, name, lambda row: f"{column[row].as_py()!r} is {FINER}")
        return whole.astype(np.int64)

    def keys(self, name: str, what: str) -> tuple[NDArray[np.int64], list[str]]:
        """A column of names as codes int64 [row] and the distinct names in the order in which they appear.

        Raises:
            TableError: a cell is empty; ``what`` says what is missing there.
        """
        column = _decoded(self.table.column(name))
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        self._refuse(pc.is_null(column, nan_is_null=True), name, lambda row: f"the {what} is missing")
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            self._refuse(pc.equal(pc.utf8_trim_whitespace(column), ""), name, lambda row: f"the {what} is missing")
        try:
            encoded = column.dictionary_encode()
        except pa.ArrowNotImplementedError as error:
            raise TableError(
                f"{self.path}, column '{name}' is of type {column.type}, which is no {what}: save text or whole numbers"
            ) from error
        return encoded.indices.to_numpy().astype(np.int64), [str(each) for each in encoded.dictionary.to_pylist()]

    def filled(self, name: str, missing: NDArray[np.bool_], values: NDArray[np.float64]) -> pa.Array:
        """A column with its missing cells filled; the others are not touched.

        The type stays, except that whole numbers become float64 where a filled value is not whole.

        Args:
            name: the column.
            missing: bool [row].
            values: [row], read where missing.

        Raises:
            TableError: a filled value is beyond the range of the column's type, or is not whole where an observed one
                is too large to stand beside it.
        """
        if not missing.any():
            return self.table.column(name)
        column = _decoded(self.table.column(name))
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        new = values[missing]
        if pa.types.is_null(column.type):
            column = column.cast(pa.float64())
        elif pa.types.is_integer(column.type) and not _fit(new, column.type):
            numbers = column.cast(pa.float64(), safe=False)
            changed = pc.not_equal(numbers.cast(column.type, safe=False), column)
            self._refuse(
                changed,
                name,
                lambda row: (
                    f"{column[row].as_py()} would lose digits beside filled values that are not of type "
                    f"{column.type}; save the column as float64"
                ),
            )
            column = numbers
        new = pa.array(new).cast(column.type, safe=False)
        if pa.types.is_floating(column.type) and not pc.all(pc.is_finite(new)).as_py():
            raise TableError(
                f"{self.path}, column '{name}' of type {column.type} cannot hold a filled value; save float64"
            )
        return pc.replace_with_mask(column, pa.array(missing), new)

    def write(self, file: BinaryIO, columns: Mapping[str, pa.Array]) -> None:
        """Write the file again, with these columns in place of those of the same name, or behind the others.

        Args:
            file: open for writing.
            columns: [row] each; in a CSV file numbers are written so that they are read back to the same number.
        """
        table = self.table
        arrays = dict(zip(table.column_names, table.columns, strict=True)) | columns
        fields = {field.name: field for field in table.schema}
        fields |= {name: fields.get(name, pa.field(name, pa.null())).with_type(columns[name].type) for name in columns}
        table = pa.table(list(arrays.values()), schema=pa.schema(list(fields.values()), table.schema.metadata))
        if self.separator is None:
            pa.parquet.write_table(_with_pandas_types(table, self.table.schema), file)
            return
        with self.path.open("rb") as original:
            start = original.read(2**16)
        text = io.TextIOWrapper(file, "utf-8-sig" if start.startswith(b"\xef\xbb\xbf") else "utf-8", newline="")
        ending = "\r\n" if b"\r\n" in start else "\n"
        writer = csv.writer(text, delimiter=self.separator, lineterminator=ending)
        writer.writerow(table.column_names)
        for part in table.to_batches(max_chunksize=2**14):
            writer.writerows(zip(*(column.to_pylist() for column in part.columns), strict=True))
        text.detach()  # flushes, and leaves the file open

    def _refuse(self, wrong: pa.Array | NDArray[np.bool_], column: str, say: Callable[[int], str]) -> None:
        """Raise for the first row where ``wrong`` holds."""
        wrong = wrong if isinstance(wrong, np.ndarray) else pc.fill_null(wrong, False).to_numpy(zero_copy_only=False)
        if wrong.any():
            row = int(wrong.argmax())
            raise TableError(f"{self.place(row, column)}: {say(row)}")

    def _line(self, row: int) -> int:
        records = _records(self.path, self.separator)
        for _ in range(row + 2):
            line, _ = next(records)
        return line


def read_frame(path: Path, separator: str, columns: list[str] | None = None) -> Frame:
    """Read a ``.csv`` or ``.parquet`` file.

    Args:
        path: the file.
        separator: between the cells of a CSV file.
        columns: read these only.

    Raises:
        TableError: the file cannot be read, a line has too few or too many cells, or there are no rows.
    """
    names = read_names(path, separator)
    try:
        if path.suffix == ".parquet":
            frame = Frame(path, pa.parquet.read_table(path, columns=columns), None)
        else:
            table = pa.csv.read_csv(
                path,
                read_options=pa.csv.ReadOptions(block_size=2**26),
                parse_options=pa.csv.ParseOptions(
                    delimiter=separator, newlines_in_values=True, ignore_empty_lines=len(names) > 1
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), include_columns=columns, strings_can_be_null=False
                ),
            )
            frame = Frame(path, table, separator)
    except pa.ArrowInvalid as error:
        culprit = _culprit(path, separator, len(names)) if path.suffix == ".csv" else None
        raise TableError(culprit or f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise TableError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if frame.table.num_rows == 0:
        raise TableError(f"{path} has no rows")
    return frame


def read_names(path: Path, separator: str) -> list[str]:
    """Names of the columns of a ``.csv`` or ``.parquet`` file; reads its first line or its footer only.

    Raises:
        TableError: the file cannot be read, or a name is empty or stands twice.
    """
    try:
        if path.suffix == ".parquet":
            names = [name for name in pa.parquet.read_schema(path).names if not PANDAS_INDEX.fullmatch(name)]
        else:
            names = next(_records(path, separator), (0, []))[1]
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from error
    except (pa.ArrowInvalid, csv.Error) as error:
        kind = "a Parquet file" if path.suffix == ".parquet" else "CSV"
        raise TableError(f"{path} is not {kind}: {' '.join(str(error).split())}") from error
    if not names:
        raise TableError(f"{path} is empty")
    before: set[str] = set()
    for number, name in enumerate(names):
        if not name.strip():
            raise TableError(f"{path}, column {number + 1} has no name; pandas writes such a one without index=False")
        if name in before:
            raise TableError(f"{path}, column '{name}' stands twice in the header; rename one of them")
        before.add(name)
        if UNREADABLE in name:
            raise TableError(f"{path}, column '{name}': not UTF-8 text")
    return names


def _records(path: Path, separator: str) -> Iterable[tuple[int, list[str]]]:
    """The records of a CSV file, each with its last line; for the header and for messages only."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        width = 0
        for cells in reader:
            width = width or len(cells)
            if cells or width == 1:  # a blank line is a missing value if there is one column, else nothing
                yield reader.line_num, cells or [""]


def _culprit(path: Path, separator: str, width: int) -> str | None:
    """What is wrong with which line of a CSV file; None where it does not show."""
    try:
        for line, cells in _records(path, separator):
            if len(cells) != width:
                return f"{path}, line {line}: {len(cells)} cells, but the header has {width}"
            if any(UNREADABLE in cell for cell in cells):
                return f"{path}, line {line}: not UTF-8 text"
    except csv.Error as error:
        return f"{path} is not CSV: {error}; is there a quotation mark without a second one?"
    return None


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Plain values for dictionary codes (pandas' categories), and plain text for views of text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column


def _fit(values: NDArray[np.float64], integer: pa.DataType) -> bool:
    """Whether these numbers are whole and within the range of an integer type."""
    info = np.iinfo(integer.to_pandas_dtype())
    return bool(np.all((values == np.rint(values)) & (values >= info.min) & (values < float(info.max) + 1)))


def _with_pandas_types(table: pa.Table, before: pa.Schema) -> pa.Table:
    """The table with pandas' notes about its columns brought in line with those whose type has changed."""
    metadata = table.schema.metadata or {}
    changed = {name for name in before.names if table.schema.field(name).type != before.field(name).type}
    if b"pandas" not in metadata or not changed:
        return table
    notes = json.loads(metadata[b"pandas"])
    for note in notes["columns"]:
        if note["field_name"] in changed:
            kind = np.dtype(table.schema.field(note["field_name"]).type.to_pandas_dtype()).name
            note |= {"pandas_type": "unicode" if kind == "object" else kind, "numpy_type": kind, "metadata": None}
    return table.replace_schema_metadata({**metadata, b"pandas": json.dumps(notes).encode()})
