from typing import NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed
from ddp import run_in_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from imputed import completed, series, shards
from scipy.stats import norm
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.downstream import downstream_scores
from callbacks.imputation_metrics import ImputationErrors, ImputationIntervals, ImputationMetrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # of torch, used by Lightning
]
FLOAT32 = torch.finfo(torch.float32).eps


class Prediction(NamedTuple):
    """A stored answer: draws are the mean plus fixed noise, the mixture's density is a nat better than one sample's."""

    mean: Tensor
    density: Tensor | None
    spread: float = 1.0

    def sample(self, num_samples, *, rows):
        noise = torch.linspace(-2, 2, num_samples)[:, None, None, None]
        return self.mean + self.spread * noise * (1 + rows[:, None, None] % 3)

    def log_prob(self, value, rows):
        return self.density

    def log_mixture(self, value, num_samples, rows):
        return None if self.density is None else self.density + num_samples / 20


def plain_scores(data, rounded):
    mask = data.target_mask.numpy()
    mean, target, log_prob = (t.double().numpy()[mask] for t in (data.mean, data.target, data.log_prob))
    error = (np.round(mean) if rounded else mean) - target
    scores = {"mse": np.mean(error**2), "mae": np.mean(np.abs(error)), "rmse": np.sqrt(np.mean(error**2))}
    scores |= {"mre": np.abs(error).sum() / np.abs(target).sum()} if target.any() else {}
    return scores | {"nll": -np.mean(log_prob)}


def plain_intervals(data, num_samples=100, spread=1.0):
    """CRPS, coverage and width by numpy's quantiles, entry after entry."""
    mask = data.target_mask.numpy()
    drawn = Prediction(data.mean, None, spread).sample(num_samples, rows=data.index).double().numpy()[:, mask]
    truth = data.target.double().numpy()[mask]
    levels = np.arange(1, 20) / 20
    loss = 0.0
    for level, quantile in zip(levels, np.quantile(drawn, levels, axis=0), strict=True):
        loss += 2 * np.abs((quantile - truth) * ((truth <= quantile) - level)).sum() / 19
    scores = {"crps": loss / np.abs(truth).sum()}
    for percent in (50, 90, 95):
        lower, upper = np.quantile(drawn, [(1 - percent / 100) / 2, (1 + percent / 100) / 2], axis=0)
        scores[f"coverage_{percent}"] = np.mean((lower <= truth) & (truth <= upper))
        scores[f"width_{percent}"] = np.mean(upper - lower)
    return scores


def errors_of(batches, rounded):
    metric = ImputationErrors(3, rounded)
    for batch in batches:
        metric.update(batch.mean, batch.target, batch.target_mask, batch.log_prob)
    return metric.compute()


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
    metric = ImputationErrors(4, rounded=True)
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


@pytest.mark.parametrize("sizes", [[17, 16], [28, 5], [33, 0]])  # 4 and 4 batches, 6 and 1, 7 and none
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # the rank without rows
def test_two_ranks_are_one(sizes, rounded):
    data = series(binary=rounded)
    parts = shards(data, sizes)

    def on_rank():
        batches = parts[torch.distributed.get_rank()]
        scores = errors_of(batches, rounded) | intervals_of(batches)
        return {name: value.item() for name, value in scores.items()}

    for scores in run_in_processes(2, on_rank):
        for name, value in (plain_scores(data, rounded) | plain_intervals(data)).items():
            assert scores[name] == pytest.approx(value, rel=FLOAT32)


def intervals_of(batches, num_samples=100, spread=1.0):
    metric = ImputationIntervals(3)
    for batch in batches:
        samples = Prediction(batch.mean, None, spread).sample(num_samples, rows=batch.index)
        metric.update(samples, batch.target, batch.target_mask)
    return metric.compute()


