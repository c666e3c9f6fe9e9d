"""Filling tables by the command line: what was observed comes out as it went in, and everything else is filled."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import t

from datamodules.imputation.frames import MISSING, Frame
from datamodules.imputation.tables import TableFormat, read_table
from datamodules.imputation.windows import Preparation, Windows, whole
from datamodules.own_tables import TableError
from experiments.config import compose, experiments
from experiments.impute import impute, predict
from experiments.impute import main as impute_main
from experiments.run import main as run_main
from lightning_modules.imputation.constant import Constant
from lightning_modules.imputation.gpvae import GPVAE

ROOT = Path(__file__).parents[1]
NAMES = ["a", "b"]
# Quick ones; the others are tested with -m slow.
QUICK = {f"{method}_csv" for method in ("mean", "linear", "vae", "gpvae")}
SMALLER = {
    "csdi_csv": ["model.num_samples=4", "model.num_diffusion_steps=4", "model.channels=8"],
    "gruigan_csv": ["model.search_steps=4", "model.pretraining_steps=1"],
}
METHODS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in experiments()["imputation"]
    if name.endswith("_csv")
]
SHORT = [
    "logger=none",
    "data.evaluation_samples=5",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
]
TINY = ["model.latent_dim=4", "model.encoder_sizes=[8]", "model.decoder_sizes=[8]", "model.window=3"]


def make_frame(seed=0, num_series=14, length=None):
    """A long table in random order: ragged and irregular, or with series of one length on a regular grid."""
    generator = np.random.default_rng(seed)
    parts = []
    for number in range(num_series):
        size = length or generator.integers(3, 9)
        times = np.arange(size) if length else np.sort(generator.choice(40, size, replace=False)) / 2
        part = pd.DataFrame({"id": f"s{number}", "time": times})
        for name, shift in zip(NAMES, (0, 100), strict=True):
            part[name] = np.where(generator.random(size) < 0.3, np.nan, generator.normal(shift, 3, size).round(3))
        part.loc[0, NAMES] = [1.5, 99.25]
        parts.append(part)
    return pd.concat(parts).sample(frac=1, random_state=seed).reset_index(drop=True)


def train(name, path, root, *overrides):
    """Run an experiment on a table; gives the run's folder."""
    arguments = [f"data.path={path}", f"run_root={root}", *SHORT, *overrides]
    assert run_main([name, *arguments]) == 0
    return compose(name, arguments).folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of three runs on one table: two fills by a rule, and a briefly trained model."""
    root = tmp_path_factory.mktemp("runs")
    make_frame().to_csv(root / "table.csv", index=False)
    sizes = {"gpvae_csv": TINY}
    return {
        name: train(name, root / "table.csv", root, *sizes.get(name, []))
        for name in ("mean_csv", "forward_csv", "gpvae_csv")
    }


def command(run, source, target, *more):
    return impute_main(["--checkpoint", str(run), "--input", str(source), "--output", str(target), *more])


def cells(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def is_missing(cell):
    return cell.strip() in MISSING


NUMBERS = st.one_of(
    st.integers(-1000, 1000).map(str),
    st.floats(-1e6, 1e6).map(repr),
    st.sampled_from(["+1.50", "1e3", " 7", "007", "-.5", "5.", "0.1 "]),
)
GAPS = st.sampled_from(["", "", "NA", " ", "nan"])


@st.composite
def texts(draw):
    """Rows of a CSV file, in any order; the first of each series has all its values."""
    rows = []
    for number in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(["s", 'quo"ted', "com,ma", "ü x", "NA"])) + str(number)
        times = draw(st.lists(st.integers(0, 400), min_size=1, max_size=9, unique=True))
        for place, time in enumerate(times):
            values = NUMBERS if place == 0 else NUMBERS | GAPS
            rows.append([name, f"{time / 4:g}", draw(values), draw(values)])
    return [["id", "time", *draw(st.permutations(NAMES))], *draw(st.permutations(rows))]


@pytest.mark.parametrize("name", ["mean_csv", "forward_csv", "gpvae_csv"])
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=texts())
def test_observed_cells_are_written_back_to_the_letter(name, table, runs, tmp_path):
    source, target = tmp_path / "table.csv", tmp_path / "filled.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows(table)
    impute(runs[name], source, target, 0, [])
    filled = cells(target)
    assert len(filled) == len(table)
    for before, after in zip(table, filled, strict=True):
        assert before[:2] == after[:2]
        for old, new in zip(before[2:], after[2:], strict=True):
            if is_missing(old):
                assert np.isfinite(float(new))
            else:
                assert new == old
    # A table without gaps comes back byte by byte, apart from needless quotation marks, of which there are none now.
    impute(runs[name], target, tmp_path / "again.csv", 0, [])
    assert (tmp_path / "again.csv").read_bytes() == target.read_bytes()


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_parquet_keeps_index_types_and_bits(data, runs, tmp_path):
    frame = make_frame(data.draw(st.integers(0, 99)), num_series=3)
    dtype = data.draw(st.sampled_from(["float64", "float32", "Int64", "Int8"]))
    frame["a"] = frame["a"].round() if "Int" in dtype else frame["a"]
    frame["a"] = frame["a"].astype(dtype)
    frame["id"] = frame["id"].astype(data.draw(st.sampled_from(["object", "category"])))
    index = data.draw(st.sampled_from(["range", "numbers", "columns"]))
    if index == "numbers":
        frame.index = np.random.default_rng(0).permutation(len(frame))
    elif index == "columns":
        frame = frame.set_index(["id", "time"])
    frame.to_parquet(tmp_path / "table.parquet")
    frame = pd.read_parquet(tmp_path / "table.parquet")  # what Parquet makes of its types
    impute(runs["gpvae_csv"], tmp_path / "table.parquet", tmp_path / "filled.parquet", 0, [])
    filled = pd.read_parquet(tmp_path / "filled.parquet")
    pd.testing.assert_index_equal(filled.index, frame.index)
    assert list(filled.columns) == list(frame.columns)
    expected = frame.dtypes.to_dict()
    if frame["a"].isna().any() and "Int" in dtype:
        expected["a"] = np.dtype("float64")
    assert filled.dtypes.to_dict() == expected
    assert not filled[NAMES].isna().any().any()
    for name in NAMES:
        known = frame[name].notna().to_numpy()
        np.testing.assert_array_equal(
            filled[name].to_numpy()[known].astype("float64"), frame[name].to_numpy()[known].astype("float64")
        )


def test_categories_without_a_gap_stay_categories():
    column = pa.array(["1", "2", "1"]).dictionary_encode()
    frame = Frame(Path("table.parquet"), pa.table({"a": column}), None)
    assert frame.filled("a", np.zeros(3, bool), np.zeros(3)).type == column.type


def test_a_name_that_is_taken_is_told_before_the_work(runs, tmp_path, capsys, monkeypatch):
    make_frame().assign(a_std=1.0).to_csv(tmp_path / "table.csv", index=False)
    monkeypatch.setattr("experiments.impute.predict", None)
    options = ["data.variables=[a,b]", *TINY]
    run = train("gpvae_csv", tmp_path / "table.csv", tmp_path / "runs", *options)
    capsys.readouterr()
    assert command(run, tmp_path / "table.csv", tmp_path / "filled.csv", "--samples", "2") == 2
    assert "has a column 'a_std' already: rename it" in capsys.readouterr().err


def test_whole_numbers_stay_whole_where_they_can(runs, tmp_path):
    frame = pd.DataFrame({"id": "s", "time": range(4), "a": pd.array([7, None, None, 7], "Int64"), "b": 1.5})
    frame.to_parquet(tmp_path / "table.parquet")
    impute(runs["mean_csv"], tmp_path / "table.parquet", tmp_path / "filled.parquet", 0, [])
    filled = pd.read_parquet(tmp_path / "filled.parquet")
    assert filled["a"].dtype == "Int64"
    assert filled["a"].tolist() == [7, 7, 7, 7]
    frame["a"] = pd.array([7, None, 8, 2**53 + 1], "Int64")
    frame["id"] = ["s", "s", "s", "t"]
    frame.to_parquet(tmp_path / "table.parquet")
    impute(runs["mean_csv"], tmp_path / "table.parquet", tmp_path / "filled.parquet", 0, [])
    filled = pd.read_parquet(tmp_path / "filled.parquet")
    assert filled["a"].dtype == "Int64"
    assert filled["a"].tolist()[2:] == [8, 2**53 + 1]


def test_a_large_whole_number_beside_a_fill_that_is_not_whole_is_refused():
    table = pa.table({"a": pa.array([2**53 + 1, None, 2**54], pa.int64())})
    frame, missing = Frame(Path("new.parquet"), table, None), np.array([False, True, False])
    message = rf"^new\.parquet, row 1, column 'a': {2**53 + 1} would lose digits .* save the column as float64$"
    with pytest.raises(TableError, match=message):
        frame.filled("a", missing, np.array([0, 0.5, 0]))
    assert frame.filled("a", missing, np.array([0, 5.0, 0])).to_pylist() == [2**53 + 1, 5, 2**54]
    exact = Frame(Path("new.parquet"), table.slice(1), None)
    assert exact.filled("a", missing[1:], np.array([0.5, 0])).to_pylist() == [0.5, 2.0**54]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 99), dtype=st.sampled_from(["float32", "float64", "float16"]))
def test_arrays_keep_type_bits_and_padding(seed, dtype, runs, tmp_path):
    generator = np.random.default_rng(seed)
    values = generator.normal([0, 100], 3, size=(4, 6, 2)).astype(dtype)
    values[generator.random(values.shape) < 0.4] = np.nan
    values[:, 0] = 1
    times = np.tile(np.arange(6.0), (4, 1))
    times[1, 4:] = values[1, 4:] = np.nan
    arrays = {"values": values, "times": times, "variables": np.array(NAMES), "note": np.array(["kept"])}
    np.savez(tmp_path / "table.npz", **arrays)
    impute(runs["gpvae_csv"], tmp_path / "table.npz", tmp_path / "filled.npz", 10, [0.5])
    with np.load(tmp_path / "filled.npz", allow_pickle=False) as filled:
        assert set(filled.files) == {*arrays, "values_std", "values_q0.5"}
        for name in ("times", "variables", "note"):
            np.testing.assert_array_equal(filled[name], arrays[name])
        for name in ("values", "values_std", "values_q0.5"):
            assert filled[name].dtype == dtype
            assert np.isnan(filled[name][1, 4:]).all()
            assert np.isfinite(np.delete(filled[name], 1, axis=0)).all()
            assert np.isfinite(filled[name][1, :4]).all()
        known = ~np.isnan(values)
        for name in ("values", "values_q0.5"):
            assert filled[name][known].tobytes() == values[known].tobytes()
        assert (filled["values_std"][known] == 0).all()
        assert (filled["values_std"][~known & (times >= 0)[..., None]] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward_csv", "gpvae_csv"])
def test_every_format_and_layout_gives_the_same_imputations(name, tmp_path):
    frame = make_frame(length=6).sort_values(["id", "time"], kind="stable").reset_index(drop=True)
    wide = frame.pivot(index="id", columns="time", values=NAMES)
    wide.columns = [f"{variable}@{time}" for variable, time in wide.columns]
    wide = wide.reset_index()
    values = frame[NAMES].to_numpy().reshape(14, 6, 2)
    frame.sample(frac=1, random_state=2).sort_values("id", kind="stable").to_csv(tmp_path / "long.csv", index=False)
    frame.to_parquet(tmp_path / "long.parquet")
    wide.to_csv(tmp_path / "wide.csv", index=False)
    wide.to_parquet(tmp_path / "wide.parquet")
    np.savez(tmp_path / "table.npz", values=values, variables=NAMES)
    found = {}
    for kind in ("long.csv", "long.parquet", "wide.csv", "wide.parquet", "table.npz"):
        layout = ["data.layout=wide"] if kind.startswith("wide") else []
        sizes = TINY if name == "gpvae_csv" else []
        run = train(name, tmp_path / kind, tmp_path / "runs", *layout, *sizes)
        target = tmp_path / f"filled-{kind}"
        assert command(run, tmp_path / kind, target) == 0
        if kind == "table.npz":
            found[kind] = np.load(target)["values"]
            continue
        filled = (pd.read_csv if kind.endswith("csv") else pd.read_parquet)(target)
        if kind.startswith("long"):
            found[kind] = filled.sort_values(["id", "time"])[NAMES].to_numpy().reshape(14, 6, 2)
        else:
            found[kind] = np.stack([filled[[f"{n}@{t}" for t in range(6)]].to_numpy() for n in NAMES], axis=-1)
    known = ~np.isnan(values)
    for kind, array in found.items():
        np.testing.assert_array_equal(array[known], values[known], err_msg=kind)
        np.testing.assert_array_equal(array, found["table.npz"], err_msg=kind)
    if name == "forward_csv":  # whose answer can be told without it: at the gap the value before it, to the digit
        forward = frame.groupby("id")[NAMES].ffill().to_numpy().reshape(14, 6, 2)
        np.testing.assert_array_equal(found["table.npz"], forward)


def test_one_run_fills_files_of_every_format(runs, tmp_path):
    frame = make_frame(3, num_series=5)
    frame.to_csv(tmp_path / "table.csv", index=False)
    frame.to_parquet(tmp_path / "table.parquet")
    for suffix in ("csv", "parquet"):
        assert command(runs["gpvae_csv"], tmp_path / f"table.{suffix}", tmp_path / f"filled.{suffix}") == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "filled.csv"), pd.read_parquet(tmp_path / "filled.parquet"))
    # A series is filled alike whatever stands beside it, and wherever its rows stand.
    alone = frame[frame["id"] == "s3"].sort_values("time", ascending=False)
    alone.to_csv(tmp_path / "alone.csv", index=False)
    assert command(runs["gpvae_csv"], tmp_path / "alone.csv", tmp_path / "alone-filled.csv") == 0
    together = pd.read_csv(tmp_path / "filled.csv").query("id == 's3'").sort_values("time", ascending=False)
    np.testing.assert_allclose(pd.read_csv(tmp_path / "alone-filled.csv")[NAMES], together[NAMES], rtol=1e-6)


def test_samples_become_spreads_and_ordered_quantiles(runs, tmp_path):
    frame = make_frame(4)
    frame.to_csv(tmp_path / "table.csv", index=False)
    more = ["--samples", "200", "--quantiles", "0.95,0.05,0.5"]
    assert command(runs["gpvae_csv"], tmp_path / "table.csv", tmp_path / "filled.csv", *more) == 0
    text = pd.read_csv(tmp_path / "filled.csv", dtype=str)
    original = pd.read_csv(tmp_path / "table.csv", dtype=str, keep_default_na=False)
    added = [f"{name}_{what}" for name in NAMES for what in ("std", "q0.05", "q0.5", "q0.95")]
    assert list(text.columns) == ["id", "time", *NAMES, *added]
    assert not text.isna().any().any()
    for name in NAMES:
        known = frame[name].notna().to_numpy()
        for column in (name, f"{name}_q0.05", f"{name}_q0.5", f"{name}_q0.95"):
            assert (text[column] == original[name])[known].all()
        low, middle, high, spread = (text[f"{name}_{what}"].astype(float) for what in ("q0.05", "q0.5", "q0.95", "std"))
        assert (spread[known] == 0).all()
        assert (spread[~known] > 0).all()
        assert (low < middle)[~known].all()
        assert (middle < high)[~known].all()
        # Student's noise around a latent that hardly varies: the quantiles are where the spread says they are.
        expected = 2 * t(4).ppf(0.95) / t(4).std()
        np.testing.assert_allclose(((high - low) / spread)[~known].mean(), expected, rtol=0.05)
        np.testing.assert_allclose(((text[name].astype(float) - middle) / spread)[~known].mean(), 0, atol=0.3)
    plain = tmp_path / "plain.csv"
    assert command(runs["gpvae_csv"], tmp_path / "table.csv", plain) == 0
    assert (pd.read_csv(plain, dtype=str) == text[["id", "time", *NAMES]]).all().all()


def test_a_rule_takes_a_series_whole(tmp_path):
    """Whatever the window: the truth is pandas'."""
    frame = pd.DataFrame({"time": np.arange(60.0), "a": np.arange(60.0) ** 1.5})
    frame.loc[[1, 7, *range(20, 45), 58, 59], "a"] = np.nan
    frame.to_csv(tmp_path / "table.csv", index=False)
    options = ["data.id_column=null", "data.split_by=time", "data.window=8", "data.holdout_fraction=0.3"]
    for method, filled in (("linear", frame["a"].interpolate(limit_direction="both")), ("forward", frame["a"].ffill())):
        run = train(f"{method}_csv", tmp_path / "table.csv", tmp_path / method, *options)
        assert command(run, tmp_path / "table.csv", tmp_path / "filled.csv") == 0
        np.testing.assert_allclose(pd.read_csv(tmp_path / "filled.csv")["a"], filled, rtol=1e-10)


