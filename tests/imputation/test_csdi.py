"""CSDI against a plain formulation of its network, brute force, and toy data whose answer is known."""

import math
from typing import NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.build import build_module
from experiments.config import compose
from lightning_modules.imputation import csdi
from lightning_modules.imputation.constant import mean_fill
from lightning_modules.imputation.csdi import CSDI
from lightning_modules.networks import csdi as networks


class Batch(NamedTuple):
    values: Tensor
    observed_mask: Tensor
    target: Tensor
    index: Tensor
    times: Tensor | None = None


def series(seed=0, shape=(5, 7, 3), rate=0.6, times=None):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(shape, generator=generator)
    observed_mask = torch.rand(shape, generator=generator) < rate
    return Batch(target * observed_mask, observed_mask, target, torch.arange(shape[0]), times)


def tiny(**arguments):
    """A small model whose output layer is not zero, so that its predictions depend on everything."""
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "channels": 8, "num_heads": 2, "step_embedding": 6, "time_embedding": 4}
    module = CSDI(3, **({"feature_embedding": 3, "num_diffusion_steps": 6, "num_samples": 5} | sizes | arguments))
    nn.init.normal_(module.network.output.weight)
    return module


def test_published_configuration_and_parameter_count():
    config = compose("csdi_physionet").config
    expected = {
        "num_features": 35, "num_diffusion_steps": 50, "beta_start": 1e-4, "beta_end": 0.5, "num_layers": 4,
        "channels": 64, "num_heads": 8, "step_embedding": 128, "time_embedding": 128, "feature_embedding": 16,
        "dropout": 0.1, "learning_rate": 1e-3, "weight_decay": 1e-6, "num_samples": 100,
    }  # fmt: skip
    assert expected.items() <= config["model"].items()
    assert config["data"]["batch_size"] == 16
    assert config["trainer"]["max_steps"] == 200 * 4000 // 16

    def linear(fan_in, fan_out):
        return fan_in * fan_out + fan_out

    c, side = 64, 128 + 16 + 1  # channels; time, feature and mask
    attention = linear(c, 3 * c) + linear(c, c)
    transformer = attention + linear(c, 64) + linear(64, c) + 2 * 2 * c  # two layers of norms' gains and offsets
    layer = linear(128, c) + linear(side, 2 * c) + 2 * linear(c, 2 * c) + 2 * transformer
    whole = 35 * 16 + 2 * linear(128, 128) + linear(2, c) + 4 * layer + linear(c, c) + linear(c, 1)
    assert whole == 414_065
    assert sum(parameter.numel() for parameter in build_module(compose("csdi_physionet")).parameters()) == whole


def torch_layer(layer, channels):
    """torch's own encoder layer with the same weights."""
    other = nn.TransformerEncoderLayer(channels, layer.num_heads, 64, activation="gelu", batch_first=True)
    pairs = (
        (other.self_attn.out_proj, layer.attention_output), (other.linear1, layer.hidden),
        (other.linear2, layer.output), (other.norm1, layer.attention_norm), (other.norm2, layer.norm),
    )  # fmt: skip
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        other.self_attn.in_proj_weight.copy_(layer.query_key_value.weight)
        other.self_attn.in_proj_bias.copy_(layer.query_key_value.bias)
    return other.to(layer.norm.weight.dtype).eval()


