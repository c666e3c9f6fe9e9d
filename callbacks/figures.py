"""Pictures of imputations: a few series with what was observed, what was hidden, and what the method says.

For variables with names it is the form of Figure 2 of Fortuin et al., GP-VAE, AISTATS 2020; for images a strip of
frames.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from callbacks.files import whole_file

# Colours of Okabe and Ito, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
BAND = (0.025, 0.975)


class Curve(NamedTuple):
    """What one method says of one variable of one series."""

    mean: NDArray[np.float64]  # [time]
    lower: NDArray[np.float64] | None = None  # [time], ends of the 95 % band; None: a point
    upper: NDArray[np.float64] | None = None


class Panel(NamedTuple):
    """One variable of one series, in its own unit."""

    title: str
    label: str  # of the vertical axis: the variable, with its unit where it has one
    times: NDArray[np.float64]  # [time]
    truth: NDArray[np.float64]  # [time]
    observed: NDArray[np.bool_]  # [time]
    hidden: NDArray[np.bool_]  # [time], scored: the truth is known, and the methods did not see it
    curves: Mapping[str, Curve]


def chosen_entries(
    observed: NDArray[np.bool_], hidden: NDArray[np.bool_], num_series: int, num_variables: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Series with the most hidden entries, and the variables of which these show the most.

    Args:
        observed: [series, time, variable] bool.
        hidden: the same shape.
        num_series: how many series, at most.
        num_variables: how many variables, at most.

    Returns:
        Numbers of the series and of the variables, ascending.
    """
    series = np.sort(np.argsort(-hidden.sum((1, 2)), kind="stable")[:num_series])
    # Hidden entries count for more: they are what can be compared.
    shown = (observed[series].sum(1) + 10 * hidden[series].sum(1)).min(0)  # [variable], in the poorer of the series
    return series, np.sort(np.argsort(-shown, kind="stable")[:num_variables])


