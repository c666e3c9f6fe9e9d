"""The page of results: what it holds, that nothing in it escapes its place, and, in Chromium, that it works."""

import base64
import html.parser
import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from experiments import grid, report, tables
from experiments.html import FIGURE_WIDTH
from experiments.report import main
from experiments.tables import published_tables

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = '<script>document.title = "broken"</script><b>&amp;"\''
SWEEP = """
blocks:
  - {methods: [mean, vae, gpvae, hivae], datasets: [physionet], seeds: [0, 1]}
"""
TABLE = """
caption: "Table 9: <b>bold</b> & more."
source: the paper
sweep: small
columns:
  - {dataset: physionet, metric: test/auroc, show: both}
  - {dataset: physionet, metric: test/mse}
  - {dataset: physionet, title: seeds, show: seeds}
rows:
  - {title: mean, method: mean}
  - {title: VAE, method: vae}
  - {title: "a row of many words, all of which a telephone has to put somewhere", method: gpvae}
  - {title: HI-VAE, method: hivae}
figures:
  vae_physionet: {test/auroc: [0.677, 0.002]}
  gpvae_physionet: {test/auroc: [0.730, 0.006]}
"""
MSE = {"mean": [10.5], "vae": [-2.0, -2.5], "gpvae": [9.75, 9.75], "hivae": []}


