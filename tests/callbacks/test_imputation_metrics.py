import logging
from functools import partial
from typing import NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed
from ddp import run_in_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import imputation_metrics
from callbacks.imputation_metrics import DownstreamAUROC, ImputationErrors, ImputationMetrics, downstream_auroc

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # of torch, used by Lightning
]
FLOAT32 = torch.finfo(torch.float32).eps


class Batch(NamedTuple):
    values: Tensor
    observed_mask: Tensor
    target: Tensor
    target_mask: Tensor
    label: Tensor
    index: Tensor
    mean: Tensor
    log_prob: Tensor

    def rows(self, where):
        return Batch(*(tensor[where] for tensor in self))


class Imputation(NamedTuple):
    mean: Tensor
    log_prob: Tensor | None


def series(rows=33, time=4, feature=3, classes=3, binary=False, seed=0):
    """A labelled data set with hidden entries, its imputation and densities."""
    g = torch.Generator().manual_seed(seed)
    shape = (rows, time, feature)
    label = torch.arange(rows) % classes
    truth = torch.randn(shape, generator=g) + 0.7 * torch.randn((classes, time, feature), generator=g)[label]
    mean = truth + torch.randn(shape, generator=g)
    if binary:
        truth, mean = (truth > 0).float(), mean.sigmoid()
    observed = torch.rand(shape, generator=g) < 0.6
    target_mask = ~observed & (torch.rand(shape, generator=g) < 0.8)
    log_prob = -torch.rand(shape, generator=g) * 3
    return Batch(
        truth * observed, observed, truth * target_mask, target_mask, label, torch.arange(rows), mean, log_prob
    )


def plain_scores(data, rounded):
    mask = data.target_mask.numpy()
    mean, target, log_prob = (t.double().numpy()[mask] for t in (data.mean, data.target, data.log_prob))
    error = (np.round(mean) if rounded else mean) - target
    return {"mse": np.mean(error**2), "mae": np.mean(np.abs(error)), "nll": -np.mean(log_prob)}


def completed(data, rounded):
    flat = np.where(data.observed_mask, data.values, data.mean).reshape(len(data.label), -1).astype(np.float64)
    return np.round(flat) if rounded else flat


def errors_of(batches, rounded):
    metric = ImputationErrors(rounded)
    for batch in batches:
        metric.update(batch.mean, batch.target, batch.target_mask, batch.log_prob)
    return metric.compute()


def auroc_of(batches, rounded, classifier):
    metric = DownstreamAUROC(rounded, classifier)
    for batch in batches:
        metric.update(batch.mean, batch.values, batch.observed_mask, batch.label, batch.index)
    return metric


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.lists(st.integers(1, 10), min_size=1, max_size=4))
def test_errors_are_plain_means_over_hidden_entries_however_batched(seed, rounded, sizes):
    data = series(rows=sum(sizes), seed=seed, binary=rounded)
    if not data.target_mask.any():
        return
    nowhere = ~data.target_mask
    data.mean[nowhere], data.target[nowhere], data.log_prob[nowhere] = torch.nan, torch.inf, torch.nan
    parts = torch.arange(sum(sizes)).split(sizes)
    scores = errors_of([data.rows(part) for part in parts], rounded)
    assert {name: value.dtype for name, value in scores.items()} == dict.fromkeys(scores, torch.float64)
    for name, value in plain_scores(data, rounded).items():
        assert scores[name].item() == pytest.approx(value, rel=1e-12)


def test_rounding_is_half_to_even_for_both_errors_and_never_for_the_density():
    metric = ImputationErrors(rounded=True)
    mean = torch.tensor([[[0.5, 1.5, 2.5, 0.51]]])
    metric.update(mean, torch.zeros_like(mean), torch.ones_like(mean, dtype=torch.bool), torch.full_like(mean, -0.5))
    scores = metric.compute()
    assert (scores["mse"], scores["mae"], scores["nll"]) == ((0 + 4 + 4 + 1) / 4, (0 + 2 + 2 + 1) / 4, 0.5)


def test_nothing_to_score_and_wrong_shapes_are_errors():
    data = series()
    with pytest.raises(ValueError, match="target_mask is False everywhere"):
        errors_of([data._replace(target_mask=torch.zeros_like(data.target_mask))], False)
    with pytest.raises(ValueError, match=r"'mean': \(33, 4, 1\)"):
        errors_of([data._replace(mean=data.mean[:, :, :1])], False)


def pairwise_auroc(positive, score):
    above = score[positive][:, None] - score[~positive][None, :]
    return np.mean((above > 0) + 0.5 * (above == 0))


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
    value = auroc_of([data.rows(part) for part in order.split(17)], rounded, "multinomial").compute()
    assert value.item() == pytest.approx(truth, abs=1e-12)
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
    assert auroc_of([data], False, "binary").compute().item() == pytest.approx(truth, abs=1e-12)
    assert 0.55 < truth < 0.99


def test_hidden_truth_is_not_put_back():
    data = series(rows=40)
    blind = data._replace(target=torch.full_like(data.target, 1e9))
    assert auroc_of([blind], False, "multinomial").compute() == auroc_of([data], False, "multinomial").compute()
    other = data._replace(mean=torch.where(data.target_mask, -data.mean, data.mean))
    assert auroc_of([other], False, "multinomial").compute() != auroc_of([data], False, "multinomial").compute()


def test_reset_forgets():
    data = series(rows=40)
    metric = auroc_of([series(rows=40, seed=9)], False, "multinomial")
    metric.compute()
    metric.reset()
    metric.update(data.mean, data.values, data.observed_mask, data.label, data.index)
    assert metric.compute() == auroc_of([data], False, "multinomial").compute()


