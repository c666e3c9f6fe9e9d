"""Tables of results, ours beside the published figures: ``python -m experiments.report table1``."""

import argparse
import json
import shlex
import statistics
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.config import ConfigError, nearest

ROOT = Path(__file__).parent
# Metrics in the order in which the tables print them, with their direction.
METRICS = {
    "test/nll": ("NLL", "↓"),
    "test/mse": ("MSE", "↓"),
    "test/mae": ("MAE", "↓"),
    "test/auroc": ("AUROC", "↑"),
}


@cache
def published_tables() -> dict[str, dict[str, Any]]:
    """Each published table by its name: its source, and {experiment: {metric: [mean, std]}}."""
    from omegaconf import OmegaConf

    paths = sorted((ROOT / "published").glob("*.yaml"))
    return {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in paths}


def published_figures(experiment: str) -> dict[str, dict[str, Any]]:
    """The published figures of an experiment: {metric: {"mean", "std", "source"}}; empty where there are none."""
    figures: dict[str, dict[str, Any]] = {}
    for table in published_tables().values():
        for metric, (mean, std) in table.get(experiment, {}).items():
            figures[metric] = {"mean": mean, "std": std, "source": table["source"]}
    return figures


def run_table(results: dict[str, Any]) -> Table:
    """One run's metrics, the published figures, and the baselines scored on the same data.

    Args:
        results: the contents of a ``results.json``.
    """
    table = Table("metric")
    for column in ("ours", "published", *results["baselines"]):
        table.add_column(column, justify="right", no_wrap=True)
    for metric, (label, direction) in METRICS.items():
        if metric in results["metrics"]:
            table.add_row(
                f"{label} {direction}",
                f"{results['metrics'][metric]:.4f}",
                _published(results["published"].get(metric)),
                *(_figure(baseline.get(metric)) for baseline in results["baselines"].values()),
            )
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _published(figure: dict[str, Any] | None) -> str:
    return "–" if figure is None else f"{figure['mean']:.3f} ± {figure['std']:.3f}"


def print_run(results: dict[str, Any]) -> None:
    """Print a run's table to standard output: as wide as the terminal, or as it needs where there is none."""
    table = run_table(results)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, console.measure(table).maximum))
    name, preset, variant, seed = (results[key] for key in ("experiment", "preset", "variant", "seed"))
    console.print(f"{name} · preset {preset} · {variant} · seed {seed}", style="bold", highlight=False)
    console.print(table)
    for warning in results["warnings"]:
        console.print(f"warning: {warning}", highlight=False)


def collect(folders: list[Path]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Finished runs below some folders, {(experiment, variant): results of each seed}; the first folder wins."""
    runs: dict[tuple[str, str, int], dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            try:
                results = json.loads(path.read_text())
            except ValueError as error:
                raise ConfigError(f"{path} is not JSON ({error}): remove it, and run its experiment again") from error
            if isinstance(results, dict) and {"experiment", "variant", "seed", "metrics"} <= results.keys():
                runs.setdefault((results["experiment"], results["variant"], results["seed"]), results)
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for (experiment, variant, _), results in sorted(runs.items()):
        grouped[experiment, variant].append(results)
    return grouped


def markdown_table(name: str, folders: list[Path]) -> str:
    """A published table in Markdown, a row for each experiment and variant, ours beside the published figures.

    Args:
        name: of the table, such as "table1".
        folders: where finished runs lie.

    Raises:
        ConfigError: there is no such table.
    """
    if name not in published_tables():
        raise ConfigError(f"table '{name}' does not exist.{nearest(name, published_tables())}")
    table = published_tables()[name]
    runs = collect(folders)
    lines = ["| experiment | variant | seeds | metric | ours | published |", "|---|---|---:|---|---:|---:|"]
    for experiment in (key for key in table if key != "source"):
        variants = [variant for its_experiment, variant in runs if its_experiment == experiment]
        for variant in sorted(variants, key=lambda each: (each != "default", each)) or [None]:
            seeds = runs.get((experiment, variant), [])
            present = set(table[experiment]).union(*(results["metrics"] for results in seeds))
            for metric in (metric for metric in METRICS if metric in present):
                published = published_figures(experiment).get(metric)
                ours = _mean_and_std([results["metrics"][metric] for results in seeds if metric in results["metrics"]])
                label = _variant_label(seeds[0]) if seeds else "–"
                cells = (experiment, label, str(len(seeds)), " ".join(METRICS[metric]), ours, _published(published))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_and_std(values: list[float]) -> str:
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def _variant_label(results: dict[str, Any]) -> str:
    """The overrides that make the variant, as its command spells them."""
    overrides = shlex.split(results["command"])[4:]
    told = [each for each in overrides if not each.startswith(("seed=", "logger=", "trainer.enable_progress_bar="))]
    return f"`{' '.join(told)}`" if told else "default"


def main(argv: list[str] | None = None) -> int:
    """Print a table; returns the exit status, 2 with one line on standard error where the table is not known."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=main.__doc__)
    parser.add_argument(
        "table", help="a published table: " + ", ".join(sorted(p.stem for p in ROOT.glob("published/*.yaml")))
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs"), ROOT / "results"], help="finished runs")
    arguments = parser.parse_args(argv)
    try:
        print(markdown_table(arguments.table, arguments.folders))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
