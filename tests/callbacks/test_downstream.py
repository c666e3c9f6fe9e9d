import logging
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed
from ddp import run_in_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from imputed import completed, series, shards
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from callbacks import downstream
from callbacks.downstream import DownstreamClassifier, bootstrap_auroc, downstream_scores


def classifier_of(batches, rounded, classifier):
    metric = DownstreamClassifier(rounded, classifier)
    for batch in batches:
        metric.update(batch.mean, batch.values, batch.observed_mask, batch.label, batch.index)
    return metric


def pairwise_auroc(positive, score):
    above = score[positive][:, None] - score[~positive][None, :]
    return np.mean((above > 0) + 0.5 * (above == 0))


def average_precision(positive, score):
    """Mean over the positives of the precision at their score."""
    return np.mean([np.mean(positive[score >= at]) for at in score[positive]])


def softmax_regression(x, y, classes):
    """Weights that minimise the sum of log losses plus half the squared weights, intercepts left alone."""

    def objective(flat):
        w = flat.reshape(classes, -1)
        logits = x @ w[:, :-1].T + w[:, -1]
        residual = np.exp(logits - logsumexp(logits, axis=1, keepdims=True)) - np.eye(classes)[y]
        loss = (logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]).sum() + 0.5 * (w[:, :-1] ** 2).sum()
        return loss, np.hstack([residual.T @ x + w[:, :-1], residual.sum(0)[:, None]]).ravel()

    start = np.zeros(classes * (x.shape[1] + 1))
    w = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000}).x
    return w.reshape(classes, -1)


@pytest.mark.parametrize("rounded", [False, True])
def test_multinomial_auroc_against_own_regression_and_pair_counting(rounded):
    data = series(rows=60, seed=3, binary=rounded)
    data.values[:, 0, 0], data.mean[:, 0, 0] = 0.0, 0.0  # a column of zeros, which is left out
    x, y = completed(data, rounded), data.label.numpy()
    w = softmax_regression(x[:30], y[:30], 3)
    logits = x[30:] @ w[:, :-1].T + w[:, -1]
    score = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    truth = np.mean([pairwise_auroc(y[30:] == c, score[:, c]) for c in range(3)])
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))  # batches come in any order
    scores = classifier_of([data.rows(part) for part in order.split(17)], rounded, "multinomial").compute()
    assert scores["auroc"].item() == pytest.approx(truth, abs=1e-12)
    precision = np.mean([average_precision(y[30:] == c, score[:, c]) for c in range(3)])
    assert scores["auprc"].item() == pytest.approx(precision, abs=1e-12)
    assert 0.55 < truth < 0.99


def test_binary_auroc_against_own_regression_with_penalised_intercept():
    data = series(rows=61, classes=2, seed=5)
    x, sign = completed(data, False), 2.0 * data.label.numpy() - 1
    x = np.hstack([x, np.ones((61, 1))])  # liblinear's intercept is a column like any other

    def objective(w):
        margin = sign[:30] * (x[:30] @ w)
        return np.logaddexp(0, -margin).sum() + 0.5 * w @ w, w - x[:30].T @ (sign[:30] / (1 + np.exp(margin)))

    w = minimize(objective, np.zeros(x.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    truth = pairwise_auroc(sign[30:] > 0, x[30:] @ w)
    assert classifier_of([data], False, "binary").compute()["auroc"].item() == pytest.approx(truth, abs=1e-12)
    assert 0.55 < truth < 0.99


@pytest.mark.parametrize("classifier", ["multinomial", "binary"])
def test_standardised_columns_do_not_feel_their_units(classifier):
    data = series(rows=61, classes=3 if classifier == "multinomial" else 2, seed=5)
    x, y = completed(data, False), data.label.numpy()
    x[:, 3] = 7.0  # a constant column
    units = np.random.default_rng(0).uniform(0.01, 100, x.shape[1])
    first, second = (downstream_scores(each, y, classifier, True).scores for each in (x, x * units + units))
    assert first == pytest.approx(second, abs=1e-9)
    inputs = (x - x[:30].mean(0)) / np.where(x[:30].std(0) > 0, x[:30].std(0), 1)
    plain = downstream_scores(inputs, y, classifier).scores
    assert first == pytest.approx(plain, abs=1e-9)
    assert downstream_scores(x * units, y, classifier).scores["auroc"] != plain["auroc"]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 1000))
