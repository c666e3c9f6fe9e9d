"""Schedules against their closed forms in numpy."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_modules.processes import schedules


def test_csdi_schedule():
    betas = schedules.quadratic(50, 1e-4, 0.5)
    expected = np.array([(0.01 + (np.sqrt(0.5) - 0.01) * t / 49) ** 2 for t in range(50)])
    assert betas.dtype == torch.float64
    np.testing.assert_allclose(betas, expected, rtol=1e-12)
    np.testing.assert_allclose(schedules.alphas_cumprod(betas), np.cumprod(1 - expected), rtol=1e-12)


def test_ddpm_schedule_ends_at_the_noise_that_its_paper_gives():
    betas = schedules.linear(1000, 1e-4, 0.02)
    np.testing.assert_allclose(betas, 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999, rtol=1e-12)
    cumprod = schedules.alphas_cumprod(betas)
    np.testing.assert_allclose(cumprod, np.exp(np.cumsum(np.log1p(-betas.numpy()))), rtol=1e-10)
    assert cumprod[-1].item() == pytest.approx(4.036e-5, rel=1e-3)  # q(x_T | x_0) is all but standard normal


@pytest.mark.parametrize("num_steps", [1, 50, 1000])
def test_cosine_schedule(num_steps):
    betas = schedules.cosine(num_steps)
    cumprod = schedules.alphas_cumprod(betas)
    time = (np.arange(num_steps + 1) / num_steps + 0.008) / 1.008
    signal = np.cos(time * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    uncut = betas.numpy() < 0.999
    assert not uncut[-1]  # the last step would leave no signal at all
    assert uncut[:-1].all()
    np.testing.assert_allclose(cumprod[:-1], signal[1:-1], rtol=1e-9)
    assert betas[-1].item() == 0.999


def test_a_schedule_of_one_step_starts_at_its_start():
    assert schedules.linear(1, 0.1, 0.3).tolist() == [0.1]
    assert schedules.quadratic(1, 0.25, 0.3).tolist() == [0.25]


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.quadratic])
@pytest.mark.parametrize(("arguments", "message"), [
    ((0, 0.1, 0.2), "num_steps=0"), ((5, 0.0, 0.2), "beta_start=0.0"), ((5, 0.3, 0.2), "start <= end"),
    ((5, 0.1, 1.0), "beta_end=1.0"),
])  # fmt: skip
def test_bad_arguments_are_named(schedule, arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule(*arguments)


@pytest.mark.parametrize("arguments", [(0,), (5, -0.1), (5, 0.008, 1.0)])
def test_bad_arguments_of_the_cosine_are_named(arguments):
    with pytest.raises(ValueError, match="a cosine schedule needs"):
        schedules.cosine(*arguments)


def test_scaled_linear_schedule():
    np.testing.assert_allclose(schedules.scaled_linear(1000), schedules.linear(1000, 1e-4, 0.02), rtol=1e-12)
    betas = schedules.scaled_linear(100)
    np.testing.assert_allclose(betas, 1e-3 + (0.2 - 1e-3) * np.arange(100) / 99, rtol=1e-12)
    with pytest.raises(ValueError, match=r"num_steps=20: .* choose cosine"):
        schedules.scaled_linear(20)
    assert schedules.scaled_linear(21)[-1] < 1


@pytest.mark.parametrize("num_steps", [1, 2, 100, 1000])
def test_strided_steps(num_steps):
    assert schedules.strided_steps(num_steps, num_steps).tolist() == list(range(num_steps))
    assert schedules.strided_steps(num_steps, 1).tolist() == [num_steps - 1]
    for count in {2, 7, 50, 99} & set(range(num_steps)):
        steps = schedules.strided_steps(num_steps, count)
        assert steps.dtype == torch.int64
        assert len(steps) == count
        assert (steps[0], steps[-1]) == (0, num_steps - 1)
        stride = (num_steps - 1) / (count - 1)
        np.testing.assert_allclose(steps, stride * np.arange(count), atol=0.5 + 1e-9)
    for count in (0, num_steps + 1):
        with pytest.raises(ValueError, match=f"count={count}: choose between 1 and all num_steps={num_steps}"):
            schedules.strided_steps(num_steps, count)


def test_some_steps_of_a_process_are_a_process():
    """The betas of the strided process, as products of the alphas between its steps."""
    betas = schedules.cosine(100)
    steps = schedules.strided_steps(100, 10)
    table = schedules.alphas_cumprod(betas)[steps].numpy()
    edges = [0, *(steps + 1).tolist()]
    expected = [np.prod(1 - betas[a:b].numpy()) for a, b in pairwise(edges)]
    np.testing.assert_allclose(table / np.concatenate([[1.0], table[:-1]]), expected, rtol=1e-12)
