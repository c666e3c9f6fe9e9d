"""The scripts of slurm/ on a real SLURM: arrays, several tasks and nodes, preemption, failures."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
import torch
from slurm_cluster import wait_for

from callbacks import signals
from experiments import slurm
from experiments.config import ConfigError, compose

ROOT = Path(__file__).parents[1]
# 1,000 rows in batches of 10 are epochs of 100 steps; the re-masking draws random numbers while training.
LONG = [
    "gpvae_digits", "data.train_rows=1000", "data.batch_size=10", "data.validation_rows=12",
    "data.sequences_per_digit=1", "data.test_rows=55", "data.evaluation_batch_size=55", "trainer.max_steps=450",
    "trainer.check_val_every_n_epoch=1", "baselines=[]", "checkpoint.every_n_steps=40", "logger=csv",
]  # fmt: skip
SHORT = [*LONG, "trainer.max_steps=8"]
RESOURCES = ["--gpus-per-node=0", "--mem=2G", "--cpus-per-task=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="module")
def slurm_here(folder):
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    (folder / "cluster").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENPRED_PYTHON", sys.executable)
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("MASTER_ADDR", "127.0.0.1")  # the names of virtual nodes are no addresses
        with slurm_cluster.cluster(folder / "cluster") as ours:
            yield ours


def run_alone(folder, experiment):
    """Run an experiment in one process that SLURM knows nothing of; its folder."""
    its_folder, arguments_ = arguments(folder, "alone", experiment)
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in the jobs: sums of several threads are other sums
    command = [sys.executable, "-m", "experiments.run", *arguments_]
    subprocess.run(command, cwd=ROOT, env=one_thread, check=True, capture_output=True, timeout=200)
    return its_folder


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """What LONG comes to in one process that nothing stops."""
    return run_alone(folder, LONG)


def arguments(folder, name, experiment=LONG):
    root = folder / name
    return compose(experiment[0], [*experiment[1:], f"run_root={root}"]).folder, [*experiment, f"run_root={root}"]


def train(ours, folder, run, *options):
    output = f"--output={folder / 'job-%j.txt'}"
    return ours.submit(*RESOURCES, output, *options, "slurm/train.sbatch", *run, cwd=ROOT)


def output_of(folder, job):
    return "".join(path.read_text() for path in folder.glob(f"*-{job.split('_')[0]}*.txt"))


def assert_equal_runs(folder, expected):
    ours, theirs = (json.loads((each / "results.json").read_text()) for each in (folder, expected))
    assert ours["metrics"] == theirs["metrics"]
    assert ours["steps"] == theirs["steps"] == 450
    weights = [torch.load(each / "checkpoints" / "last.ckpt")["state_dict"] for each in (folder, expected)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def python_processes(argument):
    """Numbers of the Python processes with an argument on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if argument in words and words[1:3] == ["-m", "experiments.run"]:
                found.append(int(path.parent.name))
    assert found
    return found


def step_of(folder, name="last.ckpt"):
    """The step that a checkpoint of a run holds; 0 before there is one."""
    try:
        return torch.load(folder / "checkpoints" / name)["global_step"]
    except FileNotFoundError:
        return 0


def in_mid_epoch(folder):
    """Whether a run has begun its second epoch and is not near the end of it."""
    return 100 <= step_of(folder) <= 240


