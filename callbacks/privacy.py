"""How close synthetic rows are to those that the generating model was trained on."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.metrics.pairwise import paired_euclidean_distances

from callbacks.encoding import EncodedTables, Table, Task

MAX_ROWS = 50_000  # of either side, as published
WIDEST_DENSE = 512  # columns, indicators of categories included, up to which matrix products beat sparse rows


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

    Both sides have as many rows: of the larger one so many are sampled. A model that generalises has 0.5, one that
    copies 1. A row as close to both counts half. The distance is that of `distances_to_closest_record`.

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


def nearest_distances(
    queries: NDArray[np.float64] | csr_matrix, references: NDArray[np.float64] | csr_matrix
) -> NDArray[np.float64]:
    """Euclidean distance of each query [query, column] to its nearest reference [reference, column].

    The nearest is found block by block from products in float64 and its distance then computed from the difference, so
    that a copy is at distance 0: the matrix [query, reference] never exists.

    Returns:
        float64 [query].
    """
    nearest, _ = pairwise_distances_argmin_min(queries, references)
    return paired_euclidean_distances(queries, references[nearest])


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


def _points(data: EncodedTables, rows: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float64] | csr_matrix]:
    """Chosen rows of each table as points [row, column], with the published distance between them."""
    numericals = {name: X[rows[name]].astype(np.float64) for name, X in data.numericals.items()}
    ranks = {name: each[rows[name]] for name, each in data.categories.items()}
    targets = {name: y[rows[name]] for name, y in data.targets.items()}
    counts = data.counts
    if data.num_classes:
        ranks = {name: np.column_stack([each, targets[name]]) for name, each in ranks.items()}
        counts = np.append(counts, data.num_classes)
    else:
        numericals = {name: np.column_stack([X, targets[name]]) for name, X in numericals.items()}
    minimum, maximum = numericals["train"].min(axis=0), numericals["train"].max(axis=0)
    width = np.where(maximum > minimum, maximum - minimum, 1.0)
    scaled = {name: (X - minimum) / width for name, X in numericals.items()}
    # One indicator more a column: a held-out category that training lacks differs from all others, as any does.
    ends = np.cumsum(counts + 1)
    points = {}
    for name, each in ranks.items():
        num_rows, num_columns = each.shape
        indicators = csr_matrix(
            (
                np.full(each.size, np.sqrt(0.5)),  # two categories that differ: 1/2 + 1/2
                (each + ends - counts - 1).ravel().astype(np.int32),
                (np.arange(num_rows + 1) * num_columns).astype(np.int32),
            ),
            shape=(num_rows, ends[-1] if num_columns else 0),
        )
        if scaled[name].shape[1] + indicators.shape[1] <= WIDEST_DENSE:
            points[name] = np.hstack([scaled[name], indicators.toarray()])
        else:
            points[name] = csr_matrix(hstack([scaled[name], indicators]))
    return points
