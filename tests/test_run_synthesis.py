"""Whole runs of synthesis through the command line: continued, on the published tables."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from people import people

from datamodules import sources
from experiments.config import compose
from experiments.run import main
from lightning_modules.synthesis.tabddpm import TabDDPM

pytestmark = pytest.mark.slow
FAST = [
    "data.target=income", "max_steps=12", "hidden=[16]", "num_diffusion_steps=10", "sampling_steps=null",
    "data.batch_size=100", "trainer.log_every_n_steps=5", "data.mlp=null", "checkpoint.every_n_steps=5",
    "sampling_seeds=2", "evaluation_seeds=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "people.csv"
    people().to_csv(path, index=False)
    return [f"data.path={path}", *FAST]


def run(root, name, *overrides):
    """Run the command line; gives the run's folder and its results."""
    options = [*overrides, f"run_root={root}", "logger=csv"]
    assert main([name, *options]) == 0
    folder = compose(name, options).folder
    return folder, json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, arguments):
    return run(tmp_path_factory.mktemp("finished"), "tabddpm_csv", *arguments)


def test_results_are_complete(finished):
    folder, results = finished
    assert results["steps"] == 12
    assert results["comparable"] is False
    assert results["published"] == {}
    keys = {"test/f1_catboost", "test/f1_catboost_std", "test/dcr", "test/dcr_median",
            "test/closer_to_train", "quality/column_shapes", "quality/pair_trends", "quality/detection_trees",
            "quality/alpha_precision", "quality/beta_recall"}  # fmt: skip
    assert keys <= results["metrics"].keys()
    assert not any("mlp" in key or key.startswith("val/") for key in results["metrics"])
    assert {"synthetic.csv", "figures", "config.yaml", "log.txt"} <= {path.name for path in folder.iterdir()}
    logged = (folder / "csv" / "metrics.csv").read_text()
    assert "quality/column_shapes" in logged


@pytest.mark.parametrize(("hook", "call", "saved"), [("training_step", 9, 5), ("test_step", 1, 12)])
def test_a_run_that_is_continued_equals_one_that_never_stopped(hook, call, saved, finished, arguments, tmp_path):
    original, calls = getattr(TabDDPM, hook), 0

    def interrupted(self, batch, batch_index):
        nonlocal calls
        calls += 1
        if calls == call:
            raise InterruptedError
        return original(self, batch, batch_index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TabDDPM, hook, interrupted)
        with pytest.raises(InterruptedError):
            run(tmp_path, "tabddpm_csv", *arguments)
    folder, _ = finished
    again = tmp_path / folder.relative_to(folder.parents[2])
    last = torch.load(again / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == saved
    _, results = run(tmp_path, "tabddpm_csv", *arguments)
    assert results["metrics"] == finished[1]["metrics"]
    ours, theirs = (torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (again, folder))
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)


def test_another_table_under_the_name_is_refused(finished, arguments, tmp_path, capsys):
    folder, _ = finished
    root = tmp_path / "runs"
    shutil.copytree(folder.parents[2], root)
    (root / folder.relative_to(folder.parents[2]) / "results.json").unlink()
    path = Path(arguments[0].removeprefix("data.path="))
    original = path.read_text()
    try:
        people(seed=1).to_csv(path, index=False)
        assert main(["tabddpm_csv", *arguments, f"run_root={root}", "logger=none"]) == 2
        assert "people.csv changed since this run began" in capsys.readouterr().err
    finally:
        path.write_text(original)


@pytest.mark.parametrize("dataset", ["abalone", "diabetes", "insurance", "churn2"])
@pytest.mark.parametrize("method", ["real", "smote", "tabddpm"])
def test_published_tables(method, dataset, tmp_path, capsys):
    if not os.environ.get("GENPRED_MIRROR") and not sources.data_home().exists():
        pytest.skip("the raw files are not at hand")
    small = ["evaluation=quick", "evaluation_seeds=1", "data.num_samples=400", "data.mlp=null"]
    if method == "tabddpm":
        small += ["max_steps=3", "hidden=[8]", "num_diffusion_steps=5"]
    _, results = run(tmp_path, f"{method}_{dataset}", *small)
    metric = "r2" if dataset in ("abalone", "insurance") else "f1"
    assert results["published"].keys() >= {f"test/{metric}_catboost"}
    assert results["data_variant"] == "published"
    assert f"{results['published'][f'test/{metric}_catboost']['mean']:.3f}" in capsys.readouterr().out


def test_published_figures_are_beside_published_rows_alone(tmp_path):
    if not os.environ.get("GENPRED_MIRROR") and not sources.data_home().exists():
        pytest.skip("the raw files are not at hand")
    _, results = run(tmp_path, "real_diabetes", "data.split=seeded", "evaluation=quick", "data.mlp=null")
    assert results["comparable"] is False
    assert results["published"] == {}
