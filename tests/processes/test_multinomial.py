"""The multinomial process against transition matrices and log-space formulas of one column after the other in numpy."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import chisquare

from lightning_modules.processes import multinomial
from lightning_modules.processes.schedules import alphas_cumprod, cosine, scaled_linear, strided_steps
from lightning_modules.processes.segments import Segments

SIZES = [3, 1, 7, 2]
TABLES = {
    "one step": alphas_cumprod(cosine(1)),
    "cosine": alphas_cumprod(cosine(12)),
    "long": alphas_cumprod(cosine(1000)),
    "linear": alphas_cumprod(scaled_linear(50)),
    "strided": alphas_cumprod(cosine(1000))[strided_steps(1000, 9)],
}


def pieces(values, sizes):
    """The columns' parts of a numpy vector, one after the other."""
    return np.split(np.asarray(values, dtype=np.float64), np.cumsum(sizes)[:-1])


def problem(table, sizes=SIZES, rows=60, scale=3.0, seed=0):
    """Logits, x_0, x_t and steps, among them the first and the last."""
    torch.manual_seed(seed)
    segments = Segments(sizes)
    step = torch.randint(len(table), (rows,))
    step[: rows // 4], step[-5:] = 0, len(table) - 1
    start = multinomial.uniform_sample(rows, segments)
    noisy = multinomial.q_sample(start, table, step, segments)
    noisy[:5] = multinomial.uniform_sample(min(5, rows), segments)  # at t = 0, too, x_t may differ from x_0
    logits = scale * torch.randn(rows, sum(sizes), dtype=torch.float64)
    return segments, logits, start, noisy, step


def log_add(a, b):
    return np.logaddexp(a, b)


def log_posterior(log_start, noisy, betas, t):
    """log q(x_{t-1} | x_t, x_0) of one column in log space, from log x_0: x_0 itself where there is no earlier step."""
    size, log_alpha, log_beta = len(log_start), np.log1p(-betas[t]), np.log(betas[t])
    log_noisy = np.full(size, np.log(1e-30))
    log_noisy[noisy] = 0.0
    before = log_start
    if t > 0:
        log_signal = np.log1p(-betas[:t]).sum()
        before = log_add(log_start + log_signal, np.log(-np.expm1(log_signal)) - np.log(size))
    unnormalised = before + log_add(log_noisy + log_alpha, log_beta - np.log(size))
    return unnormalised - logsumexp(unnormalised)


def betas_of(table):
    table = table.numpy()
    return 1 - table / np.concatenate([[1.0], table[:-1]])


def reference_kl(table, sizes, logits, start, noisy, step):
    """KL, or at t = 0 the decoder's term, summed over columns, all in log space."""
    betas, result = betas_of(table), np.zeros(len(start))
    for row, t in enumerate(step.tolist()):
        for column, part in enumerate(pieces(logits[row], sizes)):
            log_start = np.full(len(part), np.log(1e-30))
            log_start[start[row, column]] = 0.0
            model = log_posterior(log_softmax(part), noisy[row, column].item(), betas, t)
            if t == 0:
                result[row] -= model[start[row, column]]
            else:
                true = log_posterior(log_start, noisy[row, column].item(), betas, t)
                result[row] += (np.exp(true) * (true - model)).sum()
    return result


@pytest.mark.parametrize("name", TABLES)
def test_kl_is_that_of_the_log_space_formulas(name):
    segments, logits, start, noisy, step = problem(TABLES[name])
    expected = reference_kl(TABLES[name], SIZES, logits, start, noisy, step)
    actual = multinomial.posterior_kl(logits, start, noisy, TABLES[name], step, segments)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)
    short = multinomial.posterior_kl(logits.float(), start, noisy, TABLES[name], step, segments)
    assert short.dtype == torch.float32
    np.testing.assert_allclose(short, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", TABLES)
def test_gradient_is_the_closed_form(name):
    """d KL / d logit_k = g_k - p_k sum_j g_j with g_j = (signal p_j / f_j) (p's posterior_j - q's posterior_j)."""
    table = TABLES[name]
    segments, logits, start, noisy, step = problem(table, rows=24)
    for given_logits in (logits, logits.float()):
        given_logits.requires_grad_()
        multinomial.posterior_kl(given_logits, start, noisy, table, step, segments).sum().backward()
    betas, before = betas_of(table), np.concatenate([[1.0], table.numpy()])
    for row, t in enumerate(step.tolist()):
        expected = []
        for column, part in enumerate(pieces(logits[row].detach(), SIZES)):
            p, size = softmax(part), len(part)
            f = before[t] * p + (1 - before[t]) / size
            with np.errstate(divide="ignore"):
                true = np.exp(log_posterior(np.log(np.eye(size)[start[row, column]]), noisy[row, column], betas, t))
            model = np.exp(log_posterior(np.log(p), noisy[row, column], betas, t))
            g = before[t] * p / f * (model - true)
            expected.append(g - p * g.sum())
        expected = np.concatenate(expected)
        np.testing.assert_allclose(logits.grad[row], expected, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(given_logits.grad[row], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", TABLES)
def test_posterior_is_bayes_rule_on_transition_matrices(name):
    table = TABLES[name]
    segments, logits, _, noisy, step = problem(table)
    probabilities = segments.log_softmax(logits).exp()
    actual = multinomial.posterior(probabilities, noisy, table, step, segments)
    np.testing.assert_allclose(segments.sum(actual), 1.0, rtol=1e-12)
    betas = betas_of(table)
    for row in range(0, 60, 5):
        t = step[row].item()
        for column, (part, result) in enumerate(
            zip(pieces(logits[row], SIZES), pieces(actual[:, row], SIZES), strict=True)
        ):
            size = len(part)
            steps = [(1 - beta) * np.eye(size) + beta / size for beta in betas[: t + 1]]
            joint = reduce(np.matmul, steps[:t], softmax(part)) * steps[t][:, noisy[row, column]]  # over x_{t-1}
            np.testing.assert_allclose(result, joint / joint.sum(), rtol=1e-9, atol=1e-14)


def test_kl_is_zero_where_the_model_is_right_and_grows_by_itself():
    table, segments = TABLES["long"], Segments(SIZES)
    _, _, start, noisy, step = problem(table, rows=200)
    right = 200.0 * segments.one_hot(start)  # a softmax that is 1 at x_0 but for e^-200
    assert multinomial.posterior_kl(right, start, noisy, table, step, segments).abs().max() < 2e-6
    assert (multinomial.posterior_kl(right.flip(0), start, noisy, table, step, segments) > -2e-6).all()
    ones = Segments([1, 1])
    zeros = torch.zeros(200, 2, dtype=torch.int64)
    assert multinomial.posterior_kl(torch.randn(200, 2), zeros, zeros, table, step, ones).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("sizes", [[2, 3, 5, 500], [10_000, 2], [1, 1]])
def test_wide_columns_and_extreme_logits_stay_finite_and_exact(sizes, scale):
    table = TABLES["long"]
    segments, logits, start, noisy, step = problem(table, sizes, rows=32, scale=scale / 3)
    expected = reference_kl(table, sizes, logits, start, noisy, step)
    logits = logits.float().requires_grad_()
    loss = multinomial.posterior_kl(logits, start, noisy, table, step, segments)
    np.testing.assert_allclose(loss.detach(), expected, rtol=2e-5, atol=2e-5)
    loss.sum().backward()
    assert logits.grad.isfinite().all()
    columns = segments.sum(logits.grad.t())  # a softmax does not see a constant
    assert columns.abs().max() < 1e-5
    if scale > 1 and max(sizes) > 1:  # a network that is sure of another category still learns from the last step
        assert logits.grad[:8].abs().sum(1).min() > 0.5
    probabilities = segments.log_softmax(logits.detach()).exp()
    after = multinomial.posterior(probabilities, noisy, table, step, segments)
    torch.testing.assert_close(segments.sum(after), torch.ones(len(sizes), 32), rtol=0, atol=1e-5)
    segments.check(multinomial.reverse_step(logits.detach(), noisy, table, step, segments))


def test_half_precision_logits_are_computed_in_float32():
    segments, logits, start, noisy, step = problem(TABLES["long"])
    arguments = (start, noisy, TABLES["long"], step, segments)
    short = logits.bfloat16()
    expected = multinomial.posterior_kl(short.float(), *arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(multinomial.posterior_kl(short, *arguments), expected)


def test_steps_of_each_row_or_of_all():
    segments, logits, start, noisy, _ = problem(TABLES["cosine"])
    each, every = torch.full((60,), 4), torch.tensor([4])
    kl = [multinomial.posterior_kl(logits, start, noisy, TABLES["cosine"], t, segments) for t in (each, every)]
    torch.testing.assert_close(*kl)
    draws = [
        multinomial.reverse_step(logits, noisy, TABLES["cosine"], t, segments, torch.Generator().manual_seed(1))
        for t in (each, every)
    ]
    assert torch.equal(*draws)


def test_prior_kl_is_that_of_each_column():
    for table in TABLES.values():
        signal, expected = table[-1].item(), 0.0
        for size in SIZES:
            law = np.full(size, (1 - signal) / size)
            law[0] += signal
            expected += (law * np.log(law * size)).sum()
        assert multinomial.prior_kl(table, Segments(SIZES)).item() == pytest.approx(expected, rel=1e-6, abs=1e-15)
    assert multinomial.prior_kl(TABLES["long"], Segments([2, 42])).item() < 1e-12


def uniformly_distributed(draws, probabilities):
    """Whether int64 draws follow the probabilities: a chi-square test, failed by chance once in 10^4."""
    counts = np.bincount(draws, minlength=len(probabilities))
    possible = np.asarray(probabilities) > 0
    assert not counts[~possible].any()
    return possible.sum() == 1 or chisquare(counts[possible], len(draws) * probabilities[possible]).pvalue > 1e-4


@pytest.mark.parametrize("t", [0, 5, 11])
def test_forward_draws_have_the_moments_of_the_steps_one_after_the_other(t):
    table, segments = TABLES["cosine"], Segments([3, 1, 7])
    start = torch.tensor([[2, 0, 4]]).expand(100_000, 3)
    generator = torch.Generator().manual_seed(t)
    noisy = multinomial.q_sample(start, table, torch.tensor([t]), segments, generator).numpy()
    for column, size in enumerate([3, 1, 7]):
        law = np.eye(size)[start[0, column]]
        for beta in betas_of(table)[: t + 1]:
            law = (1 - beta) * law + beta / size
        assert uniformly_distributed(noisy[:, column], law / law.sum())
    if t == 11:  # nothing is left of x_0
        np.testing.assert_allclose(law, 1 / 7, atol=1e-3)


def test_no_noise_keeps_and_no_signal_is_uniform():
    segments = Segments([4, 9])
    start = multinomial.uniform_sample(20_000, segments, torch.Generator().manual_seed(0))
    step = torch.tensor([0])
    assert torch.equal(multinomial.q_sample(start, torch.ones(1, dtype=torch.float64), step, segments), start)
    lost = multinomial.q_sample(
        torch.zeros_like(start), torch.zeros(1, dtype=torch.float64), step, segments, torch.Generator().manual_seed(1)
    ).numpy()
    assert uniformly_distributed(lost[:, 0], np.full(4, 1 / 4))
    assert uniformly_distributed(lost[:, 1], np.full(9, 1 / 9))


@pytest.mark.parametrize("t", [0, 6])
def test_reverse_draws_follow_the_posterior(t):
    table = TABLES["cosine"]
    segments, logits, _, noisy, _ = problem(table, rows=1, scale=1.0)
    step = torch.tensor([t])
    law = multinomial.posterior(segments.log_softmax(logits).exp(), noisy, table, step, segments)
    rows = 50_000
    draws = multinomial.reverse_step(
        logits.float().expand(rows, -1), noisy.expand(rows, -1), table, step, segments, torch.Generator().manual_seed(t)
    ).numpy()
    for column, part in enumerate(pieces(law[:, 0], SIZES)):
        assert uniformly_distributed(draws[:, column], part / part.sum())


def test_draws_are_exact_behind_a_wide_column():
    """A running sum in float32 is at 10^4 when it comes to the second column, and steps by 10^-3 there."""
    segments, rows = Segments([10_000, 3, 4]), 1_000
    weights = torch.cat([torch.ones(10_000), 1e-4 * torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 5.0, 0.0, 0.0])])
    draws = segments.draw(weights[:, None].expand(-1, rows), torch.Generator().manual_seed(2)).numpy()
    assert uniformly_distributed(draws[:, 0] // 1000, np.full(10, 0.1))
    assert uniformly_distributed(draws[:, 1], np.array([0.25, 0.0, 0.75]))
    assert (draws[:, 2] == 1).all()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 999),
)
def test_log_softmax_is_that_of_each_column(sizes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, sum(sizes), generator=generator)
    segments = Segments(sizes)
    actual = segments.log_softmax(logits)
    expected = np.stack([np.concatenate([log_softmax(part) for part in pieces(row, sizes)]) for row in logits.numpy()])
    np.testing.assert_allclose(actual.t(), expected, rtol=3e-7, atol=max(1e-6, 2e-7 * scale))
    np.testing.assert_allclose(segments.sum(actual.exp()), 1.0, atol=1e-5)
    wide = logits.double().requires_grad_()
    weight = torch.randn(sum(sizes), 3, generator=generator).double()
    (segments.log_softmax(wide) * weight).sum().backward()
    parts = zip(pieces(weight[:, 0], sizes), pieces(expected[0], sizes), strict=True)
    np.testing.assert_allclose(
        wide.grad[0], np.concatenate([w - np.exp(log_p) * w.sum() for w, log_p in parts]), atol=1e-5
    )


def test_encodings():
    segments = Segments([3, 1, 2])
    categories = torch.tensor([[2, 0, 0], [0, 0, 1]])
    one_hot = torch.tensor([[0.0, 0, 1, 1, 1, 0], [1, 0, 0, 1, 0, 1]])
    assert torch.equal(segments.one_hot(categories), one_hot)
    torch.testing.assert_close(segments.log_one_hot(categories), one_hot.clamp(min=1e-30).log())
    assert segments.log_one_hot(categories).min().item() == pytest.approx(-69.0776, abs=1e-4)
    assert not segments.state_dict()


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_columns_without_categories_are_refused(sizes):
    with pytest.raises(ValueError, match="number of categories of at least one column"):
        Segments(sizes)


def test_wrong_input_is_named():
    segments = Segments([3, 2])
    with pytest.raises(ValueError, match=r"logits have shape \(4, 6\): need \[batch, 5\]"):
        segments.log_softmax(torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"row 1, column 1: category 2 is not in 0..1"):
        segments.check(torch.tensor([[2, 1], [0, 2]]))
    with pytest.raises(ValueError, match=r"need \[batch, 2\]"):
        segments.check(torch.zeros(3, 1, dtype=torch.int64))
    segments.check(torch.tensor([[2, 1]]))


@pytest.mark.slow
def test_training_and_sampling_are_one_graph_each():
    """Nothing in them waits for a value: reading one would break the graph."""
    segments, logits, start, noisy, step = problem(TABLES["cosine"])
    arguments = (start, noisy, TABLES["cosine"], step, segments)
    kl = torch.compile(multinomial.posterior_kl, fullgraph=True, backend="eager")
    torch.testing.assert_close(kl(logits, *arguments), multinomial.posterior_kl(logits, *arguments))
    reverse = torch.compile(multinomial.reverse_step, fullgraph=True, backend="eager")
    segments.check(reverse(logits, noisy, TABLES["cosine"], step, segments))
