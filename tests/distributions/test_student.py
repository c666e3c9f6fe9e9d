"""Student's t with four degrees of freedom against scipy."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, t

from lightning_modules.distributions.likelihood import masked_log_likelihood
from lightning_modules.distributions.student import StudentT4


def test_density_and_mean():
    generator = torch.Generator().manual_seed(0)
    loc, value = (torch.randn(4, 5, 6, dtype=torch.float64, generator=generator) * 3 for _ in range(2))
    scale = torch.rand(6, dtype=torch.float64, generator=generator) + 0.1
    observation = StudentT4(loc, scale)
    expected = t(4, loc=loc.numpy(), scale=scale.numpy()).logpdf(value.numpy())
    np.testing.assert_allclose(observation.log_prob(value), expected, rtol=1e-12)
    assert observation.mean is loc
    mask = torch.rand(4, 5, 6, generator=generator) < 0.4
    np.testing.assert_allclose(
        masked_log_likelihood(observation, value, mask), (expected * mask.numpy()).sum((1, 2)), rtol=1e-12
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_transform_is_the_quantile_of_the_same_probability(dtype, tolerance):
    noise = torch.cat([torch.linspace(-8, 8, 161, dtype=torch.float64), torch.tensor([0.0, 1e-3])]).to(dtype)
    values = StudentT4(torch.full_like(noise, 2.0), 0.5).transform(noise).double().numpy()
    exact = noise.double().numpy()
    expected = np.sign(exact) * t(4).isf(norm.sf(np.abs(exact)))
    np.testing.assert_allclose((values - 2.0) / 0.5, expected, rtol=tolerance, atol=1e-7)


def test_draws_follow_the_distribution():
    noise = torch.randn(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = StudentT4(torch.ones_like(noise), 3.0).transform(noise)
    assert kstest(draws, t(4, loc=1, scale=3).cdf).pvalue > 0.01
