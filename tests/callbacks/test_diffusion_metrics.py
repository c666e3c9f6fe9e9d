"""Means of the losses of a diffusion model are means over images, whatever the batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from callbacks.diffusion_metrics import DiffusionMetrics


class Module:
    """What the callback asks of a LightningModule."""

    device = torch.device("cpu")

    def __init__(self):
        self.logged, self.options = {}, {}

    def log_dict(self, scores, **options):
        self.logged.update({name: value.item() for name, value in scores.items()})
        self.options = options


def losses(values):
    return SimpleNamespace(mse=torch.tensor(values), bound=10 * torch.tensor(values) + 1)


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_uneven_batches_give_the_mean_over_images(stage):
    metrics, module, trainer = DiffusionMetrics(), Module(), SimpleNamespace(sanity_checking=False)
    values = np.random.default_rng(0).random(11).astype(np.float32)
    start, add, end = (getattr(metrics, f"on_{stage}_{when}") for when in ("epoch_start", "batch_end", "epoch_end"))
    for repeat in range(2):  # each epoch begins anew
        start(trainer, module)
        for part in np.split(values + repeat, [5, 6]):
            add(trainer, module, losses(part), None, 0)
        end(trainer, module)
        prefix = "val" if stage == "validation" else "test"
        expected = values.mean() + repeat
        assert module.logged == pytest.approx({f"{prefix}/mse": expected, f"{prefix}/bits_per_dim": 10 * expected + 1})


def test_half_precision_is_summed_in_single():
    metrics, module, trainer = DiffusionMetrics(), Module(), SimpleNamespace(sanity_checking=False)
    metrics.on_test_epoch_start(trainer, module)
    values = torch.full((4096,), 1.0009765625, dtype=torch.float16)  # the sum is beyond what float16 can count
    metrics.on_test_batch_end(trainer, module, SimpleNamespace(mse=values, bound=values), None, 0)
    metrics.on_test_epoch_end(trainer, module)
    assert module.logged["test/mse"] == pytest.approx(1.0009765625, rel=1e-6)


def test_the_check_before_training_logs_nothing():
    metrics, module, trainer = DiffusionMetrics(), Module(), SimpleNamespace(sanity_checking=True)
    metrics.on_validation_epoch_start(trainer, module)
    metrics.on_validation_batch_end(trainer, module, losses([1.0]), None, 0)
    metrics.on_validation_epoch_end(trainer, module)
    assert not module.logged
