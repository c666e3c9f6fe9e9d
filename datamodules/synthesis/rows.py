"""What the loaders of tables hand out: numbers of rows to train on, and requests for synthetic tables.

The training part itself stays on the device, in the method's hands: no loader touches it in a training step.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.base import BatchIndexSampler


class RowBatch(NamedTuple):
    """Rows of a training step.

    Attributes:
        index: int64 [batch], rows of the training part.
    """

    index: Tensor


class SamplingRequest(NamedTuple):
    """A synthetic table to be drawn.

    Attributes:
        seed: of the draw.
        num_rows: rows of the table.
    """

    seed: int
    num_rows: int


class RowLoader:
    """Batches of row numbers for a fixed number of steps, all of them one epoch of the Trainer's.

    Passes over a small table can be single steps; each as an epoch of its own would cost more than the step. Every pass
    has its order from `BatchIndexSampler`, so that the position is all that has to be stored.

    Args:
        sampler: of one pass.
        num_batches: in all.
    """

    def __init__(self, sampler: BatchIndexSampler, num_batches: int) -> None:
        self.sampler, self.num_batches = sampler, num_batches
        self._done = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[RowBatch]:
        if self._done >= self.num_batches:
            self._done = 0
        while self._done < self.num_batches:
            epoch, first = divmod(self._done, len(self.sampler))
            self.sampler.set_epoch(epoch)
            for index in self.sampler.rows().split(self.sampler.batch_size)[first:]:
                self._done += 1
                yield RowBatch(index.pin_memory() if torch.cuda.is_available() else index)
                if self._done >= self.num_batches:
                    return

    def state_dict(self) -> dict[str, int]:
        """The number of batches handed out."""
        return {"batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on after `state`."""
        self._done = state["batches"]


class RequestLoader:
    """Requests one after the other; a list would count as many loaders.

    Args:
        requests: of one rank.
    """

    def __init__(self, requests: Sequence[SamplingRequest]) -> None:
        self.requests = requests

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[SamplingRequest]:
        return iter(self.requests)
