"""Tables of results: which runs a row shows, what stands beside them, the four formats, comparisons over splits."""

import csv
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from callbacks.downstream import bootstrap_auroc
from experiments import grid, report, tables
from experiments.config import experiments, split_name
from experiments.formats import Cell, Column, Sheet, comma_separated, latex, markdown, text, with_differences
from experiments.grid import cells, variant_name
from experiments.metrics import METRICS
from experiments.report import ROOT, main, run_table
from experiments.runs import collect, paired_difference
from experiments.splits import deviation_over_rows, splits_sheet
from experiments.tables import published_figures, published_tables, table_sheet

SWEEP = """
blocks:
  - {methods: [mean, vae, gpvae], datasets: [physionet], seeds: [0, 1, 2]}
  - {methods: [gpvae], datasets: [physionet], seeds: [0, 1, 2], variants: [preset=plus]}
"""
TABLE = """
caption: A caption, 100 % of it.
source: the paper
sweep: small
columns:
  - {dataset: physionet, metric: test/auroc, show: both}
  - {dataset: physionet, metric: test/auroc, title: published AUROC, show: published}
  - {dataset: physionet, metric: test/mse}
  - {dataset: physionet, metric: test/coverage_90}
  - {dataset: physionet, title: seeds, show: seeds}
rows:
  - {title: mean, method: mean}
  - {title: VAE, method: vae}
  - {title: GP-VAE, method: gpvae}
  - {title: GP-VAE plus, method: gpvae, overrides: {preset: plus}}
figures:
  vae_physionet: {test/auroc: [0.677, 0.002]}
  gpvae_physionet: {test/auroc: [0.730, 0.006]}
"""
SPLITS = """
extends: small
sweep: splits
splits: {dataset: physionet, metric: test/auroc, over: data.split_seed, reference: vae}
"""
SPLITS_SWEEP = """
blocks:
  - {methods: [mean, vae, gpvae], datasets: [physionet], seeds: [0], grid: {data.split_seed: [0, 1, 2, 3, 4]}}
"""


@pytest.fixture
def described(tmp_path, monkeypatch):
    """Tables "small" and "splits" and their sweeps in place of those that ship."""
    for folder, contents in (
        ("sweeps", {"small": SWEEP, "splits": SPLITS_SWEEP}),
        ("published", {"small": TABLE, "splits": SPLITS}),
    ):
        (tmp_path / "experiments" / folder).mkdir(parents=True)
        for name, content in contents.items():
            (tmp_path / "experiments" / folder / f"{name}.yaml").write_text(content)
    monkeypatch.setattr(grid, "SWEEPS", tmp_path / "experiments" / "sweeps")
    monkeypatch.setattr(tables, "PUBLISHED", tmp_path / "experiments" / "published")
    published_tables.cache_clear()
    yield
    published_tables.cache_clear()


def write(folder, experiment, seed, metrics, variant="default", overrides="", **further):
    folder.mkdir(parents=True, exist_ok=True)
    command = f"python -m experiments.run {experiment} {overrides} seed={seed} logger=csv"
    payload = {"experiment": experiment, "variant": variant, "seed": seed, "metrics": metrics, "command": command}
    payload |= further
    (folder / f"{experiment}-{variant}-{seed}.json").write_text(json.dumps(payload))


def shown(sheet, bold=("", "")):
    return [[cell.shown(bold) for cell in row] for row in sheet.rows]


PLUS = "d1dd137e"  # the variant preset=plus, as run folders have been named by it


@pytest.fixture
def runs(described, tmp_path):
    """VAE with three seeds, GP-VAE with two and plus with one, and a variant that no row names."""
    folder = tmp_path / "runs"
    for seed, auroc in enumerate([0.71, 0.73, 0.74]):
        write(folder, "vae_physionet", seed, {"test/auroc": auroc, "test/mse": 0.5, "test/auroc_std": 0.01 * seed})
    for seed, mse in enumerate([0.4, 0.41]):
        write(folder, "gpvae_physionet", seed, {"test/auroc": 0.7, "test/mse": mse, "test/coverage_90": 0.97})
    write(folder, "gpvae_physionet", 0, {"test/auroc": 0.72, "test/coverage_90": 0.88}, PLUS, "preset=plus")
    write(folder, "gpvae_physionet", 0, {"test/auroc": 0.99, "test/mse": 0.1}, "12345678", "data.split_seed=1")
    return folder


