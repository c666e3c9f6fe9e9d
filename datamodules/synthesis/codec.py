"""A table between its own form, a data frame, and the form in which models see it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from datamodules.synthesis.atoms import BETWEEN, Atoms
from datamodules.synthesis.cells import plain
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

    def shown(self, name: str, number: np.number) -> str:
        """A number of a numerical column's array as text for a message."""

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

    def shown(self, name: str, number: np.number) -> str:
        """The number without needless digits."""
        return plain(number)

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
        num_type: numpy's name of the type of ``X_num``; None: the table has none.
        exact_target: whether a real target of whole numbers stays as a model draws it, see `for_evaluation`.
    """

    transform: TableTransform
    columns: Columns
    atoms: Atoms
    class_counts: tuple[int, ...]
    num_type: str | None
    exact_target: bool = False

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
        return cls(
            transform, columns, found, counts, None if train.X_num is None else np.asarray(train.X_num).dtype.str
        )

    def for_evaluation(self) -> Self:
        """The codec whose rows are scored: a real target of an integer type is not rounded.

        So it is in the published procedure, where evaluators are trained on such targets (abalone's rings). Users get
        whole ones; and so do evaluators of a user's own table, whose columns round.
        """
        return replace(self, exact_target=True)

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

        Raises:
            ValueError: as in `encode_conditions`.
        """
        table = self.transform.inverse(numericals.numpy(), categories.numpy(), target)
        table = self.atoms.merge(table, len(self.columns.numerical), np.dtype(self.num_type))
        for name, value in (conditions or {}).items():
            if name in self.columns.numerical:
                table.X_num[:, self.columns.numerical.index(name)] = self._given(name, value)
            elif name == self.columns.target and not self.class_counts:
                table.y[:] = self._given(name, value)
        frame = self.frame(table)
        return frame if self.exact_target else self.in_own_types(frame)

    def in_own_types(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows that were drawn `for_evaluation` as users get them: a real target of whole numbers is rounded."""
        if self.class_counts or np.dtype(self.transform.target_type).kind == "f":
            return frame
        return frame.assign(
            **{self.columns.target: frame[self.columns.target].round().astype(self.transform.target_type)}
        )

    def encode_conditions(self, conditions: Mapping[str, Any]) -> EncodedConditions:
        """Values that columns are to have, as models see them.

        Args:
            conditions: by the columns' names.

        Raises:
            ValueError: there is no such column, a categorical one has no such category, or a numerical one cannot have
                the number: it is outside of the training range, not whole in a column of an integer type, or none of a
                column's few values.
        """
        columns = self.columns
        target, numericals, categories = None, {}, {}

        def fix(column: int, category: int, name: str, value: Any) -> None:
            if categories.setdefault(column, category) != category:
                raise ValueError(f"{name}={value!r} contradicts another condition: give one of them up")

        for name, value in conditions.items():
            if name in columns.categorical:
                column = columns.categorical.index(name)
                fix(column, _number(self.transform.categorical.categories[column], name, value), name, value)
            elif name == columns.target and self.class_counts:
                target = _number(self.transform.target.categories[0], name, value)
            elif name in columns.numerical or name == columns.target:
                number = self._given(name, value)
                place = columns.numerical.index(name) if name in columns.numerical else None
                if place in self.atoms.values:
                    state = list(self.atoms.values).index(place)
                    column = len(columns.categorical) + state
                    text = self.atoms.states(place, np.array([number]))[0]
                    fix(column, _number(self.transform.categorical.categories[column], name, text), name, value)
                if place not in self.atoms.whole:
                    kept = 0 if place is None else self.atoms.kept(len(columns.numerical)).index(place)
                    feature = kept + (not self.class_counts and place is not None)
                    numericals[feature] = self._score(number, feature)
                if (mask := columns.mask_of(name)) is not None:
                    column = columns.categorical.index(mask)
                    fix(column, _number(self.transform.categorical.categories[column], name, "no"), name, value)
            else:
                known = ", ".join([*columns.numerical, *columns.categorical, columns.target])
                raise ValueError(f"the table has no column {name!r}; it has {known}")
        return EncodedConditions(target, numericals, categories)

    def _given(self, name: str, value: Any) -> float:
        """A number that a numerical column, or a real target, is to have, as its array holds it.

        Raises:
            ValueError: it is none, or none that the column can have.
        """
        place = self.columns.numerical.index(name) if name in self.columns.numerical else None
        dtype = np.dtype(self.transform.target_type if place is None else self.num_type)
        number = _finite(name, self.columns.value(name, value))
        if dtype.kind == "f":
            with np.errstate(over="ignore"):  # it is beyond the range then
                number = float(dtype.type(number))  # so that the end of a range of float32 is in it, as it is written
        atoms = self.atoms.values.get(place, np.zeros(0))
        low, high = atoms.min(initial=np.inf), atoms.max(initial=-np.inf)
        only = None
        if place in self.atoms.values:
            state = len(self.columns.categorical) + list(self.atoms.values).index(place)
            if BETWEEN not in self.transform.categorical.categories[state]:  # all numbers of the column are atoms
                only = atoms
        if only is None:
            column = 0 if place is None else self.atoms.kept(len(self.columns.numerical)).index(place)
            feature = column + (not self.class_counts and place is not None)
            smallest, largest = (float(each[feature]) for each in self.transform.numerical.bounds)
            low, high = min(low, smallest), max(high, largest)
            if place is not None and column in self.transform.snapped:
                only = np.union1d(atoms, self.transform.snapped[column])

        def shown(each: float) -> str:
            return self.columns.shown(name, dtype.type(each))

        if not low <= number <= high:
            raise ValueError(
                f"{name}={value!r}: it is outside of the column's training range, {shown(low)} to {shown(high)}; give "
                "a number within it"
            )
        if only is not None and number not in only:
            numbers = ", ".join(shown(each) for each in only)
            raise ValueError(f"{name}={value!r}: the column has no values but {numbers}; give one of them")
        if dtype.kind != "f" and number != np.rint(number):
            raise ValueError(f"{name}={value!r}: the column has whole numbers alone; give {np.rint(number):.0f}")
        return number

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
            "num_type": self.num_type,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], columns_class: type) -> Self:
        """Undo `state_dict`; `columns_class` is the class of the columns."""
        return cls(
            TableTransform.from_state(state["transform"]),
            columns_class.from_state(state["columns"]),
            Atoms.from_state(state["atoms"]),
            tuple(state["class_counts"]),
            state.get("num_type", state["transform"]["num_type"]),  # older checkpoints have it there alone
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
