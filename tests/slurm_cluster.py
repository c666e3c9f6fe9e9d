"""A SLURM of one's own on this machine: a controller and four virtual nodes, without systemd, munge or accounting."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=6
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=node3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[4]} CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=4
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""
NODES = ("node0", "node1", "node2", "node3")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")


def why_not() -> str | None:
    """Why no cluster can be started here, if it cannot."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurmctld slurmd slurm-client)"
    return None if os.geteuid() == 0 else "the daemons want to be root"


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {seconds} s")
        time.sleep(0.1)


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    folder: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen]

    def start(self, name: str) -> None:
        """Start a node's daemon, or slurmctld."""
        command = ["slurmctld"] if name == "slurmctld" else ["slurmd", "-N", name]
        configuration = self.environment["SLURM_CONF"]
        with (self.folder / "daemons.log").open("a") as log:
            self.daemons[name] = subprocess.Popen(
                [*command, "-D", "-c", "-f", configuration], env=self.environment, stdout=log, stderr=log
            )

    def lose(self, node: str) -> None:
        """Let a node die: all that runs on it at once, without a word; SLURM is told, which else would wait for it."""
        tasks, keepers = set(), set()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (path / "environ").read_bytes().decode(errors="replace").split("\0")
                if {f"SLURM_CONF={self.environment['SLURM_CONF']}", f"SLURMD_NODENAME={node}"} <= set(variables):
                    tasks.add(int(path.name))
                    keepers.add(int((path / "stat").read_text().rpartition(")")[2].split()[1]))
        keepers -= tasks
        assert tasks
        assert all(Path(f"/proc/{each}/comm").read_text() == "slurmstepd\n" for each in keepers)
        for process in (self.daemons[node].pid, *keepers, *tasks):  # who could tell of the others' end goes first
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.daemons[node].wait()
        self.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def repair(self, node: str) -> None:
        """Bring a lost node back."""
        self.start(node)
        self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        wait_for(lambda: "State=IDLE " in self.call("scontrol", "show", "node", "-o", node), f"{node} idle", 30)

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """Standard output of a command that knows the cluster."""
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str, cwd: Path) -> str:
        """Submit a batch script; its job's number."""
        return self.call("sbatch", "--parsable", *arguments, cwd=cwd)

    def state(self, job: str) -> str:
        """A job's state, as scontrol spells it."""
        return self.facts(job)["JobState"]

    def facts(self, job: str) -> dict[str, str]:
        """What scontrol knows of a job or of an element of an array (42_3)."""
        return dict(pair.partition("=")[::2] for pair in self.call("scontrol", "show", "job", "-o", job).split())

    def wait(self, *jobs: str, seconds: float = 120.0) -> list[str]:
        """Wait until jobs have ended; their states."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        wait_for(lambda: all(self.state(job) in ended for job in jobs), f"the end of {jobs}", seconds)
        return [self.state(job) for job in jobs]

    def restart_now(self, job: str) -> None:
        """Start a requeued job at once; SLURM lets two minutes pass."""
        wait_for(lambda: self.state(job) in ("PENDING", "REQUEUED") and self.facts(job)["Restarts"] != "0", "requeue")
        time.sleep(2)  # a node refuses a job in the second in which it has ended it: credentials count in seconds
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster whose files lie in a folder; stop it in the end."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(1 + len(NODES))]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    host = socket.gethostname().split(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, ports=ports))
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    environment["SLURM_CONF"] = str(configuration)
    environment["PATH"] += ":/usr/sbin:/sbin"
    ours = Cluster(folder, environment, {})
    try:
        for name in ("slurmctld", *NODES):
            ours.start(name)
        wait_for(lambda: _is_idle(ours), "idle nodes", 30)
        yield ours
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, timeout=30, check=False)
        for daemon in reversed(ours.daemons.values()):
            daemon.terminate()
        for daemon in ours.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _is_idle(ours: Cluster) -> bool:
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=ours.environment, capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.split() == ["idle"]
