"""How like the real rows synthetic ones are: column by column, pair by pair, to a classifier, and as a cloud of points.

Shapes and trends have the definitions of SDMetrics (0.29), detection that of its C2ST scores, precision and recall
those of Alaa, van Breugel, Saveliev, van der Schaar: How Faithful is your Synthetic Data?, ICML 2022, as synthcity
computes them without an embedding. All are 1 at best. Shapes alone prove nothing: independent columns get nearly 1.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances_argmin_min, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from callbacks.encoding import EncodedTables, Table, Task

MAX_ROWS = 50_000  # of either table where columns are compared
MAX_ROWS_LEARNT = 10_000  # of either table where a classifier is trained or neighbours are sought
FOLDS = 3
BINS = 10  # of a number beside a category
WIDEST_ONE_HOT = 1000  # indicators in all; the categories of a wider table are told apart by trees and trends alone
ALPHAS = np.linspace(0, 1, 30)  # shares of the support at which precision and recall are compared with their ideal


def quality_scores(synthetic: Table, real: Table, task: Task, seed: int = 0) -> dict[str, float]:
    """The scores of this module, the target being a column like the others.

    Args:
        synthetic: generated rows.
        real: rows that they should resemble.
        task: "binclass", "multiclass" or "regression".
        seed: of the choice of rows where there are too many, and of the folds.

    Returns:
        "column_shapes", "pair_trends"; "detection_logistic" and "detection_trees", 1 if a classifier cannot tell the
        tables apart and 0 if it can, with the classifier's area under the ROC curve as "detection_auc_...";
        "alpha_precision", "beta_recall" and "authenticity", the share of synthetic rows that are farther from their
        closest real row than that is from its own neighbour.

    Raises:
        ValueError: a table cannot be used.
    """
    numbers, ranks, counts = _columns(synthetic, real, task)
    random = np.random.default_rng(seed)
    chosen = [random.permutation(len(each))[:MAX_ROWS] for each in numbers]
    columns = [each[rows] for each, rows in zip(numbers, chosen, strict=True)]
    categories = [each[rows] for each, rows in zip(ranks, chosen, strict=True)]
    scores = {
        "column_shapes": float(np.mean(column_shapes(*columns, *categories))),
        "pair_trends": float(np.mean(pair_trends(*columns, *categories))),
    }
    size = min(MAX_ROWS_LEARNT, *map(len, columns))
    if size < FOLDS:
        raise ValueError(f"{size} row(s) of a table are too few to be judged: draw and give at least {FOLDS}")
    rows = [np.hstack([x[:size], c[:size]]) for x, c in zip(columns, categories, strict=True)]
    points = _points([x[:size] for x in columns], [c[:size] for c in categories], counts)
    for name, tables, model in (
        ("trees", rows, HistGradientBoostingClassifier(random_state=seed)),
        ("logistic", points, make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))),
    ):
        areas = detection_aucs(*tables, model, seed)
        scores |= {
            f"detection_{name}": float(np.mean(2 - 2 * np.maximum(0.5, areas))),
            f"detection_auc_{name}": float(np.mean(areas)),
        }
    return scores | precision_recall(*points)


def column_shapes(
    synthetic: NDArray, real: NDArray, synthetic_ranks: NDArray[np.int64], real_ranks: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Likeness of each column: 1 - Kolmogorov-Smirnov statistic of numbers, 1 - total variation of categories.

    Args:
        synthetic: numbers [row, column].
        real: likewise.
        synthetic_ranks: categories [row, column].
        real_ranks: likewise.

    Returns:
        float64 [column], numbers first.
    """
    numbers = [1 - ks_2samp(real[:, j], synthetic[:, j], method="asymp").statistic for j in range(real.shape[1])]
    categories = [_overlap(real_ranks[:, j], synthetic_ranks[:, j]) for j in range(real_ranks.shape[1])]
    return np.array([*numbers, *categories])