@pytest.mark.slow
def test_a_sweep_is_an_array_of_its_unfinished_cells(slurm_here, folder):
    short = ["data.sequences_per_digit=1", "data.test_rows=55", "trainer.max_steps=4", "data.train_rows=40"]
    short += ["baselines=[]", "logger=none", f"run_root={folder / 'sweep'}"]
    output = f"--output={folder / 'sweep-%A_%a.txt'}"
    broken = compose("forward_digits", [*short, "group=digits"]).folder
    (broken / "config.yaml").mkdir(parents=True)  # this cell fails
    (folder / "slurm").symlink_to(ROOT / "slurm")  # the array that it submits writes into the working folder
    job = slurm_here.submit(*RESOURCES, output, "slurm/sweep.sbatch", "digits", *short, cwd=folder)
    assert slurm_here.wait(job) == ["COMPLETED"], output_of(folder, job)
    told = next(folder.glob(f"sweep-{job}_*.txt")).read_text()
    array = re.search(r"Submitted batch job (\d+)", told)[1]
    states = slurm_here.wait(*(f"{array}_{index}" for index in range(4)))
    assert states == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
    assert "Traceback" in (broken / "failed.txt").read_text()
    assert len(list((folder / "sweep").rglob("results.json"))) == 3
    command = [sys.executable, "-m", "experiments.sweep", "digits", "--array", *short]
    left = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100)
    assert left.stdout == "1\n"


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "tasks"), [(1, 2), (2, 1)])
def test_two_tasks_train_as_one(nodes, tasks, slurm_here, folder):
    # The script adds the world, and this experiment's strategy, to the overrides.
    world = [f"trainer.devices={tasks}", f"trainer.num_nodes={nodes}", "trainer.strategy=ddp"]
    its_folder, _ = arguments(folder, "two", [SHORT[0], *world, *SHORT[1:]])
    run = [*SHORT, f"run_root={folder / 'two'}"]
    job = train(slurm_here, folder, run, f"--nodes={nodes}", f"--ntasks-per-node={tasks}")
    assert slurm_here.wait(job) == ["COMPLETED"], output_of(folder, job)
    results = json.loads((its_folder / "results.json").read_text())
    assert (results["world_size"], results["steps"]) == (2, 8)
    one, _ = arguments(folder / f"{nodes}", "alone", SHORT)
    shutil.copytree(its_folder / "checkpoints", one / "checkpoints")  # the same weights, which are not trained again
    assert run_alone(folder / f"{nodes}", SHORT) == one
    scored = json.loads((one / "results.json").read_text())
    assert (scored["world_size"], scored["steps"]) == (1, 8)
    assert scored["metrics"] == pytest.approx(results["metrics"], rel=1e-6)
    weights = [torch.load(each / "checkpoints" / "last.ckpt")["state_dict"] for each in (one, its_folder)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def interrupt(how, job, run, ours, folder):
    """Stop a job on one of the ways in which a cluster does."""
    if how == "USR1":
        ours.call("scancel", "--signal=USR1", job)
    elif how == "requeue":
        ours.call("scontrol", "requeue", job)
    elif how == "a more urgent job":
        whole_node = [f"--nodelist={ours.facts(job)['NodeList']}", "--nodes=1", "--ntasks-per-node=2", "--mem=1G"]
        ours.submit("--partition=urgent", *whole_node, "--output=/dev/null", "--wrap=true", cwd=folder)
    elif how == "a node dies":
        ours.lose(ours.facts(job)["NodeList"])
    else:
        for process in python_processes(run[-1]):
            os.kill(process, signal.SIGKILL)  # scancel would cancel the job as well


@pytest.mark.slow
def test_a_job_that_is_interrupted_goes_on_as_if_nothing_had_been(slurm_here, folder, uninterrupted):
    nodes = {"USR1": "node0", "requeue": "node0", "a more urgent job": "node1", "KILL": "node2", "a node dies": "node3"}
    unasked = {"KILL", "a node dies"}
    folders, runs, jobs, steps = {}, {}, {}, {}
    for how, node in nodes.items():  # side by side, since most of the time goes into SLURM's waits
        folders[how], runs[how] = arguments(folder, how)
        jobs[how] = train(slurm_here, folder, runs[how], f"--nodelist={node}")
    waiting = list(nodes)
    while waiting:
        how = waiting.pop(0)
        if in_mid_epoch(folders[how]):
            steps[how] = step_of(folders[how])
            interrupt(how, jobs[how], runs[how], slurm_here, folder)
        else:
            assert not (folders[how] / "results.json").exists(), f"{how}: over before it could be interrupted"
            waiting.append(how)
            time.sleep(0.05)
    assert slurm_here.wait(jobs["KILL"]) == ["FAILED"]
    jobs["KILL"] = train(slurm_here, folder, runs["KILL"])
    lost = jobs["a node dies"]
    wait_for(lambda: slurm_here.state(lost) == "PENDING", "the requeue of a job whose node died")
    slurm_here.call("scontrol", "update", f"JobId={lost}", "ReqNodeList=node2")  # else it waits for the node it named
    continues_from = dict.fromkeys(unasked, "last.ckpt")
    for how in nodes.keys() - {"KILL"}:
        slurm_here.restart_now(jobs[how])
        if how not in unasked:  # it saved its state when it was asked to stop
            last, saved = step_of(folders[how]), step_of(folders[how], "preempt.ckpt")
            assert max(100, steps[how], last) <= saved < 450
            continues_from[how] = "preempt.ckpt" if saved > last else "last.ckpt"
    for how, job in jobs.items():
        assert slurm_here.wait(job) == ["COMPLETED"], output_of(folder, job)
        assert slurm_here.facts(job)["Restarts"] == ("0" if how == "KILL" else "1")
        log = (folders[how] / "log.txt").read_text()
        assert re.findall("continuing from (.*)", log) == [str(folders[how] / "checkpoints" / continues_from[how])]
        assert_equal_runs(folders[how], uninterrupted)
        assert not (folders[how] / "checkpoints" / "preempt.ckpt").exists()
    slurm_here.repair("node3")


@pytest.mark.slow
def test_preempted_ranks_stop_at_one_step_and_the_right_element_comes_again(slurm_here, folder):
    world = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    options = [*RESOURCES, "--array=3", "--ntasks-per-node=2", f"--output={folder / 'array-%A_%a.txt'}"]
    folders, jobs = [], []
    for name in ("array", "array undisturbed"):
        its_folder, run = arguments(folder, name, [*LONG, *world])
        folders.append(its_folder)
        jobs.append(f"{slurm_here.submit(*options, 'slurm/sweep.sbatch', 'digits', *run[1:], cwd=ROOT)}_3")
    wait_for(lambda: in_mid_epoch(folders[0]), "the second epoch")
    slurm_here.call("scancel", "--signal=USR1", jobs[0])
    slurm_here.restart_now(jobs[0])
    assert torch.load(folders[0] / "checkpoints" / "preempt.ckpt")["global_step"] % 10 == 0
    assert slurm_here.wait(*jobs) == ["COMPLETED", "COMPLETED"], [output_of(folder, job) for job in jobs]
    assert [slurm_here.facts(job)["Restarts"] for job in jobs] == ["1", "0"]
    assert_equal_runs(*folders)


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_a_script_of_slurm_is_requeued_in_time_and_stops_at_an_error(name):
    lines = (ROOT / "slurm" / f"{name}.sbatch").read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--requeue", "--open-mode=append"} <= set(options)
    (warning,) = [each for each in options if each.startswith("--signal=")]
    number, seconds = re.fullmatch(r"--signal=(\w+)@(\d+)", warning).groups()  # to the steps: no "B:"
    assert getattr(signal, f"SIG{number}") in signals.REQUEUE
    assert int(seconds) >= 120
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands[0] == "set -euo pipefail"


@pytest.mark.parametrize(
    ("variables", "overrides", "message"),
    [
        ({"SLURM_STEP_ID": None}, [], "put srun before python"),
        ({"SLURM_JOB_NAME": "bash"}, [], "choose another name with --job-name"),
        ({}, ["trainer.devices=2", "trainer.num_nodes=2"], "set trainer.num_nodes=1, or ask for --nodes=2"),
        ({}, ["trainer.devices=4"], "set trainer.devices=2, or ask for --ntasks-per-node=4"),
        ({}, [], "set trainer.devices=2, or ask for --ntasks-per-node=1"),
        ({"SLURM_NTASKS_PER_NODE": None}, ["trainer.devices=2"], "ask with --ntasks-per-node=2"),
        ({}, ["trainer.devices=2", "force=true"], "remove runs/mean_digits"),
        ({"SLURM_GPUS_ON_NODE": "1"}, ["trainer.devices=2"], "set trainer.devices=1, or ask for --gpus-per-node=2"),
        (
            {"SLURM_GPUS_ON_NODE": "4"},
            ["trainer.devices=auto"],
            "set trainer.devices=2, or ask for --ntasks-per-node=4",
        ),
        ({}, ["trainer.devices=[0,1,2]"], "set trainer.devices=2, or ask for --ntasks-per-node=3"),
    ],
)
def test_what_slurm_did_not_give_is_told_in_a_line(variables, overrides, message, monkeypatch):
    given = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "genpred", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
    given |= {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2"}
    for name, value in (given | variables).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(message)):
        slurm.check_resources(compose("mean_digits", overrides))
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    slurm.check_resources(compose("mean_digits", ["trainer.devices=2"]))
    monkeypatch.setenv("SLURM_NTASKS", "1")
    slurm.check_resources(compose("mean_digits"))
    for name in given:
        monkeypatch.delenv(name)
    slurm.check_resources(compose("mean_digits", ["trainer.devices=8"]))
