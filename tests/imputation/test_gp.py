"""Gaussian-process imputation against scikit-learn's GaussianProcessRegressor, and learning on simulated series."""

import math
from typing import NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from scipy.stats import chi2
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, RationalQuadratic, WhiteKernel
from torch import Tensor

from experiments.build import build_module
from experiments.config import compose
from lightning_modules.distributions.kernels import KERNELS
from lightning_modules.imputation.gp import GP, LogDensity

REFERENCES = {
    "cauchy": lambda scale: RationalQuadratic(scale / math.sqrt(2), alpha=1.0),
    "rbf": lambda scale: RBF(scale),
    "matern12": lambda scale: Matern(scale, nu=0.5),
    "matern32": lambda scale: Matern(scale, nu=1.5),
    "matern52": lambda scale: Matern(scale, nu=2.5),
}
# Of three features: length scale, process variance, noise variance, mean.
HYPERPARAMETERS = torch.tensor([[4.0, 1.3, 0.2, 0.0], [0.7, 0.4, 0.05, -1.5], [30.0, 2.0, 0.9, 0.4]])


class Batch(NamedTuple):
    values: Tensor
    observed_mask: Tensor
    times: Tensor | None = None


def with_hyperparameters(table, **arguments):
    """A module whose features have the hyper-parameters of the table's rows."""
    module = GP(len(table), **arguments)
    length_scale, variance, noise, mean = torch.as_tensor(table, dtype=torch.float64).T
    for parameter, value in (
        (module.log_length_scale, length_scale.log()),
        (module.log_variance, variance.log()),
        (module.log_excess_noise, (noise - 1e-4).log()),
        (module.prior_mean, mean),
    ):
        parameter.data = value
    return module


def incomplete(irregular, seed=0):
    """Five series of three features: the first has nothing observed, the last everything; garbage where unobserved."""
    generator = torch.Generator().manual_seed(seed)
    part = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])[:, None, None]
    observed_mask = torch.rand((5, 14, 3), generator=generator) < part
    values = torch.randn((5, 14, 3), generator=generator, dtype=torch.float64)
    times = torch.rand((5, 14), generator=generator).cumsum(1) * 3 - 5 if irregular else None
    return Batch(values, observed_mask, times)


def regressors(kernel, batch):
    """For each series and feature scikit-learn's answer (None where nothing is observed), its times and its mean."""
    for row, feature in np.ndindex(5, 3):
        length_scale, variance, noise, mean = HYPERPARAMETERS[feature].tolist()
        times = (torch.arange(14.0) if batch.times is None else batch.times[row]).numpy()[:, None].astype(np.float64)
        seen = batch.observed_mask[row, :, feature].numpy()
        covariance = ConstantKernel(variance) * REFERENCES[kernel](length_scale) + WhiteKernel(noise)
        regressor = GaussianProcessRegressor(covariance, alpha=0.0, optimizer=None)
        if seen.any():
            regressor.fit(times[seen], batch.values[row, seen, feature].numpy() - mean)
        yield row, feature, regressor, times, seen, mean


