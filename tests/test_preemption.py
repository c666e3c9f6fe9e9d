"""Runs that are asked to stop: what they leave behind and how they go on; tests/test_slurm.py has a real cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from callbacks import signals
from experiments import slurm
from experiments.config import compose
from experiments.run import main
from lightning_modules.imputation.vae import VAE

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.train_rows=24", "data.batch_size=4", "data.validation_rows=12", "data.sequences_per_digit=1",
    "data.test_rows=55", "model.latent_dim=4", "model.encoder_sizes=[8]", "model.decoder_sizes=[8]",
    "trainer.max_steps=8", "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=1", "baselines=[]",
    "checkpoint.every_n_steps=3", "logger=none",
]  # fmt: skip


def run(root, *overrides):
    arguments = [*SMALL, *overrides, f"run_root={root}"]
    return main(["vae_digits", *arguments]), compose("vae_digits", arguments).folder


def checkpoint(folder, name):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


@pytest.fixture
def signalled(monkeypatch):
    """Makes a step of VAE's send this process a signal the first time that it is called so often."""

    def prepare(number, step, call):
        original, calls = getattr(VAE, step), 0

        def wrapped(self, batch, batch_index):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), number)
            return original(self, batch, batch_index)

        monkeypatch.setattr(VAE, step, wrapped)

    return prepare


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    status, folder = run(tmp_path_factory.mktemp("runs"))
    assert status == 0
    return folder


@pytest.mark.parametrize(
    ("number", "step", "call", "saved"),
    [
        (signal.SIGTERM, "training_step", 5, 5),
        (signal.SIGUSR1, "training_step", 2, 2),
        (signal.SIGUSR2, "validation_step", 1, 6),  # in the validation between two epochs: after it
        (signal.SIGUSR1, "training_step", 6, 6),  # before it: likewise
        (signal.SIGUSR1, "training_step", 8, None),  # the last: training ends, and last.ckpt says how
        (signal.SIGTERM, "test_step", 1, None),
    ],
)
def test_a_stopped_run_saves_its_state_between_steps_and_goes_on(
    number, step, call, saved, signalled, uninterrupted, tmp_path, capsys
):
    signalled(number, step, call)
    handlers = [signal.getsignal(each) for each in signals.STOPPING]
    status, folder = run(tmp_path)
    assert status == 128 + number
    assert f"stopped by {signal.Signals(number).name}; the same command continues" in capsys.readouterr().err
    assert not (folder / "results.json").exists()
    assert (folder / "checkpoints" / "preempt.ckpt").exists() == (saved is not None)
    if saved:
        assert checkpoint(folder, "preempt")["global_step"] == saved
    assert run(tmp_path)[0] == 0
    assert not (folder / "checkpoints" / "preempt.ckpt").exists()
    ours, theirs = (json.loads((each / "results.json").read_text()) for each in (folder, uninterrupted))
    assert [ours[key] for key in ("metrics", "validation", "steps")] == [
        theirs[key] for key in ("metrics", "validation", "steps")
    ]
    weights, expected = (checkpoint(each, "last")["state_dict"] for each in (folder, uninterrupted))
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert [signal.getsignal(each) for each in signals.STOPPING] == handlers


def test_gathered_gradients_are_used_before_a_run_stops(signalled, tmp_path):
    signalled(signal.SIGTERM, "training_step", 2)
    assert run(tmp_path, "trainer.accumulate_grad_batches=3", "trainer.max_steps=4")[0] == 128 + signal.SIGTERM
    (path,) = tmp_path.rglob("preempt.ckpt")
    state = torch.load(path, weights_only=True)
    assert state["global_step"] == 1
    assert state["callbacks"]["RunStatistics"]["steps"] == 3


