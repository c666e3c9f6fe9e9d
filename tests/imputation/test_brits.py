"""BRITS against a plain numpy float64 implementation of the paper's equations, and what must not reach it."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.build import build_module
from experiments.config import compose
from lightning_modules.imputation.brits import BRITS, both_directions, time_gaps
from lightning_modules.imputation.constant import mean_fill


class Batch(NamedTuple):
    values: Tensor
    observed_mask: Tensor
    label: Tensor
    times: Tensor | None = None


def series(seed, shape=(5, 7, 3), irregular=False, padding=True):
    """Random series; with padding, the first two are observed from the second to the last but one step only."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    observed_mask = torch.rand(shape, generator=generator) < 0.6
    if padding:
        observed_mask[:2, [0, -2, -1]] = False
    gaps = 0.2 + 2 * torch.rand(shape[:2], generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, shape[:1], generator=generator)
    return Batch(values * observed_mask, observed_mask, label, gaps.cumsum(1) if irregular else None)


def build(**arguments):
    torch.manual_seed(0)
    return BRITS(num_features=3, hidden_size=4, **arguments).double()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gaps_by_recursion(mask, stamps):
    """delta [time, feature] of one series, from its first step with an observation on; before it, None."""
    first = np.flatnonzero(mask.any(1))[0]
    gaps = [None] * first + [np.ones(mask.shape[1])]
    for t in range(first + 1, len(mask)):
        gaps.append(stamps[t] - stamps[t - 1] + (1 - mask[t - 1]) * gaps[-1])
    return gaps


def one_direction(module, k, x, mask, stamps):
    """Estimates [3, time, feature] and states [time, hidden] of one series, step by step from the equations."""
    layers = {
        name: (layer.weight[k].detach().numpy(), layer.bias[k, 0].detach().numpy())
        for name, layer in module.named_children()
    }

    def dense(name, inputs):
        weight, bias = layers[name]
        return inputs @ weight + bias

    features_weight = layers["features"][0].copy()
    np.fill_diagonal(features_weight, 0)
    h, c = np.zeros(4), np.zeros(4)
    estimates, states = [], []
    for t, gap in enumerate(gaps_by_recursion(mask, stamps)):
        m = mask[t].astype(float)
        started = gap is not None
        if not started:  # nothing seen yet: gaps of time, of which nothing is scored, go down to 0
            gap = np.full(len(m), max(0.0, stamps[t] - stamps[mask.any(1)][0] + 1))
        h = h * np.exp(-np.maximum(0, dense("state_decay", gap)))
        x_hat = dense("history", h)
        x_c = m * x[t] + (1 - m) * x_hat
        z_hat = x_c @ features_weight + layers["features"][1]
        gamma = np.exp(-np.maximum(0, layers["value_decay"][0][0] * gap + layers["value_decay"][1]))
        beta = sigmoid(dense("combination", np.concatenate([gamma, m])))
        c_hat = beta * z_hat + (1 - beta) * x_hat
        c_c = m * x[t] + (1 - m) * c_hat
        output, enter, forget, candidate = np.split(dense("gates", np.concatenate([c_c, h, m])), 4)
        if started:
            c = sigmoid(forget) * c + sigmoid(enter) * np.tanh(candidate)
            h = sigmoid(output) * np.tanh(c)
        estimates.append([x_hat, z_hat, c_hat])
        states.append(h)
    return np.array(estimates).swapaxes(0, 1), np.array(states)


def reference(module, batch):
    """Imputation [batch, time, feature], and the terms of the loss."""
    values, masks = batch.values.numpy(), batch.observed_mask.numpy()
    num_series, num_steps, num_features = values.shape
    times = np.tile(np.arange(num_steps), (num_series, 1)) if batch.times is None else batch.times.numpy()
    error, entries = np.zeros((2, num_steps)), np.zeros((2, num_steps))
    label, difference, between = 0.0, 0.0, 0
    means = []
    for x, mask, stamps, cls in zip(values, masks, times, batch.label.numpy(), strict=True):
        forward = one_direction(module, 0, x, mask, stamps)
        backward = one_direction(module, 1, x[::-1], mask[::-1], -stamps[::-1])
        seen = np.flatnonzero(mask.any(1))
        for k, (estimates, states) in enumerate((forward, backward)):
            value, observed = (x, mask) if k == 0 else (x[::-1], mask[::-1])
            error[k] += (np.abs(estimates - value) * observed).sum((0, 2))
            entries[k] += observed.sum(1)
            if module.classifier is not None:
                state = states[seen[-1]] if k == 0 else states[num_steps - 1 - seen[0]]
                logits = state @ module.classifier.weight[k].detach().numpy()
                logits = logits + module.classifier.bias[k, 0].detach().numpy()
                label += (np.log(np.exp(logits).sum()) - logits[cls]) / num_series
        both = [np.where(mask, x, forward[0][2]), np.where(mask, x, backward[0][2][::-1])]
        inside = slice(seen[0], seen[-1] + 1)
        difference += np.abs(both[0] - both[1])[inside].sum()
        between += (inside.stop - inside.start) * num_features
        means.append(sum(both) / 2)
    terms = {"reconstruction": (error / np.maximum(entries, 1)).sum(), "consistency": difference / between}
    return np.array(means), terms | ({} if module.classifier is None else {"label": label})


