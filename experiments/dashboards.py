"""A workspace and a report of W&B for a sweep: curves and scores by method, the published figures beside ours.

python -m experiments.dashboards table2                               print what they would hold, as JSON
python -m experiments.dashboards table2 --publish --entity my-team    make them on W&B; prints their addresses

Both show the runs that W&B groups under the sweep's name (group=... of ``experiments.run``), methods apart and their
seeds together. W&B's own bar charts draw no line: the published figures are lines in a custom chart of ours, which
publishing adds to the entity's charts. Needs ``pip install -e ".[dashboards]"``, and a login to publish.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.config import ConfigError, experiments, split_name, told_in_a_line
from experiments.formats import DASH
from experiments.grid import cells
from experiments.metrics import METRICS
from experiments.runs import Figure
from experiments.sweep import tell
from experiments.tables import published_figures, published_tables

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report, Runset
    from wandb_workspaces.workspaces import Workspace

MOST_RUNS = 100  # of a panel
WHOLE_ROW = 24  # the width of a report's grid


class Shown(NamedTuple):
    """What the runs of a task log: curves, the scores to show where no published table names them, and pictures."""

    curves: tuple[str, ...]
    scores: tuple[str, ...]
    figures: tuple[str, ...]


SHOWN = {
    "imputation": Shown(
        ("train/loss", "val/nll", "val/mse"), ("test/auroc", "test/nll", "test/mse"), ("figures/imputations",)
    ),
    "segmentation": Shown(("train/loss",), ("test/miou", "test/miou_ignore"), ("figures/segmentations",)),
    "synthesis": Shown(
        ("train/loss",),
        ("test/f1_catboost", "test/r2_catboost", "test/dcr"),
        ("figures/distributions", "figures/associations"),
    ),
    "pretraining": Shown(
        ("train/mse", "train/bits_per_dim", "val/bits_per_dim"), ("test/bits_per_dim",), ("figures/samples",)
    ),
}


def scores_chart() -> dict[str, Any]:
    """A chart of W&B's for the scores of runs, as Vega-Lite: means as bars, deviations, the published means as lines.

    W&B puts its rows of data, and the names of the fields in them, in the places of "wandb" and "${field:...}".
    """
    rows = {
        "y": {"field": "${field:method}", "type": "nominal", "title": None},
        "yOffset": {"field": "${field:dataset}", "type": "nominal"},
    }

    def layer(mark: str | dict[str, Any], key: str, **further: Any) -> dict[str, Any]:
        field = f"${{field:{key}}}"
        average = {} if isinstance(mark, dict) and mark["type"] == "errorbar" else {"aggregate": "mean"}
        x = {"field": field, "type": "quantitative", "title": "${string:title}", **average}
        known = {"filter": {"field": field, "valid": True}}  # runs that go on have no score, some methods no figure
        return {"transform": [known], "mark": mark, "encoding": {"x": x, **rows, **further}}

    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"name": "wandb"},
        "width": "container",
        "layer": [
            layer("bar", "score", color={"field": "${field:dataset}", "type": "nominal", "title": None}),
            layer({"type": "errorbar", "extent": "stdev"}, "score"),
            layer({"type": "tick", "color": "#d62728", "thickness": 3, "tooltip": True}, "published"),
        ],
    }


def chart_name() -> str:
    """Another chart has another name, so that what W&B shows with an older one stays as it is."""
    digest = hashlib.sha256(json.dumps(scores_chart(), sort_keys=True).encode()).hexdigest()
    return f"genpred-scores-{digest[:8]}"


@dataclass(frozen=True)
class Part:
    """The runs of a sweep on one data set."""

    task: str
    dataset: str
    methods: tuple[str, ...]
    scores: tuple[str, ...]

    @property
    def published(self) -> dict[str, dict[str, Figure]]:
        """The published figures of these scores: {method: {metric: figure}}; methods without any are left out."""
        every = {method: published_figures(f"{method}_{self.dataset}") for method in self.methods}
        kept = {
            method: {key: Figure(found[key]["mean"], found[key]["std"]) for key in self.scores if key in found}
            for method, found in every.items()
        }
        return {method: figures for method, figures in kept.items() if figures}


def parts(sweep: str) -> list[Part]:
    """What a sweep runs, data set by data set, with the scores that the published table of its name shows.

    Raises:
        ConfigError: there is no such sweep.
    """
    tasks = {name: task for task, names in experiments().items() for name in names}
    methods: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(cell.experiment for cell in cells(sweep)):
        method, dataset = split_name(name)
        methods.setdefault((tasks[name], dataset), []).append(method)
    columns = published_tables().get(sweep, {}).get("columns", [])
    found = []
    for (task, dataset), its_methods in methods.items():
        named = dict.fromkeys(each["metric"] for each in columns if each["dataset"] == dataset and "metric" in each)
        found.append(Part(task, dataset, tuple(its_methods), tuple(named) or SHOWN[task].scores))
    return found


def workspace(sweep: str, entity: str, project: str) -> "Workspace":
    """A workspace of all runs of a sweep.

    Args:
        sweep: its name.
        entity: user or team on W&B.
        project: on W&B.
    """
    from wandb_workspaces import expr
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports.v2 import RunComparer

    found = parts(sweep)
    sections, pinned = [], ["config:label.value", "config:seed.value"]
    for task in dict.fromkeys(part.task for part in found):
        its_parts = [part for part in found if part.task == task]
        metrics = dict.fromkeys(metric for part in its_parts for metric in part.scores)
        published = {metric for part in its_parts for figures in part.published.values() for metric in figures}
        sections += [
            ws.Section(name=f"Scores, {task}", panels=_bars(metrics, published, entity), is_open=True),
            ws.Section(name=f"Curves, {task}", panels=_curves(task), is_open=True),
            ws.Section(name=f"Figures, {task}", panels=_pictures(task)),
        ]
        for metric in metrics:
            beside = (f"published/{metric}", f"difference/{metric}") if metric in published else ()
            pinned += [f"summary:{key}" for key in (metric, *beside)]
    sections.append(ws.Section(name="Runs", panels=[RunComparer(diff_only="split")]))
    several = len({part.dataset for part in found}) > 1
    return ws.Workspace(
        entity=entity,
        project=project,
        name=sweep,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="trainer/global_step", max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == sweep),
            groupby=[expr.Config(key) for key in (*(["dataset"] if several else []), "label")],
            pinned_columns=pinned,
        ),
    )


def report(sweep: str, entity: str, project: str) -> "Report":
    """A report with a chapter for each data set of a sweep.

    Args:
        sweep: its name.
        entity: user or team on W&B; "" leaves out where the runs are, so that nothing asks W&B for it.
        project: on W&B.
    """
    from wandb_workspaces import expr
    from wandb_workspaces.reports import v2 as wr

    table = published_tables().get(sweep, {})
    blocks = [wr.P(table.get("caption", f"The runs of `python -m experiments.sweep {sweep}`.")), wr.TableOfContents()]
    for part in parts(sweep):
        published = {metric for figures in part.published.values() for metric in figures}
        runs = wr.Runset(
            entity=entity,
            project=project if entity else "",
            name=f"{sweep}, {part.dataset}",
            filters=expr.And(expr.Metric("Group") == sweep, expr.Config("dataset") == part.dataset),
            groupby=["config.label"],
        )
        blocks += [wr.H1(f"{part.dataset} ({part.task})")]
        if published:
            blocks += [wr.H2("Published"), wr.MarkdownBlock(_published_table(part))]
        blocks += [
            wr.H2("Scores"),
            _grid(runs, _bars(part.scores, published, entity)),
            wr.H2("Curves"),
            _grid(runs, _curves(part.task)),
            wr.H2("Figures"),
            _grid(runs, _pictures(part.task)),
            wr.H2("Runs"),
            _grid(runs, [wr.RunComparer(diff_only="split", layout=wr.Layout(w=WHOLE_ROW, h=12))]),
        ]
    return wr.Report(project=project, entity=entity, title=f"{sweep}: ours beside the published", blocks=blocks)


def _grid(runs: "Runset", panels: list[Any]) -> Any:
    from dataclasses import replace

    from wandb_workspaces.reports.v2 import PanelGrid

    return PanelGrid(runsets=[replace(runs)], panels=panels)  # a copy has an id of its own


def _bars(metrics: Any, published: set[str], entity: str) -> list[Any]:
    """A chart for each score: means of the seeds, and the published figures as lines where there are any."""
    from wandb_workspaces.reports.v2 import BarPlot, CustomChart

    charts = []
    for metric in metrics:
        title = f"{METRICS[metric].title} {METRICS[metric].arrow}".rstrip()
        if metric not in published:
            charts.append(
                BarPlot(
                    title=title,
                    metrics=[metric],
                    groupby_aggfunc="mean",
                    groupby_rangefunc="stddev",
                    max_runs_to_show=MOST_RUNS,
                    max_bars_to_show=MOST_RUNS,
                )
            )
            continue
        figure = f"published/{metric}"
        charts.append(
            CustomChart(
                query={"summary": {"keys": [metric, figure]}, "config": {"keys": ["label", "dataset"]}},
                chart_name=f"{entity}/{chart_name()}".lstrip("/"),
                chart_fields={"score": metric, "published": figure, "method": "label", "dataset": "dataset"},
                chart_strings={"title": title},
            )
        )
    return charts


def _curves(task: str) -> list[Any]:
    from wandb_workspaces.reports.v2 import LinePlot

    return [
        LinePlot(
            title=curve,
            x="trainer/global_step",
            y=[curve],
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_runs_to_show=MOST_RUNS,
        )
        for curve in SHOWN[task].curves
    ]


def _pictures(task: str) -> list[Any]:
    from wandb_workspaces.reports.v2 import Layout, MediaBrowser

    layout = Layout(w=WHOLE_ROW, h=10)
    return [MediaBrowser(media_keys=[figure], num_columns=2, layout=layout) for figure in SHOWN[task].figures]


def _published_table(part: Part) -> str:
    published = part.published
    shown = [metric for metric in part.scores if any(metric in figures for figures in published.values())]
    lines = [["method", *(METRICS[metric].title for metric in shown)], ["---", *("---:" for _ in shown)]]
    lines += [
        [method, *(str(figures[metric]) if metric in figures else DASH for metric in shown)]
        for method, figures in published.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def specification(sweep: str, project: str) -> dict[str, Any]:
    """What workspace and report hold, as W&B stores it, and the chart that they use; needs no login."""
    made = {"workspace": workspace(sweep, "", project), "report": report(sweep, "", project)}
    # The library has no public way to see what it will send.
    stored = {
        name: each._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, each in made.items()
    }
    return {**stored, "chart": {"name": chart_name(), "spec": scores_chart()}}


def publish(sweep: str, entity: str, project: str) -> list[str]:
    """Make workspace and report on W&B, and their chart where it is not there; each call makes new ones.

    Returns:
        Their addresses.

    Raises:
        ConfigError: W&B refuses, or knows no user here.
    """
    try:
        with contextlib.redirect_stderr(None):  # it tells the addresses, too
            refused = _add_chart(entity)
            addresses = [make(sweep, entity, project).save().url for make in (workspace, report)]
    except Exception as error:  # the library raises bare ones
        reason = " ".join(str(error).split())
        raise ConfigError(f"W&B does not take {sweep} to {entity}/{project}: {reason}") from error
    if refused:
        print(f"the chart {entity}/{chart_name()} was not added, as if it were there: {refused}", file=sys.stderr)
    return addresses


def _add_chart(entity: str) -> str | None:
    """Add the chart to the entity's; why W&B did not take it, where it did not."""
    import wandb

    try:
        wandb.Api().create_custom_chart(
            entity=entity,
            name=chart_name(),
            display_name="Scores, and the published ones as lines",
            spec_type="vega2",
            access="private",
            spec=scores_chart(),
        )
    except Exception as error:  # of several kinds; how W&B words that it has the chart already is not documented
        return " ".join(str(error).split())
    return None


@told_in_a_line
def main(argv: list[str] | None = None) -> int:
    """Print, write or publish; returns the exit status, 2 with one line on standard error where that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.dashboards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a sweep, such as table2")
    parser.add_argument("--project", default="genpred", help="on W&B; default: genpred")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON to a file")
    parser.add_argument("--publish", action="store_true", help="make workspace and report on W&B; needs a login")
    parser.add_argument("--entity", help="with --publish: user or team on W&B")
    arguments = parser.parse_args(argv)
    if arguments.publish != bool(arguments.entity):
        raise ConfigError("--publish and --entity (user or team on W&B) go together")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("wandb-workspaces is not installed: pip install wandb-workspaces")
    if arguments.publish:
        print("\n".join(publish(arguments.name, arguments.entity, arguments.project)))
        return 0
    text = json.dumps(specification(arguments.name, arguments.project), indent=1, ensure_ascii=False) + "\n"
    tell(text, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