def test_windows_are_blended(tmp_path):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"time": np.arange(23), "a": generator.normal(5, 2, 23), "b": generator.normal(size=23)})
    frame.loc[generator.random(23) < 0.4, "a"] = np.nan
    frame.loc[4:13, "b"] = np.nan  # one window sees nothing of b
    frame.to_csv(tmp_path / "table.csv", index=False)
    table = read_table(tmp_path / "table.csv", TableFormat(id_column=None))
    series = whole(table.series)
    preparation = Preparation.fit(table, series, 8, 3)
    rows = preparation.rows(table.series, dtype=torch.float64)
    windows = Windows(rows, series.cut(8, 3), 8, np.zeros(6, dtype=np.int64))
    filled, _ = predict(Constant("mean"), windows, preparation, 0, [], 4)
    values = frame[NAMES].to_numpy()
    total, weights = np.zeros((23, 2)), np.zeros((23, 1))
    for start in (0, 3, 6, 9, 12, 15):
        part = values[start : start + 8]
        average = [np.nanmean(part[:, j] if np.isfinite(part[:, j]).any() else values[:, j]) for j in (0, 1)]
        weight = np.array([1, 2, 3, 4, 4, 3, 2, 1])[:, None]
        total[start : start + 8] += weight * average
        weights[start : start + 8] += weight
    expected = np.where(np.isnan(values), total / weights, values)
    np.testing.assert_allclose(np.where(np.isnan(values), filled[""], values), expected, rtol=1e-10)