def test_a_row_shows_the_seeds_of_its_own_variant_beside_the_published_figure(runs):
    sheet = table_sheet("small", collect([runs]))
    mean, std = statistics.mean([0.71, 0.73, 0.74]), statistics.stdev([0.71, 0.73, 0.74])
    assert [column.heading for column in sheet.columns] == [
        "method", "AUROC ↑", "published AUROC ↑", "MSE ↓", "90 % coverage ≈ 0.9", "seeds",
    ]  # fmt: skip
    assert shown(sheet, ("<", ">")) == [
        ["mean", "–", "–", "–", "–", "0"],
        ["VAE", f"<{mean:.3f} ± {std:.3f}> (0.677 ± 0.002)", "0.677 ± 0.002", "0.500 ± 0.000", "–", "3"],
        ["GP-VAE", "0.700 ± 0.000 (0.730 ± 0.006)", "0.730 ± 0.006", "<0.405 ± 0.007>", "0.970 ± 0.000", "2"],
        ["GP-VAE plus", "0.720", "–", "–", "<0.880>", "1"],
    ]


def test_what_is_missing_is_named_below(runs):
    sheet = table_sheet("small", collect([runs]))
    assert sheet.below[-1] == (
        "Missing: 6 of 12 runs (python -m experiments.sweep small --local): mean on physionet (seed 0 to 2); "
        "gpvae on physionet (seed 2); gpvae preset=plus on physionet (seed 1 to 2)."
    )
    assert sheet.missing.commands[-2:] == [
        f"python -m experiments.run gpvae_physionet preset=plus seed={seed}" for seed in (1, 2)
    ]
    for seed in range(3):
        for experiment, variant in (
            ("mean_physionet", "default"),
            ("gpvae_physionet", "default"),
            ("gpvae_physionet", PLUS),
        ):
            write(runs, experiment, seed, {}, variant)
    assert table_sheet("small", collect([runs])).missing is None


def test_other_variants_are_shown_on_request_and_never_the_best(runs):
    sheet = table_sheet("small", collect([runs]), every=True)
    assert shown(sheet)[:4] == shown(table_sheet("small", collect([runs])))
    assert shown(sheet, ("<", ">"))[4:] == [["GP-VAE data.split_seed=1", "0.990", "–", "0.100", "–", "1"]]


def test_the_bootstrap_column_is_the_mean_over_seeds_of_what_is_within_each(runs):
    sheet = table_sheet("small", collect([runs]), bootstrap=True)
    assert [column.title for column in sheet.columns][:4] == ["method", "AUROC", "bootstrap SD", "published AUROC"]
    assert [row[2].text for row in sheet.rows] == ["–", "0.010", "–", "–"]


def test_the_noise_of_the_scored_rows_is_told_where_the_published_order_is_within_it(described, tmp_path):
    """Published AUROCs of 0.677 and 0.730: one gap of 0.053."""
    for seed, deviation in enumerate([0.05, 0.06]):
        write(tmp_path, "vae_physionet", seed, {"test/auroc": 0.7, "test/auroc_std": deviation})
    assert [line for line in table_sheet("small", collect([tmp_path])).below if line.startswith("Drawing")] == [
        "Drawing the scored rows of physionet anew moves an AUROC by 0.055 (standard deviation, bootstrap): 1 of the "
        "1 gaps between neighbours in the published order are smaller, which one split does not settle."
    ]
    write(tmp_path, "gpvae_physionet", 0, {"test/auroc_std": 0.04})
    assert not [line for line in table_sheet("small", collect([tmp_path])).below if line.startswith("Drawing")]


def test_validation_figures_and_overrides_of_one_data_set(described, tmp_path):
    sweep = "blocks: [{methods: [gpvae], datasets: [digits, physionet], seeds: [0], variants: ['', preset=plus]}]"
    (grid.SWEEPS / "levers.yaml").write_text(sweep)
    (tables.PUBLISHED / "levers.yaml").write_text("""
caption: Levers.
source: none
sweep: levers
dataset_overrides: {digits: {data.split_seed: 1}}
columns: [{dataset: digits, metric: val/nll}, {dataset: physionet, metric: val/nll}]
rows:
  - {title: paper, method: gpvae}
  - {title: plus, method: gpvae, overrides: {preset: plus}}
figures: {}
""")
    published_tables.cache_clear()
    for experiment, overrides, nll in (
        ("gpvae_digits", {}, 1.0), ("gpvae_digits", {"data.split_seed": 1}, 2.0),
        ("gpvae_digits", {"preset": "plus", "data.split_seed": 1}, 3.0), ("gpvae_physionet", {}, 4.0),
    ):  # fmt: skip
        variant = grid.variant_name(overrides)
        write(tmp_path / "runs", experiment, 0, {"test/nll": 9.0}, variant)
        path = tmp_path / "runs" / f"{experiment}-{variant}-0.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"validation": {"val/nll": nll}}))
    assert [row[1:] for row in shown(table_sheet("levers", collect([tmp_path / "runs"])))] == [
        ["2.000", "4.000"],
        ["3.000", "–"],
    ]


