"""Categories of a table's columns as integers, fitted to its training part."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CATEGORY_KINDS = {"U": "string", "i": "integer", "u": "integer", "b": "boolean"}  # type object: by the values


@dataclass(frozen=True)
class CategoricalEncoder:
    """Each column's categories to their rank among the sorted ones of the training part.

    Attributes:
        place: what a column is called in messages; "{}" stands for its number.
        categories: for each column its categories, sorted.
        dtype: numpy's name of the type that `decode` returns.
    """

    place: str
    categories: tuple[NDArray, ...]
    dtype: str

    @classmethod
    def fit(cls, X: NDArray, place: str) -> "CategoricalEncoder":
        """Find the categories of X [row, column].

        Raises:
            ValueError: a column has missing values, or others than strings, integers or booleans.
        """
        columns = []
        for j in range(X.shape[1]):  # each column has another number of categories
            kind = _category_kind(X[:, j], place.format(j))
            found = pd.unique(X[:, j])
            columns.append(np.sort(found.astype({"string": str, "integer": np.int64, "boolean": bool}[kind])))
        return cls(place, tuple(columns), X.dtype.str)

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 [column], number of categories of each."""
        return np.array([len(each) for each in self.categories], dtype=np.int64)

    def encode(self, X: NDArray) -> NDArray[np.int64]:
        """Ranks [row, column] of X [row, column]; the column's count for a category that training lacks.

        Raises:
            ValueError: as in `fit`, or a column is of another kind than it was there.
        """
        codes = np.empty(X.shape, dtype=np.int64)
        for j, categories in enumerate(self.categories):
            kind, fitted = _category_kind(X[:, j], self.place.format(j)), CATEGORY_KINDS[categories.dtype.kind]
            if len(X) and kind != fitted:
                raise ValueError(
                    f"{self.place.format(j)} is of kind {kind}, but {fitted} in the training part: convert one of them"
                )
            target = pd.Index(X[:, j], dtype=object if kind == "string" else None)
            codes[:, j] = pd.Index(categories, dtype=object if kind == "string" else None).get_indexer(target)
        return np.where(codes < 0, self.counts, codes)

    def decode(self, codes: NDArray) -> NDArray:
        """Categories [row, column] of ranks [row, column].

        Raises:
            ValueError: a rank is none of a category.
        """
        outside = (codes < 0) | (codes >= self.counts)
        if outside.any():
            i, j = np.argwhere(outside)[0]
            raise ValueError(
                f"{self.place.format(j)}, row {i}: {codes[i, j]} is not the number of a category, which are 0 to "
                f"{self.counts[j] - 1}"
            )
        values = np.empty(codes.shape, dtype=self.dtype)
        for j, categories in enumerate(self.categories):
            values[:, j] = categories[codes[:, j]]
        return values

    def state_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a checkpoint."""
        return asdict(self) | {"categories": [each.tolist() for each in self.categories]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo `state_dict`."""
        return cls(**state | {"categories": tuple(np.array(each) for each in state["categories"])})


def _category_kind(column: NDArray, place: str) -> str:
    """Whether a column [row] holds strings, integers or booleans.

    Raises:
        ValueError: it has gaps, or holds anything else.
    """
    if column.dtype.kind == "O":
        missing = pd.isna(column)
        if len(column) and missing.all():
            raise ValueError(f"{place} has no value at all: leave the column out")
        if missing.any():
            i = int(np.argmax(missing))
            raise ValueError(f"{place}, row {i}: {column[i]}, a missing value; make it a category of its own first")
        kind = pd.api.types.infer_dtype(column, skipna=False)
    else:
        kind = CATEGORY_KINDS.get(column.dtype.kind, str(column.dtype))
    if len(column) and kind not in CATEGORY_KINDS.values():
        raise ValueError(
            f"{place} holds values of kind {kind}: convert all of them to strings, or all of them to integers"
        )
    return kind