def test_longer_series_than_those_of_the_training_are_filled(runs, tmp_path):
    long = make_frame(5, num_series=1, length=100)
    long.to_csv(tmp_path / "table.csv", index=False)
    more = ["--samples", "5", "--quantiles", "0.1,0.9"]
    assert command(runs["gpvae_csv"], tmp_path / "table.csv", tmp_path / "filled.csv", *more) == 0
    assert not pd.read_csv(tmp_path / "filled.csv").isna().any().any()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_a_table_and_fills_it(name, tmp_path, capsys):
    frame = make_frame(6).assign(comment="some, text")
    frame.to_csv(tmp_path / "table.csv", index=False)
    overrides = ["data.variables=[a,b]", "trainer.max_steps=2", *SMALLER.get(name, [])]
    folder = train(name, tmp_path / "table.csv", tmp_path / "runs", *overrides)
    results = json.loads((folder / "results.json").read_text())
    assert {"test/mse", "test/mae"} <= results["metrics"].keys()
    assert not any("auroc" in metric for metric in results["metrics"])
    assert results["data_variant"] == "own"
    assert list(results["data_sha256"]) == ["table.csv"]
    os.unlink(tmp_path / "table.csv")  # the run holds all that is needed
    make_frame(7).to_csv(tmp_path / "new.csv", index=False)
    capsys.readouterr()
    assert command(folder, tmp_path / "new.csv", tmp_path / "filled.csv") == 0
    gaps = int(make_frame(7)[NAMES].isna().sum().sum())
    assert f"filled {gaps} of " in capsys.readouterr().out
    assert not pd.read_csv(tmp_path / "filled.csv").isna().any().any()