def test_equal_figures_are_bold_together_and_a_lone_one_is_not(described, tmp_path):
    write(tmp_path, "mean_physionet", 0, {"test/auroc": 0.70001, "test/mse": 0.1})
    write(tmp_path, "vae_physionet", 0, {"test/auroc": 0.69999})
    write(tmp_path, "gpvae_physionet", 0, {"test/auroc": 0.6})
    sheet = table_sheet("small", collect([tmp_path]))
    assert [row[1].best for row in sheet.rows] == [True, True, False, False]
    assert not any(row[3].best for row in sheet.rows)


@pytest.mark.parametrize("pairs", [3, 5, 8])
@pytest.mark.parametrize("key", ["test/auroc", "test/mse", "test/coverage_90"])
def test_bold_is_what_the_paired_test_of_scipy_does_not_tell_from_the_best(pairs, key, described, tmp_path):
    generator = np.random.default_rng(pairs)
    metric, seeds = METRICS[key], generator.normal(0, 0.05, pairs)
    verdicts = set()
    for nth, offset in enumerate(np.linspace(0.001, 0.03, 6)):
        folder, sign = tmp_path / str(nth), -1 if metric.best == "max" else 1
        best = 0.9 + sign * 0.2 + seeds  # beyond the target of a coverage, so that losses grow as the values do
        worse = best + sign * (offset + generator.normal(0, 0.01, pairs))
        worse = worse if metric.loss(worse.mean()) > metric.loss(best.mean()) else worse + sign * 0.02
        for seed in range(pairs + 3):  # three seeds that the other lacks do not count for the test
            write(folder, "vae_physionet", seed, {key: [*best, 0.7, 0.7, 0.7][seed]} if seed < pairs else {})
        for seed in range(pairs):
            write(folder, "gpvae_physionet", seed, {key: worse[seed]})
        sheet = table_sheet("small", collect([folder]))
        column = next(n for n, each in enumerate(sheet.columns) if each.title == metric.title)
        tied = scipy.stats.ttest_rel(worse, best).pvalue > 0.05
        assert [row[column].best for row in sheet.rows] == [False, True, tied, False]
        verdicts.add(bool(tied))
    assert verdicts == {True, False}


def test_without_three_common_seeds_or_randomness_what_prints_alike_is_bold_alike(described, tmp_path):
    for seed in range(3):
        write(tmp_path, "vae_physionet", seed, {"test/auroc": 0.7, "test/mse": 0.5})
        write(tmp_path, "gpvae_physionet", seed, {"test/auroc": 0.6996, "test/mse": 0.5006})
    sheet = table_sheet("small", collect([tmp_path]))
    assert [(row[1].best, row[3].best) for row in sheet.rows[1:3]] == [(True, True), (True, False)]
    write(tmp_path, "mean_physionet", 0, {"test/auroc": 0.7003, "test/mse": 0.4997})  # one seed: nothing to test
    write(tmp_path, "gpvae_physionet", 7, {"test/auroc": 0.6996}, PLUS, "preset=plus")  # none in common
    sheet = table_sheet("small", collect([tmp_path]))
    assert [row[1].best for row in sheet.rows] == [True, True, True, True]
    assert [row[3].best for row in sheet.rows] == [True, True, False, False]
    for seed, (best, worse) in enumerate([(0.81, 0.79), (0.83, 0.71)]):  # a t test of two differences tells nothing
        write(tmp_path / "two", "vae_physionet", seed, {"test/auroc": best})
        write(tmp_path / "two", "gpvae_physionet", seed, {"test/auroc": worse})
    assert [row[1].best for row in table_sheet("small", collect([tmp_path / "two"])).rows[1:3]] == [True, False]


def test_differences_are_in_published_deviations_and_columns_on_request(runs):
    sheet = table_sheet("small", collect([runs]))
    assert [[cell.difference for cell in row if cell.difference is not None] for row in sheet.rows] == [
        [], [pytest.approx((0.7266666667 - 0.677) / 0.002)] * 2, [pytest.approx(-5.0)] * 2, [],
    ]  # fmt: skip
    wide = with_differences(sheet)
    assert [column.title for column in wide.columns] == [
        "method", "AUROC", "difference", "published AUROC", "difference", "MSE", "90 % coverage", "seeds",
    ]  # fmt: skip
    assert [(row[2].text, row[4].text) for row in wide.rows] == [("–", "–"), ("+24.8",) * 2, ("-5.0",) * 2, ("–", "–")]
    assert wide.notes[-1].startswith("difference: ours less published, in published standard deviations")
    read = list(csv.DictReader(io.StringIO(comma_separated(sheet))))
    assert [row["AUROC, difference in published SDs"] for row in read][::3] == ["", ""]
    assert float(read[1]["AUROC, difference in published SDs"]) == pytest.approx(24.8333333)


