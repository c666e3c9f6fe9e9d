"""Several processes: runs trained and scored by two agree with one, and faults of one end or skip on all.

Most runs here are those of the command line on two ranks forked from the test (`ddp.run_in_processes`); those that
Lightning's launcher starts are slow and in processes of their own.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed
from ddp import run_in_processes
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import OmegaConf
from people import people
from PIL import Image
from torch.utils.data import DataLoader

from callbacks.finite import FiniteGradients
from callbacks.rng import RandomState
from experiments import build
from experiments.config import compose, load_class
from experiments.run import main
from lightning_modules.imputation.gp import GP
from lightning_modules.imputation.gruigan import GRUIGAN

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:Loky-backed parallel loops cannot be called in a multiprocessing:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning"),  # of checkpoints that were copied
]
ROOT = Path(__file__).parents[1]
TWO = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
# 54 is the smallest number of test digits of which both halves have all ten classes; 55 is uneven for two processes.
DIGITS = ["logger=none", "baselines=[]", "data.sequences_per_digit=1", "data.test_rows=55", "data.validation_rows=13"]
TRAINED_DIGITS = [
    *DIGITS, "data.train_rows=20", "data.batch_size=5", "trainer.max_steps=3", "trainer.max_epochs=-1",
    "trainer.check_val_every_n_epoch=1",
]  # fmt: skip
VAE = ["model.latent_dim=4", "model.encoder_sizes=[8]", "model.decoder_sizes=[8]"]
TABLE = ["logger=none", "data.path=people.csv", "data.target=income", "data.mlp=null", "evaluation_seeds=1"]
PICTURES = ["logger=none", "data.image_size=16", "data.num_members=3", "data.pixels_per_batch=64", "model.hidden=[8,4]"]
# The smallest run of each method: experiment and overrides.
RUNS = {
    **{name: [f"{name}_digits", *DIGITS] for name in ("mean", "median", "forward", "last", "next", "linear")},
    "gp": ["gp_digits", *TRAINED_DIGITS],
    "vae": ["vae_digits", *TRAINED_DIGITS, *VAE],
    "hivae": ["hivae_digits", *TRAINED_DIGITS, *VAE],
    "gpvae": ["gpvae_digits", *TRAINED_DIGITS, *VAE, "model.window=3", "model.remasking=0.5"],
    "brits": ["brits_digits", *TRAINED_DIGITS, "model.hidden_size=8", "model.label_weight=1.0"],
    "gruigan": [
        "gruigan_digits", *TRAINED_DIGITS, "model.hidden_size=8", "model.latent_dim=4", "model.pretraining_steps=1",
        "model.critic_steps=1", "model.search_steps=3",
    ],
    "csdi": [
        "csdi_digits", *TRAINED_DIGITS, "model.num_diffusion_steps=2", "model.num_layers=1", "model.channels=8",
        "model.num_heads=1", "model.num_samples=4", "data.test_rows=55",
    ],
    "real": ["real_csv", *TABLE, "sampling_seeds=1"],
    "smote": ["smote_csv", *TABLE, "sampling_seeds=3"],
    "tabddpm": [
        "tabddpm_csv", *TABLE, "sampling_seeds=3", "max_steps=6", "hidden=[16]", "num_diffusion_steps=10",
        "sampling_steps=null", "data.batch_size=50", "model.ema_decay=0.9",
    ],
    "rgb": ["rgb_folder", "data.path=pictures", *PICTURES, "trainer.max_steps=20"],
    "unet": [
        "unet_images", "logger=none", "data.paths=[pictures/images]", "data.validation_fraction=0.5",
        "data.image_size=16", "data.batch_size=2", "max_steps=2", "trainer.precision=32-true",
        "channel_multipliers=[1,2]", "attention_resolutions=[8]", "channels_per_head=32", "check_val_every_n_epoch=1",
        "num_diffusion_steps=50", "warm_up_steps=0",
    ],
}  # fmt: skip
BACKBONES = {"ddpm", "mae", "swav", "swav_w2", "timm"}  # the ensemble's other methods; what is trained is that of "rgb"


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A working directory with a table, and a folder of pictures of which three are for test."""
    home, generator = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    people(num_rows=120).to_csv(home / "people.csv", index=False)
    for part in ("images", "masks", "test/images", "test/masks"):
        (home / "pictures" / part).mkdir(parents=True)
    for number in range(13):
        part = home / "pictures" / ("test" if number < 3 else "")
        mask = np.zeros((16, 16), np.uint8)
        mask[3:12, 4 : 8 + number % 5] = 1
        picture = np.where(mask[..., None], [200, 180, 90], [40, 60, 110]) + generator.normal(0, 20, (16, 16, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(part / "images" / f"{number}.png")
        if number < 6:
            np.save(part / "masks" / f"{number}.npy", mask)
    (home / "pictures" / "classes.json").write_text('["ground", "box"]')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield home


def run(root, processes, name, *overrides):
    """Run the command line on so many ranks; the run's folder, its results and last checkpoint (None: no training)."""
    arguments = [name, *overrides, f"run_root={root}", *(TWO if processes == 2 else ["trainer.accelerator=cpu"])]

    def on_rank():
        with contextlib.redirect_stdout(io.StringIO()):
            return main(arguments)

    assert run_in_processes(processes, on_rank, timeout=200) == [0] * processes
    return read(compose(name, arguments[1:]).folder)


def read(folder):
    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True) if last.exists() else None
    return folder, json.loads((folder / "results.json").read_text()), checkpoint


def scored_alone(root, folder, name, *overrides):
    """Results of one process with the weights of a finished run."""
    given = compose(name, [*overrides, f"run_root={root}", "trainer.accelerator=cpu"]).folder
    if (folder / "checkpoints").exists():
        shutil.copytree(folder / "checkpoints", given / "checkpoints")
    return run(root, 1, name, *overrides)


# ---- runs of two processes


@pytest.mark.slow
@pytest.mark.parametrize("method", RUNS)
def test_two_processes_train_and_score_like_one(method, tmp_path):
    """The test rows are odd in number; of one synthetic table the second process has none."""
    folder, results, checkpoint = run(tmp_path / "two", 2, *RUNS[method])
    assert results["world_size"] == 2
    assert len(list((tmp_path / "two").rglob("results.json"))) == 1
    if checkpoint is not None:
        (wanted,) = [int(each.split("=")[1]) for each in RUNS[method] if "max_steps=" in each]
        assert results["steps"] == checkpoint["global_step"] == wanted
    _, alone, same = scored_alone(tmp_path / "one", folder, *RUNS[method])
    assert alone["world_size"] == 1
    if checkpoint is not None:  # it was not trained again
        torch.testing.assert_close(same["state_dict"], checkpoint["state_dict"], rtol=0, atol=0)
    assert alone["metrics"] == pytest.approx(results["metrics"], rel=1e-6)
    assert alone["variables"].keys() == results["variables"].keys()
    for name, scores in alone["variables"].items():
        assert scores == pytest.approx(results["variables"][name], rel=1e-6)


@pytest.mark.slow
def test_baselines_of_two_processes_are_those_of_one(tmp_path):
    arguments = ["mean_digits", *DIGITS[:1], *DIGITS[2:], "baselines=[mean,forward]"]
    (_, two, _), (_, one, _) = (run(tmp_path / str(processes), processes, *arguments) for processes in (2, 1))
    assert two["baselines"].keys() == {"mean", "forward"}
    for name, scores in two["baselines"].items():
        assert scores == pytest.approx(one["baselines"][name], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gpvae", "tabddpm", "rgb", "unet"])
def test_two_processes_that_the_launcher_starts(method, place, tmp_path):
    arguments = [each for each in RUNS[method] if each != "logger=none"] + ["logger=csv"]
    command = [sys.executable, "-m", "experiments.run", *arguments, f"run_root={tmp_path / 'two'}", *TWO]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^started ", done.stderr, flags=re.MULTILINE)) == 1
    assert done.stdout.count("ours") == 1  # one table
    (results,) = (tmp_path / "two").rglob("results.json")
    folder, two, checkpoint = read(results.parent)
    assert two["world_size"] == 2
    _, alone, same = scored_alone(tmp_path / "one", folder, *arguments)
    torch.testing.assert_close(same["state_dict"], checkpoint["state_dict"], rtol=0, atol=0)
    assert alone["metrics"] == pytest.approx(two["metrics"], rel=1e-6)


def test_two_processes_learn_what_one_does_from_their_batches_together(tmp_path):
    """The loss of the Gaussian processes is deterministic, and a mean over the batch."""
    one, two = (
        run(tmp_path / str(processes), processes, *RUNS["gp"], f"data.batch_size={10 // processes}")[2]
        for processes in (1, 2)
    )
    initial = build.build_module(compose("gp_digits", RUNS["gp"][1:])).state_dict()
    assert one["global_step"] == two["global_step"] == 3
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-5, atol=1e-6)
        assert (value - initial[name]).abs().max() > 0.1


def test_an_ensemble_on_two_processes_is_that_of_one(tmp_path):
    """All ranks have the same pixels, so that the mean of their gradients is that of each."""
    steps = ["trainer.max_steps=-1", "model.stop_rule_from_epoch=0", "model.patience=2"]
    one, two = (run(tmp_path / str(processes), processes, *RUNS["rgb"], *steps)[2] for processes in (1, 2))
    assert one["global_step"] == two["global_step"] > 5
    assert one["state_dict"]["stopped"].all()
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=0, atol=0)