def plain_network(network, noisy, step, values, mask, times):
    """The network as its paper draws it, one series and one layer after the other; noisy [batch, time, feature]."""
    num_layers, channels = len(network.layers), network.last_hidden.in_features
    outputs = []
    for b in range(len(values)):
        num_times, num_features = values[b].shape
        side = torch.empty(num_times, num_features, sum(network.side_widths), dtype=values.dtype)
        width = network.side_widths[0]
        for t in range(num_times):
            for i in range(0, width, 2):
                angle = float(times[b, t]) / 10_000 ** (i / width)
                side[t, :, i], side[t, :, i + 1] = math.sin(angle), math.cos(angle)
        side[:, :, width:-1] = network.feature_embedding.weight
        side[:, :, -1] = mask[b]
        half = network.step_waves.shape[1] // 2
        angles = [int(step[b]) * 10 ** (4 * i / (half - 1)) for i in range(half)]
        waves = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        embedded = torch.tensor(waves, dtype=values.dtype)
        for linear in (network.step_layers[0], network.step_layers[2]):
            embedded = F.silu(linear(embedded))
        inputs = torch.stack([values[b] * mask[b], noisy[b] * ~mask[b]], dim=-1)
        x = network.input(inputs).relu()  # [time, feature, channel]
        skips = 0
        for number, layer in enumerate(network.layers):
            rows, side_rows = (slice(number * size, (number + 1) * size) for size in (channels, 2 * channels))
            y = x + F.linear(embedded, network.step_projection.weight[rows], network.step_projection.bias[rows])
            over_time = torch_layer(layer.time_layer, channels)
            y = torch.stack([over_time(y[None, :, k])[0] for k in range(num_features)], dim=1)
            over_features = torch_layer(layer.feature_layer, channels)
            y = torch.stack([over_features(y[None, t])[0] for t in range(num_times)])
            projection = network.side_projection
            y = layer.middle(y) + F.linear(side, projection.weight[side_rows], projection.bias[side_rows])
            y = layer.output(torch.sigmoid(y[..., :channels]) * torch.tanh(y[..., channels:]))
            x, skips = (x + y[..., :channels]) / math.sqrt(2), skips + y[..., channels:]
        x = network.last_hidden(skips / math.sqrt(num_layers)).relu()
        outputs.append(network.output(x)[..., 0])
    return torch.stack(outputs)


@pytest.mark.parametrize("regular", [True, False])
def test_the_network_equals_the_plain_formulation(regular):
    network = tiny().double().eval().network
    batch = series(1)
    times = None if regular else torch.rand(5, 7, dtype=torch.float64).cumsum(1) * 3
    values, mask = batch.target.double(), batch.observed_mask
    noisy = torch.randn(2, 5, 7, 3, dtype=torch.float64)  # two draws
    step = torch.tensor([0, 5, 2, 3, 1])
    grid = torch.arange(7.0).expand(5, 7) if regular else times
    with torch.no_grad():
        predicted = network(noisy, step, network.condition(values, mask, times))
        for draw in range(2):
            expected = plain_network(network, noisy[draw], step, values, mask, grid)
            torch.testing.assert_close(predicted[draw], expected, rtol=1e-5, atol=1e-6)  # waves are stored in float32
        assert predicted.std() > 0.1
        one = network(noisy, step[1:2], network.condition(values, mask, times))  # one step for all
    torch.testing.assert_close(one[:, 1], predicted[:, 1])


@pytest.mark.parametrize("length", [6, 300])
def test_attention_with_dropout_drops_weights(length, monkeypatch):
    """With the identity as values the result is the matrix of weights after dropout."""
    monkeypatch.setattr(networks, "_WEIGHTS_AT_ONCE", 2 * 300**2)
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 2, length, 4).unbind()
    value = torch.eye(length).expand(3, 2, length, length)
    weights = networks.attention(query, key, value, 0.0)
    dropped = networks.attention(query, key, value, 0.25)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, length))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75)
    fraction = kept.float().mean().item()
    assert fraction == pytest.approx(0.75, abs=5 * math.sqrt(0.25 * 0.75 / kept.numel()))


def test_dropout_keeps_each_entry_with_its_probability_and_the_mean():
    torch.manual_seed(0)
    assert networks.dropout(torch.ones(3), 0.1).shape == (3,)  # not a multiple of the four entries of a random word
    dropped = networks.dropout(torch.ones(1001, 997), 0.1)
    np.testing.assert_allclose(dropped.unique(), [0, 1 / 0.9], rtol=1e-6)
    assert dropped.mean().item() == pytest.approx(1, abs=5 * math.sqrt(0.1 / 0.9 / dropped.numel()) + 2e-5)
    assert np.abs(np.corrcoef(dropped[:, :8].T) - np.eye(8)).max() < 5 / math.sqrt(1001)


def test_targets_are_a_uniform_part_of_the_observed_entries():
    module = tiny()
    torch.manual_seed(0)
    observed_mask = torch.rand(4000, 10, 5) < 0.8
    observed_mask[0] = False
    target_mask = module.choose_targets(observed_mask)
    assert not (target_mask & ~observed_mask).any()
    part = (target_mask.sum((1, 2)) / observed_mask.sum((1, 2)))[1:].numpy()
    quantiles = np.quantile(part, np.linspace(0, 1, 11))
    np.testing.assert_allclose(quantiles, np.linspace(0, 1, 11), atol=0.03)
    chosen = target_mask.float().mean(0) / observed_mask.float().mean(0)  # every entry alike
    assert (chosen - 0.5).abs().max() < 5 * math.sqrt((1 / 12 + 1 / 6) / 3200)


