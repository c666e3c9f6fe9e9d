"""Distances to the closest record: against brute force over pairs, written from the definition."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks import privacy
from callbacks.privacy import (
    Points,
    distances_to_closest_record,
    nearest_distances,
    privacy_scores,
    share_closer_to_train,
)


def random_table(num_rows, seed=0, task="binclass", num_categories=3):
    generator = np.random.default_rng(seed)
    X_num = np.stack([generator.normal(1e4, 50, num_rows), generator.exponential(size=num_rows)], axis=1)
    X_cat = generator.integers(0, num_categories, (num_rows, 2)).astype(str)
    y = generator.normal(size=num_rows) if task == "regression" else generator.integers(0, 2, num_rows)
    return X_num, X_cat, y


def rows_of(table, rows):
    return tuple(None if each is None else each[rows] for each in table)


def brute_force(synthetic, train, task):
    """Every pair, from the published definition."""
    (X, C, y), (X_real, C_real, y_real) = synthetic, train
    if task == "regression":
        X, X_real = np.column_stack([X, y]), np.column_stack([X_real, y_real])
    else:
        C, C_real = np.column_stack([C, y.astype(str)]), np.column_stack([C_real, y_real.astype(str)])
    width = np.ptp(X_real, axis=0)
    square = (((X[:, None] - X_real[None]) / np.where(width > 0, width, 1)) ** 2).sum(axis=2)
    return np.sqrt(square + (C[:, None] != C_real[None]).sum(axis=2)).min(axis=1)


@pytest.mark.parametrize("task", ["binclass", "regression"])
@pytest.mark.parametrize("num_categories", [3, 400])  # as dense rows, and as sparse ones
def test_distances_equal_brute_force(task, num_categories):
    train = random_table(900, 0, task, num_categories)
    train[1][:num_categories] = np.arange(num_categories).astype(str)[:, None]  # each category occurs
    synthetic = random_table(150, 1, task, num_categories)
    X = synthetic[0]
    X[:5] *= 3  # outside the training range, which is not cut
    truth = brute_force(synthetic, train, task)
    ours = distances_to_closest_record(synthetic, train, task)
    np.testing.assert_allclose(ours, truth, rtol=1e-9, atol=1e-12)
    assert truth.min() > 0


def test_a_copy_is_at_distance_zero_and_one_category_at_one():
    train = random_table(300)
    synthetic = rows_of(train, slice(0, 40))
    assert not distances_to_closest_record(synthetic, train, "binclass").any()
    alone = (np.array([[1e8], [2e8]]), np.array([["a"], ["b"]]), np.array([0, 1]))
    other = (np.array([[1e8], [2e8]]), np.array([["b"], ["b"]]), np.array([0, 1]))
    assert distances_to_closest_record(other, alone, "binclass").tolist() == [1.0, 0.0]


def points(numbers, ranks=None, counts=()):
    ranks = np.zeros((len(numbers), 0)) if ranks is None else ranks
    return Points(numbers, ranks.astype(np.int32), np.array(counts, np.int64))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5), st.integers(0, 99), st.sampled_from([1e-6, 1.0, 1e6]))
def test_nearest_distances_of_any_points(num_queries, num_references, num_columns, seed, scale):
    generator = np.random.default_rng(seed)
    references = scale * (1 + generator.normal(size=(num_references, num_columns)).round(2))
    queries = scale * (1 + generator.normal(size=(num_queries, num_columns)).round(2))
    truth = np.sqrt(((queries[:, None] - references[None]) ** 2).sum(2)).min(1)
    ours = nearest_distances(points(queries), points(references))
    np.testing.assert_allclose(ours, truth, atol=1e-6 * scale)
    assert (ours >= truth * (1 - 1e-12)).all()  # a distance to a row that exists
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(privacy, "WIDEST_DENSE", 0)
        sparse = nearest_distances(points(queries), points(references))
    np.testing.assert_allclose(sparse, ours, atol=1e-6 * scale)
    order = generator.permutation(num_references)
    again = nearest_distances(points(queries), points(references[order]))
    np.testing.assert_allclose(again, ours, atol=1e-6 * scale)
    turned = nearest_distances(points(queries[::-1]), points(references))
    np.testing.assert_array_equal(turned[::-1].round(9), ours.round(9))


@pytest.mark.parametrize("widest_dense", [512, 0])
def test_blocks_do_not_matter_and_bound_the_memory(widest_dense, monkeypatch):
    """Indicators of 40 columns of 10 categories take 4 MB for a block of 1,250 rows, 26 MB for all rows of one side."""
    generator = np.random.default_rng(0)
    ranks = [generator.integers(0, 10, (8_000, 40)) for _ in range(2)]
    queries, references = (points(generator.normal(size=(8_000, 3)), each, [10] * 40) for each in ranks)
    monkeypatch.setattr(privacy, "WIDEST_DENSE", widest_dense)
    monkeypatch.setattr(privacy, "BLOCK_BYTES", 2**22)
    tracemalloc.start()
    ours = nearest_distances(queries, references)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6, peak
    for row in range(0, 8_000, 500):
        square = np.square(queries.numbers[row] - references.numbers).sum(1) + (ranks[0][row] != ranks[1]).sum(1)
        assert ours[row] == pytest.approx(np.sqrt(square.min()), rel=1e-12)


def test_scores_do_not_depend_on_the_order_of_rows_and_columns():
    train, synthetic, holdout = (random_table(200, seed) for seed in range(3))
    scores = privacy_scores(synthetic, train, holdout, "binclass")
    order = np.random.default_rng(0).permutation(200)
    tables = [rows_of(table, order) for table in (synthetic, train, holdout)]
    tables = [(X_num[:, ::-1], X_cat[:, ::-1], y) for X_num, X_cat, y in tables]
    assert privacy_scores(*tables, "binclass") == pytest.approx(scores, rel=1e-9)
    truth = brute_force(synthetic, train, "binclass")
    assert scores["dcr"] == pytest.approx(truth.mean(), rel=1e-9)
    assert scores["dcr_median"] == pytest.approx(np.median(truth), rel=1e-9)


def test_rows_above_the_limit_are_sampled():
    train, synthetic = random_table(500), random_table(400, seed=1)
    first = distances_to_closest_record(synthetic, train, "binclass", max_rows=100)
    assert len(first) == 100
    np.testing.assert_array_equal(first, distances_to_closest_record(synthetic, train, "binclass", 100))
    other = distances_to_closest_record(synthetic, train, "binclass", max_rows=100, seed=1)
    assert first.mean() != other.mean()
    assert len(distances_to_closest_record(synthetic, train, "binclass", max_rows=None)) == 400
    assert privacy.MAX_ROWS == 50_000


def test_share_knows_a_copy_from_a_generalisation():
    train, holdout, fresh = (random_table(600, seed) for seed in range(3))
    assert share_closer_to_train(fresh, train, holdout, "binclass") == pytest.approx(0.5, abs=0.06)
    copies = (train[0] + 1e-3, *train[1:])
    assert share_closer_to_train(copies, train, holdout, "binclass") > 0.95
    assert share_closer_to_train(rows_of(holdout, slice(100)), train, holdout, "binclass") == 0
    assert share_closer_to_train(train, train, train, "binclass") == 0.5  # ties
    # As many rows are sampled on both sides, so that a small holdout is no disadvantage.
    small = share_closer_to_train(fresh, train, rows_of(holdout, slice(80)), "binclass")
    assert small == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("task", ["binclass", "regression"])
def test_share_equals_brute_force(task):
    train, holdout, synthetic = (random_table(120, seed, task) for seed in range(3))
    holdout[1][0] = "unseen"  # no category of the training part: differs from each
    y_range = np.ptp(train[2]) if task == "regression" else 1.0

    def distance(reference):
        # All columns in the units of the training part's range, so that the brute force scales by 1.
        def scaled(table):
            low, width = train[0].min(axis=0), np.ptp(train[0], axis=0)
            y = (table[2] - train[2].min()) / y_range if task == "regression" else table[2]
            return (table[0] - low) / width, table[1], y

        (X, C, y), (X_real, C_real, y_real) = scaled(synthetic), scaled(reference)
        square = ((X[:, None] - X_real[None]) ** 2).sum(2) + (C[:, None] != C_real[None]).sum(2)
        square += (y[:, None] - y_real[None]) ** 2  # classes 0 and 1 differ by 1
        return np.sqrt(square).min(axis=1)

    truth = np.mean(distance(train) < distance(holdout))
    assert share_closer_to_train(synthetic, train, holdout, task) == pytest.approx(truth, abs=1e-12)


def test_tables_without_numericals_or_categories():
    X_num, X_cat, y = random_table(50)
    assert distances_to_closest_record((None, X_cat, y), (None, X_cat, y), "binclass").tolist() == [0.0] * 50
    ours = distances_to_closest_record((X_num + 1, None, y), (X_num, None, y), "binclass")
    empty = np.zeros((50, 0), dtype=str)
    np.testing.assert_allclose(ours, brute_force((X_num + 1, empty, y), (X_num, empty, y), "binclass"), rtol=1e-9)
    constant = (np.full((50, 1), 7.0), None, y)
    assert distances_to_closest_record((np.full((50, 1), 9.0), None, y), constant, "binclass").tolist() == [2.0] * 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, C, y: (X, np.where(C == "1", "1.0", C), y), r"synthetic X_cat column \d, row \d+: '1.0' is no"),
        (lambda X, C, y: (X * np.where(X[3, 1] == X, np.nan, 1), C, y), r"synthetic X_num column 1, row 3: nan"),
        (lambda X, C, y: (X[:, :1], C, y), r"synthetic X_num has 1 column\(s\), but that of train 2"),
        (lambda X, C, y: (X, None, y), r"synthetic X_cat has 0 column\(s\), but that of train 2"),
        (lambda X, C, y: (X, C, y[:-1]), r"synthetic X_num has shape \(50, 2\), expected \(49, columns\)"),
        (lambda X, C, y: (X, C, np.full(50, 2)), "task='binclass', but y has 3 classes"),
        (lambda X, C, y: (X[:0], C[:0], y[:0]), r"synthetic y has shape \(0,\)"),
    ],
)
def test_bad_tables_are_named(change, message):
    train = random_table(80)
    with pytest.raises(ValueError, match=message) as raised:
        distances_to_closest_record(change(*random_table(50, seed=1)), train, "binclass")
    assert "\n" not in str(raised.value)
