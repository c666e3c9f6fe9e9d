"""Tables of results."""

import json
import statistics
from pathlib import Path

import pytest

from experiments.config import experiments, split_name
from experiments.report import ROOT, collect, main, markdown_table, published_figures, published_tables, run_table


def write(folder, experiment, seed, metrics, variant="default", command=None):
    folder.mkdir(parents=True, exist_ok=True)
    command = command or f"python -m experiments.run {experiment} seed={seed}"
    payload = {"experiment": experiment, "variant": variant, "seed": seed, "metrics": metrics, "command": command}
    (folder / f"{experiment}-{variant}-{seed}.json").write_text(json.dumps(payload))


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_a_table_averages_seeds_and_keeps_variants_and_missing_rows_apart(tmp_path):
    aurocs = [0.71, 0.73, 0.74]
    for seed, auroc in enumerate(aurocs):
        write(tmp_path, "gpvae_physionet", seed, {"test/auroc": auroc})
    plus = "python -m experiments.run gpvae_physionet preset=plus seed=0 logger=csv"
    write(tmp_path, "gpvae_physionet", 0, {"test/auroc": 0.75, "test/mse": 0.5}, "1a2b3c4d", plus)
    table = rows(markdown_table("table2", [tmp_path]))
    ours = [row for row in table if row[0] == "gpvae_physionet"]
    mean, std = statistics.mean(aurocs), statistics.stdev(aurocs)
    assert ours == [
        ["gpvae_physionet", "default", "3", "AUROC ↑", f"{mean:.4f} ± {std:.4f}", "0.730 ± 0.006"],
        ["gpvae_physionet", "`preset=plus`", "1", "MSE ↓", "0.5000", "–"],
        ["gpvae_physionet", "`preset=plus`", "1", "AUROC ↑", "0.7500", "0.730 ± 0.006"],
    ]
    assert ["brits_physionet", "–", "0", "AUROC ↑", "–", "0.742 ± 0.008"] in table


def test_a_run_found_twice_counts_once_and_other_json_files_not_at_all(tmp_path):
    for folder in (tmp_path / "runs", tmp_path / "results"):
        write(folder, "mean_physionet", 0, {"test/auroc": 0.7 if folder.name == "runs" else 0.1})
    (tmp_path / "runs" / "other.json").write_text("[1, 2]")
    grouped = collect([tmp_path / "runs", tmp_path / "results"])
    assert [each["metrics"] for each in grouped["mean_physionet", "default"]] == [{"test/auroc": 0.7}]


def test_bad_input_is_named_in_one_line(tmp_path, capsys):
    assert main(["tabel1", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: table 'tabel1' does not exist. Did you mean 'table1'?\n"
    (tmp_path / "broken.json").write_text("{")
    assert main(["table1", str(tmp_path)]) == 2
    assert "broken.json is not JSON" in capsys.readouterr().err


def test_published_figures_belong_to_one_table_and_give_their_source():
    known = {name for names in experiments().values() for name in names}
    seen = set()
    for table in published_tables().values():
        assert table["source"]
        for experiment in set(table) - {"source"}:
            assert experiment not in seen
            seen.add(experiment)
            for metric, (mean, std) in table[experiment].items():
                assert published_figures(experiment)[metric] == {"mean": mean, "std": std, "source": table["source"]}
    assert seen & known
    assert published_figures("gpvae_digits") == {}
    assert split_name("gpvae_physionet") == ("gpvae", "physionet")


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


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_the_readme_shows_what_the_report_prints(name):
    readme = Path("README.md").read_text()
    shown = readme.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0].strip()
    assert shown == markdown_table(name, [ROOT / "results"])
