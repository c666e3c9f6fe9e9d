"""Tables of time series: CSV, Parquet and NPZ files in, series out, and the files again with their gaps filled.

Three ways to lay series out, named and never guessed:

* long (CSV, Parquet): a row a time step, with columns for the series' name, the time stamp and each variable;
* wide (CSV, Parquet): a row a series, with a column for its name and columns ``<variable>@<time>``, such as ``hr@0``,
  ``hr@1``, ``temp@0``; the times of all variables together are the time steps;
* NPZ: an array ``values`` [series, time, feature], NaN where missing, and optionally ``times`` ([time] or
  [series, time]; NaN behind the end of a shorter series), ``ids`` [series] and ``variables`` [feature]. Whatever else
  the file holds is handed through.

Rows may come in any order; files are written in the order in which they were read.
"""

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from datamodules.imputation.frames import FINER, MICROSECONDS, Frame, TimeUnit, read_frame, read_names
from datamodules.own_tables import TableError, nearest

SUFFIXES = (".csv", ".parquet", ".npz")


@dataclass(frozen=True)
class TableFormat:
    """How a file holds series; plain values only.

    Attributes:
        layout: "long" or "wide"; an NPZ file has neither.
        id_column: name of the series; None: the file is one series (long), or has no such column (wide).
        time_column: time stamps of the long layout; None: the steps 0, 1, 2, ... in the order of the rows.
        label_column: class of a series, or the NPZ array [series] of classes; None: no classes.
        time_unit: None for stamps that are numbers; else stamps are ISO dates, to be counted in this unit from each
            series' first.
        separator: between the cells of a CSV file.
        variables: the variables in their order; None: all columns that are neither of the above nor ignored.
        ignored: columns that are no variables (wide: their names up to the "@").
        closed: whether a column that is neither a variable nor ignored is an error; else it is ignored.
    """

    layout: Literal["long", "wide"] = "long"
    id_column: str | None = "id"
    time_column: str | None = "time"
    label_column: str | None = None
    time_unit: TimeUnit | None = None
    separator: str = ","
    variables: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()
    closed: bool = False

    def without_labels(self, closed: bool) -> "TableFormat":
        """The format of files in which a class may stand, but need not, and is not read."""
        label = () if self.label_column is None else (self.label_column,)
        return replace(self, label_column=None, ignored=(*self.ignored, *label), closed=closed)


@dataclass(frozen=True)
class Series:
    """Series of any lengths, one behind the other, each in the order of time.

    Attributes:
        values: float64 [row, variable], NaN where missing.
        times: float64 [row], since the first stamp of the series, in the unit of the stamps.
        offsets: int64 [series + 1]: series k has the rows from offsets[k] to offsets[k + 1].
        ids: names of the series.
        classes: names of the classes; empty without labels.
        labels: int64 [series], numbers of the classes; 0 without labels.
    """

    values: NDArray[np.float64]
    times: NDArray[np.float64]
    offsets: NDArray[np.int64]
    ids: list[str]
    classes: list[str]
    labels: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [series], rows of each."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class FrameTable:
    """A CSV or Parquet file and its series.

    Attributes:
        frame: the file.
        form: its format, with variables and ignored columns named.
        series: what it holds.
        cells: for each column of a variable, the row of ``series`` behind each row of the file, and the variable.
    """

    frame: Frame
    form: TableFormat
    series: Series
    cells: dict[str, tuple[NDArray[np.int64], int]]

    @property
    def path(self) -> Path:
        """The file's path."""
        return self.frame.path

    def write(
        self, file: BinaryIO, filled: Mapping[str, NDArray[np.float64]], deviation: NDArray[np.float64] | None = None
    ) -> None:
        """Write the file again with its missing cells filled.

        Args:
            file: open for writing.
            filled: for each suffix of a column's name an array [row, variable], read where ``series`` has a gap. The
                suffix "" fills the columns themselves; any other makes a column ``<column><suffix>``, equal to the
                column where observed.
            deviation: [row, variable], for columns ``<column>_std`` that are 0 where observed.

        Raises:
            TableError: a new column has the name of an old one, or a value does not fit a column.
        """
        self.check_new_columns(suffix for suffix in [*filled, *([] if deviation is None else ["_std"])] if suffix)
        columns: dict[str, pa.Array] = {}
        for name, (rows, variable) in self.cells.items():
            missing = np.isnan(self.series.values[rows, variable])
            new = {"": self.frame.filled(name, missing, filled[""][rows, variable])}
            if deviation is not None:
                new["_std"] = pa.array(np.where(missing, deviation[rows, variable], 0.0))
            for suffix, values in filled.items():
                new[suffix] = self.frame.filled(name, missing, values[rows, variable])
            columns |= {name + suffix: column for suffix, column in new.items()}
        self.frame.write(file, columns)

    def check_new_columns(self, suffixes: Iterable[str]) -> None:
        """Make sure that the columns ``<column><suffix>`` of all variables can be added.

        Raises:
            TableError: the file has one of them already.
        """
        there = set(self.frame.table.column_names)
        for suffix in suffixes:
            for name in self.cells:
                if name + suffix in there:
                    raise TableError(f"{self.frame.path} has a column '{name}{suffix}' already: rename it")


