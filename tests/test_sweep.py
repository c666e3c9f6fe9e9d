"""Sweeps: the order of their cells, what is refused, how cells run side by side, fail, and are watched."""

import contextlib
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from callbacks import files
from callbacks.files import whole_file
from experiments import build, grid, sweep
from experiments.config import compose, config_hash
from experiments.grid import cells, resolve, sweeps, variant_name
from experiments.sweep import is_running, main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a sweep; the folder of sweeps is the test's own."""
    folder = tmp_path / "experiments" / "sweeps"
    folder.mkdir(parents=True)
    monkeypatch.setattr(grid, "SWEEPS", folder)

    def write_sweep(text, name="small"):
        (folder / f"{name}.yaml").write_text(text)
        return name

    return write_sweep


TWO_BLOCKS = """
blocks:
  - methods: [mean, forward]
    datasets: [digits, hmnist]
    seeds: [0]
    exclude: [{method: forward, dataset: hmnist}]
  - methods: [vae, gpvae]
    datasets: [hmnist]
    seeds: [3, 1]
    variants: ["", model.beta=0.5 model.latent_dim=8]
    grid: {model.decoder_sizes: [[8], [8, 4]], data.fit_on: [train]}
    exclude: [{method: vae, seed: [1, 2]}, {model.beta: 0.5, model.decoder_sizes: [[8, 4]]}]
"""


def test_a_sweep_is_the_product_of_its_axes_without_what_is_excluded(write):
    found = [str(cell) for cell in cells(write(TWO_BLOCKS))]
    short, long = "'model.decoder_sizes=[8]' data.fit_on=train", "'model.decoder_sizes=[8, 4]' data.fit_on=train"
    other = "model.beta=0.5 model.latent_dim=8"
    assert found == [
        "mean_digits seed=0",
        "mean_hmnist seed=0",
        "forward_digits seed=0",
        f"vae_hmnist {short} seed=3",
        f"gpvae_hmnist {short} seed=3",
        f"vae_hmnist {other} {short} seed=3",
        f"gpvae_hmnist {other} {short} seed=3",
        f"vae_hmnist {long} seed=3",
        f"gpvae_hmnist {long} seed=3",
        f"gpvae_hmnist {short} seed=1",
        f"gpvae_hmnist {other} {short} seed=1",
        f"gpvae_hmnist {long} seed=1",
    ]
    assert [cell.index for cell in cells("small")] == list(range(len(found)))


def test_what_is_added_at_the_end_renumbers_nothing(write):
    before = cells(write(TWO_BLOCKS))
    more_seeds = cells(write(TWO_BLOCKS.replace("[3, 1]", "[3, 1, 0, 7]")))
    another_block = cells(write(TWO_BLOCKS + "  - {methods: [mean], datasets: [digits], seeds: [1]}\n"))
    for after in (more_seeds, another_block):
        assert len(after) > len(before)
        assert after[: len(before)] == before


BLOCK = "blocks: [{methods: [mean], datasets: [digits], seeds: [0]%s}]"