def test_loss_equals_brute_force_and_sees_observed_entries_only(monkeypatch):
    module = tiny().eval()  # no dropout
    batch = series(2)
    target_mask = batch.observed_mask & (torch.rand(batch.observed_mask.shape) < 0.5)
    monkeypatch.setattr(module, "choose_targets", lambda mask: target_mask & mask)
    torch.manual_seed(3)
    step, noise = torch.randint(6, (5,)), torch.randn(5, 7, 3)
    torch.manual_seed(3)
    loss = module.loss(batch)
    betas = np.linspace(math.sqrt(1e-4), math.sqrt(0.5), 6) ** 2
    abar = torch.tensor(np.cumprod(1 - betas)[step.numpy()], dtype=torch.float32)[:, None, None]
    noisy = abar.sqrt() * batch.target * batch.observed_mask + (1 - abar).sqrt() * noise
    conditional = batch.observed_mask & ~target_mask
    predicted = plain_network(module.network, noisy, step, batch.target, conditional, torch.arange(7.0).expand(5, 7))
    error = ((noise - predicted) ** 2)[target_mask].mean()
    torch.testing.assert_close(loss, error, rtol=1e-4, atol=0)
    torch.manual_seed(3)
    other = batch._replace(target=torch.full_like(batch.target, float("nan")))
    assert torch.equal(module.loss(other), loss)
    nothing = batch._replace(values=0 * batch.values, observed_mask=torch.zeros_like(batch.observed_mask))
    assert module.loss(nothing) == 0  # a batch without a value gives no gradient, and no NaN


def test_draws_keep_what_is_observed_and_differ_elsewhere():
    module = tiny().eval()
    batch = series(4)
    draws = module(batch.values, batch.observed_mask).sample(6, torch.Generator().manual_seed(0))
    assert draws.shape == (6, 5, 7, 3)
    assert torch.equal(draws[:, batch.observed_mask], batch.values[batch.observed_mask].expand(6, -1))
    hidden = draws[:, ~batch.observed_mask]
    assert (hidden.std(0) > 1e-3).all()
    again = module(batch.values, batch.observed_mask).sample(6, torch.Generator().manual_seed(0))
    assert torch.equal(again, draws)
    assert not torch.equal(module(batch.values, batch.observed_mask).sample(6), draws)


def test_mixed_precision_leaves_the_state_of_the_reverse_process_alone():
    """Of a network that predicts no noise, nothing but the state of the reverse process could be rounded."""
    module, batch = tiny().eval(), series(5)
    for parameter in module.network.output.parameters():
        nn.init.zeros_(parameter)
    prediction = module(batch.values, batch.observed_mask)
    draws = prediction.sample(2, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = prediction.sample(2, torch.Generator().manual_seed(0))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, draws, rtol=0, atol=0)


def test_draws_by_row_depend_on_neither_batches_nor_chunks(monkeypatch):
    module = tiny().eval()
    batch = series(5)
    rows = torch.tensor([7, 3, 12, 0, 5])
    whole = module(batch.values, batch.observed_mask).sample(4, rows=rows)
    order = torch.tensor([3, 1])
    part = module(batch.values[order], batch.observed_mask[order]).sample(3, rows=rows[order])
    torch.testing.assert_close(part, whole[:3, order])
    other = module(batch.values, batch.observed_mask).sample(4, rows=rows + 1)
    assert (other != whole)[:, ~batch.observed_mask].all()
    for entries in (1, 2 * 21, 3 * 21, 9 * 21):  # a series has 21 entries
        monkeypatch.setattr(csdi, "_ENTRIES_AT_ONCE_ON_CPU", entries)
        torch.testing.assert_close(module(batch.values, batch.observed_mask).sample(4, rows=rows), whole)


