"""The user's own tables: layouts, checks, split, windows, z-scores."""

import dataclasses
import io
import math
from itertools import chain

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.imputation.csv import CSV
from datamodules.imputation.tables import TableFormat, read_shape, read_table
from datamodules.imputation.windows import Preparation, Segments
from datamodules.own_tables import TableError

NAMES = ["a", "b"]


def random_frame(seed=0, num_series=12, regular=False, equal=False):
    """Long table with gaps, in random order: ragged, with stamps of any spacing unless told otherwise."""
    generator = np.random.default_rng(seed)
    parts = []
    for number in range(num_series):
        length = 6 if equal else generator.integers(2, 9)
        times = np.arange(length) * 0.5 if regular else generator.choice(200, length, replace=False) / 8
        part = pd.DataFrame({"id": f"s{number}", "time": times + number})
        for name in NAMES:
            part[name] = np.where(generator.random(length) < 0.3, np.nan, generator.normal(5, 3, length))
        part.loc[0, NAMES] = generator.normal(5, 3, 2)
        parts.append(part)
    return pd.concat(parts).sample(frac=1, random_state=seed).reset_index(drop=True)


def write(frame, path):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)
    return path


def to_wide(frame):
    """The same series in wide layout, those that appear first in front."""
    ids = list(dict.fromkeys(frame["id"]))
    wide = frame.pivot(index="id", columns="time", values=NAMES).loc[ids]
    wide.columns = [f"{name}@{time:g}" for name, time in wide.columns]
    return wide.reset_index()


def to_arrays(frame):
    """The same series as arrays, padded with NaN."""
    ids = list(dict.fromkeys(frame["id"]))
    parts = [frame[frame["id"] == each].sort_values("time") for each in ids]
    length = max(map(len, parts))

    def pad(array):
        return np.concatenate([array, np.full((length - len(array), *array.shape[1:]), np.nan)])

    return {
        "values": np.stack([pad(part[NAMES].to_numpy()) for part in parts]),
        "times": np.stack([pad(part["time"].to_numpy()) for part in parts]),
        "ids": np.array(ids),
        "variables": np.array(NAMES),
    }


def make(path, **options):
    module = CSV(str(path), **options)
    module.prepare_data()
    module.setup()
    return module


def everything(dataset):
    return dataset[torch.arange(len(dataset))]


def sets(module):
    return module.train_set, module.validation_set, module.test_set