def test_the_number_of_seeds_is_told_where_no_column_tells_it(tmp_path):
    for method, dataset, seeds in (("mae", "cat15", 5), ("ddpm", "cat15", 5), ("ddpm", "horse21", 3)):
        for seed in range(seeds):
            write(tmp_path, f"{method}_{dataset}", seed, {"test/miou": 0.5})
    assert "Seeds of each figure: 5; but DDPM on horse21 3." in table_sheet("table3", collect([tmp_path])).notes


def test_a_run_found_twice_counts_once_and_other_json_files_not_at_all(tmp_path):
    for folder in (tmp_path / "runs", tmp_path / "results"):
        write(folder, "mean_physionet", 0, {"test/auroc": 0.7 if folder.name == "runs" else 0.1})
    (tmp_path / "runs" / "other.json").write_text("[1, 2]")
    grouped = collect([tmp_path / "runs", tmp_path / "results"])
    assert [each["metrics"] for each in grouped["mean_physionet", "default"]] == [{"test/auroc": 0.7}]
    assert grouped["mean_physionet", "default"][0]["file"] == str(tmp_path / "runs" / "mean_physionet-default-0.json")


AWKWARD = Sheet(
    "awkward",
    "50 % of {a_b} & #1 for $2 ~ ^ \\",
    [Column("method"), Column("AUROC", "↑", ("AUROC", "AUROC SD")), Column("difference", "≈ 0.9")],
    [
        [Cell("a|b_c"), Cell("0.71 ± 0.02", "0.73", (0.7123456789, 0.02), best=True), Cell("-0.012 to +0.030")],
        [Cell("HI-VAE"), Cell(numbers=(None, None)), Cell("–")],
    ],
    ["note: x < y, 3 to 4"],
)


def test_markdown_has_a_line_for_each_row_and_as_many_cells(runs):
    sheet = table_sheet("small", collect([runs]))
    caption, table, *notes = markdown(sheet).rstrip("\n").split("\n\n")
    head, rule, *body = table.splitlines()
    assert (caption, notes) == (sheet.caption, sheet.below)
    assert rule == "|---|---:|---:|---:|---:|---:|"
    parsed = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (head, *body)]
    assert parsed == [[column.heading for column in sheet.columns], *shown(sheet, ("**", "**"))]
    assert r"| a\|b_c | **0.71 ± 0.02** (0.73) | -0.012 to +0.030 |" in markdown(AWKWARD)


def test_csv_holds_every_number_in_full(runs):
    rows = list(csv.DictReader(io.StringIO(comma_separated(table_sheet("small", collect([runs]))))))
    assert [row["method"] for row in rows] == ["mean", "VAE", "GP-VAE", "GP-VAE plus"]
    values = [0.71, 0.73, 0.74]
    assert float(rows[1]["AUROC"]) == pytest.approx(statistics.mean(values), abs=1e-15)
    assert float(rows[1]["AUROC SD"]) == pytest.approx(statistics.stdev(values), abs=1e-15)
    assert (rows[1]["published AUROC"], rows[1]["published AUROC SD"], rows[1]["seeds"]) == ("0.677", "0.002", "3")
    assert (rows[0]["AUROC"], rows[0]["seeds"]) == ("", "0")
    assert (rows[3]["AUROC"], rows[3]["AUROC SD"]) == ("0.72", "")
    assert comma_separated(AWKWARD).splitlines()[1] == "a|b_c,0.7123456789,0.02,-0.012 to +0.030"


def test_text_is_plain_unless_it_goes_to_a_terminal(runs):
    sheet = table_sheet("small", collect([runs]))
    plain, terminal = text(sheet), text(sheet, terminal=True)
    assert "\x1b" not in plain
    assert "\x1b[1m" in terminal
    assert plain.startswith(sheet.caption)
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in plain.splitlines() if "│" in line]
    assert lines == shown(sheet)


