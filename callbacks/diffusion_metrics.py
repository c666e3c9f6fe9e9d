"""Losses of a diffusion model on images that it was not trained on."""

from typing import Any, Protocol

import lightning as L
from torch import Tensor
from torchmetrics import MeanMetric


class DiffusionLosses(Protocol):
    """What a step returned."""

    mse: Tensor  # [batch] squared error of the predicted noise
    bound: Tensor  # [batch] bits per dimension


class DiffusionMetrics(L.Callback):
    """Logs ``val/mse`` and ``val/bits_per_dim``, and the same as ``test/...``.

    Evaluation loaders must give each image to one rank only, un-padded.
    """

    def __init__(self) -> None:
        # By default NaN is left out, and a model that has diverged on some images would look well.
        self.means = {name: MeanMetric(nan_strategy="disable") for name in ("mse", "bits_per_dim")}

    def _start(self, pl_module: L.LightningModule) -> None:
        for mean in self.means.values():
            mean.to(pl_module.device).reset()

    def _add(self, losses: DiffusionLosses) -> None:
        for mean, loss in zip(self.means.values(), (losses.mse, losses.bound), strict=True):
            mean.update(loss.float())

    def _log(self, pl_module: L.LightningModule, stage: str) -> None:
        # compute() has gathered all ranks already, see `ImputationMetrics`.
        scores = {f"{stage}/{name}": mean.compute() for name, mean in self.means.items()}
        pl_module.log_dict(scores, reduce_fx="max", sync_dist=True)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        self._start(pl_module)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        self._start(pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: DiffusionLosses, *_: Any
    ) -> None:
        """Add a batch."""
        self._add(outputs)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: DiffusionLosses, *_: Any
    ) -> None:
        """Add a batch."""
        self._add(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means over all ranks."""
        if not trainer.sanity_checking:
            self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means over all ranks."""
        self._log(pl_module, "test")
