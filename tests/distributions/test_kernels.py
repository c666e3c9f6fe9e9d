"""Kernels against closed forms and scikit-learn; the prior's factorisation against numpy and scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.gaussian_process import kernels as sklearn_kernels

from lightning_modules.distributions.gaussian_process import GaussianProcessPrior
from lightning_modules.distributions.kernels import KERNELS, cauchy, matern12, rbf

REFERENCES = {
    "cauchy": lambda scale: sklearn_kernels.RationalQuadratic(length_scale=scale / math.sqrt(2), alpha=1.0),
    "rbf": lambda scale: sklearn_kernels.RBF(length_scale=scale),
    "matern12": lambda scale: sklearn_kernels.Matern(length_scale=scale, nu=0.5),
    "matern32": lambda scale: sklearn_kernels.Matern(length_scale=scale, nu=1.5),
    "matern52": lambda scale: sklearn_kernels.Matern(length_scale=scale, nu=2.5),
}
irregular_times = st.lists(st.floats(-50, 50), min_size=1, max_size=12)


def test_every_kernel_has_a_reference() -> None:
    assert KERNELS.keys() == REFERENCES.keys()


@pytest.mark.parametrize("name", KERNELS)
@given(times=irregular_times, scale=st.floats(0.1, 20), variance=st.floats(0.1, 10), jitter=st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_kernel_is_the_textbook_one_at_irregular_times(
    name: str, times: list[float], scale: float, variance: float, jitter: float
) -> None:
    points = np.array(times)
    expected = variance * REFERENCES[name](scale)(points[:, None]) + jitter * np.eye(len(points))
    actual = KERNELS[name](torch.tensor(times, dtype=torch.float64), scale, variance, jitter)
    assert actual.dtype == torch.float64
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_forms_of_the_published_code() -> None:
    times, scale = torch.arange(8, dtype=torch.float64), 2.0
    gap = (times[:, None] - times).abs()
    published_cauchy = 1.005 / (1 + gap**2 / scale**2) + 0.001 * torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(cauchy(times, scale, variance=1.005, jitter=1e-3), published_cauchy)
    torch.testing.assert_close(rbf(times, scale / math.sqrt(2)), torch.exp(-(gap**2) / scale**2))
    torch.testing.assert_close(matern12(times, math.sqrt(scale)), torch.exp(-gap / math.sqrt(scale)))


@pytest.mark.parametrize("name", KERNELS)
@given(times=irregular_times, scale=st.floats(0.1, 20))
@settings(deadline=None, max_examples=25)
def test_jitter_bounds_the_smallest_eigenvalue_also_at_duplicate_times(
    name: str, times: list[float], scale: float
) -> None:
    covariance = KERNELS[name](torch.tensor(times + times[:1], dtype=torch.float64), scale, jitter=1e-3).numpy()
    np.testing.assert_array_equal(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > 1e-3 - 1e-10


@pytest.mark.parametrize("name", KERNELS)
def test_batched_times_and_dtype(name: str) -> None:
    times = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    covariance = KERNELS[name](times, 0.5)
    assert covariance.shape == (2, 3, 5, 5)
    assert covariance.dtype == torch.float32
    torch.testing.assert_close(covariance[1, 2], KERNELS[name](times[1, 2], 0.5))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"length_scale": 0.0}, "length_scale is 0.0; give a positive"),
        ({"length_scale": math.nan}, "length_scale is nan"),
        ({"variance": -1.0}, "variance is -1.0"),
        ({"jitter": -0.1}, "jitter is -0.1"),
        ({"times": torch.tensor([0.0, math.inf])}, "not finite"),
        ({"times": torch.tensor(1.0)}, "no axis"),
    ],
)
@pytest.mark.parametrize("name", KERNELS)
def test_wrong_arguments_are_named(name: str, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KERNELS[name](**({"times": torch.zeros(2), "length_scale": 1.0} | arguments))


def test_integer_times_are_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.int64.*floating"):
        cauchy(torch.arange(3), 1.0)


def test_prior_against_numpy_and_scipy() -> None:
    times = torch.tensor([[0.0, 0.4, 1.0, 5.0], [0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    covariance = cauchy(times, 2.0, jitter=1e-3)
    prior = GaussianProcessPrior(covariance, dtype=torch.float64)
    value = np.array([[0.3, -1.0, 2.0, 0.1], [1.0, 0.2, -0.3, 0.7]])
    log_prob = prior.log_prob(torch.from_numpy(value))
    for row, matrix in enumerate(covariance.numpy()):
        whitening = prior.whitening[row].numpy()
        np.testing.assert_allclose(prior.precision[row].numpy(), np.linalg.inv(matrix), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(whitening @ matrix @ whitening.T, np.eye(4), atol=1e-12)
        np.testing.assert_allclose(prior.log_det_covariance[row].item(), np.linalg.slogdet(matrix)[1])
        expected = stats.multivariate_normal(cov=matrix).logpdf(value[row])
        np.testing.assert_allclose(log_prob[row].item(), expected, rtol=1e-10)


def test_prior_in_float32_is_rounded_only_after_the_inversion() -> None:
    covariance = cauchy(torch.arange(48, dtype=torch.float64), 7.0, 1.005, 1e-3)
    prior = GaussianProcessPrior(covariance)
    assert prior.precision.dtype == torch.float32
    exact = np.linalg.inv(covariance.numpy())
    assert np.abs(prior.precision.numpy() - exact).max() < 1e-6 * np.abs(exact).max()


def test_prior_stays_out_of_the_state_dict_and_follows_the_module() -> None:
    module = torch.nn.Sequential(GaussianProcessPrior(torch.eye(3)))
    assert not module.state_dict()
    assert {buffer.device.type for buffer in module.to("meta").buffers()} == {"meta"}


def test_singular_covariance_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"smallest eigenvalue is -?\d.*jitter"):
        GaussianProcessPrior(rbf(torch.arange(40, dtype=torch.float64), 20.0))
    with pytest.raises(ValueError, match="not symmetric"):
        GaussianProcessPrior(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="not finite"):
        GaussianProcessPrior(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        GaussianProcessPrior(torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        GaussianProcessPrior(torch.eye(2, dtype=torch.int64))
