"""Numbers that fill a good part of a column, and columns of few integers, as states of their own.

Quantiles make a smear of an atom: a model that draws numbers hits it by luck alone. So a column with atoms gets a
categorical column beside it, whose categories are the atoms and "between them"; where there is an atom, its own number
is drawn from the others, so that it tells nothing. A column of few integers consists of atoms alone, and only its
states are left. (Zhang et al., TabCascade, 2026, split columns likewise; our reading of TabDDPM's weakness.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.synthesis.preprocessing import Table

MOST_STATES = 32  # values of a column of integers that becomes states
BETWEEN = "-"  # category of what is no atom


@dataclass(frozen=True)
class Atoms:
    """Columns of ``X_num`` with atoms; made by `fit`.

    Attributes:
        values: ascending atoms of each such column, float64.
        whole: columns that have no other values.
    """

    values: Mapping[int, NDArray[np.float64]]
    whole: frozenset[int]

    @classmethod
    def fit(cls, X_num: NDArray | None, share: float) -> "Atoms":
        """Find the atoms of the training part's numbers [row, column].

        Args:
            X_num: without gaps; None: there are none.
            share: of the rows, above which a value is an atom, in (0, 1).

        Raises:
            ValueError: `share` is out of range.
        """
        if not 0 < share < 1:
            raise ValueError(f"atoms={share} must lie between 0 and 1: it is the share of the rows that a value fills")
        values, whole = {}, set()
        for j in range(0 if X_num is None else X_num.shape[1]):
            found, counts = np.unique(X_num[:, j].astype(np.float64), return_counts=True)
            if 1 < len(found) <= MOST_STATES and (np.rint(found) == found).all():
                values[j] = found
                whole.add(j)
            elif len(found) > 1 and (frequent := found[counts > share * len(X_num)]).size:
                values[j] = frequent
        return cls(values, frozenset(whole))

    def names(self, numerical: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the further categorical columns."""
        return tuple(f"{numerical[j]} (state)" for j in self.values)

    def kept(self, num_columns: int) -> list[int]:
        """Columns of ``X_num`` that are still numbers."""
        return [j for j in range(num_columns) if j not in self.whole]

    def states(self, j: int, numbers: NDArray) -> NDArray:
        """State of each number of column j, an object array of strings [row].

        Raises:
            ValueError: a column of few integers has another value.
        """
        atoms = self.values[j]
        place = np.searchsorted(atoms, numbers.astype(np.float64)).clip(max=len(atoms) - 1)
        is_atom = atoms[place] == numbers
        if j in self.whole and not is_atom.all():
            row = int(np.argmin(is_atom))
            raise ValueError(f"X_num column {j}, row {row}: {numbers[row]} is none of the {len(atoms)} training values")
        return np.where(is_atom, place.astype(str).astype(object), BETWEEN)

    def split(self, table: Table, generator: np.random.Generator) -> Table:
        """A table with the states as categories behind its own, and numbers that tell nothing where they are atoms."""
        if not self.values:
            return table
        X_num, states = table.X_num.copy(), []
        for j in self.values:
            states.append(self.states(j, X_num[:, j]))
            atom = states[-1] != BETWEEN
            if j not in self.whole and not atom.all():
                X_num[atom, j] = generator.choice(X_num[~atom, j], atom.sum())
        X_num = X_num[:, self.kept(X_num.shape[1])]
        old = [] if table.X_cat is None else [np.asarray(table.X_cat).astype(object)]
        return Table(X_num if X_num.shape[1] else None, np.column_stack([*old, *states]), table.y)

    def merge(self, table: Table, num_columns: int, dtype: np.dtype) -> Table:
        """Undo `split`: atoms at the places that the states say.

        Args:
            table: with the states behind its own categories.
            num_columns: of the whole ``X_num``.
            dtype: of it.
        """
        if not self.values:
            return table
        own = table.X_cat.shape[1] - len(self.values)
        X_num = np.empty((len(table.y), num_columns), dtype=dtype)
        if table.X_num is not None:
            X_num[:, self.kept(num_columns)] = table.X_num
        for states, (j, atoms) in zip(table.X_cat[:, own:].T, self.values.items(), strict=True):
            at = states != BETWEEN
            X_num[at, j] = atoms[states[at].astype(np.int64)]
        return Table(X_num, table.X_cat[:, :own] if own else None, table.y)

    def state_dict(self) -> dict[str, Any]:
        """The fields, for a checkpoint."""
        return {
            "values": {j: torch.from_numpy(values) for j, values in self.values.items()},
            "whole": sorted(self.whole),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo `state_dict`."""
        values = {j: each.numpy(force=True) for j, each in state["values"].items()}
        return cls(values, frozenset(state["whole"]))