def test_brits_learns_from_the_classes_of_a_table(tmp_path):
    frame = make_frame(8, num_series=40, length=4)
    frame["kind"] = frame["id"].str[1:].astype(int) % 3
    frame.to_csv(tmp_path / "table.csv", index=False)
    overrides = ["data.label_column=kind", "model.label_weight=1.0", "data.test_fraction=0.5"]
    folder = train("brits_csv", tmp_path / "table.csv", tmp_path / "runs", *overrides)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["hyper_parameters"]["num_classes"] == 3
    assert any(name.startswith("classifier.") for name in state["state_dict"])
    assert command(folder, tmp_path / "table.csv", tmp_path / "filled.csv") == 0
    assert not pd.read_csv(tmp_path / "filled.csv").isna().any().any()


class InterruptionError(Exception):
    pass


def test_an_interrupted_training_is_continued_to_the_same_weights(runs, tmp_path, capsys):
    table = runs["gpvae_csv"].parents[2] / "table.csv"
    original, calls = GPVAE.training_step, 0

    def interrupted(self, batch, batch_index):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise InterruptionError
        return original(self, batch, batch_index)

    overrides = [*TINY, "checkpoint.every_n_steps=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPVAE, "training_step", interrupted)
        with pytest.raises(InterruptionError):
            train("gpvae_csv", table, tmp_path, *overrides)
    folder = train("gpvae_csv", table, tmp_path, *overrides)
    ours, theirs = (
        torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (folder, runs["gpvae_csv"])
    )
    assert ours["global_step"] == 4
    assert "continuing from" in (folder / "log.txt").read_text()
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)


