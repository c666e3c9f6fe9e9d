"""What a run has to do with SLURM: whether it got what it wants, and how it goes on in another job."""

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable

from callbacks import signals
from experiments.config import ConfigError, Experiment

MAX_REQUEUES = 20
INTERACTIVE = ("bash", "interactive")  # names of jobs by which Lightning, too, tells shells
SECONDS_FOR_OTHERS = 30.0  # after which a rank no longer relies on rank 0
SECONDS_TO_BE_ENDED = 3600.0  # a partition may give a preempted job a grace time before it ends it


def restarts() -> int:
    """How often SLURM has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def is_step() -> bool:
    """Whether srun has started this process, and not for a shell in which somebody works."""
    return "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE


def check_resources(experiment: Experiment) -> None:
    """Compare what the Trainer wants with what SLURM gave, before anybody waits for a process that never comes.

    Args:
        experiment: from `experiments.config.compose`.

    Raises:
        ConfigError: they differ, or srun is missing, or the job's name hides SLURM from Lightning.
    """
    if "SLURM_JOB_ID" not in os.environ or not os.environ.get("SLURM_NTASKS"):
        return  # no SLURM; a shell of salloc without tasks
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES") or 1)
    name = os.environ.get("SLURM_JOB_NAME")
    if tasks > 1 and name in INTERACTIVE and "SLURM_STEP_ID" in os.environ:
        raise ConfigError(
            f"the job is called '{name}', by which Lightning tells a shell that is no concern of SLURM's, and its "
            f"{tasks} tasks would each train alone: choose another name with --job-name"
        )
    if tasks > 1 and not is_step():
        raise ConfigError(
            f"SLURM gave this job {tasks} tasks, but srun has not started this process, which would wait for the "
            "others for ever: put srun before python"
        )
    if not is_step():
        return
    if tasks > 1 and experiment.config["force"]:
        raise ConfigError(
            f"force=true with {tasks} tasks: the others could meet what the first is about to remove; remove "
            f"{experiment.folder} beforehand instead"
        )
    trainer = experiment.config["trainer"]
    wanted_nodes = trainer.get("num_nodes", 1)
    if wanted_nodes != nodes:
        raise ConfigError(
            f"trainer.num_nodes={wanted_nodes}, but SLURM gave {nodes} node(s): set trainer.num_nodes={nodes}, or ask "
            f"for --nodes={wanted_nodes}"
        )
    devices = trainer.get("devices", 1)
    # Set where the job asked for GPUs; without it there may still be some, which SLURM does not count.
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0) if trainer.get("accelerator", "auto") != "cpu" else 0
    if isinstance(devices, list):
        devices = len(devices)
    elif devices in ("auto", -1, "-1") and gpus:
        devices = gpus
    if isinstance(devices, str) or devices < 0:  # all CPUs are one device, and what else there is, is not known
        return
    if 0 < gpus < devices:
        raise ConfigError(
            f"trainer.devices={devices}, but SLURM gave {gpus} GPU(s) on a node: set trainer.devices={gpus}, or ask "
            f"for --gpus-per-node={devices}"
        )
    if devices * nodes != tasks:
        raise ConfigError(
            f"trainer.devices={devices} on {nodes} node(s), but SLURM started {tasks} task(s), and every device takes "
            f"one: set trainer.devices={max(1, tasks // nodes)}, or ask for --ntasks-per-node={devices}"
        )
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ConfigError(
            f"{tasks} tasks were asked for with --ntasks, which may spread them unevenly: ask with "
            f"--ntasks-per-node={devices}"
        )


def stoppable(function: Callable[[], int]) -> int:
    """Call the body of a command, which signals may stop from now on; what asked for a requeue gets it.

    USR1 and USR2 (``--signal``, before time runs out) requeue the job, this element of its array alone, at most
    ``GENPRED_MAX_REQUEUES`` times (default 20). After TERM it is SLURM who knows whether the job is to come again, if
    the process leaves its end to it.
    Training saves its state first (`callbacks.preemption`); whatever else runs is left at once, and done again.

    Args:
        function: what to run; its result is the exit status. To be called before what takes long to import.

    Returns:
        The exit status; that of a stopped run is 128 and the signal's number, as a shell gives it.
    """
    with signals.listening():
        try:
            status = function()
        except signals.Stopped as stopped:
            return _leave(stopped.number)
        except (Exception, SystemExit):  # such as of a loader's worker, which the cluster has signalled, too
            if signals.received() is None:
                raise
            traceback.print_exc()
            status = 1
        number = signals.received()
        return _leave(number) if status and number is not None else status


def _leave(number: int) -> int:
    name = signal.Signals(number).name
    if not is_step():
        print(f"stopped by {name}; the same command continues", file=sys.stderr)
        return 128 + number
    if number not in signals.REQUEUE:
        print(f"stopped by {name}; waiting for SLURM", file=sys.stderr, flush=True)
        return _wait_for_the_end(number)
    bound = int(os.environ.get("GENPRED_MAX_REQUEUES") or MAX_REQUEUES)
    if restarts() >= bound:
        print(
            f"stopped by {name}, and not requeued, since the job has been {restarts()} times; submit it again to "
            "continue, or raise GENPRED_MAX_REQUEUES",
            file=sys.stderr,
        )
        return 128 + number
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with which SLURM ends all ranks once one has asked for the requeue
    if os.environ.get("SLURM_PROCID", "0") != "0":
        time.sleep(SECONDS_FOR_OTHERS)  # rank 0 may hang in a collective that will never be
    print(f"stopped by {name}; requeued", file=sys.stderr, flush=True)
    if not _requeue():
        return 128 + number
    return _wait_for_the_end(number)


def _wait_for_the_end(number: int) -> int:
    """Let SLURM end this process: a status of its own would be taken for the job's, which is to come again."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(SECONDS_TO_BE_ENDED)
    return 128 + number


def _requeue() -> bool:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    if shutil.which("scontrol") is None:
        print("error: scontrol is not on PATH, the job cannot requeue itself; submit it again", file=sys.stderr)
        return False
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        print(f"error: scontrol requeue {job}: {done.stderr.strip()}; submit the job again", file=sys.stderr)
    return done.returncode == 0
