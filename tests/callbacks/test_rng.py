import random

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed
from ddp import run_in_processes
from torch.utils.data import DataLoader

from callbacks.rng import RandomState

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # of torch, used by Lightning
]


class Loader(DataLoader):
    """Continues in the middle of an epoch, in file order, like the project's own."""

    def __init__(self):
        super().__init__(torch.arange(24.0).reshape(6, 4) / 10, batch_size=None)
        self.begin = self.seen = 0

    def __iter__(self):
        begin, self.begin = self.begin, 0
        self.seen = begin
        for position, batch in enumerate(super().__iter__()):
            if position >= begin:
                self.seen += 1
                yield batch
        self.seen = 0

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.begin = state["seen"] % len(self)


class Noisy(L.LightningModule):
    """Draws from every global generator in training, and from torch's in validation."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        self.losses = []

    def training_step(self, batch, _):
        loss = (self.net(batch) - random.random() - np.random.rand()).square().mean()  # noqa: NPY002
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, _):
        torch.rand(3)

    def train_dataloader(self):
        return Loader()

    def val_dataloader(self):
        return DataLoader(torch.zeros(2, 1))  # draws a seed each time it is iterated

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class SaveAt(L.Callback):
    """Saves after some training batches and, in between, during the validation that follows batch 6."""

    def __init__(self, folder, steps):
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_validation_end(self, trainer, _):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"validated{trainer.global_step}.ckpt")


def train(folder, callbacks, checkpoint=None, max_epochs=3, **arguments):
    module = Noisy()
    L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    ).fit(module, ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.mark.parametrize("saver_first", [True, False])
def test_resume_is_identical_to_the_last_bit(tmp_path, saver_first):
    L.seed_everything(1, verbose=False)
    saver = SaveAt(tmp_path, {4, 6, 9})
    whole = train(tmp_path, [saver, RandomState()] if saver_first else [RandomState(), saver])
    for name, done in (("4", 4), ("6", 6), ("validated6", 6), ("9", 9)):
        L.seed_everything(77, verbose=False)
        resumed = train(tmp_path, [RandomState()], tmp_path / f"{name}.ckpt")
        assert resumed.losses == whole.losses[done:], name
        for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_validation_has_no_say_in_training(tmp_path):
    losses = []
    for arguments in ({}, {"val_check_interval": 2}, {"limit_val_batches": 0}):
        L.seed_everything(1, verbose=False)
        losses.append(train(tmp_path, [RandomState()], num_sanity_val_steps=0, **arguments).losses)
    assert losses[0] == losses[1] == losses[2]
    assert len(losses[0]) == 18


def test_states_of_all_ranks_are_kept_and_loadable(tmp_path):
    def on_rank():
        torch.manual_seed(100 + torch.distributed.get_rank())
        random.seed(200 + torch.distributed.get_rank())
        return RandomState().state_dict()

    first, second = run_in_processes(2, on_rank)
    torch.save(first, tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True).keys() == {"ranks"}
    for rank in range(2):
        for states in (first, second):
            torch.manual_seed(100 + rank)
            random.seed(200 + rank)
            assert torch.equal(states["ranks"][rank]["torch"], torch.get_rng_state())
            assert tuple(states["ranks"][rank]["python"]["words"].tolist()) == random.getstate()[1]


def test_another_number_of_ranks_goes_on_with_a_warning(tmp_path, caplog):
    train(tmp_path, [RandomState(), SaveAt(tmp_path, {4})])
    checkpoint = torch.load(tmp_path / "4.ckpt", weights_only=True)
    checkpoint["callbacks"]["RandomState"]["ranks"] *= 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    assert len(train(tmp_path, [RandomState()], tmp_path / "two.ckpt").losses) == 14
    assert "random states of 2 ranks, this run has 1" in caplog.text
