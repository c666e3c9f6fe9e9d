"""The diffusion process against step-by-step simulation, Bayes' rule on a grid of matrices, and numpy."""

import numpy as np
import pytest
import torch

from lightning_modules.processes.gaussian import posterior_mean_variance, predict_start_from_noise, q_sample
from lightning_modules.processes.schedules import alphas_cumprod, cosine, linear, quadratic

BETAS = [quadratic(50, 1e-4, 0.5), linear(20, 0.01, 0.3), cosine(30)]


@pytest.mark.parametrize("betas", BETAS)
def test_q_sample_has_the_moments_of_the_steps_one_after_the_other(betas):
    mean, variance = 1.0, 0.0  # of x_t for x_0 = 1, by the definition of q(x_t | x_{t-1})
    for t, beta in enumerate(betas.tolist()):
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        ones, zeros = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        step, table = torch.tensor([t]), alphas_cumprod(betas)
        # The formula is linear in x_0 and in the noise: its two coefficients are the mean and the scale.
        np.testing.assert_allclose(q_sample(ones, zeros, table, step).item(), mean, rtol=1e-10)
        np.testing.assert_allclose(q_sample(zeros, ones, table, step).item() ** 2, variance, rtol=1e-10)


def test_moments_of_many_draws():
    torch.manual_seed(0)
    table = alphas_cumprod(quadratic(50, 1e-4, 0.5))
    step = torch.tensor([0, 20, 49])
    start = torch.tensor([2.0, -1.0, 3.0])[:, None].expand(3, 200_000)
    noisy = q_sample(start, torch.randn(start.shape), table, step)
    standard_deviation = (1 - table[step]).sqrt()
    error = 5 * standard_deviation / np.sqrt(200_000)
    assert ((noisy.mean(1) - table[step].sqrt() * start[:, 0]).abs() < error).all()
    torch.testing.assert_close(noisy.std(1).double(), standard_deviation, rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("betas", BETAS[:2])
def test_the_start_is_found_again_from_the_noise(betas, dtype):
    torch.manual_seed(1)
    steps = torch.arange(len(betas))
    start, noise = torch.randn(2, len(betas), 7, 3, dtype=dtype).unbind()
    table = alphas_cumprod(betas)
    noisy = q_sample(start, noise, table, steps)
    assert noisy.dtype == dtype
    tolerance = 1e-3 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(predict_start_from_noise(noisy, noise, table, steps), start, rtol=0, atol=tolerance)


@pytest.mark.parametrize("betas", BETAS)
def test_the_posterior_is_the_conditional_of_the_joint_gaussian(betas):
    """The joint covariance of x_1 .. x_T given x_0, built from the steps, conditioned on x_t by matrix algebra."""
    count, betas_numpy = len(betas), betas.numpy()
    table = alphas_cumprod(betas)
    # x = A x_prev + noise for all steps at once: (I - shift) x = first * x_0 + scale * noise.
    system = np.eye(count) - np.diag(np.sqrt(1 - betas_numpy[1:]), -1)
    inverse = np.linalg.inv(system)
    mean_of_one = inverse[:, 0] * np.sqrt(1 - betas_numpy[0])  # mean of x_1..x_T for x_0 = 1
    covariance = inverse @ np.diag(betas_numpy) @ inverse.T
    start, noisy = 0.7, -1.3
    shape = (count, 1)
    mean, variance = posterior_mean_variance(
        torch.full(shape, start, dtype=torch.float64), torch.full(shape, noisy, dtype=torch.float64), table,
        torch.arange(count),
    )  # fmt: skip
    assert mean[0].item() == pytest.approx(start, rel=1e-12)
    assert variance[0].item() == 0
    for t in range(1, count):
        gain = covariance[t - 1, t] / covariance[t, t]
        expected = mean_of_one[t - 1] * start + gain * (noisy - mean_of_one[t] * start)
        np.testing.assert_allclose(mean[t].item(), expected, rtol=1e-7)
        np.testing.assert_allclose(
            variance[t].item(), covariance[t - 1, t - 1] - gain * covariance[t - 1, t], rtol=1e-6
        )


def test_one_reverse_step_equals_the_update_in_terms_of_the_noise():
    """Algorithm 2 of Ho et al. in numpy: (x - beta / sqrt(1 - abar) eps) / sqrt(alpha)."""
    torch.manual_seed(2)
    betas = quadratic(50, 1e-4, 0.5)
    table = alphas_cumprod(betas)
    noisy, noise = torch.randn(2, 4, 5, 50, 3).unbind()
    noisy, noise = noisy.movedim(2, 0), noise.movedim(2, 0)  # [step, 4, 5, 3]
    steps = torch.arange(50)
    start = predict_start_from_noise(noisy, noise, table, steps)
    mean, variance = posterior_mean_variance(start, noisy, table, steps)
    beta, abar = betas.numpy(), table.numpy()
    for t in range(50):
        expected = (noisy[t].numpy() - beta[t] / np.sqrt(1 - abar[t]) * noise[t].numpy()) / np.sqrt(1 - beta[t])
        np.testing.assert_allclose(mean[t], expected, atol=2e-6, rtol=1e-5)
        if t > 0:
            assert variance[t].item() == pytest.approx(beta[t] * (1 - abar[t - 1]) / (1 - abar[t]), rel=1e-6)


def test_a_step_of_all_and_a_step_of_each():
    table = alphas_cumprod(linear(10, 0.1, 0.2))
    start, noise = torch.randn(2, 3, 4, 5).unbind()
    each, every = torch.tensor([6, 6, 6]), torch.tensor([6])
    torch.testing.assert_close(q_sample(start, noise, table, each), q_sample(start, noise, table, every))
    torch.testing.assert_close(
        posterior_mean_variance(start, noise, table, each)[0], posterior_mean_variance(start, noise, table, every)[0]
    )
