"""Traps of PyTorch, Lightning, TorchMetrics and SLURM that no other test would see this project step into."""

import ast
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from ddp import run_in_processes
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils.data import DataLoader

from callbacks import signals
from callbacks.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
from callbacks.diffusion_metrics import DiffusionMetrics
from callbacks.preemption import Preemption
from callbacks.results import ValidationScores
from experiments import build
from experiments.config import compose
from experiments.run import main
from lightning_modules.synthesis.tabddpm import TabDDPM

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*srun.*command is available on your system but is not used"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
ROOT = Path(__file__).parents[1]


class Line(L.LightningModule):
    """The smallest module that trains; its validations score 3, 2, 1."""

    def __init__(self):
        super().__init__()
        self.net, self.score = nn.Linear(1, 1), 4.0

    def training_step(self, batch, batch_index):
        return self.net(batch).square().mean()

    def validation_step(self, batch, batch_index):
        self.score -= 1
        self.log("val/score", self.score)

    def train_dataloader(self):
        return DataLoader(torch.ones(7, 2, 1), batch_size=None)

    def val_dataloader(self):
        return DataLoader(torch.ones(1, 2, 1), batch_size=None)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    plugins = [AtomicCheckpointIO()]
    return L.Trainer(**{"accelerator": "cpu", "callbacks": callbacks, "plugins": plugins, **quiet, **options})


# ---- metrics


def test_a_loss_that_is_no_number_is_not_left_out_of_the_mean():
    """By default MeanMetric does so, and a model that has diverged on some images would look well."""
    logged = {}
    module = SimpleNamespace(device=torch.device("cpu"), log_dict=lambda scores, **_: logged.update(scores))
    metrics, running = DiffusionMetrics(), SimpleNamespace(sanity_checking=False)
    metrics.on_test_epoch_start(running, module)
    for value in (1.0, torch.nan):
        losses = torch.tensor([value, 2.0])
        metrics.on_test_batch_end(running, module, SimpleNamespace(mse=losses, bound=losses), None, 0)
    metrics.on_test_epoch_end(running, module)
    assert logged["test/mse"].isnan()
    assert logged["test/bits_per_dim"].isnan()


def test_scores_of_the_check_before_training_are_not_kept():
    scores = ValidationScores()
    for checking, value in ((False, 2.0), (True, 1.0)):
        scores.on_validation_end(SimpleNamespace(sanity_checking=checking, callback_metrics={"val/mse": value}), None)
    assert scores.scores == {"val/mse": 2.0}


# ---- signals and SLURM