def panels_figure(rows: Sequence[Sequence[Panel]], time_label: str) -> Figure:
    """A grid of panels: a row for each series, a column for each variable.

    Args:
        rows: panels of each series.
        time_label: of the horizontal axes.
    """
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        size = (3.4 * max(len(row) for row in rows), 2.5 * len(rows) + 0.6)
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        axes = figure.subplots(len(rows), max(len(row) for row in rows), squeeze=False, sharex=True)
        for row, line in zip(rows, axes, strict=True):
            for panel, ax in zip(row, line, strict=False):
                _draw(panel, ax)
        for ax in axes[-1]:
            ax.set_xlabel(time_label)
        handles = {}
        for ax in axes.flat:
            handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        width = 0.6 + 0.07 * max(map(len, handles))  # inches of the widest entry, about
        columns = min(len(handles), max(1, int(size[0] / width)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _draw(panel: Panel, ax: Any) -> None:
    for (name, curve), colour in zip(panel.curves.items(), COLOURS, strict=False):
        if curve.lower is not None:
            ax.fill_between(panel.times, curve.lower, curve.upper, color=colour, alpha=0.18, lw=0, label=f"{name} 95 %")
        ax.plot(panel.times, curve.mean, color=colour, lw=1.4, label=name)
    last = np.maximum.accumulate(np.where(panel.observed, np.arange(len(panel.times)), -1))
    forward = np.where(last >= 0, panel.truth[last], np.nan)
    ax.step(panel.times, forward, where="post", color="0.55", lw=1, ls="--", label="forward fill")
    ax.plot(panel.times[panel.observed], panel.truth[panel.observed], "o", color="black", ms=3.5, label="observed")
    hidden = panel.times[panel.hidden], panel.truth[panel.hidden]
    ax.plot(*hidden, "D", mfc="white", mec="#B00020", mew=1.3, ms=5, label="hidden truth", zorder=5)
    ax.set_title(panel.title)
    ax.set_ylabel(panel.label)


def frames_figure(rows: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Strips of frames under each other, for one or more series.

    Args:
        rows: by label, [series, time, height, width] or [series, time, height, width, 3] in [0, 1]; NaN is drawn grey.
    """
    num_series, num_frames = next(iter(rows.values())).shape[:2]
    figure = Figure(figsize=(0.8 * num_frames + 1, 0.8 * len(rows) * num_series), dpi=150, layout="constrained")
    axes = figure.subplots(len(rows) * num_series, num_frames, squeeze=False)
    for series in range(num_series):
        for place, (label, images) in enumerate(rows.items()):
            line = axes[series * len(rows) + place]
            for ax, image in zip(line, images[series], strict=True):
                shown = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
                ax.imshow(np.where(np.isnan(shown), [0.35, 0.45, 0.6], np.clip(shown, 0, 1)), interpolation="nearest")
                ax.set_xticks([])
                ax.set_yticks([])
            line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    with whole_file(path) as file:
        figure.savefig(file, format="png")


def keep_figure(figure: Figure, path: Path, logger: Any) -> None:
    """Write a PNG (see `save_figure`), and hand it as ``figures/<name>`` to a logger that takes images.

    Args:
        figure: what was drawn.
        path: of the file.
        logger: the Trainer's, or None.
    """
    save_figure(figure, path)
    if log_image := getattr(logger, "log_image", None):
        log_image(f"figures/{path.stem}", [str(path)])


def curve_of(mean: Tensor, draws: Tensor, offset: float, scale: float) -> Curve:
    """Mean and band of one variable of one series, in its own unit.

    Args:
        mean: [time], standardised.
        draws: [draw, time], standardised; none, or all alike: a point, without a band.
        offset: what standardisation had taken off.
        scale: what standardisation had divided by.
    """
    lines = [mean.double()]
    if len(draws):
        draws = draws.double()
        lines += draws.quantile(torch.tensor(BAND, dtype=draws.dtype, device=draws.device), dim=0)
    mean, *band = (offset + scale * line.cpu().numpy() for line in lines)
    return Curve(mean, *band) if band and (band[0] < band[1]).any() else Curve(mean)


def panels(
    batch: Any, predictives: Mapping[str, Any], data: Any, variables: Sequence[int], num_draws: int
) -> list[list[Panel]]:
    """The panels of a few series.

    Args:
        batch: the series, with their truth.
        predictives: by the name of the method.
        data: the DataModule, with ``variables``, ``units``, ``mean`` and ``standard_deviation``.
        variables: numbers of the variables to show.
        num_draws: draws behind each band; 0: no band.
    """
    # The draws before the mean: a method whose mean is that of its draws need not draw twice.
    none = batch.values.new_empty(0, *batch.values.shape)
    drawn = {
        name: predictive.sample(num_draws, rows=batch.index) if num_draws else none
        for name, predictive in predictives.items()
    }  # [draw, series, time, variable]
    means = {name: predictive.mean for name, predictive in predictives.items()}  # [series, time, variable]
    names, units = data.variables, getattr(data, "units", [""] * len(data.variables))
    rows = []
    for series in range(len(batch.index)):
        times = np.arange(batch.values.shape[1]) if batch.times is None else batch.times[series].cpu().numpy()
        row = []
        for j in variables:
            offset, scale = float(data.mean[j]), float(data.standard_deviation[j])
            observed, hidden = (mask[series, :, j].cpu().numpy() for mask in (batch.observed_mask, batch.target_mask))
            truth = torch.where(batch.observed_mask, batch.values, batch.target)[series, :, j].double().cpu().numpy()
            curves = {
                name: curve_of(mean[series, :, j], drawn[name][:, series, :, j], offset, scale)
                for name, mean in means.items()
            }
            title = f"{names[j]}, series {int(batch.index[series])}"
            label = f"{names[j]} [{units[j]}]" if units[j] else names[j]
            row.append(Panel(title, label, times.astype(float), offset + scale * truth, observed, hidden, curves))
        rows.append(row)
    return rows


class ImputationFigure(L.Callback):
    """Writes ``imputations.png`` after a test, and hands it to a logger that takes images.

    Shows those series of the first test batch in which most is hidden. Series of images (`image_shape` among the
    DataModule's `model_arguments`) become strips of frames; data without names of variables or images have no figure.

    Args:
        folder: where the file goes.
        label: name of the method in the legend.
        num_series: series to show.
        num_variables: variables of each to show.
        num_draws: draws behind the 95 % band; 0: no band.
    """

    def __init__(
        self, folder: str | Path, label: str, num_series: int = 2, num_variables: int = 4, num_draws: int = 100
    ) -> None:
        self.path = Path(folder) / "imputations.png"
        self.label = label
        self.num_series, self.num_variables, self.num_draws = num_series, num_variables, num_draws
        self._batch: Any = None
        self._variables: NDArray[np.intp] | None = None

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the series to be shown."""
        if batch_idx == 0 and trainer.is_global_zero:
            masks = (mask.cpu().numpy() for mask in (batch.observed_mask, batch.target_mask))
            series, self._variables = chosen_entries(*masks, self.num_series, self.num_variables)
            kept = torch.from_numpy(series).to(batch.index.device)
            self._batch = type(batch)(*(None if field is None else field[kept] for field in batch))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw."""
        figure = self._figure(trainer.datamodule, pl_module) if trainer.is_global_zero else None
        if figure is not None:
            keep_figure(figure, self.path, trainer.logger)

    def _figure(self, data: Any, pl_module: L.LightningModule) -> Figure | None:
        shape = data.model_arguments.get("image_shape")
        if shape is None and not hasattr(data, "variables"):
            return None
        batch = self._batch
        with torch.no_grad(), _evaluating(pl_module):
            predictive = pl_module(batch.values, batch.observed_mask, batch.times)
            if shape is None:
                time_label = getattr(data, "time_label", "time")
                rows = panels(batch, {self.label: predictive}, data, self._variables, self.num_draws)
                return panels_figure(rows, time_label)
            imputed = torch.where(batch.observed_mask, batch.values, predictive.mean)
        seen = torch.where(batch.observed_mask, batch.values, torch.nan)
        strips = {"truth": batch.target, "observed": seen, self.label: imputed}
        return frames_figure({name: strip.unflatten(-1, shape).cpu().numpy() for name, strip in strips.items()})


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
