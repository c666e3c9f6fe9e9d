import os
import resource
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from callbacks.checkpoints import AtomicCheckpointIO, checkpoint_callbacks, latest_checkpoint
from callbacks.finite import FiniteGradients
from callbacks.results import RunStatistics
from callbacks.rng import RandomState

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # of torch, used by Lightning
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Fit(L.LightningModule):
    """Fits a constant; the validation score is read from a list, the n-th validation takes the n-th."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.3), torch.nn.Linear(2, 1))

    def training_step(self, batch, _):
        return (self.net(batch) - 1).square().mean()

    def validation_step(self, batch, _):
        self.log("val/score", self.scores[self.trainer.current_epoch])

    def train_dataloader(self):
        return DataLoader(torch.arange(10.0).reshape(5, 2), batch_size=1)

    def val_dataloader(self):
        return DataLoader(torch.zeros(1, 2))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class StopAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise InterruptedError


def trainer(folder, max_epochs, monitor="val/score", callbacks=(), every_n_steps=4):
    return L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=[
            FiniteGradients(),
            RunStatistics(),
            RandomState(),
            *callbacks,
            *checkpoint_callbacks(folder, every_n_steps, monitor, "min"),
        ],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def steps(folder):
    return {
        path.name: torch.load(path, weights_only=True)["global_step"]
        for path in folder.iterdir()  # every file there is loads without running code
    }


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_names_and_content_over_training_and_resumes(tmp_path):
    scores = [3.0, 1.0, 2.0, 0.5]  # one validation after each epoch of five steps
    with pytest.raises(InterruptedError):
        trainer(tmp_path, 3, callbacks=[StopAt(7)]).fit(Fit(scores))
    assert steps(tmp_path) == {"best.ckpt": 5, "last.ckpt": 4}

    second = trainer(tmp_path, 3)
    second.fit(Fit(scores), ckpt_path=latest_checkpoint(tmp_path), weights_only=True)
    assert steps(tmp_path) == {"best.ckpt": 10, "last.ckpt": 15, "previous.ckpt": 12}
    assert second.checkpoint_callback.best_model_score == 1.0

    third = trainer(tmp_path, 3)  # nothing is left to do
    third.fit(Fit(scores), ckpt_path=latest_checkpoint(tmp_path), weights_only=True)
    assert third.global_step == 15
    assert steps(tmp_path) == {"best.ckpt": 10, "last.ckpt": 15, "previous.ckpt": 12}

    fourth = trainer(tmp_path, 4)
    fourth.fit(Fit(scores), ckpt_path=latest_checkpoint(tmp_path), weights_only=True)
    assert steps(tmp_path) == {"best.ckpt": 20, "last.ckpt": 20, "previous.ckpt": 20}
    assert Path(fourth.checkpoint_callback.best_model_path).name == "best.ckpt"
    assert fourth.checkpoint_callback.best_model_score == 0.5


def test_training_in_two_parts_ends_where_one_does(tmp_path):
    ends = []
    for parts in ((2,), (1, 2)):
        folder = tmp_path / str(len(parts))
        folder.mkdir()
        L.seed_everything(3, verbose=False)
        for max_epochs in parts:
            module = Fit([1.0, 1.0])
            trainer(folder, max_epochs).fit(module, ckpt_path=latest_checkpoint(folder), weights_only=True)
        ends.append(module)
    for one, two in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        assert torch.equal(one, two)


def test_without_a_monitor_there_is_only_the_last(tmp_path):
    trainer(tmp_path, 1, monitor=None).fit(Fit([1.0]))
    assert steps(tmp_path) == {"last.ckpt": 5, "previous.ckpt": 4}
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        checkpoint_callbacks(tmp_path, 0, None, "min")


def save(path, step, size=10):
    AtomicCheckpointIO().save_checkpoint({"global_step": step, "weights": torch.full((size,), float(step))}, path)


def killed_at_fsync(function, *args):
    """Run it in a process that kills itself where the file would go to the disk."""
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        function(*args)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_full_disk_names_the_file_and_leaves_the_previous_whole(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # the kernel refuses the write half-way
    try:
        with pytest.raises(OSError, match=r"last\.ckpt could not be written.*untouched\. Free some space"):
            save(path, 2, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps(tmp_path) == {"last.ckpt": 1}  # and no partial file
    save(path, 3)
    assert steps(tmp_path) == {"last.ckpt": 3}


def test_killed_in_the_middle_leaves_the_previous_whole(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, 1)
    assert killed_at_fsync(save, path, 2)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".last.ckpt.partial", "last.ckpt"]
    assert torch.load(path, weights_only=True)["global_step"] == 1
    assert latest_checkpoint(tmp_path) == path
    save(path, 3)
    assert steps(tmp_path) == {"last.ckpt": 3}  # the partial file is gone, too


def test_latest_is_the_readable_one_with_most_steps_whatever_the_clock_says(tmp_path, caplog):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert latest_checkpoint(tmp_path) is None
    last, preempt, previous = (tmp_path / f"{name}.ckpt" for name in ("last", "preempt", "previous"))
    for path, step, time in ((previous, 10, 3), (last, 20, 2), (preempt, 30, 1)):  # the clock was set back
        save(path, step)
        os.utime(path, (time, time))
    assert latest_checkpoint(tmp_path) == preempt
    save(last, 30)
    assert latest_checkpoint(tmp_path) == last
    assert caplog.text == ""
    save(last, 20)
    preempt.write_bytes(preempt.read_bytes()[:-100])
    assert latest_checkpoint(tmp_path) == last
    assert "preempt.ckpt is passed over" in caplog.text
    assert "the run goes on from step 20, last.ckpt" in caplog.text
    last.write_bytes(b"")
    assert latest_checkpoint(tmp_path) == previous
    torch.save([1], previous)
    assert latest_checkpoint(tmp_path) is None
    assert "the run goes on from its beginning" in caplog.text


def test_the_last_becomes_the_previous_unless_it_may_be_damaged(tmp_path):
    last, previous, best = (tmp_path / f"{name}.ckpt" for name in ("last", "previous", "best"))
    first = AtomicCheckpointIO()
    for step in (1, 2, 3):
        for path in (last, best):
            first.save_checkpoint({"global_step": step}, path)
    assert steps(tmp_path) == {"last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 3}

    last.write_bytes(b"damaged")
    second = AtomicCheckpointIO()
    with pytest.raises(ValueError, match="damaged"):
        second.load_checkpoint(last)
    second.load_checkpoint(previous)
    second.save_checkpoint({"global_step": 4}, last)  # previous.ckpt is the only good one until this is written
    assert steps(tmp_path) == {"last.ckpt": 4, "previous.ckpt": 2, "best.ckpt": 3}

    third = AtomicCheckpointIO()
    third.load_checkpoint(last)
    third.save_checkpoint({"global_step": 5}, last)
    assert steps(tmp_path) == {"last.ckpt": 5, "previous.ckpt": 4, "best.ckpt": 3}


def test_at_every_moment_of_a_write_there_is_a_whole_checkpoint(tmp_path, monkeypatch):
    writer, found = AtomicCheckpointIO(), []
    writer.save_checkpoint({"global_step": 1}, tmp_path / "last.ckpt")
    for name in ("replace", "fsync"):
        original = getattr(os, name)

        def watched(*arguments, original=original):
            found.append(steps_of_latest(tmp_path))
            original(*arguments)
            found.append(steps_of_latest(tmp_path))

        monkeypatch.setattr(os, name, watched)
    writer.save_checkpoint({"global_step": 2}, tmp_path / "last.ckpt")
    assert found == [1, 1, 1, 1, 1, 2, 2, 2]  # the file reaches the disk, two names change, the folder reaches it


def steps_of_latest(folder):
    return torch.load(latest_checkpoint(folder), weights_only=True)["global_step"]


def test_every_flipped_bit_is_seen_or_harmless(tmp_path):
    """Flips one bit of each fourth byte of a checkpoint; `torch.load` gives back other numbers for many of them."""
    path, generator = tmp_path / "last.ckpt", torch.Generator().manual_seed(0)
    weights = torch.randn(20, generator=generator)
    torch.save({"global_step": 3, "weights": weights, "rate": 0.1}, path)
    whole, refused, unseen = path.read_bytes(), 0, 0
    bits = torch.randint(8, (len(whole),), generator=generator).tolist()
    for place, bit in list(enumerate(bits))[::4]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            read = AtomicCheckpointIO().load_checkpoint(path)
        except ValueError as error:
            assert "last.ckpt is damaged" in str(error)  # noqa: PT017 (some bytes are padding)
            refused += 1
            continue
        assert torch.equal(read.pop("weights"), weights)
        assert read == {"global_step": 3, "rate": 0.1}
        unseen += 1
    assert refused > unseen > 0
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
            AtomicCheckpointIO().load_checkpoint(path)


def test_a_checkpoint_is_not_given_up_for_want_of_memory(tmp_path, monkeypatch):
    save(tmp_path / "last.ckpt", 1)
    monkeypatch.setattr(torch, "load", lambda *_, **__: torch.empty(10**15))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        latest_checkpoint(tmp_path)


def test_nothing_but_plain_values_is_read(tmp_path):
    torch.save({"path": Path()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="damaged or holds more than tensors and plain values"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    with pytest.raises(FileNotFoundError):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "best.ckpt")
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"a": 1})