def latex_errors(source):
    """What would stop LaTeX: environments or braces that do not match, rows of another length, bare special signs."""
    found, environments = [], []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", source):
        if kind == "begin":
            environments.append(name)
        elif not environments or environments.pop() != name:
            found.append(f"\\end{{{name}}}")
    bare = re.sub(r"\\.", "", source)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        found += ["}"] if depth < 0 else []
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", source)[1]
    rows = [line for line in source.splitlines() if line.endswith(r"\\")]
    found += [row for row in rows if len(re.findall(r"(?<!\\)&", row)) != len(columns) - 1]
    found += re.findall(r"[%#_^~]", bare)
    found += re.findall(r"[^\x00-\x7f]", source)
    return found + environments + ["{"] * depth + (["$"] if bare.count("$") % 2 else [])


@pytest.mark.parametrize("broken", [r"\end{table}", "a_b", "100 %", "5 $", "}", "±", "x & y \\\\"])
def test_the_check_of_latex_sees_what_is_broken(broken):
    source = latex(AWKWARD)
    assert not latex_errors(source)
    assert latex_errors(f"{source}\n{broken}\n")


def test_latex_compiles(runs, tmp_path):
    sheets = [AWKWARD, table_sheet("small", collect([runs])), splits_sheet("splits", collect([runs]))]
    for sheet in sheets:
        assert not latex_errors(latex(sheet))
    assert r"\caption{50 \% of \{a\_b\} \& \#1 for \$2 \textasciitilde{} \textasciicircum{} \textbackslash{}}" in latex(
        AWKWARD
    )
    assert r"    a|b\_c & \textbf{0.71 $\pm$ 0.02} (0.73) & $-$0.012 to +0.030 \\" in latex(AWKWARD)
    assert "HI-VAE & -- & -- \\\\" in latex(AWKWARD)
    if pdflatex := shutil.which("pdflatex"):
        body = "\n".join(latex(sheet) for sheet in sheets)
        document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{body}\\end{{document}}"
        (tmp_path / "tables.tex").write_text(document)
        command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("pairs", [2, 3, 10, 40])
def test_a_paired_difference_is_that_of_scipy(pairs):
    generator = np.random.default_rng(pairs)
    reference = generator.normal(0.7, 0.02, pairs)
    values = reference + generator.normal(0.01, 0.01, pairs)
    ours = paired_difference(values.tolist(), reference.tolist())
    interval = scipy.stats.ttest_rel(values, reference).confidence_interval(0.95)
    np.testing.assert_allclose((ours.low, ours.high), (interval.low, interval.high), rtol=1e-10)
    np.testing.assert_allclose(ours.mean, np.mean(values - reference), rtol=1e-12)
    np.testing.assert_allclose(ours.std, np.std(values - reference, ddof=1), rtol=1e-12)
    assert (ours.positive, ours.pairs) == (int(np.sum(values > reference)), pairs)


def test_a_difference_needs_two_pairs():
    for values, reference in (([0.7], [0.6]), ([0.7, 0.8], [0.6, 0.7, 0.8])):
        message = f"values of {len(values)} splits, reference of {len(reference)}: run both"
        with pytest.raises(ValueError, match=message):
            paired_difference(values, reference)


DRAWS = {"mean": [0.6, 0.5, None, 0.64], "vae": [0.7, 0.64, None, 0.72], "gpvae": [0.7, 0.6, 0.65]}  # gpvae: other rows
WITH_DRAWS = {("mean", 0), ("vae", 0), ("mean", 1), ("vae", 2), ("gpvae", 2)}


@pytest.fixture
def split_runs(described, tmp_path):
    """Mean is far worse than VAE on all five splits; GP-VAE has four of them, and differs from VAE by noise."""
    folder = tmp_path / "runs"
    offsets = {"mean": [-0.1, -0.11, -0.1, -0.09, -0.1], "vae": [0.0] * 5, "gpvae": [0.01, -0.01, 0.02, -0.01]}
    for method, differences in offsets.items():
        for split, difference in enumerate(differences):
            variant = variant_name({"data.split_seed": split})
            auroc = 0.7 + 0.03 * split + difference
            for seed, shift in ((0, 0.002), (1, -0.002)) if method == "vae" else ((0, 0.0),):
                metrics = {"test/auroc": auroc + shift, "test/auroc_std": 0.02}
                draws = {"bootstrap": {"test/auroc": DRAWS[method]}} if (method, split) in WITH_DRAWS else {}
                write(folder, f"{method}_physionet", seed, metrics, variant, f"data.split_seed={split}", **draws)
        write(folder, f"{method}_physionet", 0, {"test/auroc": 0.1})  # without split: another variant
    return folder