def test_unusable_series_are_errors():
    data = series(rows=40)
    with pytest.raises(ValueError, match="40 series were evaluated, but only 20 different"):
        auroc_of([data._replace(index=data.index // 2)], False, "multinomial").compute()
    for value, rounded in ((torch.nan, True), (torch.nan, False), (300.0, True), (-1.0, True)):
        mean = torch.rand(data.mean.shape)
        mean[7] = value
        bad = auroc_of([data._replace(mean=mean, values=mean * data.observed_mask)], rounded, "multinomial")
        with pytest.raises(ValueError, match="the imputed mean has diverged"):
            bad.compute()
    with pytest.raises(ValueError, match=r"first half has the classes \[0\], the second \[0, 1\]"):
        downstream_auroc(np.eye(6), np.array([0, 0, 0, 0, 1, 1]), "binary")
    with pytest.raises(ValueError, match="same two in both"):
        downstream_auroc(np.eye(6), np.array([0, 1, 2, 0, 1, 2]), "binary")


def test_warnings_of_the_classifier_become_log_lines(monkeypatch, caplog):
    hasty = partial(LogisticRegression, max_iter=2)
    monkeypatch.setattr(imputation_metrics, "LogisticRegression", lambda max_iter, **arguments: hasty(**arguments))
    data = series(rows=60)
    with caplog.at_level(logging.WARNING):
        auroc_of([data], False, "multinomial").compute()
    assert "downstream classifier: lbfgs failed to converge" in caplog.text


def shards(data, sizes):
    """Rows of each rank, shuffled and in batches of 5."""
    order = torch.randperm(len(data.label), generator=torch.Generator().manual_seed(2))
    return [[data.rows(part) for part in share.split(5)] if len(share) else [] for share in order.split(sizes)]


@pytest.mark.parametrize("sizes", [[17, 16], [28, 5], [33, 0]])  # 4 and 4 batches, 6 and 1, 7 and none
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # the rank without rows
def test_two_ranks_are_one(sizes, rounded):
    data = series(binary=rounded)
    parts = shards(data, sizes)

    def on_rank():
        batches = parts[torch.distributed.get_rank()]
        auroc = auroc_of(batches, rounded, "multinomial").compute()
        return {name: value.item() for name, value in errors_of(batches, rounded).items()}, auroc.item()

    alone = auroc_of([data], rounded, "multinomial").compute().item()
    for errors, auroc in run_in_processes(2, on_rank):
        for name, value in plain_scores(data, rounded).items():
            assert errors[name] == pytest.approx(value, rel=FLOAT32)
        assert auroc == alone


def test_failure_on_rank_zero_is_raised_on_all_ranks():
    data = series()
    parts = shards(data._replace(label=torch.zeros_like(data.label)), [17, 16])

    def on_rank():
        with pytest.raises(ValueError, match="auroc=False") as raised:
            auroc_of(parts[torch.distributed.get_rank()], False, "multinomial").compute()
        return str(raised.value)

    first, second = run_in_processes(2, on_rank, timeout=30)
    assert first == second
    assert "of the 33 evaluated series the first half has the classes [0]" in first


class Module(L.LightningModule):
    """Hands out stored imputations; each rank takes its rows un-padded, the second rank fewer."""

    def __init__(self, data, density=True):
        super().__init__()
        self.data, self.density = data, density
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def loader(self):
        cut = len(self.data.label) * 2 // 3
        mine = [slice(None, cut), slice(cut, None)][self.global_rank] if self.trainer.world_size > 1 else slice(None)
        rows = self.data.rows(mine)
        batches = [rows.rows(part) for part in torch.arange(len(rows.label)).split(5)]
        return DataLoader(batches, batch_size=None, shuffle=False)

    train_dataloader = val_dataloader = test_dataloader = loader

    def training_step(self, batch, _):
        return self.weight**2

    def validation_step(self, batch, _):
        return Imputation(batch.mean, batch.log_prob if self.density else None)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, callback, **arguments):
    return L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **arguments,
    )


@pytest.mark.parametrize("ranks", [{"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}])
def test_through_a_trainer(tmp_path, ranks):
    data = series(rows=60)
    (scores,) = trainer(tmp_path, ImputationMetrics(False, "multinomial"), **ranks).test(Module(data), verbose=False)
    auroc = downstream_auroc(completed(data, False), data.label.numpy(), "multinomial")
    truth = plain_scores(data, False) | {"auroc": auroc}
    assert scores == {f"test/{name}": pytest.approx(value, rel=FLOAT32) for name, value in truth.items()}


def test_validation_scores_every_epoch_anew_and_not_the_sanity_check(tmp_path):
    data = series(rows=20)
    seen = []

    class Spy(ImputationMetrics):
        def on_validation_end(self, trainer, pl_module):
            seen.append((trainer.sanity_checking, dict(trainer.callback_metrics)))

    run = trainer(tmp_path, Spy(False, "multinomial", auroc=False), max_epochs=2, num_sanity_val_steps=2)
    run.fit(Module(data, density=False))
    truth = plain_scores(data, False)
    expected = {f"val/{name}": pytest.approx(truth[name], rel=FLOAT32) for name in ("mse", "mae")}
    assert seen == [(True, {}), (False, expected), (False, expected)]
    (scores,) = run.test(Module(data, density=False), verbose=False)
    assert set(scores) == {"test/mse", "test/mae"}
