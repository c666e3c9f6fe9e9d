"""From the arrays of a table to what a generative model reads, and back; all of it is fitted to the training part.

Procedure of TabDDPM (Kotelnikov et al., ICML 2023): numerical columns to a standard normal by their quantiles (or to
[0, 1], or z-scores), categories to their ranks, a class is the model's condition, a real target becomes numerical
column 0. Arrays have the published names: ``X_num`` [row, column] of numbers, ``X_cat`` [row, column] of strings,
integers or booleans, ``y`` [row]; ``X_num`` or ``X_cat`` is None where a table has no such column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from datamodules.state import check_format_version
from datamodules.synthesis.categorical import CategoricalEncoder
from datamodules.synthesis.numerical import (
    AffineTransform,
    QuantileTransform,
    TargetScaler,
    check_numbers,
    integer_values,
    snap,
)

Task = Literal["binclass", "multiclass", "regression"]
Normalisation = Literal["quantile", "minmax", "standard"]

FORMAT_VERSION = 1  # of `TableTransform.state_dict`


class ModelTable(NamedTuple):
    """A table as a model sees it.

    Attributes:
        numericals: float32 [row, feature]; in regression feature 0 is the target.
        categories: int64 [row, column], from 0. A category that the training part lacks is the column's count, as
            published; no model has an entry for it: ``(categories < transform.category_counts).all(1)`` are the rows
            without one.
        target: int64 [row], number of the class; in regression float32 [row], z-scores.
    """

    numericals: NDArray[np.float32]
    categories: NDArray[np.int64]
    target: NDArray


class Table(NamedTuple):
    """A table under the published names, with the types of the training part; a real ``y`` is never an integer."""

    X_num: NDArray | None
    X_cat: NDArray | None
    y: NDArray


@dataclass(frozen=True)
class TableTransform:
    """Everything that has to be kept of a training table; made by `fit` or `from_state`.

    Attributes:
        task: "binclass", "multiclass" or "regression".
        numerical: of the numerical features, in regression with the target as column 0.
        categorical: of the categorical columns.
        target: of the target: numbers of classes (0, 1, ... stay as they are), or z-scores.
        num_type: numpy's name of the type of ``X_num``; None: the table has none.
        cat_type: likewise of ``X_cat``.
        target_type: likewise of ``y``.
        rounded: bool [column], columns of ``X_num`` that are rounded on the way back.
        snapped: for some columns of ``X_num`` the only values that they take on the way back.
    """

    task: Task
    numerical: QuantileTransform | AffineTransform
    categorical: CategoricalEncoder
    target: CategoricalEncoder | TargetScaler
    num_type: str | None
    cat_type: str | None
    target_type: str
    rounded: NDArray[np.bool_]
    snapped: dict[int, NDArray[np.float64]]

    @classmethod
    def fit(
        cls,
        X_num: NDArray | None,
        X_cat: NDArray | None,
        y: NDArray,
        task: Task,
        normalisation: Normalisation = "quantile",
        integer_columns: Sequence[int] = (),
    ) -> "TableTransform":
        """Fit to the training part.

        Args:
            X_num: numbers [row, column]; None: no numerical columns.
            X_cat: strings, integers or booleans [row, column]; None: no categorical columns.
            y: target [row]: classes as strings, integers or booleans, or numbers.
            task: "binclass", "multiclass" or "regression".
            normalisation: of the numerical columns: "quantile", "minmax" or "standard".
            integer_columns: columns of an ``X_num`` of floats that hold integers, to be rounded on the way back; an
                ``X_num`` of integers has all its columns rounded.

        Raises:
            ValueError: in one line, which column, row or argument cannot be used and what to do about it.
        """
        if task not in get_args(Task):
            raise ValueError(f"task={task!r}: choose one of {', '.join(get_args(Task))}")
        if normalisation not in get_args(Normalisation):
            raise ValueError(f"normalisation={normalisation!r}: choose one of {', '.join(get_args(Normalisation))}")
        numbers, strings, y = _arrays(X_num, X_cat, y)
        if not len(y):
            raise ValueError("the training part has no rows: nothing can be fitted to it")
        if not numbers.shape[1] and not strings.shape[1]:
            raise ValueError("the table has no column beside its target: give X_num or X_cat")
        check_numbers(numbers, "X_num column {}")
        for j in integer_columns:
            if not 0 <= j < numbers.shape[1] or (np.rint(numbers[:, j]) != numbers[:, j]).any():
                raise ValueError(f"integer_columns: X_num column {j} is not there, or holds others than integers")
        if task == "regression":
            check_numbers(y[:, None], "y")
            target = TargetScaler.fit(y)
        else:
            target = CategoricalEncoder.fit(y[:, None], "y")
            num_classes = int(target.counts[0])
            if num_classes < 2 or (task == "binclass" and num_classes > 2):
                raise ValueError(
                    f"task={task!r}, but y has {num_classes} classes in the training part: set another task"
                )
        rounded = np.full(numbers.shape[1], numbers.dtype.kind != "f")
        rounded[list(integer_columns)] = True
        features = np.column_stack([y, numbers]) if task == "regression" else numbers
        quantile = normalisation == "quantile"
        return cls(
            task=task,
            numerical=QuantileTransform.fit(features) if quantile else AffineTransform.fit(features, normalisation),
            categorical=CategoricalEncoder.fit(strings, "X_cat column {}"),
            target=target,
            num_type=None if X_num is None else numbers.dtype.str,
            cat_type=None if X_cat is None else strings.dtype.str,
            target_type=y.dtype.str,
            rounded=rounded,
            snapped=integer_values(numbers),
        )

    @property
    def category_counts(self) -> NDArray[np.int64]:
        """int64 [column], number of categories of each categorical column."""
        return self.categorical.counts

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 in regression."""
        return 0 if isinstance(self.target, TargetScaler) else int(self.target.counts[0])

    def transform(
        self, X_num: NDArray | None, X_cat: NDArray | None, y: NDArray, generator: np.random.Generator | None = None
    ) -> ModelTable:
        """A part of the table as a model sees it.

        Args:
            X_num: numbers [row, column].
            X_cat: categories [row, column].
            y: target [row].
            generator: spreads equal numbers over their ranks, see `QuantileTransform.transform`; None, as published:
                equal numbers stay equal.

        Raises:
            ValueError: in one line, which column and row cannot be used and what to do about it.
        """
        numbers, strings, y = _arrays(X_num, X_cat, y)
        expected = {"X_num": len(self.rounded), "X_cat": len(self.category_counts)}
        for name, array in (("X_num", numbers), ("X_cat", strings)):
            if array.shape[1] != expected[name]:
                raise ValueError(
                    f"{name} has {array.shape[1]} columns, but the training part {expected[name]}: give the same ones"
                )
        check_numbers(numbers, "X_num column {}")
        if isinstance(self.target, TargetScaler):
            check_numbers(y[:, None], "y")
            numbers, target = np.column_stack([y, numbers]), self.target.transform(y)
        else:
            target = self.target.encode(y[:, None])[:, 0]
            unknown = target == self.num_classes
            if unknown.any():
                i = int(np.argmax(unknown))
                raise ValueError(
                    f"y, row {i}: the training part has no class {y[i]!r}; leave such rows out, or split again so that "
                    f"it has"
                )
        return ModelTable(self.numerical.transform(numbers, generator), self.categorical.encode(strings), target)

    def inverse(self, numericals: ArrayLike, categories: ArrayLike, target: ArrayLike | None = None) -> Table:
        """Rows that a model made as rows of the table.

        Numbers lie in the training range. Columns of at most 32 integers take the nearest of these (the target of a
        regression never, as published), other integer columns are rounded.

        Args:
            numericals: [row, feature], in regression with the target in front.
            categories: integers [row, column].
            target: integers [row], numbers of classes; not read in regression.

        Raises:
            ValueError: a shape is not as above, a number is not finite, or a category or class is not one.
        """
        numericals, categories = np.asarray(numericals), np.asarray(categories)
        regression = isinstance(self.target, TargetScaler)
        expected = {"numericals": len(self.rounded) + regression, "categories": len(self.category_counts)}
        for name, array in (("numericals", numericals), ("categories", categories)):
            if array.shape != (shape := (*numericals.shape[:1], expected[name])):
                raise ValueError(f"{name} has shape {array.shape}, expected {shape} [row, column]")
        _check_integers(categories, "categories")
        finite = np.isfinite(numericals)
        if not finite.all():
            i, j = np.argwhere(~finite)[0]
            raise ValueError(
                f"numericals, row {i}, feature {j}: {numericals[i, j]}; the model has diverged, train it again with a "
                f"smaller learning rate"
            )
        numbers = self.numerical.inverse(numericals)
        if regression:
            is_float = np.dtype(self.target_type).kind == "f"
            y, numbers = numbers[:, 0].astype(self.target_type if is_float else np.float64), numbers[:, 1:]
        else:
            target = np.asarray(target)
            if target.shape != (len(numericals),):
                raise ValueError(f"target has shape {target.shape}, expected ({len(numericals)},): the rows' classes")
            _check_integers(target, "target")
            y = self.target.decode(target[:, None])[:, 0]
        numbers = snap(numbers, self.snapped)
        numbers[:, self.rounded] = np.rint(numbers[:, self.rounded])
        strings = self.categorical.decode(categories)
        return Table(
            None if self.num_type is None else numbers.astype(self.num_type),
            None if self.cat_type is None else strings,
            y,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, from which `from_state` makes it again; ``torch.load`` needs no trust for them."""
        return {
            "format_version": FORMAT_VERSION,
            "task": self.task,
            "numerical": self.numerical.state_dict(),
            "categorical": self.categorical.state_dict(),
            "target": self.target.state_dict(),
            "num_type": self.num_type,
            "cat_type": self.cat_type,
            "target_type": self.target_type,
            "rounded": torch.from_numpy(self.rounded),
            "snapped": {j: torch.from_numpy(values) for j, values in self.snapped.items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "TableTransform":
        """Undo `state_dict`, wherever its tensors have been moved.

        Raises:
            ValueError: it was written by another version of the program.
        """
        check_format_version(state, FORMAT_VERSION)
        return cls(
            task=state["task"],
            numerical=(QuantileTransform if "quantiles" in state["numerical"] else AffineTransform).from_state(
                state["numerical"]
            ),
            categorical=CategoricalEncoder.from_state(state["categorical"]),
            target=(TargetScaler if state["task"] == "regression" else CategoricalEncoder).from_state(state["target"]),
            **{name: state[name] for name in ("num_type", "cat_type", "target_type")},
            rounded=state["rounded"].numpy(force=True),
            snapped={j: values.numpy(force=True) for j, values in state["snapped"].items()},
        )


def _arrays(X_num: NDArray | None, X_cat: NDArray | None, y: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """The three arrays with the same rows; without columns where there are none.

    Raises:
        ValueError: a shape is not [row, column], or [row] for y.
    """
    y = np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"y has shape {y.shape}, expected [row]: give one target a row")
    numbers = np.zeros((len(y), 0)) if X_num is None else np.asarray(X_num)
    strings = np.zeros((len(y), 0), dtype=str) if X_cat is None else np.asarray(X_cat)
    for name, array in (("X_num", numbers), ("X_cat", strings)):
        if array.ndim != 2 or len(array) != len(y):
            raise ValueError(f"{name} has shape {array.shape}, expected ({len(y)}, columns): a row for each of y")
    return numbers, strings, y


def _check_integers(array: NDArray, name: str) -> None:
    """Make sure that numbers of categories are integers.

    Raises:
        ValueError: they are not.
    """
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} is of type {array.dtype}: give integers, the numbers of categories")