def test_splits_say_which_order_is_settled(split_runs):
    sheet = splits_sheet("splits", collect([split_runs]))
    own = statistics.mean(0.7 + 0.03 * split for split in range(5))
    std = statistics.stdev(0.03 * split for split in range(5))
    noise = scipy.stats.ttest_rel([0.01, -0.01, 0.02, -0.01], [0.0] * 4).confidence_interval()
    worse = scipy.stats.ttest_rel([-0.1, -0.11, -0.1, -0.09, -0.1], [0.0] * 5).confidence_interval()
    rows = {row[0]: row[1:] for row in shown(sheet)}
    assert rows["VAE"] == ["5", f"{own:.3f} ± {std:.3f}", "–", "–", "–", "–", "reference"]
    assert rows["mean"][0] == "5"
    assert rows["mean"][2:] == [
        f"-0.100 ± {statistics.stdev([0.1, 0.11, 0.1, 0.09, 0.1]):.3f}",
        f"{worse.low:+.3f} to {worse.high:+.3f}",
        "0 of 5",
        f"{statistics.pstdev([-0.1, -0.14, -0.08]):.3f}",  # of the one split for which both have draws
        "worse",
    ]
    assert rows["GP-VAE"][0] == "4"
    assert rows["GP-VAE"][3:] == [f"{noise.low:+.3f} to {noise.high:+.3f}", "2 of 4", "–", "within split noise"]
    assert rows.keys() == {"mean", "VAE", "GP-VAE"}  # plus is not in the sweep, and has not been run
    others = {f"gpvae_physionet {variant_name({'data.split_seed': split})}" for split in (1, 2, 3)}
    few = {key: its for key, its in collect([split_runs]).items() if " ".join(key) not in others}
    (one,) = [row for row in shown(splits_sheet("splits", few)) if row[0] == "GP-VAE"]
    assert one == ["GP-VAE", "1", "0.710", "–", "–", "–", "–", "needs two splits"]
    assert sheet.notes[0].startswith("difference: to VAE on the same splits")
    assert sheet.below[1] == (
        "Missing: 1 of 15 runs (python -m experiments.sweep splits --local): gpvae on physionet (split_seed 4)."
    )
    against_mean = {row[0]: row[1:] for row in shown(splits_sheet("splits", collect([split_runs]), "mean", True))}
    assert against_mean["VAE"][2] == "0.020"  # the bootstrap's
    assert against_mean["VAE"][5:] == ["5 of 5", "0.025", "better"]
    assert against_mean["mean"][-1] == "reference"


def test_rows_that_both_methods_are_scored_on_are_drawn_for_both():
    """Against resampling the rows by hand; two alike methods differ far less than each does from draw to draw."""
    generator = np.random.default_rng(1)
    positive = generator.random(300) < 0.3
    first = positive + generator.normal(size=300)
    second = first + 0.3 * generator.normal(size=300)
    draws = [bootstrap_auroc(positive, score).round(4).tolist() for score in (first, second)]
    one, other = ([{"bootstrap": {"test/auroc": each}}] for each in draws)
    by_hand = []
    for _ in range(1000):
        rows = generator.integers(0, 300, 300)
        by_hand.append(roc_auc_score(positive[rows], first[rows]) - roc_auc_score(positive[rows], second[rows]))
    assert deviation_over_rows(one, other, "test/auroc") == pytest.approx(np.std(by_hand), rel=0.15)
    assert deviation_over_rows(one, other, "test/auroc") < 0.5 * np.std(draws[0])
    shifted = [{"bootstrap": {"test/auroc": [value + 0.1 for value in draws[0]]}}]
    assert deviation_over_rows(one, one + shifted, "test/auroc") == pytest.approx(0, abs=1e-12)
    assert deviation_over_rows(one, [{"metrics": {}}], "test/auroc") is None
    assert deviation_over_rows(one, [other[0] | {"data_sha256": {"file": "another"}}], "test/auroc") is None
    assert deviation_over_rows(one, [*other, {"bootstrap": {}}], "test/auroc") is None


