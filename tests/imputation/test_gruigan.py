"""GRUI-GAN against plain numpy loops, and its training with two optimisers through Lightning's Trainer."""

from typing import NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor

from callbacks.finite import FiniteGradients
from callbacks.rng import RandomState
from datamodules.base import BatchIndexSampler, TensorLoader
from lightning_modules.imputation.gruigan import GRUIGAN
from lightning_modules.networks.grui import time_since_observed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # of torch, used by Lightning
]
ROWS, TIME, FEATURES, HIDDEN, LATENT = 10, 7, 3, 6, 4


class Batch(NamedTuple):
    values: Tensor
    observed_mask: Tensor
    target: Tensor
    target_mask: Tensor
    index: Tensor
    times: Tensor | None = None


class Waves:
    """Sine waves of random phase and height; half of the entries are hidden."""

    def __init__(self, rows=64, time=TIME, irregular=False, seed=0):
        generator = torch.Generator().manual_seed(seed)
        phase = 2 * torch.pi * torch.rand(rows, 1, 1, generator=generator)
        height = 1 + 0.2 * torch.randn(rows, 1, FEATURES, generator=generator)
        gaps = 0.3 + torch.rand(rows, time, generator=generator)
        self.times = gaps.cumsum(1) if irregular else None
        times = self.times if irregular else torch.arange(time).expand(rows, time)
        shift = torch.arange(FEATURES)
        self.truth = height * torch.sin(2 * torch.pi * times[..., None] / 6 + phase + shift)
        self.observed_mask = torch.rand(self.truth.shape, generator=generator) < 0.5

    def __len__(self):
        return len(self.truth)

    def __getitem__(self, rows):
        truth, mask = self.truth[rows], self.observed_mask[rows]
        times = None if self.times is None else self.times[rows]
        return Batch(truth * mask, mask, truth * ~mask, ~mask, rows, times)

    def batch(self):
        return self[torch.arange(len(self))]


def tiny(**arguments):
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "latent_dim": LATENT, "pretraining_steps": 3, "critic_steps": 2, "search_steps": 20}
    return GRUIGAN(num_features=FEATURES, **(sizes | arguments))


def fit(module, folder, max_steps, callbacks=(), checkpoint=None, batch_size=8, data=None, **arguments):
    class Loaded(L.LightningDataModule):
        def train_dataloader(self):
            rank, size = self.trainer.global_rank, self.trainer.world_size
            waves = Waves() if data is None else data
            return TensorLoader(waves, BatchIndexSampler(len(waves), batch_size, True, 5, rank, size))

    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **arguments,
    )
    trainer.fit(module, Loaded(), ckpt_path=checkpoint, weights_only=True)
    return trainer


def numpy_delta(mask, times):
    delta = np.zeros(mask.shape)
    for row in range(mask.shape[0]):
        for t in range(1, mask.shape[1]):
            for d in range(mask.shape[2]):
                gap = times[row, t] - times[row, t - 1]
                delta[row, t, d] = gap if mask[row, t - 1, d] else gap + delta[row, t - 1, d]
    return delta


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_cell(weights, prefix, x, delta, state):
    """One step of one series by the paper's equations."""
    size = len(state)
    state = np.exp(-np.maximum(0, weights[f"{prefix}.decay.weight"] @ delta + weights[f"{prefix}.decay.bias"])) * state
    reset_in, update_in, new_in = np.split(weights[f"{prefix}.input.weight"] @ x + weights[f"{prefix}.input.bias"], 3)
    reset_weight, update_weight = np.split(weights[f"{prefix}.gates.weight"], 2)
    reset, update = sigmoid(reset_in + reset_weight @ state), sigmoid(update_in + update_weight @ state)
    candidate = np.tanh(new_in + weights[f"{prefix}.candidate.weight"] @ (reset * state))
    assert candidate.shape == (size,)
    return update * state + (1 - update) * candidate


