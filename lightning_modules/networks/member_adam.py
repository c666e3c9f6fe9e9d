"""Adam for networks that are trained side by side and stop one by one."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class MemberAdam(torch.optim.Adam):
    """torch's Adam, whose parameters hold all members of an ensemble; those that have stopped stay as they are.

    The first axis of every parameter is a multiple of the number of members, and a member's entries follow each other.
    A stopped member's parameters and moments keep every bit; the others get what they would get alone. The number of
    steps is that of the ensemble. Nothing waits for the device, and while `stopped` is None a step costs no more than
    torch's own.

    Attributes:
        stopped: bool [member], read after the closure of a step; None: no member has stopped.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
    """

    stopped: Tensor | None = None

    def __init__(self, params: ParamsT, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; returns the closure's loss, or None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stopped = self.stopped
        if stopped is not None:
            moving = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
            before = [[tensor.clone() for tensor in self._tensors(parameter)] for parameter in moving]
        # The bare function: torch wraps Adam.step as soon as a plain Adam exists, and hooks would run twice.
        inspect.unwrap(torch.optim.Adam.step)(self)
        if stopped is not None:
            for parameter, kept in zip(moving, before, strict=True):
                for tensor, was in zip(self._tensors(parameter), kept, strict=True):
                    rows = tensor.view(len(stopped), -1)  # [member, entry]
                    rows.copy_(torch.where(stopped[:, None], was.view_as(rows), rows))
        return loss

    def _tensors(self, parameter: Tensor) -> list[Tensor]:
        """The parameter and its two moments, zeros before the first step."""
        state = self.state.get(parameter, {})
        return [parameter, *(state.get(name, torch.zeros_like(parameter)) for name in ("exp_avg", "exp_avg_sq"))]
