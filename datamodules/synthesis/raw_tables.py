"""From the raw files of the benchmark tables to rows: one small function for each data set with quirks.

Each reader takes the paths of an edition's files and the facts of its data set, and gives a data frame that has the
data set's columns under their names, a row for each row of the raw files in their order.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from datamodules.sources import SourceError
from datamodules.synthesis.benchmark_schema import Dataset

GESTURE_PHASES = {"D": 0, "H": 1, "P": 2, "R": 3, "S": 4}
MINIBOONE_SIGNAL = 36_499
LAST_DAY_OF_MOSCOW_SUMMER = pd.Timestamp(2014, 10, 26)


def read_csv(
    path: Path, names: Sequence[str] | None = None, *, delimiter: str = ",", skip_rows: int = 0
) -> pd.DataFrame:
    """A text table whose types follow from the whole file; real numbers are read to the nearest double.

    Args:
        path: the file.
        names: its columns, where it has no header.
        delimiter: between cells.
        skip_rows: lines before the table.

    Raises:
        SourceError: the file is empty, or a row has too few or too many cells, or it has other columns than ``names``.
    """
    try:
        table = pyarrow.csv.read_csv(
            path,
            # One block, since a column's type is that of the first block.
            pyarrow.csv.ReadOptions(
                column_names=names, skip_rows=skip_rows, block_size=max(path.stat().st_size, 1), use_threads=False
            ),
            pyarrow.csv.ParseOptions(delimiter=delimiter),
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path} is not the table that is expected: {error}. Replace it.") from error
    return table.to_pandas()


def require(frame: pd.DataFrame, path: Path, needed: Iterable[str], known: Iterable[str] = ()) -> pd.DataFrame:
    """The frame itself, if it has the needed columns and no others than these and the known ones.

    Raises:
        SourceError: it has not.
    """
    needed = set(needed)
    missing, unknown = needed - set(frame.columns), set(frame.columns) - needed - set(known)
    if missing or unknown:
        faults = [f"lacks {', '.join(sorted(missing))}"] * bool(missing)
        faults += [f"has the unknown column {', '.join(sorted(unknown))}"] * bool(unknown)
        raise SourceError(f"{path} {' and '.join(faults)}: it is damaged or another file. Replace it.")
    return frame


def plain(
    paths: list[Path], dataset: Dataset, names: Sequence[str] | None = None, *, delimiter: str = ","
) -> pd.DataFrame:
    """One text table that has the columns as they are."""
    needed = {*dataset.numerical, *dataset.categorical, dataset.target}
    return require(read_csv(paths[0], names, delimiter=delimiter), paths[0], needed, dataset.dropped)


def adult(paths: list[Path], dataset: Dataset, names: Sequence[str]) -> pd.DataFrame:
    """Training file, then test file, whose labels end with a full stop; a missing category is the string ``nan``."""
    frame = pd.concat(
        [read_csv(path, names, skip_rows=skip) for path, skip in zip(paths, (0, 1), strict=True)], ignore_index=True
    )
    for name in (*dataset.categorical, dataset.target):
        frame[name] = frame[name].str.strip().replace("?", "nan")
    frame[dataset.target] = _coded(frame[dataset.target].str.rstrip("."), {"<=50K": 0, ">50K": 1}, paths[0])
    return frame


def buddy(paths: list[Path], dataset: Dataset) -> pd.DataFrame:
    """Dates as seconds since 1970; a missing condition is 0. It is missing for all rows of class 2 and no others."""
    frame = plain(paths, dataset)
    for name in ("issue_date", "listing_date"):
        frame[name] = pd.to_datetime(frame[name]).astype("datetime64[s]").astype("int64")
    return frame.assign(condition=frame["condition"].fillna(0.0))


def california(paths: list[Path], dataset: Dataset, names: Sequence[str]) -> pd.DataFrame:
    """The averages by household of scikit-learn's edition, from the totals; the target in 100,000 dollars."""
    raw = read_csv(paths[0], names)
    return pd.DataFrame(
        {
            "MedInc": raw["medianIncome"],
            "HouseAge": raw["housingMedianAge"],
            "AveRooms": raw["totalRooms"] / raw["households"],
            "AveBedrms": raw["totalBedrooms"] / raw["households"],
            "Population": raw["population"],
            "AveOccup": raw["population"] / raw["households"],
            "Latitude": raw["latitude"],
            "Longitude": raw["longitude"],
            dataset.target: raw["medianHouseValue"] / 100_000,
        }
    )


