"""Several ranks on this machine, for tests: processes forked from the test with a gloo process group."""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed


def run_in_processes(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60.0) -> list[Any]:
    """Call ``function(*args)`` on every rank of a new process group and give back what each rank returned.

    The function asks `torch.distributed` for its rank. It may be a closure (it is forked); its result is pickled. A
    Trainer with ``strategy="ddp", devices=world_size`` finds the group made: it starts no processes of its own. One
    rank alone is a process without a group.

    Args:
        world_size: number of ranks.
        function: what to run.
        args: its arguments.
        timeout: seconds after which ranks that still run count as hanging.

    Returns:
        One value per rank, in their order.

    Raises:
        RuntimeError: with all tracebacks, if a rank raised, died or hangs.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:  # ranks meet in a file: no port can be taken by somebody else
        ranks = []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_run, args=(sender, Path(folder) / "store", rank, world_size, function, args), daemon=True
            )
            process.start()
            sender.close()
            ranks.append((process, receiver))
        deadline = time.monotonic() + timeout
        answers = [_answer(receiver, deadline) for _, receiver in ranks]
        for process, receiver in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
            receiver.close()
    failures = [f"rank {rank}: {value}" for rank, (good, value) in enumerate(answers) if not good]
    if failures:
        raise RuntimeError("\n".join(failures))
    return [value for _, value in answers]


def _answer(receiver: Connection, deadline: float) -> tuple[bool, Any]:
    if not receiver.poll(max(0.0, deadline - time.monotonic())):
        return False, "still running at the time limit"
    try:
        return pickle.loads(receiver.recv_bytes())
    except EOFError:
        return False, "died without a word"


def _run(
    sender: Connection, store: Path, rank: int, world_size: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    if world_size > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        answer = (True, function(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    sender.send_bytes(pickle.dumps(answer))
    sender.close()
    if world_size > 1:
        torch.distributed.destroy_process_group()
