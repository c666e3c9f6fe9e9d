"""The 16 tables of TabDDPM (Kotelnikov et al., ICML 2023) as their published arrays, to the last bit.

>>> arrays = load_arrays("abalone")
>>> sorted(arrays)[:3], arrays["X_num_train"].shape
(['X_cat_test', 'X_cat_train', 'X_cat_val'], (2672, 7))

`DATASETS` has the task, the columns and the sizes of each.
"""

import difflib
import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules import sources
from datamodules.sources import SourceError
from datamodules.synthesis import published_arrays, row_splits
from datamodules.synthesis.base import Evaluation, TableDataModule
from datamodules.synthesis.benchmark_facts import DATASETS
from datamodules.synthesis.benchmark_schema import Dataset, Edition
from datamodules.synthesis.codec import NamedColumns, TableCodec
from datamodules.synthesis.preprocessing import Normalisation, Table, Task

__all__ = ["DATASETS", "BenchmarkTable", "data_sha256", "data_variant", "load_arrays"]

logger = logging.getLogger(__name__)

SplitName = Literal["published", "seeded"]


class BenchmarkTable(TableDataModule):
    """One of the 16 tables, for a generative model and for those who score it.

    Args:
        name: key of `DATASETS`.
        split: "published", or "seeded": see `load_arrays`.
        split_seed: of a seeded split.
        normalisation: of the numerical columns, see `TableTransform.fit`.
        atoms: share of the rows above which a number is a state of its own, see `Atoms`; None: as published, none is.
        spread_ties: spread equal numbers over their ranks, see `QuantileTransform.transform`; False: as published.
        num_samples: rows of a synthetic table; None: as many as the training part has. With a substitute the number is
            in proportion to its training rows: those who tuned it have tuned how many times these are drawn.
        evaluation: "published": 5 synthetic tables, 10 trainings of each evaluator on each; "quick": 1 and 3;
            "validation": 5 and 3, scored on the validation part, the test part left out: to compare settings by.
        sampling_seeds: another number of tables.
        evaluation_seeds: another number of trainings on each.
        catboost: tuned arguments of CatBoost, see `callbacks.catboost_evaluator`; None: it is not trained.
        mlp: likewise of the multilayer perceptron, see `callbacks.mlp_evaluator`.
        batch_size: training rows of a batch on one process.
        seed: of the training order.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        name: str,
        split: SplitName = "published",
        split_seed: int = 0,
        normalisation: Normalisation = "quantile",
        atoms: float | None = None,
        spread_ties: bool = False,
        num_samples: int | None = None,
        evaluation: Evaluation = "published",
        sampling_seeds: int | None = None,
        evaluation_seeds: int | None = None,
        catboost: dict[str, Any] | None = None,
        mlp: dict[str, Any] | None = None,
        batch_size: int = 4096,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _known(name)
        self.save_hyperparameters()
        self.check_arguments()

    columns_class = NamedColumns

    @property
    def table_task(self) -> Task:
        """Task of the data set."""
        return DATASETS[self.hparams.name].task

    @property
    def data_variant(self) -> str:
        """Which rows there are, see `data_variant`."""
        return data_variant(self.hparams.name)

    @property
    def comparable(self) -> bool:
        """Whether the rows and their parts are the published ones."""
        return self.hparams.split == "published" and self.data_variant == "published"

    @property
    def num_rows_drawn(self) -> int:
        """Rows of a synthetic table; after `setup`."""
        asked = self.hparams.num_samples
        if asked is None or self.data_variant == "published":
            return super().num_rows_drawn
        here, published = len(self.encoded.target), DATASETS[self.hparams.name].sizes[0]
        scaled = max(1, round(asked * here / published))
        logger.warning(
            "%s: %d rows are drawn in place of num_samples=%d: the substitute has %d training rows, not %d.",
            self.hparams.name, scaled, asked, here, published,
        )  # fmt: skip
        return scaled

    @cached_property
    def data_sha256(self) -> dict[str, str]:
        """Sums of the raw files."""
        return data_sha256(self.hparams.name)

    def prepare_data(self) -> None:
        """Fetch the raw files, where they are not at hand."""
        data_sha256(self.hparams.name)

    def setup(self, stage: str | None = None) -> None:
        """Read the parts and fit what is fitted to the training part; once.

        Raises:
            SourceError: a file cannot be had.
        """
        if self.parts is not None:
            return
        options, dataset = self.hparams, DATASETS[self.hparams.name]
        arrays = load_arrays(options.name, options.split, options.split_seed)
        parts = {
            part: Table(*(arrays.get(f"{key}_{part}") for key in ("X_num", "X_cat", "y"))) for part in row_splits.PARTS
        }
        columns = NamedColumns(dataset.numerical, dataset.categorical, dataset.target)
        codec = TableCodec.fit(parts["train"], columns, dataset.task, options.normalisation, options.atoms)
        self.prepare(parts, codec, options.spread_ties)


def load_arrays(name: str, split: SplitName = "published", seed: int = 0) -> dict[str, NDArray]:
    """Read a data set.

    Args:
        name: key of `DATASETS`.
        split: "published", or "seeded": the published proportions, drawn anew from all rows, by class where there are
            classes.
        seed: of a seeded split.

    Returns:
        By their published names: ``X_num_train`` [row, column], float32 or float64; ``X_cat_train`` [row, column],
        strings; ``y_train`` [row], int64 from 0 for classes; likewise with ``_val`` and ``_test``. ``X_num`` or
        ``X_cat`` is left out where the data set has no such columns. Of a substitute (`data_variant`) the published
        split is the one that comes nearest to it.

    Raises:
        ValueError: an unknown name or split.
        SourceError: raw files or the list of a split's rows cannot be had, or they are damaged.
    """
    dataset = _known(name)
    if split not in get_args(SplitName):
        raise ValueError(f"split={split!r}: it must be one of {', '.join(get_args(SplitName))}.")
    edition = _edition(name)
    if edition.variant != "published":
        wanted = ", ".join(dataset.editions[0].files)
        logger.warning("%s: %s stands in for the published rows, for want of %s.", name, edition.variant, wanted)
    files = [_fetch(name, file) for file in edition.files]
    frame = edition.read(files, dataset)
    columns = {"X_num": _numbers(frame, dataset, files), "X_cat": _categories(frame, dataset, files)}
    columns = {key: values for key, values in columns.items() if values.shape[1] > 0}
    columns["y"] = _target(frame, dataset, edition, files)

    if split == "published":
        rows = edition.split(columns["y"])
    else:
        rows = row_splits.seeded(columns["y"], dataset.sizes, seed, stratified=dataset.num_classes > 0)
    rows = _checked(rows, len(frame), name)
    if dataset.target_quantile is not None:
        largest = np.quantile(columns["y"][rows["train"]].astype(np.float64), dataset.target_quantile)
        rows = {part: chosen[columns["y"][chosen] <= largest] for part, chosen in rows.items()}
    arrays = {f"{key}_{part}": values[chosen] for key, values in columns.items() for part, chosen in rows.items()}
    if split == "published" and edition.variant == "published":
        _check_sizes(name, rows)
        published_arrays.check(name, arrays)
    return arrays


def data_variant(name: str) -> str:
    """Which rows `load_arrays` gives: "published", or the name of the substitute that is at hand instead.

    Args:
        name: key of `DATASETS`.

    Raises:
        ValueError: an unknown name.
        SourceError: a mirror cannot be read, or holds a damaged file.
    """
    return _edition(name).variant


def data_sha256(name: str) -> dict[str, str]:
    """SHA-256 of the raw files that `load_arrays` reads the rows from, by their paths; they are fetched if need be.

    Args:
        name: key of `DATASETS`.

    Raises:
        ValueError: an unknown name.
        SourceError: a file cannot be had.
    """
    return {file: sources.file_sha256(_fetch(name, file)) for file in _edition(name).files}


def _known(name: str) -> Dataset:
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(DATASETS)}."
        raise ValueError(f"There is no data set {name!r}. {hint}")
    return DATASETS[name]


def _edition(name: str) -> Edition:
    """The first edition whose files are all in a mirror or the cache, or else the first that can be downloaded."""
    editions = _known(name).editions
    at_hand = [edition for edition in editions if all(_find(file) is not None for file in edition.files)]
    for_download = [edition for edition in editions if all(_pinned(file) for file in edition.files)]
    return [*at_hand, *for_download, editions[0]][0]


def _pinned(file: str) -> str | None:
    """Name of the source with this file, where its sum is known."""
    return next((name for name, source in sources.SOURCES.items() if source.path == f"tabular/{file}"), None)


def _find(file: str) -> Path | None:
    pinned = _pinned(file)
    return sources.find(pinned) if pinned else sources.find_unverified(f"tabular/{file}")


def _fetch(name: str, file: str) -> Path:
    pinned = _pinned(file)
    if pinned:
        return sources.fetch(pinned)
    path = _find(file)
    if path is None:
        raise SourceError(
            f"{name}: {file} is not downloaded. Get it from {DATASETS[name].page} and put it at "
            f"{sources.cached_path(f'tabular/{file}')}, or set GENPRED_MIRROR to a folder that holds tabular/{file}."
        )
    return path


def _numbers(frame: pd.DataFrame, dataset: Dataset, files: list[Path]) -> NDArray:
    place = ", ".join(map(str, files))
    for column in dataset.numerical:
        if not pd.api.types.is_numeric_dtype(frame[column]) or not np.isfinite(frame[column].to_numpy()).all():
            raise SourceError(f"{place}: column {column} has cells that are no numbers. Replace the damaged file.")
    return frame[list(dataset.numerical)].to_numpy(np.float64).astype(dataset.number_type)


def _categories(frame: pd.DataFrame, dataset: Dataset, files: list[Path]) -> NDArray:
    # Text is one object a category, and each number becomes an object of its own: as objects are pickled in the
    # published files, this makes a difference to their bytes.
    values = np.empty((len(frame), len(dataset.categorical)), dtype=object)
    for index, name in enumerate(dataset.categorical):
        if frame[name].isna().any():
            raise SourceError(f"{', '.join(map(str, files))}: column {name} has empty cells. Replace the damaged file.")
        if pd.api.types.is_numeric_dtype(frame[name]):
            values[:, index] = [str(value) for value in frame[name].tolist()]
        else:
            codes, categories = pd.factorize(frame[name])
            values[:, index] = np.asarray(categories, dtype=object)[codes]
    return values.astype(dataset.category_type)


def _target(frame: pd.DataFrame, dataset: Dataset, edition: Edition, files: list[Path]) -> NDArray:
    place, target = ", ".join(map(str, files)), frame[dataset.target]
    if len(target) != edition.rows:
        raise SourceError(f"{place}: {len(target)} rows, expected {edition.rows}. Replace the damaged file.")
    if not pd.api.types.is_numeric_dtype(target) or not np.isfinite(target.to_numpy()).all():
        raise SourceError(f"{place}: column {dataset.target} has cells that are no numbers. Replace the damaged file.")
    y = target.to_numpy().astype(dataset.target_type)
    if dataset.num_classes:
        values, counts = np.unique(y, return_counts=True)
        if not np.array_equal(values, np.arange(dataset.num_classes)) or tuple(counts) != edition.class_counts:
            found = ", ".join(f"{count} of class {value}" for value, count in zip(values, counts, strict=True))
            raise SourceError(f"{place}: {found}, expected {edition.class_counts}. Replace the damaged file.")
    return y


def _checked(rows: row_splits.Rows, num_rows: int, name: str) -> row_splits.Rows:
    if not np.array_equal(np.sort(np.concatenate([*rows.values()])), np.arange(num_rows)):
        raise SourceError(
            f"{name}: the split does not use each of the {num_rows} rows once. Replace its list of rows, or use "
            f"split='seeded'."
        )
    return rows


def _check_sizes(name: str, rows: row_splits.Rows) -> None:
    sizes = tuple(len(chosen) for chosen in rows.values())
    if sizes != DATASETS[name].sizes:
        raise SourceError(f"{name}: parts of {sizes} rows, expected {DATASETS[name].sizes}. Replace its list of rows.")
