"""Which real rows stop the evaluators, and which they are scored on."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from people import people

from callbacks import synthesis_metrics
from callbacks.ml_efficiency import ml_efficiency
from callbacks.synthesis_metrics import SynthesisMetrics, halves
from datamodules.synthesis.csv import CSV


def numbered(part, num_rows):
    """Rows that can be told: column 0 counts them, the parts apart from one another. A fifth is of class 1."""
    start = 1000 * ("train", "val", "test").index(part)
    X_num = np.column_stack([np.arange(start, start + num_rows), np.random.default_rng(start).normal(size=num_rows)])
    return X_num, None, (np.arange(num_rows) % 5 == 0).astype(np.int64)


@pytest.fixture
def seen(monkeypatch):
    """What the evaluator is given to stop by and to predict: the count of each row. It predicts P(1) = 0.7 of all."""
    calls = []

    def evaluator(data, seed, **params):
        calls.append({part: data.numericals[part][:, 0].astype(int).tolist() for part in ("val", "test")})
        return {part: np.full(len(data.targets[part]), 0.7) for part in ("val", "test")}

    monkeypatch.setattr(synthesis_metrics, "EVALUATORS", {"catboost": (evaluator, 1), "mlp": (evaluator, 1)})
    monkeypatch.setattr(synthesis_metrics, "ml_efficiency", functools.partial(ml_efficiency, jobs=1))
    monkeypatch.setattr(synthesis_metrics, "quality_scores", lambda *_: {})
    return calls


def scores_of(parts, num_tables=2):
    metrics = SynthesisMetrics("binclass", {}, {}, evaluation_seeds=3)
    metrics.frames = dict.fromkeys(range(num_tables))
    return metrics._scores(parts, SimpleNamespace(table=lambda frame: numbered("train", 50)), fast=False)


def test_the_validation_part_stops_and_the_test_part_scores(seen):
    scores = scores_of({part: numbered(part, 50) for part in ("train", "val", "test")})
    assert len(seen) == 2 * 2 * 3
    assert all(each == {"val": [*range(1000, 1050)], "test": [*range(2000, 2050)]} for each in seen)
    assert {"test/f1_catboost", "test/f1_catboost_std", "test/f1_mlp", "test/dcr"} <= scores.keys()
    assert not any(name.startswith("val/") for name in scores)


def test_without_a_test_part_each_validation_row_is_scored_once_and_never_stops_its_own_evaluator(seen):
    parts = {part: numbered(part, 50) for part in ("train", "val")}
    scores = scores_of(parts)
    assert len(seen) == 2 * 2 * 2 * 3
    for each in seen:
        assert not set(each["val"]) & set(each["test"])
        assert sorted(each["val"] + each["test"]) == [*range(1000, 1050)]
    assert {tuple(each["test"]) for each in seen} == {tuple(each["val"]) for each in seen}
    assert len({tuple(each["test"]) for each in seen}) == 2
    # Everything is called class 1, as 5 rows of each 25 are: F1 is 2 · 5 / (25 + 5) of it and 0 of the other.
    assert scores["val/f1_catboost"] == pytest.approx(1 / 6)
    assert scores["val/f1_catboost_std"] == pytest.approx(0)
    assert {"val/f1_mlp", "val/dcr", "val/closer_to_train"} <= scores.keys()
    assert not any(name.startswith("test/") for name in scores)


def test_scores_of_halves_are_averaged_before_their_deviation_is_taken(seen, monkeypatch):
    """The halves differ by 0.1 throughout, and three evaluation seeds by 0, 0.2 and 0.4."""
    values = iter([[[0.5, 0.7, 0.9]], [[0.6, 0.8, 1.0]]])

    def two_results(*_, **__):
        return SimpleNamespace(scores={"val/f1": np.zeros((1, 3)), "test/f1": np.array(next(values))})

    monkeypatch.setattr(synthesis_metrics, "ml_efficiency", two_results)
    metrics = SynthesisMetrics("binclass", {}, None)
    scores = metrics._efficiency([None], {"train": None, "val": numbered("val", 10)}, 3)
    assert scores == pytest.approx({"val/f1_catboost": 0.75, "val/f1_catboost_std": np.std([0.55, 0.75, 0.95])})


def test_halves_share_each_class_and_each_range():
    X_num, _, y = numbered("val", 51)
    table = (X_num, np.full((51, 2), "a"), np.where(np.arange(51) < 2, "rare", y.astype(str)))
    first, second = halves(table)
    assert [len(each) for each in (*first, *second)] == [26] * 3 + [25] * 3
    for label in ("rare", "0", "1"):
        counts = [(each[2] == label).sum() for each in (first, second)]
        assert abs(counts[0] - counts[1]) <= 1
        assert min(counts) > 0
    real = np.random.default_rng(0).normal(size=1000)
    first, second = (np.sort(half[2]) for half in halves((real[:, None], None, real)))
    assert not np.isin(first, second).any()
    assert np.abs(first - second).mean() < 0.01  # two random halves: about 0.06


def test_a_table_without_test_rows(tmp_path):
    path = tmp_path / "people.csv"
    people().to_csv(path, index=False)
    whole, without = (
        CSV(path=str(path), target="income", evaluation=evaluation) for evaluation in ("published", "validation")
    )
    for data in (whole, without):
        data.setup()
    assert list(whole.parts) == ["train", "val", "test"]
    assert list(without.parts) == ["train", "val"]
    np.testing.assert_array_equal(without.parts["val"].y, whole.parts["val"].y)
    assert without.encoded.numericals.equal(whole.encoded.numericals)
    assert without.evaluation_arguments["evaluation_seeds"] == 3
