"""Work that one process does for all."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch.distributed

log = logging.getLogger("genpred")
Found = TypeVar("Found")


def on_rank_zero(function: Callable[[], Found], group: torch.distributed.ProcessGroup | None = None) -> Found:
    """Call ``function`` on rank 0 and give its result, or its failure as a ValueError, to every rank.

    Args:
        function: what is to be done once; its result is no string.
        group: over which the result is sent; its timeout is how long the others wait. None: the default one.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return function()
    outcome: list[Found | str | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome = [function()]
        except Exception as error:  # whatever it is, the other ranks are waiting
            log.exception("rank 0 failed")
            outcome = [f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"]
    torch.distributed.broadcast_object_list(outcome, src=0, group=group)
    if isinstance(outcome[0], str):
        raise ValueError(outcome[0])
    return outcome[0]
