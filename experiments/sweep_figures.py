"""Figures of a sweep: a score over one of its keys as curves, or over two of them as a map of colours."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from experiments.config import ConfigError, nearest, split_name
from experiments.grid import Cell, cells, variant_name
from experiments.metrics import METRICS, Metric
from experiments.runs import Figure, Runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MARKERS = "osD^vPX"
WIDE_SPAN = 50  # largest over smallest number from which on an axis is logarithmic


@dataclass
class Group:
    """What belongs together in a figure: the cells of a sweep that differ in its axes and in seeds alone.

    Attributes:
        label: what tells it from the other groups.
        scores: by the values of the axes, of each finished run; none where all are still missing.
    """

    label: str
    scores: dict[tuple[Any, ...], list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """A metric of a sweep's runs.

    Attributes:
        axes: keys of the sweep.
        groups: in the order of the sweep.
        shared: what all groups have in common.
        metric: title, and what is best.
        planned: number of the sweep's cells that set all axes.
        absent: number of those without a score.
    """

    axes: Sequence[str]
    groups: list[Group]
    shared: str
    metric: Metric
    planned: int
    absent: int

    def note(self, statistic: str, grey: bool = False) -> str:
        """What a figure says of its runs in the line under it.

        Args:
            statistic: what it shows of several runs, such as "mean".
            grey: whether it shows places without a run in grey.
        """
        counts = [len(values) for group in self.groups for values in group.scores.values()]
        low, high = min(filter(None, counts)), max(counts)
        runs = f"{high} runs" if low == high else f"{low} to {high} runs"
        told = [self.shared] if self.shared else []
        told.append("one run each" if high == 1 else f"{statistic} over {runs}")
        empty = counts.count(0) if grey else 0
        if empty:
            told.append(f"grey: {empty} of {len(counts)} places without a run")
        if self.absent > empty:
            told.append(f"{self.absent} of {self.planned} runs are missing")
        return "; ".join(told)


def sweep_scores(name: str, axes: Sequence[str], metric: str, runs: Runs) -> Scores:
    """Find a metric of the runs of a sweep, by the values of some keys.

    Cells that do not set all of these keys are left out. Keys that end in "seed", as ``data.split_seed`` does, tell
    repetitions apart and not methods, like the seed itself.

    Args:
        name: of the sweep.
        axes: keys that it sets, in full, such as ``data.train_images``.
        metric: such as ``test/miou``.
        runs: from `collect`.

    Raises:
        ConfigError: there is no such sweep, it does not set a key, no run of it is finished, or none has the metric.
    """
    planned = cells(name)
    known = {key for cell in planned for key in cell.values}
    for key in axes:
        if key not in known:
            raise ConfigError(f"sweep {name} does not set {key}.{nearest(key, known)}")
    planned = [cell for cell in planned if cell.values.keys() >= set(axes)]
    if not planned:
        raise ConfigError(f"no cell of sweep {name} sets {' and '.join(axes)} together")
    found = {cell: _metrics(cell, runs) for cell in planned}
    there = set().union(*(metrics for metrics in found.values() if metrics))
    if not there:
        raise ConfigError(
            f"no run of sweep {name} is finished in the folders given: python -m experiments.sweep {name} --local"
        )
    if metric not in there:
        raise ConfigError(f"no run of sweep {name} has the metric {metric}.{nearest(metric, there)}")
    parts = {cell: _parts(cell, axes) for cell in planned}
    shared = [part for part in parts[planned[0]] if all(part in each for each in parts.values())]
    groups: dict[tuple[str, ...], Group] = {}
    absent = 0
    for cell in planned:
        group = groups.setdefault(parts[cell], Group(" ".join(each for each in parts[cell] if each not in shared)))
        values = group.scores.setdefault(tuple(_coordinate(cell.values[key]) for key in axes), [])
        if metric in (metrics := found[cell] or {}):
            values.append(metrics[metric])
        else:
            absent += 1
    described = METRICS.get(metric, Metric(metric, None))
    return Scores(axes, list(groups.values()), ", ".join(shared), described, len(planned), absent)


def _metrics(cell: Cell, runs: Runs) -> dict[str, float] | None:
    results = runs.get((cell.experiment, variant_name(cell.values)), [])
    return next((each["metrics"] for each in results if each["seed"] == cell.seed), None)


def _parts(cell: Cell, axes: Sequence[str]) -> tuple[str, ...]:
    """Method, data set and overrides of a cell, without the axes and what tells repetitions apart."""
    kept = []
    for override in cell.overrides:
        key = override.split("=", 1)[0]
        if key not in axes and not key.endswith("seed"):
            kept.append(override)
    return (*split_name(cell.experiment), *kept)


def _coordinate(value: Any) -> Any:
    """A value on an axis; a list of one is what it holds."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return tuple(value) if isinstance(value, list) else value


def in_words(key: str) -> str:
    """The last part of a key, such as "train images" of ``data.train_images``."""
    return key.split(".")[-1].replace("_", " ")