def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path):
    class Told(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            if (trainer.global_rank, trainer.global_step) == (1, 12):
                os.kill(os.getpid(), signal.SIGUSR1)

    def on_rank():
        run = trainer(
            [Told(), Preemption(tmp_path)], strategy="ddp", devices=2, max_epochs=9, use_distributed_sampler=False,
            enable_checkpointing=True, limit_val_batches=0,
        )  # fmt: skip
        with signals.listening(), pytest.raises(signals.Stopped) as stopped, signals.deferred():
            run.fit(Line())
        return stopped.value.number, run.global_step

    assert run_in_processes(2, on_rank, timeout=20) == [(signal.SIGUSR1, 20)] * 2
    assert torch.load(tmp_path / "preempt.ckpt", weights_only=True)["global_step"] == 20


def test_lightning_does_not_requeue(tmp_path, monkeypatch):
    """It would save within its handler, in the middle of a step."""
    given = {"JOB_ID": "1", "STEP_ID": "0", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NTASKS": "1"}
    for name, value in (given | {"JOB_NAME": "genpred", "NTASKS_PER_NODE": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    handlers = []

    class Watch(L.Callback):
        def on_train_start(self, *_):
            handlers.append(signal.getsignal(signal.SIGUSR1))

    before = signal.getsignal(signal.SIGUSR1)
    options = {"accelerator": "cpu", "devices": 1, "max_steps": 1, "limit_val_batches": 0}
    build._trainer(options, tmp_path, None, [Watch()], dry_run=False).fit(Line())
    assert handlers == [before]


SRUN = """#!/bin/sh
echo "$SRUN_CPUS_PER_TASK" "$OMP_NUM_THREADS"
for argument; do echo "<$argument>"; done
"""


WORLD = ["trainer.devices=2", "trainer.num_nodes=2", "trainer.strategy=ddp"]


@pytest.mark.parametrize(
    ("script", "variables", "expected"),
    [
        ("train", {"SLURM_NTASKS": "1"}, ["experiments.run", "gp_csv"]),
        (
            "train",
            {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NUM_NODES": "2"},
            ["experiments.run", "gp_csv", *WORLD],
        ),
        ("sweep", {"SLURM_ARRAY_TASK_ID": "7"}, ["experiments.sweep", "gp_csv", "--index", "7"]),
    ],
)
def test_batch_scripts_tell_srun_of_the_cores_and_keep_words_whole(script, variables, expected, tmp_path):
    """Since 22.05 srun no longer takes the cores from the job, and would give a task one of them."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_CPUS_PER_TASK": "3",
        "GENPRED_PYTHON": "my python",
    }
    command = ["bash", ROOT / "slurm" / f"{script}.sbatch", "gp_csv", "data.path=a b.csv"]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    told = ["--kill-on-bad-exit=1", "my python", "-m", *expected, "data.path=a b.csv"]
    assert done.stdout.splitlines() == ["3 3", *(f"<{each}>" for each in told)]


# ---- checkpoints


def test_the_best_score_goes_with_a_folder_that_is_moved(tmp_path):
    def fit(folder, epochs, path=None):
        callbacks = checkpoint_callbacks(folder, 100, "val/score", "min")
        module, run = Line(), trainer(callbacks, max_epochs=epochs)
        run.fit(module, ckpt_path=path, weights_only=True)
        return run.checkpoint_callback

    fit(tmp_path / "a", 2)
    shutil.move(tmp_path / "a", tmp_path / "b")
    best = fit(tmp_path / "b", 3, tmp_path / "b" / "last.ckpt")  # of which the validation scores 3 again
    assert best.best_model_score == 2.0
    assert Path(best.best_model_path) == tmp_path / "b" / "best.ckpt"
    assert torch.load(best.best_model_path, weights_only=True)["global_step"] == 14
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_within_a_step_holds_the_average_of_that_step(tmp_path, monkeypatch):
    """Callbacks save before the module's own hook of a batch's end: an average that moves there would be behind."""
    states = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            states.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    table = "a,b\n" + "\n".join(f"{number / 7},{'xyz'[number % 3]}" for number in range(40))
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text(table)
    experiment = compose("tabddpm_csv", ["data.path=table.csv", "data.target=b", "ema_decay=0.9", "hidden=[8]"])
    data, module = build.build_data(experiment), build.build_module(experiment)
    assert isinstance(module, TabDDPM)
    trainer([Keep()], max_steps=3, limit_val_batches=0, enable_checkpointing=False).fit(module, data)
    names = [name.removeprefix("denoiser.") for name in states[0] if name.startswith("denoiser.")]
    assert names
    for step in (1, 2):
        share = step / (9 + step)
        for name in names:
            before, weights = states[step - 1][f"average.{name}"], states[step][f"denoiser.{name}"]
            expected = share * before + (1 - share) * weights
            torch.testing.assert_close(states[step][f"average.{name}"], expected, rtol=1e-5, atol=1e-7)
            assert not torch.equal(weights, states[step - 1][f"denoiser.{name}"])


# ---- what is kept by name


METHODS = ("mean", "gp", "vae", "hivae", "gpvae", "brits", "gruigan", "csdi")


def test_arguments_are_kept_as_plain_values(tmp_path, monkeypatch):
    """A network among them would be in every checkpoint, and make it one that cannot be loaded."""
    table = ["data.path=table.csv", "data.target=b"]
    runs = [[f"{method}_digits"] for method in METHODS]
    runs += [[f"{method}_csv", *table] for method in ("real", "smote", "tabddpm")]
    runs += [["rgb_horse21"]]
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("a,b\n0.5,x\n")
    for name, *overrides in runs:
        experiment = compose(name, overrides)
        for part in (build.build_module(experiment), build.build_data(experiment)):
            assert_plain(dict(part.hparams), f"{name}: {type(part).__name__}")


def assert_plain(value, place):
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            assert_plain(inner, f"{place}.{key}")
    else:
        assert type(value) in (str, int, float, bool, type(None)), place


class FoundError(Exception):
    pass


def test_callbacks_that_keep_something_have_names_of_their_own(tmp_path, monkeypatch):
    found = []

    def trainer_of(arguments, folder, logger, callbacks, dry_run):
        found.extend(callbacks)
        raise FoundError

    monkeypatch.setattr(build, "_trainer", trainer_of)
    with pytest.raises(FoundError):
        main(["vae_digits", "logger=none", "checkpoint.monitor=val/mse", f"run_root={tmp_path}"])
    hooks = ("state_dict", "on_save_checkpoint")
    keys = [each.state_key for each in found if any(is_overridden(hook, each, L.Callback) for hook in hooks)]
    assert len(keys) > 5
    assert len(set(keys)) == len(keys)


# ---- data


def own_methods(source, name, done=()):
    """A method's definition in a class, and those of the class's others that it calls."""
    methods = {each.name: each for each in source.body if isinstance(each, ast.FunctionDef)}
    if name not in methods or name in done:
        return []
    called = [each.attr for each in ast.walk(methods[name]) if is_own(each) and isinstance(each.ctx, ast.Load)]
    return [methods[name], *(deeper for each in called for deeper in own_methods(source, each, (*done, name)))]


def is_own(node):
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def test_what_one_process_prepares_leaves_nothing_in_the_module():
    """The other processes do not call it, and would lack what it leaves."""
    preparing = []
    for path in (ROOT / "datamodules").rglob("*.py"):
        for source in ast.walk(ast.parse(path.read_text())):
            if isinstance(source, ast.ClassDef) and (methods := own_methods(source, "prepare_data")):
                preparing.append(source.name)
                nodes = [node for method in methods for node in ast.walk(method)]
                stored = [node.attr for node in nodes if is_own(node) and isinstance(node.ctx, ast.Store)]
                assert not stored, f"{path}: {source.name}.prepare_data sets {stored}"
    assert len(preparing) >= 5
