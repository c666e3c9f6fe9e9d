"""Tables of results as one page that needs no network: sortable tables, the runs behind every number, and figures."""

import base64
import io
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.formats import DASH, DIFFERENCE, Cell, Missing, Sheet, signed
from experiments.metrics import METRICS
from experiments.runs import Figure, Runs, scores, variant_label

FIGURE_WIDTH = 1200  # pixels; wider figures are made smaller
FIGURE_BYTES = 16 * 2**20  # of all figures together; what is beyond is named with its path


@dataclass(frozen=True)
class Heading:
    """A column's heading; ``number`` counts the columns of numbers and texts from the left."""

    text: str
    number: int


@dataclass(frozen=True)
class Group:
    """What stands above one or more columns; with one only, its own heading is the ``text``."""

    text: str
    headings: list[Heading]


@dataclass(frozen=True)
class Shown:
    """A cell of the page: what it says, what it is sorted by, the id of the runs behind it, its classes of style."""

    text: str
    value: Any = None
    link: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    name: str
    title: str
    short: str
    caption: str
    first: str
    groups: list[Group]
    rows: list[list[Shown]]
    notes: list[str]
    missing: Missing | None


@dataclass(frozen=True)
class Picture:
    """A figure: its address is a data URI, or empty where the page would become too large."""

    name: str
    path: str
    uri: str


@dataclass(frozen=True)
class Metric:
    """A metric of several runs: a value each, their mean, and what was published."""

    title: str
    values: list[str]
    mean: str
    published: str
    source: str


@dataclass(frozen=True)
class Run:
    """One run: what it is called among its like, and its facts."""

    label: str
    command: str
    commit: str
    finished: str
    cost: str
    device: str
    path: str
    href: str
    warnings: list[str]


@dataclass(frozen=True)
class Panel:
    """The runs behind a number: one variant of an experiment, or several where a number is over splits of the data."""

    id: str
    title: str
    facts: list[tuple[str, str]]
    substitute: bool
    runs: list[Run]
    metrics: list[Metric]
    config: str
    show_config: str
    pictures: list[Picture] = field(default_factory=list)


class Pictures:
    """Embeds figures until together they are too large.

    Args:
        folder: where the page will lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left = FIGURE_BYTES
        self._known: dict[Path, Picture] = {}

    def of(self, paths: list[Path]) -> list[Picture]:
        """Some figures, each read once; what is no picture is left out."""
        for path in paths:
            if path not in self._known and (content := _png(path)):
                fits = len(content) <= self._left
                self._left -= len(content) * fits
                uri = f"data:image/png;base64,{base64.b64encode(content).decode()}" if fits else ""
                self._known[path] = Picture(path.name, _relative(path, self._folder), uri)
        return [self._known[path] for path in paths if path in self._known]


def _png(path: Path) -> bytes | None:
    """A picture file, made smaller where it is wide; None where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.width <= FIGURE_WIDTH and image.format == "PNG":
                image.load()
                return path.read_bytes()
            if image.mode == "P":
                image = image.convert("RGBA")
            image.thumbnail((FIGURE_WIDTH, 10 * FIGURE_WIDTH))
            file = io.BytesIO()
            image.save(file, "PNG", optimize=True)
    except (OSError, SyntaxError):  # PIL's own for a damaged PNG
        return None
    return file.getvalue()


