"""What stands below a table of results: legend, seeds, noise, warnings, and the runs that are missing."""

import itertools
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from experiments.formats import Missing
from experiments.grid import cells, spans, variant_name
from experiments.runs import Runs, scores

if TYPE_CHECKING:
    from experiments.tables import Row


def legend(table: dict[str, Any]) -> str:
    """What ±, bold and the published figures are."""
    by_source: dict[str, list[str]] = defaultdict(list)
    for experiment, source in table.get("sources", {}).items():
        by_source[source].append(experiment)
    others = "".join(f"; {', '.join(_by_method(table, dict.fromkeys(of, '')))}: {its}" for its, of in by_source.items())
    return (
        f"± standard deviation over {table.get('spread', 'seeds')}; bold: best of ours, and what a paired t test over "
        "the seeds that both have does not tell from it (5 %; with fewer than three of them, what prints alike); "
        f"published: {table['source']}{others}."
    )


def seeds(table: dict[str, Any], rows: "list[Row]", runs: Runs) -> list[str]:
    """At most one line: of how many seeds the figures are, in a table without a column that says so."""
    if any(column.get("show") == "seeds" for column in table["columns"]):
        return []
    datasets = dict.fromkeys(column["dataset"] for column in table["columns"])
    counts = {f"{row.title} on {dataset}": len(row.shown(dataset, runs)) for dataset in datasets for row in rows}
    counts = {label: count for label, count in counts.items() if count}
    if not counts:
        return []
    usual = statistics.mode(counts.values())
    others = [f"{label} {count}" for label, count in counts.items() if count != usual]
    return [f"Seeds of each figure: {usual}{'; but ' if others else ''}{', '.join(others)}."]


def noise(table: dict[str, Any], rows: "list[Row]", runs: Runs) -> list[str]:
    """At most one line for each data set: how much of the published order is within the noise of the scored rows."""
    lines = []
    for dataset in dict.fromkeys(column["dataset"] for column in table["columns"]):
        deviations = [value for row in rows for value in scores(row.runs(dataset, runs), "test/auroc_std")]
        experiments = dict.fromkeys(f"{row.method}_{dataset}" for row in rows)
        found = [table["figures"].get(each, {}) for each in experiments]
        published = sorted(each["test/auroc"][0] for each in found if "test/auroc" in each)
        gaps = [high - low for low, high in itertools.pairwise(published)]
        within = sum(gap < statistics.fmean(deviations) for gap in gaps) if deviations else 0
        if within:
            lines.append(
                f"Drawing the scored rows of {dataset} anew moves an AUROC by {statistics.fmean(deviations):.3f} "
                f"(standard deviation, bootstrap): {within} of the {len(gaps)} gaps between neighbours in the "
                "published order are smaller, which one split does not settle."
            )
    return lines


def warnings(rows: "list[Row]", datasets: list[str], runs: Runs) -> list[str]:
    """At most one line: what was wrong with which run."""
    told = [
        f"{row.title} on {dataset}, seed {results['seed']}: {warning.partition(':')[0]}"
        for row in rows
        for dataset in datasets
        for results in row.shown(dataset, runs)
        for warning in results.get("warnings", [])
    ]
    return [f"Warnings: {'; '.join(told)}."] if told else []


def missing(table: dict[str, Any], runs: Runs, over: str = "seed") -> Missing | None:
    """The cells of a table's sweep without results, those that differ in the key `over` told together."""
    planned = cells(table["sweep"])
    absent = [
        cell
        for cell in planned
        if not any(
            results["seed"] == cell.seed for results in runs.get((cell.experiment, variant_name(cell.values)), [])
        )
    ]
    numbers: dict[tuple[str, ...], list[int]] = {}
    for cell in absent:
        label = (cell.experiment, *(each for each in cell.overrides if not each.startswith(f"{over}=")))
        numbers.setdefault(label, []).append(cell.values.get(over, cell.seed))
    word = over.split(".")[-1]
    alike: dict[tuple[tuple[str, ...], str], dict[str, str]] = {}  # overrides and numbers; experiment, overrides
    for (experiment, *overrides), its in numbers.items():
        alike.setdefault((tuple(overrides), _spans(its)), {})[experiment] = "".join(f" {each}" for each in overrides)
    listed = [f"{label} ({word} {span})" for (_, span), labels in alike.items() for label in _by_method(table, labels)]
    sweep, commands = f"python -m experiments.sweep {table['sweep']} --local", [str(cell) for cell in absent]
    return (
        Missing(len(planned), sweep, listed, [f"python -m experiments.run {each}" for each in commands])
        if absent
        else None
    )


def _by_method(table: dict[str, Any], labels: dict[str, str]) -> list[str]:
    """Experiments, {name: what follows the method's name}, with the data sets of one method told together."""
    methods = sorted({row["method"] for row in table["rows"]}, key=len, reverse=True)
    grouped: dict[str, list[str]] = {}
    for experiment, suffix in labels.items():
        method = next((each for each in methods if experiment.startswith(f"{each}_")), "")
        grouped.setdefault(f"{method}{suffix}", []).append(experiment.removeprefix(f"{method}_"))
    return [f"{label} on {', '.join(datasets)}" for label, datasets in grouped.items()]


def _spans(numbers: list[int]) -> str:
    """Numbers in order, neighbours in one: "0 to 4, 7"."""
    return ", ".join(" to ".join(map(str, span)) for span in spans(numbers))
