"""Sweeps: a grid of runs from one YAML, counted, listed, run one at a time or all of them, and watched.

python -m experiments.sweep table2 --count              how many cells; imports no torch
python -m experiments.sweep table2 --list               a line for each: index, experiment, overrides, seed, run folder
python -m experiments.sweep table2 --index 3            run one cell here, such as one task of a SLURM array
python -m experiments.sweep table2                      run every cell that is not finished, here, one after another
python -m experiments.sweep table2 --local --jobs 2     the same, two at a time
python -m experiments.sweep table2 --status             what is done, running, failed, unfinished, missing
python -m experiments.sweep table2 --array              the numbers of the cells to run, as sbatch --array takes them
python -m experiments.sweep table2 --wandb              the same cells as a sweep of W&B, for ``wandb sweep``
python -m experiments.sweep table2 --without csdi,gp    any of these, without the cells of some methods

Further key=value, such as run_root=... or logger=csv, are laid over every cell; group=..., by which W&B groups runs, is
the sweep's name unless given. A cell that fails leaves its output and traceback in its run folder, in ``failed.txt``,
until it succeeds; one that was cut off continues from its checkpoint.

The form of a sweep's file, and how its cells are numbered: see `experiments.grid`.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from experiments import slurm
from experiments.config import ConfigError, Experiment, config_hash, told_in_a_line
from experiments.grid import Cell, cells, resolve, spans, sweeps

RUN = (sys.executable, "-m", "experiments.run")
STATES = ("done", "running", "failed", "unfinished", "missing", "outdated")
STATES_NOTE = "outdated: finished with another configuration; force=true runs it again"
SECONDS_TO_END = 30.0  # between asking a child to end and ending it


def wandb_sweep(name: str, resolved: list[tuple[Cell, Experiment]], overrides: list[str]) -> str:
    """A sweep of W&B that runs each cell once, as YAML: an agent calls ``experiments.sweep NAME --index=K``.

    Args:
        name: of the sweep.
        resolved: from `resolve`.
        overrides: key=value, laid over every cell.
    """
    import yaml

    definition = {
        "name": name,
        "project": resolved[0][1].config["project"],
        "method": "grid",
        "program": "experiments/sweep.py",
        "command": ["${env}", "${interpreter}", "-m", "experiments.sweep", name, *overrides, "${args}"],
        "parameters": {"index": {"values": [cell.index for cell, _ in resolved]}},  # numbers, so that exclusions hold
    }
    return yaml.safe_dump(definition, sort_keys=False, allow_unicode=True)


def is_running(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once: the file is closed
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    return False


def state(experiment: Experiment) -> str:
    """One of `STATES`, from what lies in the run folder."""
    folder, results = experiment.folder, experiment.folder / "results.json"
    if results.exists():
        try:
            stored = json.loads(results.read_text())["config_sha256"]
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{results} is damaged ({error}): remove it, and run its cell again") from error
        return "done" if stored == config_hash(experiment.identity) else "outdated"
    if is_running(folder):
        return "running"
    if (folder / "failed.txt").exists():
        return "failed"
    return "unfinished" if any((folder / "checkpoints").glob("*.ckpt")) else "missing"


def run_here(experiment: Experiment) -> None:
    """Run one cell in this process; a failure leaves its traceback in the run folder.

    Raises:
        ConfigError: the run or its data cannot be used; one line.
        Exception: whatever else stopped the run.
    """
    from datamodules.sources import SourceError
    from experiments.build import RunError, execute

    try:
        execute(experiment)
    except Exception as error:
        _keep_failure(experiment.folder, traceback.format_exc())
        if isinstance(error, RunError | SourceError):
            raise ConfigError(str(error)) from error
        raise
    if _rank() == 0:  # another rank may be through while this one fails
        (experiment.folder / "failed.txt").unlink(missing_ok=True)


def _rank() -> int:
    """Number of this process among those that srun has started; 0 without SLURM."""
    return int(os.environ["SLURM_PROCID"]) if slurm.is_step() else 0


def _keep_failure(folder: Path, text: str) -> None:
    """Leave a failure in the run folder; of the ranks of a SLURM step, the first to fail tells why."""
    import filelock

    from callbacks.files import whole_file

    # A folder that another process works in is not ours to write to, unless that is rank 0 of this step: srun is about
    # to end it, and it has nothing to tell.
    if _rank() == 0 and is_running(folder):
        return
    path = folder / "failed.txt"
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # such as of a folder that cannot be made
        if slurm.is_step():
            step = f"SLURM job {os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}, restart {slurm.restarts()}, "
            stack.enter_context(filelock.FileLock(folder / ".failed.lock", timeout=10))
            if path.exists() and path.read_text(errors="replace").startswith(step):
                return
            text = f"{step}rank {_rank()}\n{text}"
        stack.enter_context(whole_file(path)).write(text.encode())


@dataclass
class Child:
    """A cell that runs as a process of its own, the leader of a process group."""

    cell: Cell
    experiment: Experiment
    process: subprocess.Popen
    output: TextIO
    started: float


def run_local(name: str, resolved: list[tuple[Cell, Experiment]], jobs: int) -> list[Cell]:
    """Run all cells that are not finished as processes on this machine.

    Args:
        name: of the sweep.
        resolved: from `resolve`.
        jobs: how many processes at a time.

    Returns:
        The cells that failed.

    Raises:
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, when all processes have ended.
    """
    waiting, failed = [], []
    for cell, experiment in resolved:
        its_state = state(experiment)
        if its_state == "running":
            print(f"{cell.index}: {cell} runs elsewhere, in {experiment.folder}", flush=True)
        elif _is_due(experiment, its_state):
            waiting.append((cell, experiment))
    total, children = len(waiting), []
    print(f"{name}: {total} of {len(resolved)} cells to run, {jobs} at a time", flush=True)
    waiting.reverse()
    with _stop_signals() as received:
        try:
            while (waiting or children) and not received:
                while waiting and len(children) < jobs:
                    children.append(_start(*waiting.pop(), jobs))
                time.sleep(0.1)
                for child in [child for child in children if child.process.poll() is not None]:
                    children.remove(child)
                    if not _finish(child, f"{total - len(waiting) - len(children)}/{total}"):
                        failed.append(child.cell)
        finally:
            _end(children, received)
    if received:
        raise KeyboardInterrupt
    return failed


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop: an exception in the midst of starting a process would lose it."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in handled}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(cell: Cell, experiment: Experiment, jobs: int) -> Child:
    environment = dict(os.environ)
    if jobs > 1:  # each child would take every core, and they would wait for each other
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in _finish)
    # A group of its own: Ctrl-C reaches the sweep alone, and ending the group ends a run's loaders and ranks, too.
    process = subprocess.Popen(
        [*RUN, experiment.name, *experiment.overrides],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    print(f"{cell.index}: {cell} started in {experiment.folder}", flush=True)
    return Child(cell, experiment, process, output, time.monotonic())


def _finish(child: Child, progress: str) -> bool:
    """Tell how a cell ended; whether it did not fail."""
    status, folder = child.process.returncode, child.experiment.folder
    with child.output as output:
        output.seek(0)
        text = output.read()
    told = f"[{progress}] {child.cell.index}: {child.cell}"
    if status == 0:
        (folder / "failed.txt").unlink(missing_ok=True)
        print(f"{told} done after {_duration(time.monotonic() - child.started)}", flush=True)
        return True
    if is_running(folder):
        print(f"{told} runs elsewhere, in {folder}", flush=True)
        return True
    command = shlex.join(["python", "-m", "experiments.run", child.experiment.name, *child.experiment.overrides])
    how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    _keep_failure(folder, f"{command}\n{how}\n\n{text}")
    last = text.strip().splitlines()[-1:] or [""]
    where = f"\n    {folder / 'failed.txt'}" if (folder / "failed.txt").exists() else ""
    print(f"{told} FAILED, {how}: {last[0]}{where}", flush=True)
    return False


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds / 60), int(seconds / 3600)
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {seconds % 60:.0f} s"


def _end(children: list[Child], received: list[int]) -> None:
    """End processes and what they have started: ask first, so that a run can save its state."""

    def send(number: int) -> None:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, number)

    send(signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_END
    while any(child.process.poll() is None for child in children) and time.monotonic() < deadline:
        if len(received) > 1:  # who asks twice does not want to wait
            break
        time.sleep(0.1)
    send(signal.SIGKILL)
    for child in children:
        child.process.wait()
        child.output.close()


def _print_list(resolved: list[tuple[Cell, Experiment]]) -> None:
    lines = [
        [str(cell.index), cell.experiment, shlex.join(cell.overrides) or "-", f"seed={experiment.config['seed']}"]
        for cell, experiment in resolved
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line, (_, experiment) in zip(lines, resolved, strict=True):
        index, *others = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("  ".join([index.strip().rjust(widths[0]), *others, str(experiment.folder)]))


def _print_status(resolved: list[tuple[Cell, Experiment]]) -> None:
    """A row for each experiment and variant, the number of its cells in each state; then what failed."""
    from rich.table import Table

    from experiments.formats import console_for

    states = [(cell, experiment, state(experiment)) for cell, experiment in resolved]
    counts: dict[tuple[str, str], Counter] = {}
    for cell, _, its_state in states:
        counts.setdefault((cell.experiment, " ".join(cell.overrides)), Counter())[its_state] += 1
    total = sum(counts.values(), Counter())
    shown = [each for each in STATES if each != "outdated" or total[each]]
    table = Table("experiment", "overrides", *shown)
    for column in table.columns[2:]:
        column.justify = "right"
    for (experiment, overrides), count in counts.items():
        table.add_row(experiment, overrides, *(str(count[each] or "") for each in shown))
    table.add_section()
    table.add_row("all", f"{len(resolved)} cells", *(str(total[each]) for each in shown))
    console_for(table).print(table)
    for cell, experiment, its_state in states:
        if its_state == "failed":
            last = (experiment.folder / "failed.txt").read_text().strip().splitlines()[-1:] or [""]
            print(f"{cell.index}: {cell} failed: {last[0]}\n    {experiment.folder / 'failed.txt'}")
    if total["outdated"]:
        print(STATES_NOTE)


def _array(resolved: list[tuple[Cell, Experiment]]) -> str:
    """Numbers of the cells to run, neighbours joined: "0-3,7"; empty where nothing is left to do."""
    indices = [cell.index for cell, experiment in resolved if _is_due(experiment, state(experiment))]
    return ",".join("-".join(map(str, span)) for span in spans(indices))


def _is_due(experiment: Experiment, its_state: str) -> bool:
    return its_state != "running" and (its_state != "done" or experiment.config["force"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description=__doc__,
        epilog="sweeps: " + ", ".join(sweeps()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a sweep, one of those below")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="laid over every cell")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--count", action="store_true", help="print the number of cells")
    mode.add_argument("--list", action="store_true", help="print a line for each cell")
    mode.add_argument("--index", type=int, metavar="K", help="run cell K in this process")
    mode.add_argument("--local", action="store_true", help="run all unfinished cells on this machine (default)")
    mode.add_argument("--status", action="store_true", help="print how far each cell is")
    mode.add_argument("--array", action="store_true", help="print the cells neither done nor running: 0-3,7")
    mode.add_argument("--wandb", action="store_true", help="print the definition of the same sweep for W&B, as YAML")
    parser.add_argument(
        "--without",
        type=lambda text: text.split(","),
        default=[],
        metavar="METHOD,...",
        help="leave out the cells of these methods; the others keep their numbers",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="of all cells: so many at a time (default: 1)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="with --wandb: write to a file")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0; 1 where a cell failed under ``--local``; 2, with one line on standard error, where something
        is wrong with the sweep or an override; 130 after Ctrl-C; 128 and the number of a signal that stopped the run
        (see `experiments.slurm.stoppable`).
    """
    return slurm.stoppable(lambda: _main(_parser().parse_intermixed_args(argv)))