def test_the_mean_is_the_median_of_the_draws_that_the_rows_have(monkeypatch):
    module = tiny().eval()
    batch = series(6)._replace(index=torch.tensor([9, 8, 7, 6, 5]))
    drawn = []
    original = module.reverse
    monkeypatch.setattr(
        module, "reverse", lambda condition, keys, dtype: drawn.append(keys.numel()) or original(condition, keys, dtype)
    )
    predictive = module.test_step(batch, 0)
    assert drawn == []  # nothing is drawn before it is asked for
    mean = predictive.mean
    draws = predictive.sample(8, rows=batch.index)
    assert sum(drawn) == 8 * 5  # the five draws of the mean are the first of the eight
    np.testing.assert_array_equal(mean, np.sort(draws[:5].numpy(), axis=0)[2])
    other_way = module.test_step(batch, 0)
    torch.testing.assert_close(other_way.sample(8, rows=batch.index), draws)
    torch.testing.assert_close(other_way.mean, mean)
    assert sum(drawn) == 2 * 8 * 5
    assert predictive.log_prob(batch.target, rows=batch.index) is None
    assert predictive.log_mixture(batch.target, 3, rows=batch.index) is None
    without_rows = module(batch.values, batch.observed_mask)
    assert torch.equal(without_rows.mean, module(batch.values, batch.observed_mask).mean)
    assert (without_rows.mean != mean)[~batch.observed_mask].any()
    sampled_first = module(batch.values, batch.observed_mask)
    sampled_first.sample(8, rows=batch.index)
    torch.testing.assert_close(sampled_first.mean, mean)
    assert sum(drawn) == 3 * 8 * 5 + 2 * 5 * 5


def test_learning_rate_drops_at_three_quarters_and_nine_tenths():
    module = tiny()
    module.trainer = L.Trainer(max_steps=40, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates, np.repeat([1e-3, 1e-4, 1e-5], [30, 6, 4]), rtol=1e-9)
    assert optimizer.param_groups[0]["weight_decay"] == 1e-6


@pytest.mark.parametrize(("arguments", "message"), [
    ({"channels": 9}, "channels=9 must be a multiple of num_heads=2"),
    ({"time_embedding": 5}, "time_embedding=5 must be even"),
    ({"step_embedding": 2}, "step_embedding=2 must be even and at least 4"),
    ({"dropout": 1.0}, "dropout=1.0 must lie in"),
    ({"num_samples": 0}, "num_samples=0 must be at least 1"),
    ({"beta_end": 1.5}, "beta_end=1.5"),
])  # fmt: skip
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


@pytest.mark.slow
def test_it_learns_the_conditional_distribution_of_correlated_variables():
    """x_2 = x_1 + small noise, one of the two hidden at a time: the other one tells it but for the noise."""
    torch.manual_seed(0)
    scale = 0.2

    def draw(count):
        walk = torch.randn(count, 6).cumsum(1) * 0.5
        target = torch.stack([walk, walk + scale * torch.randn(walk.shape)], dim=-1)
        observed_mask = torch.rand(target.shape) < 0.75
        return Batch(target * observed_mask, observed_mask, target, torch.arange(count))

    train, test = draw(4096), draw(100)
    module = CSDI(
        2, num_layers=2, channels=16, num_heads=2, step_embedding=16, time_embedding=16, feature_embedding=4,
        dropout=0.0, num_diffusion_steps=30, num_samples=40,
    )  # fmt: skip
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=900)
    for step in range(900):
        rows = torch.arange(64) + 64 * (step % 64)
        optimizer.zero_grad()
        module.loss(Batch(*(field[rows] for field in train[:4]))).backward()
        optimizer.step()
        schedule.step()
    predictive = module.eval()(test.values, test.observed_mask)
    draws = predictive.sample(40, rows=test.index)
    told = ~test.observed_mask & test.observed_mask.flip(-1)  # hidden, its partner observed
    truth = test.target[told]
    error = (predictive.mean[told] - truth).square().mean().sqrt()
    filled = (mean_fill(test.values, test.observed_mask)[told] - truth).square().mean().sqrt()
    assert error < 0.5 * filled
    assert error < 1.5 * scale
    lower, upper = (np.quantile(draws[:, told].numpy(), level, axis=0) for level in (0.05, 0.95))
    coverage = ((truth.numpy() >= lower) & (truth.numpy() <= upper)).mean()
    assert 0.8 < coverage < 0.98
    assert draws[:, told].std(0).median().item() == pytest.approx(scale, rel=0.4)