def page(sheets: list[Sheet], runs: Runs, folders: list[Path], folder: Path) -> str:
    """One page of HTML that holds everything.

    Args:
        sheets: the tables, in order.
        runs: from `collect`.
        folders: those that the runs were collected from; PNG files in them are shown, too.
        folder: where the page will lie; links to run folders are relative to it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pictures = Pictures(folder)
    ids: dict[tuple[tuple[str, str], ...], str] = {}
    tables = [_table(sheet, ids) for sheet in sheets]
    overview = pictures.of([path for each in folders for path in sorted(each.glob("*.png"))])
    panels = [_panel(names, its_id, runs, folder, pictures) for names, its_id in ids.items()]
    shown = {(name, each["seed"]): each for names in ids for name in names for each in runs[name]}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title="genpred: results" if len(tables) > 1 else f"genpred: {tables[0].title}",
        tables=tables,
        panels=panels,
        pictures=overview,
        run_count=len(shown),
        newest=max((each.get("finished", "") for each in shown.values()), default="")[:10],
        dash=DASH,
    )


def _table(sheet: Sheet, ids: dict[tuple[tuple[str, str], ...], str]) -> Table:
    """A table with a column for each of ours, published, and difference; the runs that it links get an id in `ids`."""
    groups: list[Group] = []
    columns: list[list[Shown]] = []
    grouped = any(sheet.compared) or any(cell.beside for row in sheet.rows for cell in row)
    for column, cells, compared in zip(
        sheet.columns[1:], list(zip(*sheet.rows, strict=True))[1:], sheet.compared[1:], strict=True
    ):
        beside = any(cell.beside for cell in cells)
        start = " start" * grouped
        titles = ["ours" if beside else "figure"]
        columns.append([_shown(cell, ids, start) for cell in cells])
        if beside:
            titles.append("published")
            columns.append(
                [Shown(cell.beside or DASH, cell.numbers[2] if cell.beside else None, "", "quiet") for cell in cells]
            )
        if compared:
            titles.append("difference")
            columns.append([_difference(cell) for cell in cells])
        first = len(columns) - len(titles) + 1
        titles = titles if len(titles) > 1 else [column.heading]
        groups.append(Group(column.heading, [Heading(title, first + nth) for nth, title in enumerate(titles)]))
    names = [Shown(row[0].text, row[0].text) for row in sheet.rows]
    notes = [*sheet.notes, DIFFERENCE] if any(sheet.compared) else sheet.notes
    title, _, caption = sheet.caption.partition(": ")
    if not caption or len(title) > 60:
        title, caption = sheet.name, sheet.caption
    short, caption = title.partition(" (")[0], caption[:1].upper() + caption[1:]
    rows = [list(row) for row in zip(names, *columns, strict=True)]
    return Table(sheet.name, title, short, caption, sheet.columns[0].heading, groups, rows, notes, sheet.missing)


def _shown(cell: Cell, ids: dict[tuple[tuple[str, str], ...], str], start: str) -> Shown:
    value = cell.numbers[0] if cell.numbers else None if cell.text == DASH else cell.text
    kind = ("best" if cell.best else "quiet" if cell.text == DASH else "") + start
    link = ""
    if cell.runs and cell.numbers and cell.text != DASH:
        # A name where it tells which run it is, so that an address goes on leading there when other runs appear.
        name = "-".join(cell.runs[0]) if len(cell.runs) == 1 else f"{cell.runs[0][0]}-and-{len(cell.runs) - 1}-more"
        name = f"run-{re.sub(r'[^A-Za-z0-9_-]', '-', name)}"
        taken = set(ids.values())
        link = ids.setdefault(cell.runs, name if name not in taken else f"{name}-{len(taken)}")
    return Shown(_minus(cell.marked), value, link, kind.strip())


def _difference(cell: Cell) -> Shown:
    if cell.difference is None:
        return Shown("")
    return Shown(_minus(signed(cell.difference)), cell.difference, kind="quiet")


def _minus(text: str) -> str:
    """A hyphen before a number is a minus."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def _panel(names: tuple[tuple[str, str], ...], its_id: str, runs: Runs, folder: Path, pictures: Pictures) -> Panel:
    found = [each for name in names for each in runs[name]]
    found = [each for each in found if each.get("comparable", True)] or found  # as in the tables
    first = found[0]
    variants = {name: variant_label(runs[name][0]) for name in names}
    several = len(names) > 1
    label = "" if first["variant"] == "default" else f" {variants[names[0]]}"
    title = f"{first['experiment']}, {len(names)} variants" if several else first["experiment"] + label
    labels = [
        f"{variants[each['experiment'], each['variant']]}, seed {each['seed']}" if several else f"seed {each['seed']}"
        for each in found
    ]
    folders = [path.parent for each in found if (path := Path(each["file"])).name == "results.json"]
    configs = [each / "config.yaml" for each in folders if (each / "config.yaml").is_file()]
    command = [*shlex.split(first.get("command", "")), "--print"]
    return Panel(
        its_id,
        title,
        _facts(first),
        any(not each.get("comparable", True) for each in found),
        [_run(each, label, folder) for each, label in zip(found, labels, strict=True)],
        _metrics(found),
        configs[0].read_text(errors="replace") if configs else "",
        _relative(configs[0], folder) if configs else shlex.join(command) if len(command) > 1 else "",
        pictures.of([path for each in folders for path in sorted((each / "figures").glob("*.png"))]),
    )


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What is the same of all seeds."""
    facts = [("variant", results["variant"])]
    facts += [(key, str(results[key])) for key in ("preset", "method", "dataset") if key in results]
    facts += [("data", results["data_variant"])] if results.get("data_variant") else []
    facts += [("parameters", f"{results['parameters']:,}")] if results.get("parameters") else []
    facts += [("training steps", f"{results['steps']:,}")] if results.get("steps") else []
    facts += [("versions", ", ".join(f"{name} {of}" for name, of in results.get("versions", {}).items()))]
    return [(name, value) for name, value in facts if value]


def _run(results: dict[str, Any], label: str, folder: Path) -> Run:
    path = _relative(Path(results["file"]), folder)
    memory = results.get("peak_memory_bytes")
    costs = [f"{_duration(results[key])} {what}" for key, what in COSTS.items() if key in results]
    costs += [f"{memory / 2**30:.1f} GiB"] if memory else []
    device, processes = results.get("device", ""), results.get("world_size", 1)
    if results.get("precision", "32-true") != "32-true":
        device = f"{device}, {results['precision']}"
    return Run(
        label,
        results.get("command", ""),
        results.get("git_commit") or "",
        results.get("finished", "")[:16].replace("T", " "),
        ", ".join(costs),
        f"{device} × {processes}" if processes > 1 else device,
        path,
        quote(path),
        results.get("warnings", []),
    )


COSTS = {"train_seconds": "training", "test_seconds": "test"}


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _metrics(found: list[dict[str, Any]]) -> list[Metric]:
    """Every metric of some runs, those that the tables know first."""
    keys = dict.fromkeys(key for each in found for key in each["metrics"])
    shown = []
    for key in sorted(keys, key=lambda key: list(METRICS).index(key) if key in METRICS else len(METRICS)):
        values = scores(found, key)
        title = f"{METRICS[key].title} {METRICS[key].arrow}".rstrip() if key in METRICS else key
        published = next((each["published"][key] for each in found if key in each.get("published", {})), None)
        theirs = str(Figure(published["mean"], published["std"])) if published else ""
        each_value = [_number(each["metrics"].get(key)) for each in found]
        source = published["source"] if published else ""
        shown.append(Metric(title, each_value, str(Figure.of(values)), theirs, source))
    return shown


def _number(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