def spread_weights(module):
    """Larger weights, biases and running statistics than at the start, so that each has a say."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        module.generator.normalise.running_mean.normal_()
        module.generator.normalise.running_var.uniform_(0.5, 2.0)
    return {name: tensor.detach().numpy() for name, tensor in module.double().state_dict().items()}


@pytest.mark.parametrize("irregular", [False, True])
def test_time_since_observed_equals_the_recursion(irregular):
    waves = Waves(ROWS, irregular=irregular)
    times = torch.arange(float(TIME))[:, None] if waves.times is None else waves.times.T
    delta = time_since_observed(waves.observed_mask.transpose(0, 1), times).transpose(0, 1)
    expected = numpy_delta(waves.observed_mask.numpy(), np.broadcast_to(times.T.numpy(), (ROWS, TIME)))
    np.testing.assert_allclose(delta.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask_generated", [False, True])
@pytest.mark.parametrize("irregular", [False, True])
def test_losses_and_series_equal_a_plain_loop(irregular, mask_generated):
    """Roll-out of the generator, scores of the critic and the three losses, one series and one step at a time."""
    module = tiny(dropout=0.0, mask_generated=mask_generated)
    weights = spread_weights(module)
    waves = Waves(ROWS, irregular=irregular)
    batch = waves.batch()
    batch = batch._replace(values=batch.values.double())
    noise = torch.randn(ROWS, LATENT, dtype=torch.float64)
    module.noise = lambda _: noise
    module.eval()  # batch normalisation by the running statistics

    times = (
        np.broadcast_to(np.arange(TIME, dtype=float), (ROWS, TIME)) if not irregular else waves.times.double().numpy()
    )
    values, mask = batch.values.numpy(), batch.observed_mask.numpy()
    delta, complete = numpy_delta(mask, times), numpy_delta(np.ones_like(mask), times)

    def generate(row, teacher):
        state, series, x = np.zeros(HIDDEN), [], weights["generator.latent.weight"] @ noise[row].numpy()
        x = x + weights["generator.latent.bias"]
        for t in range(TIME):
            state = numpy_cell(weights, "generator.cell", x, (complete if teacher is None else delta)[row, t], state)
            output = weights["generator.output.weight"] @ state + weights["generator.output.bias"]
            series.append(output)
            x = output if teacher is None else teacher[t]
        return np.array(series)

    def score(series, its_delta):
        state = np.zeros(HIDDEN)
        for t in range(TIME):
            state = numpy_cell(weights, "critic.cell", series[t], its_delta[t], state)
        return (weights["critic.output.weight"] @ state + weights["critic.output.bias"]).item()

    raw = np.array([generate(row, None) for row in range(ROWS)])
    norm = {name: weights[f"generator.normalise.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
    series = norm["weight"] * (raw - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) + norm["bias"]
    seen, its_delta = (series * mask, delta) if mask_generated else (series, complete)
    fake = np.array([score(seen[row], its_delta[row]) for row in range(ROWS)])
    real = np.array([score(values[row], delta[row]) for row in range(ROWS)])
    predicted = np.array([generate(row, values[row]) for row in range(ROWS)])
    error = (((predicted - values) ** 2) * mask).sum(-1).mean()

    np.testing.assert_allclose(module.critic_loss(batch).item(), fake.mean() - real.mean(), rtol=1e-6)
    np.testing.assert_allclose(module.generator_loss(batch).item(), -fake.mean(), rtol=1e-6)
    np.testing.assert_allclose(module.pretraining_loss(batch).item(), error, rtol=1e-6)

    unsearched = tiny(search_steps=0, dropout=0.0).double()
    unsearched.load_state_dict(module.state_dict())
    noise = unsearched.search_start.expand(ROWS, -1)
    raw = np.array([generate(row, None) for row in range(ROWS)])
    series = norm["weight"] * (raw - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) + norm["bias"]
    np.testing.assert_allclose(unsearched(batch.values, batch.observed_mask, batch.times).mean, series, rtol=1e-5)


def test_penalty_equals_that_of_finite_differences():
    module, batch = tiny(dropout=0.0), Waves(ROWS, irregular=True).batch()
    spread_weights(module)
    series, times = batch.values.double().transpose(0, 1).contiguous(), batch.times.double().T
    delta = time_since_observed(batch.observed_mask.transpose(0, 1), times)
    step, slopes = 1e-5, np.zeros(series.shape)
    with torch.no_grad():
        for t, feature in np.ndindex(TIME, FEATURES):
            nudge = torch.zeros_like(series)
            nudge[t, :, feature] = step  # of every series at once: their scores do not depend on each other
            rise = module.critic(series + nudge, delta) - module.critic(series - nudge, delta)
            slopes[t, :, feature] = rise.numpy() / (2 * step)
    expected = ((np.sqrt((slopes**2).sum((0, 2))) - 1) ** 2).mean()
    np.testing.assert_allclose(module.slope_error(series, delta).item(), expected, rtol=1e-6)


def test_the_penalty_is_taken_between_a_real_and_a_generated_series():
    """Scores that are linear in the series have the same slope at every point, and no other part in the penalty."""
    found = {}
    for weight in (0.0, 10.0):
        module, batch = tiny(dropout=0.0, gradient_penalty=weight), Waves(ROWS).batch()
        seen = []

        def linear(series, delta, seen=seen):
            seen.append(series)
            return 3.0 * series[2, :, 1] - 4.0 * series[4, :, 0]

        module.critic.forward = linear
        torch.manual_seed(3)
        found[weight] = module.critic_loss(batch).item(), seen
    np.testing.assert_allclose(found[10.0][0] - found[0.0][0], 10.0 * (5 - 1) ** 2, rtol=1e-5)
    (ends, between), values = found[10.0][1], Waves(ROWS).batch().values.transpose(0, 1)
    real, generated = ends.chunk(2, 1)
    assert torch.equal(real, values)
    share = (between - real) / (generated - real)  # [time, batch, feature], the same within a series
    torch.testing.assert_close(share, share[:1, :, :1].expand_as(share), rtol=1e-2, atol=1e-3)
    assert 0 <= share.min() < 0.3 < 0.7 < share.max() <= 1.001


def test_losses_read_observed_entries_only_and_the_noise_of_the_seed():
    module, batch = tiny(mask_generated=True, gradient_penalty=10.0), Waves(ROWS).batch()
    other = batch._replace(target=torch.full_like(batch.target, 9.0), target_mask=~batch.target_mask)
    for loss in (module.pretraining_loss, module.critic_loss, module.generator_loss):
        found = []
        for each in (batch, other):
            torch.manual_seed(4)
            found.append(loss(each).item())
        assert found[0] == found[1]
        assert loss(batch).item() != found[0]


def test_search_fits_what_is_observed_and_reads_nothing_else():
    batch = Waves(ROWS).batch()
    errors = {}
    for steps in (0, 50):
        module = tiny(search_steps=steps, adversarial_weight=0.0, search_learning_rate=0.1)
        mean = module(batch.values, batch.observed_mask).mean
        errors[steps] = ((mean - batch.values).square() * batch.observed_mask).sum((1, 2))
        hidden = batch.values + 100.0 * ~batch.observed_mask
        assert torch.equal(module(hidden, batch.observed_mask).mean, mean)
    assert (errors[50] < errors[0]).all()
    assert errors[50].sum() < 0.9 * errors[0].sum()


def test_search_heeds_the_critic():
    batch = Waves(ROWS).batch()
    scores = {}
    for weight in (0.0, 10.0):
        module = tiny(search_steps=30, adversarial_weight=weight, search_learning_rate=0.05).eval()
        mean = module(batch.values, batch.observed_mask).mean
        complete = time_since_observed(
            torch.ones(TIME, 1, FEATURES, dtype=torch.bool), torch.arange(float(TIME))[:, None]
        )
        scores[weight] = module.critic(mean.transpose(0, 1).contiguous(), complete)
    assert (scores[10.0] - scores[0.0]).mean() > 0


@pytest.mark.parametrize("irregular", [False, True])
def test_an_imputation_depends_on_neither_batch_nor_mode(irregular):
    module, batch = tiny(dropout=0.5, search_steps=30).double(), Waves(ROWS, irregular=irregular).batch()
    batch = batch._replace(values=batch.values.double())
    spread_weights(module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    whole = module.train()(batch.values, batch.observed_mask, batch.times).mean
    assert module.training
    assert not whole.requires_grad
    with torch.inference_mode():  # as in the Trainer's evaluation, where the batch is made of inference tensors
        parts = []
        for rows in (slice(0, 3), slice(3, 10)):
            part = Batch(*(None if each is None else each[rows].clone() for each in batch))
            parts.append(module.eval()(part.values, part.observed_mask, part.times).mean)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in module.parameters())


class Watch(L.Callback):
    """Notes after each batch the Trainer's count and the largest weight; saves at some counts."""

    def __init__(self, folder=None, save=()):
        self.folder, self.save, self.steps, self.largest = folder, save, [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.steps.append(trainer.global_step)
        self.largest.append(max(parameter.abs().max().item() for parameter in module.parameters()))
        if trainer.global_step in self.save:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def test_a_batch_is_a_step_and_weights_stay_within_the_clip(tmp_path):
    watch, guard = Watch(), FiniteGradients()
    module = tiny(weight_clip=0.25)
    trainer = fit(module, tmp_path, 12, [watch, guard])
    assert watch.steps == list(range(1, 13))
    assert trainer.global_step == 12
    pretraining, critic, generator = (optimizer.param_groups[0]["num_steps"] for optimizer in trainer.optimizers)
    assert (pretraining, critic, generator) == (3, 9, 4)  # the generator after the 2nd, 4th, 6th, 8th of the critic
    assert guard._calls == 16  # sees the steps that are not counted, too
    assert max(watch.largest[:3]) > 0.25
    assert max(watch.largest[3:]) <= 0.25


def test_gradients_are_clipped_by_hand(tmp_path):
    norms = []

    class Norms(GRUIGAN):
        def optimizer_step(self, *arguments, **options):
            raise AssertionError("only for automatic optimisation")

        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)
            gradients = [parameter.grad for parameter in optimizer.param_groups[0]["params"]]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())

    for clip in (None, 0.01):
        norms.clear()
        torch.manual_seed(0)
        fit(
            Norms(
                FEATURES, hidden_size=HIDDEN, latent_dim=LATENT, pretraining_steps=2, critic_steps=1, gradient_clip=clip
            ),
            tmp_path,
            6,
        )
        assert len(norms) == 10
        assert max(norms) > 0.05 if clip is None else max(norms) <= 0.01 * (1 + 1e-5)