def assert_equal_batches(batch, other):
    for ours, theirs in zip(batch, other, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert torch.equal(ours, theirs)


def test_batches_are_the_z_scored_series_of_the_split(tmp_path):
    frame = random_frame()
    module = make(write(frame, tmp_path / "table.csv"), holdout_fraction=0.25)
    ids = list(dict.fromkeys(frame["id"]))
    order = np.random.default_rng(0).permutation(12)
    parts = np.split(order, [9, 10])  # 12 series: a tenth and a fifth, rounded
    training = frame[frame["id"].isin([ids[k] for k in parts[0]])]
    mean, deviation = training[NAMES].mean().to_numpy(), training[NAMES].std(ddof=0).to_numpy()
    np.testing.assert_allclose(module.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(module.standard_deviation, deviation, rtol=1e-12)
    gaps = np.concatenate([np.diff(np.sort(part["time"])) for _, part in frame.groupby("id")])
    longest = frame.groupby("id").size().max()
    assert module.model_arguments == {
        "num_features": 2, "num_steps": longest, "likelihood": "gaussian", "image_shape": None,
    }  # fmt: skip
    for number, (numbers, dataset) in enumerate(zip(parts, sets(module), strict=True)):
        batch = everything(dataset)
        assert batch.values.shape == (len(numbers), longest, 2)
        assert [each.dtype for each in batch] == [
            torch.float32, torch.bool, torch.float32, torch.bool, torch.int64, torch.int64, torch.float64,
        ]  # fmt: skip
        assert batch.index.tolist() == list(range(len(numbers)))
        assert not (batch.observed_mask & batch.target_mask).any()
        assert torch.equal(batch.values, batch.target * batch.observed_mask)
        for row, k in enumerate(numbers):
            series = frame[frame["id"] == ids[k]].sort_values("time")
            length = len(series)
            known = batch.observed_mask[row] | batch.target_mask[row]
            np.testing.assert_array_equal(known[:length].numpy(), series[NAMES].notna().to_numpy())
            scores = (series[NAMES].to_numpy() - mean) / deviation
            np.testing.assert_allclose(batch.target[row, :length], np.nan_to_num(scores), rtol=1e-6, atol=1e-6)
            assert not known[length:].any()
            assert not batch.target[row, length:].any()
            steps = (series["time"] - series["time"].min()).to_numpy() / np.median(gaps)
            padded = [*steps, *(steps[-1] + np.arange(1, longest - length + 1))]
            np.testing.assert_allclose(batch.times[row], padded, rtol=1e-6)
        hidden, known = batch.target_mask.sum(), (batch.target_mask | batch.observed_mask).sum()
        assert hidden == (round(0.25 * known.item()) if number else 0)
    shown = batch.target_mask, batch.observed_mask
    again = everything(make(tmp_path / "table.csv", holdout_fraction=0.25, seed=5).test_set)
    assert torch.equal(again.target_mask, shown[0])
    other = everything(make(tmp_path / "table.csv", holdout_fraction=0.25, holdout_seed=1).test_set)
    assert not torch.equal(other.target_mask, shown[0])


def test_stamps_behind_a_long_pause_stay_apart(tmp_path):
    """Milliseconds of two sessions a day apart: float32 has no whole numbers between 86,400,000 and 86,400,008."""
    stamps = [*range(8), *range(86_400_000, 86_400_008)]
    rows = [f"s{number},{stamp},{stamp % 7}" for number in range(12) for stamp in stamps]
    (tmp_path / "table.csv").write_text("\n".join(["id,time,a", *rows]))
    batch = everything(make(tmp_path / "table.csv").test_set)
    assert batch.times.tolist() == [stamps] * len(batch.times)


def test_steps_are_counted_within_a_series_where_there_are_no_stamps(tmp_path):
    """Rows of the series by turns, as tables to which each day appends its rows."""
    rows = [f"s{number},{step}" for step in range(4) for number in range(12)]
    (tmp_path / "table.csv").write_text("\n".join(["id,a", *rows]))
    batch = everything(make(tmp_path / "table.csv", time_column=None, holdout_fraction=0.5).train_set)
    assert batch.times is None  # the regular grid
    expected = torch.arange(4.0).expand(len(batch.target), -1)
    spread = np.std(range(4))
    torch.testing.assert_close(batch.target[..., 0] * spread + 1.5, expected)


@pytest.mark.parametrize("kind", ["wide.csv", "long.parquet", "wide.parquet", "arrays.npz", "columns.npz"])
def test_every_layout_gives_the_same_batches(kind, tmp_path):
    ragged = kind == "arrays.npz"  # the wide layout has one grid for all series
    frame = random_frame(regular=True, equal=not ragged)
    frame["time"] = frame["time"] - frame.groupby("id")["time"].transform("min") + 2
    expected = make(write(frame, tmp_path / "table.csv"))
    path = tmp_path / kind
    if path.suffix == ".npz":
        arrays = to_arrays(frame)
        if kind == "columns.npz":
            arrays |= {"values": arrays["values"][..., ::-1], "variables": np.array(NAMES[::-1])}
            arrays["times"] = arrays["times"][0]
        np.savez(path, **arrays)
        options = {"variables": NAMES}
    elif kind.startswith("wide"):
        write(to_wide(frame).iloc[:, ::-1], path)
        options = {"layout": "wide", "variables": NAMES}
    else:
        options = {}
        write(frame, path)
    module = make(path, **options)
    for ours, theirs in zip(sets(module), sets(expected), strict=True):
        assert_equal_batches(everything(ours), everything(theirs))
    assert module.variables == NAMES
    assert module.model_arguments == expected.model_arguments


@pytest.mark.parametrize(("regular", "equal"), [(True, True), (True, False), (False, True)])
def test_stamps_are_left_out_where_all_rows_stand_on_the_grid(regular, equal, tmp_path):
    module = make(write(random_frame(regular=regular, equal=equal), tmp_path / "table.csv"))
    assert (everything(module.train_set).times is None) == regular


def test_dates_are_counted_in_the_unit_from_the_series_first(tmp_path):
    frame = random_frame()
    numbers = read_table(write(frame, tmp_path / "numbers.csv"), TableFormat())
    start = pd.Timestamp("2024-02-28T12:00")
    dates = start + pd.to_timedelta(frame["time"] * 3600, unit="s")
    form = TableFormat(time_unit="hour")
    zone = dates.dt.tz_localize("UTC").dt.tz_convert("America/New_York")
    for number, column in enumerate((dates.map(lambda each: each.isoformat()), zone.map(str))):
        table = read_table(write(frame.assign(time=column), tmp_path / f"{number}.csv"), form)
        np.testing.assert_allclose(table.series.times, numbers.series.times, atol=1e-9)
        np.testing.assert_array_equal(table.series.values, numbers.series.values)
    for number, column in enumerate((dates, zone, dates.dt.as_unit("ns"))):
        table = read_table(write(frame.assign(time=column), tmp_path / f"{number}.parquet"), form)
        np.testing.assert_allclose(table.series.times, numbers.series.times, atol=1e-9)
    arrays = to_arrays(frame)
    padded = np.isnan(arrays["times"])
    stamps = start.to_datetime64() + (np.nan_to_num(arrays["times"]) * 3600).astype("timedelta64[s]")
    stamps[padded] = np.datetime64("NaT")
    np.savez(tmp_path / "arrays.npz", **arrays | {"times": stamps})
    table = read_table(tmp_path / "arrays.npz", form)
    np.testing.assert_allclose(table.series.times, numbers.series.times, atol=1e-9)
    days = read_table(tmp_path / "0.csv", dataclasses.replace(form, time_unit="day"))
    np.testing.assert_allclose(days.series.times * 24, numbers.series.times, atol=1e-9)


def test_nothing_but_observed_training_entries_enters_the_training(tmp_path):
    frame = random_frame()
    before = make(write(frame, tmp_path / "table.csv"))
    ids = list(dict.fromkeys(frame["id"]))
    elsewhere = frame["id"].isin([ids[k] for k in np.random.default_rng(0).permutation(12)[9:]])
    changed = frame.copy()
    changed.loc[elsewhere, NAMES] = changed.loc[elsewhere, NAMES] * 100 + 7
    after = make(write(changed, tmp_path / "changed.csv"))
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.standard_deviation, before.standard_deviation)
    assert_equal_batches(everything(after.train_set), everything(before.train_set))
    assert not torch.equal(everything(after.test_set).values, everything(before.test_set).values)
    # The hidden values themselves reach the target only.
    batch, other = everything(before.test_set), everything(after.test_set)
    assert torch.equal(batch.target_mask, other.target_mask)
    assert not batch.values[batch.target_mask].any()


def test_a_long_series_is_split_in_time_and_cut_into_windows(tmp_path):
    generator = np.random.default_rng(1)
    frame = pd.DataFrame({"time": np.arange(200), "a": generator.normal(size=200), "b": np.arange(200.0)})
    frame.loc[generator.random(200) < 0.2, "a"] = np.nan
    options = {"id_column": None, "split_by": "time", "window": 20, "stride": 8, "missingness": "block"}
    module = make(write(frame, tmp_path / "table.csv"), **options)
    assert module.model_arguments["num_steps"] == 20
    training = frame[:140]
    np.testing.assert_allclose(module.mean, training[NAMES].mean(), rtol=1e-12)

    def rows_of(dataset):  # b is the number of the row
        batch = everything(dataset)
        inside = (batch.observed_mask | batch.target_mask)[..., 1]
        rows = batch.target[..., 1].double().numpy() * module.standard_deviation[1] + module.mean[1]
        return [np.rint(each[mask]).astype(int).tolist() for each, mask in zip(rows, inside.numpy(), strict=True)]

    starts = [*range(0, 120, 8), 120]
    assert rows_of(module.train_set) == [list(range(start, start + 20)) for start in starts]
    validation, test = rows_of(module.validation_set), rows_of(module.test_set)
    assert list(chain(*validation)) == list(range(140, 160))
    assert list(chain(*test)) == list(range(160, 200))
    assert everything(module.train_set).times is None
    whole = make(tmp_path / "table.csv", id_column=None, split_by="time")
    assert [len(each) for each in sets(whole)] == [1, 1, 1]
    assert whole.model_arguments["num_steps"] == 140


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    length=st.integers(1, 12),
    stride=st.none() | st.integers(1, 12),
)
def test_windows_cover_every_row(lengths, length, stride):
    stride = stride and min(stride, length)
    stops = np.cumsum(lengths)
    segments = Segments(stops - lengths, stops, np.arange(len(lengths)))
    windows = segments.cut(length, stride)
    covered = np.zeros(stops[-1], dtype=int)
    for start, stop, series in zip(*windows, strict=True):
        assert segments.starts[series] <= start < stop <= segments.stops[series]
        assert stop - start <= length
        if stride:
            assert stop - start == min(length, lengths[series])
        covered[start:stop] += 1
    assert covered.min() == 1
    if stride is None:
        assert covered.max() == 1
        assert len(windows.starts) == sum(math.ceil(each / length) for each in lengths)
    else:
        starts = [windows.starts[windows.series == k] for k in range(len(lengths))]
        assert all((np.diff(each) <= stride).all() and (np.diff(each) > 0).all() for each in starts)


