"""Signals that ask a run to stop: noted at once, heeded where nothing is half done.

Imports the standard library only, so that it can listen before torch and its kind are imported: a cluster may send its
warning while they are.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)  # time runs out: to be continued in another job
STOPPING = (*REQUEUE, signal.SIGTERM)


class Stopped(BaseException):
    """A run was asked to stop and has left off where it can be continued.

    Not an `Exception`: nothing that handles errors is meant to handle it.

    Attributes:
        number: the signal, of `STOPPING`.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


_received: list[int] = []
_deferred = False


def received() -> int | None:
    """The first signal to stop that this process has got, if any."""
    return _received[0] if _received else None


def check() -> None:
    """Leave off here if a signal to stop has come.

    Raises:
        Stopped: one has.
    """
    if _received:
        raise Stopped(_received[0])


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if not _deferred and len(_received) == 1:  # what comes after the first must not interrupt the end that it has begun
        raise Stopped(number)


def install() -> None:
    """Install the handlers, anew where something else has taken them over, as Lightning does when a loop begins."""
    if _previous and threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            signal.signal(number, _note)


_previous: dict[int, signal.Handlers] = {}


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Turn signals to stop into `Stopped`, raised wherever the program is, or, within `deferred`, where it says."""
    for number in STOPPING:
        _previous[number] = signal.getsignal(number)
    install()
    try:
        yield
    finally:
        for number, handler in _previous.items():
            signal.signal(number, handler)
        _previous.clear()
        _received.clear()


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Only note signals here; who is inside asks with `received` at the moments that suit it.

    Raises:
        Stopped: on leaving, if one has come meanwhile.
    """
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    check()


def _leave_children_alone() -> None:
    # A cluster signals every process of a job. A loader's worker that died of the warning would take the run with it
    # before its state is saved; SIGTERM, with which its parent ends it, keeps its meaning.
    if _previous:
        for number in REQUEUE:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_children_alone)