@dataclass(frozen=True)
class ArrayTable:
    """An NPZ file and its series.

    Attributes:
        path: the file.
        arrays: what it holds.
        form: its format, with variables and ignored features named.
        series: its series.
        rows: row of ``series`` behind each time step, int64 [series, time]; -1 behind the end of a series.
        features: for each variable its place in the last dimension of ``values``.
    """

    path: Path
    arrays: dict[str, NDArray]
    form: TableFormat
    series: Series
    rows: NDArray[np.int64]
    features: list[int]

    def write(
        self, file: BinaryIO, filled: Mapping[str, NDArray[np.float64]], deviation: NDArray[np.float64] | None = None
    ) -> None:
        """As `FrameTable.write`, with arrays ``values``, ``values<suffix>`` and ``values_std`` of its type.

        What lies behind the end of a series stays NaN.
        """
        original = self.arrays["values"]
        missing = np.isnan(original[..., self.features]) & (self.rows >= 0)[..., None]  # [series, time, variable]

        def gaps_filled(array: NDArray, values: NDArray[np.float64]) -> NDArray:
            array = array.copy()
            with np.errstate(over="ignore"):
                new = values[self.rows].astype(array.dtype)
            if not np.isfinite(new[missing]).all():
                raise TableError(
                    f"{self.path}: 'values' of type {array.dtype} cannot hold a filled value; save float64"
                )
            array[..., self.features] = np.where(missing, new, array[..., self.features])
            return array

        new = {f"values{suffix}": gaps_filled(original, values) for suffix, values in filled.items()}
        if deviation is not None:
            # Integers have no gap, but may have a deviation of 0 that is written beside them.
            certain = np.zeros(original.shape, original.dtype if original.dtype.kind == "f" else np.float64)
            certain[self.rows < 0] = np.nan
            new["values_std"] = gaps_filled(certain, deviation)
        self.check_new_columns(name.removeprefix("values") for name in new if name != "values")
        np.savez(file, **{**self.arrays, **new})

    def check_new_columns(self, suffixes: Iterable[str]) -> None:
        """As `FrameTable.check_new_columns`, for arrays ``values<suffix>``."""
        for suffix in suffixes:
            if f"values{suffix}" in self.arrays:
                raise TableError(f"{self.path} has an array 'values{suffix}' already: rename it")


Table = FrameTable | ArrayTable


def read_table(path: str | Path, form: TableFormat) -> Table:
    """Read a table and check everything about it.

    Raises:
        TableError: in one line, what is wrong with which cell and what to do about it.
    """
    path = _path(path)
    if path.suffix == ".npz":
        return _read_arrays(path, form)
    form = resolve(path, read_names(path, form.separator), form)
    frame = read_frame(path, form.separator)
    return _read_wide(frame, form) if form.layout == "wide" else _read_long(frame, form)