def test_the_command_prints_writes_and_renews_the_readme(runs, tmp_path, capsys, monkeypatch):
    arguments = ["small", "--format", "markdown", str(runs)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed == markdown(table_sheet("small", collect([runs])))
    assert main([*arguments, "--output", str(tmp_path / "folder" / "table.md")]) == 0
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["table.md"]
    assert (tmp_path / "folder" / "table.md").read_text() == printed
    readme = tmp_path / "README.md"
    monkeypatch.setattr(report, "README", readme)
    readme.write_text("before\n<!-- small -->\nold\n<!-- end of small -->\nafter\n<!-- other -->\n")
    for _ in range(2):
        assert main(["small", "--readme", str(runs)]) == 0
        assert readme.read_text() == (
            f"before\n<!-- small -->\n{printed}<!-- end of small -->\nafter\n<!-- other -->\n"
        )
    assert main(["all", "--readme", str(runs)]) == 0  # splits has no marks there
    assert readme.read_text() == f"before\n<!-- small -->\n{printed}<!-- end of small -->\nafter\n<!-- other -->\n"
    assert capsys.readouterr().out == ""
    readme.write_text("no marks\n")
    assert main(["small", "--readme", str(runs)]) == 2
    assert "needs the lines '<!-- small -->' and '<!-- end of small -->'" in capsys.readouterr().err
    assert readme.read_text() == "no marks\n"


def test_all_tables_are_printed_one_after_another(runs, capsys):
    sheets = [table_sheet("small", collect([runs])), splits_sheet("splits", collect([runs]))]
    for name, form in (("text", text), ("markdown", markdown), ("latex", latex)):
        assert main(["all", "--format", name, str(runs)]) == 0
        assert capsys.readouterr().out == "\n".join(form(sheet) for sheet in sheets)
    assert main(["all", "--format", "csv", str(runs)]) == 0
    blocks = [f"{sheet.name}\n{comma_separated(sheet)}" for sheet in sheets]
    assert capsys.readouterr().out == "\n".join(blocks)
    assert main(["small", "--format", "markdown", "--differences", str(runs)]) == 0
    assert capsys.readouterr().out == markdown(with_differences(sheets[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smal"], "table 'smal' does not exist. Did you mean 'small'?"),
        (["splits", "--reference", "gpvea"], "row 'gpvea' of splits does not exist. Did you mean 'gpvae'?"),
        (["small", "--reference", "vae"], "--reference: small compares no rows"),
        (["splits", "--all"], "--all: splits has no rows beside those of its own"),
        (["all", "--reference", "vae"], "--reference: all compares no rows"),
        (["small", "--output", "FOLDER"], "cannot be written: Is a directory; choose another place"),
        (["small", "--html", "FOLDER"], "cannot be written: Is a directory; choose another place"),
    ],
)
def test_bad_input_is_named_in_one_line(arguments, message, runs, tmp_path, capsys):
    assert main([*(each.replace("FOLDER", str(tmp_path)) for each in arguments), str(runs)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_broken_file_is_named(runs, capsys):
    (runs / "broken.json").write_text("{")
    assert main(["small", str(runs)]) == 2
    assert "broken.json is not JSON" in capsys.readouterr().err


def test_published_figures_belong_to_one_table_and_give_their_source():
    known = {name for names in experiments().values() for name in names}
    seen = set()
    for table in published_tables().values():
        assert table["source"]
        if "extends" in table:
            continue
        for experiment, figures in table["figures"].items():
            assert not seen & {(experiment, metric) for metric in figures}
            seen |= {(experiment, metric) for metric in figures}
            source = table.get("sources", {}).get(experiment, table["source"])
            for metric, (mean, *std) in figures.items():
                found = published_figures(experiment)[metric]
                assert found == {"mean": mean, "std": std[0] if std else None, "source": source}
    # Of four methods of Table 3 the figures are all that was published.
    undefined = {f"{method}_" for method in ("alae", "vdvae", "gan_inversion", "gan_encoder")}
    assert {name for name, _ in seen if not name.startswith(tuple(undefined))} <= known
    assert published_figures("csdi_physionet")["test/mae"]["source"].startswith("Tashiro")
    assert published_figures("brits_physionet")["test/auroc"]["source"] == "thesis Table 2"
    assert published_figures("gpvae_digits") == {}
    assert split_name("gpvae_physionet") == ("gpvae", "physionet")


@pytest.mark.parametrize("name", published_tables())
def test_every_table_that_ships_shows_what_its_sweep_runs(name):
    table = published_tables()[name]
    assert table["caption"]
    planned = {(cell.experiment, variant_name(cell.values)) for cell in cells(table["sweep"])}
    if "splits" in table:
        splits = {cell.values[table["splits"]["over"]] for cell in cells(table["sweep"])}
        shared = [table.get("overrides", {}) | {table["splits"]["over"]: split} for split in splits]
        datasets, columns = {table["splits"]["dataset"]}, [table["splits"]]
    else:
        shared, columns = [table.get("overrides", {})], table["columns"]
        datasets = {column["dataset"] for column in columns}
    shows = {
        (
            f"{row['method']}_{dataset}",
            variant_name(row.get("overrides", {}) | each | table.get("dataset_overrides", {}).get(dataset, {})),
        )
        for row in table["rows"]
        for dataset in datasets
        for each in shared
    }
    assert planned <= shows  # every run has its row
    assert all(column["metric"] in METRICS for column in columns if column.get("show") != "seeds")
    keys = {f"{row['method']}_{dataset}" for row in table["rows"] for dataset in datasets}
    assert set(table["figures"]) <= keys
    if table["sweep"] in ("table1", "table2"):
        runnable = {name for names in experiments().values() for name in names}
        assert {each for each in shows if each[0] in runnable} == planned  # and every row its runs


@pytest.mark.parametrize("baselines", [{}, {"mean": {"test/mse": 0.2}}])
def test_the_run_table_has_a_column_for_each_baseline(baselines):
    results = {
        "metrics": {"test/mse": 0.1, "test/auroc": 0.9},
        "published": {"test/mse": {"mean": 0.117, "std": 0.002, "source": "s"}},
        "baselines": baselines,
    }
    table = run_table(results)
    assert [str(column.header) for column in table.columns] == ["metric", "ours", "published", *baselines]
    assert table.row_count == 2
    assert list(table.columns[2].cells) == ["0.117 ± 0.002", "–"]
    on_other_data = run_table(results | {"published": {}, "comparable": False})
    assert [str(column.header) for column in on_other_data.columns] == ["metric", "ours", *baselines]


def test_a_table_is_printed_without_importing_torch():
    code = "import sys\nfrom experiments.report import main\nassert main(['table2', '--format', 'csv']) == 0\n"
    code += "print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip().endswith("False False")


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_the_readme_shows_what_the_report_prints(name, capsys):
    readme = Path("README.md").read_text()
    shown = readme.split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->")[0]
    assert main([name, "--format", "markdown", str(ROOT / "results")]) == 0
    assert shown == capsys.readouterr().out


def test_a_transposed_table_has_a_line_for_each_data_set_and_deviations_within_runs(tmp_path):
    """Real rows compete for nothing, and rows on a substitute for the data are marked and compared with nothing."""
    for method, value, more in (
        ("real", 0.9, {}),
        ("smote", 0.5, {}),
        ("tabddpm", 0.55, {"warnings": ["loud: it is"]}),
    ):
        for dataset in ("abalone", "higgs-small"):
            metric = "r2" if dataset == "abalone" else "f1"
            metrics = {f"test/{metric}_catboost": value, f"test/{metric}_catboost_std": 0.01}
            write(tmp_path, f"{method}_{dataset}", 0, metrics)
            path = tmp_path / f"{method}_{dataset}-default-0.json"
            changed = json.loads(path.read_text()) | more | {"comparable": dataset == "abalone"}
            path.write_text(json.dumps(changed))
    sheet = table_sheet("table4", collect([tmp_path]))
    assert [column.title for column in sheet.columns] == ["data set", "Real", "SMOTE", "TabDDPM", "TabDDPM plus"]
    assert len(sheet.rows) == 16
    first = [cell.shown(("**", "**")) for cell in sheet.rows[0]]
    assert first == [
        "abalone, R2 ↑",
        "0.900 ± 0.010 (0.556 ± 0.004)",
        "0.500 ± 0.010 (0.549 ± 0.005)",
        "**0.550 ± 0.010** (0.550 ± 0.010)",
        "–",
    ]
    higgs = next(row for row in sheet.rows if row[0].text.startswith("higgs-small"))
    assert [cell.shown(("**", "**")) for cell in higgs[1:]] == [
        "0.900 ± 0.010† (0.724 ± 0.001)",
        "0.500 ± 0.010† (0.722 ± 0.001)",
        "0.550 ± 0.010† (0.722 ± 0.001)",
        "–",
    ]
    assert [cell.difference for cell in higgs] == [None] * 5
    assert sheet.notes[1:] == [
        "† on other data than the published, so compared with nothing.",
        "Seeds of each figure: 1.",
        "Warnings: TabDDPM on abalone, seed 0: loud; TabDDPM on higgs-small, seed 0: loud.",
    ]
    assert r"0.550 $\pm$ 0.010$\dagger$ (0.722 $\pm$ 0.001)" in latex(sheet)
    read = list(csv.DictReader(io.StringIO(comma_separated(sheet))))
    assert read[0]["TabDDPM"] == "0.55"
    assert read[0]["published TabDDPM SD"] == "0.01"
    assert float(read[0]["SMOTE, difference in published SDs"]) == pytest.approx((0.5 - 0.549) / 0.005)
    substitutes = {line["data set"]: line["on substitute data"] for line in read}
    assert substitutes["higgs-small, F1 ↑"] == "Real, SMOTE, TabDDPM"
    assert {told for name, told in substitutes.items() if not name.startswith("higgs-small")} == {""}
    assert {len(row) for row in read} == {len(next(csv.reader(io.StringIO(comma_separated(sheet)))))}
