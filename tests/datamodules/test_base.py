"""Order, sharding and resumption of the loaders, with a real Trainer."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.base import BatchIndexSampler, ResumableDataModule, TensorLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*`srun` command is available"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]


class Batch(NamedTuple):
    values: Tensor
    index: Tensor


class Rows:
    def __init__(self, num_rows):
        self.values = torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.values)

    def __getitem__(self, indices):
        return Batch(self.values[indices], indices)


class RowsModule(ResumableDataModule):
    def __init__(self, num_rows=23, batch_size=4, evaluation_batch_size=4, num_workers=0, seed=3):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return self.train_loader(Rows(self.hparams.num_rows))

    def val_dataloader(self):
        return self.evaluation_loader(Rows(self.hparams.num_rows))

    test_dataloader = val_dataloader


class Recorder(LightningModule):
    """Records the rows of every training batch; its weights depend on their order."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.seen = []
        self.evaluated = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.index.tolist()))
        return ((batch.values @ self.weight - 1) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        self.evaluated += batch.index.tolist()

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class InterruptionError(Exception):
    pass


class SaveAndStop(Callback):
    """Saves a checkpoint the n-th time that a hook runs, and dies at once."""

    def __init__(self, hook, count, path):
        self.count, self.path = count, path
        setattr(self, hook, self.hit)

    def hit(self, trainer, *_):
        if trainer.sanity_checking:
            return
        self.count -= 1
        if self.count == 0:
            trainer.save_checkpoint(self.path)
            raise InterruptionError


def make_trainer(**options):
    defaults = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return Trainer(**(defaults | options))


@pytest.mark.parametrize(
    ("hook", "count", "num_workers"),
    [
        ("on_train_batch_end", 1, 0),
        ("on_train_batch_end", 9, 0),  # in mid-epoch, second epoch
        ("on_train_batch_end", 9, 2),
        ("on_train_batch_end", 12, 0),  # the last batch of an epoch
        ("on_train_batch_end", 12, 2),
        ("on_train_epoch_end", 1, 2),
        ("on_validation_end", 2, 0),  # validation runs in mid-epoch and at its end
        ("on_validation_end", 3, 0),
    ],
)
def test_interrupted_and_resumed_training_equals_uninterrupted(hook, count, num_workers, tmp_path):
    options = {"val_check_interval": 2, "num_sanity_val_steps": 0}
    whole = Recorder()
    make_trainer(**options).fit(whole, RowsModule(num_workers=num_workers))
    orders = [[row for epoch, _, rows in whole.seen if epoch == e for row in rows] for e in range(3)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]

    path = tmp_path / "stopped.ckpt"
    first = Recorder()
    trainer = make_trainer(callbacks=[SaveAndStop(hook, count, path)], **options)
    with pytest.raises(InterruptionError):
        trainer.fit(first, RowsModule(num_workers=num_workers))
    second = Recorder()
    make_trainer(**options).fit(second, RowsModule(num_workers=num_workers), ckpt_path=path, weights_only=True)

    assert 0 < len(first.seen) < len(whole.seen)
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)


def test_resumption_after_a_limited_epoch(tmp_path):
    """With limit_train_batches an epoch ends before the loader does; the next one must start from its first batch."""
    whole = Recorder()
    make_trainer(limit_train_batches=3, limit_val_batches=0).fit(whole, RowsModule())
    assert [batch for _, batch, _ in whole.seen] == [0, 1, 2] * 3
    path = tmp_path / "stopped.ckpt"
    first = Recorder()
    trainer = make_trainer(
        limit_train_batches=3, limit_val_batches=0, callbacks=[SaveAndStop("on_train_epoch_end", 2, path)]
    )
    with pytest.raises(InterruptionError):
        trainer.fit(first, RowsModule())
    second = Recorder()
    make_trainer(limit_train_batches=3, limit_val_batches=0).fit(
        second, RowsModule(), ckpt_path=path, weights_only=True
    )
    assert first.seen + second.seen == whole.seen


class WriteRows(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, module):
        self.write(trainer, "train", module.seen)

    def on_test_end(self, trainer, module):
        self.write(trainer, "test", module.evaluated)

    def write(self, trainer, name, rows):
        (self.folder / f"{name}{trainer.global_rank}.json").write_text(json.dumps(rows))