def test_a_bad_batch_is_dropped_for_both_networks(tmp_path):
    class Spoilt(GRUIGAN):
        def critic_loss(self, batch):
            return super().critic_loss(batch) * (torch.nan if self.global_step in (4, 6) else 1.0)

    torch.manual_seed(0)
    module, guard = (
        Spoilt(FEATURES, hidden_size=HIDDEN, latent_dim=LATENT, pretraining_steps=3, critic_steps=2),
        FiniteGradients(),
    )
    fit(module, tmp_path, 10, [guard])
    assert guard.skipped_steps == 2
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("step", [2, 4, 5, 10])  # in pre-training, after 1 and 2 steps of the critic, in a later epoch
def test_resume_is_identical_to_the_last_bit(tmp_path, step):
    L.seed_everything(1, verbose=False)
    whole = tiny()
    trainer = fit(whole, tmp_path, 13, [Watch(tmp_path, {step}), RandomState()])
    L.seed_everything(77, verbose=False)
    resumed = tiny()
    again = fit(resumed, tmp_path, 13, [RandomState()], tmp_path / f"{step}.ckpt")
    assert again.global_step == trainer.global_step == 13
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    for ours, theirs in zip(again.optimizers, trainer.optimizers, strict=True):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_ranks_hold_identical_weights_and_average_their_gradients(tmp_path):
    """Two ranks of 4 rows make the step that one process makes of all 8."""

    class Compare(L.Callback):
        def __init__(self, expected=None):
            self.expected = expected

        def on_train_start(self, trainer, module):
            torch.manual_seed(trainer.global_rank)

        def on_train_end(self, trainer, module):
            state = torch.cat([tensor.flatten().double() for tensor in module.state_dict().values()])
            both = [torch.empty_like(state) for _ in range(2)]
            torch.distributed.all_gather(both, state)
            assert torch.equal(both[0], both[1])
            if self.expected is not None:
                torch.testing.assert_close(dict(module.named_parameters()), self.expected, rtol=1e-4, atol=1e-6)

    ranks = {"devices": 2, "strategy": "ddp_fork"}
    arguments = {"dropout": 0.0, "pretraining_steps": 2, "critic_steps": 1}
    one, two = tiny(**arguments), tiny(**arguments)
    # Batch normalisation is of a rank's own share: the same as in one process where all generated series are alike.
    one.noise = two.noise = lambda batch: torch.ones(len(batch.values), LATENT)
    fit(one, tmp_path, 5, batch_size=8)
    expected = {name: parameter.detach() for name, parameter in one.named_parameters()}
    fit(two, tmp_path, 5, [Compare(expected)], batch_size=4, **ranks)
    fit(tiny(), tmp_path, 12, [Compare(), FiniteGradients(), RandomState()], batch_size=4, **ranks)