# ---- what the ranks have in common, and what not


def fit(name, callbacks, *overrides, processes=1, **options):
    """Train an experiment without the command line; on every rank, if in a pool. The module and its Trainer."""
    experiment = compose(name, list(overrides))
    L.seed_everything(0, workers=True, verbose=False)
    data, module = build.build_data(experiment), build.build_module(experiment)
    if processes > 1:
        options["strategy"] = "ddp"
    if "max_epochs" not in options:
        options["max_epochs"] = -1
    trainer = L.Trainer(
        accelerator="cpu", devices=processes, callbacks=callbacks, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        limit_val_batches=0, **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return module, trainer


class Descent(L.Callback):
    """Keeps the weights that a network starts from, the gradients of each step, and the average after it."""

    def __init__(self, network):
        self.network, self.initial, self.gradients, self.averages = network, [], [], []

    def on_train_start(self, trainer, pl_module):
        self.initial = [value.detach().clone() for value in getattr(pl_module, self.network).parameters()]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append([value.grad.clone() for value in getattr(pl_module, self.network).parameters()])

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.averages.append([value.clone() for value in pl_module.average.parameters()])


@pytest.mark.parametrize(
    ("method", "network", "rate"),
    [
        ("tabddpm", "denoiser", lambda step: 1e-3 * (1 - max(step - 1, 0) / 6)),
        ("unet", "network", lambda step: 2e-4),
    ],
)
def test_averaged_weights_are_the_same_on_all_ranks_and_those_of_one_process(method, network, rate):
    decay, steps = 0.25, 6  # at first less than this: 0, 1/10, 2/11

    def on_rank():
        descent = Descent(network)
        overrides = [*RUNS[method][1:], f"model.ema_decay={decay}"]
        module, _ = fit(RUNS[method][0], [RandomState(), descent], *overrides, processes=2, max_steps=steps)
        weights = [value.detach() for value in getattr(module, network).parameters()]
        kept = (descent.initial, weights, *descent.gradients, *descent.averages)
        return [[value.numpy() for value in values] for values in kept]

    first, second = run_in_processes(2, on_rank)
    for ours, theirs in zip(first, second, strict=True):
        for value, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(value, other)
    initial, weights, *rest = [[torch.from_numpy(each) for each in values] for values in first]
    gradients, averages = rest[:steps], rest[steps:]
    parameters = [torch.nn.Parameter(value.clone()) for value in initial]
    wanted = [value.double() for value in initial]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    for step, (given, average) in enumerate(zip(gradients, averages, strict=True)):
        optimizer.param_groups[0]["lr"] = rate(step)
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.grad = gradient
        optimizer.step()
        share = min(decay, step / (9 + step))
        pairs = zip(wanted, parameters, strict=True)
        wanted = [share * mean + (1 - share) * parameter.detach().double() for mean, parameter in pairs]
        for value, mean in zip(average, wanted, strict=True):
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=3e-6)
    for value, parameter in zip(weights, parameters, strict=True):
        torch.testing.assert_close(value, parameter.detach(), rtol=1e-5, atol=3e-6)


