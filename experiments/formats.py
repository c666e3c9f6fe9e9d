"""One table as text, Markdown, CSV or LaTeX."""

import csv
import io
import re
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

DASH = "–"


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
    """What a cell shows, ``beside`` it in parentheses, and its numbers in CSV; ``best`` is set in bold."""

    text: str = DASH
    beside: str = ""
    numbers: tuple[float | int | str | None, ...] = ()  # the text alone where empty
    best: bool = False

    def shown(self, bold: tuple[str, str] = ("", "")) -> str:
        """The whole cell, the best text between two marks."""
        text = f"{bold[0]}{self.text}{bold[1]}" if self.best else self.text
        return f"{text} ({self.beside})" if self.beside else text


@dataclass(frozen=True)
class Sheet:
    """A table with its caption above and its notes below; the first column names the rows."""

    name: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


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
    for note in sheet.notes:
        console.print(note, highlight=False, markup=False)
    return console.file.getvalue()


def markdown(sheet: Sheet) -> str:
    """A table of GitHub's Markdown."""

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    head = [line([column.heading for column in sheet.columns]), "|---" + "|---:" * (len(sheet.columns) - 1) + "|"]
    body = [line([cell.shown(("**", "**")) for cell in row]) for row in sheet.rows]
    return "\n\n".join([sheet.caption, "\n".join([*head, *body]), *sheet.notes]) + "\n"


def comma_separated(sheet: Sheet) -> str:
    """CSV with every number in full and in a column of its own, without caption and notes."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([name for column in sheet.columns for name in column.fields or (column.title,)])
    for row in sheet.rows:
        writer.writerow([number for cell in row for number in cell.numbers or (cell.text,)])
    return file.getvalue()


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "≈": r"$\approx$", "×": r"$\times$", "–": "--",
}  # fmt: skip


def latex(sheet: Sheet) -> str:
    r"""A floating table of LaTeX; needs ``\usepackage{booktabs}``."""

    def plain(value: str) -> str:
        escaped = re.sub("|".join(map(re.escape, LATEX)), lambda found: LATEX[found[0]], value)
        return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)  # a hyphen before a number is a minus

    def line(cells: list[str]) -> str:
        return f"    {' & '.join(cells)} \\\\"

    def cell_text(cell: Cell) -> str:
        text = plain(cell.text)
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
            *(f"  \\par\\smallskip\\footnotesize {plain(note)}" for note in sheet.notes),
            r"\end{table}",
            "",
        ]
    )
