"""The imputation methods against numpy, closed forms and published counts."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import kstest, norm
from scipy.stats import t as t_distribution
from torch import Tensor

from experiments.build import build_module
from experiments.config import compose
from lightning_modules.distributions.kernels import cauchy
from lightning_modules.distributions.noise import normal_by_row
from lightning_modules.imputation.constant import Constant, forward_fill, mean_fill
from lightning_modules.imputation.gpvae import GPVAE
from lightning_modules.imputation.hivae import HIVAE
from lightning_modules.imputation.vae import VAE


class Batch(NamedTuple):
    values: Tensor
    observed_mask: Tensor
    target: Tensor
    index: Tensor
    times: Tensor | None = None


def series(seed, shape=(5, 7, 3), binary=False, times=None):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(shape, generator=generator)
    target = (target > 0.5).float() if binary else target
    observed_mask = torch.rand(shape, generator=generator) < 0.6
    return Batch(target * observed_mask, observed_mask, target, torch.arange(shape[0]), times)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpvae_hmnist", 1_269_265),
        ("vae_hmnist", 802_065),
        ("hivae_hmnist", 802_065),
        ("gpvae_physionet", 221_708),
        ("vae_physionet", 114_153),
        ("hivae_physionet", 114_153),
    ],
)
def test_published_parameter_counts(name, count):
    assert sum(parameter.numel() for parameter in build_module(compose(name)).parameters()) == count


def test_the_paper_preset_is_the_published_method():
    hmnist, physionet = (compose(f"gpvae_{name}").config for name in ("hmnist", "physionet"))
    expected = {
        "latent_dim": 256, "encoder_sizes": [256, 256], "decoder_sizes": [256, 256, 256], "window": 3,
        "kernel": "cauchy",
        "length_scale": 2.0, "kernel_variance": 1.0, "jitter": 0.001, "beta": 0.8, "precision_activation": "softplus",
        "learning_rate": 0.001, "learning_rate_half_life": None, "mask_channel": False, "preprocessor_relu": True,
        "remasking": 0.0, "learned_scale": False, "likelihood": "bernoulli", "image_shape": [28, 28],
    }  # fmt: skip
    assert expected.items() <= hmnist["model"].items()
    assert hmnist["trainer"]["max_steps"] == 18750
    expected |= {
        "latent_dim": 35, "encoder_sizes": [128, 128], "decoder_sizes": [256, 256], "window": 24, "length_scale": 7.0,
        "kernel_variance": 1.005, "beta": 0.2, "precision_activation": "sigmoid", "learning_rate_half_life": 620,
        "likelihood": "gaussian", "image_shape": None,
    }  # fmt: skip
    assert expected.items() <= physionet["model"].items()
    assert physionet["trainer"]["max_steps"] == 2500
    assert physionet["trainer"]["gradient_clip_val"] == 1e4
    assert physionet["data"]["batch_size"] == 64


def test_learning_rate_is_halved_to_its_floor():
    module = build_module(compose("gpvae_physionet"))
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(2500):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = np.repeat([1e-3, 5e-4, 2.5e-4, 1.25e-4, 1e-4], [620, 620, 620, 620, 20])
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_fills_equal_a_plain_loop(seed):
    batch = series(seed)
    values, mask = batch.values.numpy(), batch.observed_mask.numpy()
    mean, forward = np.zeros_like(values), np.zeros_like(values)
    for b in range(values.shape[0]):
        for d in range(values.shape[2]):
            seen = values[b, mask[b, :, d], d]
            mean[b, :, d] = seen.mean() if len(seen) else 0
            last = 0.0
            for t in range(values.shape[1]):
                last = values[b, t, d] if mask[b, t, d] else last
                forward[b, t, d] = last
    np.testing.assert_allclose(mean_fill(batch.values, batch.observed_mask), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(forward_fill(batch.values, batch.observed_mask), forward)


def test_constant_refuses_an_unknown_rule():
    with pytest.raises(ValueError, match="fill='backward' is not known; choose one of"):
        Constant("backward")


def tiny_gpvae(**arguments):
    torch.manual_seed(0)
    sizes = {"latent_dim": 4, "encoder_sizes": [6, 5], "decoder_sizes": [8], "window": 3}
    defaults = {"num_features": 3, "num_steps": 7, "length_scale": 1.5, "beta": 0.7}
    return GPVAE(**(defaults | sizes | arguments)).double()


PLUS = {
    "length_scale": [1.5, 4.0, 9.0],
    "precision_activation": "contractive",
    "encoder_fill": "linear",
    "student_noise": True,
}


@pytest.mark.parametrize(
    ("likelihood", "arguments"),
    [("gaussian", {}), ("bernoulli", {}), ("gaussian", PLUS)],
    ids=["gaussian", "bernoulli", "plus"],
)
def test_gpvae_loss_equals_the_dense_formula(likelihood, arguments):
    """The encoder's raw channels, put into dense matrices by the definition, give the same loss."""
    module = tiny_gpvae(likelihood=likelihood, **arguments)
    batch = series(1, binary=likelihood == "bernoulli")
    batch = batch._replace(values=batch.values.double(), target=batch.target.double())
    num_latent, num_steps = 4, 7
    torch.manual_seed(3)
    noise = torch.randn(num_steps, 5, num_latent, dtype=torch.float64).permute(1, 2, 0).numpy()  # time-major draw
    torch.manual_seed(3)
    terms = module.loss(batch)

    seen = batch.values.numpy().copy()
    if arguments:
        mask = batch.observed_mask.numpy()
        for b, v in np.argwhere(mask.any(1)):  # np.interp keeps the outermost values beyond them, too
            seen[b, :, v] = np.interp(np.arange(7), np.flatnonzero(mask[b, :, v]), seen[b, mask[b, :, v], v])
    raw = module.encoder(torch.from_numpy(seen)).detach().numpy()  # [batch, time, 3 latent]
    scales = [1.5, 1.5, 4.0, 9.0] if arguments else [1.5] * 4
    priors = [cauchy(torch.arange(7.0, dtype=torch.float64), scale, 1.0, 1e-3).numpy() for scale in scales]
    kl, latent = np.zeros(5), np.zeros((5, num_steps, num_latent))
    for b in range(5):
        for j in range(num_latent):
            factor = np.zeros((num_steps, num_steps))
            for t in range(num_steps):
                factor[t, t] = 1 + np.log1p(np.exp(raw[b, t, num_latent + 2 * j]))
            for t in range(num_steps - 1):
                coupling = raw[b, t, num_latent + 2 * j + 1]
                factor[t, t + 1] = expit(coupling) * factor[t + 1, t + 1] if arguments else np.log1p(np.exp(coupling))
            prior = priors[j]
            covariance = np.linalg.inv(factor @ factor.T)
            mean = raw[b, :, j]
            kl[b] += 0.5 * (
                np.linalg.slogdet(prior)[1] - np.linalg.slogdet(covariance)[1] - num_steps
                + np.trace(np.linalg.solve(prior, covariance)) + mean @ np.linalg.solve(prior, mean)
            )  # fmt: skip
            latent[b, :, j] = mean + np.linalg.inv(factor).T @ noise[b, j]
    output = module.decoder(torch.from_numpy(latent)).detach().numpy()
    values, mask = batch.values.numpy(), batch.observed_mask.numpy()
    if likelihood == "gaussian":
        log_prob = t_distribution(4).logpdf(values - output) if arguments else norm.logpdf(values, loc=output)
    else:
        log_prob = -np.logaddexp(0, np.where(values == 1, -output, output))
    nll = -(log_prob * mask).sum((1, 2))
    np.testing.assert_allclose(terms["nll"].item(), nll.mean(), rtol=1e-6)
    np.testing.assert_allclose((terms["kl_variance_part"] + terms["kl_mean_part"]).item(), kl.mean(), rtol=1e-5)
    np.testing.assert_allclose(terms["loss"].item(), (nll + 0.7 * kl).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length_scale": [1.0, 2.0, 3.0, 4.0, 5.0]}, r"at most as many as latents \(4\)"),
        ({"length_scale": []}, r"length_scale=\[\]: give at least one"),
        ({"encoder_fill": "linear", "image_shape": [1, 3]}, "for series without image_shape"),
        ({"student_noise": True, "likelihood": "bernoulli"}, "needs likelihood='gaussian', not 'bernoulli'"),
    ],
)
def test_gpvae_refuses_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_gpvae(**arguments)


