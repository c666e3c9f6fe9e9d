"""SMOTE: every row where its definition says it must be, by brute force."""

import numpy as np
import pytest
import torch
from synthetic import source

from lightning_modules.synthesis.real import Real
from lightning_modules.synthesis.smote import SMOTE


def neighbours(points, k):
    """The k nearest other rows of each row."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1)[:, :k]


def attached(method, table):
    method.attach(table)
    return method


@pytest.mark.parametrize("margin", [0.0, 0.6])
def test_new_rows_lie_between_a_row_and_a_near_one_of_its_class(margin):
    random = np.random.default_rng(0)
    y = (random.random(60) < 0.35).astype(np.int64)
    X = random.random((60, 3))
    table = source(X, None, y, "binclass", "minmax")
    frame = attached(SMOTE(num_neighbors=4, margin=margin), table).sample(500, torch.Generator().manual_seed(0))
    assert (frame["y"] == 1).sum() == round(500 * y.mean())
    assert not frame["y"].diff().lt(0).any()  # one class after the other
    scaled = table.encoded.numericals.numpy().astype(np.float64)
    low, width = X.min(0), np.ptp(X, axis=0)
    ways = []
    for label in (0, 1):
        rows = scaled[y == label]
        near = neighbours(rows, 4)
        starts, ends = np.repeat(rows, 4, axis=0), rows[near].reshape(-1, 3)
        for new in (frame.loc[frame["y"] == label, ["n0", "n1", "n2"]].to_numpy() - low) / width:
            way = ((new - starts) * (ends - starts)).sum(1) / ((ends - starts) ** 2).sum(1)
            off = np.abs(starts + way[:, None] * (ends - starts) - new).max(1)
            allowed = (off < 1e-5) & (way > margin / 2 - 1e-3) & (way < 1 - margin / 2 + 1e-3)
            assert allowed.any()
            ways.append(way[allowed][0])
    # Each is seen from either end if both are neighbours of each other: the spread is that of U[margin/2, 1-margin/2].
    assert np.std(ways) == pytest.approx((1 - margin) / np.sqrt(12), rel=0.1)


def test_categories_are_the_commonest_among_the_neighbours():
    random = np.random.default_rng(1)
    X, letters = random.random((40, 2)), random.choice(list("abc"), (40, 2)).astype(object)
    y = np.repeat([0, 1], [15, 25])
    table = source(X, letters, y, "binclass", "minmax")
    frame = attached(SMOTE(num_neighbors=5, margin=0.9), table).sample(400, torch.Generator().manual_seed(0))
    numbers, codes = (each.numpy() for each in table.encoded[:2])
    unit = np.median(numbers[y == 0].std(axis=0)) / 2  # of the smaller class
    points = np.hstack([numbers, unit * np.eye(3)[codes[:, 0]], unit * np.eye(3)[codes[:, 1]]])
    low, width = X.min(0), np.ptp(X, axis=0)
    for label in (0, 1):
        rows, classes = np.flatnonzero(y == label), frame[frame["y"] == label]
        near = rows[neighbours(points[rows], 5)]
        ways = []
        for new, first, second in zip(
            (classes[["n0", "n1"]].to_numpy() - low) / width, classes["c0"], classes["c1"], strict=True
        ):
            found = False
            for start, others in zip(rows, near, strict=True):
                modes = [
                    {
                        value
                        for value in set(column)
                        if list(column).count(value) == max(map(list(column).count, column))
                    }
                    for column in letters[others].T
                ]
                for end in others:
                    step = numbers[end] - numbers[start]
                    way = ((new - numbers[start]) @ step) / (step @ step)
                    on_line = np.abs(numbers[start] + way * step - new).max() < 1e-5 and -1e-3 < way < 1 + 1e-3
                    if on_line and first in modes[0] and second in modes[1]:
                        found = True
                        ways.append(way)
            assert found
        assert np.std(ways) > 0.2  # the margin has no effect beside categories


def test_a_real_target_is_interpolated_within_its_half():
    random = np.random.default_rng(2)
    X = random.random((80, 2))
    y = np.repeat([0.0, 10.0], 40) + random.random(80)
    frame = attached(SMOTE(), source(X, None, y, "regression", "minmax")).sample(300, torch.Generator())
    assert not frame["y"].between(1.01, 9.99).any()
    assert len(frame) == 300
    assert frame["y"].nunique() > 250


def test_what_smote_cannot_do_is_said():
    letters = np.array([["a"], ["b"]] * 5, dtype=object)
    with pytest.raises(ValueError, match=r"SMOTE interpolates numbers, and the table has none"):
        attached(SMOTE(), source(None, letters, [0, 1] * 5, "binclass"))
    with pytest.raises(ValueError, match=r"class 1 of the target has one row only"):
        attached(SMOTE(), source(np.random.default_rng(0).random((10, 1)), None, [0] * 9 + [1], "binclass"))
    with pytest.raises(ValueError, match=r"margin=2"):
        SMOTE(margin=2)


def test_the_real_row_is_the_training_part():
    table = source(np.arange(20.0)[:, None], None, np.arange(20) % 2, "binclass")
    real = attached(Real(), table)
    assert real.sample(20, torch.Generator()) is table.frame
    some = real.sample(7, torch.Generator().manual_seed(0))
    assert some["n0"].nunique() == 7
    with pytest.raises(ValueError, match=r"num_rows=21: the training part has 20 rows"):
        real.sample(21, torch.Generator())
