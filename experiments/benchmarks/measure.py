"""What the benchmarks share: times of forms run in turn, agreement of their results, memory, load of the machine."""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def alternate(steps: Mapping[str, Callable[[], object]], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each run of each step; the steps take turns, so that other work on the machine slows all of them.

    Args:
        steps: by name, in the order of a turn.
        repeats: timed runs of each.
        warm_up: run each once before, untimed.
    """
    if warm_up:
        for step in steps.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def largest_error(results: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Largest deviation of any result, each relative to the largest entry of its reference."""
    return max(
        ((result - reference).abs().max() / reference.abs().max()).item()
        for result, reference in zip(results, references, strict=True)
    )


class Operations(TorchDispatchMode):
    """Counts the operations that reach the device; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function._schema.returns
        alias = returned[0].alias_info if returned else None
        self.count += alias is None or alias.is_write
        return function(*args, **(kwargs or {}))


def operations(step: Callable[[], object]) -> int:
    """Operations of one run of a step that has run before."""
    step()
    with Operations() as counted:
        step()
    return counted.count


def ratio(slow: list[float], fast: list[float]) -> str:
    """How many times quicker, by medians and by minima."""
    return f"{statistics.median(slow) / statistics.median(fast):.1f} (minima {min(slow) / min(fast):.1f})"


def peak_memory() -> int:
    """Peak resident memory of this process in bytes, on Linux; getrusage would start from its parent's."""
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def timing_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, repeats: int
) -> argparse.Namespace:
    """A benchmark's options with `--repeats` and `--threads`; sets torch's threads, and prints the `state`.

    Args:
        parser: which knows the benchmark's further options.
        arguments: without the program's name; None: those of the process.
        repeats: unless given.
    """
    parser.add_argument("--repeats", type=int, default=repeats, help="timed runs of each form")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch; its own choice if not given")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(state(), flush=True)
    return options


def state() -> str:
    """Version of torch, threads and load; says so where other work makes the figures provisional."""
    load = os.getloadavg()[0]
    line = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, load {load:.1f}"
    if load < 0.5:
        return line
    return f"{line}\nOther work is running here: these figures are provisional, run this again on a quiet machine."