def test_methods_that_are_left_out_renumber_nothing(write, capsys, monkeypatch):
    write(TWO_BLOCKS)
    every = {cell.index: str(cell) for cell in cells("small")}
    kept = {index: text for index, text in every.items() if not text.startswith(("vae_", "forward_"))}
    assert main(["small", "--without", "vae,forward", "--list"]) == 0
    listed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert listed == [[str(index), text.split()[0]] for index, text in kept.items()]
    assert main(["small", "--count", "--without", "vae,forward"]) == 0
    assert capsys.readouterr().out == f"{len(kept)}\n"
    run = []
    monkeypatch.setattr(sweep, "run_here", run.append)
    last = max(kept)
    assert main(["small", "--without", "vae,forward", "--index", str(last)]) == 0
    assert [experiment.name for experiment in run] == [kept[last].split()[0]]
    left_out = next(index for index in every if index not in kept)
    assert main(["small", "--without", "vae,forward", "--index", str(left_out)]) == 2
    told = capsys.readouterr().err
    numbers = re.match(
        f"error: --index {left_out}: the cells of sweep small without vae, forward have the numbers (.*)\n", told
    )[1]
    spelt = [span.split(" to ") for span in numbers.split(", ")]
    assert [number for first, *last in spelt for number in range(int(first), int((last or [first])[0]) + 1)] == list(
        kept
    )


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (BLOCK % "", ["smal", "--count"], "error: sweep 'smal' does not exist. Did you mean 'small'?\n"),
        ("blocks: []", ["small", "--count"], "experiments/sweeps/small.yaml: blocks is empty: a sweep has"),
        (
            "block: []",
            ["small", "--count"],
            "experiments/sweeps/small.yaml: block is not known. Did you mean 'blocks'?",
        ),
        ("blocks: {a: [1}", ["small", "--count"], "experiments/sweeps/small.yaml: not valid YAML"),
        (BLOCK % ", method: [vae]", ["small", "--count"], "blocks[0]: method is not known. Did you mean 'methods'?"),
        (BLOCK % ", variants: [1]", ["small", "--count"], "blocks[0]: variants=[1] is of a wrong type"),
        (BLOCK % ", variants: [plus]", ["small", "--count"], "blocks[0]: 'plus' is not of the form key=value"),
        (BLOCK % ", grid: {seed: [1]}", ["small", "--count"], "blocks[0]: 'seed=1' belongs in seeds"),
        (
            BLOCK % ", exclude: [{seed: 1}]",
            ["small", "--count"],
            "blocks[0].exclude[0] agrees with no cell: {'seed': 1}",
        ),
        (BLOCK % ", exclude: [{seed: 0}]", ["small", "--count"], "blocks[0] has no cell: exclude leaves nothing"),
        (BLOCK.replace("seeds: [0]", "seeds: []") % "", ["small", "--count"], "blocks[0].seeds is missing or empty"),
        (BLOCK.replace("mean", "maen") % "", ["small", "--count"], "experiment 'maen_digits' does not exist. Did you"),
        (BLOCK.replace("[0]", "[0, 0]") % "", ["small", "--count"], "holds mean_digits seed=0 a second time"),
        (
            BLOCK % ", variants: [data.bach_size=2]",
            ["small", "--local"],
            "error: sweep small, cell 0 (mean_digits data.bach_size=2 seed=0): command line: data.bach_size is not "
            "known. Did you mean 'batch_size'?\n",
        ),
        (BLOCK % "", ["small", "--local", "sede=1"], "command line: sede is not known. Did you mean 'seed'?"),
        (
            BLOCK.replace("[0]", "[0, 1]") % "",
            ["small", "--list", "seed=4"],
            "small: cells 0 and 1 are one run, runs/mean",
        ),
        (BLOCK % "", ["small", "--index", "1"], "error: --index 1: the cells of sweep small have the numbers 0\n"),
        (BLOCK % "", ["small", "--index", "-1"], "error: --index -1: the cells of sweep small have the numbers 0\n"),
        (
            BLOCK % "",
            ["small", "--count", "--without", "maen"],
            "error: sweep small has no method 'maen' to be without; it has mean\n",
        ),
        (
            BLOCK % "",
            ["small", "--local", "--without", "mean"],
            "error: sweep small has no cell without mean: leave one of them in\n",
        ),
        (BLOCK % "", ["small", "--local", "--jobs", "0"], "error: --jobs 0: at least one cell runs at a time\n"),
    ],
)
def test_what_is_wrong_stops_in_one_line_before_anything_starts(text, arguments, message, write, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "RUN", ("/nowhere",))
    monkeypatch.setattr(build, "execute", None)
    write(text)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