def read_shape(path: str | Path, form: TableFormat) -> tuple[TableFormat, NDArray[np.int64]]:
    """Variables and lengths of a table's series without reading its values: what a model's size depends on.

    Returns:
        The format with its variables named; int64 [series], the number of rows of each series.

    Raises:
        TableError: the file, or the columns that are read, cannot be used.
    """
    path = _path(path)
    if path.suffix == ".npz":
        shape, times = _values_shape(path), _array(path, "times")
        # Behind the end of a series its stamps are missing; none of them equals itself.
        present = np.ones(shape[:2], bool) if times is None or times.shape != shape[:2] else times == times
        return _named_features(path, form, shape[2])[0], present.sum(1)
    form = resolve(path, read_names(path, form.separator), form)
    if form.layout == "wide":
        num_steps = len(_wide_columns(path, read_names(path, form.separator), form)[1])
        read = [form.id_column] if form.id_column else None
        return form, np.full(read_frame(path, form.separator, read).table.num_rows, num_steps)
    if form.id_column is None:
        return form, np.array([read_frame(path, form.separator, [form.variables[0]]).table.num_rows])
    codes, _ = read_frame(path, form.separator, [form.id_column]).keys(form.id_column, "name of the series")
    return form, np.bincount(codes)


def count_classes(path: str | Path, form: TableFormat) -> int:
    """How many classes the series of a table have; reads nothing but the column or array of ``form.label_column``.

    Raises:
        TableError: the file or the column cannot be used, or a class is missing.
    """
    path = _path(path)
    if path.suffix == ".npz":
        given = _array(path, form.label_column)
        if given is None:
            raise TableError(f"{path}: array '{form.label_column}' of data.label_column is missing")
        return len(np.unique(given.astype(str)))
    resolve(path, read_names(path, form.separator), form)
    frame = read_frame(path, form.separator, [form.label_column])
    return len(frame.keys(form.label_column, "class of the series")[1])


def resolve(path: Path, names: list[str], form: TableFormat) -> TableFormat:
    """Give every column of a CSV or Parquet file its role.

    Args:
        path: the file, for messages.
        names: its columns.
        form: the format that is expected.

    Returns:
        The format with ``variables`` and ``ignored`` named.

    Raises:
        TableError: a column is missing, or one is neither a variable nor ignored.
    """
    wide = form.layout == "wide"
    roles = {"data.id_column": form.id_column, "data.label_column": form.label_column}
    roles |= {} if wide else {"data.time_column": form.time_column}
    for option, name in roles.items():
        if name is not None and name not in names:
            remedy = f"Set {option}, to null where the file has none."
            separators = [each for each in ";\t|," if len(names) == 1 and each in names[0]]
            if separators and path.suffix == ".csv":
                remedy = f"The header is one column, '{names[0]}': set data.separator='{separators[0]}'."
            raise TableError(f"{path}: column '{name}' is missing.{nearest(name, names)} {remedy}")
    rest = [name for name in names if name not in roles.values()]
    found = list(dict.fromkeys(_variable(name) if wide else name for name in rest))
    for name in form.variables or ():
        if name not in found:
            what = f"columns '{name}@<time>' are" if wide else f"column '{name}' is"
            raise TableError(f"{path}: {what} missing.{nearest(name, found)}")
    variables = form.variables
    if variables is None:
        variables = [name for name in found if name not in form.ignored]
    others = [name for name in found if name not in variables and name not in form.ignored]
    if form.closed:
        for name in others:
            raise TableError(
                f"{path}: column '{name}' is unknown to this run.{nearest(name, variables)} Else remove it."
            )
    for name in rest if wide else ():
        if _variable(name) in variables and "@" not in name:
            raise TableError(
                f"{path}, column '{name}': not of the form <variable>@<time>. Name the variables with "
                f"data.variables=[...], or set data.layout=long"
            )
    if not variables:
        raise TableError(f"{path} has no column of a variable")
    return replace(form, variables=tuple(variables), ignored=(*form.ignored, *others))