def pair_trends(
    synthetic: NDArray, real: NDArray, synthetic_ranks: NDArray[np.int64], real_ranks: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Likeness of each pair of columns.

    Two numbers: 1 - |difference of Pearson's correlations| / 2, if neither is constant. Else 1 - total variation of
    the pair's joint distribution, numbers in 10 bins of equal width over the real range.

    Args:
        synthetic: numbers [row, column].
        real: likewise.
        synthetic_ranks: categories [row, column].
        real_ranks: likewise.

    Returns:
        float64 [pair]; a single 1 if there is no pair.
    """
    varies = (np.ptp(real, axis=0) > 0) & (np.ptp(synthetic, axis=0) > 0)
    upper = np.triu_indices(int(varies.sum()), k=1)
    trends: list[float] = []
    if len(upper[0]):
        difference = np.corrcoef(real[:, varies].T) - np.corrcoef(synthetic[:, varies].T)
        trends.extend(1 - np.abs(difference[upper]) / 2)
    binned = [np.zeros_like(each, dtype=np.int64) for each in (real, synthetic)]
    for j in range(real.shape[1]):
        edges = bin_edges(real[:, j], BINS)
        for codes, values in zip(binned, (real, synthetic), strict=True):
            codes[:, j] = np.digitize(values[:, j], edges)
    first = np.hstack([binned[0], real_ranks])
    second = np.hstack([binned[1], synthetic_ranks])
    num_numbers, width = real.shape[1], int(max(first.max(initial=0), second.max(initial=0))) + 1
    trends.extend(
        _overlap(first[:, i] * width + first[:, j], second[:, i] * width + second[:, j])
        for i in range(first.shape[1])
        for j in range(max(i + 1, num_numbers), first.shape[1])
    )
    return np.array(trends or [1.0])


def detection_aucs(synthetic: NDArray, real: NDArray, model: object, seed: int = 0) -> NDArray[np.float64]:
    """Area under the ROC curve of a classifier that tells tables [row, column] apart, in each of 3 stratified folds."""
    rows = np.concatenate([real, synthetic])
    label = np.repeat([1, 0], [len(real), len(synthetic)])
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(rows, label))
    probability = cross_val_predict(model, rows, label, cv=folds, method="predict_proba")[:, 1]
    return np.array([roc_auc_score(label[test], probability[test]) for _, test in folds])


def precision_recall(synthetic: NDArray[np.float64], real: NDArray[np.float64]) -> dict[str, float]:
    """alpha-precision, beta-recall and authenticity of two equally large clouds [row, coordinate] (Alaa et al., 2022).

    The alpha-support of the real rows is the ball around their mean with a share alpha of them. alpha-precision asks
    for a share alpha of the synthetic rows in it; beta-recall, for a share beta of the real rows whose closest
    synthetic row is as near as their own neighbour, and inside the beta-support of these closest rows. Both are 1 less
    the area between the curve and the diagonal, relative to the area below the diagonal.
    """
    center, synthetic_center = real.mean(0), synthetic.mean(0)
    radii = np.quantile(np.linalg.norm(real - center, axis=1), ALPHAS)
    precision = (np.linalg.norm(synthetic - center, axis=1)[:, None] <= radii).mean(0)
    # Distances from differences: those that a search returns are not 0 for a copy.
    neighbor = NearestNeighbors(n_neighbors=1).fit(real).kneighbors(return_distance=False)[:, 0]
    own = np.linalg.norm(real - real[neighbor], axis=1)  # of each real row to another
    nearest, _ = pairwise_distances_argmin_min(real, synthetic)
    distance = np.linalg.norm(real - synthetic[nearest], axis=1)
    from_center = np.linalg.norm(synthetic[nearest] - synthetic_center, axis=1)
    covered = (distance <= own)[:, None] & (from_center[:, None] <= np.quantile(from_center, ALPHAS))
    closest, _ = pairwise_distances_argmin_min(synthetic, real)
    to_real = np.linalg.norm(synthetic - real[closest], axis=1)
    return {
        "alpha_precision": float(1 - np.abs(ALPHAS - precision).sum() / ALPHAS.sum()),
        "beta_recall": float(1 - np.abs(ALPHAS - covered.mean(0)).sum() / ALPHAS.sum()),
        "authenticity": float(np.mean(own[closest] < to_real)),
    }


def associations(numbers: NDArray, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Association of each pair of columns: Figure 8 shows how much it differs between real and synthetic rows.

    Two numbers: Pearson's correlation. Two categories: Cramér's V, from the chi-squared statistic without correction.
    One of each: the correlation ratio, the root of the share of the number's variance between categories. A constant
    column has 0 with all others.

    Args:
        numbers: [row, column].
        ranks: categories [row, column].

    Returns:
        float64 [column, column], numbers first; the diagonal is 1.
    """
    num_numbers, num_columns = numbers.shape[1], numbers.shape[1] + ranks.shape[1]
    matrix = np.eye(num_columns)
    centered = numbers - numbers.mean(0)
    norm = np.sqrt((centered**2).sum(0))
    unit = centered / np.where(norm > 0, norm, 1)
    matrix[:num_numbers, :num_numbers] = unit.T @ unit
    for a in range(ranks.shape[1]):
        group, size = _sizes(ranks[:, a])
        for j in range(num_numbers):
            between = (np.bincount(group, unit[:, j]) ** 2 / size).sum()
            matrix[num_numbers + a, j] = matrix[j, num_numbers + a] = np.sqrt(min(between, 1.0))
        for b in range(a):
            other, other_size = _sizes(ranks[:, b])
            smaller = min(len(size), len(other_size)) - 1
            pairs, joint = np.unique(group * len(other_size) + other, return_counts=True)
            expected = size[pairs // len(other_size)] * other_size[pairs % len(other_size)] / len(ranks)
            chi_squared = (joint**2 / expected).sum() - len(ranks)
            value = np.sqrt(max(chi_squared, 0) / len(ranks) / smaller) if smaller else 0.0
            matrix[num_numbers + a, num_numbers + b] = matrix[num_numbers + b, num_numbers + a] = value
    np.fill_diagonal(matrix, 1)
    return matrix


def bin_edges(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Edges of bins of equal width over the range of values [row]; a single bin if they hardly differ."""
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, count + 1)
    return edges if (np.diff(edges) > 0).all() else np.array([low, max(high, np.nextafter(low, np.inf))])


def _sizes(ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A column's categories numbered without gaps, and how many rows each has."""
    _, group, size = np.unique(ranks, return_inverse=True, return_counts=True)
    return group, size


def _overlap(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """1 - total variation between the shares of values in two samples [row]."""
    values, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    shares = [np.bincount(part, minlength=len(values)) / len(part) for part in np.split(place, [len(first)])]
    return float(1 - np.abs(shares[0] - shares[1]).sum() / 2)


def encoded_columns(tables: dict[str, Table], task: Task) -> Iterator[tuple[NDArray, NDArray[np.int64]]]:
    """Numbers [row, column] and numbered categories [row, column] of tables, the target being the last of its kind.

    Raises:
        ValueError: a table cannot be used.
    """
    data = EncodedTables.encode(tables, task)
    for name, target in data.targets.items():
        numbers, ranks = data.numericals[name].astype(np.float64), data.categories[name]
        if data.num_classes:
            yield numbers, np.column_stack([ranks, target])
        else:
            yield np.column_stack([numbers, target]), ranks


def _columns(
    synthetic: Table, real: Table, task: Task
) -> tuple[list[NDArray], list[NDArray[np.int64]], NDArray[np.int64]]:
    """Numbers and categories of both tables, synthetic first, and each column's number of categories."""
    (real_numbers, real_ranks), (numbers, ranks) = encoded_columns({"real": real, "synthetic": synthetic}, task)
    counts = np.maximum(real_ranks.max(0, initial=0), ranks.max(0, initial=0)) + 1
    return [numbers, real_numbers], [ranks, real_ranks], counts


def _points(
    numbers: list[NDArray], ranks: list[NDArray[np.int64]], counts: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    """Both tables as points: numbers as fractions of the real range, categories as indicators."""
    minimum, maximum = numbers[1].min(0), numbers[1].max(0)
    width = np.where(maximum > minimum, maximum - minimum, 1.0)
    points = []
    kept = np.cumsum(np.sort(counts)) <= WIDEST_ONE_HOT
    narrow = np.argsort(counts, kind="stable")[kept]
    for x, c in zip(numbers, ranks, strict=True):
        indicators = [np.eye(counts[j])[c[:, j]] for j in narrow]
        points.append(np.hstack([(x - minimum) / width, *indicators]))
    return points