@told_in_a_line
def _main(arguments: argparse.Namespace) -> int:
    if arguments.count:
        print(len(cells(arguments.name, arguments.without)))
        return 0
    if arguments.jobs < 1:
        raise ConfigError(f"--jobs {arguments.jobs}: at least one cell runs at a time")
    if arguments.output and not arguments.wandb:
        raise ConfigError(f"--output {arguments.output}: only --wandb writes a file; leave it out")
    resolved = resolve(arguments.name, arguments.overrides, arguments.without)
    if arguments.list:
        _print_list(resolved)
    elif arguments.status:
        _print_status(resolved)
    elif arguments.array:
        print(_array(resolved))
    elif arguments.wandb:
        tell(wandb_sweep(arguments.name, resolved, arguments.overrides), arguments.output)
    elif arguments.index is None:
        return _local(arguments.name, resolved, arguments.jobs)
    else:
        run_here(_numbered(arguments, resolved))
    return 0


def _numbered(arguments: argparse.Namespace, resolved: list[tuple[Cell, Experiment]]) -> Experiment:
    """The run of the cell that ``--index`` asks for."""
    by_number = {cell.index: experiment for cell, experiment in resolved}
    if arguments.index not in by_number:
        has = ", ".join(" to ".join(map(str, span)) for span in spans(list(by_number)))
        without = f" without {', '.join(arguments.without)}" if arguments.without else ""
        sweep = f"sweep {arguments.name}{without}"
        raise ConfigError(f"--index {arguments.index}: the cells of {sweep} have the numbers {has}")
    return by_number[arguments.index]


def tell(text: str, path: Path | None) -> None:
    """Print a text, or write it to a file.

    Raises:
        ConfigError: the file cannot be written.
    """
    from callbacks.files import whole_file

    if path is None:
        print(text, end="")
        return
    try:
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another place") from error


def _local(name: str, resolved: list[tuple[Cell, Experiment]], jobs: int) -> int:
    try:
        failed = run_local(name, resolved, jobs)
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command continues", file=sys.stderr)
        return 130
    if failed:
        print(f"{name}: {len(failed)} failed: {', '.join(str(cell.index) for cell in failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