class Draws(L.LightningModule):
    """Draws numbers from every global generator."""

    def __init__(self):
        super().__init__()
        self.net, self.drawn = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_index):
        self.drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002
        return self.net(batch).square().mean()

    def train_dataloader(self):
        return DataLoader(torch.ones(2, 2, 1), batch_size=None)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_ranks_draw_apart_and_a_resume_continues_each(tmp_path):
    def drawn(processes, seed, path=None, saved=None):
        def on_rank():
            L.seed_everything(seed, verbose=False)
            trainer = L.Trainer(
                accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", max_epochs=2,
                callbacks=[RandomState(), *([At(saved)] if saved else [])], logger=False, enable_progress_bar=False,
                enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
                enable_checkpointing=False,
            )  # fmt: skip
            module = Draws()
            trainer.fit(module, ckpt_path=path, weights_only=True)
            return module.drawn

        return run_in_processes(processes, on_rank)

    class At(L.Callback):
        def __init__(self, path):
            self.path = path

        def on_train_epoch_end(self, trainer, *_):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(self.path)

    first, second = drawn(2, seed=0, saved=tmp_path / "two.ckpt")
    (next_seed,) = drawn(1, seed=1)
    every = [number for each in (first, second, next_seed) for numbers in each for number in numbers]
    assert len(set(every)) == len(every) == 36
    resumed = drawn(2, seed=5, path=tmp_path / "two.ckpt")
    assert resumed == [first[2:], second[2:]]


