"""The VAEs on pictures in colour: the published sizes, and the same loss as with plain convolutions."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from experiments.build import build_module
from experiments.config import compose
from lightning_modules.imputation.gpvae import GPVAE
from lightning_modules.imputation.hivae import HIVAE
from lightning_modules.imputation.vae import VAE


class Batch(NamedTuple):
    values: Tensor
    observed_mask: Tensor
    target: Tensor
    index: Tensor
    times: Tensor | None = None


def coloured(seed=0, shape=(3, 5, 6, 4, 3)):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(shape[:-1], generator=generator) < 0.4  # the rest is black
    target = (torch.rand(shape, generator=generator, dtype=torch.float64) * drawn[..., None]).flatten(2)
    observed_mask = torch.rand(target.shape, generator=generator) < 0.4
    return Batch(target * observed_mask, observed_mask, target, torch.arange(shape[0]))


SIZES = {"num_features": 72, "image_shape": [6, 4, 3], "latent_dim": 4, "encoder_sizes": [6, 5], "decoder_sizes": [8]}
MODULES = {
    "vae": lambda: VAE(**SIZES),
    "hivae": lambda: HIVAE(**SIZES),
    "gpvae": lambda: GPVAE(num_steps=5, window=3, **SIZES),
    "mask": lambda: GPVAE(num_steps=5, window=3, mask_channel=True, preprocessor_relu=False, **SIZES),
}


@pytest.mark.parametrize(
    ("name", "count"), [("gpvae_sprites", 4_820_771), ("vae_sprites", 3_968_547), ("hivae_sprites", 3_968_547)]
)
def test_published_parameter_counts(name, count):
    assert sum(parameter.numel() for parameter in build_module(compose(name)).parameters()) == count


def test_the_paper_preset_is_the_published_method():
    config = compose("gpvae_sprites").config
    expected = {
        "latent_dim": 256, "encoder_sizes": [32, 256, 256], "decoder_sizes": [256, 256, 256], "window": 3,
        "kernel": "cauchy", "length_scale": 2.0, "kernel_variance": 1.0, "jitter": 0.001, "beta": 0.1,
        "precision_activation": "softplus", "learning_rate": 0.001, "learning_rate_half_life": None,
        "mask_channel": False, "preprocessor_relu": True, "remasking": 0.0, "learned_scale": False,
        "likelihood": "gaussian", "image_shape": [64, 64, 3], "num_features": 12288, "num_steps": 8,
    }  # fmt: skip
    assert expected.items() <= config["model"].items()
    assert (config["trainer"]["max_steps"], config["trainer"]["gradient_clip_val"]) == (2812, 1e4)
    assert (config["data"]["batch_size"], config["data"]["fit_on"]) == (64, "all")
    for method in ("vae", "hivae"):
        model = compose(f"{method}_sprites").config["model"]
        assert all(model[name] == expected[name] for name in model.keys() & expected.keys())


@pytest.mark.parametrize("name", MODULES)
def test_the_loss_is_that_of_plain_convolutions(name, monkeypatch):
    torch.manual_seed(0)
    module = MODULES[name]().double()
    batch = coloured()

    def loss_and_gradients():
        torch.manual_seed(1)
        loss = module.loss(batch)["loss"]
        return [loss.detach(), *torch.autograd.grad(loss, list(module.parameters()))]

    actual = loss_and_gradients()
    assert all(gradient.abs().max() > 0 for gradient in actual[1:])
    preprocessor = module.preprocessor
    plain = lambda pixels: preprocessor(pixels.movedim(-1, -3)).movedim(-3, -1)  # noqa: E731
    monkeypatch.setattr(preprocessor, "forward_pixels", plain)
    torch.testing.assert_close(actual, loss_and_gradients(), rtol=1e-10, atol=1e-10)


def test_the_mask_enters_where_asked_for():
    torch.manual_seed(0)
    module, batch = MODULES["mask"]().double(), coloured()
    flipped = batch.observed_mask.clone()
    black = (batch.values == 0).nonzero()[0]
    flipped[tuple(black)] ^= True  # black or missing: only the mask tells
    with torch.no_grad():
        means = [module(batch.values, mask).mean for mask in (batch.observed_mask, flipped)]
        assert not torch.equal(*means)
        plain = MODULES["gpvae"]().double()
        means = [plain(batch.values, mask).mean for mask in (batch.observed_mask, flipped)]
        assert torch.equal(*means)


def test_one_scale_is_learned_for_all_pixels():
    module, batch = GPVAE(num_steps=5, window=3, learned_scale=True, **SIZES).double(), coloured()
    assert module.log_scale.shape == (1,)
    with torch.no_grad():
        module.log_scale.fill_(-1.0)
    predictive = module(batch.values, batch.observed_mask)
    errors = (batch.target - predictive.decode(predictive.posterior.mean).mean) / torch.exp(torch.tensor(-1.0))
    density = predictive.decode(predictive.posterior.mean).log_prob(batch.target)
    torch.testing.assert_close(density, -0.5 * errors.square() + 1 - 0.918938533204672780)
    torch.manual_seed(0)
    module.loss(batch)["loss"].backward()
    assert module.log_scale.grad.abs() > 0
