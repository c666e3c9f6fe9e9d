"""TensorFlow's Adam against its formula, and exact continuation."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_modules.networks.adam import TensorFlowAdam


def gradients(steps: int, scales: list[float], seed: int) -> np.ndarray:
    """[step, entry]: entries of very different size; near epsilon, its place in the formula matters."""
    return np.random.default_rng(seed).normal(size=(steps, len(scales))) * scales


def reference(
    start: np.ndarray, grads: np.ndarray, rates: list[float], eps: float, beta1: float = 0.9, beta2: float = 0.999
) -> np.ndarray:
    """[step, entry] float64 parameters after each step, by the formula."""
    theta, m, v, trace = start.copy(), np.zeros_like(start), np.zeros_like(start), []
    for t, (gradient, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        theta = theta - rate * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + eps)
        trace.append(theta)
    return np.array(trace)


def run(optimizer: torch.optim.Optimizer, parameter: Tensor, grads: np.ndarray) -> np.ndarray:
    trace = []
    for gradient in grads:
        parameter.grad = torch.from_numpy(gradient).to(parameter.dtype)
        optimizer.step()
        trace.append(parameter.detach().numpy().copy())
    return np.array(trace)


SCALES = [1e3, 1.0, 1e-4, 1e-7, 1e-8, 1e-9, 1e-12]


def test_equals_the_formula():
    grads = gradients(50, SCALES, seed=0)
    start = np.linspace(-1, 1, len(SCALES))
    parameter = torch.tensor(start, requires_grad=True)
    actual = run(TensorFlowAdam([parameter], lr=1e-2, eps=1e-8), parameter, grads)
    expected = reference(start, grads, [1e-2] * 50, eps=1e-8)
    np.testing.assert_allclose(actual - start, expected - start, rtol=1e-9, atol=1e-15)
    # torch's own form differs by far more where the gradient is near epsilon: the test can tell them apart.
    other = torch.tensor(start, requires_grad=True)
    usual = run(torch.optim.Adam([other], lr=1e-2, eps=1e-8), other, grads)
    assert np.abs(usual - expected)[:, 4].max() > 1e-2


def test_single_precision_is_close_to_the_formula():
    grads = gradients(50, SCALES, seed=1)
    start = np.zeros(len(SCALES))
    parameter = torch.zeros(len(SCALES), requires_grad=True)
    actual = run(TensorFlowAdam([parameter], lr=1e-3), parameter, grads)
    np.testing.assert_allclose(actual, reference(start, grads, [1e-3] * 50, eps=1e-8), rtol=0, atol=1e-7)


def test_schedule_and_groups():
    grads = gradients(20, [1e-8, 1.0], seed=2)
    first, second = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = TensorFlowAdam([{"params": [first]}, {"params": [second], "lr": 1e-2, "eps": 1e-3}], lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
    late = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for step, gradient in enumerate(grads):
        if step == 8:
            optimizer.add_param_group({"params": [late], "lr": 1e-2})
            schedule.base_lrs.append(1e-2)
        for parameter in (first, second, *([late] if step >= 8 else [])):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        if step < 7:
            schedule.step()
    rates = [0.5 ** (min(step, 7) // 5) for step in range(20)]
    zero = np.zeros(2)
    for parameter, expected in [
        (first, reference(zero, grads, [1e-3 * rate for rate in rates], eps=1e-8)),
        (second, reference(zero, grads, [1e-2 * rate for rate in rates], eps=1e-3)),
        (late, reference(zero, grads[8:], [1e-2] * 12, eps=1e-8)),
    ]:
        np.testing.assert_allclose(parameter.detach().numpy(), expected[-1], rtol=1e-9, atol=1e-15)
    assert [group["eps"] for group in optimizer.state_dict()["param_groups"]] == [1e-8, 1e-3, 1e-8]


@pytest.mark.parametrize("stop", [1, 7])
def test_resumed_run_is_bit_identical(stop):
    grads = gradients(20, SCALES, seed=3)

    def fresh() -> tuple[Tensor, TensorFlowAdam]:
        parameter = torch.zeros(len(SCALES), requires_grad=True)
        return parameter, TensorFlowAdam([parameter], lr=1e-2)

    parameter, optimizer = fresh()
    whole = run(optimizer, parameter, grads)
    parameter, optimizer = fresh()
    run(optimizer, parameter, grads[:stop])
    stored = io.BytesIO()
    torch.save({"parameter": parameter.detach(), "optimizer": optimizer.state_dict()}, stored)
    stored.seek(0)
    checkpoint = torch.load(stored, weights_only=True)
    resumed, continued = fresh()
    resumed.data.copy_(checkpoint["parameter"])
    continued.load_state_dict(checkpoint["optimizer"])
    assert continued.param_groups[0]["eps"] == 1e-8
    np.testing.assert_array_equal(run(continued, resumed, grads[stop:]), whole[stop:])


def test_closure_hooks_and_steps_without_gradients():
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # makes torch wrap Adam.step, as any other model may
    parameter = torch.ones(3, requires_grad=True)
    unused = torch.ones(3, requires_grad=True)
    optimizer = TensorFlowAdam([{"params": [parameter]}, {"params": [unused]}], lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3
    assert calls == ["before", "after"]
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.9), rtol=1e-6, atol=0)
    assert torch.equal(unused, torch.ones(3))
    assert [group["num_steps"] for group in optimizer.param_groups] == [1, 0]


def test_failed_step_leaves_the_nominal_epsilon():
    parameter = torch.ones(3, requires_grad=True)
    optimizer = TensorFlowAdam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.state[parameter]["exp_avg"] = None  # makes torch's update fail
    with pytest.raises(KeyError):
        optimizer.step()
    assert optimizer.param_groups[0]["eps"] == 1e-8


def test_copies_continue_alike():
    parameter = torch.zeros(len(SCALES), requires_grad=True)
    optimizer = TensorFlowAdam([parameter], lr=1e-2)
    grads = gradients(6, SCALES, seed=4)
    run(optimizer, parameter, grads[:3])
    pair = copy.deepcopy((parameter, optimizer))
    np.testing.assert_array_equal(run(pair[1], pair[0], grads[3:]), run(optimizer, parameter, grads[3:]))


def test_clipping_stays_possible_under_mixed_precision():
    # Lightning reads this mark, and refuses gradient clipping if it is set.
    assert not TensorFlowAdam([torch.zeros(1, requires_grad=True)])._step_supports_amp_scaling