def test_bootstrap_is_the_auroc_of_the_drawn_rows(rows, levels, seed):
    generator = np.random.default_rng(seed)
    positive, score = generator.random(rows) < 0.4, generator.integers(0, levels, rows) / 3.0
    draws = bootstrap_auroc(positive, score, num_draws=20, seed=seed)
    weight = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=20)
    for value, count in zip(draws, weight, strict=True):
        drawn = np.repeat(np.arange(rows), count)
        if len(np.unique(positive[drawn])) < 2:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(roc_auc_score(positive[drawn], score[drawn]), abs=1e-12)


def test_bootstrap_spread_is_that_of_new_samples():
    """Standard deviation of the AUROC over fresh data of the same kind."""
    generator = np.random.default_rng(1)

    def draw():
        positive = np.arange(400) < 100
        return positive, generator.normal(size=400) + positive

    fresh = np.std([roc_auc_score(*draw()) for _ in range(500)])
    assert np.std(bootstrap_auroc(*draw())) == pytest.approx(fresh, rel=0.25)


@pytest.mark.parametrize("sizes", [[17, 16], [28, 5], [33, 0]])  # 4 and 4 batches, 6 and 1, 7 and none
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # the rank without rows
def test_two_ranks_are_one(sizes, rounded):
    data = series(binary=rounded)
    parts = shards(data, sizes)

    def on_rank():
        scores = classifier_of(parts[torch.distributed.get_rank()], rounded, "multinomial").compute()
        return {name: value.item() for name, value in scores.items()}

    alone = {name: value.item() for name, value in classifier_of([data], rounded, "multinomial").compute().items()}
    assert run_in_processes(2, on_rank) == [alone, alone]


def test_hidden_truth_is_not_put_back():
    data = series(rows=40)
    blind = data._replace(target=torch.full_like(data.target, 1e9))
    assert (
        classifier_of([blind], False, "multinomial").compute() == classifier_of([data], False, "multinomial").compute()
    )
    other = data._replace(mean=torch.where(data.target_mask, -data.mean, data.mean))
    assert (
        classifier_of([other], False, "multinomial").compute() != classifier_of([data], False, "multinomial").compute()
    )


def test_reset_forgets():
    data = series(rows=40)
    metric = classifier_of([series(rows=40, seed=9)], False, "multinomial")
    metric.compute()
    metric.reset()
    metric.update(data.mean, data.values, data.observed_mask, data.label, data.index)
    assert metric.compute() == classifier_of([data], False, "multinomial").compute()


def test_unusable_series_are_errors():
    data = series(rows=40)
    with pytest.raises(ValueError, match="40 series were evaluated, but only 20 different"):
        classifier_of([data._replace(index=data.index // 2)], False, "multinomial").compute()
    for value, rounded in ((torch.nan, True), (torch.nan, False), (300.0, True), (-1.0, True)):
        mean = torch.rand(data.mean.shape)
        mean[7] = value
        bad = classifier_of([data._replace(mean=mean, values=mean * data.observed_mask)], rounded, "multinomial")
        with pytest.raises(ValueError, match="the imputed mean has diverged"):
            bad.compute()
    with pytest.raises(ValueError, match=r"first half has the classes \[0\], the second \[0, 1\]"):
        downstream_scores(np.eye(6), np.array([0, 0, 0, 0, 1, 1]), "binary")
    with pytest.raises(ValueError, match="same two in both"):
        downstream_scores(np.eye(6), np.array([0, 1, 2, 0, 1, 2]), "binary")


def test_warnings_of_the_classifier_become_log_lines(monkeypatch, caplog):
    hasty = partial(LogisticRegression, max_iter=2)
    monkeypatch.setattr(downstream, "LogisticRegression", lambda max_iter, **arguments: hasty(**arguments))
    data = series(rows=60)
    with caplog.at_level(logging.WARNING):
        classifier_of([data], False, "multinomial").compute()
    assert "downstream classifier: lbfgs failed to converge" in caplog.text


def test_failure_on_rank_zero_is_raised_on_all_ranks():
    data = series()
    parts = shards(data._replace(label=torch.zeros_like(data.label)), [17, 16])

    def on_rank():
        with pytest.raises(ValueError, match="leave it out") as raised:
            classifier_of(parts[torch.distributed.get_rank()], False, "multinomial").compute()
        return str(raised.value)

    first, second = run_in_processes(2, on_rank, timeout=30)
    assert first == second
    assert "of the 33 evaluated series the first half has the classes [0]" in first