def test_a_run_is_not_continued_on_a_table_that_has_changed(tmp_path, capsys):
    make_frame().to_csv(tmp_path / "table.csv", index=False)
    folder = train("gpvae_csv", tmp_path / "table.csv", tmp_path, *TINY)
    make_frame(1).to_csv(tmp_path / "table.csv", index=False)
    arguments = [f"data.path={tmp_path / 'table.csv'}", f"run_root={tmp_path}", *SHORT, *TINY]
    assert run_main(["gpvae_csv", *arguments]) == 2  # nor are the scores of the old one shown as its own
    assert "table.csv changed since this run was finished: put" in capsys.readouterr().err.splitlines()[-1]
    (folder / "results.json").unlink()
    capsys.readouterr()
    assert run_main(["gpvae_csv", *arguments]) == 2
    assert "has changed since this run began" in capsys.readouterr().err.splitlines()[-1]


GOOD = "id,time,a,b\ns,0,1,2\ns,1,,3\nu,0,4,\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "v,0,1\n", "line 5: 3 cells, but the header has 4"),
        (GOOD.replace("a,b", "aa,b"), "column 'a' is missing. Did you mean 'aa'?"),
        (GOOD.replace("\n", ",0\n").replace("a,b,0", "a,b,B2"), "column 'B2' is unknown to this run."),
        (GOOD.replace("3", "three"), "line 3, column 'b': 'three' stands where a number belongs"),
        (GOOD + "v,0,,\n", "line 5, column 'time': series 'v' has no observed value at all"),
        (GOOD + "s,1.0,1,1\n", "line 5, column 'time': series 's' has this time stamp already at"),
    ],
)
def test_a_bad_table_is_one_line_and_nothing_is_written(content, message, runs, tmp_path, capsys):
    (tmp_path / "table.csv").write_text(content)
    assert command(runs["gpvae_csv"], tmp_path / "table.csv", tmp_path / "filled.csv") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {tmp_path / 'table.csv'}")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_bad_run_or_option_is_one_line(runs, tmp_path, capsys):
    table = runs["gpvae_csv"].parents[2] / "table.csv"
    untrained, other, damaged = (tmp_path / name for name in ("untrained", "other", "damaged"))
    for folder in (untrained, other, damaged):
        folder.mkdir()
        config = (runs["gpvae_csv"] / "config.yaml").read_text()
        if folder == other:
            config = config.replace("imputation.csv.CSV", "imputation.physionet.Physionet")
        (folder / "config.yaml").write_text(config)
    (damaged / "checkpoints").mkdir()
    (damaged / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    run, target = runs["gpvae_csv"], tmp_path / "filled.csv"
    for arguments, message in (
        ((tmp_path / "none", table, target), "not a run's folder (with config.yaml in it)"),
        ((run / "checkpoints" / "first.ckpt", table, target), "nor a checkpoint in one"),
        ((untrained, table, target), "there is no checkpoint yet"),
        ((other, table, target), "its run is on Physionet, not on a table"),
        ((damaged, table, target), "last.ckpt cannot be used: checkpoint"),
        ((run, table, tmp_path / "filled.npz"), "it has to end in '.csv'"),
        ((run, tmp_path / "none.csv", target), "none.csv is not there"),
        ((run, table, table / "filled.csv"), "cannot be written: "),
        ((run, table, target, "--quantiles", "0.5"), "are taken from samples: add --samples 100"),
        ((run, table, target, "--samples", "9", "--quantiles", "0.5;1"), "write numbers between 0 and 1"),
        ((run, table, target, "--samples", "9", "--quantiles", "0,1"), "they must lie between 0 and 1"),
        ((run, table, target, "--samples", "1"), "a spread takes 2 or more"),
        ((run, table, target, "--device", "abacus"), "--device abacus cannot be used"),
        ((runs["mean_csv"], table, target, "--samples", "9"), "Constant gives a point, not a distribution"),
    ):
        capsys.readouterr()
        assert command(*arguments) == 2, message
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err
    assert not target.exists()


def test_a_checkpoint_can_be_named(runs, tmp_path):
    table = runs["gpvae_csv"].parents[2] / "table.csv"
    for name in ("last", "best"):
        assert command(runs["gpvae_csv"] / "checkpoints" / f"{name}.ckpt", table, tmp_path / f"{name}.csv") == 0
    assert command(runs["gpvae_csv"], table, tmp_path / "default.csv") == 0
    assert (tmp_path / "default.csv").read_bytes() == (tmp_path / "last.csv").read_bytes()


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_the_output_is_whole_or_absent(suffix, runs, tmp_path, monkeypatch):
    source = tmp_path / f"table.{suffix}"
    if suffix == "npz":
        np.savez(source, values=[[[1, np.nan], [np.nan, 2.0]]], variables=NAMES)
    else:
        getattr(make_frame(), f"to_{suffix}")(source, index=False)
    before = source.read_bytes()

    def fail(descriptor):
        raise InterruptionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(InterruptionError):
            command(runs["forward_csv"], source, source)
    assert source.read_bytes() == before
    assert list(tmp_path.iterdir()) == [source]
    source.chmod(0o600)
    assert command(runs["forward_csv"], source, source) == 0  # the input itself may be replaced
    assert source.read_bytes() != before
    assert source.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [source]


def test_help_says_what_it_does_without_importing_torch():
    code = "import sys\ntry:\n  from experiments.impute import main; main(['--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--quantiles" in done.stdout
    assert done.stdout.strip().endswith("False")