def _path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise TableError(
            f"{path}: the ending '{path.suffix}' is not known; rename or unpack it: there are {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise TableError(f"{path} is not there")
    return path


def _variable(name: str) -> str:
    """The variable of a wide column ``<variable>@<time>``; the whole name of any other."""
    return name.rpartition("@")[0] or name


def _read_long(frame: Frame, form: TableFormat) -> FrameTable:
    num_rows = frame.table.num_rows
    codes, ids = np.zeros(num_rows, dtype=np.int64), ["the only one"]
    if form.id_column is not None:
        codes, ids = frame.keys(form.id_column, "name of the series")
    if form.time_column:
        stamps = frame.stamps(form.time_column, form.time_unit)
    else:
        stamps = pd.Series(codes).groupby(codes).cumcount().to_numpy()  # in the order of each series' rows
    values = np.stack([frame.numbers(name) for name in form.variables], axis=1)
    labels, classes = _labels(frame, form, codes, ids)
    unit = MICROSECONDS[form.time_unit] if form.time_unit and form.time_column else 1

    def place(row: int) -> str:
        return frame.place(row, form.time_column or form.variables[0])

    series, order = assemble(codes, stamps, unit, values, ids, place, classes, labels)
    rows = np.empty(num_rows, dtype=np.int64)
    rows[order] = np.arange(num_rows)
    return FrameTable(frame, form, series, {name: (rows, j) for j, name in enumerate(form.variables)})


def _read_wide(frame: Frame, form: TableFormat) -> FrameTable:
    num_series = frame.table.num_rows
    columns, stamps = _wide_columns(frame.path, frame.table.column_names, form)
    num_steps = len(stamps)
    codes, ids = np.arange(num_series), [str(number) for number in range(num_series)]
    if form.id_column is not None:
        codes, ids = frame.keys(form.id_column, "name of the series")
        if len(ids) < num_series:
            row = int(np.argmax(np.bincount(codes)[codes] > 1))
            raise TableError(f"{frame.place(row, form.id_column)}: series {ids[codes[row]]!r} has several rows")
    values = np.full((num_series, num_steps, len(form.variables)), np.nan)
    for name, (step, variable) in columns.items():
        values[:, step, variable] = frame.numbers(name)
    labels, classes = _labels(frame, form, codes, ids)
    series, _ = assemble(
        np.repeat(codes, num_steps),
        np.tile(stamps, num_series),
        MICROSECONDS[form.time_unit] if form.time_unit else 1,
        values.reshape(-1, len(form.variables)),
        ids,
        lambda row: frame.place(row // num_steps, form.id_column or next(iter(columns))),
        classes,
        labels,
    )
    first = np.arange(num_series) * num_steps
    cells = {name: (first + step, variable) for name, (step, variable) in columns.items()}
    return FrameTable(frame, form, series, cells)


def _wide_columns(
    path: Path, names: list[str], form: TableFormat
) -> tuple[dict[str, tuple[int, int]], NDArray[np.float64] | NDArray[np.int64]]:
    """Time step and variable of each column of the wide layout, and the stamps of the time steps in order."""
    used = [name for name in names if "@" in name and _variable(name) in form.variables]
    header = Frame(path, pa.table({"@<time>": [name.rpartition("@")[2] for name in used]}), None)
    try:
        stamps = header.stamps("@<time>", form.time_unit)
    except TableError as error:
        raise TableError(f"{path}, columns <variable>@<time>: {str(error).partition(': ')[2]}") from error
    distinct, steps = np.unique(stamps, return_inverse=True)
    variables = [form.variables.index(_variable(name)) for name in used]
    columns = dict(zip(used, zip(steps.tolist(), variables, strict=True), strict=True))
    names_of: dict[tuple[int, int], str] = {}
    for name, cell in columns.items():
        if (other := names_of.setdefault(cell, name)) != name:
            raise TableError(
                f"{path}, column '{name}': column '{other}' is of the same variable and time; take one of them out"
            )
    return columns, distinct


def _labels(
    frame: Frame, form: TableFormat, codes: NDArray[np.int64], ids: list[str]
) -> tuple[NDArray[np.int64], list[str]]:
    """Class of each series, int64 [series], and the names of the classes."""
    if form.label_column is None:
        return np.zeros(len(ids), dtype=np.int64), []
    found, names = frame.keys(form.label_column, "class of the series")
    labels = np.empty(len(ids), dtype=np.int64)
    labels[codes[::-1]] = found[::-1]  # of the first row
    if (found != labels[codes]).any():
        row = int(np.argmax(found != labels[codes]))
        raise TableError(f"{frame.place(row, form.label_column)}: series {ids[codes[row]]!r} has two classes")
    return _in_order(labels, names)


def _in_order(labels: NDArray[np.int64], names: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Number classes in the order of their names."""
    order = sorted(range(len(names)), key=names.__getitem__)
    return np.argsort(order)[labels], [names[number] for number in order]


def assemble(
    codes: NDArray[np.int64],
    stamps: NDArray[np.float64] | NDArray[np.int64],
    unit: int,
    values: NDArray[np.float64],
    ids: list[str],
    place: Callable[[int], str],
    classes: list[str],
    labels: NDArray[np.int64],
) -> tuple[Series, NDArray[np.int64]]:
    """Put rows in the order of series and time.

    Args:
        codes: int64 [row], number of the series; each series has a row.
        stamps: [row], time stamps.
        unit: units of the stamps that make one unit of time.
        values: float64 [row, variable], NaN where missing.
        ids: names of the series.
        place: where in the file a row is, for messages.
        classes: names of the classes.
        labels: int64 [series].

    Returns:
        The series, and the row behind each of their rows, int64 [row].

    Raises:
        TableError: a series has two rows of one time, or no observed value at all.
    """
    order = np.lexsort((stamps, codes))
    codes, stamps, values = codes[order], stamps[order], values[order]
    twice = (codes[1:] == codes[:-1]) & (stamps[1:] == stamps[:-1])
    if twice.any():
        row = int(twice.argmax())
        both = place(int(order[row + 1])), place(int(order[row]))
        raise TableError(f"{both[0]}: series {ids[codes[row]]!r} has this time stamp already at {both[1]}")
    offsets = np.searchsorted(codes, np.arange(len(ids) + 1))
    empty = np.add.reduceat((~np.isnan(values)).any(1), offsets[:-1], dtype=np.int64) == 0
    if empty.any():
        number = int(empty.argmax())
        row = int(order[offsets[number] : offsets[number + 1]].min())
        raise TableError(f"{place(row)}: series {ids[number]!r} has no observed value at all; leave it out")
    times = (stamps - stamps[offsets[:-1]][codes]) / unit
    return Series(values, times.astype(np.float64), offsets, ids, classes, labels), order


def _array(path: Path, name: str) -> NDArray | None:
    """One array of an NPZ file; None where it has none of that name."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name] if name in arrays.files else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise TableError(f"{path}: array '{name}' cannot be read: {reason}; save plain numbers or text") from error


def _values_shape(path: Path) -> tuple[int, int, int]:
    """Shape of ``values``, from its header."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("values.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape = read(file)[0]
    except KeyError as error:
        raise TableError(f"{path}: array 'values' [series, time, feature] is missing") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TableError(f"{path} is not an NPZ file: {' '.join(str(error).split())}") from error
    if len(shape) != 3 or 0 in shape:
        raise TableError(f"{path}: array 'values' has shape {shape}, expected [series, time, feature], none of them 0")
    return shape


def _named_features(path: Path, form: TableFormat, count: int) -> tuple[TableFormat, list[str]]:
    """The format with variables and ignored features named, and the names of all features of an NPZ file."""
    given = _array(path, "variables")
    if given is not None and given.shape != (count,):
        raise TableError(f"{path}: array 'variables' has shape {given.shape}, but 'values' has {count} features")
    if given is not None:
        names = [str(name) for name in given]
    elif form.variables is not None:
        names = list(form.variables)
        if len(form.variables) != count:
            listed = ", ".join(form.variables)
            raise TableError(
                f"{path}: 'values' has {count} features and no array 'variables' names them; expected are {listed}"
            )
    else:
        names = [f"variable_{number}" for number in range(count)]
    columns = replace(form, layout="long", id_column=None, time_column=None, label_column=None)
    resolved = resolve(path, names, columns)
    return replace(form, variables=resolved.variables, ignored=resolved.ignored), names


def _read_arrays(path: Path, form: TableFormat) -> ArrayTable:
    num_series, num_steps, num_features = _values_shape(path)
    form, names = _named_features(path, form, num_features)
    with zipfile.ZipFile(path) as archive:
        arrays = {name: _array(path, name) for name in (file.removesuffix(".npy") for file in archive.namelist())}
    if arrays["values"].dtype.kind not in "fiu":
        raise TableError(f"{path}: array 'values' is of type {arrays['values'].dtype}, not of numbers")
    features = [names.index(name) for name in form.variables]
    values = arrays["values"][..., features].astype(np.float64)
    _refuse(path, "values", np.isinf(values), "is infinite; put NaN where the value is missing")
    stamps = _array_stamps(path, form, arrays.get("times"), (num_series, num_steps))
    present = ~np.isnat(stamps) if stamps.dtype.kind == "M" else ~np.isnan(stamps)
    known = ~np.isnan(values).all(2)
    _refuse(path, "times", known & ~present, "is missing, but has values")
    ids = arrays.get("ids", np.arange(num_series)).astype(str)
    if ids.shape != (num_series,) or len(np.unique(ids)) < num_series:
        raise TableError(f"{path}: array 'ids' has to give each of the {num_series} series a name of its own")
    _refuse(path, "values", ~known.any(1), "is a series without any observed value; leave it out")
    labels, classes = np.zeros(num_series, dtype=np.int64), []
    if form.label_column is not None:
        given = arrays.get(form.label_column)
        if given is None or given.shape != (num_series,):
            raise TableError(
                f"{path}: array '{form.label_column}' [{num_series} series] of data.label_column is missing"
            )
        _refuse(path, form.label_column, given != given, "is missing")
        found, labels = np.unique(given.astype(str), return_inverse=True)
        classes = found.tolist()
    which, step = np.nonzero(present)
    if stamps.dtype.kind == "M":
        stamps = stamps.astype("datetime64[us]").astype(np.int64)
    series, order = assemble(
        which,
        stamps[present],
        MICROSECONDS[form.time_unit] if form.time_unit else 1,
        values[present],
        ids.tolist(),
        lambda row: f"{path}, times[{which[row]}, {step[row]}]",
        classes,
        labels,
    )
    rows = np.full((num_series, num_steps), -1)
    rows[which[order], step[order]] = np.arange(len(order))
    return ArrayTable(path, arrays, form, series, rows, features)


def _array_stamps(path: Path, form: TableFormat, times: NDArray | None, shape: tuple[int, int]) -> NDArray:
    """Stamps [series, time] as float64 or datetime64; NaN or NaT behind the end of a series."""
    if times is None:
        return np.broadcast_to(np.arange(shape[1], dtype=np.float64), shape)
    if times.shape not in (shape, shape[1:]):
        raise TableError(f"{path}: array 'times' has shape {times.shape}, expected {shape[1:]} or {shape}")
    dates = times.dtype.kind == "M"
    if times.dtype.kind not in "Mfiu" or dates != (form.time_unit is not None):
        remedy = "leave data.time_unit out" if form.time_unit else "for dates (datetime64) set data.time_unit=hour"
        raise TableError(f"{path}: array 'times' is of type {times.dtype}; {remedy}")
    if not dates:
        times = times.astype(np.float64)
        _refuse(path, "times", np.isinf(times), "is infinite")
        _refuse(path, "times", times < 0, "is negative")
    else:
        finer = ~np.isnat(times) & (times.astype("datetime64[us]") != times)
        _refuse(path, "times", finer, f"is {FINER}")
    return np.broadcast_to(times, shape)


def _refuse(path: Path, name: str, wrong: NDArray[np.bool_], what: str) -> None:
    """Raise for the first entry of an array where ``wrong`` holds."""
    if wrong.any():
        position = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise TableError(f"{path}, {name}[{', '.join(map(str, position))}] {what}")
