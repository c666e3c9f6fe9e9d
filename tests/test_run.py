"""Whole runs through the command line: every experiment, resuming, what is left behind, what is refused."""

import contextlib
import functools
import gzip
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from callbacks.collapse import PosteriorCollapse
from callbacks.results import write_json_atomically
from datamodules import sources
from datamodules.imputation.physionet import VARIABLES
from datamodules.imputation.sprites import SHEETS
from experiments import build
from experiments.config import ConfigError, compose, config_hash, experiments
from experiments.run import main
from lightning_modules.imputation.constant import FILLS
from lightning_modules.imputation.gpvae import GPVAE

ROOT = Path(__file__).parents[1]
# 54 is the smallest number of test digits of which both halves have all ten classes; 55 is uneven for two processes.
DIGITS = ["data.sequences_per_digit=1", "data.test_rows=55"]
ROWS = ["data.train_rows=20", "data.batch_size=10", "data.validation_rows=12", *DIGITS]
STEPS = [
    "trainer.max_steps=4",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "trainer.log_every_n_steps=1",
]
TINY = ["model.latent_dim=4", "model.encoder_sizes=[8]", "model.decoder_sizes=[8]"]
# Two epochs of two steps; remasking draws random numbers while training.
SMALL = [*ROWS, *STEPS, *TINY, "model.window=3", "model.remasking=0.5", "baselines=[]", "checkpoint.every_n_steps=1"]
NUM_STEPS = 4
REAL_DATA = {name: os.environ[name] for name in ("GENPRED_MIRROR", "GENPRED_DATA") if name in os.environ}


PUBLISHED = dict.fromkeys(("hmnist", "sprites"), ("mean", "forward", "vae", "hivae", "gpvae"))
PUBLISHED["physionet"] = ("mean", "forward", "gp", "vae", "hivae", "gruigan", "brits", "csdi", "gpvae")
SMALL_METHODS = {
    "gruigan": ["model.pretraining_steps=1", "model.critic_steps=1", "model.search_steps=3"],
    "csdi": [
        "model.num_diffusion_steps=2", "model.num_layers=1", "model.channels=8", "model.num_heads=1",
        "model.num_samples=4",
    ],
}  # fmt: skip


def preset_cases():
    every = experiments()["imputation"]  # those of synthesis: see test_run_synthesis.py
    # Experiments on a table of one's own: see test_impute.py.
    for name in [name for name in every if not name.endswith("_csv")]:
        for preset in ("paper", "plus"):
            with contextlib.suppress(ConfigError):
                compose(name, [f"preset={preset}"])
                yield name, preset


# Some methods on the data that are quickest to make; the rest with -m slow.
QUICK = re.compile(r"(mean|gp|vae|brits|gpvae)_(physionet|digits)")
CASES = [
    pytest.param(name, preset, id=f"{name}-{preset}", marks=() if QUICK.fullmatch(name) else pytest.mark.slow)
    for name, preset in preset_cases()
]


