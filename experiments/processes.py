"""The processes of one run end together.

Lightning's launcher starts the others from the first, and ends the first within seconds when one of them fails. Here is
the other direction: without it they would go on until their next exchange with a first process that is gone, and would
then wait for as long as the process group allows, half an hour, with the devices in their hands.
"""

import os
import threading
import time

FIRST_PROCESS = "GENPRED_FIRST_PROCESS"  # environment: its number, for the processes that it starts
_SECONDS = 1.0  # between two looks


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
