"""How close synthetic rows are to those that the generating model was trained on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn import config_context
from sklearn.metrics import pairwise_distances_argmin_min

from callbacks.encoding import EncodedTables, Table, Task

MAX_ROWS = 50_000  # of either side, as published
WIDEST_DENSE = 512  # columns, indicators of categories included, up to which matrix products beat sparse rows
BLOCK_BYTES = 2**26  # of rows with their indicators at a time


@dataclass(frozen=True)
class Points:
    """Rows between which there is a distance: Euclidean of the numbers; a category that differs adds 1 to the square.

    Attributes:
        numbers: float64 [row, column].
        ranks: int32 [row, column], number of the category.
        counts: int64 [column], number of categories of each column.
    """

    numbers: NDArray[np.float64]
    ranks: NDArray[np.int32]
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Points":
        return Points(self.numbers[rows], self.ranks[rows], self.counts)

    @property
    def is_dense(self) -> bool:
        """Whether `coordinates` are."""
        return self.numbers.shape[1] + self.counts.sum() <= WIDEST_DENSE

    @property
    def bytes_of_row(self) -> int:
        """Memory of a row of `coordinates`."""
        categories = 8 * int(self.counts.sum()) if self.is_dense else 12 * len(self.counts)
        return 8 * self.numbers.shape[1] + categories

    def coordinates(self) -> NDArray[np.float64] | csr_matrix:
        """Numbers and an indicator of each category, [row, coordinate]; the Euclidean distance is that of the rows."""
        num_rows, num_columns = self.ranks.shape
        ends = np.cumsum(self.counts)
        indicators = csr_matrix(
            (
                np.full(self.ranks.size, np.sqrt(0.5)),  # two categories that differ: 1/2 + 1/2
                (self.ranks + ends - self.counts).ravel().astype(np.int32),
                (np.arange(num_rows + 1) * num_columns).astype(np.int32),
            ),
            shape=(num_rows, int(self.counts.sum())),
        )
        if self.is_dense:
            return np.hstack([self.numbers, indicators.toarray()])
        return csr_matrix(hstack([self.numbers, indicators]))

    def distances_to(self, others: "Points") -> NDArray[np.float64]:
        """Distance [row] of each row to the one in its place."""
        square = np.square(self.numbers - others.numbers).sum(axis=1)
        return np.sqrt(square + (self.ranks != others.ranks).sum(axis=1))


def privacy_scores(synthetic: Table, train: Table, holdout: Table, task: Task) -> dict[str, float]:
    """The published scores, and one that knows what distance could be expected.

    Args:
        synthetic: generated rows.
        train: real rows that the model was trained on.
        holdout: real rows that it has not seen.
        task: "binclass", "multiclass" or "regression".

    Returns:
        "dcr", the mean `distances_to_closest_record`: Table 5; "dcr_median", the same distances' median: the figure
        in the authors' repository; "closer_to_train", see `share_closer_to_train`. A few rows far outside the training
        range govern the mean, and more noise always makes it larger: it is to be read beside the other two.

    Raises:
        ValueError: as in `distances_to_closest_record`.
    """
    distances = distances_to_closest_record(synthetic, train, task)
    return {
        "dcr": float(distances.mean()),
        "dcr_median": float(np.median(distances)),
        "closer_to_train": share_closer_to_train(synthetic, train, holdout, task),
    }


def distances_to_closest_record(
    synthetic: Table, train: Table, task: Task, max_rows: int | None = MAX_ROWS, seed: int = 0
) -> NDArray[np.float64]:
    """Distance of each synthetic row to the closest row of the training part (TabDDPM, Kotelnikov et al., ICML 2023).

    Euclidean. Numerical columns, and a real target, count as fractions of the training part's range; each category that
    differs, and a class that does, adds 1 to the square.

    Args:
        synthetic: generated rows.
        train: real rows that the model was trained on.
        task: "binclass", "multiclass" or "regression".
        max_rows: of either side; more are sampled down to so many. None: all.
        seed: of the sampling.

    Returns:
        float64 [row], as many as synthetic rows were used.

    Raises:
        ValueError: in one line, which table, column or row cannot be used; a synthetic row has a category that the
            training part lacks.
    """
    tables = {"train": train, "synthetic": synthetic}
    data = _encode(tables, task)
    generator = np.random.default_rng(seed)
    rows = {name: _sample(len(y), max_rows, generator) for name, y in data.targets.items()}
    points = _points(data, rows)
    return nearest_distances(points["synthetic"], points["train"])


def share_closer_to_train(
    synthetic: Table, train: Table, holdout: Table, task: Task, max_rows: int | None = MAX_ROWS, seed: int = 0
) -> float:
    """Share of synthetic rows whose closest training row is closer than their closest held-out row.

    Both sides have as many rows: of the larger one so many are sampled. A model that generalises has 0.5. One that
    copies has 1 where the training part is not the larger one, else 0.5 + held-out / (2 training) rows, since copies of
    rows that were not sampled lie on either side: 0.78 at 64 % and 36 %. A row as close to both counts half. The
    distance is that of `distances_to_closest_record`.

    Args:
        synthetic: generated rows.
        train: real rows that the model was trained on.
        holdout: real rows that it has not seen.
        task: "binclass", "multiclass" or "regression".
        max_rows: of each side; more are sampled down to so many. None: all.
        seed: of the sampling.

    Raises:
        ValueError: as in `distances_to_closest_record`.
    """
    data = _encode({"train": train, "synthetic": synthetic, "holdout": holdout}, task)
    generator = np.random.default_rng(seed)
    lengths = {name: len(y) for name, y in data.targets.items()}
    equal = min(lengths["train"], lengths["holdout"])
    limits = {"synthetic": max_rows} | dict.fromkeys(("train", "holdout"), min(equal, max_rows or equal))
    points = _points(data, {name: _sample(length, limits[name], generator) for name, length in lengths.items()})
    to_train, to_holdout = (nearest_distances(points["synthetic"], points[name]) for name in ("train", "holdout"))
    return float(np.mean((to_train < to_holdout) + 0.5 * (to_train == to_holdout)))


def nearest_distances(queries: Points, references: Points) -> NDArray[np.float64]:
    """Distance of each query to its nearest reference.

    The nearest is found block by block from products in float64 and its distance then computed from the difference, so
    that a copy is at distance 0. Neither the matrix [query, reference] nor all indicators ever exist: beside the points
    themselves this takes some `BLOCK_BYTES`.

    Returns:
        float64 [query].
    """
    step = max(256, BLOCK_BYTES // queries.bytes_of_row)
    distances = np.empty(len(queries))
    # What scikit-learn does with sparse rows, it does in chunks of its own, of a GiB if it is not told otherwise.
    with config_context(working_memory=BLOCK_BYTES / 2**20):
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            coordinates, nearest, smallest = (
                some.coordinates(),
                np.zeros(len(some), np.int64),
                np.full(len(some), np.inf),
            )
            for other in range(0, len(references), step):
                block = references[other : other + step].coordinates()
                place, distance = pairwise_distances_argmin_min(coordinates, block)
                closer = distance < smallest
                nearest[closer], smallest[closer] = other + place[closer], distance[closer]
            distances[start : start + step] = some.distances_to(references[nearest])
    return distances


def _encode(tables: dict[str, Table], task: Task) -> EncodedTables:
    """The tables, categories numbered by the training part.

    Raises:
        ValueError: they cannot be used, or a synthetic row has a category that the training part lacks.
    """
    data = EncodedTables.encode(tables, task)
    if data.num_classes and not np.isin(data.targets["synthetic"], data.targets["train"]).all():
        raise ValueError("synthetic y has a class that train y lacks; leave its rows out")
    unknown = data.categories["synthetic"] == data.counts
    if unknown.any():
        i, j = np.argwhere(unknown)[0]
        category = np.asarray(tables["synthetic"][1])[i, j]
        raise ValueError(
            f"synthetic X_cat column {j}, row {i}: '{category}' is no category of the "
            "training part; write categories as there (1 is not 1.0), or leave the row out"
        )
    return data


def _sample(num_rows: int, limit: int | None, generator: np.random.Generator) -> NDArray[np.int64]:
    """Row numbers, at most so many, in random order if some are left out."""
    if limit is None or num_rows <= limit:
        return np.arange(num_rows)
    return generator.choice(num_rows, limit, replace=False)


def _points(data: EncodedTables, rows: dict[str, NDArray[np.int64]]) -> dict[str, Points]:
    """Chosen rows of each table as points, with the published distance between them."""
    numericals = {name: X[rows[name]].astype(np.float64) for name, X in data.numericals.items()}
    ranks = {name: each[rows[name]].astype(np.int32) for name, each in data.categories.items()}
    targets = {name: y[rows[name]] for name, y in data.targets.items()}
    counts = data.counts
    if data.num_classes:
        ranks = {name: np.column_stack([each, targets[name].astype(np.int32)]) for name, each in ranks.items()}
        counts = np.append(counts, data.num_classes)
    else:
        numericals = {name: np.column_stack([X, targets[name]]) for name, X in numericals.items()}
    minimum, maximum = numericals["train"].min(axis=0), numericals["train"].max(axis=0)
    width = np.where(maximum > minimum, maximum - minimum, 1.0)
    # One indicator more a column: a held-out category that training lacks differs from all others, as any does.
    return {name: Points((X - minimum) / width, ranks[name], counts + 1) for name, X in numericals.items()}
