"""Denoisers against their formulas in numpy, and the sizes of the published configurations."""

import numpy as np
import pytest
import torch

from lightning_modules.networks.denoisers import mlp_denoiser, resnet_denoiser

# Published configurations: size of a row, widths, classes of the label, millions of parameters of the authors' code.
PUBLISHED = {
    "abalone": (11, [512, 128], None, 0.17),
    "adult": (108, [256, *4 * [1024], 256], 2, 3.78),
    "buddy": (96, [1024, 512, 512, 512], 3, 1.28),
    "california": (9, [512, 256, 256, 256, 256, 128], None, 0.46),
    "cardio": (19, [512, *5 * [1024]], 2, 4.85),
    "churn2": (16, [512, *4 * [1024], 512], 2, 4.31),
    "insurance": (12, [256, *4 * [512], 256], None, 1.12),
    "king": (30, [256, *4 * [1024], 256], None, 3.75),
}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    in_features, hidden, num_classes, millions = PUBLISHED[name]
    with torch.device("meta"):
        network = mlp_denoiser(in_features, 100, hidden, num_classes=num_classes)
    assert round(count(network) / 1e6, 2) == millions


def test_parameters_layer_by_layer():
    expected = 2 * (128 * 128 + 128) + (11 * 128 + 128) + (128 * 512 + 512) + (512 * 128 + 128) + (128 * 11 + 11)
    assert count(mlp_denoiser(11, 100, [512, 128])) == expected
    assert count(mlp_denoiser(11, 1000, [512, 128], num_classes=5)) == expected + 5 * 128
    assert count(mlp_denoiser(11, 100, [512, 128], num_classes=0)) == expected + 2 * 128


def dense(layer, x):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def silu(x):
    return x / (1 + np.exp(-x))


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def embedded(network, x, t, labels=None):
    """What goes into the trunk, in numpy: the row, the step's cosines and sines, the label after a SiLU."""
    angle = t[:, None] * np.exp(-np.log(10_000) * np.arange(64) / 64)
    first, _, second = network.step_layers
    result = dense(second, silu(dense(first, np.concatenate([np.cos(angle), np.sin(angle)], axis=1))))
    if labels is not None:
        layer = network.label_layer
        real = network.num_classes == 0
        result = result + silu(dense(layer, labels[:, None]) if real else layer.weight.detach().numpy()[labels])
    return result + dense(network.projection, x)


@pytest.mark.parametrize("num_classes", [None, 3, 0])
def test_mlp_is_its_formula(num_classes):
    torch.manual_seed(0)
    network = mlp_denoiser(7, 1000, [20, 30], num_classes=num_classes).double()
    x, t = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 1, 10, 500, 999])
    labels = {None: None, 3: torch.tensor([0, 2, 1, 1, 0]), 0: torch.randn(5, dtype=torch.float64)}[num_classes]
    expected = embedded(network, x.numpy(), t.numpy(), None if labels is None else labels.numpy())
    layers = [layer for layer in network.trunk if hasattr(layer, "weight")]
    for layer in layers[:-1]:
        expected = np.maximum(dense(layer, expected), 0)
    expected = dense(layers[-1], expected)
    np.testing.assert_allclose(network(x, t, labels).detach(), expected, rtol=0, atol=1e-5)  # the waves are float32
    assert len(layers) == 3


def test_resnet_is_its_formula():
    torch.manual_seed(1)
    network = resnet_denoiser(7, 100, width=24, hidden=40, num_blocks=2, num_classes=3, hidden_dropout=0.5).double()
    x, t, labels = torch.randn(5, 7, dtype=torch.float64), torch.arange(5) * 20, torch.tensor([0, 2, 1, 1, 0])
    first, *blocks, _, _, last = network.trunk
    expected = dense(first, embedded(network, x.numpy(), t.numpy(), labels.numpy()))
    for block in blocks:
        expected = expected + dense(block.layers[4], np.maximum(dense(block.layers[1], layer_norm(expected)), 0))
    expected = dense(last, np.maximum(layer_norm(expected), 0))
    np.testing.assert_allclose(network.eval()(x, t, labels).detach(), expected, rtol=0, atol=1e-5)
    assert len(blocks) == 2


@pytest.mark.parametrize("make", [lambda: mlp_denoiser(3, 8, [16]), lambda: resnet_denoiser(3, 8, 16, 32, 1)])
def test_steps_of_few_rows_many_rows_and_all_rows_agree(make):
    torch.manual_seed(2)
    network = make().double()
    x, t = torch.randn(40, 3, dtype=torch.float64), torch.randint(8, (40,))
    many = network(x, t)  # more rows than steps: each step is embedded once
    many.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    few = torch.cat([network(x[i : i + 5], t[i : i + 5]) for i in range(0, 40, 5)])
    few.square().sum().backward()
    torch.testing.assert_close(many, few, rtol=1e-12, atol=1e-12)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(network(x, torch.tensor([6])), network(x, torch.full((40,), 6)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "network",
    [mlp_denoiser(3, 8, [64, 64], dropout=0.3), resnet_denoiser(3, 8, hidden_dropout=0.2, residual_dropout=0.1)],
)
def test_dropout_is_random_in_training_only(network):
    x, t = torch.randn(4, 3), torch.arange(4)
    assert not torch.equal(network.train()(x, t), network(x, t))
    assert torch.equal(network.eval()(x, t), network(x, t))


def test_wrong_arguments_are_named():
    for make, message in [
        (lambda: mlp_denoiser(3, 8, []), r"hidden=\[\]"),
        (lambda: mlp_denoiser(3, 8, [4], dropout=1.0), "dropout=1.0 must lie in"),
        (lambda: mlp_denoiser(0, 8, [4]), "in_features=0"),
        (lambda: mlp_denoiser(3, 0, [4]), "num_steps=0"),
        (lambda: mlp_denoiser(3, 8, [4], num_classes=-1), "num_classes=-1"),
        (lambda: resnet_denoiser(3, 8, num_blocks=0), "num_blocks=0"),
        (lambda: resnet_denoiser(3, 8, residual_dropout=-0.1), "residual_dropout=-0.1"),
        (
            lambda: mlp_denoiser(3, 8, [4])(torch.zeros(2, 3), torch.tensor([0]), torch.tensor([0, 1])),
            "labels are given",
        ),
        (lambda: mlp_denoiser(3, 8, [4], num_classes=2)(torch.zeros(2, 3), torch.tensor([0])), "labels are missing"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
