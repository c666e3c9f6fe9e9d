"""What a table of results holds: its description, the runs that were found, and ours beside the published figures.

A table is described in ``published/<name>.yaml``: ``columns`` (a metric on a data set, and whether ``ours``,
``published`` or ``both`` are shown; or the number of ``seeds``), ``rows`` (a method, and the overrides that make its
variant), the published ``figures`` and their ``source`` (``sources`` holds those of experiments with another), the
``sweep`` that makes the runs, and ``overrides`` that all of them share, or all on a data set (``dataset_overrides``). A
row shows the runs of its own variant and no others; those on other data than the published stand in, marked, where
there are no comparable ones, and count as any other in a table with ``substitutes``. With ``spread``, which says of
what, the standard deviations are those within runs and not over seeds; a ``transposed`` table is printed with its rows
as columns.
"""

import itertools
import json
import math
import shlex
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.config import NOT_IDENTITY, ConfigError, nearest
from experiments.formats import SUBSTITUTE, Cell, Column, Missing, Sheet
from experiments.grid import cells, spans, variant_name

PUBLISHED = Path(__file__).parent / "published"
Runs = dict[tuple[str, str], list[dict[str, Any]]]


class Metric(NamedTuple):
    """A metric's title, and what is best: the least, the most, or what is nearest to a number; None: nothing is."""

    title: str
    best: Literal["min", "max"] | float | None

    @property
    def arrow(self) -> str:
        """The direction, for people."""
        return {"min": "↓", "max": "↑", None: ""}.get(self.best, f"≈ {self.best}")

    def loss(self, value: float) -> float:
        """The smaller, the better."""
        if isinstance(self.best, float):
            return abs(value - self.best)
        return -value if self.best == "max" else value


# In the order in which a run's table prints them.
METRICS = {
    "test/nll": Metric("NLL", "min"),
    "test/nll_mixture": Metric("mixture NLL", "min"),
    "test/mse": Metric("MSE", "min"),
    "test/mae": Metric("MAE", "min"),
    "test/rmse": Metric("RMSE", "min"),
    "test/mre": Metric("MRE", "min"),
    "test/crps": Metric("CRPS", "min"),
    "test/coverage_50": Metric("50 % coverage", 0.5),
    "test/coverage_90": Metric("90 % coverage", 0.9),
    "test/coverage_95": Metric("95 % coverage", 0.95),
    "test/width_50": Metric("50 % width", None),
    "test/width_90": Metric("90 % width", None),
    "test/width_95": Metric("95 % width", None),
    "test/auroc": Metric("AUROC", "max"),
    "test/auprc": Metric("AUPRC", "max"),
    "test/auroc_standardised": Metric("standardised AUROC", "max"),
    "test/auprc_standardised": Metric("standardised AUPRC", "max"),
    "test/auroc_std": Metric("bootstrap SD", None),
    "test/r2_catboost": Metric("R2, CatBoost", "max"),
    "test/f1_catboost": Metric("macro F1, CatBoost", "max"),
    "test/roc_auc_catboost": Metric("AUROC, CatBoost", "max"),
    "test/rmse_catboost": Metric("RMSE, CatBoost", "min"),
    "test/r2_mlp": Metric("R2, MLP", "max"),
    "test/f1_mlp": Metric("macro F1, MLP", "max"),
    "test/roc_auc_mlp": Metric("AUROC, MLP", "max"),
    "test/rmse_mlp": Metric("RMSE, MLP", "min"),
    "test/dcr": Metric("DCR, mean", None),
    "test/dcr_median": Metric("DCR, median", None),
    "test/closer_to_train": Metric("closer to train than to held-out rows", 0.5),
    "test/miou": Metric("mIoU", "max"),
    "test/miou_ignore": Metric("mIoU of annotated pixels", "max"),
    "test/pixel_accuracy": Metric("pixel accuracy", "max"),
    "test/bits_per_dim": Metric("bits per dimension", "min"),
    "val/nll": Metric("validation NLL", "min"),
    "val/mse": Metric("validation MSE", "min"),
    "val/mae": Metric("validation MAE", "min"),
    "val/r2_catboost": Metric("validation R2, CatBoost", "max"),
    "val/f1_catboost": Metric("validation macro F1, CatBoost", "max"),
    "val/r2_mlp": Metric("validation R2, MLP", "max"),
    "val/f1_mlp": Metric("validation macro F1, MLP", "max"),
    "quality/column_shapes": Metric("column shapes", "max"),
    "quality/pair_trends": Metric("pair trends", "max"),
    "quality/detection_logistic": Metric("detection, logistic", "max"),
    "quality/detection_trees": Metric("detection, trees", "max"),
    "quality/alpha_precision": Metric("alpha-precision", "max"),
    "quality/beta_recall": Metric("beta-recall", "max"),
    "quality/authenticity": Metric("authenticity", "max"),
}


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


