"""Dense networks, the temporal encoder and Keras's initialisation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_modules.networks.conv import ImagePreprocessor
from lightning_modules.networks.mlp import TemporalConvolution, glorot_, mlp, temporal_encoder


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(
    ("layer", "fans"),
    [
        (nn.Linear(300, 200), 300 + 200),
        (nn.Conv1d(20, 30, 24), 24 * (20 + 30)),
        (nn.Conv2d(40, 30, 3), 9 * (40 + 30)),
        (nn.ConvTranspose2d(30, 40, 4), 16 * (40 + 30)),
        (TemporalConvolution(30, 50, 7), 7 * (30 + 50)),
    ],
)
def test_glorot_is_uniform_between_its_bounds(layer, fans):
    torch.manual_seed(0)
    weight = glorot_(nn.Sequential(layer))[0].weight.detach().double().flatten() / math.sqrt(6 / fans)
    assert layer.bias.abs().max() == 0
    n = len(weight)
    assert weight.abs().max() <= 1 + 1e-6
    assert weight.abs().max() > 1 - 20 / n  # fails by chance once in e^20 draws
    # Kolmogorov's distance to U(-1, 1); 2.0 / sqrt(n) is exceeded with probability 7e-4, and the seed is fixed.
    cdf = (weight.sort().values + 1) / 2
    assert (cdf - (torch.arange(n) + 0.5) / n).abs().max() < 2.0 / math.sqrt(n)


def test_glorot_accepts_layers_without_bias():
    layer = nn.Linear(4, 4, bias=False)
    before = layer.weight.clone()
    assert glorot_(layer) is layer
    assert not torch.equal(layer.weight, before)


def test_mlp_equals_its_formula():
    torch.manual_seed(1)
    network = mlp(3, [5, 4], 2).double()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    expected = x.numpy()
    for number, layer in enumerate(network[::2]):
        expected = expected @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if number < 2:
            expected = np.maximum(expected, 0)
    np.testing.assert_allclose(network(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert len(mlp(3, [], 2)) == 1


def same_convolution(series: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """TensorFlow's "SAME": of window - 1 padded steps, the smaller half comes before the series."""
    window, steps = weight.shape[2], series.shape[1]
    result = np.zeros((*series.shape[:2], len(weight))) + bias
    for t in range(steps):
        for k in range(window):
            source = t + k - (window - 1) // 2
            if 0 <= source < steps:
                result[:, t] += series[:, source] @ weight[:, :, k].T
    return result


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 8), st.integers(0, 99)
)
def test_temporal_convolution_equals_brute_force(batch, steps, features, filters, window, seed):
    torch.manual_seed(seed)
    layer = TemporalConvolution(features, filters, window).double()
    series = torch.randn(batch, steps, features, dtype=torch.float64)
    expected = same_convolution(series.numpy(), layer.weight.detach().numpy(), layer.bias.detach().numpy())
    np.testing.assert_allclose(layer(series).detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("window", "before", "after"), [(24, 11, 12), (3, 1, 1), (1, 0, 0)])
def test_padding_is_split_as_in_tensorflow(window, before, after):
    # The reach of a unit impulse shows the padding on both sides.
    layer = TemporalConvolution(1, 1, window).double()
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    series = torch.zeros(1, 60, 1, dtype=torch.float64)
    series[0, 30] = 1
    reached = layer(series)[0, :, 0].nonzero().flatten()
    # A step sees `before` steps into the past and `after` into the future, so an impulse reaches the converse.
    assert (reached.min(), reached.max()) == (30 - after, 30 + before)


def test_temporal_convolution_gradients():
    torch.manual_seed(2)
    layer = TemporalConvolution(3, 2, 4).double()
    series = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    inputs = (series, layer.weight, layer.bias)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), inputs)


def test_temporal_convolution_loads_conv1d():
    torch.manual_seed(3)
    reference = nn.Conv1d(3, 4, 5, padding=2).double()
    layer = TemporalConvolution(3, 4, 5).double()
    layer.load_state_dict(reference.state_dict())
    series = torch.randn(2, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(series), reference(series.mT).mT, rtol=0, atol=1e-12)


def test_temporal_encoder_has_no_activation_after_the_convolution():
    torch.manual_seed(4)
    encoder = temporal_encoder(3, [6], 2, window=3).double()
    x, y = torch.randn(2, 1, 8, 3, dtype=torch.float64)
    torch.testing.assert_close(encoder(x) + encoder(y), encoder(x + y) + encoder(0 * x), rtol=0, atol=1e-12)
    kinds = [type(part) for part in temporal_encoder(3, [6, 5, 4], 2, window=3)]
    assert kinds == [TemporalConvolution, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_parameter_counts_are_those_of_the_published_models():
    encoder = temporal_encoder(784, [256, 256], 3 * 256, window=3)
    assert [count(part) for part in encoder] == [602_368, 65_792, 0, 197_376]
    assert count(encoder, mlp(256, [256, 256, 256], 784), ImagePreprocessor([28, 28])) == 1_269_265
    assert count(temporal_encoder(35, [128, 128], 3 * 35, window=24), mlp(35, [256, 256], 35)) == 221_708
    frames = ImagePreprocessor([64, 64], in_channels=3, out_channels=3)
    sprites = temporal_encoder(64 * 64 * 3, [32, 256, 256], 3 * 256, window=3)
    assert count(sprites, mlp(256, [256, 256, 256], 64 * 64 * 3), frames) == 4_820_771


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="sizes is empty"):
        temporal_encoder(3, [], 2, window=3)
    with pytest.raises(ValueError, match="window is 0"):
        temporal_encoder(3, [4], 2, window=0)
