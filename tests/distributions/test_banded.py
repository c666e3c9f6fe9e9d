"""BandedGaussian against dense float64 Gaussians of torch.distributions and numpy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from lightning_modules.distributions.banded import BandedGaussian
from lightning_modules.distributions.gaussian_process import GaussianProcessPrior
from lightning_modules.distributions.kernels import KERNELS, cauchy

REPOSITORY = Path(__file__).parents[2]


def arguments(lead: tuple[int, ...], num_steps: int, seed: int = 0, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, positive diagonal and off-diagonal entries of both signs."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64} | options
    mean = torch.randn(*lead, num_steps, **options)
    diagonal = 0.4 + 2 * torch.rand(*lead, num_steps, **options)
    return mean, diagonal, torch.randn(*lead, num_steps - 1, **options)


def dense_covariance(diagonal: Tensor, off_diagonal: Tensor) -> np.ndarray:
    """Inverse of U U^T, by numpy."""
    factor = np.zeros((*diagonal.shape, diagonal.shape[-1]))
    steps = np.arange(diagonal.shape[-1])
    factor[..., steps, steps] = diagonal.numpy()
    factor[..., steps[:-1], steps[1:]] = off_diagonal.numpy()
    return np.linalg.inv(factor @ np.swapaxes(factor, -1, -2))


def dense_twin(mean: Tensor, diagonal: Tensor, off_diagonal: Tensor) -> MultivariateNormal:
    return MultivariateNormal(mean, torch.from_numpy(dense_covariance(diagonal, off_diagonal)))


def prior_covariance(num_steps: int, length_scale: float = 2.0) -> Tensor:
    return cauchy(torch.arange(num_steps, dtype=torch.float64), length_scale, jitter=1e-3)


@given(
    lead=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    num_steps=st.integers(1, 20),
    seed=st.integers(0, 2**31),
    kernel=st.sampled_from(sorted(KERNELS)),
    zero_edges=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_everything_equals_the_dense_gaussian(
    lead: tuple[int, ...], num_steps: int, seed: int, kernel: str, zero_edges: bool
) -> None:
    mean, diagonal, off_diagonal = arguments(lead, num_steps, seed)
    if zero_edges:
        off_diagonal[..., ::2] = 0
    posterior, dense = BandedGaussian(mean, diagonal, off_diagonal), dense_twin(mean, diagonal, off_diagonal)
    times = torch.rand(num_steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * num_steps
    covariance = KERNELS[kernel](times.sort().values, 2.0, 1.5, 1e-3)
    value = mean.flip(-1)
    torch.testing.assert_close(posterior.variance, dense.variance)
    torch.testing.assert_close(posterior.covariance(), dense.covariance_matrix)
    torch.testing.assert_close(posterior.log_det_covariance, torch.logdet(dense.covariance_matrix))
    torch.testing.assert_close(posterior.log_prob(value), dense.log_prob(value))
    divergence = posterior.kl_divergence(covariance)
    prior = MultivariateNormal(torch.zeros(num_steps, dtype=torch.float64), covariance)
    torch.testing.assert_close(divergence.variance_part + divergence.mean_part, kl_divergence(dense, prior))
    whitened = np.linalg.solve(np.linalg.cholesky(covariance.numpy()), mean.numpy().reshape(-1, num_steps).T)
    expected_mean_part = 0.5 * (whitened**2).sum(0).reshape(lead)
    np.testing.assert_allclose(divergence.mean_part.numpy(), expected_mean_part, rtol=1e-8)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 21, 48])
def test_transform_of_the_identity_is_a_factor_of_the_covariance(num_steps: int) -> None:
    _, diagonal, off_diagonal = arguments((), num_steps)
    rows = (num_steps, num_steps)
    posterior = BandedGaussian(
        torch.zeros(rows, dtype=torch.float64), diagonal.expand(rows), off_diagonal.expand(num_steps, num_steps - 1)
    )
    factor = posterior.transform(torch.eye(num_steps, dtype=torch.float64)).T  # column t answers noise at step t
    torch.testing.assert_close(factor, factor.tril())
    np.testing.assert_allclose((factor @ factor.T).numpy(), dense_covariance(diagonal, off_diagonal), rtol=1e-9)


def test_samples_have_the_mean_and_covariance_and_follow_the_generator() -> None:
    num_samples = 200_000
    mean, diagonal, off_diagonal = arguments((), 5, seed=3)
    posterior = BandedGaussian(*(part.expand(num_samples, -1) for part in (mean, diagonal, off_diagonal)))
    samples = posterior.rsample(torch.Generator().manual_seed(1))
    covariance = dense_covariance(diagonal, off_diagonal)
    scale = np.sqrt(covariance.diagonal())
    # Six standard errors, those of a Gaussian's empirical covariance being at most sqrt(2 / n) scale_t scale_u.
    assert ((samples.mean(0) - mean).abs().numpy() < 6 * scale / num_samples**0.5).all()
    error = np.abs(np.cov(samples.numpy().T) - covariance)
    assert (error < 6 * np.sqrt(2 / num_samples) * np.outer(scale, scale)).all()
    assert torch.equal(samples, posterior.rsample(torch.Generator().manual_seed(1)))
    assert not torch.equal(samples, posterior.rsample(torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("num_steps", [1, 2, 7, 13])
def test_gradients(num_steps: int) -> None:
    parts = tuple(part.requires_grad_() for part in arguments((2,), num_steps))
    noise, value, _ = arguments((2,), num_steps, seed=1)
    covariance = prior_covariance(num_steps)

    def results(*parts: Tensor) -> tuple[Tensor, ...]:
        posterior = BandedGaussian(*parts)
        divergence = posterior.kl_divergence(covariance)
        return (
            posterior.transform(noise),
            posterior.log_prob(value),
            posterior.variance,
            posterior.log_det_covariance,
            *divergence,
        )

    assert torch.autograd.gradcheck(results, parts, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_gradient_of_the_divergence_where_decays_vanish(edge: float) -> None:
    """The derivative by a decay of 0 is a sum that a division by the decay could not give."""
    mean, diagonal, off_diagonal = arguments((3,), 11)
    parts = mean, diagonal, off_diagonal.clamp(min=0) * edge
    assert (parts[2] == 0).any()
    parts = tuple(part.requires_grad_() for part in parts)
    covariance = prior_covariance(11, 4.0)
    divergence = sum(BandedGaussian(*parts).kl_divergence(covariance)).sum()
    dense = BandedGaussian(*parts).covariance()
    prior = MultivariateNormal(torch.zeros(11, dtype=torch.float64), covariance)
    expected = kl_divergence(MultivariateNormal(mean, dense), prior).sum()
    for actual_gradient, expected_gradient in zip(
        torch.autograd.grad(divergence, parts), torch.autograd.grad(expected, parts), strict=True
    ):
        torch.testing.assert_close(actual_gradient, expected_gradient, rtol=1e-8, atol=1e-8)


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    mean, diagonal, off_diagonal = (part.requires_grad_() for part in arguments((), 4))
    posterior = BandedGaussian(mean, diagonal, off_diagonal)
    for result in (posterior.kl_divergence(prior_covariance(4)).variance_part, posterior.variance.sum()):
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.grad(result, off_diagonal, create_graph=True)


@pytest.mark.parametrize("slowly_varying", [False, True])
def test_float32_divergence_with_a_smooth_prior(slowly_varying: bool) -> None:
    mean, diagonal, off_diagonal = arguments((64,), 48)
    diagonal, off_diagonal = 1 + diagonal.frac(), off_diagonal.sigmoid()
    if slowly_varying:  # prior and posterior nearly cancel in the trace and in the quadratic form
        mean = torch.linspace(-1, 1, 48, dtype=torch.float64).sin().expand(64, -1)
        diagonal, off_diagonal = 10 * diagonal, -9.5 * diagonal[..., 1:]
    covariance = prior_covariance(48, 7.0)
    single = BandedGaussian(mean.float(), diagonal.float(), off_diagonal.float())
    # The truth for the very numbers that float32 holds.
    double = BandedGaussian(single.mean.double(), single.diagonal.double(), single.off_diagonal.double())
    actual, expected = (sum(each.kl_divergence(covariance)) for each in (single, double))
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("prior_lead", [(1,), (3,), (2, 1), (2, 3), (1, 3)])
def test_priors_broadcast_over_leading_dimensions(prior_lead: tuple[int, ...]) -> None:
    mean, diagonal, off_diagonal = arguments((2, 3), 6)
    times = torch.rand(*prior_lead, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 6
    covariance = cauchy(times, 1.5, jitter=1e-2)
    dense = dense_twin(mean, diagonal, off_diagonal)
    expected = kl_divergence(dense, MultivariateNormal(torch.zeros_like(mean), covariance))
    actual = BandedGaussian(mean, diagonal, off_diagonal).kl_divergence(covariance)
    torch.testing.assert_close(actual.variance_part + actual.mean_part, expected)


def test_tiles_of_series_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tuple(part.requires_grad_() for part in arguments((3, 5), 9))
    whole = BandedGaussian(*parts).kl_divergence(prior_covariance(9)).variance_part
    monkeypatch.setattr("lightning_modules.distributions.banded._TILE", 9 * 4)
    tiled = BandedGaussian(*parts).kl_divergence(prior_covariance(9)).variance_part
    torch.testing.assert_close(tiled, whole)
    for by_tiles, at_once in zip(
        *(torch.autograd.grad(kl.square().sum(), parts[1:]) for kl in (tiled, whole)), strict=True
    ):
        torch.testing.assert_close(by_tiles, at_once)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context: type) -> None:
    parts = arguments((2,), 5)
    noise = torch.ones(2, 5, dtype=torch.float64)
    expected = BandedGaussian(*(part.clone().requires_grad_() for part in parts))
    with context():
        posterior = BandedGaussian(*parts)
        divergence, sample = posterior.kl_divergence(prior_covariance(5)), posterior.transform(noise)
    assert torch.equal(divergence.variance_part, expected.kl_divergence(prior_covariance(5)).variance_part.detach())
    assert torch.equal(sample, expected.transform(noise).detach())


def test_a_look_without_gradients_does_not_stop_later_ones() -> None:
    parts = tuple(part.requires_grad_() for part in arguments((2,), 5))
    looked_at, fresh = BandedGaussian(*parts), BandedGaussian(*parts)
    with torch.no_grad():
        looked_at.kl_divergence(prior_covariance(5))
    losses = (sum(each.kl_divergence(prior_covariance(5))).sum() for each in (looked_at, fresh))
    gradients, expected = (torch.autograd.grad(loss, parts) for loss in losses)
    assert all(map(torch.equal, gradients, expected))


def test_half_precision_is_computed_in_float32_under_autocast() -> None:
    parts = [part.bfloat16() for part in arguments((8,), 48)]
    prior = GaussianProcessPrior(prior_covariance(48, 7.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = BandedGaussian(*parts).kl_divergence(prior)
    expected = BandedGaussian(*(part.float() for part in parts)).kl_divergence(prior)
    assert torch.equal(actual.variance_part, expected.variance_part)
    assert torch.equal(actual.mean_part, expected.mean_part)


def test_no_series_at_all() -> None:
    mean, diagonal, off_diagonal = (part.requires_grad_() for part in arguments((0, 3), 4))
    posterior = BandedGaussian(mean, diagonal, off_diagonal)
    divergence = posterior.kl_divergence(prior_covariance(4))
    assert divergence.variance_part.shape == divergence.mean_part.shape == (0, 3)
    (posterior.rsample().sum() + sum(divergence).sum()).backward()
    assert off_diagonal.grad.shape == (0, 3, 3)


def test_misfits_are_named() -> None:
    mean, diagonal, off_diagonal = arguments((2,), 4)
    posterior = BandedGaussian(mean, diagonal, off_diagonal)
    with pytest.raises(ValueError, match=r"off_diagonal \[\.\.\., T - 1\].*\(2, 4\), \(2, 4\) and \(2, 4\)"):
        BandedGaussian(mean, diagonal, diagonal)
    with pytest.raises(TypeError, match=r"torch\.float64, torch\.float32"):
        BandedGaussian(mean, diagonal.float(), off_diagonal)
    with pytest.raises(ValueError, match=r"covariance \(5, 5\) does not broadcast"):
        posterior.kl_divergence(prior_covariance(5))
    with pytest.raises(ValueError, match=r"covariance \(3, 4, 4\) does not broadcast"):
        posterior.kl_divergence(prior_covariance(4).expand(3, 4, 4))
    with pytest.raises(TypeError, match=r"dtype=torch\.float64"):
        posterior.kl_divergence(GaussianProcessPrior(prior_covariance(4)))
    with pytest.raises(ValueError, match=r"noise has shape \(4,\)"):
        posterior.transform(torch.zeros(4))
    with pytest.raises(ValueError, match=r"value has shape \(1, 4\)"):
        posterior.log_prob(torch.zeros(1, 4))


LONG_SERIES = """
import torch
from lightning_modules.distributions.banded import BandedGaussian
from lightning_modules.distributions.gaussian_process import GaussianProcessPrior
from lightning_modules.distributions.kernels import cauchy
def peak():  # of this process alone: the peak that getrusage reports is inherited from the process that started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def step(lead, num_steps):
    prior = GaussianProcessPrior(cauchy(torch.arange(num_steps, dtype=torch.float64), 7.0, jitter=1e-3))
    shape = (*lead, num_steps)
    parts = torch.zeros(shape), torch.full(shape, 1.5), torch.full((*lead, num_steps - 1), 0.5)
    posterior = BandedGaussian(*(part.requires_grad_() for part in parts))
    (posterior.rsample().square().sum() + sum(posterior.kl_divergence(prior)).sum()).backward()
step((2,), 1000)  # what the libraries and the prior's own matrices take
before = peak()
step((16, 64), 1000)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.slow
def test_long_series_need_no_matrix_each() -> None:
    """1,024 series of 1,000 steps: a matrix each in float32 would take 4.1 GB."""
    run = subprocess.run(
        [sys.executable, "-c", LONG_SERIES], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )
    assert int(run.stdout) * 1024 < 0.5e9
