"""What a run leaves behind in numbers: JSON files that are whole or absent, and the cost of the run."""

import json
import math
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from callbacks.files import whole_file


def _refuse(value: object, place: str) -> None:
    """Raise if ``value`` or anything inside it would not survive JSON, naming where it is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{place}: key {key!r} is a {type(key).__name__}; JSON keys are strings")
            _refuse(inner, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            _refuse(inner, f"{place}[{position}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{place} is {value}: a result that is not a finite number is not recorded. "
            "Look for the divergence in the run's log; repeat it with a lower learning rate or with clipped gradients."
        )
    elif not isinstance(value, str | int | float | bool | None):
        raise TypeError(f"{place} is a {type(value).__name__}; convert it to a plain number, string, list or dict")


def write_json_atomically(path: str | Path, payload: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all (see `callbacks.files.whole_file`).

    Args:
        path: the file.
        payload: nested dicts and lists of strings, ints, finite floats, bools and None.

    Raises:
        ValueError: if a float is NaN or infinite; the message says which one. Nothing is written.
        TypeError: if a value is of no JSON type; the message says which one. Nothing is written.
        OSError: if the file cannot be written; what was there before stays.
    """
    _refuse(payload, Path(path).name)
    text = json.dumps(payload, indent=2, allow_nan=False) + "\n"
    # Lists of numbers in one line each. Strings stay as they are: in JSON no line ends within one.
    text = re.sub(r"\[\n[-+.\w\s,]*\]", lambda numbers: "[" + " ".join(numbers[0][1:-1].split()) + "]", text)
    with whole_file(Path(path)) as file:
        file.write(text.encode())


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not JSON; the message names the file.
    """
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it and start the run again") from error


class ValidationScores(L.Callback):
    """Keeps the figures of the last validation in the checkpoints, for a run that has nothing left but its test.

    Attributes:
        scores: what was logged as ``val/...``; empty before the first validation.
    """

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take them."""
        if not trainer.sanity_checking:
            logged = trainer.callback_metrics.items()
            self.scores = {name: float(value) for name, value in logged if name.startswith("val/")}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The figures."""
        return {"scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, dict[str, float]]) -> None:
        """Those of the run that is continued."""
        self.scores = state_dict["scores"]


class RunStatistics(L.Callback):
    """Counts what a run costs, over all its resumes: `statistics` holds the keys of ``results.json``.

    Kept in the checkpoint. The time after the last checkpoint of a killed job is lost, like the steps it took.
    """

    def __init__(self) -> None:
        self.parameters = 0
        self.steps = 0
        self.test_seconds = 0.0
        self._train_seconds = 0.0  # of fits that are over
        self._peak_memory_bytes = 0  # of processes that are gone
        self._device = torch.device("cpu")
        self._fit_start: float | None = None
        self._test_start = 0.0

    @property
    def train_seconds(self) -> float:
        """Seconds spent in training loops so far, validation and checkpoints included."""
        running = 0.0 if self._fit_start is None else time.perf_counter() - self._fit_start
        return self._train_seconds + running

    @property
    def peak_memory_bytes(self) -> int:
        """Most memory held by this rank at any time.

        On CUDA the most that tensors took on the device, else the largest resident set of the process or of one of
        its finished children (loader workers).
        """
        if self._device.type == "cuda":
            now = torch.cuda.max_memory_allocated(self._device)
        else:
            unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
            who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            now = unit * max(resource.getrusage(which).ru_maxrss for which in who)
        return max(now, self._peak_memory_bytes)

    @property
    def statistics(self) -> dict[str, int | float]:
        """The costs so far: parameters, steps (training batches), train_seconds, test_seconds, peak_memory_bytes."""
        return {
            "parameters": self.parameters,
            "steps": self.steps,
            "train_seconds": self.train_seconds,
            "test_seconds": self.test_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # kernels still in the queue belong to the time measured
        return time.perf_counter()

    def _start(self, pl_module: L.LightningModule) -> float:
        self._device = pl_module.device
        self.parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        return self._now()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._fit_start = self._start(pl_module)

    def on_train_batch_end(self, *_: Any) -> None:
        """Count the batch: ``global_step`` counts optimizer steps, so twice with two optimizers."""
        self.steps += 1

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        now = self._now()
        self._train_seconds += now - (now if self._fit_start is None else self._fit_start)
        self._fit_start = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop the clock when training is left by an exception; no look at the device, which may be what failed."""
        self._train_seconds, self._fit_start = self.train_seconds, None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._test_start = self._start(pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.test_seconds = self._now() - self._test_start

    def state_dict(self) -> dict[str, int | float]:
        """What a resumed run adds to."""
        return {
            "steps": self.steps,
            "train_seconds": self.train_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def load_state_dict(self, state_dict: dict[str, int | float]) -> None:
        """Take the state over where it is ahead: testing with an earlier, better checkpoint takes nothing back."""
        self.steps = max(self.steps, state_dict["steps"])
        self._train_seconds = max(self._train_seconds, state_dict["train_seconds"])
        self._peak_memory_bytes = max(self._peak_memory_bytes, state_dict["peak_memory_bytes"])
