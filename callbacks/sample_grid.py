"""A grid of images that a model draws, always from the same noise."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.figures import keep_figure


def grid_figure(images: Tensor, columns: int) -> Figure:
    """Images side by side.

    Args:
        images: [image, 3, height, width] uint8.
        columns: images of a row.
    """
    rows = -(-len(images) // columns)
    empty = images.new_full((rows * columns - len(images), *images.shape[1:]), 255)
    grid = torch.cat([images, empty]).unflatten(0, (rows, columns))  # [row, column, 3, height, width]
    grid = grid.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # [row * height, column * width, 3]
    figure = Figure(figsize=(grid.shape[1] / 100, grid.shape[0] / 100), dpi=200)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(grid.cpu().numpy(), interpolation="nearest")
    ax.set_axis_off()
    return figure


class SampleGrid(L.Callback):
    """Writes ``samples.png`` after every so many steps and after the test, and hands it to a logger of images.

    Asks the module for ``sample(num_images, generator, sampling_steps)``, which returns uint8 images, and for
    ``hparams.num_diffusion_steps``.

    Args:
        folder: where the file goes.
        every_n_steps: optimizer steps between grids while training.
        num_images: of a grid.
        columns: images of a row.
        sampling_steps: network calls for an image; all steps of the process where it has fewer.
        seed: of the noise.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_steps: int = 1000,
        num_images: int = 32,
        columns: int = 8,
        sampling_steps: int = 50,
        seed: int = 0,
    ) -> None:
        self.path = Path(folder) / "samples.png"
        self.every_n_steps, self.num_images, self.columns = every_n_steps, num_images, columns
        self.sampling_steps, self.seed = sampling_steps, seed
        self._last_step = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Draw where it is time."""
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._last_step:  # a step of several batches ends with one
            self._last_step = step
            self._draw(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The other ranks go on and wait for this one at their next exchange of gradients.
        if not trainer.is_global_zero:
            return
        generator = torch.Generator(pl_module.device).manual_seed(self.seed)
        steps = min(self.sampling_steps, pl_module.hparams.num_diffusion_steps)
        with trainer.precision_plugin.forward_context():
            images = pl_module.sample(self.num_images, generator, steps)
        keep_figure(grid_figure(images, self.columns), self.path, trainer.logger)
