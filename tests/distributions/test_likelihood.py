"""The sum over observed entries against the densities one by one."""

import pytest
import torch
from scipy.stats import norm
from torch.distributions import Bernoulli, Normal

from lightning_modules.distributions.likelihood import masked_log_likelihood


def observations():
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(4, 5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    shared = torch.tensor([-0.7], dtype=torch.float64, requires_grad=True)
    each = torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True)
    return {
        "unit": (Normal(output, 1.0, validate_args=False), [output]),
        "shared": (Normal(output, shared.exp(), validate_args=False), [output, shared]),
        "each": (Normal(output, each.exp(), validate_args=False), [output, each]),
        "bernoulli": (Bernoulli(logits=output, validate_args=False), [output]),
    }


@pytest.mark.parametrize("name", ["unit", "shared", "each", "bernoulli"])
@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_equals_the_sum_of_densities(name, rate):
    observation, parameters = observations()[name]
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(4, 5, 6, dtype=torch.float64, generator=generator).round()
    mask = torch.rand(4, 5, 6, generator=generator) < rate
    actual = masked_log_likelihood(observation, values, mask)
    expected = torch.where(mask, observation.log_prob(values), 0.0).sum((1, 2))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weight = torch.arange(1.0, 5.0, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((each * weight).sum(), parameters, retain_graph=True) for each in (actual, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_equals_scipy():
    observation, _ = observations()["shared"]
    values = torch.linspace(-2, 2, 120, dtype=torch.float64).view(4, 5, 6)
    expected = norm.logpdf(values.numpy(), observation.loc.detach().numpy(), observation.scale.detach().numpy())
    actual = masked_log_likelihood(observation, values, torch.ones(4, 5, 6, dtype=torch.bool))
    torch.testing.assert_close(actual, torch.from_numpy(expected.sum((1, 2))))