@pytest.mark.parametrize("irregular", [False, True])
@pytest.mark.parametrize("num_steps", [1, 7])
def test_loss_and_imputation_equal_the_equations(num_steps, irregular):
    module = build(label_weight=0.7, num_classes=3)
    batch = series(1, (5, num_steps, 3), irregular, padding=num_steps > 1)
    mean, expected = reference(module, batch)
    terms = module.loss(batch)
    torch.testing.assert_close(module(*batch[:2], batch.times).mean.detach().numpy(), mean, rtol=1e-12, atol=1e-12)
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-12)
    total = 0.3 * expected["reconstruction"] + 0.1 * expected["consistency"] + 0.7 * expected["label"]
    assert terms["loss"].item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("irregular", [False, True])
def test_time_gaps_equal_the_recursion_in_both_directions(irregular):
    batch = series(2, (40, 9, 3), irregular)
    stamps = torch.arange(9.0).double().expand(40, 9) if batch.times is None else batch.times
    mask = both_directions(batch.observed_mask)
    started = mask.any(-1, keepdim=True).cumsum(1) > 0
    both = torch.stack([stamps, -stamps.flip(1)]).mT[..., None]
    gaps = time_gaps(mask, started, both).numpy()  # [2, time, batch, feature]
    for b in range(40):
        observed, times = batch.observed_mask[b].numpy(), stamps[b].numpy()
        for k, recursion in enumerate(
            (gaps_by_recursion(observed, times), gaps_by_recursion(observed[::-1], -times[::-1]))
        ):
            for t, expected in enumerate(recursion):
                if expected is not None:
                    np.testing.assert_allclose(gaps[k, t, b], expected, rtol=1e-12)
    assert (gaps >= 0).all()


def test_stamps_on_the_grid_change_nothing_and_others_do():
    module, batch = build(), series(3)
    grid = torch.arange(7.0).expand(5, 7)
    expected = module.loss(batch)["loss"]
    torch.testing.assert_close(module.loss(batch._replace(times=grid + 100))["loss"], expected)
    assert abs(module.loss(batch._replace(times=3 * grid))["loss"] - expected) > 1e-3


def test_what_is_not_observed_reaches_nothing():
    module, batch = build(), series(4)
    spoilt = batch._replace(values=batch.values.masked_fill(~batch.observed_mask, torch.nan))
    loss = module.loss(spoilt)["loss"]
    assert torch.equal(loss, module.loss(batch)["loss"])
    gradients = torch.autograd.grad(loss, module.parameters())
    assert all(gradient.isfinite().all() for gradient in gradients)
    mean = module(*spoilt[:2]).mean
    assert torch.equal(mean, module(*batch[:2]).mean)
    assert torch.equal(mean[batch.observed_mask], batch.values[batch.observed_mask])


@pytest.mark.parametrize("irregular", [False, True])
def test_padding_leaves_no_trace(irregular):
    module, batch = build(label_weight=1.0, num_classes=3), series(5, irregular=irregular, padding=False)
    filler = torch.zeros(5, 4, 3, dtype=torch.bool)
    times = batch.times
    if irregular:
        times = torch.cat([times, times[:, -1:] + torch.arange(1, 5)], 1)
    padded = Batch(
        torch.cat([batch.values, filler.double()], 1), torch.cat([batch.observed_mask, filler], 1), batch.label, times
    )
    for name, value in module.loss(batch).items():
        torch.testing.assert_close(module.loss(padded)[name], value, rtol=1e-12, atol=1e-12)
    mean = module(*padded[:2], padded.times).mean[:, :7]
    torch.testing.assert_close(mean, module(*batch[:2], batch.times).mean, rtol=1e-12, atol=1e-12)