def test_classes_make_a_classifier(tmp_path):
    frame = random_frame(num_series=60, regular=True, equal=True)
    number = frame["id"].str[1:].astype(int)
    path = write(frame.assign(y=np.where(number % 2, "no", "yes"), z=number % 3), tmp_path / "table.csv")
    assert make(path, variables=NAMES).evaluation_arguments == {
        "num_features": 2, "rounded": False, "classifier": None, "samples": 100,
    }  # fmt: skip
    for column, classifier, remainder in (("y", "binary", 2), ("z", "multinomial", 3)):
        module = make(path, variables=NAMES, label_column=column, test_fraction=0.5)
        assert module.model_arguments["num_classes"] == remainder
        assert module.evaluation_arguments["classifier"] == classifier
        ids = [int(each[1:]) for each in dict.fromkeys(frame["id"])]
        order = np.random.default_rng(0).permutation(60)[30:]
        expected = [(1 - ids[k] % 2) if column == "y" else ids[k] % remainder for k in order]
        assert everything(module.test_set).label.tolist() == expected
    np.savez(tmp_path / "table.npz", **to_arrays(frame), y=[int(each[1:]) % 2 for each in dict.fromkeys(frame["id"])])
    module = make(tmp_path / "table.npz", label_column="y", test_fraction=0.5)
    assert module.model_arguments["num_classes"] == 2
    assert everything(module.test_set).label.tolist() == [ids[k] % 2 for k in order]
    for options in ({"window": 4}, {"test_fraction": 0.03}):
        with pytest.raises(TableError, match=r"leave data\.label_column out"):
            make(path, variables=NAMES, label_column="y", **options)


