"""One score over random splits of the data: which differences between methods are more than the choice of the split."""

import statistics
from dataclasses import replace
from typing import Any

from experiments.config import ConfigError, nearest
from experiments.formats import Cell, Column, Sheet
from experiments.grid import cells
from experiments.tables import (
    BOOTSTRAP,
    METRICS,
    Figure,
    Metric,
    Runs,
    bootstrap_cell,
    figure_cell,
    listed_rows,
    missing,
    paired_difference,
    published_table,
    run_names,
    scores,
)

NOTE = (
    "difference: to {reference} on the same splits, mean ± standard deviation. 95 % interval: of its mean, by "
    "Student's t; the splits share patients, which makes it too narrow rather than too wide. within split noise: the "
    "interval holds 0, so the order of the two methods is not settled."
)


def splits_sheet(name: str, runs: Runs, reference: str | None = None, bootstrap: bool = False) -> Sheet:
    """A score over splits of the data, and its paired difference to that of one row.

    Args:
        name: of a table with ``splits``, such as "table2_splits".
        runs: from `collect`; several seeds on one split are averaged first.
        reference: the row that the others are compared with, "gpvae" or "gpvae preset=plus"; None: the table's own.
        bootstrap: show the AUROC's standard deviation over draws of the scored rows within a split, averaged.

    Raises:
        ConfigError: there is no such table or row.
    """
    table = published_table(name)
    dataset, key, over = (table["splits"][each] for each in ("dataset", "metric", "over"))
    metric, planned = METRICS[key], cells(table["sweep"])
    experiments = {cell.experiment for cell in planned}
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}  # row, split, seed
    titles: dict[str, str] = {}
    for split in sorted({cell.values[over] for cell in planned}):
        for row in listed_rows(table, **{over: split}):
            if f"{row.method}_{dataset}" in experiments:
                titles[row.name] = row.title
                found.setdefault(row.name, {})
                if scores(its_runs := row.runs(dataset, runs), key):
                    found[row.name][split] = its_runs
    reference = reference or table["splits"]["reference"]
    if reference not in found:
        raise ConfigError(f"row '{reference}' of {name} does not exist.{nearest(reference, found)}")
    means = {
        row: {split: statistics.fmean(scores(each, key)) for split, each in splits.items()}
        for row, splits in found.items()
    }
    lines = []
    for row, title in titles.items():
        own, base = means[row], means[reference]
        shared = [split for split in own if split in base]
        behind = [results for each in found[row].values() for results in each]
        line = [Cell(str(len(own)), numbers=(len(own),)), figure_cell(Figure.of(list(own.values())))]
        if bootstrap:
            line.append(bootstrap_cell(behind))
        if row == reference:
            line += [*NO_DIFFERENCE, Cell("reference")]
        elif len(shared) < 2:
            line += [*NO_DIFFERENCE, Cell("needs two splits")]
        else:
            line += _difference_cells([own[split] for split in shared], [base[split] for split in shared], metric)
        lines.append([Cell(title), *(replace(cell, runs=run_names(behind)) for cell in line)])
    headings = [
        Column("method"),
        Column("splits"),
        Column(metric.title, metric.arrow, (metric.title, f"{metric.title} SD")),
        *([BOOTSTRAP] if bootstrap else []),
        Column("difference", fields=("difference", "difference SD")),
        Column("95 % interval", fields=("interval from", "interval to")),
        Column("positive", fields=("positive", "pairs")),
        Column("reading"),
    ]
    notes = [NOTE.format(reference=titles[reference])]
    return Sheet(name, table["caption"], headings, lines, notes, missing(table, runs, over))


NO_DIFFERENCE = [Cell(numbers=(None, None))] * 3


def _difference_cells(values: list[float], reference: list[float], metric: Metric) -> list[Cell]:
    difference = paired_difference(values, reference)
    return [
        Cell(f"{difference.mean:+.3f} ± {difference.std:.3f}", numbers=(difference.mean, difference.std)),
        Cell(f"{difference.low:+.3f} to {difference.high:+.3f}", numbers=(difference.low, difference.high)),
        Cell(f"{difference.positive} of {difference.pairs}", numbers=(difference.positive, difference.pairs)),
        Cell(difference.reading(metric)),
    ]
