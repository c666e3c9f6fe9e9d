"""What a table of results holds: its description, its rows and columns, and ours beside the published figures.

A table is described in ``published/<name>.yaml``: ``columns`` (a metric on a data set, and whether ``ours``,
``published`` or ``both`` are shown; or the number of ``seeds``), ``rows`` (a method, and the overrides that make its
variant), the published ``figures`` and their ``source`` (``sources`` holds those of experiments with another), the
``sweep`` that makes the runs, and ``overrides`` that all of them share, or all on a data set (``dataset_overrides``). A
row shows the runs of its own variant and no others; those on other data than the published stand in, marked, where
there are no comparable ones, and count as any other in a table with ``substitutes``. With ``spread``, which says of
what, the standard deviations are those within runs and not over seeds; a ``transposed`` table is printed with its rows
as columns.
"""

import statistics
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from experiments.config import ConfigError, nearest
from experiments.formats import SUBSTITUTE, Cell, Column, Sheet
from experiments.grid import cells, variant_name
from experiments.metrics import METRICS, Metric
from experiments.runs import Figure, Runs, by_run, paired_difference, run_names, scores, variant_label
from experiments.table_notes import legend, missing, noise, seeds, warnings

PUBLISHED = Path(__file__).parent / "published"


@cache
def published_tables() -> dict[str, dict[str, Any]]:
    """The description of each table by its name; one that extends another holds all that it does not say itself."""
    from omegaconf import OmegaConf

    own = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted(PUBLISHED.glob("*.yaml"))}
    return {name: own.get(table.get("extends"), {}) | table for name, table in own.items()}


def published_table(name: str) -> dict[str, Any]:
    """The description of a table.

    Raises:
        ConfigError: there is no such table.
    """
    if name not in published_tables():
        raise ConfigError(f"table '{name}' does not exist.{nearest(name, published_tables())}")
    return published_tables()[name]


def published_figures(experiment: str) -> dict[str, dict[str, Any]]:
    """The published figures of an experiment: {metric: {"mean", "std", "source"}}; empty where there are none."""
    figures: dict[str, dict[str, Any]] = {}
    for table in published_tables().values():
        source = table.get("sources", {}).get(experiment, table["source"])
        for metric, figure in table["figures"].get(experiment, {}).items():
            figures[metric] = {"mean": figure[0], "std": figure[1] if len(figure) > 1 else None, "source": source}
    return figures


def figure_cell(figure: Figure | None) -> Cell:
    """A cell of two numbers, or a dash."""
    return Cell(numbers=(None, None)) if figure is None else Cell(str(figure), numbers=(figure.mean, figure.std))


def bootstrap_cell(results: list[dict[str, Any]]) -> Cell:
    """The standard deviation of the AUROC over draws of the scored rows within a run, averaged over runs."""
    figure = Figure.of(scores(results, "test/auroc_std"))
    return Cell(numbers=(None,)) if figure is None else Cell(f"{figure.mean:.3f}", numbers=(figure.mean,))


BOOTSTRAP = Column(METRICS["test/auroc_std"].title)


@dataclass(frozen=True)
class Row:
    """The runs of one variant of a method.

    It competes for the best figure if the table names it (`listed`) and it is not what others are measured by
    (`reference`).
    """

    title: str
    method: str
    overrides: dict[str, Any]
    variant: str
    listed: bool = True
    reference: bool = False
    substitutes: bool = False  # whether runs on other data than the published count as any other
    variants: dict[str, str] = field(default_factory=dict)  # on the data sets on which it is another one

    @property
    def name(self) -> str:
        """Method and overrides."""
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.overrides.items())])

    def key(self, dataset: str) -> tuple[str, str]:
        """Experiment and variant on a data set."""
        return f"{self.method}_{dataset}", self.variants.get(dataset, self.variant)

    def runs(self, dataset: str, runs: Runs) -> list[dict[str, Any]]:
        """Its results on a data set, one for each seed, without those on a substitute for it."""
        found = runs.get(self.key(dataset), [])
        return [each for each in found if self.substitutes or each.get("comparable", True)]

    def shown(self, dataset: str, runs: Runs) -> list[dict[str, Any]]:
        """Its results on a data set, or where it has none those on a substitute for it."""
        return self.runs(dataset, runs) or replace(self, substitutes=True).runs(dataset, runs)


