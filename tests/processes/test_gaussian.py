"""The diffusion process against step-by-step simulation, Bayes' rule on a grid of matrices, and numpy."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from lightning_modules.processes.gaussian import (
    bound_term,
    discretised_log_likelihood,
    learned_log_variance,
    posterior_mean_variance,
    predict_start_from_noise,
    q_sample,
    reverse_coefficients,
    reverse_mean,
    reverse_step,
)
from lightning_modules.processes.schedules import (
    alphas_cumprod,
    cosine,
    linear,
    quadratic,
    scaled_linear,
    strided_steps,
)

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


TABLES = [*map(alphas_cumprod, BETAS), alphas_cumprod(cosine(1000))[strided_steps(1000, 12)]]


@pytest.mark.parametrize("table", TABLES)
def test_reverse_steps_are_the_posterior_of_the_predicted_start(table):
    torch.manual_seed(3)
    steps = torch.arange(len(table))
    noisy, predicted, noise = torch.randn(3, len(table), 4, 2, dtype=torch.float64).unbind()
    start = predict_start_from_noise(noisy, predicted, table, steps)
    mean, variance = posterior_mean_variance(start, noisy, table, steps)
    signal = table.numpy()
    beta = torch.from_numpy(1 - signal[1:] / signal[:-1])[:, None, None]
    for kind, added in (("small", variance[1:]), ("large", beta)):
        step = reverse_step(noisy, predicted, noise, reverse_coefficients(table, kind), steps)
        torch.testing.assert_close(step[0], start[0], rtol=1e-9, atol=1e-9)  # t = 0 adds no noise
        torch.testing.assert_close(step[1:], mean[1:] + added.sqrt() * noise[1:], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("table", TABLES)
def test_without_noise_a_reverse_step_undoes_a_forward_one(table):
    """If the predicted noise is the true one, x_{t-1} has the same start and the same noise (DDIM)."""
    torch.manual_seed(4)
    steps = torch.arange(1, len(table))
    start, noise, unused = torch.randn(3, len(steps), 5, dtype=torch.float64).unbind()
    noisy = q_sample(start, noise, table, steps)
    coefficients = reverse_coefficients(table, "zero")
    before = reverse_step(noisy, noise, unused, coefficients, steps)
    torch.testing.assert_close(before, q_sample(start, noise, table, steps - 1), rtol=1e-7, atol=1e-7)
    first = torch.zeros_like(steps)
    noisy = q_sample(start, noise, table, first)
    torch.testing.assert_close(reverse_step(noisy, noise, unused, coefficients, first), start, rtol=1e-9, atol=1e-9)
    assert reverse_step(noisy.float(), noise.float(), unused.float(), coefficients, first).dtype == torch.float32


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize(("kind", "count", "tolerance"), [
    ("large", 1000, 0.02), ("small", 1000, 0.02), ("zero", 1000, 0.02), ("zero", 100, 0.05), ("small", 100, 0.1),
])  # fmt: skip
def test_normal_data_come_out_of_the_sampler_with_their_variance(kind, count, tolerance, scale):
    """With the noise that is best predicted for normal data, all steps are linear: their variance is a recursion."""
    table = alphas_cumprod(cosine(1000))[strided_steps(1000, count)]
    variance = 1.0
    for signal, (a, b, c) in reversed(
        list(zip(table.tolist(), reverse_coefficients(table, kind).tolist(), strict=True))
    ):
        predicted = np.sqrt(1 - signal) / (signal * scale**2 + 1 - signal)  # E[noise | x_t] / x_t
        variance = (a + b * predicted) ** 2 * variance + c**2
    assert np.sqrt(variance) == pytest.approx(scale, rel=tolerance)


def test_another_reverse_variance_is_refused():
    with pytest.raises(ValueError, match="variance='medium': choose one of large, small, zero"):
        reverse_coefficients(TABLES[0], "medium")


# ---- the learnt variance and the variational bound

VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def log_probability(values, mean, scale):
    """Of 8-bit values: the interval's probability, from that tail which does not cancel, at least 1e-12."""
    places = np.round((np.asarray(values, dtype=float) + 1) * 127.5)
    lower = np.where(places == 0, -np.inf, (places - 0.5) / 127.5 - 1)
    upper = np.where(places == 255, np.inf, (places + 0.5) / 127.5 - 1)
    normal = stats.norm(mean, scale)
    share = np.where(lower > mean, normal.sf(lower) - normal.sf(upper), normal.cdf(upper) - normal.cdf(lower))
    return np.log(np.maximum(share, 1e-12))