def spread_over_noise(module, time):
    """Covariance over z of the generated series, [time * feature, time * feature]."""
    complete = time_since_observed(torch.ones(time, 1, FEATURES, dtype=torch.bool), torch.arange(float(time))[:, None])
    with torch.no_grad():
        series = module.eval().generator(torch.randn(2000, module.hparams.latent_dim), complete)
    return torch.cov(series.transpose(0, 1).flatten(1).T)


@pytest.mark.slow
def test_the_critic_alone_teaches_the_distribution(tmp_path):
    """Without pre-training, from half of the entries: the generator's covariance nears the data's, imputations follow.

    As published, with a critic that sees gaps in the data's series only, it does not: all noise gives the same series.
    """
    waves, held_out = Waves(512, time=12), Waves(64, time=12, seed=1).batch()
    truth = torch.cov(waves.truth.flatten(1).T)
    shared = {"hidden_size": 16, "latent_dim": 8, "dropout": 0.0, "pretraining_steps": 0, "critic_steps": 5}
    rates = {"learning_rate": 3e-3, "generator_learning_rate": 3e-3, "search_learning_rate": 0.05}
    mended = {"mask_generated": True, "gradient_penalty": 10.0, "weight_clip": None}
    errors, distances = {}, {}
    for name, arguments in (("untrained", mended), ("mended", mended), ("published", {})):
        module = tiny(search_steps=60, adversarial_weight=0.0, **shared, **rates, **arguments)
        if name != "untrained":
            fit(module, tmp_path, 1500, batch_size=64, data=waves)
        distances[name] = (spread_over_noise(module, 12) - truth).norm() / truth.norm()
        difference = module(held_out.values, held_out.observed_mask).mean - held_out.target
        errors[name] = difference.square()[held_out.target_mask].mean()
    assert distances["untrained"] > 0.9
    assert distances["mended"] < 0.5
    assert distances["published"] > 0.8
    assert errors["mended"] < 0.25 * errors["untrained"]
    assert errors["mended"] < 0.25 * errors["published"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"critic_steps": 0}, "critic_steps=0 must be at least 1"),
        ({"weight_clip": 0.0}, "weight_clip=0.0 must be"),
        ({"gradient_penalty": -1.0}, "gradient_penalty=-1.0 must not"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GRUIGAN(num_features=2, **arguments)
