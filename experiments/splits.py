"""One score over random splits of the data: which differences between methods are more than the choice of the split."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from experiments.config import ConfigError, nearest
from experiments.formats import Cell, Column, Sheet
from experiments.grid import cells, variant_name
from experiments.metrics import METRICS, Metric
from experiments.runs import Figure, Runs, paired_difference, run_names, scores
from experiments.table_notes import missing
from experiments.tables import BOOTSTRAP, bootstrap_cell, figure_cell, listed_rows, published_table

NOTE = (
    "difference: to {reference} on the same splits, mean ± standard deviation. 95 % interval: of its mean, by "
    "Student's t; the splits share patients, which makes it too narrow rather than too wide. within split noise: the "
    "interval holds 0, so the order of the two methods is not settled. SD over rows: of the difference over bootstrap "
    "draws of a split's scored rows, the same for both methods, averaged over the splits whose runs hold draws."
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
    variants = {(cell.experiment, variant_name(cell.values)) for cell in planned} | runs.keys()
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}  # row, split, seed
    titles: dict[str, str] = {}
    for split in sorted({cell.values[over] for cell in planned}):
        for row in listed_rows(table, **{over: split}):
            if row.key(dataset) in variants:
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
            line += [*NO_DIFFERENCE, NO_DRAWS, Cell("reference")]
        elif len(shared) < 2:
            line += [*NO_DIFFERENCE, NO_DRAWS, Cell("needs two splits")]
        else:
            pairs = [(found[row][split], found[reference][split]) for split in shared]
            *numbers, reading = _difference_cells(*([each[split] for split in shared] for each in (own, base)), metric)
            line += [*numbers, _rows_cell(pairs, key), reading]
        lines.append([Cell(title), *(replace(cell, runs=run_names(behind)) for cell in line)])
    headings = [
        Column("method"),
        Column("splits"),
        Column(metric.title, metric.arrow, (metric.title, f"{metric.title} SD")),
        *([BOOTSTRAP] if bootstrap else []),
        Column("difference", fields=("difference", "difference SD")),
        Column("95 % interval", fields=("interval from", "interval to")),
        Column("positive", fields=("positive", "pairs")),
        Column("SD over rows"),
        Column("reading"),
    ]
    notes = [NOTE.format(reference=titles[reference])]
    return Sheet(name, table["caption"], headings, lines, notes, missing(table, runs, over))


NO_DIFFERENCE = [Cell(numbers=(None, None))] * 3
NO_DRAWS = Cell(numbers=(None,))


def deviation_over_rows(
    results: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], metric: str
) -> float | None:
    """Standard deviation of the difference of two methods over bootstrap draws of the rows that both are scored on.

    Args:
        results: runs of one method, of other seeds on one split of the data.
        reference: runs of the other on the same split.
        metric: such as "test/auroc".

    Returns:
        Of the draws' difference of the means over the runs; None where one of them holds no draws, or those of other
        data.
    """
    both = [*results, *reference]
    draws = [run.get("bootstrap", {}).get(metric, []) for run in both]
    if len({len(each) for each in draws}) != 1 or any(
        run.get("data_sha256") != both[0].get("data_sha256") for run in both
    ):
        return None
    # A draw of one class only has no score, whatever the method: None in all of them.
    means = [
        [None if None in each else statistics.fmean(each) for each in zip(*its, strict=True)]
        for its in (draws[: len(results)], draws[len(results) :])
    ]
    differences = [one - other for one, other in zip(*means, strict=True) if None not in (one, other)]
    return statistics.pstdev(differences) if differences else None


def _rows_cell(pairs: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]], metric: str) -> Cell:
    found = [deviation_over_rows(*pair, metric) for pair in pairs]
    known = [each for each in found if each is not None]
    return Cell(f"{statistics.fmean(known):.3f}", numbers=(statistics.fmean(known),)) if known else NO_DRAWS


def _difference_cells(values: list[float], reference: list[float], metric: Metric) -> list[Cell]:
    difference = paired_difference(values, reference)
    return [
        Cell(f"{difference.mean:+.3f} ± {difference.std:.3f}", numbers=(difference.mean, difference.std)),
        Cell(f"{difference.low:+.3f} to {difference.high:+.3f}", numbers=(difference.low, difference.high)),
        Cell(f"{difference.positive} of {difference.pairs}", numbers=(difference.positive, difference.pairs)),
        Cell(difference.reading(metric)),
    ]
