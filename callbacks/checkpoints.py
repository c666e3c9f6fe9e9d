"""Checkpoints that are whole or absent, hold nothing but plain values, and keep their names over resumes.

``last.ckpt`` is what a run continues from, ``previous.ckpt`` the one before it, should the last be damaged,
``best.ckpt`` the best by the monitored validation metric (a run is tested with its final weights, as published),
``preempt.ckpt`` what a preempted job leaves behind. While one is written they take the room of one more.
"""

import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.files import whole_file

log = logging.getLogger("genpred")
LAST, PREVIOUS, PREEMPT = "last.ckpt", "previous.ckpt", "preempt.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin for local files, written atomically, and read with their checksums compared.

    Lightning's own stages the file in the system's temporary folder, which needs the room there and is a plain copy
    when that is another file system; it also builds the whole file in memory first. This one streams to the target's
    folder. A ``last.ckpt`` that it replaces becomes ``previous.ckpt``, if it was this object that wrote or read it: one
    that nobody has read may be damaged, and would take the place of the good one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known_whole: set[str] = set()

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
            WriteError: if the file cannot be written (disk full, no permission). What was there before stays.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r} for {path}: checkpoints are local files, omit it")
        path, name = Path(path), os.path.abspath(path)
        kept = path.with_name(PREVIOUS) if path.name == LAST and name in self._known_whole else None
        with whole_file(path, kept) as file:
            torch.save(checkpoint, file)
        self._known_whole.add(name)

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
            ValueError: if the file is damaged or holds anything but tensors and plain values; not if memory is lacking.
        """
        with open(path, "rb") as file:
            try:
                _check_sums(file)
                checkpoint = super().load_checkpoint(path, map_location=map_location, weights_only=True)
            except Exception as error:  # what zipfile and torch raise of damaged bytes has no common base class
                if is_out_of_memory(error):
                    raise
                raise ValueError(
                    f"checkpoint {path} is damaged or holds more than tensors and plain values: {error}. "
                    "Continue from another checkpoint, or delete this one to start from the beginning."
                ) from error
        self._known_whole.add(os.path.abspath(path))
        return checkpoint


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory is lacking; torch has a class of its own for that on devices, and a sentence on the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _check_sums(file: BinaryIO) -> None:
    """Compare the checksum of every part of a file of ``torch.save``, which ``torch.load`` does not.

    Raises:
        Exception: it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's callback, but a run's folder may be moved: the best score so far goes with it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over, with the files where they are now; Lightning would forget it."""

        def moved(path: str) -> str:
            return path and os.path.join(self.dirpath, os.path.basename(path))

        paths = {key: moved(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        scores = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})


class LastCheckpoint(MovableCheckpoint):
    """Keeps ``last.ckpt``: every ``every_n_steps`` optimizer steps, and once more with the state training ended in.

    Lightning's own callback leaves the file at the last multiple of ``every_n_steps``, so a job killed during the test
    would train the rest again. It also saves before a validation that is due after the same step, which a run that is
    continued from there would leave out; here that save waits for the end of the validation.

    Args:
        folder: where the file lives.
        every_n_steps: optimizer steps between two saves, at least 1.
    """

    def __init__(self, folder: str | Path, every_n_steps: int) -> None:
        super().__init__(
            dirpath=folder,
            filename=Path(LAST).stem,
            every_n_train_steps=every_n_steps,
            save_weights_only=False,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self._waiting = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let ``last.ckpt`` be what the run goes on from: where nothing is left to train, no other save follows."""
        source = Path(trainer.ckpt_path or LAST)
        if source.name != LAST and trainer.is_global_zero:
            with source.open("rb") as old, whole_file(Path(self.dirpath) / LAST) as file:
                shutil.copyfileobj(old, file)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        """Save, or wait where a validation comes next."""
        loop = trainer.fit_loop
        if loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._waiting = True
        else:
            super().on_train_batch_end(trainer, pl_module, *arguments)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make up for it."""
        if self._waiting:
            self._waiting = False
            super().on_train_batch_end(trainer, pl_module, None, None, 0)

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
    best = MovableCheckpoint(
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
    """The checkpoint to continue from: of the last, the previous and a preempted job's the whole one with most steps.

    All are read in full, so a damaged file is passed over with a logged warning here instead of ending the run later.
    Times say nothing: clocks are set back, and copied folders carry arbitrary ones.

    Args:
        folder: the run's checkpoint folder; need not exist.

    Returns:
        Its path, or None if there is nothing (readable) to continue from.
    """
    steps: dict[Path, int] = {}
    present = [path for name in (LAST, PREEMPT, PREVIOUS) if (path := Path(folder) / name).exists()]
    for path in present:
        try:
            steps[path] = int(AtomicCheckpointIO().load_checkpoint(path)["global_step"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            log.warning("%s is passed over, it cannot be read: %s", path, error)
    latest = max(steps, key=steps.__getitem__, default=None)  # of equals the first
    if len(steps) < len(present):
        log.warning("the run goes on from %s", f"step {steps[latest]}, {latest.name}" if latest else "its beginning")
    return latest