class WithoutGradient(L.Callback):
    """Names of parameters that a step leaves without a gradient: DDP would wait for them for ever."""

    def __init__(self):
        self.names, self.steps = set(), 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps += 1
        parameters = pl_module.named_parameters()
        self.names |= {name for name, value in parameters if value.requires_grad and value.grad is None}


TRAINED = [method for method, arguments in RUNS.items() if any("max_steps=" in each for each in arguments)]
OPTIONS = {
    "gpvae": [["model.likelihood=gaussian", "model.learned_scale=true"]],
    "gruigan": [["preset=plus"]],
    "tabddpm": [["preset=plus"], ["model.network=resnet", "hidden=[8,8]"]],
}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((method, []) for method in TRAINED),
        *((method, each) for method, several in OPTIONS.items() for each in several),
    ],
)
def test_every_step_gives_every_parameter_a_gradient(method, options):
    name, *overrides = RUNS[method]
    check = WithoutGradient()
    module, _ = fit(name, [check], *overrides, *options, max_steps=2)
    assert check.steps >= 2
    assert check.names == set()
    trainable = [value for value in module.parameters() if value.requires_grad]
    assert len(trainable) > 1


def test_every_trained_method_is_among_the_runs():
    trained = set()
    for path in (ROOT / "experiments" / "methods").glob("*.yaml"):
        cls = load_class(OmegaConf.load(path).model["class"], path.name)
        if is_overridden("training_step", cls, L.LightningModule):
            trained.add(path.stem)
    assert trained - BACKBONES == set(TRAINED)


# ---- faults of one rank


def spoilt(cls, name, steps):
    """Let a loss of the second rank be NaN at these steps; in a forked process, which ends with the test."""
    original, calls = getattr(cls, name), []

    def loss(self, batch):
        found = original(self, batch)
        calls.append(self.global_step)
        return found * torch.nan if self.global_rank == 1 and steps(self.global_step, len(calls)) else found

    setattr(cls, name, loss)