def test_a_variable_without_spread_has_scale_one(tmp_path):
    frame = random_frame()
    frame["b"] = frame["b"].where(frame["b"].isna(), 0.1)
    module = make(write(frame, tmp_path / "table.csv"))
    assert module.standard_deviation[1] == 1
    assert everything(module.train_set).target[..., 1].abs().max() < 1e-12


@settings(deadline=None, max_examples=50)
@given(
    mean=st.floats(-1e9, 1e9),
    exponent=st.floats(-12, 12),
    scores=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=5),
)
def test_values_return_from_z_scores_to_seven_digits_of_a_standard_deviation(mean, exponent, scores):
    deviation = 10**exponent
    preparation = Preparation(TableFormat(), np.array([mean]), np.array([deviation]), 1.0, 1, 1)
    exact = np.array(scores)[:, None] * deviation + mean
    for dtype, tolerance in ((torch.float32, 1e-7), (torch.float64, 1e-12)):
        values = preparation.values(torch.tensor(scores, dtype=dtype)[:, None])
        np.testing.assert_allclose(values, exact, rtol=1e-15, atol=tolerance * deviation)
        assert (np.diff(values[np.argsort(scores)], axis=0) >= 0).all()


def test_what_checkpoints_hold_is_plain_and_enough(tmp_path):
    frame = random_frame().assign(comment="x", y=0)
    frame["y"] = frame["id"].str[1:].astype(int) % 2
    path = write(frame, tmp_path / "table.csv")
    module = make(path, variables=["b", "a"])
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = Preparation.from_state(state)
    for field in dataclasses.fields(Preparation):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(module.preparation, field.name))
    assert again.form.variables == ("b", "a")
    assert again.form.ignored == ("comment", "y")
    with pytest.raises(ValueError, match="this program reads format 1"):
        Preparation.from_state(state | {"format_version": 2})
    module.load_state_dict(state)
    write(random_frame(seed=1), path)
    with pytest.raises(TableError, match="has changed since this run began"):
        make(path).load_state_dict(state)


