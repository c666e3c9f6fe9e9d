"""Pictures of segmentations, and of what the features of a backbone tell apart without any annotation.

The forms of Figures 5 and 4 of the thesis, after Baranchuk et al., Label-Efficient Semantic Segmentation with Diffusion
Models, ICLR 2022.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from callbacks.figures import keep_figure

_COLUMNS = ("image", "truth", "prediction", "uncertainty, nats")


def coloured(labels: NDArray[np.integer], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels [height, width] in the colours [class, 3] of their classes; white where there is no such class."""
    white = np.full((1, 3), 255, np.uint8)
    # The number after the last class need not fit into the labels' own type.
    return np.concatenate([palette, white])[np.minimum(labels.astype(np.int64), len(palette))]


def segmentation_figure(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.int64]],
    uncertainty: Sequence[NDArray[np.float32]],
    palette: NDArray[np.uint8],
    class_names: Sequence[str],
) -> Figure:
    """A row for each image, and the classes that occur, in their colours.

    Args:
        images: [3, height, width] each.
        masks: [height, width] each, the truth.
        labels: [height, width] each, what was predicted.
        uncertainty: [height, width] each, nats.
        palette: [class, 3].
        class_names: by their numbers.
    """
    most = max(float(each.max()) for each in uncertainty)
    seen = set().union(*(np.unique(each).tolist() for each in (*masks, *labels)))
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(7.2, 1.75 * len(images) + 0.9), dpi=150, layout="constrained")
        axes = figure.subplots(len(images), len(_COLUMNS), squeeze=False)
        for row, line in enumerate(axes):
            shown = (images[row].transpose(1, 2, 0), coloured(masks[row], palette), coloured(labels[row], palette))
            for ax, picture in zip(line, shown, strict=False):
                ax.imshow(picture, interpolation="nearest")
            heat = line[-1].imshow(uncertainty[row], cmap="magma", vmin=0, vmax=max(most, 1e-6))
            for ax in line:
                ax.set_xticks([])
                ax.set_yticks([])
        for ax, title in zip(axes[0], _COLUMNS, strict=True):
            ax.set_title(title)
        figure.colorbar(heat, ax=axes[:, -1], shrink=0.6)
        occurring = [number for number in range(len(palette)) if number in seen]
        names = [name.replace("$", r"\$") for name in class_names]  # no formula
        handles = [mpl.patches.Patch(color=palette[number] / 255, label=names[number]) for number in occurring]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(7, max(len(handles), 1)), frameon=False)
    return figure


def cluster_colours(num_clusters: int) -> NDArray[np.uint8]:
    """Colours [cluster, 3] that differ in lightness, which the colour-blind see as well, from dark to light."""
    return (mpl.colormaps["viridis"](np.linspace(0, 1, num_clusters))[:, :3] * 255).round().astype(np.uint8)


def clusters_figure(
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.int64]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    palette: NDArray[np.uint8],
) -> Figure:
    """Images under each other, and beside each the clusters of its pixels by each of a grid of feature maps.

    Args:
        images: [3, height, width] each.
        labels: [row, column, height, width] of each image, numbers of clusters.
        row_names: such as the steps of a diffusion model.
        column_names: such as the blocks of its network.
        palette: [cluster, 3].

    Raises:
        ValueError: there are not as many names as rows and columns.
    """
    names = len(row_names), len(column_names)
    if any(each.shape[:2] != names for each in labels):
        shapes = [list(each.shape) for each in labels]
        raise ValueError(f"labels of shapes {shapes} with {names[0]} names of rows, {names[1]} of columns")
    with mpl.rc_context({"font.size": 8}):
        size = (1.15 * (names[1] + 1) + 0.2, (1.15 * names[0] + 0.35) * len(images))
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        parts = figure.subfigures(len(images), squeeze=False)[:, 0]
        for part, image, panels in zip(parts, images, labels, strict=True):
            places = part.add_gridspec(names[0], names[1] + 1)
            _show(part.add_subplot(places[:, 0]), image.transpose(1, 2, 0))
            for row, column in np.ndindex(*names):
                ax = part.add_subplot(places[row, column + 1])
                _show(ax, coloured(panels[row, column], palette))
                if row == 0:
                    ax.set_title(column_names[column], fontsize=8)
                if column == 0:
                    ax.set_ylabel(row_names[row])
    return figure


def _show(ax: Axes, picture: NDArray[np.uint8]) -> None:
    ax.imshow(picture, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


class SegmentationFigure(L.Callback):
    """Writes ``segmentations.png`` after a test, without what pads pictures, and hands it to a logger of images.

    Args:
        folder: where the file goes.
        num_images: of the first ones of the test, to show.
    """

    def __init__(self, folder: str | Path, num_images: int = 4) -> None:
        self.path, self.num_images = Path(folder) / "segmentations.png", num_images
        self._shown: list[list[NDArray[Any]]] = []

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        self._shown = []

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the images to be shown."""
        if trainer.is_global_zero and len(self._shown) < self.num_images:
            parts = (batch.images, batch.masks, outputs.labels, outputs.uncertainty)
            shown = zip(*(part.cpu().numpy() for part in parts), batch.extent.tolist(), strict=True)
            self._shown += [[part[..., :height, :width] for part in each] for *each, (height, width) in shown]

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw."""
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule
        parts = zip(*self._shown[: self.num_images], strict=True)
        figure = segmentation_figure(*parts, data.palette, data.class_names)
        keep_figure(figure, self.path, trainer.logger)