def test_a_signal_is_heard_while_modules_are_imported(tmp_path):
    command = [sys.executable, "-v", "-m", "experiments.run", "vae_digits", *SMALL, f"run_root={tmp_path}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if line.startswith("import 'torch._C'") or "import torch" in line or "'numpy'" in line:
                process.send_signal(signal.SIGUSR1)
                break
        rest = process.stderr.read()
    assert process.returncode == 128 + signal.SIGUSR1
    assert "stopped by SIGUSR1; the same command continues" in rest
    assert not list(tmp_path.rglob("results.json"))


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # handlers run between two instructions


def test_a_signal_inside_is_noted_and_one_outside_is_raised():
    with signals.listening():
        deferred = signals.deferred()
        deferred.__enter__()
        send(signal.SIGUSR2)
        assert signals.received() == signal.SIGUSR2
        send(signal.SIGTERM)
        with pytest.raises(signals.Stopped, match="SIGUSR2"):
            deferred.__exit__(None, None, None)
    with signals.listening(), pytest.raises(signals.Stopped, match="SIGTERM"):
        send(signal.SIGTERM)
    assert signals.received() is None
    signals.check()


def test_children_survive_the_warning_and_not_their_end():
    with signals.listening():
        for number, survives in ((signal.SIGUSR1, True), (signal.SIGTERM, False)):
            if (child := os.fork()) == 0:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            assert (status == 0) == survives
            assert survives or os.WTERMSIG(status) == number


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The surroundings of a step of SLURM's, with an scontrol that notes what it is told."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (programs / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT", "GENPRED_MAX_REQUEUES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(slurm, "SECONDS_TO_BE_ENDED", 0.0)
    monkeypatch.setattr(slurm, "SECONDS_FOR_OTHERS", 0.0)
    return lambda: (tmp_path / "told").read_text() if (tmp_path / "told").exists() else None


def stop_by(number):
    def body():
        os.kill(os.getpid(), number)
        time.sleep(1)
        return 0

    return slurm.stoppable(body)


def test_the_warning_requeues_its_element_of_the_array_a_bounded_number_of_times(job, monkeypatch, capsys):
    assert stop_by(signal.SIGTERM) == 128 + signal.SIGTERM
    assert job() is None  # SLURM itself knows, which ends the process
    assert "waiting for SLURM" in capsys.readouterr().err
    assert stop_by(signal.SIGUSR1) == 128 + signal.SIGUSR1
    assert job() == "requeue 7\n"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "19")
    stop_by(signal.SIGUSR1)
    assert job() == "requeue 7\nrequeue 5_3\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "20")
    capsys.readouterr()
    stop_by(signal.SIGUSR1)
    assert "not requeued, since the job has been 20 times" in capsys.readouterr().err
    assert job() == "requeue 7\nrequeue 5_3\n"


def test_a_requeue_that_fails_is_told(job, tmp_path, capsys):
    (tmp_path / "programs" / "scontrol").write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    assert stop_by(signal.SIGUSR1) == 128 + signal.SIGUSR1
    assert "scontrol requeue 7: no such job; submit the job again" in capsys.readouterr().err


def test_an_error_that_the_signal_has_caused_is_no_failure(job, capsys):
    def body():
        with signals.deferred():
            send(signal.SIGUSR1)
            raise RuntimeError("a loader's worker was killed")

    assert slurm.stoppable(body) == 128 + signal.SIGUSR1
    assert job() == "requeue 7\n"
    assert "a loader's worker was killed" in capsys.readouterr().err


def test_force_does_not_undo_what_a_requeued_job_has_done(signalled, tmp_path, monkeypatch):
    signalled(signal.SIGTERM, "training_step", 5)
    _, folder = run(tmp_path, "force=true")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run(tmp_path, "force=true")[0] == 0
    assert "continuing from" in (folder / "log.txt").read_text()
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert run(tmp_path, "force=true")[0] == 0
    assert "continuing from" not in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_workers_that_are_told_to_stop_as_well_do_not_cost_the_state(tmp_path):
    arguments = [*SMALL, "trainer.max_steps=100000", "data.num_workers=2", "checkpoint.every_n_steps=100000"]
    command = [sys.executable, "-m", "experiments.run", "vae_digits", *arguments, f"run_root={tmp_path}"]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 100
        while len(children.read_text().split()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGTERM)
        told = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM, told
    (path,) = tmp_path.rglob("preempt.ckpt")
    assert 0 < torch.load(path, weights_only=True)["global_step"] < 100000