def write(folder, method, seed, **more):
    """A run folder."""
    folder = folder / f"{method}_physionet" / "default" / f"seed{seed}"
    folder.mkdir(parents=True)
    results = {
        "experiment": f"{method}_physionet",
        "variant": "default",
        "seed": seed,
        "metrics": {"test/mse": MSE[method][seed], "test/auroc": 0.7 + 0.01 * seed},
        "published": {"test/auroc": {"mean": 0.677, "std": 0.002, "source": "the paper"}},
        "command": f"python -m experiments.run {method}_physionet seed={seed}",
        "git_commit": f"{seed}123456789abcdef",
        "warnings": [],
        "train_seconds": 7200.0,
        "finished": f"2026-01-0{seed + 1}T12:00:00+00:00",
    }
    (folder / "results.json").write_text(json.dumps(results | more))
    return folder


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page of one table, with the runs, a configuration and figures of which one is wide and one is no picture."""
    for folder, content in (("sweeps", SWEEP), ("published", TABLE)):
        (tmp_path / "experiments" / folder).mkdir(parents=True)
        (tmp_path / "experiments" / folder / "small.yaml").write_text(content)
    monkeypatch.setattr(grid, "SWEEPS", tmp_path / "experiments" / "sweeps")
    monkeypatch.setattr(tables, "PUBLISHED", tmp_path / "experiments" / "published")
    published_tables.cache_clear()
    runs = tmp_path / "runs"
    write(runs, "mean", 0, comparable=False)
    for seed in range(2):
        folder = write(runs, "vae", seed, warnings=[NASTY] * seed, device=NASTY)
        write(runs, "gpvae", seed)
        (folder / "config.yaml").write_text(f"seed: {seed}\nnote: {NASTY}\n")
        (folder / "figures").mkdir()
        Image.new("RGB", (3 * FIGURE_WIDTH, 300), (10 * seed, 0, 0)).save(folder / "figures" / "wide.png")
        (folder / "figures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("RGB", (30, 20)).save(runs / "overview.png")
    target = tmp_path / "pages" / "results.html"
    assert main(["all", "--html", str(target), str(runs)]) == 0
    yield target
    published_tables.cache_clear()


class Parser(html.parser.HTMLParser):
    """Elements with their attributes and own text; remembers those that are not closed in order."""

    EMPTY = ("meta", "link", "img", "br")

    def __init__(self):
        super().__init__()
        self.found, self.stack, self.faults = [], [], []

    def handle_starttag(self, tag, attributes):
        self.found.append([tag, dict(attributes), ""])
        if tag not in self.EMPTY:
            self.stack.append(self.found[-1])

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop()[0] != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        if self.stack:
            self.stack[-1][2] += data


def elements(page, tag):
    parser = Parser()
    parser.feed(page.read_text())
    assert not parser.faults
    assert not parser.stack
    return [(attributes, text.strip()) for its_tag, attributes, text in parser.found if its_tag == tag]


def test_the_page_needs_no_network_and_nothing_of_a_run_becomes_markup(page):
    content = page.read_text()
    addresses = re.findall(r"(?:src|href|action|srcset)=\"([^\"]*)\"|url\(([^)]*)\)|@import", content)
    kinds = {address.split(":")[0] if ":" in address else address[:1] for address, _ in addresses}
    assert kinds == {"#", ".", "data"}  # anchors, run folders, embedded figures
    policy = next(attributes for attributes, _ in elements(page, "meta") if "http-equiv" in attributes)["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(elements(page, "script")) == 1
    assert not elements(page, "b")
    assert NASTY not in content
    assert any(text == f"seed 1: {NASTY}" for _, text in elements(page, "p"))
    assert any(text == f"seed: 0\nnote: {NASTY}" for _, text in elements(page, "pre"))
    assert any(text == "<b>bold</b> & more." for _, text in elements(page, "p"))


def test_every_number_of_ours_leads_to_its_runs_and_heads_are_for_all(page):
    known = {attributes.get("id") for tag in ("details", "h2") for attributes, _ in elements(page, tag)}
    links = [(attributes["href"], text) for attributes, text in elements(page, "a")]
    assert {href[1:] for href, _ in links if href.startswith("#")} <= known
    cells = [text for href, text in links if href.startswith("#run-")]
    assert cells == [
        "0.700†",
        "10.500†",
        "1†",
        "0.705 ± 0.007",
        "−2.250 ± 0.354",
        "2",
        "0.705 ± 0.007",
        "9.750 ± 0.000",
        "2",
    ]
    for href, text in links:
        if text.endswith("results.json"):
            assert (page.parent / href).resolve().is_file()
    scopes = [attributes.get("scope") for attributes, _ in elements(page, "th")]
    assert set(scopes) == {"col", "colgroup", "row"}
    heads = [attributes for attributes, _ in elements(page, "th") if attributes["scope"] == "col"]
    assert {attributes["aria-sort"] for attributes in heads} == {"none"}
    commands = "\n".join(text for _, text in elements(page, "pre"))
    for expected in ("mean_physionet seed=1", "hivae_physionet seed=0", "hivae_physionet seed=1"):
        assert f"python -m experiments.run {expected}" in commands
    assert ({}, "python -m experiments.sweep small --local") in elements(page, "code")


def test_figures_are_embedded_and_not_wider_than_a_screen(page, monkeypatch, tmp_path):
    pictures = [attributes["src"] for attributes, _ in elements(page, "img")]
    sizes = []
    for uri in pictures:
        kind, data = uri.split(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            sizes.append(image.size)
    assert sizes == [(30, 20), *[(FIGURE_WIDTH, 100)] * 2]
    monkeypatch.setattr("experiments.html.FIGURE_BYTES", 100)
    assert main(["small", "--format", "html", "--output", str(page), str(tmp_path / "runs")]) == 0
    assert len(elements(page, "img")) == 1
    left_out = [text for _, text in elements(page, "figcaption") if text.endswith("the page would become too large.")]
    assert [text.split(" ")[0] for text in left_out] == [
        f"../runs/vae_physionet/default/seed{seed}/figures/wide.png" for seed in range(2)
    ]


@pytest.fixture
def browser():
    """Chromium, driven by playwright."""
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def test_the_page_works_in_a_browser(page, browser):
    told, asked = [], []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened = context.new_page()
    opened.on("console", lambda message: told.append(message.text))
    opened.on("pageerror", lambda error: told.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(page.as_uri())
    assert opened.title() == "genpred: Table 9"  # NASTY would have changed it

    def order():
        return opened.locator("table[data-name=small] tbody th").all_inner_texts()

    def press(name, number=0):
        head = opened.locator("table[data-name=small] th", has_text=re.compile(f"^{name}")).nth(number)
        head.locator("button").focus()
        opened.keyboard.press("Enter")
        return head.get_attribute("aria-sort")

    many = "a row of many words, all of which a telephone has to put somewhere"
    first = ["mean", "VAE", many, "HI-VAE"]
    assert order() == first
    assert press("MSE") == "ascending"
    assert order() == ["VAE", many, "mean", "HI-VAE"]  # by number: -2.25, 9.75, 10.5; what is missing is last
    assert press("MSE") == "descending"
    assert order() == ["mean", many, "VAE", "HI-VAE"]
    assert press("published") == "ascending"
    assert order() == ["VAE", many, "mean", "HI-VAE"]
    assert opened.locator("th[aria-sort=descending]").count() == 0
    assert press("difference") == "ascending"
    assert order() == [many, "VAE", "mean", "HI-VAE"]  # -4.2, +14.0
    assert press("method") == "ascending"
    assert order() == [many, "HI-VAE", "mean", "VAE"]
    assert [press("method"), press("method")] == ["descending", "none"]
    assert order() == first

    opened.locator("table[data-name=small] a", has_text="−2.250").click()
    panel = opened.locator("dialog")
    assert panel.get_attribute("open") is not None
    text = panel.inner_text()
    for expected in ("vae_physionet", "-2.0000", "-2.5000", "python -m experiments.run vae_physionet seed=1",
                     "0123456789", "2.0 h training", NASTY, "seed: 0"):  # fmt: skip
        assert expected in text
    assert panel.locator("img").first.evaluate("image => image.complete && image.naturalWidth") == FIGURE_WIDTH
    opened.keyboard.press("Escape")
    assert panel.get_attribute("open") is None

    def paper():
        return opened.evaluate("getComputedStyle(document.body).backgroundColor")

    light, toggle = paper(), opened.locator("#theme")
    toggle.click()
    dark = paper()
    assert (dark != light, toggle.get_attribute("aria-pressed")) == (True, "true")
    opened.reload()
    assert paper() == dark
    toggle.click()
    assert (paper(), toggle.get_attribute("aria-pressed")) == (light, "false")

    phone = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark").new_page()
    phone.on("console", lambda message: told.append(message.text))
    phone.goto(f"{page.as_uri()}#run-vae_physionet-default")
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    assert phone.locator("details[id=run-vae_physionet-default]").get_attribute("open") is not None
    phone.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert phone.evaluate("document.scrollingElement.scrollWidth") <= 360
    box = "document.querySelector('.scroll')"
    assert phone.evaluate(f"{box}.scrollWidth > {box}.clientWidth")  # the table itself scrolls
    phone.locator("table[data-name=small] a", has_text="9.750").click()
    assert phone.evaluate("document.querySelector('dialog').scrollWidth") <= 360
    assert told == []
    assert {address.split(":")[0] for address in asked} <= {"file", "data"}


def test_the_tables_that_ship_make_a_page(tmp_path):
    target = tmp_path / "results.html"
    assert main(["all", "--html", str(target), str(report.ROOT / "results")]) == 0
    names = [attributes["data-name"] for attributes, _ in elements(target, "table") if "data-name" in attributes]
    assert names == list(published_tables())
    ids = [attributes["id"] for attributes, _ in elements(target, "details") if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    links = {attributes["href"] for attributes, _ in elements(target, "a")}
    assert {f"#{each}" for each in ids} <= links
    assert all((tmp_path / Path(href)).resolve().is_file() for href in links if not href.startswith("#"))
