"""One table as text, Markdown, CSV or LaTeX."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

DASH = "–"
SUBSTITUTE = "†"
DIFFERENCE = "difference: ours less published, in published standard deviations where these are above 0."


@dataclass(frozen=True)
class Column:
    """A column: its title, what follows it where people read it, and the names of its columns in CSV."""

    title: str
    arrow: str = ""
    fields: tuple[str, ...] = ()  # the title alone where empty

    @property
    def heading(self) -> str:
        """Title and arrow."""
        return f"{self.title} {self.arrow}".rstrip()


@dataclass(frozen=True)
class Cell:
    """What a cell shows, ``beside`` it in parentheses, and its numbers in CSV; ``best`` is set in bold.

    ``difference`` is ours less the published figure, in published standard deviations; a ``substitute`` is on other
    data than the published; ``runs`` holds experiment and variant of the runs behind the cell.
    """

    text: str = DASH
    beside: str = ""
    numbers: tuple[float | int | str | None, ...] = ()  # the text alone where empty
    best: bool = False
    difference: float | None = None
    substitute: bool = False
    runs: tuple[tuple[str, str], ...] = ()

    @property
    def marked(self) -> str:
        """The text with the mark of a substitute."""
        return self.text + SUBSTITUTE * self.substitute

    def shown(self, bold: tuple[str, str] = ("", "")) -> str:
        """The whole cell, the best text between two marks."""
        text = f"{bold[0]}{self.marked}{bold[1]}" if self.best else self.marked
        return f"{text} ({self.beside})" if self.beside else text


@dataclass(frozen=True)
class Missing:
    """Runs of a table without results: how many were planned, the command for all of them, a line, one command each."""

    planned: int
    sweep: str
    listed: list[str]
    commands: list[str]

    @property
    def counted(self) -> str:
        """How many of how many."""
        return f"{len(self.commands)} of {self.planned} runs"


@dataclass(frozen=True)
class Sheet:
    """A table with its caption above and its notes below; the first column names the rows."""

    name: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    missing: Missing | None = None

    @property
    def below(self) -> list[str]:
        """The notes where cells hold parentheses and what is missing fits a line."""
        beside = any(cell.beside for row in self.rows for cell in row)
        notes = [f"{note} In parentheses: published figures." if beside else note for note in self.notes[:1]]
        its = self.missing
        told = [f"Missing: {its.counted} ({its.sweep}): {'; '.join(its.listed)}."] if its else []
        return [*notes, *self.notes[1:], *told]

    @property
    def compared(self) -> list[bool]:
        """Of each column whether it holds differences from published figures."""
        return [any(cell.difference is not None for cell in column) for column in zip(*self.rows, strict=True)]


def signed(difference: float | None) -> str:
    """A difference as people read it."""
    return DASH if difference is None else f"{difference:+.1f}"


def with_differences(sheet: Sheet) -> Sheet:
    """A table with a further column for the differences after each column that has some."""
    if not any(sheet.compared):
        return sheet

    def widened(line: list, more: Callable[[Any], Any]) -> list:
        pairs = zip(line, sheet.compared, strict=True)
        return [each for one, compared in pairs for each in ([one, more(one)] if compared else [one])]

    return replace(
        sheet,
        columns=widened(sheet.columns, lambda _: Column("difference")),
        rows=[widened(row, lambda cell: Cell(signed(cell.difference))) for row in sheet.rows],
        notes=[*sheet.notes, DIFFERENCE],
    )


def console_for(table: Table) -> Console:
    """Standard output, as wide as the terminal, or as the table needs where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=needed_width(table))


def needed_width(table: Table) -> int:
    """Columns of text that a table takes without being squeezed, at least 80."""
    return max(80, Console(width=10_000).measure(table).maximum)


def text(sheet: Sheet, terminal: bool = False) -> str:
    """Box-drawing text; on a terminal fitted to its width, the best of each column in bold."""
    table = Table()
    for position, column in enumerate(sheet.columns):
        table.add_column(column.heading, justify="right" if position else "left", no_wrap=not terminal)
    for row in sheet.rows:
        table.add_row(*(Text(cell.shown(), style="bold" if cell.best and terminal else "") for cell in row))
    console = Console(file=io.StringIO(), force_terminal=terminal, width=None if terminal else needed_width(table))
    console.print(sheet.caption, highlight=False, markup=False)
    console.print(table)
    for note in sheet.below:
        console.print(note, highlight=False, markup=False)
    return console.file.getvalue()


def markdown(sheet: Sheet) -> str:
    """A table of GitHub's Markdown."""

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    head = [line([column.heading for column in sheet.columns]), "|---" + "|---:" * (len(sheet.columns) - 1) + "|"]
    body = [line([cell.shown(("**", "**")) for cell in row]) for row in sheet.rows]
    return "\n\n".join([sheet.caption, "\n".join([*head, *body]), *sheet.below]) + "\n"


def comma_separated(sheet: Sheet) -> str:
    """CSV with every number in full and in a column of its own, without caption and notes.

    Differences from the published follow the published figures; where figures are on substitutes for the published
    data, a last column names theirs.
    """
    substitutes = any(cell.substitute for row in sheet.rows for cell in row)
    head: list[str] = []
    for column, compared in zip(sheet.columns, sheet.compared, strict=True):
        head += column.fields or (column.title,)
        head += [f"{column.title}, difference in published SDs"] * compared
    lines = []
    for row in sheet.rows:
        line: list[Any] = []
        for cell, compared in zip(row, sheet.compared, strict=True):
            line += cell.numbers or (cell.text,)
            line += [cell.difference] * compared
        pairs = zip(sheet.columns, row, strict=True)
        told = ", ".join(column.title for column, cell in pairs if cell.substitute)
        lines.append(line + [told] * substitutes)
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([head + ["on substitute data"] * substitutes, *lines])
    return file.getvalue()


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "≈": r"$\approx$", "×": r"$\times$", "–": "--",
    "†": r"$\dagger$",
}  # fmt: skip


def latex(sheet: Sheet) -> str:
    r"""A floating table of LaTeX; needs ``\usepackage{booktabs}``."""

    def plain(value: str) -> str:
        escaped = re.sub("|".join(map(re.escape, LATEX)), lambda found: LATEX[found[0]], value)
        return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)  # a hyphen before a number is a minus

    def line(cells: list[str]) -> str:
        return f"    {' & '.join(cells)} \\\\"

    def cell_text(cell: Cell) -> str:
        text = plain(cell.marked)
        text = f"\\textbf{{{text}}}" if cell.best else text
        return f"{text} ({plain(cell.beside)})" if cell.beside else text

    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{plain(sheet.caption)}}}",
            f"  \\label{{tab:{sheet.name}}}",
            f"  \\begin{{tabular}}{{l{'r' * (len(sheet.columns) - 1)}}}",
            r"    \toprule",
            line([plain(column.heading) for column in sheet.columns]),
            r"    \midrule",
            *(line([cell_text(cell) for cell in row]) for row in sheet.rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(f"  \\par\\smallskip\\footnotesize {plain(note)}" for note in sheet.below),
            r"\end{table}",
            "",
        ]
    )
