"""A run that is asked to stop saves its state between two steps, on all ranks at the same one."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed
from lightning.pytorch.callbacks import Checkpoint

from callbacks import signals


class Preemption(Checkpoint):
    """Saves ``preempt.ckpt`` and leaves training by `signals.Stopped` when a rank was told to stop.

    Handlers only note the signal: a checkpoint written inside of one would catch the weights in the middle of an
    update, and its barrier would meet some other collective. Here ranks agree on the step by a sum over a group on
    the CPU, so that no host waits for its device.

    Listeners are needed (`signals.listening`); without them this does nothing. A signal before or during a validation
    waits for its end, one during the last step for the end of training. As one of Lightning's checkpoint callbacks this
    comes after all others; among them it has to be the last, so that the state holds what they made of a validation.

    Args:
        folder: the run's checkpoint folder.
        every_n_steps: with several ranks, optimizer steps between two looks at each other.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 10) -> None:
        self.path = Path(folder) / "preempt.ckpt"
        self.every_n_steps = every_n_steps
        self._group: torch.distributed.ProcessGroup | None = None
        self._seen_step = 0
        self._waiting = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the handlers back, of which Lightning has just taken one, and let the ranks get to know each other."""
        signals.install()
        self._seen_step = trainer.global_step
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Stop here if asked to, and if gradients have been used: those still gathered are in no checkpoint."""
        if trainer.global_step in (self._seen_step, trainer.max_steps):  # after the last step, last.ckpt is due
            return
        self._seen_step = trainer.global_step
        loop = trainer.fit_loop
        if loop.epoch_loop._should_check_val_fx(loop._data_fetcher):  # what is saved now would go on without it
            self._waiting = True
        elif trainer.world_size == 1 or trainer.global_step % self.every_n_steps == 0:
            self._stop_if_asked_to(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after a validation, too."""
        if self._waiting:
            self._waiting = False
            self._stop_if_asked_to(trainer)

    def _stop_if_asked_to(self, trainer: L.Trainer) -> None:
        number = signals.received() or 0
        if trainer.world_size > 1:
            highest = torch.tensor(number)
            torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX, group=self._group)
            number = int(highest)
        if number:
            trainer.save_checkpoint(self.path)
            raise signals.Stopped(number)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the state that a preempted job has left: the run has ended, and ``last.ckpt`` says how."""
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the handlers back."""
        signals.install()
