"""The user's own time series: a table with gaps, read from CSV, Parquet or NPZ (see `tables` for the layouts).

Series may have stamps of any spacing and any lengths. They are padded to one length, and long ones can be cut into
windows. Padding is neither observed nor a target; to a method with a prior over the whole series, such as GP-VAE, it
is a stretch of time after the last row of which nothing was observed.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules import sources
from datamodules.base import ResumableDataModule, TensorLoader
from datamodules.imputation.frames import TimeUnit
from datamodules.imputation.missingness import SeriesMechanism, hide
from datamodules.imputation.tables import Series, Table, TableFormat, count_classes, read_shape, read_table
from datamodules.imputation.windows import Preparation, Segments, Windows, whole
from datamodules.own_tables import TableError, check_fractions, separator_of

LONGEST = 5000  # steps of a series that is not cut into windows; GP-VAE's prior takes their square in memory


class CSV(ResumableDataModule):
    r"""Series of a table, z-scored, with a part of the observed validation and test entries hidden for scoring.

    Means and standard deviations of the z-scores are those of the observed training entries, in which nothing is
    hidden. Batches carry time stamps in units of the median gap between neighbouring rows, from the series' first row
    on; padding goes on from the last row in steps of one. Where all rows stand on the regular grid 0, 1, 2, ... of
    that unit, whatever the lengths, batches carry none.

    Checkpoints hold all that the imputation of further files takes: see `Preparation`.

    Args:
        path: the table, ``.csv``, ``.parquet`` or ``.npz``.
        layout: "long" or "wide", for CSV and Parquet.
        id_column: name of the series; None: the file is one series.
        time_column: time stamps; None: the order of the rows.
        label_column: class of a series; a classifier is then scored on the imputed test series, and a method may learn
            from the classes (``num_classes``). None: neither. Needs series of equal length that are not cut.
        variables: columns to impute; None: all without another role. Others are handed through.
        time_unit: None where stamps are numbers; else they are ISO dates, counted in this unit.
        separator: between the cells of a CSV file; "\t" for tabs.
        window: time steps of the windows that series are cut into; None: whole series.
        stride: time steps from one training window to the next; None: half a window. Windows of the evaluation do not
            overlap, so that nothing is scored twice.
        split_by: "series" puts whole series into the parts, "time" the beginning of each series into the training
            part, its end into the test part.
        validation_fraction: part of the series, or of the time steps of each series, in (0, 1).
        test_fraction: likewise.
        split_seed: seed of the choice of series.
        missingness: mechanism that hides entries for scoring, see `missingness.hide`.
        holdout_fraction: part of the observed validation and test entries that is hidden, in (0, 1).
        holdout_seed: seed of the choice of hidden entries.
        batch_size: training rows (series or windows) of a batch on one process.
        evaluation_batch_size: rows of a validation or test batch on one process.
        evaluation_samples: draws of each test row, whose quantiles are scored (CRPS, coverage); 0: none.
        num_workers: worker processes of each loader.
        seed: seed of the training order.
        train_rows: use the first so many training rows only; z-scores are still those of all training series.
        validation_rows: use the first so many validation rows only.
        test_rows: use the first so many test rows only.

    Attributes:
        preparation: what was fitted to the table; after `setup`.

    Raises:
        ValueError: an argument is out of range, or (a TableError) the table cannot be used.
    """

    task = "imputation"

    def __init__(
        self,
        path: str | None = None,
        layout: Literal["long", "wide"] = "long",
        id_column: str | None = "id",
        time_column: str | None = "time",
        label_column: str | None = None,
        variables: Sequence[str] | None = None,
        time_unit: TimeUnit | None = None,
        separator: str = ",",
        window: int | None = None,
        stride: int | None = None,
        split_by: Literal["series", "time"] = "series",
        validation_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        missingness: SeriesMechanism = "mcar",
        holdout_fraction: float = 0.1,
        holdout_seed: int = 0,
        batch_size: int = 64,
        evaluation_batch_size: int = 100,
        evaluation_samples: int = 100,
        num_workers: int = 0,
        seed: int = 0,
        train_rows: int | None = None,
        validation_rows: int | None = None,
        test_rows: int | None = None,
    ) -> None:
        super().__init__()
        if path is None:
            raise ValueError("data.path is not set: name your table, such as data.path=my.csv (or .parquet, .npz)")
        for name, value in (("window", window), ("stride", stride)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: it must be at least 1 time step.")
        if stride is not None and (window is None or stride > window):
            raise ValueError(f"stride={stride}: it goes with a window that is at least as long; window={window}.")
        check_fractions(validation_fraction, test_fraction)
        if not 0 < holdout_fraction < 1:
            raise ValueError(f"holdout_fraction={holdout_fraction}: it must lie between 0 and 1.")
        separator = separator_of(separator)
        self.save_hyperparameters()
        self.form = TableFormat(
            layout=layout,
            id_column=id_column,
            time_column=time_column,
            label_column=label_column,
            time_unit=time_unit,
            separator=separator,
            variables=None if variables is None else tuple(variables),
        )
        self.preparation: Preparation | None = None
        self.train_set: Windows | None = None
        self.validation_set: Windows | None = None
        self.test_set: Windows | None = None
        self._sha256: str | None = None

    @cached_property
    def table(self) -> Table:
        """The table, read when it is first asked for."""
        return read_table(self.hparams.path, self.form)

    @property
    def variables(self) -> list[str]:
        """Names of the variables, in the order of the last dimension."""
        return list(self.table.form.variables)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Float64 [variable], in the table's units; after `setup`."""
        return self.preparation.mean

    @property
    def standard_deviation(self) -> NDArray[np.float64]:
        """Float64 [variable], in the table's units, 1 for a variable without spread; after `setup`."""
        return self.preparation.standard_deviation

    @property
    def time_label(self) -> str:
        """What the time stamps of a batch count."""
        return f"time in steps of {self.preparation.time_step:g} {self.form.time_unit or ''}".rstrip()

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Constructor arguments of a method that the data determine; reads the series' names and classes only."""
        form, lengths = read_shape(self.hparams.path, self.form)
        labelled = self.form.label_column is not None
        return {
            "num_features": len(form.variables),
            "num_steps": self._num_steps(lengths),
            "likelihood": "gaussian",
            "image_shape": None,
            **({"num_classes": count_classes(self.hparams.path, self.form)} if labelled else {}),
        }

    @property
    def evaluation_arguments(self) -> dict[str, Any]:
        """Arguments of the metrics: no rounding, intervals, and a classifier where there are classes."""
        classes = len(self.table.series.classes)
        return {
            "num_features": len(self.variables),
            "rounded": False,
            "classifier": None if classes == 0 else "binary" if classes == 2 else "multinomial",
            "samples": self.hparams.evaluation_samples,
        }

    @property
    def data_variant(self) -> str:
        """Not published data."""
        return "own"

    @property
    def data_sha256(self) -> dict[str, str]:
        """SHA-256 of the table, by its name."""
        if self._sha256 is None:
            self._sha256 = sources.file_sha256(Path(self.hparams.path))
        return {Path(self.hparams.path).name: self._sha256}

    def setup(self, stage: str | None = None) -> None:
        """Split, hide and standardise; once.

        Raises:
            TableError: the table is too small for its split, or does not suit a classifier that is asked for.
        """
        if self.train_set is not None:
            return
        options, series = self.hparams, self.table.series
        parts = self._split(series)
        num_steps = self._num_steps(series.lengths)
        stride = options.stride or max(num_steps // 2, 1)
        self.preparation = Preparation.fit(self.table, parts[0], num_steps, stride)
        known = ~np.isnan(series.values)
        hidden = np.zeros_like(known)
        limits = {"training": options.train_rows, "validation": options.validation_rows, "test": options.test_rows}
        windows = []
        for number, (name, limit) in enumerate(limits.items()):
            cut = parts[number].cut(num_steps, None if number else stride)
            rows, inside = cut.grid(num_steps)
            seen = known[rows] & inside[..., None]  # [window, time, variable]
            if number:
                generator = np.random.default_rng([options.holdout_seed, number])
                chosen = self._hide(series.values[rows], seen, generator)
                hidden[rows[chosen.any(2)]] |= chosen[chosen.any(2)]
            # A stretch without any value teaches nothing, and has nothing to score.
            cut = cut.select(np.flatnonzero(seen.any((1, 2)))[:limit])
            rows, inside = cut.grid(num_steps)
            if number and not (hidden[rows] & inside[..., None]).any():
                raise TableError(
                    f"{options.path}: the {name} part has no hidden entry to score; raise data.holdout_fraction or "
                    f"data.{name}_fraction"
                )
            windows.append(cut)
        rows = self.preparation.rows(series, hidden)
        self.train_set, self.validation_set, self.test_set = (
            Windows(rows, cut, num_steps, series.labels[cut.series]) for cut in windows
        )
        if series.classes:
            self._check_classes(series)

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints hold: `Preparation` and the table's sum, in plain values and tensors."""
        return {**self.preparation.state_dict(), "data_sha256": self.data_sha256}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make sure that a run which continues has the table that it began with.

        Raises:
            TableError: it has not.
        """
        if state["data_sha256"] != self.data_sha256:
            raise TableError(
                f"{self.hparams.path} has changed since this run began: put the old file back, or start over with "
                f"force=true"
            )

    def train_dataloader(self) -> TensorLoader:
        """Shuffled training batches."""
        return self.train_loader(self.train_set)

    def val_dataloader(self) -> TensorLoader:
        """Validation batches in the order of the split."""
        return self.evaluation_loader(self.validation_set)

    def test_dataloader(self) -> TensorLoader:
        """Test batches in the order of the split."""
        return self.evaluation_loader(self.test_set)

    def _num_steps(self, lengths: NDArray[np.int64]) -> int:
        """Length of the padded rows: the window, or the longest series, or the longest part of one."""
        if self.hparams.window is not None:
            return self.hparams.window
        if self.hparams.split_by == "time":
            lengths = np.diff(self._bounds(np.zeros_like(lengths), lengths), axis=0)
        longest = int(lengths.max())
        if longest > LONGEST:
            raise TableError(
                f"{self.hparams.path}: the longest series has {longest} time steps; cut it into windows of, say, 100 "
                f"with data.window=100"
            )
        return longest

    def _bounds(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ends of the three parts in time, int64 [4, series]."""
        options, lengths = self.hparams, stops - starts
        validation = np.rint(lengths * (1 - options.validation_fraction - options.test_fraction)).astype(np.int64)
        test = np.rint(lengths * (1 - options.test_fraction)).astype(np.int64)
        return np.stack([starts, starts + validation, starts + test, stops])

    def _split(self, series: Series) -> list[Segments]:
        """The training, validation and test part."""
        options, segments = self.hparams, whole(series)
        if options.split_by == "time":
            bounds = self._bounds(segments.starts, segments.stops)
            parts = [Segments(bounds[k], bounds[k + 1], segments.series) for k in range(3)]
            parts = [part.select(part.stops > part.starts) for part in parts]
            if min(len(part.starts) for part in parts) == 0:
                longest = series.lengths.max()
                raise TableError(
                    f"{options.path}: no series of its {longest} time steps can be split by time into three parts"
                )
            return parts
        count = len(series.ids)
        num_validation, num_test = (
            max(round(count * fraction), 1) for fraction in (options.validation_fraction, options.test_fraction)
        )
        if num_validation + num_test >= count:
            raise TableError(
                f"{options.path} holds {count} series, too few to split by series into three parts; data.split_by=time "
                f"splits each series in time, and data.window=... cuts long ones into windows"
            )
        order = np.random.default_rng(options.split_seed).permutation(count)
        numbers = np.split(order, [count - num_validation - num_test, count - num_test])
        return [segments.select(each) for each in numbers]

    def _hide(
        self, values: NDArray[np.float64], known: NDArray[np.bool_], generator: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Entries of windows [window, time, variable] to be hidden for scoring."""
        try:
            return hide(self.hparams.missingness, values, known, self.hparams.holdout_fraction, generator)
        except ValueError as error:
            raise TableError(f"{self.hparams.path}: {error}") from error

    def _check_classes(self, series: Series) -> None:
        """A classifier is fitted to one half of the test series and scored on the other, by all their time steps."""
        options = self.hparams
        if options.window is not None or len(np.unique(series.lengths)) > 1:
            raise TableError(
                f"{options.path}: data.label_column={options.label_column} asks for a classifier, which needs series "
                f"of equal length that are not cut; leave data.label_column out"
            )
        labels = self.test_set.labels.numpy()
        halves = [np.unique(half).tolist() for half in (labels[: len(labels) // 2], labels[len(labels) // 2 :])]
        if halves[0] != halves[1] or len(halves[0]) < 2:
            raise TableError(
                f"{options.path}: a classifier needs the same two or more classes in both halves of the {len(labels)} "
                f"test series; raise data.test_fraction, choose another data.split_seed or leave data.label_column out"
            )