def collect(folders: list[Path]) -> Runs:
    """Finished runs below some folders, {(experiment, variant): results of each seed}; the first folder wins.

    The results hold the path of their own file, too, as ``file``.

    Raises:
        ConfigError: a file is not JSON.
    """
    runs: dict[tuple[str, str, int], dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            if "wandb" in path.relative_to(folder).parts:  # files of W&B's own
                continue
            try:
                results = json.loads(path.read_text())
            except ValueError as error:
                raise ConfigError(f"{path} is not JSON ({error}): remove it, and run its experiment again") from error
            if isinstance(results, dict) and {"experiment", "variant", "seed", "metrics"} <= results.keys():
                results["file"] = str(path)
                runs.setdefault((results["experiment"], results["variant"], results["seed"]), results)
    grouped: Runs = defaultdict(list)
    for experiment, variant, seed in sorted(runs):
        grouped[experiment, variant].append(runs[experiment, variant, seed])
    return dict(grouped)


def scores(results: list[dict[str, Any]], metric: str) -> list[float]:
    """A metric of each run that has it, ``val/...`` of its last validation; older files lack some."""
    return list(_by_run(results, metric).values())


def _by_run(results: list[dict[str, Any]], metric: str) -> dict[int, float]:
    """A metric of each run that has it, by its place among the runs."""
    known = [each["metrics"] | each.get("validation", {}) for each in results]
    return {place: its[metric] for place, its in enumerate(known) if metric in its}


def run_names(results: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Experiment and variant of some runs, each pair once."""
    return tuple(dict.fromkeys((each["experiment"], each["variant"]) for each in results))


@dataclass(frozen=True)
class PairedDifference:
    """Differences of paired scores: mean, standard deviation, 95 % interval of the mean, how many are above 0."""

    mean: float
    std: float
    low: float
    high: float
    positive: int
    pairs: int

    def reading(self, metric: Metric) -> str:
        """In words: "better", "worse", or "within split noise" where the interval holds 0."""
        if self.low <= 0 <= self.high:
            return "within split noise"
        return "better" if metric.loss(self.mean) < metric.loss(0.0) else "worse"


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """Compare two methods over the same splits, by Student's t.

    Args:
        values: [split], at least two.
        reference: [split], on the same splits.

    Returns:
        Of values - reference; the interval is mean ± t(0.975; n - 1) · std / √n.

    Raises:
        ValueError: fewer than two splits, or not as many references as values.
    """
    from scipy.special import stdtrit

    if len(values) != len(reference) or len(values) < 2:
        raise ValueError(
            f"values of {len(values)} splits, reference of {len(reference)}: run both on the same splits, at least two"
        )
    differences = [value - base for value, base in zip(values, reference, strict=True)]
    mean, std = statistics.fmean(differences), statistics.stdev(differences)
    half = float(stdtrit(len(differences) - 1, 0.975)) * std / math.sqrt(len(differences))
    positive = sum(difference > 0 for difference in differences)
    return PairedDifference(mean, std, mean - half, mean + half, positive, len(differences))


@dataclass(frozen=True)
class Figure:
    """A mean and its standard deviation; None where there is one value only."""

    mean: float
    std: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.std:.3f}" if self.std is not None else "")

    def deviations(self, ours: "Figure | None") -> float | None:
        """Ours less this one, in its standard deviations; None where it has none above 0."""
        return (ours.mean - self.mean) / self.std if ours and self.std else None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure | None":
        """Of some values, with n - 1 in the denominator; None of none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


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


def variant_label(results: dict[str, Any]) -> str:
    """The overrides that make the variant, as its command spells them; its name where the command has none."""
    overrides = shlex.split(results.get("command", ""))[4:]
    told = [each for each in overrides if each.split("=")[0] not in NOT_IDENTITY]
    return " ".join(told) or results["variant"]


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
    notes = [_legend(table), *_seeds(table, rows, runs), *_noise(table, rows, runs)]
    notes += _warnings(rows, sorted(datasets), runs)
    if any(cell.substitute for line in lines for cell in line):
        notes.insert(1, f"{SUBSTITUTE} on other data than the published, so compared with nothing.")
    if table.get("transposed"):
        headings, lines = _transposed(headings, lines, rows)
    return Sheet(name, table["caption"], headings, lines, notes, missing(table, runs))


def _legend(table: dict[str, Any]) -> str:
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


def _seeds(table: dict[str, Any], rows: list[Row], runs: Runs) -> list[str]:
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


def _noise(table: dict[str, Any], rows: list[Row], runs: Runs) -> list[str]:
    """At most one line for each data set: how much of the published order is within the noise of the scored rows."""
    lines = []
    for dataset in dict.fromkeys(column["dataset"] for column in table["columns"]):
        noise = [value for row in rows for value in scores(row.runs(dataset, runs), "test/auroc_std")]
        experiments = dict.fromkeys(f"{row.method}_{dataset}" for row in rows)
        found = [table["figures"].get(each, {}) for each in experiments]
        published = sorted(each["test/auroc"][0] for each in found if "test/auroc" in each)
        gaps = [high - low for low, high in itertools.pairwise(published)]
        within = sum(gap < statistics.fmean(noise) for gap in gaps) if noise else 0
        if within:
            lines.append(
                f"Drawing the scored rows of {dataset} anew moves an AUROC by {statistics.fmean(noise):.3f} (standard "
                f"deviation, bootstrap): {within} of the {len(gaps)} gaps between neighbours in the published order "
                "are smaller, which one split does not settle."
            )
    return lines


def _warnings(rows: list[Row], datasets: list[str], runs: Runs) -> list[str]:
    """At most one line: what was wrong with which run."""
    told = [
        f"{row.title} on {dataset}, seed {results['seed']}: {warning.partition(':')[0]}"
        for row in rows
        for dataset in datasets
        for results in row.shown(dataset, runs)
        for warning in results.get("warnings", [])
    ]
    return [f"Warnings: {'; '.join(told)}."] if told else []


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
    return {results[place]["seed"]: value for place, value in _by_run(results, metric).items()}


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
