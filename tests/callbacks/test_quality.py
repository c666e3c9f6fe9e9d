"""Likeness of tables: closed forms, definitions written out, and what must be 1 or 0."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from callbacks import quality


def table(num_rows, seed, shift=0.0):
    random = np.random.default_rng(seed)
    y = random.integers(2, size=num_rows)
    X_num = np.column_stack([random.normal(y + shift, 1), random.normal(0, 1, num_rows)])
    letters = np.where(random.random(num_rows) < 0.3 + 0.4 * y, "a", "b").astype(object)
    return X_num, letters[:, None], y


def test_two_draws_of_one_distribution_are_alike_and_shifted_ones_are_not():
    real = table(3000, 0)
    alike = quality.quality_scores(table(3000, 1), real, "binclass")
    for name in ("column_shapes", "pair_trends", "detection_logistic", "detection_trees", "alpha_precision"):
        assert alike[name] > 0.93, name
    assert alike["beta_recall"] > 0.45  # of the real rows themselves it is about one half
    shifted = quality.quality_scores(table(3000, 1, shift=4.0), real, "binclass")
    assert shifted["detection_trees"] < 0.1
    assert shifted["detection_auc_trees"] > 0.95
    assert shifted["detection_trees"] == pytest.approx(2 - 2 * shifted["detection_auc_trees"])  # no fold is below 1/2
    assert shifted["alpha_precision"] < 0.5
    copied = quality.quality_scores(real, real, "binclass")
    assert copied["authenticity"] == 0
    X_num, C, y = real
    grid = (np.round(X_num), C, y)  # many rows are there more than once
    copied = quality.quality_scores(grid, grid, "binclass")
    assert copied["authenticity"] == 0
    assert copied["beta_recall"] > 0.9
    assert copied["column_shapes"] == pytest.approx(1)
    assert copied["pair_trends"] == pytest.approx(1)


def test_shapes_and_trends_are_their_definitions():
    random = np.random.default_rng(0)
    real, synthetic = random.normal(size=(400, 2)), random.normal(0.5, 2, size=(300, 2))
    letters, others = random.integers(3, size=(400, 1)), random.integers(4, size=(300, 1))
    shapes = quality.column_shapes(synthetic, real, others, letters)
    grid = np.sort(np.concatenate([real[:, 0], synthetic[:, 0]]))
    steps = [np.searchsorted(np.sort(each[:, 0]), grid, side="right") / len(each) for each in (real, synthetic)]
    assert shapes[0] == pytest.approx(1 - np.abs(steps[0] - steps[1]).max())
    shares = [np.bincount(each[:, 0], minlength=4) / len(each) for each in (letters, others)]
    assert shapes[2] == pytest.approx(1 - np.abs(shares[0] - shares[1]).sum() / 2)
    trends = quality.pair_trends(synthetic, real, others, letters)
    assert len(trends) == 3  # number and number, and each number with the category
    correlations = [np.corrcoef(each.T)[0, 1] for each in (real, synthetic)]
    assert trends[0] == pytest.approx(1 - abs(correlations[0] - correlations[1]) / 2)
    edges = np.linspace(real[:, 0].min(), real[:, 0].max(), 11)
    joint = np.zeros((2, 12, 4))
    for k, (x, c) in enumerate(((real, letters), (synthetic, others))):
        np.add.at(joint[k], (np.digitize(x[:, 0], edges), c[:, 0]), 1 / len(x))
    assert trends[1] == pytest.approx(1 - np.abs(joint[0] - joint[1]).sum() / 2)


def test_precision_and_recall_by_hand():
    real = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    scores = quality.precision_recall(np.array([[9.0], [9.5], [-9.0], [-9.2]]), real)
    alphas = np.linspace(0, 1, 30)
    assert scores["alpha_precision"] == pytest.approx(1 - alphas.sum() / alphas.sum())  # none is in any support
    assert scores["beta_recall"] == pytest.approx(0)
    assert scores["authenticity"] == 1
    near = quality.precision_recall(real + 0.01, real)
    assert near["authenticity"] == 0
    assert near["beta_recall"] > 0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_associations_are_those_of_libraries(seed):
    random = np.random.default_rng(seed)
    numbers, ranks = random.normal(size=(80, 2)), random.integers(3, size=(80, 2))
    numbers[:, 1] += ranks[:, 0]
    matrix = quality.associations(numbers, ranks)
    assert matrix == pytest.approx(matrix.T)
    assert matrix[0, 1] == pytest.approx(np.corrcoef(numbers.T)[0, 1])
    counts = np.zeros((3, 3))
    np.add.at(counts, (ranks[:, 0], ranks[:, 1]), 1)
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    v = np.sqrt(chi2_contingency(counts, correction=False)[0] / 80 / (min(counts.shape) - 1))
    assert matrix[2, 3] == pytest.approx(v)
    groups = [numbers[ranks[:, 0] == k, 1] for k in range(3) if (ranks[:, 0] == k).any()]
    between = sum(len(group) * (group.mean() - numbers[:, 1].mean()) ** 2 for group in groups)
    assert matrix[1, 2] == pytest.approx(np.sqrt(between / ((numbers[:, 1] - numbers[:, 1].mean()) ** 2).sum()))


def test_constant_columns_and_tables_without_a_kind_of_column():
    random = np.random.default_rng(0)
    constant = np.ones((300, 1))
    tables = [(constant, None, random.normal(size=300)) for _ in range(2)]
    scores = quality.quality_scores(*tables, "regression")
    assert all(np.isfinite(list(scores.values())))
    letters = random.integers(3, size=(300, 2)).astype(str)
    scores = quality.quality_scores(
        (None, letters, np.arange(300) % 2), (None, letters, np.arange(300) % 2), "binclass"
    )
    assert scores["column_shapes"] == 1
