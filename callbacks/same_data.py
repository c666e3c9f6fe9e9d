"""A run that is continued has the data that it began with."""

from typing import Any

import lightning as L
from torch import nn


class SameData(L.Callback):
    """Keeps the sums of the data, and of the weights that parts of the method were made from, in the checkpoints.

    Attributes:
        sums: SHA-256 by the name of each file; known when the data are. Of a method that has drawn a noise for all
            images, "noise" as well, from the test on: a checkpoint holds the noise itself, which is used again.
    """

    def __init__(self) -> None:
        self.sums: dict[str, str] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the sums when training or testing begins."""
        if not self.sums:
            self.sums = dict(trainer.datamodule.data_sha256) | weights_sums(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the sum of a noise, which is now what the method was trained with."""
        for part in pl_module.modules():
            if hasattr(part, "noise_sha256"):
                self.sums["noise"] = part.noise_sha256

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {"sums": self.sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the sums of a checkpoint with those of today.

        Raises:
            ValueError: they differ; it names what was changed.
        """
        before = state_dict["sums"]
        changed = [name for name in sorted(before.keys() | self.sums.keys()) if before.get(name) != self.sums.get(name)]
        if changed:
            raise ValueError(
                f"{', '.join(changed)} changed since this run began: put the old data back, or start over with "
                "force=true"
            )


def weights_sums(module: nn.Module) -> dict[str, str]:
    """SHA-256 of the weights that the parts of a method were made from, by the name of each file."""
    sums: dict[str, str] = {}
    for part in module.modules():
        sums |= getattr(part, "weights_sha256", {})
    return sums