class SaveAtStep(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_two_processes_share_rows_and_resume(tmp_path):
    def fit(folder, **options):
        folder.mkdir()
        callbacks = [WriteRows(folder), SaveAtStep(4, folder / "step4.ckpt")]
        ckpt_path = options.pop("ckpt_path", None)
        trainer = make_trainer(
            strategy="ddp_fork", devices=2, max_epochs=2, limit_val_batches=0, callbacks=callbacks, **options
        )
        trainer.fit(Recorder(), RowsModule(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return trainer, [json.loads((folder / f"train{rank}.json").read_text()) for rank in range(2)]

    trainer, whole = fit(tmp_path / "whole")
    for epoch in range(2):
        rows = [[row for e, _, batch in whole[rank] if e == epoch for row in batch] for rank in range(2)]
        assert len(rows[0]) == len(rows[1]) == 11  # 23 rows: one is left out
        assert len(set(rows[0] + rows[1])) == 22

    _, first = fit(tmp_path / "first", max_steps=4)
    _, second = fit(tmp_path / "second", ckpt_path=str(tmp_path / "first" / "step4.ckpt"))
    for rank in range(2):
        assert len(first[rank]) == 4
        assert first[rank] + second[rank] == whole[rank]

    trainer.test(Recorder(), RowsModule())
    shards = [json.loads((tmp_path / "whole" / f"test{rank}.json").read_text()) for rank in range(2)]
    assert shards == [list(range(0, 23, 2)), list(range(1, 23, 2))]  # 12 and 11 rows: nothing padded


@settings(deadline=None)
@given(
    num_rows=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 50),
    shuffle=st.booleans(),
)
def test_ranks_partition_the_rows(num_rows, batch_size, world_size, seed, epoch, shuffle):
    if num_rows < world_size:
        with pytest.raises(ValueError, match=f"{num_rows} rows cannot be shared by {world_size} processes"):
            BatchIndexSampler(num_rows, batch_size, shuffle, seed, 0, world_size)
        return
    samplers = [BatchIndexSampler(num_rows, batch_size, shuffle, seed, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(b) for b in batches]
    assert all(len(batch) == batch_size for rank in batches for batch in rank[:-1])
    rows = [torch.cat(rank).tolist() for rank in batches]
    together = [row for rank in rows for row in rank]
    assert len(set(together)) == len(together)
    if shuffle:
        assert {len(rank) for rank in rows} == {num_rows // world_size}
        whole = BatchIndexSampler(num_rows, num_rows, True, seed)
        whole.set_epoch(epoch)
        [order] = whole
        assert rows == [order[: len(together)][rank::world_size].tolist() for rank in range(world_size)]
    else:
        assert rows == [list(range(rank, num_rows, world_size)) for rank in range(world_size)]


def test_order_depends_on_seed_and_epoch_only_and_leaves_the_global_generator_alone():
    def order(seed, epoch, num_workers=0):
        loader = TensorLoader(Rows(50), BatchIndexSampler(50, 7, True, seed), num_workers)
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch.index for batch in loader]).tolist()

    torch.manual_seed(0)
    before = torch.get_rng_state()
    orders = {(seed, epoch): order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert order(2, 3, num_workers=2) == orders[2, 3]
    assert len({tuple(o) for o in orders.values()}) == 16
    # Two independent permutations agree in one place on average, and in more than eight hardly ever (p < 1e-5).
    flat = np.array(list(orders.values()))
    agreements = (flat[:, None] == flat[None]).sum(-1)[~np.eye(16, dtype=bool)]
    assert agreements.max() <= 8
    assert agreements.mean() == pytest.approx(1, abs=0.35)


def test_a_loader_without_a_trainer_starts_anew_and_reports_its_position():
    loader = TensorLoader(Rows(10), BatchIndexSampler(10, 3, True, 5))
    everything = [batch.index.tolist() for batch in loader]
    assert loader.state_dict() == {"epoch": 0, "batches": 4}
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    state = loader.state_dict()
    assert state == {"epoch": 0, "batches": 2}
    other = TensorLoader(Rows(10), BatchIndexSampler(10, 3, True, 5), num_workers=2)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert [batch.index.tolist() for batch in other] == everything[2:]
    assert [batch.index.tolist() for batch in other] == everything
    other.sampler.set_epoch(1)
    assert other.state_dict() == {"epoch": 1, "batches": 0}


def test_impossible_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match="batch_size=0"):
        BatchIndexSampler(5, 0, True)
    with pytest.raises(ValueError, match="rank=2 is not one of the 2 processes"):
        BatchIndexSampler(5, 1, True, rank=2, world_size=2)