def test_series_know_nothing_of_each_other_and_an_empty_one_is_imputed():
    module, batch = build(label_weight=1.0, num_classes=3), series(6)
    observed_mask = batch.observed_mask.clone()
    observed_mask[3] = False
    mean = module(batch.values, observed_mask).mean
    parts = [module(batch.values[rows], observed_mask[rows]).mean for rows in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat(parts), mean, rtol=1e-12, atol=1e-12)
    terms = module.loss(batch._replace(observed_mask=observed_mask))
    assert mean.isfinite().all()
    assert terms["loss"].isfinite()
    assert module.loss(batch._replace(observed_mask=torch.zeros_like(observed_mask)))["reconstruction"] == 0


def test_binary_data_are_imputed_by_probabilities():
    module, batch = build(likelihood="bernoulli"), series(7)
    mean = module(100 * batch.values, batch.observed_mask).mean
    free = build()(100 * batch.values, batch.observed_mask).mean
    assert free.min() < 0
    assert free.max() > 1
    torch.testing.assert_close(mean, free.clamp(0, 1))


def test_half_precision_is_computed_in_float32_under_autocast():
    module, batch = build().float(), series(8)
    batch = batch._replace(values=batch.values.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module.loss(batch)["loss"]
    torch.testing.assert_close(loss, module.loss(batch)["loss"], rtol=1e-6, atol=0)
    loss.backward()


def factors(num_series, seed):
    """AR(1) series of five features with one common factor, half of the entries hidden at random; the truth too."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(num_series, 1, generator=generator)
    steps = [factor]
    for _ in range(11):
        steps.append(0.9 * steps[-1] + math.sqrt(1 - 0.9**2) * torch.randn(num_series, 1, generator=generator))
    loadings = torch.tensor([1.0, -1.0, 0.8, 0.5, 1.2])
    truth = torch.stack(steps, 1) * loadings + 0.2 * torch.randn(num_series, 12, 5, generator=generator)
    observed_mask = torch.rand(truth.shape, generator=generator) < 0.5
    label = (truth[..., 0].mean(1) > 0).long()
    return Batch(truth * observed_mask, observed_mask, label), truth


def train(module, batch, steps):
    optimizer = module.configure_optimizers()["optimizer"]
    for step in range(steps):
        rows = torch.randperm(len(batch.label), generator=torch.Generator().manual_seed(step))[:64]
        terms = module.loss(Batch(*(each[rows] for each in batch[:3])))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()


def test_a_short_training_beats_the_mean_and_learns_the_class_when_asked_to():
    (batch, _), (other, truth) = factors(256, seed=0), factors(256, seed=1)
    scores, labels = {}, {}
    for label_weight in (0.0, 1.0):
        torch.manual_seed(0)
        module = BRITS(5, hidden_size=16, learning_rate=1e-2, label_weight=label_weight, num_classes=2)
        train(module, batch, steps=80)
        with torch.no_grad():
            error = module(other.values, other.observed_mask).mean - truth
            scores[label_weight] = error[~other.observed_mask].square().mean()
            labels[label_weight] = module.loss(other).get("label")
    fill = (mean_fill(other.values, other.observed_mask) - truth)[~other.observed_mask].square().mean()
    assert max(scores.values()) < 0.4 * fill
    assert labels[0.0] is None
    assert labels[1.0] < 0.6 * 2 * math.log(2)  # the sum of two directions that know nothing


def test_labels_without_classes_are_refused():
    with pytest.raises(ValueError, match=r"label_weight=1\.0 needs the number of classes: set num_classes"):
        build(label_weight=1.0)


def test_experiments_build_it_with_the_published_settings():
    config = compose("brits_physionet").config
    expected = {"num_features": 35, "impute_weight": 0.3, "consistency_weight": 0.1, "label_weight": 0.0}
    assert (expected | {"learning_rate": 1e-3}).items() <= config["model"].items()
    assert config["data"]["batch_size"] == 64
    hidden = config["model"]["hidden_size"]
    assert hidden in (64, 108)
    count = 2 * (
        36 * hidden + 2 * 35 + 71 * 35 + (hidden + 1) * 35 + 36 * 35 + (70 + hidden + 1) * 4 * hidden
    )  # decays, combination, history, features, gates
    assert sum(parameter.numel() for parameter in build_module(compose("brits_physionet")).parameters()) == count


@pytest.mark.gpu
def test_a_gpu_computes_the_same():
    module, batch = build(label_weight=1.0, num_classes=3), series(9, irregular=True)
    gradients = torch.autograd.grad(module.loss(batch)["loss"], module.parameters())
    module.cuda()
    loss = module.loss(Batch(*(each.cuda() for each in batch)))["loss"]
    for ours, expected in zip(torch.autograd.grad(loss, module.parameters()), gradients, strict=True):
        torch.testing.assert_close(ours.cpu(), expected)