def listed_rows(table: dict[str, Any], **further: Any) -> list[Row]:
    """The rows of a table's description; `further` overrides are part of the variants."""
    shared = table.get("overrides", {}) | further
    return [
        Row(
            each["title"],
            each["method"],
            own := each.get("overrides", {}),
            variant_name(own | shared),
            reference=each.get("reference", False),
            substitutes=table.get("substitutes", False),
            variants={
                dataset: variant_name(own | shared | its) for dataset, its in table.get("dataset_overrides", {}).items()
            },
        )
        for each in table["rows"]
    ]


def _other_rows(table: dict[str, Any], listed: list[Row], runs: Runs) -> list[Row]:
    """A row for each further variant of the table's methods on its data sets."""
    titles = {row.method: row.title for row in reversed(listed)}
    known = {row.key(column["dataset"]) for row in listed for column in table["columns"]}
    others: dict[tuple[str, str], Row] = {}
    for row in listed:
        for dataset in {column["dataset"] for column in table["columns"]}:
            for experiment, variant in runs:
                if experiment == f"{row.method}_{dataset}" and (experiment, variant) not in known:
                    title = f"{titles[row.method]} {variant_label(runs[experiment, variant][0])}"
                    others[row.method, variant] = Row(title, row.method, {}, variant, listed=False)
    order = [row.method for row in listed]
    return sorted(others.values(), key=lambda row: (order.index(row.method), row.title))


def table_sheet(name: str, runs: Runs, every: bool = False, bootstrap: bool = False) -> Sheet:
    """A published table, a row for each method and preset, ours beside the published figures.

    A row for which there are no runs, nor any in the table's sweep, nor anything published, is left out.

    Args:
        name: of the table, such as "table1".
        runs: from `collect`.
        every: append a row for each other variant of the table's methods.
        bootstrap: show beside our AUROC its standard deviation over draws of the scored rows.

    Raises:
        ConfigError: there is no such table.
    """
    table = published_table(name)
    datasets = {column["dataset"] for column in table["columns"]}
    known = runs.keys() | {(cell.experiment, variant_name(cell.values)) for cell in cells(table["sweep"])}
    known |= {(experiment, variant_name({})) for experiment in table["figures"]}
    rows = [row for row in listed_rows(table) if any(row.key(each) in known for each in datasets)]
    if every:
        rows += _other_rows(table, rows, runs)
    headings, columns = [Column("method")], [[Cell(row.title) for row in rows]]
    for column in table["columns"]:
        heading, column_cells = _column(column, rows, table["figures"], runs, "spread" in table)
        headings.append(heading)
        columns.append(column_cells)
        if bootstrap and column.get("metric") == "test/auroc" and column.get("show") != "published":
            headings.append(BOOTSTRAP)
            found = [row.runs(column["dataset"], runs) for row in rows]
            columns.append([replace(bootstrap_cell(its), runs=run_names(its)) for its in found])
    lines = [list(line) for line in zip(*columns, strict=True)]
    notes = [legend(table), *seeds(table, rows, runs), *noise(table, rows, runs)]
    notes += warnings(rows, sorted(datasets), runs)
    if any(cell.substitute for line in lines for cell in line):
        notes.insert(1, f"{SUBSTITUTE} on other data than the published, so compared with nothing.")
    if table.get("transposed"):
        headings, lines = _transposed(headings, lines, rows)
    return Sheet(name, table["caption"], headings, lines, notes, missing(table, runs))


def _transposed(
    headings: list[Column], lines: list[list[Cell]], rows: list[Row]
) -> tuple[list[Column], list[list[Cell]]]:
    """A table's headings and cells with a line for each of its columns and a column for each of its rows."""
    turned = [[Cell(heading.heading), *cells] for heading, *cells in zip(headings, *lines, strict=True)]
    # In CSV a column has the numbers of its longest cell: ours, and the published ones where they stand beside it.
    longest = [max((cell.numbers for cell in cells), key=len) for cells in zip(*turned[1:], strict=True)]
    fields = [
        tuple(f"{beside}{row.title}{of}" for beside in ("", "published ") for of in ("", " SD"))[: len(numbers)]
        for row, numbers in zip(rows, longest[1:], strict=True)
    ]
    for line in turned[1:]:
        line[1:] = [
            replace(cell, numbers=cell.numbers + (None,) * (len(names) - len(cell.numbers)))
            for cell, names in zip(line[1:], fields, strict=True)
        ]
    return [
        Column("data set"),
        *(Column(row.title, fields=each) for row, each in zip(rows, fields, strict=True)),
    ], turned[1:]


