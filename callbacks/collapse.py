"""Says when a latent-variable model's posterior has collapsed onto its prior."""

import logging
from typing import Any

import lightning as L
import torch
from torch import Tensor

log = logging.getLogger("genpred")


class PosteriorCollapse(L.Callback):
    """Warns when the mean part of the KL divergence is near zero at the end of training.

    The variance part can be large in a model whose latents carry nothing (a family of posteriors that does not contain
    the prior pays it anyway), so only the mean part tells. Methods that log no ``train/kl_mean_part`` are left alone.

    Args:
        threshold: nats a series; a collapsed posterior lies near zero.
    """

    def __init__(self, threshold: float = 5.0) -> None:
        self.threshold = threshold
        self._last: Tensor | None = None

    @property
    def kl_mean_part(self) -> float | None:
        """Mean part of the KL divergence of the last training batch, nats a series; None where it is not logged."""
        return None if self._last is None else float(self._last)

    @property
    def warnings(self) -> list[str]:
        """One sentence if the posterior has collapsed, for the results."""
        if self.kl_mean_part is None or self.kl_mean_part >= self.threshold:
            return []
        return [
            f"posterior collapse: the mean part of the KL divergence is {self.kl_mean_part:.3g} nats a series (below "
            f"{self.threshold:g}), so the imputations hardly depend on what was observed; lower beta or latent_dim"
        ]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Keep the value of the last batch, where it is: the next one replaces it, and nobody waits for the device."""
        self._last = trainer.callback_metrics.get("train/kl_mean_part")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn in the log."""
        for warning in self.warnings:
            log.warning(warning)

    def state_dict(self) -> dict[str, Any]:
        """The last value, for runs that are continued after training has ended."""
        return {"kl_mean_part": self.kl_mean_part}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        value = state_dict["kl_mean_part"]
        self._last = None if value is None else torch.tensor(value)