@pytest.mark.parametrize("arguments", [{}, PLUS], ids=["paper", "plus"])
def test_irregular_times_shape_the_prior(arguments):
    regular = torch.arange(7.0).expand(5, 7)
    batch = series(2)
    batch = batch._replace(values=batch.values.double())
    module = tiny_gpvae(**arguments)

    def loss(times):
        torch.manual_seed(0)
        return module.loss(batch._replace(times=times))["loss"].item()

    assert loss(regular) == pytest.approx(loss(None), rel=1e-6)
    stretched = regular.clone()
    stretched[2:, 3:] += 10.0  # only some series have a gap
    assert abs(loss(stretched) - loss(None)) > 1e-3


def test_remasking_hides_observed_entries_only_and_keeps_them_in_the_likelihood():
    module = tiny_gpvae(remasking=0.5)
    observed_mask = torch.rand(2000, 7, 3) < 0.6
    torch.manual_seed(0)
    seen = module.remask(observed_mask)
    assert not (seen & ~observed_mask).any()
    kept = (seen.sum((1, 2)) / observed_mask.sum((1, 2)).clamp(min=1)).numpy()
    assert kept.mean() == pytest.approx(0.75, abs=0.01)  # 1 - E[U(0, 1/2)]
    assert kept.std() == pytest.approx(np.sqrt(1 / 48 + 0.75 * 0.25 / 12.6), abs=0.02)  # spread of q and of the draw
    batch = series(4)
    batch = batch._replace(values=batch.values.double())
    torch.manual_seed(5)
    seen = module.remask(batch.observed_mask)
    assert (seen != batch.observed_mask).any()
    with torch.no_grad():  # the encoder sees what is left, the likelihood all that is observed
        latent = module.encode(batch.values * seen, seen, None).rsample()
        log_prob = norm.logpdf(batch.values.numpy(), loc=module.decoder(latent.mT).numpy())
    torch.manual_seed(5)
    nll = module.loss(batch)["nll"].item()
    assert nll == pytest.approx(-(log_prob * batch.observed_mask.numpy()).sum((1, 2)).mean(), rel=1e-9)


