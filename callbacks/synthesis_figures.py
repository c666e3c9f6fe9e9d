"""Pictures of a synthetic table beside the real one, as Figures 7 and 8 of TabDDPM (Kotelnikov et al., ICML 2023)."""

from pathlib import Path
from typing import Any

import lightning as L
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from callbacks.encoding import Table, Task
from callbacks.figures import COLOURS, keep_figure
from callbacks.quality import MAX_ROWS, associations, bin_edges, encoded_columns

MOST_COLUMNS = 60  # with a panel of their own
MOST_BARS = 12  # categories with a bar, the commonest of the real rows
BINS = 40


def distributions_figure(real: pd.DataFrame, synthetic: pd.DataFrame, categorical: list[str]) -> Figure:
    """A panel for each column: histograms of numbers over the real range, shares of the commonest categories.

    Args:
        real: rows.
        synthetic: rows with the same columns.
        categorical: columns of categories.
    """
    names = [name for name in real.columns if real[name].notna().any()][:MOST_COLUMNS]
    width = min(5, len(names))
    height = -(-len(names) // width)
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(2.6 * width, 2.1 * height + 0.4), dpi=150, layout="constrained")
        axes = figure.subplots(height, width, squeeze=False).flatten()
        for ax in axes[len(names) :]:
            ax.set_visible(False)
        for ax, name in zip(axes, names, strict=False):
            draw = _bars if name in categorical else _histograms
            draw(ax, real[name].dropna(), synthetic[name].dropna())
            ax.set_title(_plain(name))
            ax.set_yticks([])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def shown_columns(table: Table, frame: pd.DataFrame, columns: Any, target: str) -> pd.DataFrame:
    """Arrays of a table under their columns' names, with the gaps that the frame has."""
    arrays: dict[str, NDArray] = {}
    for names, array in ((columns.numerical, table.X_num), (columns.categorical, table.X_cat)):
        arrays |= dict(zip(names, [] if array is None else array.T, strict=True))
    shown = pd.DataFrame(arrays | {target: table.y})
    for name in shown.columns.intersection(frame.columns):
        shown[name] = shown[name].mask(frame[name].isna().to_numpy())
    return shown


def _histograms(ax: Any, real: pd.Series, synthetic: pd.Series) -> None:
    edges = bin_edges(real.to_numpy(float), BINS)
    style = {"bins": edges, "density": True, "histtype": "stepfilled", "alpha": 0.5}
    ax.hist(real.astype(float), color="0.4", label="real", **style)
    ax.hist(np.clip(synthetic.astype(float), edges[0], edges[-1]), color=COLOURS[0], label="synthetic", **style)


def _bars(ax: Any, real: pd.Series, synthetic: pd.Series) -> None:
    shares = real.astype(str).value_counts(normalize=True)[:MOST_BARS]
    places = np.arange(len(shares))
    theirs = synthetic.astype(str).value_counts(normalize=True).reindex(shares.index, fill_value=0)
    ax.bar(places - 0.2, shares, 0.4, color="0.4", alpha=0.7, label="real")
    ax.bar(places + 0.2, theirs, 0.4, color=COLOURS[0], alpha=0.7, label="synthetic")
    ax.set_xticks(places, [_plain(text[:12]) for text in shares.index], rotation=90)


def _plain(text: str) -> str:
    """Text in which a dollar does not begin a formula."""
    return text.replace("$", r"\$")


def associations_figure(difference: NDArray[np.float64], names: list[str]) -> Figure:
    """A heat map of |association of real columns - association of synthetic columns|.

    Args:
        difference: [column, column].
        names: of the columns.
    """
    size = max(3.5, 0.28 * len(names) + 1.5)
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(size + 0.8, size), dpi=150, layout="constrained")
        ax = figure.subplots()
        image = ax.imshow(difference, cmap="magma_r", vmin=0, vmax=max(0.2, float(difference.max())))
        labels = [_plain(name) for name in names]
        ax.set_xticks(range(len(names)), labels, rotation=90)
        ax.set_yticks(range(len(names)), labels)
        off_diagonal = difference[~np.eye(len(names), dtype=bool)]
        ax.set_title(f"|real - synthetic| association, mean {off_diagonal.mean() if off_diagonal.size else 0:.3f}")
        figure.colorbar(image, shrink=0.8)
    return figure


def association_difference(real: Table, synthetic: Table, task: Task, seed: int = 0) -> NDArray[np.float64]:
    """|difference| of the associations of two tables' columns, [column, column]: see `quality.associations`."""
    random = np.random.default_rng(seed)
    matrices = []
    for numbers, ranks in encoded_columns({"real": real, "synthetic": synthetic}, task):
        rows = random.permutation(len(numbers))[:MAX_ROWS]
        matrices.append(associations(numbers[rows], ranks[rows]))
    return np.abs(matrices[0] - matrices[1])


class SynthesisFigure(L.Callback):
    """Writes ``distributions.png`` and ``associations.png`` after a test, and hands them to a logger of images.

    Shows the first synthetic table beside the training part.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._frame: pd.DataFrame | None = None

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: pd.DataFrame,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first table."""
        if batch_idx == 0 and trainer.is_global_zero:
            self._frame = outputs

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw."""
        if not trainer.is_global_zero:
            return
        data, codec = trainer.datamodule, trainer.datamodule.codec
        columns, target = codec.columns, [codec.columns.target]
        categorical = [*columns.categorical, *(target if codec.class_counts else [])]
        numerical = [*columns.numerical, *([] if codec.class_counts else target)]
        synthetic = codec.table(self._frame)
        difference = association_difference(data.parts["train"], synthetic, data.table_task)
        shown = [
            shown_columns(table, frame, columns, target[0])
            for table, frame in ((data.parts["train"], data.frame), (synthetic, self._frame))
        ]
        figures = {
            "distributions": distributions_figure(*shown, categorical),
            "associations": associations_figure(difference, [*numerical, *categorical]),
        }
        for name, figure in figures.items():
            keep_figure(figure, self.folder / f"{name}.png", trainer.logger)
