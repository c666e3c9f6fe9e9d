from unittest.mock import Mock

import lightning as L
import pytest
import torch
import torch.distributed
from torch.utils.data import DataLoader

from callbacks.finite import FiniteGradients

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # of torch, used by Lightning
]


class Fragile(L.LightningModule):
    """A least-squares fit; the loss is spoilt at the given steps, on the given rank."""

    def __init__(self, bad_steps=(), bad_rank=0, spoil=torch.nan):
        super().__init__()
        self.bad_steps, self.bad_rank, self.spoil = bad_steps, bad_rank, spoil
        torch.manual_seed(0)
        self.net = torch.nn.Linear(3, 2)
        self.history = []

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        if batch_idx in self.bad_steps and self.global_rank == self.bad_rank:
            loss = loss * self.spoil
        self.log("train/loss", loss)
        return loss

    def on_train_batch_end(self, *_):
        self.history.append(self.net.weight.detach().clone().cpu())

    def train_dataloader(self):
        g = torch.Generator().manual_seed(1)
        return DataLoader(torch.randn(12, 4, 3, generator=g), batch_size=None)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Keep(L.Callback):
    """Notes each logged number of skipped steps."""

    def __init__(self):
        self.logged = {}

    def on_train_batch_end(self, trainer, *_):
        if "train/skipped_steps" in trainer.callback_metrics:
            self.logged[trainer.global_step] = int(trainer.callback_metrics["train/skipped_steps"])


def train(folder, module, guard, accelerator="cpu", **arguments):
    keep = Keep()
    L.Trainer(
        default_root_dir=folder,
        accelerator=accelerator,
        max_epochs=1,
        callbacks=[guard, keep],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    ).fit(module)
    return keep


def adam_with_zeros(bad_steps):
    """The same fit without Lightning, gradients of bad steps set to zero."""
    module = Fragile()
    optimizer = module.configure_optimizers()
    for step, batch in enumerate(module.train_dataloader()):
        optimizer.zero_grad()
        module.net(batch).square().mean().backward()
        if step in bad_steps:
            for parameter in module.parameters():
                parameter.grad.zero_()
        optimizer.step()
    return module.net.weight


@pytest.mark.parametrize("spoil", [torch.nan, torch.inf])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_bad_steps_have_zero_gradients_and_are_counted(tmp_path, spoil, clip, caplog):
    guard = FiniteGradients(max_consecutive=3)
    module = Fragile({2, 5, 6}, spoil=spoil)
    keep = train(tmp_path, module, guard, gradient_clip_val=clip)
    assert guard.skipped_steps == 3
    assert keep.logged[3] == 1
    assert keep.logged[7] == 3
    assert "1 step(s) dropped by step 2, 1 in all" in caplog.text
    assert module.net.weight.isfinite().all()
    if clip is None:
        torch.testing.assert_close(module.net.weight, adam_with_zeros({2, 5, 6}), rtol=0, atol=0)


def test_finite_steps_are_untouched(tmp_path):
    module, guard = Fragile(), FiniteGradients()
    assert train(tmp_path, module, guard).logged == {}
    torch.testing.assert_close(module.net.weight, adam_with_zeros(()), rtol=0, atol=0)


def test_many_in_a_row_end_the_run_in_words(tmp_path):
    module = Fragile({1, 2, 5, 6, 7, 8, 9})  # a row of two does not count
    with pytest.raises(FloatingPointError) as raised:
        train(tmp_path, module, FiniteGradients(max_consecutive=3))
    message = str(raised.value)
    assert "3 steps in a row, up to step 7 (epoch 0)" in message
    assert "train/loss = nan" in message
    assert "gradients of net.weight, net.bias" in message
    assert "Lower the learning rate" in message
    assert len(module.history) == 7


def test_broken_weights_are_named(tmp_path):
    module = Fragile()
    with torch.no_grad():
        module.net.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"weights net.bias. The weights themselves are not finite"):
        train(tmp_path, module, FiniteGradients(max_consecutive=2))


