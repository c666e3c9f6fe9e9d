import json
import os
import re
import signal
import sys
import time
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from callbacks.progress import TrainingProgressBar, progress_bars, seconds_left
from callbacks.results import RunStatistics, read_json, write_json_atomically

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # of torch, used by Lightning
]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(), PLAIN))
def test_what_is_written_is_read(tmp_path_factory, payload):
    path = tmp_path_factory.mktemp("results") / "deep" / "results.json"
    write_json_atomically(path, payload)
    assert read_json(path) == payload
    assert [each.name for each in path.parent.iterdir()] == ["results.json"]


def test_a_list_of_numbers_is_one_line(tmp_path):
    path = tmp_path / "results.json"
    write_json_atomically(path, {"draws": {"a": [0.5, None, -1e-7]}, "text": "[1,  2 ]", "words": ["b", "c"], "d": []})
    lines = path.read_text().splitlines()
    assert '    "a": [0.5, null, -1e-07]' in lines
    assert '  "text": "[1,  2 ]",' in lines
    assert '    "b",' in lines


@pytest.mark.parametrize(
    ("payload", "error", "message"),
    [
        ({"metrics": {"test/nll": float("nan")}}, ValueError, r"results.json\['metrics'\]\['test/nll'\] is nan"),
        ({"a": [1.0, float("-inf")]}, ValueError, r"results.json\['a'\]\[1\] is -inf"),
        ({"a": torch.tensor(1.0)}, TypeError, r"\['a'\] is a Tensor"),
        ({"a": np.float32(1)}, TypeError, r"\['a'\] is a float32"),
        ({"a": {1: 2}}, TypeError, "key 1 is a int"),
    ],
)
def test_what_is_no_result_is_refused_by_name_and_nothing_is_written(tmp_path, payload, error, message):
    path = tmp_path / "results.json"
    write_json_atomically(path, {"old": 1})
    with pytest.raises(error, match=message):
        write_json_atomically(path, payload)
    assert read_json(path) == {"old": 1}


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "results.json").write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        read_json(tmp_path / "results.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def killed_at_fsync(function, *args):
    """Run it in a process that kills itself where the file would go to the disk."""
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        function(*args)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_in_the_middle_leaves_the_previous_whole(tmp_path):
    path = tmp_path / "results.json"
    write_json_atomically(path, {"old": 1})
    assert killed_at_fsync(write_json_atomically, path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    write_json_atomically(path, {"new": 2})
    assert read_json(path) == {"new": 2}
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]


class Slow(L.LightningModule):
    """Two optimizers, so ``global_step`` runs double; 10 ms a batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.net = torch.nn.Linear(3, 2)
        self.frozen = torch.nn.Linear(1, 1).requires_grad_(False)

    def training_step(self, batch, _):
        time.sleep(0.01)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.net(batch).square().mean())
            optimizer.step()

    def test_step(self, batch, batch_idx):
        time.sleep(0.02)

    def loader(self):
        return DataLoader(torch.ones(5, 3))

    train_dataloader = test_dataloader = loader

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


def trainer(folder, max_epochs, *callbacks):
    return L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=bool(callbacks[1:]),
        enable_model_summary=False,
    )


def test_costs_add_up_over_resumes(tmp_path):
    first = RunStatistics()
    run = trainer(tmp_path, 2, first)
    begin = time.perf_counter()
    run.fit(Slow())
    elapsed = time.perf_counter() - begin
    run.save_checkpoint(tmp_path / "a.ckpt")
    once = first.statistics
    assert run.global_step == 20
    assert once["steps"] == 10
    assert once["parameters"] == 10
    assert 0.1 <= once["train_seconds"] <= elapsed
    assert 50e6 < once["peak_memory_bytes"] < 50e9
    assert first.statistics == once  # the clock stands still

    second = RunStatistics()
    resumed = trainer(tmp_path, 3, second)
    begin = time.perf_counter()
    resumed.fit(Slow(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    elapsed = time.perf_counter() - begin
    twice = second.statistics
    assert twice["steps"] == 15
    assert once["train_seconds"] + 0.05 <= twice["train_seconds"] <= once["train_seconds"] + elapsed

    resumed.test(Slow(), ckpt_path=tmp_path / "a.ckpt", verbose=False, weights_only=True)  # an earlier checkpoint
    tested = second.statistics
    assert 0.1 <= tested.pop("test_seconds") < elapsed + 10
    assert tested["peak_memory_bytes"] >= twice["peak_memory_bytes"]
    assert {name: tested[name] for name in ("steps", "train_seconds", "parameters")} == {
        name: twice[name] for name in ("steps", "train_seconds", "parameters")
    }


def test_costs_of_a_fit_left_by_an_exception(tmp_path):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                raise InterruptedError

    statistics = RunStatistics()
    with pytest.raises(InterruptedError):
        trainer(tmp_path, 1, statistics, Stop()).fit(Slow())
    assert statistics.steps == 3
    assert statistics.train_seconds == statistics.train_seconds >= 0.03


def test_a_bar_on_terminals_only(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert progress_bars() == []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    (bar,) = progress_bars()
    assert isinstance(bar, TrainingProgressBar)


def test_time_left():
    def left(max_epochs, max_steps, done, global_step, first=0):
        fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=done - 1))
        state = SimpleNamespace(
            fit_loop=fit_loop,
            max_epochs=max_epochs,
            max_steps=max_steps,
            num_training_batches=10,
            global_step=global_step,
        )
        return seconds_left(state, first, 100.0, 120.0)

    assert left(4, -1, 10, 10) == 60.0  # 10 of 40 batches in 20 s
    assert left(4, -1, 20, 20, first=10) == 40.0  # resumed: 10 of the 30 that were left
    assert left(None, 80, 20, 40) == 20.0  # two steps a batch
    assert left(4, 20, 10, 10) == 20.0  # the nearer end
    assert left(-1, -1, 10, 10) is None
    assert left(4, -1, 10, 10, first=10) is None


def test_bar_shows_the_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    bar = TrainingProgressBar()
    trainer(tmp_path, 10, RunStatistics(), bar).fit(Slow())
    assert re.search(r"0:00:0\d left", capsys.readouterr().out)