@pytest.fixture(scope="module", autouse=True)
def raw_files(tmp_path_factory):
    """A mirror of made-up raw files in the layout and format of the real ones, and a cache of this file's own."""
    mirror, generator = tmp_path_factory.mktemp("mirror"), np.random.default_rng(0)
    files = {}
    for prefix in ("train", "t10k"):
        images = (255 * (generator.random((40, 28, 28)) < 0.3)).astype(np.uint8)
        images_header = struct.pack(">HBB3I", 0, 8, 3, *images.shape)
        labels_header = struct.pack(">HBBI", 0, 8, 1, len(images))
        labels = (np.arange(len(images)) % 10).astype(np.uint8)
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(images_header + images.tobytes())
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(labels_header + labels.tobytes())
    for position, name in enumerate("abc"):
        records = 1000 * (position + 1) + np.arange(60)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            for record in records:
                hours, variables = np.sort(generator.integers(0, 48, 90)), generator.choice(list(VARIABLES), 90)
                cells = zip(hours, variables, generator.normal(size=90), strict=True)
                rows = [f"{hour:02d}:{record % 60:02d},{variable},{value:.3f}" for hour, variable, value in cells]
                text = "\n".join(["Time,Parameter,Value", f"00:00,RecordID,{record}", *rows, ""]).encode()
                info = tarfile.TarInfo(f"set-{name}/{record}.txt")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text))
        files[f"set-{name}.tar.gz"] = archive.getvalue()
        deaths = [f"{record},6,1,5,-1,{record % 2}" for record in records]
        table = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death", *deaths, ""]
        files[f"Outcomes-{name}.txt"] = "\n".join(table).encode()
    for name in SHEETS:
        colour = [*generator.integers(1, 256, 3), 255 * (name.startswith("body") or name == "hair/0.png")]
        sheet = io.BytesIO()
        Image.new("RGBA", (832, 1344), tuple(int(number) for number in colour)).save(sheet, "PNG", compress_level=1)
        files[name] = sheet.getvalue()
    with pytest.MonkeyPatch.context() as patch:
        for name, content in files.items():
            known = sources.SOURCES[name]
            path = mirror / known.path
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(content)
            made_up = sources.Source(name, known.path, (), (sources.file_sha256(path),), "", "")
            patch.setitem(sources.SOURCES, name, made_up)
        patch.setenv("GENPRED_MIRROR", str(mirror))
        patch.setenv("GENPRED_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


def run(root, name, *overrides, status=0):
    """Run the command line; gives the run's folder and its results."""
    arguments = [*overrides, f"run_root={root}"]
    if not any(each.startswith("logger=") for each in overrides):
        arguments.append("logger=none")
    assert main([name, *arguments]) == status
    folder = compose(name, arguments).folder
    results = folder / "results.json"
    return folder, json.loads(results.read_text()) if results.exists() else None


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_run(folder, other):
    """Weights, scores and counts of two finished runs agree to the last bit."""
    torch.testing.assert_close(weights(folder), weights(other), rtol=0, atol=0)
    ours, theirs = (json.loads((each / "results.json").read_text()) for each in (folder, other))
    for key in ("metrics", "steps", "parameters", "config_sha256", "data_sha256", "variant", "seed", "warnings"):
        assert ours[key] == theirs[key], key


@pytest.fixture(scope="module")
def finished(tmp_path_factory, raw_files):
    """A finished run that nobody disturbed, logged to CSV; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        folder, results = run(tmp_path_factory.mktemp("finished"), "gpvae_digits", *SMALL, "seed=3", "logger=csv")
        assert list(Path.cwd().iterdir()) == []
    return folder, results


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run, free to be changed: its folder and a function that starts its command again."""
    root = tmp_path / "runs"
    shutil.copytree(finished[0].parents[2], root)
    return root / finished[0].relative_to(finished[0].parents[2]), lambda *more, **options: run(
        root, "gpvae_digits", *SMALL, "seed=3", *more, **options
    )


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_every_experiment_trains_and_is_scored(name, preset, tmp_path, capsys):
    rows = ["data.train_rows=16", "data.batch_size=8", "data.validation_rows=8"]
    steps = ["trainer.max_steps=2", *STEPS[1:]]
    method, dataset = name.split("_")
    limits = {"digits": DIGITS, "sprites": ["data.test_rows=8"], "physionet": ["data.evaluation_samples=4"]}
    small = [*limits.get(dataset, []), *SMALL_METHODS.get(method, [])]
    folder, results = run(tmp_path, name, f"preset={preset}", *rows, *steps, *small)
    density = method in ("vae", "hivae", "gpvae") or (method == "gp" and dataset in ("sprites", "physionet"))
    expected = {"mse", "mae", "rmse", "mre"}
    if dataset != "sprites":  # which have no class
        expected |= {"auroc", "auprc", "auroc_std", "auroc_standardised", "auprc_standardised"}
    expected |= {"nll", "nll_mixture"} if density else set()
    if dataset == "physionet":
        expected |= {"crps"}
        spread = density or method == "csdi"
        expected |= {f"{kind}_{k}" for kind in ("coverage", "width") for k in (50, 90, 95)} if spread else set()
    assert results["metrics"].keys() == {f"test/{metric}" for metric in expected}
    assert all(np.isfinite(value) for value in results["metrics"].values())
    assert 0 <= results["metrics"].get("test/auroc", 0.5) <= 1
    for draws in results["bootstrap"].values():
        assert len(draws) == 1000
        spread = np.nanstd(np.array(draws, dtype=float), ddof=1)
        assert spread == pytest.approx(results["metrics"]["test/auroc_std"], abs=1e-4)
    assert ("test/auroc" in results["bootstrap"]) == (dataset != "sprites")
    assert (results["method"], results["dataset"], results["preset"]) == (method, dataset, preset)
    trained = method not in FILLS
    assert results["steps"] == (2 if trained else 0)
    assert sorted(path.name for path in folder.glob("checkpoints/*")) == (["best.ckpt", "last.ckpt"] if trained else [])
    table = capsys.readouterr().out
    for metric, label in (("nll", "NLL"), ("mse", "MSE"), ("mae", "MAE"), ("auroc", "AUROC")):
        assert (label in table) == (metric in expected)
    for figure in results["published"].values():
        spread = "" if figure["std"] is None else f" ± {figure['std']:.3f}"
        assert f"{figure['mean']:.3f}{spread}" in table
    whole = not any(each.startswith("data.test_rows=") for each in small)
    assert results["comparable"] == whole
    assert bool(results["published"]) == (whole and method in PUBLISHED.get(dataset, ()))
    assert list(results["baselines"]) == (["mean", "forward"] if dataset == "digits" else [])


@pytest.mark.slow
def test_baselines_stand_beside_ours_and_are_those_of_their_own_runs(tmp_path, capsys):
    _, results = run(tmp_path, "gpvae_digits", *[each for each in SMALL if "baselines" not in each])
    header, *lines = [line for line in capsys.readouterr().out.splitlines() if "┃" in line or "│" in line]
    assert [cell.strip() for cell in header.strip("┃").split("┃")] == ["metric", "ours", "mean", "forward"]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    rows = {first.split()[0]: others for first, *others in cells}
    alone = {}
    for method in ("mean", "forward"):
        alone[method] = run(tmp_path, f"{method}_digits", *DIGITS, "baselines=[]")[1]["metrics"]
        assert results["baselines"][method] == alone[method]
    for metric, label in (("test/mse", "MSE"), ("test/mae", "MAE"), ("test/auroc", "AUROC")):
        figures = [results["metrics"][metric], alone["mean"][metric], alone["forward"][metric]]
        assert rows[label] == [f"{figure:.4f}" for figure in figures]
    assert rows["NLL"] == [f"{results['metrics']['test/nll']:.4f}", "–", "–"]


def test_results_name_the_commit_that_the_run_began_with(tmp_path, monkeypatch):
    commits = iter(["began", "meanwhile", "meanwhile"])
    monkeypatch.setattr(build, "_git_commit", lambda: next(commits))
    assert run(tmp_path, "mean_digits", *DIGITS, "baselines=[]")[1]["git_commit"] == "began"


def test_a_baseline_that_needs_training_is_refused(tmp_path, capsys):
    run(tmp_path, "mean_digits", *DIGITS, "baselines=[vae]", status=2)
    told, error = capsys.readouterr().err.splitlines()
    assert told.startswith("started mean_digits in ")
    assert error == "error: baselines: vae needs training; run vae_digits on its own"


def test_results_are_complete(finished):
    folder, results = finished
    types = {
        "experiment": str, "method": str, "dataset": str, "preset": str, "variant": str, "seed": int, "metrics": dict,
        "validation": dict, "bootstrap": dict, "published": dict, "baselines": dict, "variables": dict,
        "parameters": int, "steps": int, "train_seconds": float, "test_seconds": float, "peak_memory_bytes": int,
        "warnings": list, "config_sha256": str, "data_sha256": dict, "data_variant": str, "comparable": bool,
        "versions": dict, "device": str, "precision": str, "world_size": int, "git_commit": str,
        "command": str, "finished": str,
    }  # fmt: skip
    assert {key: type(value) for key, value in results.items()} == types
    experiment = compose("gpvae_digits", [*SMALL, "seed=3"])
    assert folder.relative_to(folder.parents[2]) == experiment.folder.relative_to("runs")
    module = build.build_module(experiment)
    assert results["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert (results["steps"], results["seed"], results["world_size"]) == (NUM_STEPS, 3, 1)
    assert results["config_sha256"] == config_hash(experiment.identity)
    stored = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert stored == experiment.identity | {"seed": 3}
    assert (results["data_variant"], list(results["data_sha256"])) == ("digits", ["digits"])
    assert len(results["data_sha256"]["digits"]) == 64
    assert results["train_seconds"] > 0
    assert results["test_seconds"] > 0
    assert results["peak_memory_bytes"] > 10**7
    assert torch.__version__.split("+")[0] == results["versions"]["torch"].split("+")[0]
    python, dash_m, module_name, name, *overrides = shlex.split(results["command"])
    assert (python, dash_m, module_name) == ("python", "-m", "experiments.run")
    again = compose(name, overrides)
    assert again.folder == experiment.folder
    assert again.identity == experiment.identity


def test_the_sums_are_those_of_the_raw_files(tmp_path):
    _, results = run(tmp_path, "mean_physionet")
    names = {f"{stem}-{name}.{ending}" for name in "abc" for stem, ending in (("set", "tar.gz"), ("Outcomes", "txt"))}
    assert results["data_sha256"] == {name: sources.SOURCES[name].sha256[0] for name in names}


def test_a_seed_fixes_every_digit(finished, tmp_path):
    folder, results = finished
    same, _ = run(tmp_path, "gpvae_digits", *SMALL, "seed=3")
    assert_same_run(folder, same)
    other, others_results = run(tmp_path, "gpvae_digits", *SMALL, "seed=4")
    assert other.parent == same.parent
    assert others_results["metrics"]["test/nll"] != results["metrics"]["test/nll"]
    assert not torch.equal(weights(other)["decoder.0.weight"], weights(same)["decoder.0.weight"])


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize(
    ("hook", "call", "saved"),
    [
        ("training_step", 1, None),  # before the first checkpoint
        ("training_step", 2, 1),  # in mid-epoch
        pytest.param("training_step", 4, 3, marks=pytest.mark.slow),  # in mid-epoch, after a validation
        ("validation_step", 2, 3),  # in a validation, which is not left out: what comes before it is not saved
        ("test_step", 1, 4),  # after training
    ],
)
def test_a_run_that_is_continued_equals_one_that_never_stopped(hook, call, saved, finished, tmp_path):
    original, calls = getattr(GPVAE, hook), 0

    def interrupted(self, batch, batch_index):
        nonlocal calls
        calls += 1
        if calls == call:
            raise InterruptionError
        return original(self, batch, batch_index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPVAE, hook, interrupted)
        with pytest.raises(InterruptionError):
            run(tmp_path, "gpvae_digits", *SMALL, "seed=3")
    folder = compose("gpvae_digits", [*SMALL, "seed=3", f"run_root={tmp_path}"]).folder
    assert not (folder / "results.json").exists()
    last = folder / "checkpoints" / "last.ckpt"
    assert last.exists() == (saved is not None)
    if saved:
        assert torch.load(last, weights_only=True)["global_step"] == saved
    run(tmp_path, "gpvae_digits", *SMALL, "seed=3")
    assert_same_run(finished[0], folder)
    assert ("continuing from" in (folder / "log.txt").read_text()) == (saved is not None)


# Killed without notice some time after its first checkpoint; its last step never ends, so that it cannot win the race.
KILLED = """
import os, signal, sys, threading
from experiments.run import main
from lightning_modules.imputation.gpvae import GPVAE

original, calls = GPVAE.training_step, 0

def training_step(self, batch, batch_index):
    global calls
    calls += 1
    if calls == 2:
        threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGKILL)).start()
    if calls == 20:
        threading.Event().wait()
    return original(self, batch, batch_index)

GPVAE.training_step = training_step
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_killed_run_is_continued_to_the_same_digits(tmp_path):
    longer = [*SMALL, "trainer.max_steps=20", "trainer.max_epochs=10", "seed=5"]
    arguments = ["gpvae_digits", *longer, "logger=none"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    delay = str(random.Random().uniform(0.0, 0.5))
    command = [sys.executable, "-c", KILLED, delay, *arguments, f"run_root={killed}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder, _ = run(killed, *arguments)
    assert "continuing from" in (folder / "log.txt").read_text()
    uninterrupted, results = run(whole, *arguments)
    assert results["steps"] == 20
    assert_same_run(uninterrupted, folder)


def test_a_finished_run_is_not_touched_again(copied, finished, capsys, monkeypatch):
    folder, again = copied
    capsys.readouterr()

    def state():
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    monkeypatch.setattr(build, "_run", None)
    again()
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{folder} is finished; force=true runs it again"
    assert f"{finished[1]['metrics']['test/mse']:.4f}" in out
    assert state() == before


def test_force_starts_over(copied, finished):
    folder, again = copied
    (folder / "figures" / "old.png").touch()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("latent_dim: 4", "latent_dim: 5"))
    again("force=true")
    assert_same_run(finished[0], folder)
    assert [path.name for path in (folder / "figures").iterdir()] == ["imputations.png"]
    assert "continuing from" not in (folder / "log.txt").read_text()


def test_another_configuration_is_refused(copied, capsys):
    folder, again = copied
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("latent_dim: 4", "latent_dim: 5"))
    again(status=2)
    assert capsys.readouterr().err == (
        f"error: {folder} holds a run of another configuration (model.latent_dim: stored 5, now 4); "
        "start over with force=true, or choose another run_root\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_the_trainer_refuses_is_one_line(tmp_path, capsys):
    run(tmp_path, "mean_digits", *DIGITS, "trainer.accelerator=gpu", status=2)
    (told,) = capsys.readouterr().err.splitlines()
    assert told == "error: trainer: No supported gpu backend found!"


def test_two_processes_do_not_share_a_folder(copied, capsys):
    folder, again = copied
    with filelock.FileLock(folder / ".lock"):
        again(status=2)
    err = capsys.readouterr().err
    assert err == f"error: another process works in {folder}; wait for it, or choose another run_root or seed\n"
    again()


@pytest.mark.parametrize("obstacle", ["", "mean_digits/default/seed0"])
def test_a_folder_that_cannot_be_made_is_one_line(obstacle, tmp_path, capsys):
    path = tmp_path / "runs" / obstacle
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    run(tmp_path / "runs", "mean_digits", status=2)
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path / 'runs' / 'mean_digits'}")
    assert "cannot be written" in captured.err
    assert "run_root=" in captured.err
    assert captured.err.count("\n") == 1


def test_data_that_cannot_be_had_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("GENPRED_MIRROR", str(tmp_path / "absent"))
    run(tmp_path, "mean_physionet", status=2)
    told, error = capsys.readouterr().err.splitlines()
    assert told.startswith("started mean_physionet in ")
    assert error.startswith("error: physionet2012/set-a.tar.gz: GENPRED_MIRROR names")


@pytest.mark.slow
def test_results_are_whole_or_absent(finished, tmp_path, monkeypatch):
    def half(path, payload):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(InterruptionError))
            write_json_atomically(path, payload)

    arguments = ["gpvae_digits", *SMALL, "seed=3"]
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_json_atomically", half)
        with pytest.raises(InterruptionError):
            run(tmp_path, *arguments)
    assert not list(tmp_path.rglob("*results*"))
    folder, _ = run(tmp_path, *arguments)
    assert_same_run(finished[0], folder)


def plain(value, place="checkpoint"):
    """Raise unless everything inside is a tensor or a plain value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            assert type(key) in (str, int), place
            plain(inner, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            plain(inner, f"{place}[{position}]")
    else:
        assert isinstance(value, torch.Tensor) or type(value) in (str, int, float, bool, type(None)), place


@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoints_hold_plain_values_and_give_back_the_method(name, finished):
    path = finished[0] / "checkpoints" / f"{name}.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    plain(checkpoint)
    module = GPVAE.load_from_checkpoint(path, weights_only=True)
    built = build.build_module(compose("gpvae_digits", SMALL))
    assert dict(module.hparams) == dict(built.hparams)
    torch.testing.assert_close(dict(module.state_dict()), checkpoint["state_dict"], rtol=0, atol=0)
    values = torch.rand(2, 10, 64, generator=torch.Generator().manual_seed(0)).round()
    observed_mask = torch.ones(2, 10, 64, dtype=torch.bool)
    built.load_state_dict(checkpoint["state_dict"])
    with torch.no_grad():
        means = [each.eval()(values, observed_mask).mean for each in (module, built)]
    assert torch.equal(*means)


def test_loggers_write_into_the_folder_or_nothing(finished, tmp_path):
    lines = (finished[0] / "csv" / "metrics.csv").read_text().splitlines()
    assert {"step", "val/mse", "test/mse"} <= set(lines[0].split(","))
    known = {"config.yaml", "results.json", "log.txt", "checkpoints", "figures", ".lock"}
    assert {path.name for path in finished[0].iterdir()} == known | {"csv"}
    folder, _ = run(tmp_path, "mean_digits", *DIGITS, "baselines=[]")
    assert {path.name for path in folder.iterdir()} == known - {"checkpoints"}


def test_too_few_test_series_for_the_classifier_are_told_before_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(GPVAE, "training_step", None)
    few = [each.replace("test_rows=55", "test_rows=3") for each in SMALL]
    assert few != list(SMALL)
    run(tmp_path, "gpvae_digits", *few, status=2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "of the 3 evaluated series the first half has the classes" in line
    assert line.endswith("raise data.test_rows, or leave it out")


@pytest.mark.parametrize("arguments", [["gpvae_digits", *DIGITS], ["mean_physionet"]], ids=["gpvae", "mean"])
def test_a_dry_run_leaves_nothing_behind(arguments, tmp_path, monkeypatch, capsys):
    for folder in ("cwd", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert main([*arguments, "--dry-run", f"run_root={tmp_path / 'runs'}", "data.batch_size=8"]) == 0
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"cwd", "temporary"}
    assert "MSE" in capsys.readouterr().out


@pytest.mark.data
@pytest.mark.parametrize("name", ["gpvae_hmnist", "gpvae_physionet"])
@pytest.mark.slow
def test_a_dry_run_on_the_real_data(name, tmp_path):
    """In a process of its own: here the table of sums is that of the made-up files."""
    if len(REAL_DATA) < 2:
        pytest.skip("GENPRED_MIRROR and GENPRED_DATA do not name raw data and a cache")
    command = [sys.executable, "-m", "experiments.run", name, "--dry-run", f"run_root={tmp_path}"]
    environment = os.environ | REAL_DATA
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "MSE" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_collapsed_posterior_is_told(tmp_path, monkeypatch):
    original, parts = GPVAE.loss, []

    def loss(self, batch):
        terms = original(self, batch)
        parts.append(terms["kl_mean_part"].item())
        return terms

    monkeypatch.setattr(GPVAE, "loss", loss)
    monkeypatch.setattr(build, "PosteriorCollapse", functools.partial(PosteriorCollapse, threshold=1e4))
    rare = [each for each in SMALL if "every_n_steps" not in each]
    folder, results = run(tmp_path, "gpvae_digits", *rare)
    callbacks = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert callbacks["PosteriorCollapse"] == {"kl_mean_part": parts[-1]}
    (warning,) = results["warnings"]
    assert warning.startswith("posterior collapse: ")
    assert f" is {parts[-1]:.3g} nats a series" in warning
    assert f"WARNING genpred: {warning}" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_a_posterior_in_use_is_left_alone(tmp_path):
    folder, results = run(tmp_path, "gpvae_digits", *SMALL, "model.beta=0.0", "model.learning_rate=0.1")
    callbacks = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert callbacks["PosteriorCollapse"]["kl_mean_part"] > 5
    assert results["warnings"] == []
    assert "collapse" not in (folder / "log.txt").read_text()
