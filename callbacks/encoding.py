"""Tables under evaluation: checked against one another, their categories and classes as numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.preprocessing import OrdinalEncoder

Task = Literal["binclass", "multiclass", "regression"]
# X_num [row, column] of numbers, X_cat [row, column] of strings, integers or booleans, y [row]; X_num or X_cat is None
# where a table has no such column.
Table = tuple[NDArray | None, NDArray | None, NDArray]


@dataclass(frozen=True)
class EncodedTables:
    """Tables with the same columns; everything is numbered by the first of them. Made by `encode`.

    Attributes:
        numericals: for each table its numerical columns, float [row, column].
        categories: for each table the ranks of its categories among the first table's sorted ones, int64 [row, column];
            the column's count for a category that the first table lacks.
        counts: int64 [column], number of categories of each column in the first table.
        targets: for each table its target [row]: int64, rank of the class among those of all tables, since a synthetic
            table can lack a rare one; in regression float64.
        num_classes: 0 in regression.
    """

    numericals: dict[str, NDArray[np.floating]]
    categories: dict[str, NDArray[np.int64]]
    counts: NDArray[np.int64]
    targets: dict[str, NDArray]
    num_classes: int

    @classmethod
    def encode(cls, tables: Mapping[str, Table], task: Task) -> "EncodedTables":
        """Check and encode tables.

        Args:
            tables: each with what it is called in messages.
            task: "binclass", "multiclass" or "regression".

        Raises:
            ValueError: in one line, which table, column and row cannot be used and what to do about it.
        """
        if task not in get_args(Task):
            raise ValueError(f"task={task!r}: choose one of {', '.join(get_args(Task))}")
        numericals, categories, targets = ({} for _ in range(3))
        for name, (X_num, X_cat, y) in tables.items():
            y = np.asarray(y)
            if y.ndim != 1 or not len(y):
                raise ValueError(f"{name} y has shape {y.shape}, expected [row]: give one target a row, and some rows")
            numericals[name] = np.zeros((len(y), 0)) if X_num is None else np.asarray(X_num)
            categories[name] = np.zeros((len(y), 0), dtype=str) if X_cat is None else np.asarray(X_cat)
            targets[name] = y[:, None]
        _check_shapes(numericals, targets, "X_num")
        _check_shapes(categories, targets, "X_cat")
        numericals = {name: _finite(array, f"{name} X_num column {{}}") for name, array in numericals.items()}
        categories, counts = _ranks(categories, "X_cat column {}")
        if task == "regression":
            numbers = {name: _finite(y, f"{name} y") for name, y in targets.items()}
            targets = {name: y[:, 0].astype(np.float64) for name, y in numbers.items()}
            return cls(numericals, categories, counts, targets, 0)
        classes, (num_classes,) = _ranks(targets, "y", of_all=True)
        first = next(iter(tables))
        if task == "binclass" and num_classes > 2:
            raise ValueError(f"task={task!r}, but y has {num_classes} classes: set task='multiclass'")
        if num_classes < 2:
            raise ValueError(f"y has one class only, '{targets[first][0, 0]}', in all of {', '.join(tables)}")
        targets = {name: ranks[:, 0] for name, ranks in classes.items()}
        return cls(numericals, categories, counts, targets, int(num_classes))

    def z_scores(self) -> tuple[dict[str, NDArray[np.float64]], float, float]:
        """Targets of a regression as z-scores of the table "train", its mean and its population standard deviation.

        Raises:
            ValueError: the training target is constant.
        """
        mean, deviation = float(self.targets["train"].mean()), float(self.targets["train"].std())
        if not 0 < deviation < np.inf:
            raise ValueError(
                f"train y has the standard deviation {deviation}, so nothing can be learnt from it: if it was "
                "generated, the model has collapsed or diverged"
            )
        return {name: (y - mean) / deviation for name, y in self.targets.items()}, mean, deviation


def _check_shapes(arrays: Mapping[str, NDArray], targets: Mapping[str, NDArray], kind: str) -> None:
    """Make sure that arrays have a row for each of the target's, and the same number of columns.

    Raises:
        ValueError: they do not.
    """
    first = next(iter(arrays))
    for name, array in arrays.items():
        if array.ndim != 2 or len(array) != len(targets[name]):
            expected = f"({len(targets[name])}, columns)"
            raise ValueError(f"{name} {kind} has shape {array.shape}, expected {expected}: a row for each of y")
        if array.shape[1] != arrays[first].shape[1]:
            raise ValueError(
                f"{name} {kind} has {array.shape[1]} column(s), but that of {first} {arrays[first].shape[1]}: give "
                "both the same ones"
            )


def _finite(array: NDArray, place: str) -> NDArray[np.floating]:
    """An array [row, column] as floats.

    Raises:
        ValueError: it holds others than finite numbers.
    """
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{place.format(0)} is of type {array.dtype}, not a number: convert it to floats or integers")
    finite = np.isfinite(array)
    if not finite.all():
        i, j = np.argwhere(~finite)[0]
        raise ValueError(
            f"{place.format(j)}, row {i}: {array[i, j]}; nothing can be evaluated with it. Fill gaps in real data; if "
            "the row was generated, the model has diverged."
        )
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _ranks(
    arrays: Mapping[str, NDArray], place: str, of_all: bool = False
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Ranks [row, column] of categories among the sorted ones of the first array, or of all, and their number [column].

    Raises:
        ValueError: a value is missing, or a column holds others than strings, integers or booleans.
    """
    strings = {name: _strings(array, f"{name} {place}") for name, array in arrays.items()}
    first = np.concatenate([*strings.values()]) if of_all else next(iter(strings.values()))
    if not first.shape[1]:  # scikit-learn refuses tables without columns
        return {name: np.zeros(array.shape, np.int64) for name, array in strings.items()}, np.zeros(0, np.int64)
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.int64).fit(first)
    counts = np.array([len(each) for each in encoder.categories_])
    ranks = {name: encoder.transform(array) for name, array in strings.items()}
    return {name: np.where(each < 0, counts, each) for name, each in ranks.items()}, counts


def _strings(array: NDArray, place: str) -> NDArray:
    """Categories [row, column] as strings, so that 1 and "1" are the same one.

    Raises:
        ValueError: a value is missing, or a column holds others than strings, integers or booleans.
    """
    if array.dtype.kind in "Uiub":
        return array.astype(str)
    if array.dtype.kind != "O":
        raise ValueError(f"{place.format(0)} is of type {array.dtype}: convert it to strings or integers")
    missing = pd.isna(array)
    if missing.any():
        i, j = np.argwhere(missing)[0]
        raise ValueError(f"{place.format(j)}, row {i}: {array[i, j]}; make a missing value a category of its own first")
    kinds = [pd.api.types.infer_dtype(column, skipna=False) for column in array.T]
    for j, kind in enumerate(kinds):
        if kind not in ("string", "integer", "boolean"):
            raise ValueError(f"{place.format(j)} holds values of kind {kind}: convert them to strings or integers")
    return array if set(kinds) <= {"string"} else array.astype(str)
