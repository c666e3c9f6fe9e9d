"""Transforms of a table's numerical columns and of a real target, fitted to its training part.

They expect arrays that `check_numbers` has let pass.
"""

from dataclasses import asdict, dataclass
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor

NORMAL_BOUND = -ndtri(1e-7 - np.spacing(1))  # 5.19934; scikit-learn's stand-in for the normal's infinite quantiles
EDGE = 5.1993  # scores beyond it mean the range's end, in float32 as well
MAX_SNAPPED_VALUES = 32  # an all-integer column with at most so many values takes no others on the way back
# Magnitudes up to which arithmetic in float64 neither overflows nor skips integers. (A float64 scalar: a Python float
# would become infinite beside an array of float32.)
LARGEST = {"f": np.float64(1e300), "i": 2**53, "u": 2**53}


def num_quantiles(num_rows: int) -> int:
    """Grid points of the quantile transform, by the published rule, and never more than rows."""
    return min(max(min(num_rows // 30, 1000), 10), num_rows)


class TensorState:
    """Of a dataclass of arrays: its fields as tensors, and back."""

    def state_dict(self) -> dict[str, Tensor]:
        """The fields, for a checkpoint."""
        return {name: torch.from_numpy(array) for name, array in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """Undo `state_dict`, wherever the tensors have been moved."""
        return cls(**{name: tensor.numpy(force=True) for name, tensor in state.items()})


@dataclass(frozen=True)
class QuantileTransform(TensorState):
    """Each column to a standard normal by its distribution function, interpolated between quantiles.

    As scikit-learn's ``QuantileTransformer(output_distribution="normal", subsample=<all rows>)``: a value that fills
    several quantiles gets their mean rank, values within 1e-7 of an end of the range get ±5.1993 whatever share of the
    rows is there, and the inverse never leaves the training range. The type of the array matters, as it does there: in
    float32 adding 1e-7 changes no number beyond ±2, so that an atom at 52 keeps its mean rank, and one at 0 does not.
    Differences: a constant column is 0; columns narrower than 1e-3 have a narrower margin than 1e-7, which would
    swallow their detail; ranks are float64 whatever the type (effect below 1e-4).

    Attributes:
        quantiles: float64 [quantile, column], ascending, from the smallest value to the largest.
    """

    quantiles: NDArray[np.float64]

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest training value of each column."""
        return self.quantiles[0], self.quantiles[-1]

    @classmethod
    def fit(cls, X: NDArray) -> "QuantileTransform":
        """Fit to the rows of X [row, column], without gaps."""
        ranks = np.linspace(0, 1, num_quantiles(len(X)))
        quantiles = np.empty((len(ranks), X.shape[1]))
        for j in range(X.shape[1]):  # at once, a sorted copy of the whole table would be held
            quantiles[:, j] = np.percentile(np.sort(X[:, j]).astype(np.float64), 100 * ranks)
        return cls(quantiles)

    def transform(self, X: NDArray, generator: np.random.Generator | None = None) -> NDArray[np.float32]:
        """Normal scores [row, column] of X [row, column].

        Args:
            X: values; those outside the training range count as its ends.
            generator: to spread a value that fills several quantiles uniformly over its ranks instead of placing it
                at their mean (uniform dequantisation inside ties): an atom then has its share of the normal, and
                the inverse is the same. A value rarer than the grid is fine counts as continuous.
        """
        ranks = np.linspace(0, 1, len(self.quantiles))
        scores = np.empty(X.shape, dtype=np.float32)
        X = X if X.dtype.kind == "f" else X.astype(np.float64)
        for j, grid in enumerate(self.quantiles.T):  # np.interp knows one grid at a time
            column = X[:, j]
            upper = np.interp(column, grid, ranks)
            lower = -np.interp(-column, -grid[::-1], -ranks[::-1])
            if generator is None:
                rank = 0.5 * (lower + upper)
                margin = float(min(1e-7, 1e-4 * (grid[-1] - grid[0])))
                rank[column + margin > grid[-1]] = 1
                rank[column - margin < grid[0]] = 0
            else:
                rank = lower + (upper - lower) * generator.random(len(column))
            scores[:, j] = np.clip(ndtri(rank), -NORMAL_BOUND, NORMAL_BOUND)
        scores[:, self.quantiles[0] == self.quantiles[-1]] = 0
        return scores

    def inverse(self, scores: NDArray) -> NDArray[np.float64]:
        """Values [row, column] of normal scores [row, column], inside the training range."""
        ranks = np.linspace(0, 1, len(self.quantiles))
        values = np.empty(scores.shape)
        for j, grid in enumerate(self.quantiles.T):
            column = scores[:, j].astype(np.float64)
            values[:, j] = np.interp(ndtr(column), ranks, grid)
            values[column <= -EDGE, j] = grid[0]
            values[column >= EDGE, j] = grid[-1]
        return values


@dataclass(frozen=True)
class AffineTransform(TensorState):
    """Each column minus an offset, over a width: min-max or z-scores. A constant column is 0.

    Attributes:
        offset, width: float64 [column], in the column's unit.
        minimum, maximum: float64 [column], the training range. The inverse ends there; the published code lets a model
            leave the range, by little, in the one data set that it scales by min-max (default).
    """

    offset: NDArray[np.float64]
    width: NDArray[np.float64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest training value of each column."""
        return self.minimum, self.maximum

    @classmethod
    def fit(cls, X: NDArray, normalisation: Literal["minmax", "standard"]) -> "AffineTransform":
        """Fit to the rows of X [row, column], without gaps."""
        minimum, maximum = X.min(axis=0).astype(np.float64), X.max(axis=0).astype(np.float64)
        offset, width = minimum, maximum - minimum
        if normalisation == "standard":
            unit = np.maximum(np.abs(minimum), np.abs(maximum))
            unit = np.where(unit > 0, unit, 1.0)  # fractions of the largest, so that no square overflows
            offset, width = unit * np.mean(X / unit, axis=0), unit * np.std(X / unit, axis=0)
        return cls(offset, np.where((minimum < maximum) & (width > 0), width, 1.0), minimum, maximum)

    def transform(self, X: NDArray, generator: np.random.Generator | None = None) -> NDArray[np.float32]:
        """Scaled values [row, column] of X [row, column].

        Raises:
            ValueError: a generator; there are no ranks over which ties could be spread.
        """
        if generator is not None:
            raise ValueError("ties are spread over their ranks by normalisation='quantile' alone: leave generator out")
        return np.where(self.minimum < self.maximum, (X - self.offset) / self.width, 0).astype(np.float32)

    def inverse(self, scores: NDArray) -> NDArray[np.float64]:
        """Values [row, column] of scaled ones [row, column], cut to the training range."""
        return np.clip(scores.astype(np.float64) * self.width + self.offset, self.minimum, self.maximum)


@dataclass(frozen=True)
class TargetScaler:
    """A real target to z-scores, by training mean and population standard deviation (1 for a constant target)."""

    mean: float
    standard_deviation: float

    @classmethod
    def fit(cls, y: NDArray) -> "TargetScaler":
        """Fit to y [row]."""
        scaler = AffineTransform.fit(y[:, None], "standard")
        return cls(float(scaler.offset[0]), float(scaler.width[0]))

    def transform(self, y: NDArray) -> NDArray[np.float32]:
        """z-scores [row] of y [row]."""
        return ((y - self.mean) / self.standard_deviation).astype(np.float32)

    def inverse(self, scores: NDArray) -> NDArray[np.float64]:
        """Targets [row] of z-scores [row]."""
        return scores.astype(np.float64) * self.standard_deviation + self.mean

    def state_dict(self) -> dict[str, float]:
        """The fields, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, float]) -> Self:
        """Undo `state_dict`."""
        return cls(**state)


def integer_values(X: NDArray) -> dict[int, NDArray[np.float64]]:
    """The sorted values of each all-integer column of X [row, column] with at most `MAX_SNAPPED_VALUES` of them."""
    candidates = np.flatnonzero((np.rint(X) == X).all(axis=0))
    values = {int(j): np.unique(X[:, j]).astype(np.float64) for j in candidates}
    return {j: each for j, each in values.items() if len(each) <= MAX_SNAPPED_VALUES}


def snap(X: NDArray[np.float64], values: dict[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    """X [row, column] with the columns named in `values` moved to the nearest one, the lower of two equally near."""
    X = X.copy()
    for j, allowed in values.items():
        X[:, j] = allowed[np.searchsorted((allowed[1:] + allowed[:-1]) / 2, X[:, j])]
    return X


def check_numbers(numbers: NDArray, place: str) -> None:
    """Make sure that an array [row, column] holds numbers that a transform can use.

    Args:
        numbers: the array.
        place: what a column is called in messages; "{}" stands for its number.

    Raises:
        ValueError: it holds something else, a gap, an infinity, or a number that float64 arithmetic cannot carry.
    """
    if numbers.dtype.kind not in LARGEST:
        raise ValueError(
            f"{place.format(0)} is of type {numbers.dtype}, not of numbers: convert it to integers or floats, or make "
            f"it categorical"
        )
    largest = LARGEST[numbers.dtype.kind]
    bad = (numbers < -largest) | (numbers > largest) | np.isnan(numbers)
    if not bad.any():
        return
    i, j = np.argwhere(bad)[0]
    where, value = f"{place.format(j)}, row {i}", numbers[i, j]
    if np.isnan(numbers[:, j]).all():
        raise ValueError(f"{place.format(j)} has no value at all: leave the column out")
    if np.isnan(value):
        raise ValueError(f"{where}: nan, a missing value; fill it, or turn missingness into a category or a mask first")
    if np.isinf(value):
        raise ValueError(f"{where}: {value} is infinite; give it a finite value, or leave the row out")
    remedy = "rescale the column" if numbers.dtype.kind == "f" else "subtract an offset, or make the column categories"
    raise ValueError(f"{where}: {value} is beyond {largest:g}, where float64 is no longer exact; {remedy}")