@pytest.mark.parametrize("loss", ["pretraining_loss", "critic_loss", "generator_loss"])
def test_nan_on_one_rank_drops_the_step_of_manual_optimisation_on_all(loss):
    def on_rank():
        spoilt(GRUIGAN, loss, lambda step, call: call == 1)
        guard = FiniteGradients(max_consecutive=3)
        module, trainer = fit(RUNS["gruigan"][0], [guard], *RUNS["gruigan"][1:], processes=2, max_steps=4)
        return trainer.global_step, guard.skipped_steps, [value.detach().numpy() for value in module.parameters()]

    first, second = run_in_processes(2, on_rank)
    assert first[:2] == second[:2] == (4, 1)
    for value, other in zip(first[2], second[2], strict=True):
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(value, other)


def test_nan_on_one_rank_drops_the_step_that_is_gathered_from_several_batches():
    def on_rank():
        spoilt(GP, "loss", lambda step, call: call == 3)  # the first batch of the second step
        guard = FiniteGradients(max_consecutive=3)
        arguments = {"processes": 2, "max_steps": 3, "accumulate_grad_batches": 2}
        module, trainer = fit(RUNS["gp"][0], [guard], *RUNS["gp"][1:], "data.batch_size=2", **arguments)
        return trainer.global_step, guard.skipped_steps, [value.detach().numpy() for value in module.parameters()]

    first, second = run_in_processes(2, on_rank)
    assert first[:2] == second[:2] == (3, 1)
    for value, other in zip(first[2], second[2], strict=True):
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize(("method", "cls", "loss"), [("gp", GP, "loss"), ("gruigan", GRUIGAN, "critic_loss")])
def test_nan_again_and_again_on_one_rank_ends_all_at_the_same_step(method, cls, loss):
    def on_rank():
        spoilt(cls, loss, lambda step, call: step >= 2)
        guard = FiniteGradients(max_consecutive=3)
        with pytest.raises(FloatingPointError) as raised:
            fit(RUNS[method][0], [guard], *RUNS[method][1:], processes=2, max_steps=9)
        return guard.skipped_steps, re.search(r"in a row, up to step (\d+)", str(raised.value))[1]

    assert run_in_processes(2, on_rank) == [(3, "4")] * 2


FAULTY = """
    import os, time
    from pathlib import Path
    import torch
    from lightning_modules.imputation.vae import VAE

    class Faulty(VAE):
        def training_step(self, batch, batch_index):
            here = Path(os.environ["FAULTS"])
            (here / f"pid{self.global_rank}").write_text(str(os.getpid()))
            while len(list(here.glob("pid*"))) < 2:
                time.sleep(0.05)
            if self.global_rank == int(os.environ["BUSY"]):
                time.sleep(1000)
            if self.global_rank == int(os.environ["FAULTY"]):
                (here / "time").write_text(str(time.time()))
                if os.environ["KIND"] == "killed":
                    os.kill(os.getpid(), 9)
                if os.environ["KIND"] == "lacks memory":
                    torch.empty(10**15)
                raise RuntimeError("a fault of one rank")
            return super().training_step(batch, batch_index)
"""


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "faulty", "busy"),
    [
        *(("raises", 1, -1), ("raises", 1, 0), ("raises", 0, 1), ("killed", 0, 1)),
        *(("lacks memory", 1, -1), ("lacks memory", 1, 0), ("lacks memory", 0, 1)),
    ],
    ids=[
        *("second", "second-first_busy", "first-second_busy", "killed_first-second_busy"),
        *("memory_of_second", "memory_of_second-first_busy", "memory_of_first-second_busy"),
    ],
)
def test_a_fault_of_one_rank_ends_all(kind, faulty, busy, place, tmp_path):
    """A rank that is busy does not notice by itself: it would at its next exchange."""
    (tmp_path / "faulty.py").write_text(textwrap.dedent(FAULTY))
    arguments = [*RUNS["vae"], "model.class=faulty.Faulty", f"run_root={tmp_path / 'runs'}", *TWO]
    environment = {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": f"{ROOT}:{tmp_path}", "FAULTS": str(tmp_path)}
    environment |= {"KIND": kind, "FAULTY": str(faulty), "BUSY": str(busy)}
    with (tmp_path / "err").open("w") as file:
        command = [sys.executable, "-m", "experiments.run", *arguments]
        process = subprocess.Popen(command, cwd=place, env=os.environ | environment, stderr=file)
        try:
            status = process.wait(240)
        finally:
            process.kill()
    told = (tmp_path / "err").read_text()
    assert status == 2 if kind == "lacks memory" else status != 0, told
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in range(2)]
    try:
        latest = float((tmp_path / "time").read_text()) + 60
        while any(map(is_running, pids)) and time.time() < latest:
            time.sleep(0.2)
        assert not any(map(is_running, pids))
        assert time.time() < latest
    finally:
        for pid in filter(is_running, pids):
            os.kill(pid, 9)
    if kind == "lacks memory":
        (line,) = [line for line in told.splitlines() if not line.startswith(("started ", "Initializing distributed"))]
        assert re.fullmatch(
            "error: out of memory: .*DefaultCPUAllocator: can't allocate memory.* last checkpoint", line
        )
    assert kind != "raises" or "a fault of one rank" in told
    assert not list((tmp_path / "runs").rglob("results.json"))


