"""Tables of results, ours beside the published figures.

python -m experiments.report table1                      Table 1 from the runs below runs/ and experiments/results/
python -m experiments.report all --html results.html     every table, with figures and runs, in one page
python -m experiments.report table2 --format latex --output table2.tex
python -m experiments.report table2_splits               paired differences over random splits of the data
python -m experiments.report table1 --readme             renew the table in README.md (all: those that it has)

CSV and HTML also say how many published standard deviations ours differ from the published figure; where a line has to
fit a page (text, Markdown, LaTeX) a column for it is added with --differences.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.config import ConfigError, told_in_a_line
from experiments.formats import DASH, Sheet, comma_separated, console_for, latex, markdown, text, with_differences
from experiments.metrics import METRICS
from experiments.runs import Figure, Runs, collect
from experiments.splits import splits_sheet
from experiments.sweep import tell
from experiments.tables import PUBLISHED, published_figures, published_table, published_tables, table_sheet

__all__ = ["print_run", "published_figures"]
ROOT = Path(__file__).parent
README = ROOT.parent / "README.md"
FORMATS = {"text": text, "markdown": markdown, "csv": comma_separated, "latex": latex}  # of one table; html of all


def run_table(results: dict[str, Any]) -> Table:
    """One run's metrics, the published figures, and the baselines scored on the same data.

    Args:
        results: the contents of a ``results.json``.
    """
    table = Table("metric")
    beside = results.get("comparable", True)  # on other data than the published there is nothing to compare with
    for column in ("ours", *(["published"] if beside else []), *results["baselines"]):
        table.add_column(column, justify="right", no_wrap=True)
    for key, metric in METRICS.items():
        if key in results["metrics"]:
            published = results["published"].get(key)
            spread = results["metrics"].get(f"{key}_std") if f"{key}_std" not in METRICS else None
            table.add_row(
                f"{metric.title} {metric.arrow}".rstrip(),
                f"{results['metrics'][key]:.4f}" + ("" if spread is None else f" ± {spread:.4f}"),
                *([str(Figure(published["mean"], published["std"])) if published else DASH] if beside else []),
                *(f"{each[key]:.4f}" if key in each else DASH for each in results["baselines"].values()),
            )
    return table


def print_run(results: dict[str, Any]) -> None:
    """Print a run's table to standard output: as wide as the terminal, or as it needs where there is none."""
    table = run_table(results)
    console = console_for(table)
    name, preset, variant, seed = (results[key] for key in ("experiment", "preset", "variant", "seed"))
    console.print(f"{name} · preset {preset} · {variant} · seed {seed}", style="bold", highlight=False)
    console.print(table)
    for warning in results["warnings"]:
        console.print(f"warning: {warning}", highlight=False)


def write_into_readme(sheets: list[Sheet], every: bool) -> None:
    """Replace what README.md holds between ``<!-- name -->`` and ``<!-- end of name -->`` for each table.

    Args:
        sheets: the tables.
        every: whether README.md has to have the marks of every table; else the others are passed over.

    Raises:
        ConfigError: README.md is not there, or lacks the marks of a table, or has them twice.
    """
    content = README.read_text() if README.exists() else ""
    for sheet in sheets:
        start, end = f"<!-- {sheet.name} -->\n", f"<!-- end of {sheet.name} -->"
        if not every and start not in content:
            continue
        if content.count(start) != 1 or content.count(end) != 1:
            raise ConfigError(
                f"{README} needs the lines '{start.strip()}' and '{end}' where the table belongs, once each"
            )
        head, tail = content.split(start)[0], content.split(end)[1]
        content = f"{head}{start}{markdown(sheet)}{end}{tail}"
    tell(content, README)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in PUBLISHED.glob("*.yaml"))
    parser.add_argument("table", metavar="TABLE", help=f"all, or one of {', '.join(names)}")
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        type=Path,
        help="where finished runs lie (default: runs and experiments/results; with --readme the latter alone)",
    )
    parser.add_argument("--format", choices=[*FORMATS, "html"], default="text", help="default: text")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--output", type=Path, metavar="FILE", help="write to a file instead of standard output")
    target.add_argument("--html", type=Path, metavar="PAGE", help="short for --format html --output PAGE")
    target.add_argument("--readme", action="store_true", help="write Markdown between the table's marks in README.md")
    parser.add_argument("--all", action="store_true", help="append the other variants of the table's methods")
    parser.add_argument("--differences", action="store_true", help="add columns for them (CSV and HTML have them)")
    parser.add_argument("--bootstrap", action="store_true", help="show the AUROC's standard deviation over scored rows")
    parser.add_argument("--reference", metavar="ROW", help="over splits: compare with this row, 'gpvae preset=plus'")
    return parser


def _sheet(name: str, runs: Runs, arguments: argparse.Namespace) -> Sheet:
    if "splits" in published_table(name):
        return splits_sheet(name, runs, arguments.reference, arguments.bootstrap)
    return table_sheet(name, runs, arguments.all, arguments.bootstrap)


def _refuse_what_does_not_fit(table: str, arguments: argparse.Namespace) -> None:
    splits = table != "all" and "splits" in published_table(table)
    if arguments.all and splits:
        raise ConfigError(f"--all: {table} has no rows beside those of its own; leave it out")
    if arguments.reference and not splits:
        raise ConfigError(f"--reference: {table} compares no rows, tables over splits do; leave it out")


def _rendered(sheets: list[Sheet], runs: Runs, folders: list[Path], arguments: argparse.Namespace) -> str:
    target = arguments.html or arguments.output
    if arguments.html or arguments.format == "html":
        from experiments.html import page

        return page(sheets, runs, folders, target.parent if target else Path())
    if arguments.format == "csv":
        # A heading to tell tables of different columns apart; a single one stays readable for machines.
        headings = [f"{sheet.name}\n" for sheet in sheets] if len(sheets) > 1 else [""]
        pairs = zip(headings, sheets, strict=True)
        return "\n".join(heading + comma_separated(sheet) for heading, sheet in pairs)
    if arguments.differences:
        sheets = [with_differences(sheet) for sheet in sheets]
    if arguments.format == "text":
        terminal = target is None and sys.stdout.isatty()
        return "\n".join(text(sheet, terminal=terminal) for sheet in sheets)
    return "\n".join(FORMATS[arguments.format](sheet) for sheet in sheets)


@told_in_a_line
def main(argv: list[str] | None = None) -> int:
    """Print or write a table, or all of them.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0, or 2 with one line on standard error.
    """
    arguments = _parser().parse_intermixed_args(argv)
    folders = arguments.folders or [*([] if arguments.readme else [Path("runs")]), ROOT / "results"]
    _refuse_what_does_not_fit(arguments.table, arguments)
    names = list(published_tables()) if arguments.table == "all" else [arguments.table]
    runs = collect(folders)
    sheets = [_sheet(name, runs, arguments) for name in names]
    if arguments.readme:
        sheets = [with_differences(sheet) if arguments.differences else sheet for sheet in sheets]
        write_into_readme(sheets, every=arguments.table != "all")
        return 0
    content = _rendered(sheets, runs, folders, arguments)
    tell(content, arguments.html or arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
