"""Adam of an ensemble, against torch's own for each member alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.networks.member_adam import MemberAdam

MEMBERS, SHAPES = 3, [(5, 4), (1, 4), (2,)]


def run(stops, num_steps=12, seed=0):
    """Steps of an ensemble whose member m stands still from step stops[m] on, and of each member by itself.

    Gradients differ by orders of magnitude between members, so that what leaks from one to another is seen.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(shape):
        return torch.randn(MEMBERS, *shape, generator=generator, dtype=torch.float64)

    starts, scale = [draw(shape) for shape in SHAPES], torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    # The last one has an axis that runs over members and entries alike, as that of a BatchNorm1d over all members.
    together = [start.clone() for start in starts[:2]] + [starts[2].flatten()]
    alone = [[start[member].clone() for start in starts] for member in range(MEMBERS)]
    for parameter in (*together, *(each for group in alone for each in group)):
        parameter.requires_grad_()
    optimizer = MemberAdam(together, lr=1e-2)
    others = [torch.optim.Adam(group, lr=1e-2) for group in alone]
    for step in range(num_steps):
        gradients = [draw(shape) * scale.view(-1, *[1] * len(shape)) for shape in SHAPES]
        for parameter, gradient in zip(together, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter).clone()
        stopped = torch.tensor([step >= stop for stop in stops])
        optimizer.stopped = stopped if stopped.any() else None
        optimizer.step()
        for member, other in enumerate(others):
            if not stopped[member]:
                for parameter, gradient in zip(alone[member], gradients, strict=True):
                    parameter.grad = gradient[member].clone()
                other.step()
    return together, optimizer, alone, others


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 13), min_size=MEMBERS, max_size=MEMBERS), st.integers(0, 100))
def test_each_member_gets_what_it_would_get_alone_until_it_stops(stops, seed):
    together, optimizer, alone, others = run(stops, seed=seed)
    for number, parameter in enumerate(together):
        for member in range(MEMBERS):
            own, state = alone[member][number], others[member].state[alone[member][number]]
            torch.testing.assert_close(parameter.view(MEMBERS, -1)[member], own.flatten(), rtol=1e-10, atol=1e-14)
            for name in ("exp_avg", "exp_avg_sq"):
                wanted = state[name].flatten() if state else torch.zeros(own.numel(), dtype=own.dtype)
                kept = optimizer.state[parameter][name].view(MEMBERS, -1)[member]
                torch.testing.assert_close(kept, wanted, rtol=1e-10, atol=1e-300)


def test_a_stopped_member_keeps_every_bit_whatever_its_gradient_is():
    parameter = torch.randn(2, 3, requires_grad=True)
    optimizer = MemberAdam([parameter])
    parameter.grad = torch.ones(2, 3)
    optimizer.step()
    moments = [optimizer.state[parameter][name] for name in ("exp_avg", "exp_avg_sq")]
    before = [tensor.detach().clone() for tensor in (parameter, *moments)]
    optimizer.stopped = torch.tensor([True, False])
    parameter.grad = torch.tensor([[torch.nan, torch.inf, 1.0], [1.0, 2.0, 3.0]])
    optimizer.step()
    for was, now in zip(before, (parameter, *moments), strict=True):
        assert torch.equal(was[0], now[0])
        assert (was[1] != now[1]).all()


def test_a_closure_decides_who_has_stopped_and_hooks_run_once():
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # makes torch wrap Adam.step, as any other model may
    parameter = torch.ones(2, 3, requires_grad=True)
    optimizer, calls = MemberAdam([parameter], lr=0.1), []
    optimizer.stopped = torch.zeros(2, dtype=torch.bool)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        loss = (parameter**2).sum()
        loss.backward()
        optimizer.stopped[1] = True  # as buffers do that another rank has sent
        return loss

    assert optimizer.step(closure).item() == 6
    assert calls == ["before", "after"]
    torch.testing.assert_close(parameter.detach(), torch.tensor([[0.9] * 3, [1.0] * 3]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_its_state_is_that_of_torch(masked):
    """What one of them has stored, the other one goes on with."""
    _, optimizer, *_ = run([99, 99, 5 if masked else 99])
    plain = torch.optim.Adam([torch.zeros(MEMBERS, *SHAPES[0]), torch.zeros(MEMBERS, *SHAPES[1]), torch.zeros(6)])
    plain.load_state_dict(optimizer.state_dict())
    assert plain.param_groups[0]["lr"] == 1e-2
    assert all(state["step"] == 12 for state in plain.state.values())
