"""The progress bar: on a terminal, with the time the whole training still takes; nowhere else."""

import math
import sys
import time
from datetime import timedelta

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text


def seconds_left(trainer: L.Trainer, first_batch: int, start: float, now: float) -> float | None:
    """Estimate how long training still takes, from the mean pace of this process so far (validation included).

    Args:
        trainer: the Trainer that is fitting.
        first_batch: training batches that were done before this process started (a resume).
        start: time at which it started training, seconds.
        now: present time, seconds.

    Returns:
        Seconds, or None while no batch is done or when the end is not known in advance.
    """
    done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    ends = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        ends.append(trainer.max_epochs * trainer.num_training_batches)
    if trainer.max_steps > 0 and trainer.global_step > 0:
        ends.append(done * trainer.max_steps / trainer.global_step)  # batches per optimizer step need not be 1
    end = min(ends, default=math.inf)
    if done <= first_batch or not math.isfinite(end):
        return None
    return max(end - done, 0.0) * (now - start) / (done - first_batch)


class _TrainingTimeLeft(ProgressColumn):
    def __init__(self, bar: "TrainingProgressBar") -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: Task) -> Text:
        left = self.bar.seconds_left() if task.id == self.bar.train_progress_bar_id else None
        return Text("" if left is None else f"{timedelta(seconds=round(left))} left", style="dim")


class TrainingProgressBar(RichProgressBar):
    """Lightning's Rich bar, which knows the epoch's end only, plus the time left until the end of training."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10, leave=False)
        self._first_batch = 0
        self._start = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._first_batch = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._start = time.monotonic()
        super().on_train_start(trainer, pl_module)

    def seconds_left(self) -> float | None:
        """Estimated seconds until training ends, or None while unknown."""
        return seconds_left(self.trainer, self._first_batch, self._start, time.monotonic())

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        """Lightning's columns and the time left."""
        return [*super().configure_columns(trainer), _TrainingTimeLeft(self)]


def progress_bars() -> list[L.Callback]:
    """The progress bar if standard output is a terminal, else nothing: a log file needs no bar.

    Returns:
        Callbacks for the Trainer. Without any, pass ``enable_progress_bar=False``, or Lightning adds its own.
    """
    return [TrainingProgressBar()] if sys.stdout.isatty() else []
