"""A table between its own form, a data frame, and the form in which models see it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from datamodules.synthesis.atoms import Atoms
from datamodules.synthesis.preprocessing import Normalisation, Table, TableTransform, Task


class EncodedTable(NamedTuple):
    """Rows as models see them.

    Attributes:
        numericals: [row, feature] float32; in regression feature 0 is the target.
        categories: [row, column] int64, each below its column's count.
        target: [row] int64, number of the class; in regression float32 z-scores.
    """

    numericals: Tensor
    categories: Tensor
    target: Tensor


class EncodedConditions(NamedTuple):
    """Columns that are given beforehand, as models see them.

    Attributes:
        target: number of the class, or None.
        numericals: value of each given feature.
        categories: number of the category of each given column.
    """

    target: int | None
    numericals: dict[int, float]
    categories: dict[int, int]


class Columns(Protocol):
    """Names of a table's columns, and the way between its rows and arrays."""

    numerical: tuple[str, ...]  # of ``X_num``
    categorical: tuple[str, ...]  # of ``X_cat``
    target: str  # of ``y``

    def table(self, frame: pd.DataFrame) -> Table:
        """Arrays of some rows."""

    def frame(self, table: Table) -> pd.DataFrame:
        """Rows of some arrays."""

    def value(self, name: str, value: Any) -> Any:
        """A value that a column is to have, as its array holds it."""

    def mask_of(self, name: str) -> str | None:
        """Name of the categorical column that says where a numerical one has gaps; None: it has none."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""


@dataclass(frozen=True)
class NamedColumns:
    """Columns that are in the arrays as they are.

    Attributes:
        numerical: names of the columns of ``X_num``.
        categorical: names of the columns of ``X_cat``.
        target: name of ``y``.
    """

    numerical: tuple[str, ...]
    categorical: tuple[str, ...]
    target: str

    def table(self, frame: pd.DataFrame) -> Table:
        """A data frame's arrays; categories as objects."""
        return Table(
            frame[list(self.numerical)].to_numpy() if self.numerical else None,
            frame[list(self.categorical)].to_numpy(dtype=object) if self.categorical else None,
            frame[self.target].to_numpy(),
        )

    def frame(self, table: Table) -> pd.DataFrame:
        """Arrays under their columns' names, the target last."""
        columns = {}
        for names, array in ((self.numerical, table.X_num), (self.categorical, table.X_cat)):
            if names:
                columns |= dict(zip(names, array.T, strict=True))
        return pd.DataFrame(columns | {self.target: table.y})

    def value(self, name: str, value: Any) -> Any:
        """The value itself."""
        return value

    def mask_of(self, name: str) -> str | None:
        """None: there are no gaps."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The names."""
        return {"numerical": list(self.numerical), "categorical": list(self.categorical), "target": self.target}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo `state_dict`."""
        return cls(tuple(state["numerical"]), tuple(state["categorical"]), state["target"])


@dataclass(frozen=True)
class TableCodec:
    """Columns of a table and the transform that was fitted to its training part.

    Attributes:
        transform: of the arrays, after `atoms` has split them.
        columns: of the table.
        atoms: numbers that are states.
        class_counts: training rows of each class; empty in regression.
    """

    transform: TableTransform
    columns: Columns
    atoms: Atoms
    class_counts: tuple[int, ...]

    @classmethod
    def fit(
        cls, train: Table, columns: Columns, task: Task, normalisation: Normalisation, atoms: float | None = None
    ) -> Self:
        """Fit to a training part.

        Args:
            train: its arrays.
            columns: of the table.
            task: "binclass", "multiclass" or "regression".
            normalisation: of the numbers.
            atoms: share of the rows above which a number is a state, see `Atoms`; None: no number is.

        Raises:
            ValueError: it cannot be used, see `TableTransform.fit`.
        """
        found = Atoms({}, frozenset()) if atoms is None else Atoms.fit(train.X_num, atoms)
        transform = TableTransform.fit(*found.split(train, np.random.default_rng(0)), task, normalisation)
        counts: tuple[int, ...] = ()
        if transform.num_classes:
            number = transform.target.encode(np.asarray(train.y)[:, None])[:, 0]
            counts = tuple(np.bincount(number, minlength=transform.num_classes).tolist())
        return cls(transform, columns, found, counts)

    @property
    def num_numericals(self) -> int:
        """Numerical features that a model sees, a real target among them."""
        return len(self.columns.numerical) - len(self.atoms.whole) + (not self.class_counts)

    @property
    def category_counts(self) -> list[int]:
        """Number of categories of each categorical column."""
        return self.transform.category_counts.tolist()

    def table(self, frame: pd.DataFrame) -> Table:
        """Arrays of some rows."""
        return self.columns.table(frame)

    def frame(self, table: Table) -> pd.DataFrame:
        """Rows of some arrays."""
        return self.columns.frame(table)

    def encode(self, table: Table, generator: np.random.Generator | None = None) -> EncodedTable:
        """Rows as models see them; `generator` spreads equal numbers over their ranks."""
        table = self.atoms.split(table, generator or np.random.default_rng(0))
        encoded = self.transform.transform(*table, generator)
        return EncodedTable(*(torch.from_numpy(np.ascontiguousarray(array)) for array in encoded))

    def decode(
        self,
        numericals: Tensor,
        categories: Tensor,
        target: Tensor | None,
        conditions: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Rows of a model as rows of the table, by `TableTransform.inverse`.

        Args:
            numericals: [row, feature].
            categories: [row, column].
            target: [row] classes; not read in regression.
            conditions: values of columns as the rows were drawn with: a number of them comes out as it was given, and
                not as the quantiles' inverse has it.
        """
        table = self.transform.inverse(numericals.numpy(), categories.numpy(), target)
        table = self.atoms.merge(table, len(self.columns.numerical), np.dtype(self.transform.num_type or np.float64))
        for name, value in (conditions or {}).items():
            if name in self.columns.numerical:
                table.X_num[:, self.columns.numerical.index(name)] = self.columns.value(name, value)
            elif name == self.columns.target and not self.class_counts:
                table.y[:] = self.columns.value(name, value)
        return self.frame(table)

    def encode_conditions(self, conditions: Mapping[str, Any]) -> EncodedConditions:
        """Values that columns are to have, as models see them.

        Args:
            conditions: by the columns' names.

        Raises:
            ValueError: there is no such column, or a categorical one has no such category.
        """
        columns = self.columns
        target, numericals, categories = None, {}, {}
        for name, value in conditions.items():
            if name in columns.categorical:
                column = columns.categorical.index(name)
                categories[column] = _number(self.transform.categorical.categories[column], name, value)
            elif name == columns.target and self.class_counts:
                target = _number(self.transform.target.categories[0], name, value)
            elif name in columns.numerical or name == columns.target:
                number = _finite(name, columns.value(name, value))
                place = columns.numerical.index(name) if name in columns.numerical else None
                if place in self.atoms.values:
                    state = list(self.atoms.values).index(place)
                    column = len(columns.categorical) + state
                    text = self.atoms.states(place, np.array([number]))[0]
                    categories[column] = _number(self.transform.categorical.categories[column], name, text)
                if place not in self.atoms.whole:
                    kept = 0 if place is None else self.atoms.kept(len(columns.numerical)).index(place)
                    feature = kept + (not self.class_counts and place is not None)
                    numericals[feature] = self._score(number, feature)
                if (mask := columns.mask_of(name)) is not None:
                    column = columns.categorical.index(mask)
                    categories[column] = _number(self.transform.categorical.categories[column], name, "no")
            else:
                known = ", ".join([*columns.numerical, *columns.categorical, columns.target])
                raise ValueError(f"the table has no column {name!r}; it has {known}")
        return EncodedConditions(target, numericals, categories)

    def _score(self, number: float, feature: int) -> float:
        """A number of a feature as a model sees it."""
        row = np.zeros((1, self.num_numericals))
        row[0, feature] = number
        return float(self.transform.numerical.transform(row)[0, feature])

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return {
            "transform": self.transform.state_dict(),
            "columns": self.columns.state_dict(),
            "atoms": self.atoms.state_dict(),
            "class_counts": list(self.class_counts),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], columns_class: type) -> Self:
        """Undo `state_dict`; `columns_class` is the class of the columns."""
        return cls(
            TableTransform.from_state(state["transform"]),
            columns_class.from_state(state["columns"]),
            Atoms.from_state(state["atoms"]),
            tuple(state["class_counts"]),
        )


def _finite(name: str, value: Any) -> float:
    """A value of a numerical column as a number."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={value!r}: the column is numerical, give it a number") from error
    if not np.isfinite(number):
        raise ValueError(f"{name}={value!r}: give a finite number")
    return number


def _number(categories: np.ndarray, name: str, value: Any) -> int:
    """Place of a category among a column's sorted ones."""
    found = np.flatnonzero(categories.astype(str) == str(value))
    if not len(found):
        shown = ", ".join(map(str, categories[:20]))
        raise ValueError(f"{name}={value!r} is no category of the training part; there are {shown}")
    return int(found[0])