@pytest.mark.parametrize("table", TABLES)
def test_the_learnt_variance_lies_between_its_bounds(table):
    steps = torch.arange(len(table))
    signal = table.numpy()
    beta = 1 - signal / np.concatenate([[1.0], signal[:-1]])
    small = beta[1:] * (1 - signal[:-1]) / (1 - signal[1:])
    small = np.concatenate([small[:1], small])  # at t = 0 there is none: that of t = 1
    for fraction in (-1.0, -0.4, 0.0, 1.0, 1.7):
        expected = (fraction + 1) / 2 * np.log(beta) + (1 - fraction) / 2 * np.log(small)
        found = learned_log_variance(torch.full((len(table), 2, 3), fraction), table, steps)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, np.tile(expected[:, None, None], (1, 2, 3)), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("scale", [0.01, 0.3, 0.99])
def test_the_best_variance_for_normal_data_lies_between_the_bounds(scale):
    """Nichol and Dhariwal's reason for the bounds: Var(x_{t-1} | x_t) by conditioning, for data of variance <= 1."""
    table = alphas_cumprod(scaled_linear(100))
    before, after = table[:-1], table[1:]
    variances = [1 - signal + signal * scale**2 for signal in (before, after)]
    alpha = after / before
    best = variances[0] - alpha * variances[0] ** 2 / variances[1]
    steps = torch.arange(1, 100)
    small, large = (learned_log_variance(torch.full((99,), side).double(), table, steps).exp() for side in (-1.0, 1.0))
    assert (small < best).all()
    assert (best < large).all()


def test_the_mean_of_a_reverse_step_with_the_start_kept_in_its_range():
    torch.manual_seed(5)
    table = alphas_cumprod(scaled_linear(50))
    steps = torch.arange(50)
    noisy, noise = torch.randn(2, 50, 4, 3, dtype=torch.float64).unbind()
    before = torch.cat([torch.ones(1, dtype=torch.float64), table[:-1]])
    signal, last, alpha = (each[:, None, None].numpy() for each in (table, before, table / before))
    for clip in (False, True):
        start = (noisy.numpy() - np.sqrt(1 - signal) * noise.numpy()) / np.sqrt(signal)
        assert (np.abs(start) > 1).any()
        start = np.clip(start, -1, 1) if clip else start
        expected = np.sqrt(last) * (1 - alpha) * start + np.sqrt(alpha) * (1 - last) * noisy.numpy()
        found = reverse_mean(noisy, noise, table, steps, clip)
        np.testing.assert_allclose(found, expected / (1 - signal), rtol=1e-9, atol=1e-9)
    assert (reverse_mean(noisy, noise, table, torch.zeros_like(steps), clip=True).abs() <= 1).all()


def test_terms_of_the_bound_are_divergences_and_the_first_a_likelihood():
    torch.manual_seed(6)
    table = alphas_cumprod(scaled_linear(50))
    steps = torch.tensor([0, 1, 7, 49, 0, 30])
    start = VALUES[torch.randint(256, (6, 3, 2, 2))]
    noisy, mean = torch.randn(2, 6, 3, 2, 2, dtype=torch.float64).unbind()
    log_variance = torch.randn(6, 3, 2, 2, dtype=torch.float64) - 2
    found = bound_term(start, noisy, mean, log_variance, table, steps)
    assert found.shape == (6,)
    for row, t in enumerate(steps.tolist()):
        model = Normal(mean[row], (log_variance[row] / 2).exp())
        if t == 0:
            expected = -log_probability(start[row], mean[row].numpy(), (log_variance[row] / 2).exp().numpy())
        else:
            before, beta = table[t - 1], 1 - table[t] / table[t - 1]
            true_mean = before.sqrt() * beta * start[row] + (1 - beta).sqrt() * (1 - before) * noisy[row]
            truth = Normal(true_mean / (1 - table[t]), (beta * (1 - before) / (1 - table[t])).sqrt())
            expected = kl_divergence(truth, model)
        assert found[row].item() == pytest.approx(expected.mean().item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("mean", "scale"), [(0.1, 0.3), (-0.97, 0.02), (1.0, 0.004), (2.5, 1.0), (-1.4, 0.2)])
