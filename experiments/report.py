"""Tables of results, ours beside the published figures.

python -m experiments.report table1                      Table 1 from the runs below runs/ and experiments/results/
python -m experiments.report table2 --format latex --output table2.tex
python -m experiments.report table2_splits               paired differences over random splits of the data
python -m experiments.report table1 --readme             renew the table in README.md
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.config import ConfigError
from experiments.formats import DASH, comma_separated, console_for, latex, markdown, text
from experiments.splits import splits_sheet
from experiments.tables import METRICS, PUBLISHED, Figure, collect, published_figures, published_table, table_sheet

__all__ = ["print_run", "published_figures"]
ROOT = Path(__file__).parent
README = ROOT.parent / "README.md"
FORMATS = {"text": text, "markdown": markdown, "csv": comma_separated, "latex": latex}


def run_table(results: dict[str, Any]) -> Table:
    """One run's metrics, the published figures, and the baselines scored on the same data.

    Args:
        results: the contents of a ``results.json``.
    """
    table = Table("metric")
    theirs = "published" if results.get("comparable", True) else "published, other data"
    for column in ("ours", theirs, *results["baselines"]):
        table.add_column(column, justify="right", no_wrap=True)
    for key, metric in METRICS.items():
        if key in results["metrics"]:
            published = results["published"].get(key)
            spread = results["metrics"].get(f"{key}_std") if f"{key}_std" not in METRICS else None
            table.add_row(
                f"{metric.title} {metric.arrow}".rstrip(),
                f"{results['metrics'][key]:.4f}" + ("" if spread is None else f" ± {spread:.4f}"),
                str(Figure(published["mean"], published["std"])) if published else DASH,
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


def write_into_readme(name: str, content: str) -> None:
    """Replace what README.md holds between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ConfigError: README.md is not there, or has no such marks.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before = README.read_text() if README.exists() else ""
    if before.count(start) != 1 or before.count(end) != 1:
        raise ConfigError(f"{README} needs the lines '{start.strip()}' and '{end}' where the table belongs, once each")
    head, tail = before.split(start)[0], before.split(end)[1]
    _write(README, f"{head}{start}{content}{end}{tail}")


def _write(path: Path, content: str) -> None:
    from callbacks.files import whole_file

    try:
        with whole_file(path) as file:
            file.write(content.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another --output") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in PUBLISHED.glob("*.yaml"))
    parser.add_argument("table", metavar="TABLE", help=f"one of {', '.join(names)}")
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        type=Path,
        help="where finished runs lie (default: runs and experiments/results; with --readme the latter alone)",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--output", type=Path, metavar="FILE", help="write to a file instead of standard output")
    target.add_argument("--readme", action="store_true", help="write Markdown between the table's marks in README.md")
    parser.add_argument("--all", action="store_true", help="append the other variants of the table's methods")
    parser.add_argument("--bootstrap", action="store_true", help="show the AUROC's standard deviation over scored rows")
    parser.add_argument("--reference", metavar="ROW", help="over splits: compare with this row, 'gpvae preset=plus'")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print or write a table.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0, or 2 with one line on standard error.
    """
    arguments = _parser().parse_intermixed_args(argv)
    folders = arguments.folders or [*([] if arguments.readme else [Path("runs")]), ROOT / "results"]
    try:
        if "splits" in published_table(arguments.table):
            if arguments.all:
                raise ConfigError(f"--all: {arguments.table} has no rows beside those of its own; leave it out")
            sheet = splits_sheet(arguments.table, collect(folders), arguments.reference, arguments.bootstrap)
        else:
            if arguments.reference:
                raise ConfigError(
                    f"--reference: {arguments.table} compares no rows, tables over splits do; leave it out"
                )
            sheet = table_sheet(arguments.table, collect(folders), arguments.all, arguments.bootstrap)
        if arguments.readme:
            write_into_readme(arguments.table, markdown(sheet))
        elif arguments.output:
            _write(arguments.output, FORMATS[arguments.format](sheet))
        elif arguments.format == "text":
            print(text(sheet, terminal=sys.stdout.isatty()), end="")
        else:
            print(FORMATS[arguments.format](sheet), end="")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
