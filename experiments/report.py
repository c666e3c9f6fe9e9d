"""Tables of results, ours beside the published figures."""

from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PUBLISHED = Path(__file__).parent / "published"
# Metrics in the order in which the tables print them, with their direction.
METRICS = {
    "test/nll": ("NLL", "↓"),
    "test/mse": ("MSE", "↓"),
    "test/mae": ("MAE", "↓"),
    "test/auroc": ("AUROC", "↑"),
}


@cache
def _published_tables() -> list[dict[str, Any]]:
    from omegaconf import OmegaConf

    return [OmegaConf.to_container(OmegaConf.load(path)) for path in sorted(PUBLISHED.glob("*.yaml"))]


def published_figures(experiment: str) -> dict[str, dict[str, Any]]:
    """The published figures of an experiment: {metric: {"mean", "std", "source"}}; empty where there are none."""
    figures: dict[str, dict[str, Any]] = {}
    for table in _published_tables():
        for metric, (mean, std) in table.get(experiment, {}).items():
            figures[metric] = {"mean": mean, "std": std, "source": table["source"]}
    return figures


def run_table(results: dict[str, Any]) -> Table:
    """One run's metrics, the published figures, and the baselines scored on the same data.

    Args:
        results: the contents of a ``results.json``.
    """
    title = f"{results['experiment']} · preset {results['preset']} · {results['variant']} · seed {results['seed']}"
    table = Table("metric", title=title, title_justify="left")
    for column in ("ours", "published", *results["baselines"]):
        table.add_column(column, justify="right", no_wrap=True)
    for metric, (label, direction) in METRICS.items():
        if metric not in results["metrics"]:
            continue
        published = results["published"].get(metric)
        table.add_row(
            f"{label} {direction}",
            f"{results['metrics'][metric]:.4f}",
            f"{published['mean']:.3f} ± {published['std']:.3f}" if published else "–",
            *(_figure(baseline.get(metric)) for baseline in results["baselines"].values()),
        )
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def print_table(table: Table) -> None:
    """Print to standard output: as wide as the terminal, or as the table needs where there is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, console.measure(table).maximum))
    console.print(table)