@pytest.mark.parametrize("irregular", [False, True], ids=["regular", "irregular"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_posterior_and_marginal_likelihood_are_those_of_scikit_learn(kernel, irregular):
    batch = incomplete(irregular)
    module = with_hyperparameters(HYPERPARAMETERS, kernel=kernel)
    with torch.no_grad():
        prediction = module(*batch)
        loss = module.loss(batch)
    log_likelihood = 0.0
    for row, feature, regressor, times, seen, mean in regressors(kernel, batch):
        expected_mean, expected_std = regressor.predict(times, return_std=True)
        found = prediction.mean[row, :, feature], prediction.scale[row, :, feature]
        np.testing.assert_allclose(found[0], expected_mean + mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found[1], expected_std, rtol=1e-6)
        if seen.any():
            log_likelihood += regressor.log_marginal_likelihood_value_
    np.testing.assert_allclose(loss, -log_likelihood / 5, rtol=1e-8)


def test_nothing_observed_gives_the_prior_with_its_noise():
    module = with_hyperparameters(HYPERPARAMETERS)
    prediction = module(torch.zeros(2, 6, 3), torch.zeros(2, 6, 3, dtype=torch.bool))
    torch.testing.assert_close(prediction.mean, HYPERPARAMETERS[:, 3].expand(2, 6, 3))
    torch.testing.assert_close(
        prediction.scale.square(), (HYPERPARAMETERS[:, 1] + HYPERPARAMETERS[:, 2]).expand(2, 6, 3)
    )
    untrained = GP(3)(torch.zeros(2, 6, 3), torch.zeros(2, 6, 3, dtype=torch.bool))
    assert not untrained.mean.any()


def simulate(kernel, table, num_series, num_steps, seed=0):
    """Noisy draws of the processes at 0..T-1, [series, time, feature] float64."""
    generator = torch.Generator().manual_seed(seed)
    series = []
    for length_scale, variance, noise, mean in table:
        times = torch.arange(num_steps, dtype=torch.float64)
        covariance = KERNELS[kernel](times, length_scale, variance, jitter=noise)
        draws = torch.randn((num_series, num_steps), generator=generator, dtype=torch.float64)
        series.append(mean + draws @ torch.linalg.cholesky(covariance).T)
    return torch.stack(series, dim=-1)


def test_predictive_distribution_is_that_of_a_new_noisy_observation():
    """Hidden observations of the model's own series are standard normal in units of mean and scale."""
    table = HYPERPARAMETERS.tolist()
    values = simulate("matern32", table, num_series=400, num_steps=20)
    observed_mask = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        prediction = with_hyperparameters(table, kernel="matern32")(values, observed_mask)
    z = ((values - prediction.mean) / prediction.scale).square()
    hidden = ~observed_mask
    for feature in range(3):
        squares = z[..., feature][hidden[..., feature]]
        # Neighbouring hidden entries are correlated: a tenth of their number stands for the independent ones.
        low, high = chi2.interval(0.999, len(squares) // 10)
        assert low < squares.mean() * (len(squares) // 10) < high
    assert (prediction.scale.square() > HYPERPARAMETERS[:, 2]).all()
    np.testing.assert_allclose(
        prediction.log_prob(values),
        torch.distributions.Normal(prediction.mean, prediction.scale).log_prob(values),
    )


def test_gradient_of_the_log_density():
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn((2, 3, 5), generator=generator, dtype=torch.float64, requires_grad=True)
    root = torch.randn((2, 3, 5, 5), generator=generator, dtype=torch.float64, requires_grad=True)

    def log_density(residual, root):
        return LogDensity.apply(residual, root @ root.mT + torch.eye(5, dtype=torch.float64))

    assert torch.autograd.gradcheck(log_density, (residual, root))


@pytest.mark.parametrize("irregular", [False, True])
def test_gradient_of_the_loss(irregular):
    """Against finite differences, in every hyper-parameter of every feature."""
    batch = incomplete(irregular)
    module = with_hyperparameters(HYPERPARAMETERS)
    module.loss(batch).backward()
    for parameter in module.parameters():
        for feature in range(3):
            losses = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter[feature] += step
                    losses.append(module.loss(batch).item())
                    parameter[feature] -= step
            assert parameter.grad[feature].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-6)


def test_what_is_not_observed_plays_no_part():
    batch = incomplete(irregular=True)
    ragged = batch.times.clone()
    ragged[1, 9:] = ragged[1, 8]  # a shorter series, filled up with its last time
    observed_mask = batch.observed_mask.clone()
    observed_mask[1, 9:] = False
    spoilt = torch.where(observed_mask, batch.values, torch.nan)
    module = with_hyperparameters(HYPERPARAMETERS)
    zeros = torch.where(observed_mask, batch.values, 0.0)
    clean, same = module(zeros, observed_mask, ragged), module(spoilt, observed_mask, ragged)
    torch.testing.assert_close(same.mean, clean.mean)
    torch.testing.assert_close(same.scale, clean.scale)
    short = module(zeros[1:2, :9], observed_mask[1:2, :9], ragged[1:2, :9])
    torch.testing.assert_close(short.mean[0], clean.mean[1, :9])
    losses = [module.loss(Batch(values, observed_mask, ragged)) for values in (zeros, spoilt)]
    assert losses[0].item() == losses[1].item()
    losses[1].backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_smooth_long_series_with_repeated_times_stay_finite():
    """A covariance of rank one to working precision, in float32, with hardly any noise."""
    table = [[1e5, 100.0, 1.01e-4, 0.0], [1e-3, 1e-4, 1.01e-4, 0.0]]
    module = with_hyperparameters(table, kernel="rbf").float()
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((2, 300, 2), generator=generator)
    times = torch.rand((2, 300), generator=generator).cumsum(1)
    times[:, 100:110] = times[:, 100:101]
    batch = Batch(values, torch.ones_like(values, dtype=torch.bool), times)
    loss = module.loss(batch)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    prediction = module(*batch)
    assert prediction.mean.dtype == prediction.scale.dtype == torch.float32
    assert prediction.mean.isfinite().all()
    assert (prediction.scale >= 0.01).all()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")  # of torch, used by Lightning
def test_training_reaches_scikit_learns_marginal_likelihood():
    """Series observed throughout are many targets of one regression, which scikit-learn fits with L-BFGS."""
    table = [[3.0, 1.5, 0.3, 0.0], [8.0, 0.5, 0.05, 0.0]]
    values = simulate("matern32", table, num_series=60, num_steps=20)
    torch.manual_seed(0)
    module = GP(2, kernel="matern32", length_scale=5.0, learning_rate_half_life=25)
    batches = [Batch(part.float(), torch.ones_like(part, dtype=torch.bool)) for part in values.split(20)] * 50
    trainer = L.Trainer(
        max_steps=150, limit_val_batches=0, log_every_n_steps=1, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(module, loader, loader)
    reached, best = -60 * module.loss(Batch(values, torch.ones_like(values, dtype=torch.bool))).item(), 0.0
    for feature in range(2):
        kernel = ConstantKernel(1.0) * Matern(5.0, nu=1.5) + WhiteKernel(0.5)
        regressor = GaussianProcessRegressor(kernel, alpha=0.0)
        centred = values[:, :, feature] - module.prior_mean[feature].item()  # scikit-learn learns no mean
        regressor.fit(np.arange(20.0)[:, None], centred.T.numpy())
        best += regressor.log_marginal_likelihood_value_
        fitted = regressor.kernel_
        expected = fitted.k1.k2.length_scale, fitted.k1.k1.constant_value, fitted.k2.noise_level
        found = module.log_length_scale.exp(), module.log_variance.exp(), module.noise_variance
        for ours, theirs, truth in zip(found, expected, table[feature], strict=False):
            assert ours[feature].item() == pytest.approx(theirs, rel=0.05)
            assert ours[feature].item() == pytest.approx(truth, rel=0.25)
    assert best - 0.1 < reached < best + 1e-6


def test_learned_mean_is_that_of_generalised_least_squares():
    values = simulate("matern12", [[4.0, 1.0, 0.2, 2.0]], num_series=40, num_steps=15)
    module = with_hyperparameters([[4.0, 1.0, 0.2, 0.0]])
    batch = Batch(values, torch.ones_like(values, dtype=torch.bool))
    module.loss(batch).backward()
    slope = module.prior_mean.grad
    with torch.no_grad():
        module.prior_mean += 1.0
    module.prior_mean.grad = None
    module.loss(batch).backward()
    optimum = -slope / (module.prior_mean.grad - slope)  # the loss is quadratic in the mean
    precision = np.linalg.inv(KERNELS["matern12"](torch.arange(15, dtype=torch.float64), 4.0, 1.0, jitter=0.2).numpy())
    expected = (precision @ values[:, :, 0].numpy().T).sum() / (40 * precision.sum())
    assert optimum.item() == pytest.approx(expected, rel=1e-6)


def test_binary_data_get_a_mean_between_0_and_1():
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand((20, 10, 4), generator=generator) < 0.5).float()
    observed_mask = torch.rand(target.shape, generator=generator) < 0.5
    arguments = {"kernel": "rbf", "length_scale": 2.0, "kernel_variance": 1.0, "noise_variance": 1e-3}
    free, kept = (
        GP(4, likelihood=likelihood, **arguments)(target * observed_mask, observed_mask)
        for likelihood in ("gaussian", "bernoulli")
    )
    assert free.mean.min() < -0.1
    assert free.mean.max() > 1.1
    torch.testing.assert_close(kept.mean, free.mean.clamp(0, 1))
    assert kept.log_prob(target) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "periodic"}, "kernel='periodic' is not known; choose one of"),
        ({"length_scale": 0.0}, "length_scale=0.0 must be above 0"),
        ({"kernel_variance": -1.0}, "kernel_variance=-1.0 must be above 0"),
        ({"noise_variance": 1e-4}, "noise_variance=0.0001 must be above 0.0001"),
    ],
)
def test_impossible_arguments_are_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        GP(3, **arguments)


@pytest.mark.parametrize("dataset", ["physionet", "hmnist", "digits"])
def test_it_is_an_experiment_of_every_data_set(dataset):
    experiment = compose(f"gp_{dataset}")
    module = build_module(experiment)
    assert isinstance(module, GP)
    assert len(module.log_variance) == experiment.config["model"]["num_features"]
