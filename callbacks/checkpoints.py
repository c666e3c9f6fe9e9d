"""Checkpoints that are whole or absent, hold nothing but plain values, and keep their names over resumes.

``last.ckpt`` is what a run continues from, ``best.ckpt`` the best by the monitored validation metric (a run is tested
with its final weights, as published), ``preempt.ckpt`` what a preempted job leaves behind.
"""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.files import whole_file

log = logging.getLogger("genpred")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin for local files, written atomically and read with ``weights_only=True``.

    Lightning's own stages the file in the system's temporary folder, which needs the room there and is a plain copy
    when that is another file system; it also builds the whole file in memory first. This one streams to the target's
    folder.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: dict[str, Any] | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what ``torch.save`` takes.
            path: a local path.
            storage_options: has to be None.

        Raises:
            TypeError: if ``storage_options`` is given.
            OSError: if the file cannot be written (disk full, no permission). What was there before stays as it was.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r} for {path}: checkpoints are local files, omit it")
        try:
            with whole_file(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's writer turns some I/O errors into RuntimeError
            raise OSError(
                f"checkpoint {path} could not be written: {error}. A checkpoint already there is untouched. "
                "Free some space or make the folder writable, then start the same command again: the run continues."
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | torch.device | str | dict | None = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint with ``weights_only=True``, whatever is asked for: reading never runs code from the file.

        Args:
            path: a local path.
            map_location: as in ``torch.load``.
            weights_only: ignored; always True.

        Returns:
            The checkpoint.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or holds anything but tensors and plain values.
        """
        try:
            return super().load_checkpoint(path, map_location=map_location, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
            raise ValueError(
                f"checkpoint {path} is damaged or holds more than tensors and plain values: {error}. "
                "Continue from another checkpoint, or delete this one to start from the beginning."
            ) from error


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``: every ``every_n_steps`` optimizer steps, and once more with the state training ended in.

    Lightning's own callback leaves the file at the last multiple of ``every_n_steps``, so a job killed during the test
    would train the rest again.

    Args:
        folder: where the file lives.
        every_n_steps: optimizer steps between two saves, at least 1.
    """

    def __init__(self, folder: str | Path, every_n_steps: int) -> None:
        super().__init__(
            dirpath=folder,
            filename="last",
            every_n_train_steps=every_n_steps,
            save_weights_only=False,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the state in which training ended."""
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self.format_checkpoint_name({}))


def checkpoint_callbacks(
    folder: str | Path, every_n_steps: int, monitor: str | None, mode: Literal["min", "max"]
) -> list[ModelCheckpoint]:
    """Callbacks that keep ``last.ckpt`` and, with something to monitor, ``best.ckpt`` in one folder under fixed names.

    Resuming overwrites these same files: no ``last-v1.ckpt``, no metric in a name.

    Args:
        folder: the run's checkpoint folder.
        every_n_steps: optimizer steps between two saves of ``last.ckpt``, at least 1.
        monitor: name of a logged validation metric, such as ``val/nll``; None keeps no ``best.ckpt``.
        mode: whether the lowest or the highest value is best.

    Returns:
        The best checkpoint's callback first, if any, so that ``ckpt_path="best"`` finds it.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.
    """
    if every_n_steps < 1:
        raise ValueError(f"every_n_steps is {every_n_steps}: last.ckpt needs at least 1 step between two saves")
    last = LastCheckpoint(folder, every_n_steps)
    if monitor is None:
        return [last]
    best = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        save_weights_only=False,
        save_on_train_epoch_end=False,  # judged when validation ends, however often that is
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    return [best, last]


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint to continue from: of ``last.ckpt`` and ``preempt.ckpt`` the readable one with the most steps.

    Both are read in full, so a damaged file is passed over with a logged warning here instead of ending the run later.

    Args:
        folder: the run's checkpoint folder; need not exist.

    Returns:
        Its path, or None if there is nothing (readable) to continue from.
    """
    readable: list[tuple[int, float, Path]] = []
    for path in (Path(folder) / "last.ckpt", Path(folder) / "preempt.ckpt"):
        if not path.exists():
            continue
        try:
            step = AtomicCheckpointIO().load_checkpoint(path)["global_step"]
        except (ValueError, KeyError, OSError) as error:
            log.warning("%s is passed over, it cannot be read: %s", path, error)
            continue
        readable.append((step, path.stat().st_mtime, path))  # steps first: copied folders carry arbitrary times
    return max(readable)[2] if readable else None
