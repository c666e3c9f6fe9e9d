"""Which rows of a benchmark table are for training, validation and testing.

A split is a function of the targets, [row], that gives the row numbers of each part in the published order.
"""

import json
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from datamodules import sources
from datamodules.sources import SourceError

PARTS = ("train", "val", "test")
Rows = dict[str, NDArray[np.int64]]
Split = Callable[[NDArray], Rows]

ADULT_TRAINING_FILE = 32_561

# The public list of cardio's rows was found by comparing values without the categories. It names 20 rows twice, in two
# parts, in place of other rows with the same numbers and label; and four of its test rows have the categories of such
# another row. With these rows instead, each row is used once and the test part is the published one. In some rows of
# the training and validation parts (at most 40) it stays open which of two the published parts hold.
CARDIO_REPLACED: dict[str, dict[int, int]] = {
    "train": {
        4433: 66800,
        10449: 49751,
        10562: 2305,
        15397: 4217,
        17168: 45810,
        23029: 3019,
        25742: 16196,
        37266: 38127,
        53297: 53403,
        56906: 1612,
        61017: 54728,
        65079: 28997,
        67742: 24615,
        69046: 57781,
        69192: 11498,
    },
    "val": {20854: 26311, 38505: 10777, 41052: 14197, 56643: 32683, 64169: 17101, 64852: 68497, 65622: 8190},
    "test": {3019: 23029, 14197: 41052, 54965: 56899, 66800: 4433},
}


def drawn(first_seed: int, second_seed: int, *, stratified: bool) -> Split:
    """A fifth of all rows for testing, then a fifth of the rest for validation; by class where ``stratified``."""

    def split(y: NDArray) -> Rows:
        rest, test = _draw(y, np.arange(len(y)), 0.2, first_seed, stratified)
        train, val = _draw(y, rest, 0.2, second_seed, stratified)
        return {"train": train, "val": val, "test": test}

    return split


def adult(y: NDArray) -> Rows:
    """The archive's test file for testing, and a fifth of its training file, by class, for validation."""
    train, val = _draw(y, np.arange(ADULT_TRAINING_FILE), 0.2, 1, True)
    return {"train": train, "val": val, "test": np.arange(ADULT_TRAINING_FILE, len(y))}


def facebook(y: NDArray) -> Rows:
    """A fifth of all rows, of which one half is for validation and one for testing."""
    train, rest = _draw(y, np.arange(len(y)), 0.2, 2, False)
    val, test = _draw(y, rest, 0.5, 2, False)
    return {"train": train, "val": val, "test": test}


def listed(path: str, replaced: Mapping[str, Mapping[int, int]] | None = None, page: str | None = None) -> Split:
    """The rows that a file lists: JSON or `.npz` with row numbers, from 0, under `train`, `val` and `test`.

    Args:
        path: the file's path inside a mirror.
        replaced: for some parts, listed rows and the rows that take their places.
        page: where a file that is not downloaded may be had.
    """

    def split(y: NDArray) -> Rows:
        rows = _read(path, page)
        for part, replacements in (replaced or {}).items():
            order = np.argsort(rows[part])
            places = order[np.searchsorted(rows[part], list(replacements), sorter=order)]
            rows[part][places] = list(replacements.values())
        return rows

    return split


def in_order(*sizes: int) -> Split:
    """So many rows for training, then for validation, then for testing."""

    def split(y: NDArray) -> Rows:
        parts = np.split(np.arange(len(y)), np.cumsum(sizes)[:-1])
        return dict(zip(PARTS, parts, strict=True))

    return split


def seeded(y: NDArray, sizes: tuple[int, int, int], seed: int, *, stratified: bool) -> Rows:
    """Parts in the proportions of ``sizes``, drawn anew by a seed; by class where ``stratified``."""
    num_val, num_test = (round(len(y) * size / sum(sizes)) for size in sizes[1:])
    rest, test = _draw(y, np.arange(len(y)), num_test, seed, stratified)
    train, val = _draw(y, rest, num_val, seed, stratified)
    return {"train": train, "val": val, "test": test}


def _draw(
    y: NDArray, rows: NDArray[np.int64], size: float | int, seed: int, stratified: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return train_test_split(rows, test_size=size, stratify=y[rows] if stratified else None, random_state=seed)


def _read(path: str, page: str | None) -> Rows:
    pinned = next((name for name, source in sources.SOURCES.items() if source.path == path), None)
    remedy = "Use split='seeded', which needs no list of rows"
    if pinned is not None:
        try:
            file = sources.fetch(pinned)
        except SourceError as error:
            raise SourceError(f"The rows of the published split cannot be had. {remedy}. {error}") from error
    else:
        file = sources.find_unverified(path)
    if file is None:
        raise SourceError(
            f"The published split is known by a list of its rows alone, which is not downloaded. {remedy}, or put "
            f"{page or 'the list'} at {sources.cached_path(path)} or, as {path}, into a folder of GENPRED_MIRROR."
        )
    try:
        content = np.load(file, allow_pickle=False) if file.suffix == ".npz" else json.loads(file.read_text())
        return {part: np.array(content[part], dtype=np.int64) for part in PARTS}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise SourceError(f"{file} is not a list of rows for {', '.join(PARTS)}: {error!r}. Replace it.") from error