def test_the_256_values_share_the_whole_probability(mean, scale, dtype):
    values, log_variance = VALUES.to(dtype), torch.full((256,), 2 * np.log(scale), dtype=dtype)
    found = discretised_log_likelihood(values, torch.full((256,), mean, dtype=dtype), log_variance)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5 if dtype == torch.float32 else 1e-9)
    tolerance = 2e-3 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(found, log_probability(VALUES, mean, scale), rtol=0, atol=tolerance)


@pytest.mark.parametrize("distance", [0.0, 0.5, 50.0])
def test_gradients_of_the_bound_are_finite_at_all_steps(distance):
    table = alphas_cumprod(scaled_linear(1000))
    steps = torch.tensor([0, 0, 0, 1, 500, 999])
    start = VALUES.float()[torch.tensor([0, 128, 255, 0, 128, 255])][:, None]
    mean = (start + distance).requires_grad_()
    fraction = torch.linspace(-2, 2, 6)[:, None].requires_grad_()
    log_variance = learned_log_variance(fraction, table, steps)
    terms = bound_term(start, start.clone(), mean, log_variance, table, steps)
    assert terms.isfinite().all()
    terms.sum().backward()
    assert mean.grad.isfinite().all()
    assert fraction.grad.isfinite().all()
    assert (fraction.grad[3:] != 0).all()


def test_the_terms_of_the_best_reverse_process_add_up_to_the_entropy():
    """Normal data have normal reverse steps: the bound is then tight but for the last step's distance to N(0, 1).

    Expectations over the data are sums over the 256 values, those over the noise Gauss-Hermite sums: nothing is drawn.
    """
    centre, scale = 0.05, 0.2
    table = alphas_cumprod(linear(12, 0.02, 0.3))
    edges = (np.arange(257) - 0.5) / 127.5 - 1
    edges[[0, -1]] = -np.inf, np.inf
    share = np.diff(stats.norm.cdf(edges, centre, scale))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    start = VALUES[:, None].expand(-1, 60).reshape(-1, 1)
    noise = torch.from_numpy(nodes).expand(256, -1).reshape(-1, 1)
    weight = torch.from_numpy(share[:, None] * weights).flatten()
    total = 0.0
    for t, signal in enumerate(table.tolist()):
        before = table[t - 1].item() if t else 1.0
        alpha = signal / before
        step = torch.full((len(start),), t)
        noisy = q_sample(start, noise, table, step)
        # x_{t-1} given x_t, both normal: the usual formulas of conditioning.
        variance_before, variance = (each * scale**2 + 1 - each for each in (before, signal))
        gain = np.sqrt(alpha) * variance_before / variance
        mean = np.sqrt(before) * centre + gain * (noisy - np.sqrt(signal) * centre)
        best = variance_before - gain * np.sqrt(alpha) * variance_before
        log_variance = torch.full_like(mean, np.log(best))
        total += (weight * bound_term(start, noisy, mean, log_variance, table, step)).sum().item()
    last = Normal(np.sqrt(signal) * centre, torch.tensor(1 - signal + signal * scale**2).sqrt())
    # From q(x_T | x_0) to N(0, 1) on average over the data, which the terms leave out.
    given = Normal(np.sqrt(signal) * VALUES, torch.tensor(1 - signal).sqrt())
    prior = (kl_divergence(given, Normal(0.0, 1.0)) * torch.from_numpy(share)).sum().item()
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert prior > 0.005
    expected = entropy + kl_divergence(last, Normal(0.0, 1.0)).item()
    assert total + prior == pytest.approx(expected, abs=2e-4)