@pytest.mark.parametrize("num_samples", [1, 2, 37, 100])
def test_intervals_against_numpys_quantiles(num_samples):
    data = series(seed=4)
    for name, value in plain_intervals(data, num_samples).items() if num_samples > 1 else ():
        assert intervals_of([data], num_samples)[name].item() == pytest.approx(value, rel=1e-12)
    # A point has no interval, and its CRPS is the mean absolute error over the mean absolute truth.
    point = intervals_of([data], num_samples, spread=0.0)
    assert {name: value.item() for name, value in point.items()} == {
        "crps": pytest.approx(plain_scores(data, False)["mre"], rel=FLOAT32)
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_quantiles_of_samples_of_any_type_are_in_float64(dtype):
    samples = torch.randn((7, 30, 4, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    truth, mask = torch.zeros(30, 4, 2), torch.ones(30, 4, 2, dtype=torch.bool)
    scores = []
    for drawn in (samples, samples.double()):
        metric = ImputationIntervals(2)
        metric.update(drawn, truth + 1, mask)
        scores.append(metric.compute())
    assert scores[0] == scores[1]


def test_intervals_of_the_true_distribution_cover_what_they_say():
    g = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.5, 2.0])
    truth = scale * torch.randn((200, 20, 2), generator=g)
    samples = scale * torch.randn((400, 200, 20, 2), generator=g)
    metric = ImputationIntervals(2)
    metric.update(samples, truth, torch.ones_like(truth, dtype=torch.bool))
    scores = metric.compute()
    for percent in (50, 90, 95):
        assert scores[f"coverage_{percent}"].item() == pytest.approx(percent / 100, abs=0.012)
        width = 2 * norm.ppf(0.5 + percent / 200) * scale.numpy()
        # Quantiles between 400 order statistics fall short by up to 1.3 %.
        np.testing.assert_allclose(metric.by_feature[f"width_{percent}"], width, rtol=0.02)
    # CRPS of a calibrated normal: scale / sqrt(pi), its mean absolute value: scale * sqrt(2 / pi). The mean over the 19
    # inner levels is 20 / 19 of the integral over all levels, since the loss vanishes at both ends.
    assert scores["crps"].item() == pytest.approx(20 / 19 * np.sqrt(1 / 2), rel=0.01)


def test_scores_of_each_feature_are_those_of_the_feature_alone():
    data = series(seed=7)
    data.target_mask[..., 1] = False
    metric = ImputationErrors(3, False)
    metric.update(data.mean, data.target, data.target_mask, data.log_prob)
    metric.compute()
    for j in (0, 2):
        only = data.target_mask & (torch.arange(3) == j)
        for name, value in plain_scores(data._replace(target_mask=only), False).items():
            assert metric.by_feature[name][j].item() == pytest.approx(value, rel=1e-12)
    assert all(values[1].isnan() for values in metric.by_feature.values())


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
        return Prediction(batch.mean, batch.log_prob if self.density else None)

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
    metrics = ImputationMetrics(3, False, "multinomial", samples=50, mixture_samples=40)
    (scores,) = trainer(tmp_path, metrics, **ranks).test(Module(data), verbose=False)
    arguments = completed(data, False), data.label.numpy(), "multinomial"
    downstream, draws = downstream_scores(*arguments)
    truth = plain_scores(data, False) | plain_intervals(data, 50) | downstream
    truth["nll_mixture"] = truth["nll"] - 2
    truth |= {f"{name}_standardised": downstream_scores(*arguments, True).scores[name] for name in ("auroc", "auprc")}
    assert scores == {f"test/{name}": pytest.approx(value, rel=FLOAT32) for name, value in truth.items()}
    if ranks["devices"] == 1:  # else the metrics of the other processes are theirs
        assert metrics.draws.keys() == {"test/auroc"}
        np.testing.assert_array_equal(metrics.draws["test/auroc"], draws)


def test_validation_scores_every_epoch_anew_and_not_the_sanity_check(tmp_path):
    data = series(rows=20)
    seen = []

    class Spy(ImputationMetrics):
        def on_validation_end(self, trainer, pl_module):
            seen.append((trainer.sanity_checking, dict(trainer.callback_metrics)))

    run = trainer(tmp_path, Spy(3, False, None), max_epochs=2, num_sanity_val_steps=2)
    run.fit(Module(data, density=False))
    truth = plain_scores(data, False)
    expected = {f"val/{name}": pytest.approx(truth[name], rel=FLOAT32) for name in ("mse", "mae", "rmse", "mre")}
    assert seen == [(True, {}), (False, expected), (False, expected)]
    (scores,) = run.test(Module(data, density=False), verbose=False)
    assert set(scores) == {"test/mse", "test/mae", "test/rmse", "test/mre"}
