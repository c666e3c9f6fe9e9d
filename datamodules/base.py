"""Loaders that resume in mid-epoch bit for bit, and evaluation shards without padding.

Data sets here live in memory (or in a memory map) and are indexed by whole batches: `dataset[indices]` with an int64
tensor gives one batch. The order of an epoch is a function of (seed, epoch) alone, never of the global random state.
"""

import inspect
import math
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler


class BatchDataset(Protocol):
    """What `TensorLoader` reads: rows that are picked by a tensor of indices, a whole batch at a time."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, indices: Tensor) -> Any:
        """The batch of the rows `indices`, int64 [batch]."""
        ...


class BatchIndexSampler(Sampler[Tensor]):
    """Index tensors, one a batch, for one of several processes.

    Shuffled (training): the order is a permutation drawn from (seed, epoch) only; its tail of num_rows % world_size
    rows is left out in this epoch so that all ranks take equally many steps, and rank r takes order[r::world_size]. The
    last batch may be smaller. Not shuffled (evaluation): rank r takes the rows r, r + world_size, ... in file order,
    each row exactly once over all ranks, so that ranks may differ by one row.

    Args:
        num_rows: rows of the data set.
        batch_size: rows of a batch on one rank.
        shuffle: training order (True) or file order (False).
        seed: seed of the training order.
        rank: this process, 0 <= rank < world_size.
        world_size: number of processes.

    Raises:
        ValueError: when a rank would be left without a row, or an argument is out of range.
    """

    def __init__(
        self, num_rows: int, batch_size: int, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: a batch needs at least one row.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not one of the {world_size} processes 0 to {world_size - 1}.")
        if num_rows < world_size:
            raise ValueError(
                f"{num_rows} rows cannot be shared by {world_size} processes: each needs at least one row. "
                f"Start at most {max(num_rows, 1)} processes, or raise the limit on the number of rows."
            )
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`; a position inside another epoch is forgotten."""
        if epoch != self.epoch:
            self.epoch, self.first_batch = epoch, 0

    def rows(self) -> Tensor:
        """This rank's rows of the current epoch in order, int64 [rows of this rank]."""
        if not self.shuffle:
            return torch.arange(self.rank, self.num_rows, self.world_size)
        # The factor is odd and large: no seed meets the orders of its neighbour one epoch later.
        key = (self.seed * 0x9E3779B97F4A7C15 + self.epoch) % 2**63
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(key))
        return order[: self.num_rows // self.world_size * self.world_size][self.rank :: self.world_size]

    def __iter__(self) -> Iterator[Tensor]:
        # A generator, since DataLoader calls iter() twice when it starts workers and uses the second one only.
        first_batch, self.first_batch = self.first_batch, 0
        yield from self.rows().split(self.batch_size)[first_batch:]

    def __len__(self) -> int:
        if self.shuffle:
            num_rows = self.num_rows // self.world_size
        else:
            num_rows = len(range(self.rank, self.num_rows, self.world_size))
        return math.ceil(num_rows / self.batch_size)


def _identity(batch: Any) -> Any:
    return batch


def _heed_the_parent_alone(worker: int) -> None:
    """Let SIGTERM end a worker if its parent sends it.

    A cluster that stops a job sends it to every process, and a parent whose workers die of it is interrupted at any
    point, such as in the midst of saving its state.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class TensorLoader(DataLoader):
    """DataLoader over whole batches whose position can be stored and restored.

    Lightning stores `state_dict()` in every checkpoint and hands it to `load_state_dict` before training goes on. The
    state counts the batches handed out, not those that workers have prepared, and is the same on every rank.

    Args:
        dataset: anything with `__len__` and `__getitem__(index tensor) -> batch`.
        sampler: index tensors of this rank.
        num_workers: worker processes; 0 reads in the training process.
    """

    sampler: BatchIndexSampler

    def __init__(self, dataset: BatchDataset, sampler: BatchIndexSampler, num_workers: int = 0) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=_identity,
            worker_init_fn=_heed_the_parent_alone,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            # DataLoader draws a base seed for its workers whenever it is iterated. Taken from the global generator, the
            # number of validations would change the training.
            generator=torch.Generator().manual_seed(sampler.seed % 2**63),
        )
        self._position = (0, 0)

    def __iter__(self) -> Iterator[Any]:
        # A generator on purpose: Lightning calls iter() before it tells the sampler the epoch, and this body only runs
        # with the first next().
        epoch, batches = self.sampler.epoch, self.sampler.first_batch
        self._position = (epoch, batches)
        for batch in super().__iter__():
            batches += 1
            self._position = (epoch, batches)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and the number of its batches that were handed out."""
        epoch, batches = self._position
        return {"epoch": self.sampler.epoch, "batches": batches if epoch == self.sampler.epoch else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on after `state`.

        When the epoch of `state` was finished, the next iteration is empty unless `sampler.set_epoch` chooses another
        epoch before it, as Lightning does.
        """
        self.sampler.epoch, self.sampler.first_batch = state["epoch"], state["batches"]
        self._position = (state["epoch"], state["batches"])


class ResumableDataModule(LightningDataModule):
    """Gives a DataModule its two kinds of loader.

    A subclass saves the hyper-parameters `batch_size`, `evaluation_batch_size`, `num_workers` and `seed`. The Trainer
    must be built with `use_distributed_sampler=False`, since the loaders share the rows out themselves.

    Attributes:
        other_data: arguments of which another value than the default, the published one, makes other data.
    """

    other_data: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether published figures say something of these rows."""
        published = inspect.signature(type(self).__init__).parameters
        return all(self.hparams[name] == published[name].default for name in self.other_data)

    @property
    def rank(self) -> int:
        """Number of this process among all processes; 0 without a Trainer."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        """Number of processes; 1 without a Trainer."""
        return 1 if self.trainer is None else self.trainer.world_size

    def train_loader(self, dataset: BatchDataset) -> TensorLoader:
        """Shuffled batches of `batch_size` rows on each rank, resumable in mid-epoch.

        Raises:
            ValueError: when there are fewer rows than processes.
        """
        return self._loader(dataset, self.hparams.batch_size, shuffle=True)

    def evaluation_loader(self, dataset: BatchDataset) -> TensorLoader:
        """Batches of `evaluation_batch_size` rows in file order, every row on exactly one rank.

        Raises:
            ValueError: when there are fewer rows than processes.
        """
        return self._loader(dataset, self.hparams.evaluation_batch_size, shuffle=False)

    def _loader(self, dataset: BatchDataset, batch_size: int, shuffle: bool) -> TensorLoader:
        sampler = BatchIndexSampler(
            len(dataset), batch_size, shuffle, seed=self.hparams.seed, rank=self.rank, world_size=self.world_size
        )
        return TensorLoader(dataset, sampler, num_workers=self.hparams.num_workers)
