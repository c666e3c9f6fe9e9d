"""A guard against gradients that are not finite: drop the step, and stop the run when that does not help."""

import logging

import lightning as L
import torch
from torch import Tensor

log = logging.getLogger("genpred")


class FiniteGradients(L.Callback):
    """Drops the gradients of a step whose total norm is not finite; raises when that happens many times in a row.

    The norm is taken right before the optimizer's step, after gradients were averaged over ranks, so a NaN on one rank
    makes all ranks drop the same step and they stay in step.

    Dropped gradients become zeros instead of ``None``: an adaptive optimizer lets its moments decay and takes a step of
    what momentum is left, bounded by the learning rate. In exchange nobody waits for the device: on a GPU the zeros are
    written by a kernel that depends on the flag, the counts live there too, and copies of them are sent to the host
    twice in ``max_consecutive`` steps, each of which is read when the next is sent, steps after it has arrived. So a
    failure is noticed at most ``max_consecutive`` steps later, in the same step on all ranks. On the CPU the counts are
    read at each step.

    Each optimizer has a row of its own: one whose steps are good does not hide another that has failed.

    ``train/skipped_steps`` is logged, and a warning written, whenever a read finds new ones.

    Args:
        max_consecutive: number of dropped steps in a row at which the run ends, at least 1.

    Raises:
        ValueError: if ``max_consecutive`` is below 1.
    """

    def __init__(self, max_consecutive: int = 10) -> None:
        if max_consecutive < 1:
            raise ValueError(f"max_consecutive is {max_consecutive}: a run ends after 1 dropped step or more")
        self.max_consecutive = max_consecutive
        self.skipped_steps = 0  # as of the last read
        self._skipped_before = 0  # in the part of the run that a resume continues
        # By the optimizer, on its device: [3] int64, dropped in all, in the present row, in the longest row.
        self._counts: dict[int, Tensor] = {}
        self._calls = 0
        self._sent: tuple[Tensor, torch.Event, int] | None = None  # counts, when they are there, and as of which step

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check the gradients that ``optimizer`` is about to use."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return
        bad = ~torch.isfinite(torch.nn.utils.get_total_norm(gradients))  # []
        self._count(id(optimizer), bad)
        self._calls += 1
        if self._at_hand(bad):
            self._read(trainer, pl_module, self._all_counts, trainer.global_step)
            if not bad:
                return
        elif self._calls % ((self.max_consecutive + 1) // 2) == 0:
            if self._sent is not None:
                counts, arrival, step = self._sent
                arrival.synchronize()
                self._read(trainer, pl_module, counts, step)
            self._send(trainer.global_step)
        for gradient in gradients:
            gradient.masked_fill_(bad, 0.0)  # a product would not do: NaN times 0 is NaN

    def _at_hand(self, flag: Tensor) -> bool:
        """Whether the host can read it without waiting for a device."""
        return flag.device.type == "cpu"

    def _count(self, optimizer: int, bad: Tensor) -> None:
        dropped, row, longest = self._counts.get(optimizer, torch.zeros(3, dtype=torch.int64, device=bad.device))
        row = (row + 1) * bad
        self._counts[optimizer] = torch.stack([dropped + bad, row, torch.maximum(longest, row)])

    @property
    def _all_counts(self) -> Tensor:
        """[optimizer, 3] int64, on their device."""
        return torch.stack(list(self._counts.values()))

    def _send(self, step: int) -> None:
        """Begin to copy the counts to the host, into pinned memory."""
        counts = self._all_counts
        arrival = torch.Event(counts.device)
        self._sent = (counts.to("cpu", non_blocking=True), arrival, step)
        arrival.record()

    def _totals(self, counts: Tensor) -> tuple[int, int]:
        """Dropped in all, and in the longest row of any optimizer; waits for the device that ``counts`` are on."""
        dropped, _, longest = counts.T.tolist()
        return self._skipped_before + sum(dropped), max(longest)

    def _read(self, trainer: L.Trainer, pl_module: L.LightningModule, counts: Tensor, step: int) -> None:
        skipped, longest = self._totals(counts)
        if skipped > self.skipped_steps:
            log.warning(
                "gradients were not finite: %d step(s) dropped by step %d, %d in all",
                skipped - self.skipped_steps,
                step,
                skipped,
            )
            pl_module.log("train/skipped_steps", float(skipped), on_step=True, on_epoch=False)
        self.skipped_steps = skipped
        if longest >= self.max_consecutive:
            _, longest = self._totals(self._all_counts)  # of now: nothing is left to be kept waiting
            raise FloatingPointError(self._diagnosis(trainer, pl_module, longest))

    @staticmethod
    def _diagnosis(trainer: L.Trainer, pl_module: L.LightningModule, longest: int) -> str:
        parts = ", ".join(
            f"{name} = {float(value):.6g}"
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") and name != "train/skipped_steps"
        )
        named = dict(pl_module.named_parameters())
        weights = [name for name, p in named.items() if not p.isfinite().all()]
        slopes = [name for name, p in named.items() if p.grad is not None and not p.grad.isfinite().all()]
        remedy = (
            "The weights themselves are not finite: go back to an earlier checkpoint."
            if weights
            else "Lower the learning rate, clip gradients (trainer.gradient_clip_val), or look for zeros under a "
            "logarithm, a root or a division."
        )
        return (
            f"gradients were not finite in {longest} steps in a row, up to step {trainer.global_step} "
            f"(epoch {trainer.current_epoch}). Loss parts: {parts or 'none logged'}. "
            f"Not finite now: gradients of {', '.join(slopes[:5]) or 'nothing'}"
            f"{f' and {len(slopes) - 5} more' if len(slopes) > 5 else ''}; "
            f"weights {', '.join(weights[:5]) or 'none'}{f' and {len(weights) - 5} more' if len(weights) > 5 else ''}. "
            f"{remedy}"
        )

    def state_dict(self) -> dict[str, int]:
        """The number of dropped steps, which a resumed run adds to."""
        return {"skipped_steps": self._totals(self._all_counts)[0] if self._counts else self._skipped_before}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting; a row of dropped steps starts anew."""
        self.skipped_steps = self._skipped_before = state_dict["skipped_steps"]
        self._counts, self._sent = {}, None