def _column(
    column: dict[str, Any], rows: list[Row], published: dict[str, Any], runs: Runs, within: bool
) -> tuple[Column, list[Cell]]:
    """A column's heading, and its cells from top to bottom; `within`: standard deviations are those within runs."""
    show, dataset = column.get("show", "ours"), column["dataset"]
    own = [row.runs(dataset, runs) for row in rows]
    shown = [row.shown(dataset, runs) for row in rows]
    substitute = [bool(its and not comparable) for its, comparable in zip(shown, own, strict=True)]
    if show == "seeds":
        return Column(column["title"]), [
            Cell(str(len(its)), numbers=(len(its),), substitute=stands_in, runs=run_names(its))
            for its, stands_in in zip(shown, substitute, strict=True)
        ]
    key, metric = column["metric"], METRICS[column["metric"]]
    title = column.get("title", metric.title)
    # What is published is the method as it is, not a variant of ours.
    figures = [
        None if row.overrides or not row.listed else published.get(f"{row.method}_{dataset}", {}).get(key)
        for row in rows
    ]
    theirs = [figure and Figure(*figure) for figure in figures]
    differences = [
        their and their.deviations(Figure.of(scores(its, key))) for their, its in zip(theirs, own, strict=True)
    ]
    fields = (title, f"{title} SD")
    if show == "published":
        return Column(title, metric.arrow, fields), [
            replace(figure_cell(their), difference=difference)
            for their, difference in zip(theirs, differences, strict=True)
        ]
    competing = [row.listed and not row.reference for row in rows]
    best = _best(metric, [_by_seed(its, key) if competes else {} for its, competes in zip(own, competing, strict=True)])
    its_cells = []
    for its, stands_in, their, difference, is_best in zip(shown, substitute, theirs, differences, best, strict=True):
        figure = Figure.of(scores(its, key))
        if figure and within:
            spread = Figure.of(scores(its, f"{key}_std"))
            figure = Figure(figure.mean, spread.mean if spread else None)
        cell = replace(figure_cell(figure), best=is_best)
        if figure:
            cell = replace(cell, substitute=stands_in, runs=run_names(its))
        if show == "both":
            numbers = cell.numbers + figure_cell(their).numbers
            cell = replace(cell, beside=str(their) if their else "", numbers=numbers, difference=difference)
        its_cells.append(cell)
    if show == "both":
        fields += (f"published {title}", f"published {title} SD")
    return Column(title, metric.arrow, fields), its_cells


def _by_seed(results: list[dict[str, Any]], metric: str) -> dict[int, float]:
    return {results[place]["seed"]: value for place, value in by_run(results, metric).items()}


def _best(metric: Metric, rows: list[dict[int, float]]) -> list[bool]:
    """Which rows are set in bold: the best mean, and what the seeds do not tell from it.

    Args:
        metric: what the values are.
        rows: of each row {seed: value}; empty where a row does not compete.
    """
    means = {position: statistics.fmean(values.values()) for position, values in enumerate(rows) if values}
    if metric.best is None or len(means) < 2:
        return [False] * len(rows)
    first = min(means, key=lambda position: metric.loss(means[position]))
    return [position in means and _tied(metric, values, rows[first]) for position, values in enumerate(rows)]


def _tied(metric: Metric, values: dict[int, float], best: dict[int, float]) -> bool:
    """Whether the losses of a row, {seed: value}, are not significantly above those of the best on the same seeds."""
    shared = sorted(values.keys() & best.keys())
    if len(shared) > 2:  # two differences leave one degree of freedom, by which nearly everything is tied
        difference = paired_difference(*([metric.loss(each[seed]) for seed in shared] for each in (values, best)))
        if difference.std > 0:
            return difference.low <= 0
    # Without randomness, or the seeds to see it, what reads alike is bold alike.
    return f"{statistics.fmean(values.values()):.3f}" == f"{statistics.fmean(best.values()):.3f}"
