"""What a run and its data survive: killed processes, full and read-only disks, damaged files, changed data, clocks.

The table in README names these tests, and those elsewhere. Runs here go through the command line in this process, or in
a process forked from it, where they are to be killed.
"""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from callbacks.checkpoints import AtomicCheckpointIO, latest_checkpoint
from callbacks.figures import ImputationFigure
from callbacks.finite import FiniteGradients
from callbacks.results import write_json_atomically
from callbacks.same_data import SameData
from datamodules import sources
from datamodules.imputation.healing_mnist import HealingMNIST
from datamodules.sources import Source, SourceError
from experiments import build
from experiments.config import compose
from experiments.run import main
from lightning_modules.imputation.gpvae import GPVAE

ARGUMENTS = [
    "data.train_rows=20", "data.batch_size=10", "data.validation_rows=12", "data.sequences_per_digit=1",
    "data.test_rows=55", "trainer.max_steps=4", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1",
    "trainer.log_every_n_steps=1", "model.latent_dim=4", "model.encoder_sizes=[8]", "model.decoder_sizes=[8]",
    "model.window=3", "model.remasking=0.5", "baselines=[]", "checkpoint.every_n_steps=1", "seed=3",
]  # fmt: skip
NUM_STEPS = 4
IS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="module", autouse=True)
def quick():
    """One thread, since a pool of threads does not survive a fork; a picture that takes no time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImputationFigure, "_figure", lambda *_: Figure())
        yield
    torch.set_num_threads(threads)


def start(root, *more):
    """Start the command; gives its status."""
    return main(["gpvae_digits", *ARGUMENTS, "logger=none", f"run_root={root}", *more])


def folder_in(root):
    return compose("gpvae_digits", [*ARGUMENTS, f"run_root={root}"]).folder


def steps(folder):
    """Steps in the checkpoints of a run; each is read in full."""
    paths = (folder / "checkpoints").glob("*.ckpt")
    return {path.stem: AtomicCheckpointIO().load_checkpoint(path)["global_step"] for path in paths}


def assert_same_run(folder, other):
    """Weights, scores and counts of two finished runs agree to the last bit."""
    for name in ("last", "best"):
        paths = (each / "checkpoints" / f"{name}.ckpt" for each in (folder, other))
        ours, theirs = (torch.load(path, weights_only=True) for path in paths)
        assert ours["global_step"] == theirs["global_step"]
        torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    ours, theirs = (json.loads((each / "results.json").read_text()) for each in (folder, other))
    for key in ("metrics", "validation", "steps", "data_sha256", "config_sha256", "warnings"):
        assert ours[key] == theirs[key], key


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick):
    """A run that nothing disturbed; not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    assert start(root) == 0
    return folder_in(root)


@contextlib.contextmanager
def at_call(owner, name, number, action):
    """Do something before the n-th call of a method."""
    original, calls = getattr(owner, name), 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield


class InterruptionError(Exception):
    pass


def interrupt():
    raise InterruptionError


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, quick):
    """The root of a run that ended in its fourth step, with checkpoints of the third and the second; to be copied."""
    root = tmp_path_factory.mktemp("stopped")
    with at_call(GPVAE, "training_step", 4, interrupt), pytest.raises(InterruptionError):
        start(root)
    assert steps(folder_in(root)) == {"best": 2, "last": 3, "previous": 2}
    return root


