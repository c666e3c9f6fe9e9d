"""Workspaces and reports of W&B: what they show of a sweep's runs; nothing here knows an account."""

import json
import re
from pathlib import Path

import pytest

from experiments import dashboards
from experiments.config import experiments, split_name
from experiments.dashboards import SHOWN, main, parts
from experiments.grid import cells, sweeps
from experiments.metrics import METRICS
from experiments.tables import published_figures

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # of the library
ROOT = Path(__file__).parents[1]


def specification(name, capsys):
    assert main([name, "--project", "trial"]) == 0
    return json.loads(capsys.readouterr().out)


def every(value, key):
    """All values that lie under a key, wherever it is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from every(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from every(inner, key)


def conditions(runset):
    """What a run has to agree with to be shown."""
    return {each["key"]["name"]: (each["op"], each["value"]) for each in runset["filters"]["filters"]}


def test_a_workspace_shows_a_sweeps_runs_by_method_with_the_published_figures(capsys):
    section = specification("table2", capsys)["workspace"]["section"]
    (runset,) = section["runSets"]
    assert conditions(runset) == {"group": ("=", "table2")}
    assert runset["grouping"] == [{"section": "config", "name": "label.value"}]
    assert {"summary:test/auroc", "summary:published/test/auroc", "summary:difference/test/auroc"} <= set(
        runset["runFeed"]["columnOrder"]
    )
    panels = {each["name"]: each["panels"] for each in section["panelBankConfig"]["sections"]}
    assert list(panels) == ["Scores, imputation", "Curves, imputation", "Figures, imputation", "Runs"]
    bars = [panel["config"] for panel in panels["Scores, imputation"] if panel["viewType"] == "Bar Chart"]
    charts = [panel["config"] for panel in panels["Scores, imputation"] if panel["viewType"] == "Vega2"]
    assert len(bars) + len(charts) == len(panels["Scores, imputation"])
    rmse = next(bar for bar in bars if bar["metrics"] == ["test/rmse"])  # of which nothing was published
    assert (rmse["chartTitle"], rmse["groupAgg"]) == ("RMSE ↓", "mean")
    auroc = next(chart for chart in charts if chart["fieldSettings"]["score"] == "test/auroc")
    assert auroc["fieldSettings"]["published"] == "published/test/auroc"
    (query,) = auroc["userQuery"]["queryFields"]
    asked = {field["name"]: field["args"][0]["value"] for field in query["fields"] if "args" in field}
    assert set(asked["summary"] + asked["config"]) == set(auroc["fieldSettings"].values())
    curves = [panel["config"] for panel in panels["Curves, imputation"]]
    assert ["train/loss"] in [curve["metrics"] for curve in curves]
    assert {(curve["xAxis"], curve["groupAgg"], curve["groupArea"]) for curve in curves} == {
        ("trainer/global_step", "mean", "stddev")
    }
    assert [panel["viewType"] for panel in panels["Runs"]] == ["Run Comparer"]


def test_a_workspace_of_several_data_sets_keeps_them_apart(capsys):
    (runset,) = specification("table1", capsys)["workspace"]["section"]["runSets"]
    assert [each["name"] for each in runset["grouping"]] == ["dataset.value", "label.value"]


def test_a_report_has_a_chapter_for_each_data_set_with_its_published_figures(capsys):
    blocks = specification("table1", capsys)["report"]["blocks"]
    titles = [block["children"][0]["text"] for block in blocks if block["type"] == "heading" and block["level"] == 1]
    assert titles == ["hmnist (imputation)", "sprites (imputation)"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert len(grids) == 8
    shown = [conditions(runset) for grid in grids for runset in grid["runSets"]]
    assert shown == [
        {"group": ("=", "table1"), "dataset": ("=", dataset)} for dataset in ("hmnist", "sprites") for _ in range(4)
    ]
    assert len({runset["id"] for grid in grids for runset in grid["runSets"]}) == 8
    sprites = [panel for panel in every(grids[4], "metrics") if panel]
    assert sprites == [["test/nll"]]  # nothing was published of it
    assert [each["score"] for each in every(grids[4], "fieldSettings")] == ["test/mse"]
    tables = [block["content"].splitlines() for block in blocks if block["type"] == "markdown-block"]
    figure = published_figures("gpvae_hmnist")["test/mse"]
    assert tables[0][0] == "| method | NLL | MSE | AUROC |"
    (line,) = [line for line in tables[0] if line.startswith("| gpvae |")]
    assert line.split(" | ")[2] == f"{figure['mean']:.3f} ± {figure['std']:.3f}"
    assert tables[0][2].startswith("| mean | – | 0.168")


def shapes(node, name):
    """Everything drawn by a layer of a scene."""
    if isinstance(node, dict):
        if node.get("name") == name:
            yield from node["items"]
        for inner in node.values():
            yield from shapes(inner, name)
    elif isinstance(node, list):
        for inner in node:
            yield from shapes(inner, name)


def test_the_chart_of_scores_draws_means_as_bars_and_published_figures_as_lines(capsys):
    """Filled in as W&B does, then drawn by Vega itself."""
    vega = pytest.importorskip("vl_convert")
    found = specification("table1", capsys)
    assert found["chart"] == {"name": dashboards.chart_name(), "spec": dashboards.scores_chart()}
    panel = next(each for each in every(found, "config") if each.get("fieldSettings", {}).get("score") == "test/nll")
    assert panel["panelDefId"] == found["chart"]["name"]
    text = json.dumps(found["chart"]["spec"])
    for kind, values in (("field", panel["fieldSettings"]), ("string", panel["stringSettings"])):
        for key, value in values.items():
            text = text.replace(f"${{{kind}:{key}}}", value)
    assert "${" not in text
    columns = ("label", "dataset", "test/nll", "published/test/nll")
    runs = [
        ("gpvae", "hmnist", 0.30, 0.34), ("gpvae", "hmnist", 0.34, 0.34), ("vae", "hmnist", 0.6, 0.5),
        ("vae", "sprites", 0.8, None), ("plus", "sprites", None, None),
    ]  # fmt: skip
    values = [dict(zip(columns, run, strict=True)) for run in runs]
    scene = vega.vegalite_to_scenegraph(json.loads(text) | {"data": {"values": values}, "width": 400})
    bars, lines = list(shapes(scene, "layer_0_marks")), list(shapes(scene, "layer_2_marks"))
    pixels = 400 / 0.8  # of one
    assert [bar["width"] for bar in bars] == pytest.approx([0.32 * pixels, 0.6 * pixels, 400])
    centers = [line["x"] + line["width"] / 2 for line in lines]
    assert centers == pytest.approx([0.34 * pixels, 0.5 * pixels])
    for bar, line in zip(bars, lines, strict=False):  # across its bar
        assert (line["y"], line["height"]) == pytest.approx((bar["y"], bar["height"]))
    (deviation,) = [each for each in shapes(scene, "layer_1_marks") if abs(each["x2"] - each["x"]) > 1]
    assert abs(deviation["x2"] - deviation["x"]) == pytest.approx(2 * 0.02 * 2**0.5 * pixels)  # sqrt(2): of a sample


@pytest.mark.parametrize("name", sweeps())
def test_every_sweep_has_its_experiments_in_one_part_each(name):
    tasks = {experiment: task for task, names in experiments().items() for experiment in names}
    found = parts(name)
    assert sorted(f"{method}_{part.dataset}" for part in found for method in part.methods) == sorted(
        {cell.experiment for cell in cells(name)}
    )
    for part in found:
        assert {tasks[f"{method}_{part.dataset}"] for method in part.methods} == {part.task}
        assert set(part.scores) <= METRICS.keys()
        for method, figures in part.published.items():
            assert split_name(f"{method}_{part.dataset}") == (method, part.dataset)
            assert figures.keys() <= published_figures(f"{method}_{part.dataset}").keys()


def test_what_is_shown_is_logged():
    """Names of curves and pictures are those of the code that logs them; scores those of stored results."""
    modules = {task: "".join(path.read_text() for path in (ROOT / "lightning_modules" / folder).rglob("*.py"))
               for task, folder in (("imputation", "imputation"), ("segmentation", "segmentation"),
                                    ("synthesis", "synthesis"), ("pretraining", "segmentation"))}  # fmt: skip
    callbacks = "".join(path.read_text() for path in (ROOT / "callbacks").glob("*.py"))
    assert SHOWN.keys() == experiments().keys()
    for task, shown in SHOWN.items():
        for curve in shown.curves:
            stage, name = curve.split("/")
            source = modules[task] if stage == "train" else callbacks
            assert re.search(rf'"(train/)?{name}"', source), curve
        for figure in shown.figures:
            name = figure.removeprefix("figures/")
            assert f'"{name}.png"' in callbacks or f'"{name}": ' in callbacks, figure
        assert set(shown.scores) <= METRICS.keys()


def test_the_specification_goes_to_a_file(tmp_path, capsys):
    assert main(["gpvae_ablation", "--output", str(tmp_path / "made" / "spec.json")]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "made" / "spec.json").read_text()).keys() == {"workspace", "report", "chart"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel2"], "sweep 'tabel2' does not exist. Did you mean 'table2'?"),
        (["table2", "--publish"], "--publish and --entity (user or team on W&B) go together"),
        (["table2", "--entity", "team"], "--publish and --entity (user or team on W&B) go together"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_without_a_login_nothing_is_published(tmp_path, capsys, monkeypatch):
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert main(["table2", "--publish", "--entity", "team"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: W&B does not take table2 to team/genpred: ")
    assert told.count("\n") == 1


def test_publishing_sends_the_specification_to_the_entitys_project(capsys, monkeypatch):
    """W&B's server is played; what is sent is what is printed without a login, and says where the runs are."""
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb_workspaces.reports.v2 import interface as reports
    from wandb_workspaces.workspaces import interface as workspaces

    sent, charts = [], []

    def upsert(view):
        sent.append((view.entity, view.project, view.spec.model_dump(mode="json", by_alias=True, exclude_none=True)))
        return {"upsertView": {"view": {"name": "nw-made-v", "id": "1"}}}

    class Projects:
        def projects(self, entity):
            return []

        def create_project(self, name, entity):
            pass

        def create_custom_chart(self, **arguments):
            charts.append(arguments)
            if len(charts) > 1:
                raise WandbApiFailedError(f"{arguments['name']} is taken")

    def answer(api, query, variables):
        if "spec" not in variables:
            return {"project": {"internalId": "internal"}}
        sent.append((variables["entityName"], variables["projectName"], json.loads(variables["spec"])))
        view = {"id": "2", "displayName": variables["displayName"], "spec": variables["spec"], "name": "made"}
        return {"upsertView": {"view": view | {"project": {"name": "trial", "entityName": "team"}}}}

    monkeypatch.setattr(workspaces.internal, "upsert_view2", upsert)
    monkeypatch.setattr(workspaces.wandb, "Api", Projects)
    monkeypatch.setattr(reports, "execute_graphql", answer)
    for module in (workspaces, reports):
        monkeypatch.setattr(module, "get_app_url", lambda api: "https://wandb.example")
    assert main(["table3_small", "--publish", "--entity", "team", "--project", "trial"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("https://wandb.example/team/trial?nw=")
    assert second.startswith("https://wandb.example/team/trial/reports/")
    assert [place[:2] for place in sent] == [("team", "trial")] * 2
    expected = dashboards.specification("table3_small", "trial")
    for (_, _, spec), wanted in zip(sent, (expected["workspace"], expected["report"]), strict=True):
        assert list(every(spec, "metrics")) == list(every(wanted, "metrics"))
        assert list(every(spec, "filters")) == list(every(wanted, "filters"))
        assert set(every(spec, "panelDefId")) == {f"team/{expected['chart']['name']}"}
    assert {each["entityName"] for each in every(sent[1][2], "project")} == {"team"}
    assert main(["table3_small", "--publish", "--entity", "team", "--project", "trial"]) == 0
    assert capsys.readouterr().err == (
        f"the chart team/{expected['chart']['name']} was not added, as if it were there: "
        f"{expected['chart']['name']} is taken\n"
    )
    assert len(sent) == 4
    assert [(each["entity"], each["name"], each["spec"]) for each in charts] == [
        ("team", expected["chart"]["name"], expected["chart"]["spec"])
    ] * 2
