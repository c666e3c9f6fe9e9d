"""Adam as TensorFlow 1 has it, for results that were obtained with it."""

import inspect
import math
from collections.abc import Callable

import torch
from torch.optim.optimizer import ParamsT


class TensorFlowAdam(torch.optim.Adam):
    """Adam with epsilon outside the bias correction.

    theta -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps): the order of computation at the end of
    section 2 of Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, whose "epsilon hat" is
    TensorFlow's epsilon. torch corrects v before it adds epsilon, so the same number weighs less there in early steps.
    Here torch's own update runs with eps / sqrt(1 - beta2^t), which gives the formula above. The `eps` of a group that
    one reads, sets and finds in `state_dict` is the nominal one; its `num_steps` is t, kept in Python so that no step
    waits for the device.

    t belongs to a group: a parameter that had no gradient in some steps gets the epsilon of its group's t.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay rates of the first and second moments, per step.
        eps: added to sqrt(v), in the unit of the gradient.

    Raises:
        ValueError: if lr, betas or eps are out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        # Left True, a loss scaler would leave unscaling and skipped steps to the kernel: t would count the skipped ones
        # too, and Lightning would refuse to clip gradients.
        self._step_supports_amp_scaling = False
        self.defaults["num_steps"] = 0
        for group in self.param_groups:
            group.setdefault("num_steps", 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step; returns the closure's loss, or None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        nominal = [group["eps"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                if any(parameter.grad is not None for parameter in group["params"]):
                    group["num_steps"] += 1
                    group["eps"] /= math.sqrt(1 - group["betas"][1] ** group["num_steps"])
            # The bare function: torch wraps Adam.step as soon as a plain Adam exists, and hooks would run twice.
            inspect.unwrap(torch.optim.Adam.step)(self)
        finally:
            for group, eps in zip(self.param_groups, nominal, strict=True):
                group["eps"] = eps
        return loss