LARGE = ("table4", "table5")  # of 64 and 48 cells


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in sweeps()]
)
def test_every_sweep_that_ships_names_what_exists(name):
    text = (grid.SWEEPS / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert f"python -m experiments.sweep {name} " in text.split("blocks:")[0]
    found = cells(name)
    alike = {(cell.experiment, cell.values.get("preset"), tuple(cell.values)): cell for cell in found}
    for cell in alike.values():
        assert compose(cell.experiment, cell.arguments[1:]).variant == variant_name(cell.values), str(cell)


def test_counting_imports_no_torch():
    code = "import sys\nfrom experiments.sweep import main\nmain(['gpvae_ablation', '--count'])\n"
    code += "print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == [str(len(cells("gpvae_ablation"))), "False", "False"]


def test_the_list_names_each_cell_and_its_folder(write, capsys):
    write("blocks: [{methods: [mean, gpvae], datasets: [hmnist], seeds: [0, 12], variants: [data.data_seed=1]}]")
    assert main(["small", "--list", "run_root=elsewhere", "logger=csv"]) == 0
    variant = compose("mean_hmnist", ["data.data_seed=1"]).variant
    assert capsys.readouterr().out.splitlines() == [
        f"0  mean_hmnist   data.data_seed=1  seed=0   elsewhere/mean_hmnist/{variant}/seed0",
        f"1  gpvae_hmnist  data.data_seed=1  seed=0   elsewhere/gpvae_hmnist/{variant}/seed0",
        f"2  mean_hmnist   data.data_seed=1  seed=12  elsewhere/mean_hmnist/{variant}/seed12",
        f"3  gpvae_hmnist  data.data_seed=1  seed=12  elsewhere/gpvae_hmnist/{variant}/seed12",
    ]


def finish(experiment, **changes):
    experiment.folder.mkdir(parents=True, exist_ok=True)
    results = {"config_sha256": config_hash(experiment.identity)} | changes
    (experiment.folder / "results.json").write_text(json.dumps(results))


# What stands in for `experiments.run`: does for each cell what the test has planned, and tells when it began and ended.
STAND_IN = """
import json, os, shlex, signal, subprocess, sys, time
from pathlib import Path

plan = json.loads(Path(sys.argv[1]).read_text())
folder, results, what = plan[shlex.join(sys.argv[2:])]
folder, log = Path(folder), Path(sys.argv[1]).with_suffix(".log")
folder.mkdir(parents=True, exist_ok=True)

def tell(event):
    with log.open("a") as file:
        file.write(f"{time.monotonic()} {event} {folder}\\n")

tell("begins")
if what == "fails":
    print("some output")
    raise ValueError("no such luck")
if what == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "waits":
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    worker = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    worker.stdout.readline()
    def saves(*_):
        (folder / "saved").touch()
        sys.exit(1)
    signal.signal(signal.SIGTERM, saves)
    (folder / "waiting").write_text(f"{os.getpid()} {worker.pid}")
    time.sleep(600)
time.sleep(0.3)
(folder / "results.json").write_text(json.dumps(results))
tell("ends")
"""


class StandIn:
    """A sweep of four cells below `root`, and what each of them does when it is run."""

    def __init__(self, root):
        self.root, self.path = root / "runs", root / "plan.json"
        self.overrides = [f"run_root={self.root}", "logger=none"]
        self.experiments = [experiment for _, experiment in resolve("small", self.overrides)]
        (root / "stand_in.py").write_text(STAND_IN)
        self.command = (sys.executable, str(root / "stand_in.py"), str(self.path))

    def folder(self, index):
        return self.experiments[index].folder

    def run(self, *what, jobs=2):
        """The exit status when cell after cell does `what`, and what they told: [(event, cell)]."""
        each = zip(self.experiments, what or ["succeeds"] * 4, strict=True)
        plan = {
            shlex.join([experiment.name, *experiment.overrides]): (
                str(experiment.folder),
                {"config_sha256": config_hash(experiment.identity)},
                its_part,
            )
            for experiment, its_part in each
        }
        self.path.write_text(json.dumps(plan))
        log = self.path.with_suffix(".log")
        log.write_text("")
        status = main(["small", *(["--local", "--jobs", str(jobs)] if jobs > 1 else []), *self.overrides])
        folders = [str(experiment.folder) for experiment in self.experiments]
        lines = [line.split() for line in sorted(log.read_text().splitlines())]
        return status, [(event, folders.index(folder)) for _, event, folder in lines]


@pytest.fixture
def stand_in(write, tmp_path, monkeypatch):
    write("blocks: [{methods: [mean, forward], datasets: [digits], seeds: [0, 1]}]")
    made = StandIn(tmp_path)
    monkeypatch.setattr(sweep, "RUN", made.command)
    return made


@pytest.mark.parametrize("jobs", [1, 2])
def test_cells_run_so_many_at_a_time_and_once(stand_in, jobs, capsys):
    status, events = stand_in.run(jobs=jobs)
    assert status == 0
    running, most = 0, 0
    for event, _ in events:
        running += 1 if event == "begins" else -1
        most = max(most, running)
    assert most <= jobs
    # How far they overlap, and which of two begins first, is the machine's affair; what the sweep starts is not.
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [" started in " in line for line in lines].index(False) == jobs
    assert [line.split(":")[0] for line in lines if " started in " in line] == ["0", "1", "2", "3"]
    assert sorted(events) == [(event, index) for event in ("begins", "ends") for index in range(4)]
    assert stand_in.run(jobs=jobs) == (0, [])
    assert "small: 0 of 4 cells to run" in capsys.readouterr().out


def test_a_failure_is_kept_until_the_cell_succeeds_and_stops_no_other(stand_in, capsys):
    status, events = stand_in.run("fails", "succeeds", "is killed", "succeeds")
    assert status == 1
    assert {index for event, index in events if event == "ends"} == {1, 3}
    captured = capsys.readouterr()
    assert "[4/4]" in captured.out
    assert "FAILED, exit status 1: ValueError: no such luck" in captured.out
    assert captured.err == "small: 2 failed: 0, 2\n" or captured.err == "small: 2 failed: 2, 0\n"
    kept = (stand_in.folder(0) / "failed.txt").read_text()
    command, how, *output = kept.splitlines()
    overrides = ["seed=0", "group=small", *stand_in.overrides]
    assert command == shlex.join(["python", "-m", "experiments.run", "mean_digits", *overrides])
    assert how == "exit status 1"
    assert "some output" in output
    assert "Traceback (most recent call last):" in output
    assert output[-1] == "ValueError: no such luck"
    assert "\nended by SIGKILL\n" in (stand_in.folder(2) / "failed.txt").read_text()
    status, events = stand_in.run()
    assert status == 0
    assert sorted(events) == [("begins", 0), ("begins", 2), ("ends", 0), ("ends", 2)]
    assert not list(stand_in.root.rglob("failed.txt"))


def test_a_cell_that_runs_elsewhere_is_left_alone(stand_in, capsys):
    stand_in.folder(1).mkdir(parents=True)
    with filelock.FileLock(stand_in.folder(1) / ".lock"):
        status, events = stand_in.run()
        assert status == 0
        assert {index for _, index in events} == {0, 2, 3}
        assert f"1: forward_digits seed=0 runs elsewhere, in {stand_in.folder(1)}\n" in capsys.readouterr().out
    assert stand_in.run()[1] == [("begins", 1), ("ends", 1)]


def test_a_cell_that_another_process_took_meanwhile_has_not_failed(stand_in, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "state", lambda experiment: "missing")
    stand_in.folder(0).mkdir(parents=True)
    with filelock.FileLock(stand_in.folder(0) / ".lock"):
        assert stand_in.run("fails", *["succeeds"] * 3)[0] == 0
    assert "0: mean_digits seed=0 runs elsewhere" in capsys.readouterr().out
    assert not list(stand_in.root.rglob("failed.txt"))


def test_finished_cells_run_again_when_forced_or_of_another_configuration(stand_in):
    for experiment in stand_in.experiments:
        finish(experiment)
    finish(stand_in.experiments[2], config_sha256="0" * 64)
    assert stand_in.run()[1] == [("begins", 2), ("ends", 2)]
    stand_in.overrides.append("force=true")
    stand_in.experiments = [experiment for _, experiment in resolve("small", stand_in.overrides)]
    assert len(stand_in.run()[1]) == 8


def ends(pid):
    """Whether a process is gone, or will be soon: a signal takes its time on a busy machine."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_and_what_they_started(number, stand_in, capsys):
    # A test run in the background may have been told to ignore the signal, which a sweep then heeds.
    before = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}[number]
    outside = signal.signal(number, before)
    pids = []

    def interrupt():
        deadline = time.monotonic() + 60
        while len(found := list(stand_in.root.rglob("waiting"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        pids.extend(int(pid) for path in found for pid in path.read_text().split())
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, events = stand_in.run("succeeds", "waits", "waits", "succeeds")
    thread.join()
    assert status == 130
    assert len(pids) == 4
    assert all(ends(pid) for pid in pids)
    assert (stand_in.folder(1) / "saved").exists()  # asked before it was ended
    assert [event for event in events if event[1] == 3] == []
    assert not list(stand_in.root.rglob("failed.txt"))
    assert capsys.readouterr().err == "small: stopped; the same command continues\n"
    assert signal.getsignal(number) is before
    signal.signal(number, outside)


def test_the_status_counts_each_state_and_shows_why_a_cell_failed(write, tmp_path, capsys):
    write(
        "blocks: [{methods: [mean], datasets: [digits], seeds: [0, 1, 2, 3, 4]},"
        "{methods: [forward], datasets: [digits], seeds: [0, 1], variants: [data.data_seed=1]}]"
    )
    overrides = [f"run_root={tmp_path / 'runs'}"]
    experiments = [experiment for _, experiment in resolve("small", overrides)]
    finish(experiments[0])
    (experiments[0].folder / "failed.txt").touch()  # of an earlier attempt
    finish(experiments[1])
    for experiment in experiments[2:5]:
        (experiment.folder / "checkpoints").mkdir(parents=True)
        (experiment.folder / ".lock").touch()
    (experiments[3].folder / "failed.txt").write_text("Traceback\nValueError: no such luck\n")
    (experiments[4].folder / "checkpoints" / "last.ckpt").touch()

    def shown():
        assert main(["small", "--status", *overrides]) == 0
        lines = capsys.readouterr().out.splitlines()
        header = [cell.strip() for cell in lines[1].strip("┃").split("┃")]
        rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]
        return header, rows, [line for line in lines if not re.match("[┏┃┡│├└]", line)]

    with filelock.FileLock(experiments[2].folder / ".lock"):
        header, rows, others = shown()
    assert header == ["experiment", "overrides", "done", "running", "failed", "unfinished", "missing"]
    assert rows == [
        ["mean_digits", "", "2", "1", "1", "1", ""],
        ["forward_digits", "data.data_seed=1", "", "", "", "", "2"],
        ["all", "7 cells", "2", "1", "1", "1", "2"],
    ]
    assert others == [
        "3: mean_digits seed=3 failed: ValueError: no such luck",
        f"    {experiments[3].folder / 'failed.txt'}",
    ]
    finish(experiments[0], config_sha256="0" * 64)
    header, rows, others = shown()
    assert header[-1] == "outdated"
    assert rows[-1] == ["all", "7 cells", "1", "0", "1", "1", "3", "1"]
    assert others[-1] == "outdated: finished with another configuration; force=true runs it again"
    (experiments[0].folder / "results.json").write_text("{")
    assert main(["small", "--status", *overrides]) == 2
    assert f"{experiments[0].folder / 'results.json'} is damaged" in capsys.readouterr().err


def test_looking_at_a_lock_neither_makes_nor_keeps_one(tmp_path):
    assert not is_running(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    lock = filelock.FileLock(tmp_path / ".lock", timeout=0)
    with lock:
        assert is_running(tmp_path)
    assert not is_running(tmp_path)
    with lock:
        pass


def test_a_cell_that_fails_here_leaves_its_traceback_until_it_succeeds(write, tmp_path, capsys, monkeypatch):
    write("blocks: [{methods: [mean, forward], datasets: [digits], seeds: [0]}]")
    arguments = ["small", "--index", "1", f"run_root={tmp_path / 'runs'}"]
    executed = []

    def execute(experiment, error=None):
        executed.append(experiment.name)
        if error:
            raise error

    monkeypatch.setattr(build, "execute", lambda experiment: execute(experiment, build.RunError("refused")))
    assert main(arguments) == 2
    assert capsys.readouterr().err == "error: refused\n"
    failed = tmp_path / "runs" / "forward_digits" / "default" / "seed0" / "failed.txt"
    assert failed.read_text().splitlines()[-1] == "experiments.build.RunError: refused"
    monkeypatch.setattr(build, "execute", lambda experiment: execute(experiment, ZeroDivisionError("inside")))
    with pytest.raises(ZeroDivisionError):
        main(arguments)
    assert failed.read_text().startswith("Traceback (most recent call last):\n")
    assert failed.read_text().splitlines()[-1] == "ZeroDivisionError: inside"
    monkeypatch.setattr(build, "execute", execute)
    assert main(arguments) == 0
    assert not failed.exists()
    assert executed == ["forward_digits"] * 3


def test_the_rank_that_fails_first_tells_why_though_another_holds_the_lock(write, tmp_path, monkeypatch):
    write("blocks: [{methods: [mean], datasets: [digits], seeds: [0]}]")
    folder = tmp_path / "runs" / "mean_digits" / "default" / "seed0"
    folder.mkdir(parents=True)
    failed = folder / "failed.txt"
    failed.write_text("an earlier attempt")

    def run(rank, what, restart="0"):
        """Fail as a rank of a step, or succeed (None); what lies in the folder then."""
        step = {"SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": restart, "SLURM_JOB_NAME": "x"}

        def execute(_):
            if what:
                raise ZeroDivisionError(what)

        with monkeypatch.context() as patch:
            patch.setattr(build, "execute", execute)
            for name, value in (step | {"SLURM_PROCID": str(rank)}).items():
                patch.delenv(name, raising=False) if rank is None else patch.setenv(name, value)
            if what:
                with pytest.raises(ZeroDivisionError):
                    main(["small", "--index", "0", f"run_root={tmp_path / 'runs'}"])
            else:
                assert main(["small", "--index", "0", f"run_root={tmp_path / 'runs'}"]) == 0
        return failed.read_text() if failed.exists() else None

    with filelock.FileLock(folder / ".lock"):
        assert run(None, "a process without SLURM") == run(0, "another job") == "an earlier attempt"
        kept = run(1, "the cause")
        assert kept.startswith("SLURM job 42.0, restart 0, rank 1\nTraceback (most recent call last):\n")
        assert kept.endswith("ZeroDivisionError: the cause\n")
        assert run(2, "a consequence") == kept
    assert run(0, "a consequence, after the lock is gone") == kept
    assert run(1, None) == kept  # this rank is through
    again = run(3, "the next attempt", restart="1")
    assert again.splitlines()[0] == "SLURM job 42.0, restart 1, rank 3"
    assert again.endswith("ZeroDivisionError: the next attempt\n")
    assert run(0, None) is None


def test_ranks_that_fail_at_once_leave_the_failure_of_one_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)

    @contextlib.contextmanager
    def slowly(path):
        (tmp_path / f"writer{os.environ['SLURM_PROCID']}").touch()
        time.sleep(0.5)
        with whole_file(path) as file:
            yield file

    monkeypatch.setattr(files, "whole_file", slowly)

    def fail(rank):
        os.environ["SLURM_PROCID"] = str(rank)
        start.wait(30)
        sweep._keep_failure(tmp_path, f"fault of {rank}")

    with filelock.FileLock(tmp_path / ".lock"):
        ranks = [context.Process(target=fail, args=(rank,)) for rank in range(1, 5)]
        for each in ranks:
            each.start()
        for each in ranks:
            each.join(60)
    assert [each.exitcode for each in ranks] == [0] * 4
    (writer,) = tmp_path.glob("writer*")
    rank = writer.name.removeprefix("writer")
    assert (tmp_path / "failed.txt").read_text() == f"SLURM job 42.0, restart 0, rank {rank}\nfault of {rank}"


def test_a_folder_that_cannot_be_written_is_a_failure_like_any_other(stand_in, capsys):
    stand_in.root.touch()
    assert main(["small", "--index", "0", *stand_in.overrides]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert stand_in.run() == (1, [])
    captured = capsys.readouterr()
    assert captured.out.count("FAILED, exit status 1: NotADirectoryError") == 4
    assert "failed.txt" not in captured.out
    assert captured.err.startswith("small: 4 failed: ")


@pytest.mark.slow
def test_cells_run_through_the_real_command(write, tmp_path, capsys):
    write("blocks: [{methods: [mean, forward], datasets: [digits], seeds: [0]}]")
    small = ["data.sequences_per_digit=1", "data.test_rows=55", f"run_root={tmp_path / 'runs'}", "logger=none"]
    assert main(["small", "--index", "1", *small]) == 0
    capsys.readouterr()
    assert main(["small", "--local", *small]) == 0
    assert "small: 1 of 2 cells to run" in capsys.readouterr().out
    assert [sweep.state(experiment) for _, experiment in resolve("small", small)] == ["done", "done"]
    again = [*small, "force=true", "baselines=[vae]"]
    assert main(["small", "--local", "--jobs", "2", *again]) == 1
    assert "error: baselines: vae needs training" in capsys.readouterr().out
    assert [sweep.state(experiment) for _, experiment in resolve("small", again)] == ["failed", "failed"]