@pytest.mark.parametrize("method", ["vae", "hivae"])
def test_vae_losses_differ_only_in_the_entries_they_score(method):
    torch.manual_seed(0)
    cls = {"vae": VAE, "hivae": HIVAE}[method]
    module = cls(num_features=3, latent_dim=4, encoder_sizes=[6], decoder_sizes=[8], beta=0.3).double()
    batch = series(6)
    batch = batch._replace(values=batch.values.double())
    mean, raw = module.encoder(batch.values).detach().chunk(2, -1)
    scale = np.log1p(np.exp(raw.numpy()))
    torch.manual_seed(1)
    terms = module.loss(batch)
    torch.manual_seed(1)
    latent = mean + torch.from_numpy(scale) * torch.randn(mean.shape, dtype=torch.float64)
    log_prob = norm.logpdf(batch.values.numpy(), loc=module.decoder(latent).detach().numpy())
    scored = batch.observed_mask.numpy() if method == "hivae" else 1.0
    kl = 0.5 * (scale**2 + mean.numpy() ** 2 - 1 - 2 * np.log(scale)).sum((1, 2)).mean()
    np.testing.assert_allclose(terms["nll"].item(), -(log_prob * scored).sum((1, 2)).mean(), rtol=1e-6)
    np.testing.assert_allclose(terms["loss"].item(), terms["nll"].item() + 0.3 * kl, rtol=1e-6)


@pytest.mark.parametrize(
    "module", [tiny_gpvae(), tiny_gpvae(**PLUS), VAE(3, latent_dim=2).double()], ids=["gpvae", "plus", "vae"]
)
def test_the_predictive_contract(module):
    batch = series(8)
    values = batch.values.double()
    with torch.no_grad():
        predictive = module(values, batch.observed_mask)
        generator = torch.Generator().manual_seed(0)
        samples = predictive.sample(2000, generator)
        assert samples.shape == (2000, 5, 7, 3)
        one = predictive.log_prob(batch.target.double(), rows=batch.index)
        assert one.shape == (5, 7, 3)
        # The row's own noise: the same figure for any batching, another for another row.
        halves = [
            module(values[part], batch.observed_mask[part]).log_prob(
                batch.target[part].double(), rows=batch.index[part]
            )
            for part in (slice(0, 2), slice(2, 5))
        ]
        torch.testing.assert_close(torch.cat(halves), one)
        assert not torch.equal(predictive.log_prob(batch.target.double(), rows=batch.index + 1), one)
        standard = predictive.sample(3, torch.Generator().manual_seed(0))
        torch.testing.assert_close(standard, samples[:3])


def test_row_noise_is_standard_normal_and_belongs_to_the_row():
    noise = normal_by_row(torch.arange(500), (40, 10))
    assert noise.shape == (500, 40, 10)
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    flat = noise.flatten(1).numpy()
    correlation = np.corrcoef(flat[:, :20].T)
    assert np.abs(correlation[~np.eye(20, dtype=bool)]).max() < 0.25  # 5.6 standard errors
    assert np.abs(np.corrcoef(flat[0:20])[~np.eye(20, dtype=bool)]).max() < 0.28
    torch.testing.assert_close(normal_by_row(torch.tensor([7, 3]), (40, 10)), noise[[7, 3]], rtol=0, atol=0)
    rows, seeds = torch.arange(40), range(40)
    every = torch.stack([normal_by_row(rows, (2,), seed=seed) for seed in seeds])  # [seed, row, 2]
    assert len(every.flatten(0, 1).unique(dim=0)) == 1600  # no row of a seed is another row of another seed
    with pytest.raises(ValueError, match="int64"):
        normal_by_row(torch.zeros(3), (2,))