def churn(paths: list[Path], dataset: Dataset) -> pd.DataFrame:
    """The salary twice, as published by mistake; Female is 0 and Male 1."""
    needed = {*dataset.numerical, *dataset.categorical, dataset.target} - {"EstimatedSalary_copy"}
    frame = require(read_csv(paths[0]), paths[0], needed, dataset.dropped)
    gender = _coded(frame["Gender"], {"Female": 0, "Male": 1}, paths[0])
    return frame.assign(EstimatedSalary_copy=frame["EstimatedSalary"], Gender=gender)


def default(paths: list[Path], dataset: Dataset) -> pd.DataFrame:
    """The target has another name in the edition of Kaggle."""
    frame = read_csv(paths[0]).rename(columns={"default.payment.next.month": dataset.target})
    needed = {*dataset.numerical, *dataset.categorical, dataset.target}
    return require(frame, paths[0], needed, dataset.dropped)


def gesture(paths: list[Path], dataset: Dataset) -> pd.DataFrame:
    """Seven videos one after the other; phases by letter, D, H, P, R, S from 0."""
    frame = pd.concat([plain([path], dataset) for path in paths], ignore_index=True)
    phase = _coded(frame[dataset.target].str.strip(), GESTURE_PHASES, paths[0])
    # Seven zeros are negative in the raw files, not in the published arrays.
    return frame.assign(**{name: frame[name] + 0.0 for name in dataset.numerical}, **{dataset.target: phase})


def king(paths: list[Path], dataset: Dataset) -> pd.DataFrame:
    """The day of sale as thousands of seconds from the first one.

    Published from a computer in Moscow: a day is its local midnight, four hours before that of UTC up to the end of
    summer time and three hours from then on.
    """
    frame = plain(paths, dataset)
    try:
        day = pd.to_datetime(frame["date"].astype(str).str[:8], format="%Y%m%d")
    except ValueError as error:
        raise SourceError(f"{paths[0]}, column date: {error}. Replace the file.") from error
    hours = np.where(day <= LAST_DAY_OF_MOSCOW_SUMMER, 4, 3)
    thousands = (day.astype("datetime64[s]").astype("int64") - 3600 * hours) / 1000
    return frame.assign(date=thousands - thousands.min())


def wilt(paths: list[Path], dataset: Dataset) -> pd.DataFrame:
    """Class 2, diseased trees, is 1, and class 1, all other land cover, is 0."""
    frame = plain(paths, dataset)
    return frame.assign(**{dataset.target: _coded(frame[dataset.target], {1: 0, 2: 1}, paths[0])})


def miniboone(paths: list[Path], dataset: Dataset) -> pd.DataFrame:
    """The text of the archive: a line with the numbers of signals and backgrounds, then these rows in that order."""
    with paths[0].open() as file:
        counts = file.readline().split()
        if counts[:1] != [str(MINIBOONE_SIGNAL)]:
            raise SourceError(
                f"{paths[0]} does not start with the number of signals, {MINIBOONE_SIGNAL}. Replace the damaged file."
            )
        try:
            values = np.loadtxt(file, ndmin=2)
        except ValueError as error:
            raise SourceError(f"{paths[0]} is not the table that is expected: {error}. Replace it.") from error
    if values.shape[1] != len(dataset.numerical):
        raise SourceError(
            f"{paths[0]} has {values.shape[1]} columns, expected {len(dataset.numerical)}. Replace the damaged file."
        )
    frame = pd.DataFrame(values, columns=list(dataset.numerical))
    return frame.assign(**{dataset.target: (np.arange(len(frame)) < MINIBOONE_SIGNAL).astype(np.int64)})


def arrays(paths: list[Path], dataset: Dataset, order: NDArray[np.int64] | None = None) -> pd.DataFrame:
    """Published arrays one after the other: first those of ``X_num``, then those of ``y`` in the same order.

    Args:
        paths: `.npy` files.
        dataset: its facts.
        order: int64 [row], where each row was in the raw table; None leaves the rows as they are.
    """
    half = len(paths) // 2
    values = np.concatenate([np.load(path, allow_pickle=False) for path in paths[:half]])
    frame = pd.DataFrame(values, columns=list(dataset.numerical))
    frame[dataset.target] = np.concatenate([np.load(path, allow_pickle=False) for path in paths[half:]])
    return frame if order is None else frame.iloc[np.argsort(order)].reset_index(drop=True)


def _coded(column: pd.Series, codes: dict, path: Path) -> NDArray[np.int64]:
    unknown = set(column.unique().tolist()) - set(codes)
    if unknown:
        raise SourceError(
            f"{path}, column {column.name}: {', '.join(sorted(map(repr, unknown)))} is none of "
            f"{', '.join(map(str, codes))}. Replace the file."
        )
    return column.map(codes).to_numpy(np.int64)