GOOD = "id,time,a,b\ns,0,1,2\ns,1,,3\nu,0,4,\n"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (GOOD.replace("time", "tiem"), {}, "'time' is missing. Did you mean 'tiem'? Set data.time_column, to null"),
        (GOOD, {"variables": ["a", "hr"]}, "column 'hr' is missing. There are: 'a', 'b'."),
        (GOOD, {"id_column": "ID"}, "column 'ID' is missing. Did you mean 'id'?"),
        (GOOD, {"label_column": "y"}, "column 'y' is missing."),
        (GOOD.replace("3", "abc"), {}, "line 3, column 'b': 'abc' stands where a number belongs"),
        (GOOD.replace("3", "1,5"), {}, "line 3: 5 cells, but the header has 4"),
        (GOOD.replace("s,1,,3", "s,1,"), {}, "line 3: 3 cells, but the header has 4"),
        (GOOD.replace("3", "0x1A"), {}, "line 3, column 'b': '0x1A' stands where a number belongs"),
        (GOOD.replace("3", "-inf"), {}, "line 3, column 'b': an infinite number"),
        (GOOD.replace("3", "1e999"), {}, "line 3, column 'b': an infinite number"),
        (GOOD.replace("\ns,1", "\n\n\ns,0.0"), {}, "line 5, column 'time': series 's' has this time stamp already at"),
        (GOOD + 'v,0,"\n",\n', {}, "line 6, column 'time': series 'v' has no observed value at all; leave it out"),
        (GOOD.replace("u,0", "u,-1"), {}, "line 4, column 'time': the time stamp -1 is negative"),
        (GOOD.replace("u,0", "u,NaN"), {}, "line 4, column 'time': the time stamp is missing"),
        (GOOD.replace("u,0", "u,"), {}, "line 4, column 'time': the time stamp is missing"),
        (GOOD.replace("u,0", "u,2024-01-01"), {}, "for dates name the unit to count in, such as data.time_unit=hour"),
        ("id,time,a\ns,now,1\ns,today,2\n", {"time_unit": "day"}, "line 2, column 'time': 'now' is not a date such as"),
        ("id;time;a\ns;0;1\n", {}, "The header is one column, 'id;time;a': set data.separator=';'."),
        (GOOD, {"time_unit": "hour", "time_column": "b"}, "line 2, column 'b': '2' is not a date such as"),
        (GOOD.replace("u,0", " ,0"), {}, "line 4, column 'id': the name of the series is missing"),
        (GOOD.replace("id", ""), {}, "column 1 has no name"),
        (GOOD.replace("b", "a"), {}, "column 'a' stands twice in the header"),
        ("", {}, "is empty"),
        ("id,time,a\n", {}, "has no rows"),
        ("id,time\ns,0\n", {}, "has no column of a variable"),
        (GOOD.encode() + b"\xff,0,1,1\n", {}, "line 5: not UTF-8 text"),
        (GOOD.encode("utf-16"), {}, "not UTF-8 text"),
        (GOOD + "v,0,\"1,\n" + 20_000 * "v,1,1,1\n", {}, "is there a quotation mark without a second one?"),
        (GOOD, {}, "holds 2 series, too few to split by series into three parts; data.split_by=time"),
        (GOOD, {"split_by": "time"}, "no series of its 2 time steps can be split by time"),
        ("id,time,y,a\ns,0,1,1\ns,1,2,1\n", {"label_column": "y"}, "line 3, column 'y': series 's' has two classes"),
        ("id,time,y,a\ns,0,1,1\nt,1,,1\n", {"label_column": "y"}, "line 3, column 'y': the class of the series is"),
        ("id,a@0,b@0,a@x\ns,1,2,3\n", {"layout": "wide"}, "columns <variable>@<time>: 'x' stands where a number bel"),
        ("id,a@0,a@0.0\ns,1,2\n", {"layout": "wide"}, "column 'a@0.0': column 'a@0' is of the same variable and "),
        ("id,a@0,b\ns,1,2\n", {"layout": "wide"}, "column 'b': not of the form <variable>@<time>"),
        ("id,a@0\ns,1\ns,2\n", {"layout": "wide"}, "line 2, column 'id': series 's' has several rows"),
        ("id,a@0\ns,1\nt,\n", {"layout": "wide"}, "line 3, column 'id': series 't' has no observed value at all"),
        ("id,a@0\ns,1\nt,x\n", {"layout": "wide"}, "line 3, column 'a@0': 'x' stands where a number belongs"),
        ("id,a@0\ns,1\n", {"layout": "wide", "variables": ["b"]}, "columns 'b@<time>' are missing. There are: 'a'."),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_line_that_names_the_place(content, options, message, tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TableError) as caught:
        make(path, **options)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"values": np.ones((3, 2))}, {}, "array 'values' has shape (3, 2), expected [series, time, feature]"),
        ({"values": None}, {}, "array 'values' [series, time, feature] is missing"),
        ({"values": np.full((3, 2, 2), "x")}, {}, "array 'values' is of type <U1, not of numbers"),
        ({"ids": np.array([{}, {}, {}])}, {}, "array 'ids' cannot be read: Object arrays cannot be loaded"),
        ({"ids": np.array(["s", "s", "t"])}, {}, "array 'ids' has to give each of the 3 series a name of its own"),
        ({"variables": np.array(["a"])}, {}, "array 'variables' has shape (1,), but 'values' has 2 features"),
        ({"variables": None}, {"variables": ["a"]}, "no array 'variables' names them; expected are a"),
        ({"times": np.array([0, 0])}, {}, "times[0, 1]: series '0' has this time stamp already at"),
        ({"times": np.array([0, -1])}, {}, "times[1] is negative"),
        ({"times": np.array([0, np.nan])}, {}, "times[0, 1] is missing, but has values"),
        ({"times": np.array([[0, 1, 2]])}, {}, "array 'times' has shape (1, 3), expected (2,) or (3, 2)"),
        ({"times": np.array(["2024", "2025"], "M8[h]")}, {}, "for dates (datetime64) set data.time_unit=hour"),
        ({"bad": (1, 0, 1, np.inf)}, {}, "values[1, 0, 1] is infinite"),
        ({"bad": (1, slice(None), slice(None), np.nan)}, {}, "values[1] is a series without any observed value"),
        ({}, {"label_column": "y"}, "array 'y' [3 series] of data.label_column is missing"),
        (
            {"times": np.array([0, 1], "M8[ns]")},
            {"time_unit": "hour"},
            "times[1] is finer than a microsecond: round the stamps",
        ),
    ],
)
def test_bad_arrays_are_one_line_that_names_the_place(changes, options, message, tmp_path):
    values = np.arange(12.0).reshape(3, 2, 2)
    if "bad" in changes:
        values[changes["bad"][:3]] = changes["bad"][3]
    arrays = {"values": values, "variables": np.array(NAMES)} | changes
    arrays = {name: array for name, array in arrays.items() if array is not None and name != "bad"}
    np.savez(tmp_path / "table.npz", **arrays)
    with pytest.raises(TableError) as caught:
        make(tmp_path / "table.npz", **options)
    assert f"{tmp_path / 'table.npz'}" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ({"a": [True, False]}, {}, "column 'a' is of type bool, not of numbers"),
        ({"a": [1.0, np.inf]}, {}, "row 2, column 'a': an infinite number"),
        ({"time": pd.to_datetime(["2024-01-01", "2024-01-02"])}, {}, "column 'time' is of type timestamp"),
        ({}, {"time_unit": "day"}, "column 'time' holds numbers, not dates: leave data.time_unit out"),
        (
            {"time": pd.to_datetime([0, 1], unit="ns")},
            {"time_unit": "second"},
            "row 2, column 'time': 1970-01-01 00:00:00.000000001 is finer than a microsecond: round the stamps",
        ),
        (
            {"time": ["2024-01-01", "2024-01-01T00:00:00.000000001"]},
            {"time_unit": "second"},
            "row 2, column 'time': '2024-01-01T00:00:00.000000001' is finer than a microsecond: round the stamps",
        ),
        ({"id": [None, "t"]}, {}, "row 1, column 'id': the name of the series is missing"),
    ],
)
def test_a_bad_parquet_file_is_one_line(column, options, message, tmp_path):
    frame = pd.DataFrame({"id": ["s", "t"], "time": [0, 1], "a": [1.0, 2.0]}).assign(**column)
    with pytest.raises(TableError) as caught:
        make(write(frame, tmp_path / "table.parquet"), **options)
    assert message in str(caught.value)


