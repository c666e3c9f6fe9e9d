"""The processes of one run end together.

Lightning's launcher starts the others from the first, and ends the first within seconds when one of them fails. Here is
the other direction: without it they would go on until their next exchange with a first process that is gone, and would
then wait for as long as the process group allows, half an hour, with the devices in their hands. And where one of the
others has told the user in a line why it ends, so ends the run: with that line, and with its exit status.
"""

import os
import subprocess
import threading
import time

import lightning as L

FIRST_PROCESS = "GENPRED_FIRST_PROCESS"  # environment: its number, for the processes that it starts
TOLD = 2  # exit status of a process that has told the user in a line what is wrong
_SECONDS = 1.0  # between two looks
_SECONDS_TO_END = 10.0  # which a process takes, after its connections have closed, at most


def end_with_the_first() -> None:
    """Name this process to those that it starts; in one of these, end it soon after the first one ends.

    Processes that something else has started, such as srun or torchrun, are left to that.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        os.environ[FIRST_PROCESS] = str(os.getpid())
    elif FIRST_PROCESS in os.environ:
        first = int(os.environ[FIRST_PROCESS])
        threading.Thread(target=_watch, args=(first,), name="first-process-observer", daemon=True).start()


def _watch(first: int) -> None:
    while os.getppid() == first:  # a process whose parent has ended gets another one
        time.sleep(_SECONDS)
    os._exit(1)  # at once: the main thread may wait for a device or for the other processes


class EndWithTheOthers(L.Callback):
    """Ends the first process when one that it has started has told the user in a line why it ends.

    Lightning's launcher would kill it some seconds later; or it would end with the traceback of an exchange that broke
    off, below that line.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Wait for each of the processes."""
        for process in _started(trainer):
            threading.Thread(target=_end_as, args=(process,), name="other-process-observer", daemon=True).start()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let a process that has closed its connections come to its end first: it knows why, this one does not."""
        if "by peer" in str(exception):  # closed or reset, as gloo says
            deadline = time.monotonic() + _SECONDS_TO_END
            while all(process.poll() is None for process in _started(trainer)) and time.monotonic() < deadline:
                time.sleep(0.1)


def _started(trainer: L.Trainer) -> list[subprocess.Popen]:
    return getattr(trainer.strategy.launcher, "procs", [])


def _end_as(process: subprocess.Popen) -> None:
    if process.wait() == TOLD:
        os._exit(TOLD)  # at once: the main thread may wait for a device or for the process that has ended