def test_nan_on_one_rank_drops_the_step_on_all(tmp_path):
    class Check(FiniteGradients):
        def on_train_end(self, trainer, pl_module):
            weight = pl_module.net.weight.detach()
            both = [torch.empty_like(weight) for _ in range(2)]
            torch.distributed.all_gather(both, weight)
            assert torch.equal(both[0], both[1])
            assert weight.isfinite().all()
            assert self.skipped_steps == 2

    guard = Check(max_consecutive=3)
    train(tmp_path, Fragile({2, 5}, bad_rank=1), guard, devices=2, strategy="ddp_fork", use_distributed_sampler=False)


def test_the_count_survives_a_checkpoint():
    guard = FiniteGradients()
    guard.load_state_dict({"skipped_steps": 7})
    assert guard.skipped_steps == 7
    assert guard.state_dict() == {"skipped_steps": 7}
    with pytest.raises(ValueError, match="max_consecutive is 0"):
        FiniteGradients(0)


class Elsewhere(FiniteGradients):
    """As on a GPU: counts are sent, and read when the next ones are. Notes the steps that read or sent any."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.sent, self.read = [], []

    def _at_hand(self, flag):
        return False

    def _send(self, step):
        self.sent.append(step)
        super()._send(step)

    def _read(self, trainer, pl_module, counts, step):
        assert counts is self._sent[0]
        self._sent[1].synchronize.assert_called_once()
        self.read.append((step, trainer.global_step))
        super()._read(trainer, pl_module, counts, step)


@pytest.fixture
def events(monkeypatch):
    monkeypatch.setattr(torch, "Event", lambda device: Mock())


@pytest.mark.parametrize(("longest", "period"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_counts_that_are_elsewhere_are_read_a_period_after_they_were_sent(longest, period, tmp_path, events, caplog):
    guard = Elsewhere(longest)
    keep = train(tmp_path, Fragile(), guard)
    assert guard.sent == [*range(period - 1, 12, period)]
    assert guard.read == [(step, step + period) for step in guard.sent[:-1]]
    assert keep.logged == {}
    for first in range(12 - 2 * longest):
        guard, module = Elsewhere(longest), Fragile(range(first, first + longest))
        with pytest.raises(FloatingPointError, match=f"not finite in {longest} steps in a row"):
            train(tmp_path, module, guard)
        noticed = len(module.history) - (first + longest - 1)  # steps after the last of the row
        assert 1 <= noticed <= longest
    guard = Elsewhere(2)
    assert train(tmp_path, Fragile({3}), guard).logged[5] == 1
    assert "1 step(s) dropped by step 3, 1 in all" in caplog.text


@pytest.mark.gpu
def test_on_a_gpu_without_waiting_for_it(tmp_path):
    class Watched(Fragile):
        """In the callback's hook anything that waits for the device is an error."""

        def on_after_backward(self):
            torch.cuda.set_sync_debug_mode("error")

        def on_before_optimizer_step(self, optimizer):
            torch.cuda.set_sync_debug_mode("default")

    train(tmp_path, Watched(), FiniteGradients(max_consecutive=4), accelerator="gpu", devices=1)
    module, guard = (
        Fragile({2, 5, 6}),
        FiniteGradients(max_consecutive=4),
    )  # unwatched: that there are new ones is logged
    train(tmp_path, module, guard, accelerator="gpu", devices=1)
    assert guard.state_dict() == {"skipped_steps": 3}
    assert module.net.weight.isfinite().all()
    torch.testing.assert_close(module.net.weight.cpu(), adam_with_zeros({2, 5, 6}), rtol=1e-4, atol=1e-6)
    with pytest.raises(FloatingPointError, match="4 steps in a row"):
        train(tmp_path, Fragile(range(12)), FiniteGradients(max_consecutive=4), accelerator="gpu", devices=1)