def test_files_that_are_none(tmp_path):
    for name, message in (("a.csv", "is not there"), ("a.txt", "the ending '.txt' is not known"), (".", "not known")):
        with pytest.raises(TableError, match=message):
            make(tmp_path / name)
    for suffix in ("parquet", "npz"):
        (tmp_path / f"a.{suffix}").write_text(GOOD)
        with pytest.raises(TableError, match=f"a.{suffix} is not a"):
            make(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "data.path is not set: name your table"),
        ({"window": 0}, "window=0"),
        ({"stride": 2}, "stride=2: it goes with a window"),
        ({"window": 2, "stride": 3}, "stride=3"),
        ({"test_fraction": 1.0}, r"test_fraction=1\.0"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing"),
        ({"holdout_fraction": 0.0}, r"holdout_fraction=0\.0"),
        ({"separator": ", "}, "separator=', '"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CSV(**{"path": "table.csv"} | options)


def test_a_series_too_long_for_one_piece_asks_for_windows(tmp_path):
    path = write(pd.DataFrame({"time": np.arange(20_000), "a": 1.5}), tmp_path / "table.csv")
    with pytest.raises(TableError, match=r"has 14000 time steps; cut it into windows .* data.window=100"):
        CSV(str(path), id_column=None, split_by="time").model_arguments  # noqa: B018
    assert CSV(str(path), id_column=None, split_by="time", window=100).model_arguments["num_steps"] == 100


def test_separators_and_line_ends(tmp_path):
    expected = read_table(write(random_frame(), tmp_path / "table.csv"), TableFormat()).series
    random_frame().to_csv(tmp_path / "other.csv", index=False, sep="\t", lineterminator="\r\n", encoding="utf-8-sig")
    module = CSV(str(tmp_path / "other.csv"), separator="\\t")
    np.testing.assert_array_equal(module.table.series.values, expected.values)
    assert read_shape(tmp_path / "other.csv", module.form)[1].tolist() == expected.lengths.tolist()


def test_arrays_that_are_padded_beyond_their_longest_series_are_as_long_as_that(tmp_path):
    arrays = to_arrays(random_frame(regular=True, equal=False))
    longest = arrays["times"].shape[1]
    for name in ("values", "times"):
        arrays[name] = np.pad(arrays[name], [(0, 0), (0, 3), (0, 0)][: arrays[name].ndim], constant_values=np.nan)
    np.savez(tmp_path / "table.npz", **arrays)
    module = make(tmp_path / "table.npz")
    assert module.model_arguments["num_steps"] == longest
    assert {everything(each).values.shape[1] for each in sets(module)} == {longest}


def test_integers_have_no_gaps_and_a_deviation_of_0(tmp_path):
    values = np.arange(24).reshape(3, 4, 2)
    np.savez(tmp_path / "table.npz", values=values)
    table = read_table(tmp_path / "table.npz", TableFormat())
    table.write(file := io.BytesIO(), {"": np.zeros((12, 2)), "_q0.5": np.zeros((12, 2))}, np.ones((12, 2)))
    file.seek(0)
    written = np.load(file)
    for name in ("values", "values_q0.5"):
        assert written[name].dtype == values.dtype
        np.testing.assert_array_equal(written[name], values)
    assert written["values_std"].dtype == np.float64
    assert (written["values_std"] == 0).all()


def test_views_of_text_name_series_and_lists_do_not(tmp_path):
    columns = {"id": pa.array(["s", "s", "t"], pa.string_view()), "a": pa.array(["1.5", "", "2"], pa.string_view())}
    pa.parquet.write_table(pa.table(columns | {"time": [0, 1, 0]}), tmp_path / "table.parquet")
    series = read_table(tmp_path / "table.parquet", TableFormat()).series
    assert series.ids == ["s", "t"]
    np.testing.assert_array_equal(series.values[:, 0], [1.5, np.nan, 2])
    pa.parquet.write_table(pa.table({"id": [[1], [1], [2]], "time": [0, 1, 0], "a": [1, 2, 3]}), tmp_path / "l.parquet")
    with pytest.raises(TableError, match=r"column 'id' is of type list<.*>, which is no name of the series: save text"):
        read_table(tmp_path / "l.parquet", TableFormat())


def test_new_columns_do_not_hide_old_ones(tmp_path):
    (tmp_path / "table.csv").write_text("id,time,a,a_std\ns,0,1,0\ns,1,,2\n")
    np.savez(tmp_path / "table.npz", values=[[[1, np.nan]]], variables=NAMES, values_std=1)
    for name in ("table.csv", "table.npz"):
        table = read_table(tmp_path / name, TableFormat(variables=("a",)))
        table.write(io.BytesIO(), {"": np.zeros((2, 1)), "_q0.5": np.zeros((2, 1))})
        with pytest.raises(TableError, match=r"_std' already: rename it"):
            table.write(io.BytesIO(), {"": np.zeros((2, 1))}, np.zeros((2, 1)))


def test_a_value_beyond_the_type_is_refused(tmp_path):
    np.savez(tmp_path / "table.npz", values=np.array([[[1], [np.nan]]], "float16"))
    frame = pd.DataFrame({"id": "s", "time": [0, 1], "a": np.array([1, np.nan], "float32")})
    write(frame, tmp_path / "table.parquet")
    for name in ("table.npz", "table.parquet"):
        table = read_table(tmp_path / name, TableFormat())
        table.write(io.BytesIO(), {"": np.full((2, 1), 6e4)})
        with pytest.raises(TableError, match="cannot hold a filled value; save float64"):
            table.write(io.BytesIO(), {"": np.full((2, 1), 1e39)})
