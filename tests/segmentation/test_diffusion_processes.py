"""Pre-training as the Trainer runs it: the weight of the bound, and two processes with Lightning's own DDP."""

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed
from ddp import run_in_processes
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from callbacks.diffusion_metrics import DiffusionMetrics
from callbacks.rng import RandomState
from callbacks.sample_grid import SampleGrid
from datamodules.base import ResumableDataModule
from datamodules.segmentation.batch import ImageBatch
from lightning_modules.segmentation.diffusion import DiffusionPretraining

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*srun.*command is available:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]
TINY = {
    "image_size": 8, "channel_multipliers": (1,), "attention_resolutions": (), "channels_per_head": 16,
    "num_diffusion_steps": 50, "warm_up_steps": 0, "learning_rate": 1e-3,
}  # fmt: skip


def pictures(number):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (number, 3, 8, 8), dtype=np.uint8))


def filled(model):
    """Weights under which no prediction is 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


class Images:
    def __len__(self):
        return 9

    def __getitem__(self, rows):
        return ImageBatch(pictures(9)[rows], rows)


class Data(ResumableDataModule):
    def __init__(self, batch_size=2, evaluation_batch_size=2, num_workers=0, seed=0):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return self.train_loader(Images())

    def val_dataloader(self):
        return self.evaluation_loader(Images())

    def test_dataloader(self):
        return self.evaluation_loader(Images())


@pytest.mark.parametrize("weight", [0.0, 1e-3, 0.25])
def test_the_training_loss_is_the_squared_error_and_the_weighted_bound(weight):
    torch.manual_seed(0)
    model, logged = filled(DiffusionPretraining(**TINY, bound_weight=weight)), {}
    model.log_dict = logged.update
    loss = model.training_step(ImageBatch(pictures(4), torch.arange(4)), 0)
    assert logged["train/bits_per_dim"] > 0.5  # so that all weights differ
    assert loss.item() == pytest.approx((logged["train/mse"] + weight * logged["train/bits_per_dim"]).item(), rel=1e-6)


class Told(L.Callback):
    """Keeps what the trained network reads."""

    def on_fit_start(self, trainer, pl_module):
        self.seen = []
        pl_module.network.register_forward_hook(lambda module, arguments, output: self.seen.append(arguments))


def trainer(callbacks, **options):
    return L.Trainer(
        callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def test_two_processes_draw_apart_learn_together_and_are_scored_like_one(tmp_path, monkeypatch):
    torch.manual_seed(0)
    initial = filled(DiffusionPretraining(**TINY)).state_dict()
    alone = DiffusionPretraining(**TINY)
    alone.load_state_dict(initial)
    expected = trainer([DiffusionMetrics()], devices=1).test(alone, Data(), verbose=False)[0]

    def rank():
        number = torch.distributed.get_rank()
        monkeypatch.setenv("LOCAL_RANK", str(number))
        strategy = DDPStrategy(cluster_environment=LightningEnvironment(), process_group_backend="gloo")
        torch.manual_seed(0)  # as `seed_everything` does on every rank
        model, told = DiffusionPretraining(**TINY), Told()
        model.load_state_dict(initial)
        grid = SampleGrid(tmp_path, every_n_steps=1, num_images=2, columns=2, sampling_steps=2)
        callbacks = [RandomState(), told, grid, DiffusionMetrics()]
        run = trainer(callbacks, strategy=strategy, devices=2, max_steps=2, max_epochs=-1, accumulate_grad_batches=2)
        scores = run.test(model, Data(), verbose=False)[0]
        run.fit(model, Data())
        steps = [step.tolist() for _, step in told.seen]
        return scores, steps, {name: value.numpy() for name, value in model.state_dict().items()}

    first, second = run_in_processes(2, rank)
    assert first[0] == pytest.approx(expected, rel=1e-5)
    assert second[0] == pytest.approx(expected, rel=1e-5)
    assert [len(steps) for steps in (first[1], second[1])] == [4, 4]  # two batches of each of two steps
    assert all(ours != theirs for ours, theirs in zip(first[1], second[1], strict=True))
    for name, value in first[2].items():
        np.testing.assert_array_equal(value, second[2][name], err_msg=name)
    assert any((first[2][name] != value.numpy()).any() for name, value in initial.items())
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]
