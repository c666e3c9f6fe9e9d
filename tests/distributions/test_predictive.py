"""What a latent-variable model says of a value: against the closed forms of a linear decoder."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Bernoulli, Normal

from lightning_modules.distributions.predictive import DiagonalGaussian, LatentPredictive

SLOPE, NOISE = 1.5, 0.4
MEAN, SCALE = 0.7, 0.8  # of the posterior
ROWS = torch.arange(4000)


def linear():
    """z ~ N(0.7, 0.8^2) and x | z ~ N(1.5 z, 0.4^2), hence x ~ N(1.05, 1.2^2 + 0.4^2), for each of 4,000 rows."""
    shape = (len(ROWS), 2, 3)
    posterior = DiagonalGaussian(torch.full(shape, MEAN).double(), torch.full(shape, SCALE).double())
    return LatentPredictive(posterior, lambda latent: Normal(SLOPE * latent, NOISE))


MARGINAL = norm(SLOPE * MEAN, math.hypot(SLOPE * SCALE, NOISE))


def test_draws_have_the_marginal_of_latent_and_observation():
    predictive = linear()
    assert torch.allclose(predictive.mean, torch.tensor(SLOPE * MEAN).double())
    for given in ({"rows": ROWS}, {"generator": torch.Generator().manual_seed(0)}):
        draws = predictive.sample(20, **given).numpy()
        assert draws.shape == (20, len(ROWS), 2, 3)
        assert draws.mean() == pytest.approx(MARGINAL.mean(), abs=0.01)
        assert draws.std() == pytest.approx(MARGINAL.std(), rel=0.01)
        levels = [0.05, 0.25, 0.75, 0.95]
        np.testing.assert_allclose(np.quantile(draws, levels), MARGINAL.ppf(levels), atol=0.02)
        # Of one row the draws are as far apart as those of several: each has a latent of its own.
        assert draws.std(0, ddof=1).mean() == pytest.approx(MARGINAL.std(), rel=0.03)


@pytest.mark.parametrize("value", [-1.0, 1.05, 3.0])
def test_densities_of_one_latent_and_averaged_over_many(value):
    predictive = linear()
    values = torch.full((len(ROWS), 2, 3), value).double()
    one = predictive.log_prob(values, rows=ROWS)
    # E[log N(x; 1.5 z, 0.4^2)] over z.
    spread = (value - SLOPE * MEAN) ** 2 + (SLOPE * SCALE) ** 2
    expected = -0.5 * math.log(2 * math.pi * NOISE**2) - spread / (2 * NOISE**2)
    assert one.mean().item() == pytest.approx(expected, abs=5 * one.std().item() / math.sqrt(one.numel()))
    many = predictive.log_mixture(values, 500, rows=ROWS)
    assert many.exp().mean().item() == pytest.approx(MARGINAL.pdf(value), rel=0.02)
    assert many.median().item() == pytest.approx(MARGINAL.logpdf(value), abs=0.05)
    torch.testing.assert_close(predictive.log_mixture(values, 1, rows=ROWS), one, rtol=0, atol=0)


def test_draws_of_a_bernoulli_are_zeros_and_ones_of_its_probability():
    posterior = DiagonalGaussian(torch.zeros(4000, 1, 1), torch.ones(4000, 1, 1))
    predictive = LatentPredictive(posterior, lambda latent: Bernoulli(logits=2 * latent + 1))
    draws = predictive.sample(10, rows=ROWS)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    grid = np.linspace(-8, 8, 4001)
    expected = np.trapezoid(norm.pdf(grid) / (1 + np.exp(-(2 * grid + 1))), grid)
    assert draws.mean().item() == pytest.approx(expected, abs=0.01)