def curve_figure(scores: Scores, title: str | None = None) -> tuple["Drawing", str]:
    """A line for each group: mean of the metric and its standard deviation over the values of a key.

    Args:
        scores: from `sweep_scores` with one axis.
        title: of the horizontal axis; None: the key in words.

    Returns:
        The figure, and the note that stands under it.

    Raises:
        ConfigError: a value of the key is no number.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    from callbacks.figures import COLOURS

    ticks = _ordered(place for group in scores.groups for (place,) in group.scores)
    for tick in ticks:
        if not _is_number(tick):
            raise ConfigError(f"--x {scores.axes[0]}: its value {tick!r} is no number: draw a heatmap")
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Drawing(figsize=(5.2, 3.8), dpi=150, layout="constrained")
        ax = figure.subplots()
        for number, group in enumerate(scores.groups):
            points = sorted((place, Figure.of(values)) for (place,), values in group.scores.items() if values)
            ax.errorbar(
                [place for place, _ in points],
                [point.mean for _, point in points],
                [point.std or 0.0 for _, point in points],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4.5,
                linewidth=1.4,
                elinewidth=1,
                capsize=3,
                label=group.label or scores.shared,
            )
        if ticks[0] > 0 and ticks[-1] / ticks[0] >= WIDE_SPAN:
            ax.set_xscale("log")
        if len(ticks) <= 10:
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        ax.set_xlabel(title or in_words(scores.axes[0]))
        ax.set_ylabel(_metric_label(scores.metric))
        if len(scores.groups) > 1:
            figure.legend(loc="outside upper center", ncols=min(3, len(scores.groups)), frameon=False)
        note = scores.note("mean ± standard deviation")
        _write_under(figure, note)
    return figure, note


def heatmap_figure(scores: Scores, x_title: str | None = None, y_title: str | None = None) -> tuple["Drawing", str]:
    """A map for each group: mean of the metric over the values of two keys, grey where no run is finished.

    Args:
        scores: from `sweep_scores` with two axes, the horizontal one first.
        x_title: of the horizontal axis; None: the key in words.
        y_title: of the vertical axis; likewise.

    Returns:
        The figure, and the note that stands under it.
    """
    import matplotlib as mpl
    import numpy as np
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure as Drawing

    columns, rows = (_ordered(place[axis] for group in scores.groups for place in group.scores) for axis in (0, 1))
    means = np.full((len(scores.groups), len(rows), len(columns)), np.nan)
    empty = np.zeros(means.shape, bool)  # planned, but without a run; what the sweep does not hold stays white
    for number, group in enumerate(scores.groups):
        for (column, row), values in group.scores.items():
            place = number, rows.index(row), columns.index(column)
            means[place], empty[place] = (np.mean(values), False) if values else (np.nan, True)
    scale = Normalize(np.nanmin(means), np.nanmax(means))
    decimals = max(0, 2 - math.floor(math.log10(np.nanmax(np.abs(means)) or 1)))
    with mpl.rc_context({"font.size": 9}):
        size = (0.6 * len(columns) + 0.4) * len(scores.groups) + 1.4, 0.4 * len(rows) + 1.3
        figure = Drawing(figsize=(max(size[0], 4.2), max(size[1], 2.6)), dpi=150, layout="constrained")
        panels = figure.subplots(1, len(scores.groups), squeeze=False)[0]
        for group, mean, grey, ax in zip(scores.groups, means, empty, panels, strict=True):
            ax.imshow(np.where(grey, 0.75, np.nan), cmap="gray", vmin=0, vmax=1, aspect="auto")
            shown = ax.imshow(mean, cmap="viridis", norm=scale, aspect="auto")
            for (row, column), value in np.ndenumerate(mean):
                if not np.isnan(value):
                    colour = "black" if scale(value) > 0.55 else "white"
                    ax.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", color=colour, fontsize=7.5)
            ax.set_xticks(range(len(columns)), map(str, columns))
            ax.set_yticks(range(len(rows)), map(str, rows))
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
            ax.set_xlabel(x_title or in_words(scores.axes[0]))
            ax.set_title(group.label, fontsize=9)
        panels[0].set_ylabel(y_title or in_words(scores.axes[1]))
        figure.colorbar(shown, ax=panels, label=_metric_label(scores.metric)).outline.set_visible(False)
        note = scores.note("mean", grey=True)
        _write_under(figure, note)
    return figure, note


def _ordered(values: Iterable[Any]) -> list[Any]:
    """Different values by size where all are numbers, else as they come."""
    different = list(dict.fromkeys(values))
    return sorted(different) if all(map(_is_number, different)) else different


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric_label(metric: Metric) -> str:
    return f"{metric.title} {metric.arrow}" if metric.best is not None else metric.title


def _write_under(figure: "Drawing", note: str) -> None:
    width = int(figure.get_figwidth() * 19)  # characters of this size
    figure.supxlabel("\n".join(textwrap.wrap(note, width)), fontsize=7.5, color="0.35")
