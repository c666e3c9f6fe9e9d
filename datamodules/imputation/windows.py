"""From the rows of series to padded batches of z-scores, and back."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.imputation.batch import SeriesBatch
from datamodules.imputation.tables import Series, Table, TableFormat
from datamodules.own_tables import TableError
from datamodules.state import check_format_version

FORMAT_VERSION = 1  # of `Preparation.state_dict`
REGULAR = 1e-4  # steps by which a stamp may depart from the regular grid and still count as on it
DIGITS = {torch.float32: 7, torch.float64: 12}  # decimals of a standard deviation that an imputation is rounded to


class Segments(NamedTuple):
    """Stretches of rows, each inside one series.

    Attributes:
        starts: int64 [segment], first row.
        stops: int64 [segment], the row behind the last.
        series: int64 [segment], number of the series.
    """

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    series: NDArray[np.int64]

    def select(self, which: NDArray | slice) -> "Segments":
        """Some of the segments."""
        return Segments(*(each[which] for each in self))

    def grid(self, num_steps: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows [segment, time], the last one again behind the end, and where they are not behind the end."""
        offsets = np.arange(num_steps)
        last = (self.stops - self.starts - 1)[:, None]
        return self.starts[:, None] + np.minimum(offsets, last), offsets <= last

    def cut(self, length: int, stride: int | None = None) -> "Segments":
        """Windows of at most so many rows.

        Args:
            length: rows of a window.
            stride: rows from one window to the next, at most `length`; the last window then ends with its segment.
                None: windows of nearly equal lengths that do not overlap.

        Returns:
            The windows, segment by segment.
        """
        lengths = self.stops - self.starts
        rest = np.maximum(lengths - length, 0)
        counts = 1 + (-(-rest // stride) if stride else -(-rest // length))
        segment = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(segment)) - np.repeat(counts.cumsum() - counts, counts)
        starts, lengths, counts = self.starts[segment], lengths[segment], counts[segment]
        if stride:
            first = starts + np.minimum(number * stride, rest[segment])
            stop = first + np.minimum(length, lengths)
        else:
            first, stop = starts + number * lengths // counts, starts + (number + 1) * lengths // counts
        return Segments(first, stop, self.series[segment])


def whole(series: Series) -> Segments:
    """Each series from its first row to its last."""
    return Segments(series.offsets[:-1], series.offsets[1:], np.arange(len(series.ids)))


@dataclass(frozen=True)
class Preparation:
    """How a table's values become what a method reads, and a method's answers values: all that has to be kept of it.

    Attributes:
        form: format of the table, with its variables named.
        mean: float64 [variable], in the table's units.
        standard_deviation: float64 [variable], likewise; 1 for a variable without spread.
        time_step: unit of the time stamps that a method sees, in units of the table's.
        num_steps: length to which series are padded, and longest window.
        stride: rows from one window to the next, where a series is longer.
    """

    form: TableFormat
    mean: NDArray[np.float64]
    standard_deviation: NDArray[np.float64]
    time_step: float
    num_steps: int
    stride: int

    @classmethod
    def fit(cls, table: Table, fitted: Segments, num_steps: int, stride: int) -> "Preparation":
        """Fit to the observed values of some segments; the time step is the median gap between rows of all series.

        Raises:
            TableError: a variable has no observed value there.
        """
        series, variables = table.series, table.form.variables
        inside = np.zeros(len(series.values) + 1, dtype=np.int64)
        np.add.at(inside, fitted.starts, 1)
        np.add.at(inside, fitted.stops, -1)
        values = series.values[inside.cumsum()[:-1] > 0]
        largest = np.nanmax(np.abs(values), axis=0, initial=0.0)  # [variable]
        counts = np.sum(~np.isnan(values), axis=0)
        if (counts == 0).any():
            raise TableError(
                f"{table.path}: variable '{variables[int(np.argmin(counts))]}' has no observed value among the series "
                f"to fit to; take its column out of the table or out of data.variables, or where the table is "
                f"split choose another data.split_seed"
            )
        # Fractions of the largest, so that no square overflows.
        unit = np.where(largest > 0, largest, 1.0)
        mean = np.nansum(values / unit, axis=0) / counts
        deviation = np.sqrt(np.nansum(np.square(values / unit - mean), axis=0) / counts)
        varies = (np.nanmax(values, axis=0) > np.nanmin(values, axis=0)) & (deviation * unit > 0)
        gaps = np.delete(np.diff(series.times), series.offsets[1:-1] - 1)
        time_step = float(np.median(gaps)) if gaps.size else 1.0
        return cls(table.form, mean * unit, np.where(varies, deviation * unit, 1.0), time_step, num_steps, stride)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, from which `from_state` makes it again."""
        state = asdict(self) | {"format_version": FORMAT_VERSION}
        return state | {name: torch.from_numpy(state[name]) for name in ("mean", "standard_deviation")}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Preparation":
        """Undo `state_dict`.

        Raises:
            ValueError: it was written by another version of the program.
        """
        check_format_version(state, FORMAT_VERSION)
        mean, deviation = state["mean"].numpy(), state["standard_deviation"].numpy()
        others = {name: state[name] for name in ("time_step", "num_steps", "stride")}
        return cls(TableFormat(**state["form"]), mean, deviation, **others)

    def rows(
        self, series: Series, hidden: NDArray[np.bool_] | None = None, dtype: torch.dtype = torch.float32
    ) -> "Rows":
        """All rows as a method sees them.

        Args:
            series: with the variables of ``form``.
            hidden: bool [row, variable], entries to hide from the method; None: none.
            dtype: of z-scores and times.
        """
        scores = (series.values - self.mean) / self.standard_deviation
        known = ~np.isnan(scores)
        steps = series.times / self.time_step
        position = np.arange(len(steps)) - np.repeat(series.offsets[:-1], series.lengths)
        regular = bool(np.all(np.abs(steps - position) <= REGULAR))
        return Rows(
            scores=torch.from_numpy(np.where(known, scores, 0.0)).to(dtype),
            known=torch.from_numpy(known),
            hidden=torch.from_numpy(np.zeros_like(known) if hidden is None else hidden),
            steps=None if regular else torch.from_numpy(steps),
        )

    def values(self, scores: Tensor) -> NDArray[np.float64]:
        """Z-scores [..., variable] in the table's units again, without the digits that the scores do not hold."""
        return self._rounded(scores.double().numpy() * self.standard_deviation + self.mean, scores.dtype)

    def spreads(self, scores: Tensor) -> NDArray[np.float64]:
        """Standard deviations of z-scores [..., variable] in the table's units, likewise."""
        return self._rounded(scores.double().numpy() * self.standard_deviation, scores.dtype)

    def _rounded(self, values: NDArray[np.float64], dtype: torch.dtype) -> NDArray[np.float64]:
        decimals = DIGITS[dtype] - np.floor(np.log10(self.standard_deviation))  # [variable]
        power = 10.0 ** np.clip(np.abs(decimals), 0, 300)
        whole_number = np.rint(np.where(decimals > 0, values * power, values / power))
        rounded = np.where(decimals > 0, whole_number / power, whole_number * power)
        return np.where(np.abs(whole_number) < 2**53, rounded, values)


class Rows(NamedTuple):
    """All rows of a table's series, one behind the other.

    Attributes:
        scores: float [row, variable], z-scores; 0 where missing.
        known: bool [row, variable], where the table has a value.
        hidden: bool [row, variable], known values that a method must not see.
        steps: float64 [row], time stamps in steps since the first row of the series; None on the regular grid.
    """

    scores: Tensor
    known: Tensor
    hidden: Tensor
    steps: Tensor | None


class Windows:
    """Segments of rows, padded to one length; indexing by an int64 tensor gives a `SeriesBatch`.

    The padding behind the end of a segment is neither observed nor a target, and its time goes on in steps of one.

    Args:
        rows: all rows.
        segments: the windows, none longer than `num_steps`.
        num_steps: length of a padded window.
        labels: int64 [window], classes.
    """

    def __init__(self, rows: Rows, segments: Segments, num_steps: int, labels: NDArray[np.int64]) -> None:
        self.rows, self.segments, self.num_steps = rows, segments, num_steps
        self.labels = torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.segments.starts)

    def __getitem__(self, indices: Tensor) -> SeriesBatch:
        segments = self.segments.select(indices.numpy())
        rows, inside = (torch.from_numpy(each) for each in segments.grid(self.num_steps))  # [batch, time]
        known = self.rows.known[rows] & inside[..., None]  # [batch, time, variable]
        target_mask = self.rows.hidden[rows] & inside[..., None]
        observed_mask = known & ~target_mask
        target = self.rows.scores[rows] * known
        times = None
        if self.rows.steps is not None:
            steps = self.rows.steps[rows]
            behind = (~inside).cumsum(1)  # steps since the end of the window
            times = steps - steps[:, :1] + behind  # float64: behind a long pause float32 would not part two steps
        return SeriesBatch(
            values=target * observed_mask,
            observed_mask=observed_mask,
            target=target,
            target_mask=target_mask,
            label=self.labels[indices],
            index=indices,
            times=times,
        )