# ---- GPUs


NEEDS_GPUS = {
    number: pytest.mark.skipif(torch.cuda.device_count() < number, reason=f"fewer than {number} CUDA devices")
    for number in (1, 2)
}


@NEEDS_GPUS[1]
@pytest.mark.gpu
@pytest.mark.parametrize("method", ["gp", "gpvae", "brits", "csdi", "gruigan", "tabddpm", "rgb", "unet"])
def test_a_gpu_scores_like_a_cpu(method, tmp_path):
    """Trained for a step or two on the GPU, then scored on the CPU with the same weights."""
    name, *overrides = RUNS[method]
    if method == "csdi":  # else bf16 on the GPU alone
        overrides.append("trainer.precision=32-true")
    on_gpu = [*overrides, f"run_root={tmp_path / 'gpu'}", "trainer.accelerator=gpu"]
    assert main([name, *on_gpu]) == 0
    folder, results, _ = read(compose(name, on_gpu).folder)
    assert results["device"] == torch.cuda.get_device_name(0)
    _, alone, _ = scored_alone(tmp_path / "cpu", folder, name, *overrides)
    assert alone["device"] == "cpu"
    if method == "tabddpm":  # what a GPU's generator draws, a CPU's does not
        assert results["metrics"].keys() == alone["metrics"].keys()
        assert all(np.isfinite(value) for value in results["metrics"].values())
        return
    assert results["metrics"] == pytest.approx(alone["metrics"], rel=1e-2, abs=1e-3)


@NEEDS_GPUS[1]
@pytest.mark.gpu
@pytest.mark.parametrize(("method", "precision"), [("csdi", "bf16-mixed"), ("gpvae", "32-true")])
def test_a_gpu_computes_in_the_precision_that_pays(method, precision, tmp_path):
    name, *overrides = RUNS[method]
    overrides.append(f"run_root={tmp_path}")
    assert main([name, *overrides]) == 0
    results = read(compose(name, overrides).folder)[1]
    assert (results["precision"], results["device"]) == (precision, torch.cuda.get_device_name(0))
    assert all(np.isfinite(value) for value in results["metrics"].values())


@NEEDS_GPUS[2]
@pytest.mark.gpu
@pytest.mark.parametrize("method", ["gpvae", "gruigan", "tabddpm", "rgb", "unet"])
def test_two_gpus_train_and_score_like_one(method, place, tmp_path):
    name, *overrides = RUNS[method]
    two = [*overrides, f"run_root={tmp_path / 'two'}", *TWO[:2], "trainer.accelerator=gpu"]
    command = [sys.executable, "-m", "experiments.run", name, *two]
    done = subprocess.run(
        command, cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    folder, results, _ = read(compose(name, two).folder)
    assert results["world_size"] == 2
    one = [*overrides, f"run_root={tmp_path / 'one'}", "trainer.accelerator=gpu"]
    given = compose(name, one).folder
    shutil.copytree(folder / "checkpoints", given / "checkpoints")
    assert main([name, *one]) == 0
    assert read(given)[1]["metrics"] == pytest.approx(results["metrics"], rel=1e-4, abs=1e-6)