@pytest.fixture
def interrupted(stopped, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(stopped, root)
    return root


# Killed processes


def killed(action, wait=None):
    """Run something in a forked process, and kill it after a wait; whether a signal ended it."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            action()
            os._exit(0)
        os._exit(1)
    if wait is not None:
        wait()
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status <= 0, "it failed"
    return status < 0


def kill_at_file_event(root, number):
    """Kill this process right before the n-th time that a file below a folder is opened for writing or renamed."""
    events = 0

    def hook(name, arguments):
        nonlocal events
        is_write = name == "os.rename" or (name == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if is_write and str(arguments[0]).startswith(str(root)):
            events += 1
            if events == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_a_run_killed_around_any_file_it_writes_ends_in_the_same_digits(finished, tmp_path):
    draw, kills = random.Random(), []
    while len(kills) < 5:
        number = draw.randint(2, 24)

        def action(number=number):
            kill_at_file_event(tmp_path, number)
            start(tmp_path)

        kills.append((number, killed(action)))
    print(kills)  # for the report of a failure
    assert any(was_killed for _, was_killed in kills)
    start(tmp_path)
    assert_same_run(folder_in(tmp_path), finished)


@pytest.mark.parametrize("call", [1, 2])
def test_a_run_stopped_in_a_validation_repeats_it(call, finished, tmp_path):
    with at_call(GPVAE, "validation_step", call, interrupt), pytest.raises(InterruptionError):
        start(tmp_path)
    assert start(tmp_path) == 0
    assert_same_run(folder_in(tmp_path), finished)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_in_the_same_digits(finished, tmp_path):
    begin = time.perf_counter()
    start(tmp_path / "measure")
    duration, draw = time.perf_counter() - begin, random.Random()
    kills = [draw.uniform(0, duration) for _ in range(12)]
    print(kills)
    assert sum(killed(lambda: start(tmp_path), functools.partial(time.sleep, seconds)) for seconds in kills) > 0
    start(tmp_path)
    assert_same_run(folder_in(tmp_path), finished)


@pytest.mark.parametrize("name", ["last.ckpt", "results.json"])
def test_a_process_killed_after_n_bytes_of_a_file_leaves_the_old_one(name, tmp_path):
    path, writer = tmp_path / name, AtomicCheckpointIO()

    def write(step):
        content = {"global_step": step, "values": list(range(step, step + 5000))}
        if name == "last.ckpt":
            writer.save_checkpoint({**content, "weights": torch.full((5000,), float(step))}, path)
        else:
            write_json_atomically(path, content)

    def write_in_part(size):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel ends the process in the middle of a write
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        write(2)

    write(1)
    before = path.read_bytes()
    for size in (0, 1, 4096, len(before) // 2, len(before) - 1):
        assert killed(functools.partial(write_in_part, size))
        assert path.read_bytes() == before
        assert (tmp_path / f".{name}.partial").stat().st_size == size
    if name == "last.ckpt":
        assert latest_checkpoint(tmp_path) == path
    write(3)
    assert path.read_bytes() != before
    names = {each.name for each in tmp_path.iterdir()}
    assert names == ({name, "previous.ckpt"} if name == "last.ckpt" else {name})


# Full and read-only disks


def mount(*arguments):
    if not IS_ROOT or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    if subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")


@pytest.fixture
def disk(tmp_path):
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk):
    """Leave no room on a disk."""
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def one_line(capsys):
    """What the command said last, on standard error."""
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_full_disk_is_told_with_the_file_and_costs_nothing(disk, finished, capsys):
    folder = folder_in(disk)
    moments = [
        (GPVAE, "training_step", 3, "checkpoints/last.ckpt", 2),
        (GPVAE, "test_step", 1, "figures/imputations.png", NUM_STEPS),
        (build, "_versions", 1, "results.json", NUM_STEPS),
    ]
    for owner, name, call, file, saved in moments:
        with at_call(owner, name, call, lambda: fill(disk)):
            assert start(disk) == 2
        line = one_line(capsys)
        assert f"{folder / file} could not be written: No space left on device. " in line
        assert "Free some space" in line
        assert line.endswith("The run continues from its last checkpoint.")
        assert steps(folder)["last"] == saved
        assert not list(folder.rglob(".*.partial"))
        (disk / "ballast").unlink()
    assert start(disk) == 0
    assert_same_run(folder, finished)


def test_a_full_disk_under_the_logger_and_the_cache(disk, capsys, monkeypatch):
    with at_call(GPVAE, "training_step", 2, lambda: fill(disk)):
        assert start(disk, "checkpoint.every_n_steps=100", "logger=csv") == 2
    line = one_line(capsys)
    assert str(disk) in line
    assert "No space left on device" in line

    monkeypatch.setenv("GENPRED_DATA", str(disk / "cache"))
    (disk / "ballast").unlink()
    with pytest.raises(SourceError, match=r"no room left on the device. Set GENPRED_DATA"):
        sources.ensure_arrays(disk / "cache" / "key", lambda: ({"array": np.zeros(2**18)}, {}))
    assert [path.name for path in (disk / "cache").iterdir()] == ["key.lock"]  # no half of it is in the way
    sources.ensure_arrays(disk / "cache" / "key", lambda: ({"array": np.zeros(2**10)}, {}))
    assert sources.open_arrays(disk / "cache" / "key")[0]["array"].shape == (2**10,)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_that_cannot_be_written_costs_its_lines_and_not_the_run(finished, tmp_path, capsys):
    folder = folder_in(tmp_path)
    folder.mkdir(parents=True)
    (folder / "log.txt").symlink_to("/dev/full")
    assert start(tmp_path) == 0
    err = capsys.readouterr().err
    assert err.count(f"{folder / 'log.txt'} could not be written: No space left on device.") == 1
    assert "Traceback" not in err
    assert_same_run(folder, finished)


@contextlib.contextmanager
def read_only(folder):
    """Nothing can be written below a folder, by root neither; files that are open stay so."""
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_folder_that_becomes_read_only_is_told_and_continues_when_it_is_writable_again(finished, tmp_path, capsys):
    folder, closing = folder_in(tmp_path), contextlib.ExitStack()
    with closing, at_call(GPVAE, "training_step", 3, lambda: closing.enter_context(read_only(folder))):
        assert start(tmp_path) == 2
        line = one_line(capsys)
        assert f"{folder / 'checkpoints' / 'last.ckpt'} could not be written: Read-only file system. " in line
        assert "make the folder writable" in line
        assert steps(folder) == {"best": 2, "last": 2, "previous": 1}
        assert start(tmp_path) == 2
        assert one_line(capsys) == (
            f"error: {folder} cannot be written: Read-only file system; choose another folder with run_root=..."
        )
    assert start(tmp_path) == 0
    assert_same_run(folder, finished)


@pytest.mark.skipif(IS_ROOT, reason="permissions do not bind root")
def test_a_folder_without_permission_is_told(tmp_path, capsys):
    folder = folder_in(tmp_path)
    folder.mkdir(parents=True, mode=0o500)
    assert start(tmp_path) == 2
    assert f"{folder} cannot be written: Permission denied" in one_line(capsys)


# Damaged files


def flip_a_weight(path):
    """Flip a bit of the largest weight in a checkpoint: `torch.load` does not see it."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda each: each.file_size)
        data = archive.read(largest)
    content = bytearray(path.read_bytes())
    content[content.index(data) + len(data) // 2] ^= 64
    before = torch.load(path, weights_only=True)
    path.write_bytes(content)
    after = torch.load(path, weights_only=True)
    assert repr(before) != repr(after) or any(
        not torch.equal(value, after["state_dict"][key]) for key, value in before["state_dict"].items()
    )


DAMAGES = {
    "a flipped bit": (("last",), flip_a_weight),
    "cut": (("last",), lambda path: os.truncate(path, path.stat().st_size * 2 // 3)),
    "empty": (("last",), lambda path: os.truncate(path, 0)),
    "both cut": (("last", "previous"), lambda path: os.truncate(path, 1000)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_previous_one(damage, interrupted, finished, capsys):
    folder, (names, spoil) = folder_in(interrupted), DAMAGES[damage]
    for name in names:
        spoil(folder / "checkpoints" / f"{name}.ckpt")
    assert start(interrupted) == 0
    told = capsys.readouterr().err
    for name in names:
        assert f"{folder / 'checkpoints' / name}.ckpt is passed over, it cannot be read" in told
    where = "step 2, previous.ckpt" if len(names) == 1 else "its beginning"
    assert f"the run goes on from {where}\n" in told
    assert_same_run(folder, finished)
    assert steps(folder).keys() == {"best", "last"}  # what the previous one was kept for is over


@pytest.mark.parametrize("name", ["previous", "preempt"])
def test_the_last_checkpoint_is_whole_again_where_nothing_is_left_but_the_test(name, finished, tmp_path):
    """Killed between the two renames of the last save; or told to stop after the last step."""
    shutil.copytree(finished.parents[2], tmp_path, dirs_exist_ok=True)
    folder = folder_in(tmp_path)
    (folder / "results.json").unlink()
    (folder / "checkpoints" / "last.ckpt").rename(folder / "checkpoints" / f"{name}.ckpt")
    assert start(tmp_path) == 0
    assert_same_run(folder, finished)
    assert steps(folder) == {"best": 2, "last": NUM_STEPS}


@pytest.mark.parametrize("name", ["results.json", "config.yaml"])
@pytest.mark.parametrize("content", [bytes(100), b"{"], ids=["zeros", "cut"])
def test_a_damaged_file_of_a_finished_run_is_named(name, content, finished, tmp_path, capsys):
    shutil.copytree(finished.parents[2], tmp_path, dirs_exist_ok=True)
    path = folder_in(tmp_path) / name
    path.write_bytes(content)
    assert start(tmp_path) == 2
    assert str(path) in one_line(capsys)


# Data that change, clocks that are set back, numbers that diverge, memory that lacks


class OneFile(L.LightningDataModule):
    """A table of numbers, read from a file."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    @property
    def data_sha256(self):
        return {self.path.name: hashlib.sha256(self.path.read_bytes()).hexdigest()}

    def train_dataloader(self):
        return DataLoader(torch.tensor([float(number) for number in self.path.read_text().split()]))


class Fit(L.LightningModule):
    def __init__(self, weights_sha256):
        super().__init__()
        self.part = torch.nn.Linear(1, 1)
        self.part.weights_sha256 = weights_sha256

    def training_step(self, batch, _):
        return self.part(batch[:, None]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
@pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*")
def test_a_checkpoint_goes_with_the_data_and_the_weights_it_was_made_from(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("1 2 3")

    def fit(weights, max_epochs, checkpoint=None):
        trainer = L.Trainer(
            default_root_dir=tmp_path, accelerator="cpu", max_epochs=max_epochs, callbacks=[same := SameData()],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Fit(weights), OneFile(path), ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        return trainer.global_step, same.sums

    sums = {"numbers.txt": hashlib.sha256(b"1 2 3").hexdigest(), "w.pt": "0"}
    assert fit({"w.pt": "0"}, 1) == (3, sums)
    assert fit({"w.pt": "0"}, 2, tmp_path / "a.ckpt") == (6, sums)
    with pytest.raises(ValueError, match=r"^w\.pt changed since this run began: put the old data back, or start over"):
        fit({"w.pt": "1"}, 3, tmp_path / "a.ckpt")
    path.write_text("1 2 4")
    with pytest.raises(ValueError, match=r"^numbers\.txt, v\.pt, w\.pt changed since this run began"):
        fit({"v.pt": "0"}, 3, tmp_path / "a.ckpt")


def test_other_data_are_refused_when_a_run_continues_and_shown_as_they_were_when_it_is_finished(
    interrupted, finished, capsys, monkeypatch
):
    folder = folder_in(interrupted)
    with monkeypatch.context() as patch:
        patch.setattr(HealingMNIST, "data_sha256", {"digits": "0" * 64})
        assert start(interrupted) == 2
        assert one_line(capsys) == (
            "error: digits changed since this run began: put the old data back, or start over with force=true"
        )
        assert steps(folder) == {"best": 2, "last": 3, "previous": 2}
        shown = build.execute(compose("gpvae_digits", [*ARGUMENTS, "logger=none", f"run_root={finished.parents[2]}"]))
        assert shown["data_sha256"] == json.loads((finished / "results.json").read_text())["data_sha256"]
        assert shown["data_sha256"] != {"digits": "0" * 64}
    assert start(interrupted) == 0
    assert_same_run(folder, finished)


def test_a_clock_that_is_set_back_changes_nothing(interrupted, finished, monkeypatch):
    folder = folder_in(interrupted)
    for name, seconds in (("previous", 3e9), ("last", 1e9)):  # the older file has the later time
        os.utime(folder / "checkpoints" / f"{name}.ckpt", (seconds, seconds))
    now = [time.time()]

    def backwards():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    assert start(interrupted) == 0
    monkeypatch.undo()
    assert_same_run(folder, finished)
    assert "continuing from" in (log := (folder / "log.txt").read_text())
    assert log.rstrip().count("last.ckpt")
    results = json.loads((folder / "results.json").read_text())
    assert 0 < results["train_seconds"] < 600
    assert 0 < results["test_seconds"] < 600


def test_a_loss_that_is_nan_ends_the_run_in_words(tmp_path, capsys, monkeypatch):
    original, calls = GPVAE.training_step, 0

    def spoilt(self, batch, batch_index):
        nonlocal calls
        calls += 1
        return original(self, batch, batch_index) * (torch.nan if calls > 2 else 1.0)

    monkeypatch.setattr(GPVAE, "training_step", spoilt)
    monkeypatch.setattr(build, "FiniteGradients", functools.partial(FiniteGradients, max_consecutive=2))
    assert start(tmp_path) == 2
    line = one_line(capsys)
    assert "gradients were not finite in 2 steps in a row" in line
    assert "Lower the learning rate" in line
    folder = folder_in(tmp_path)
    weights = torch.load(latest_checkpoint(folder / "checkpoints"), weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())
    assert not (folder / "results.json").exists()


def raise_on_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda: torch.empty(10**15), "DefaultCPUAllocator: can't allocate memory"),
        (lambda: np.empty(2**58), "Unable to allocate"),
        (raise_on_gpu, "CUDA out of memory"),
    ],
    ids=["torch", "numpy", "gpu"],
)
def test_memory_that_lacks_is_one_line_with_a_remedy(ask, reason, tmp_path, capsys):
    with at_call(GPVAE, "training_step", 3, ask):
        assert start(tmp_path) == 2
    line = one_line(capsys)
    assert line.startswith("error: out of memory: ")
    assert reason in line
    assert "Lower data.batch_size and raise trainer.accumulate_grad_batches" in line
    folder = folder_in(tmp_path)
    assert steps(folder) == {"best": 2, "last": 2, "previous": 1}
    assert "Traceback" in (folder / "log.txt").read_text()


def test_other_errors_are_left_as_they_are(tmp_path):
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with at_call(GPVAE, "training_step", 1, fail), pytest.raises(RuntimeError, match="mat1 and mat2"):
        start(tmp_path)
    with at_call(GPVAE, "training_step", 1, lambda: open("/nowhere")), pytest.raises(FileNotFoundError):
        start(tmp_path)


# The network


CONTENT = np.random.default_rng(0).bytes(300_000)
PAGE = b"<!DOCTYPE html><html><body>Please log in to the network.</body></html>"


@pytest.fixture
def server():
    """Answers each request with the next of `answers`: the length announced, the bytes sent; then it may stall."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            length, body, *stalls = instance.answers.pop(0)
            self.send_response(200)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
            if stalls:
                instance.stalled.set()
                instance.go_on.wait(30)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        instance.answers, instance.stalled, instance.go_on = [], threading.Event(), threading.Event()
        instance.url = f"http://127.0.0.1:{instance.server_address[1]}/file.bin"
        thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield instance
        instance.go_on.set()
        instance.shutdown()
        thread.join()


@pytest.fixture
def pinned(server, tmp_path, monkeypatch):
    """A source of which the sum is known."""
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("GENPRED_MIRROR", raising=False)
    known = Source("file.bin", "file.bin", (server.url,), (hashlib.sha256(CONTENT).hexdigest(),), "none", "nobody")
    monkeypatch.setitem(sources.SOURCES, "file.bin", known)
    return known


LOST = [(len(CONTENT), CONTENT[: len(CONTENT) // 2]), (None, CONTENT[: len(CONTENT) // 2]), (len(PAGE), PAGE)]


@pytest.mark.parametrize("answer", LOST, ids=["lost half-way", "lost without a length", "a page"])
@pytest.mark.parametrize("is_pinned", [True, False], ids=["pinned", "unpinned"])
def test_half_a_download_or_a_page_is_never_taken_and_the_next_attempt_succeeds(
    answer, is_pinned, server, pinned, tmp_path
):
    def fetch():
        if is_pinned:
            return sources.fetch("file.bin")
        unpinned = Source("file.bin", "file.bin", (server.url,), (), "none", "nobody")
        return sources.fetch_unpinned(unpinned, lambda path: path.stat().st_size == len(CONTENT))

    server.answers = [answer, (len(CONTENT), CONTENT)]
    with pytest.raises(SourceError, match=f"(?s){server.url}.*GENPRED_MIRROR"):
        fetch()
    assert [path.name for path in (tmp_path / "cache" / "raw").iterdir()] == ["file.bin.lock"]
    assert fetch().read_bytes() == CONTENT
    assert fetch().read_bytes() == CONTENT
    assert server.answers == []


def test_a_process_killed_in_mid_download_leaves_nothing_that_is_taken(server, pinned, tmp_path):
    server.answers = [(len(CONTENT), CONTENT[:100_000], "stalls"), (len(CONTENT), CONTENT)]
    unfinished = tmp_path / "cache" / "raw" / "file.bin.unfinished"

    def wait():
        assert server.stalled.wait(60)
        for _ in range(1000):
            if unfinished.exists():
                return
            time.sleep(0.01)

    assert killed(lambda: sources.fetch("file.bin"), wait)
    assert unfinished.exists()
    assert sources.find("file.bin") is None
    assert sources.fetch("file.bin").read_bytes() == CONTENT
    assert not unfinished.exists()


def test_the_sum_of_a_first_download_is_whole_or_absent(server, pinned, tmp_path, monkeypatch):
    unpinned = Source("file.bin", "file.bin", (server.url,), (), "none", "nobody")
    server.answers = [(len(CONTENT), CONTENT)]
    original = Path.write_text

    def half(path, text):
        original(path, text[:32])
        raise InterruptionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(InterruptionError):
            sources.fetch_unpinned(unpinned, lambda path: True)
    path = sources.fetch_unpinned(unpinned, lambda path: True)
    assert path.with_name("file.bin.sha256").read_text() == hashlib.sha256(CONTENT).hexdigest()
