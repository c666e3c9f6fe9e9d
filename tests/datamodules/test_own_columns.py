"""The user's own columns: there and back is the identity, and what cannot be used is one line."""

import datetime
import shlex

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from people import people

from datamodules.own_tables import TableError
from datamodules.synthesis.cells import GAP
from datamodules.synthesis.columns import OwnColumns
from datamodules.synthesis.csv import CSV, read_table

FAR = 2**53


def infer(frame, target="y", kinds=None, task=None):
    return OwnColumns.infer(frame, target, kinds or {}, task, "my.csv")


def with_target(values, name="x"):
    series = values if isinstance(values, pd.Series) else pd.Series(values)
    return pd.DataFrame({name: series, "y": [*"ab"] * (len(series) // 2) + ["a"] * (len(series) % 2)})


def round_trip(frame, **told):
    columns = infer(frame, **told)
    columns = OwnColumns.from_state(columns.state_dict())
    return columns.frame(columns.table(frame))


# A strategy of cells and the type of the column, of every kind.
days = st.dates(datetime.date(1, 1, 1), datetime.date(9999, 12, 31))
clocks = st.datetimes(datetime.datetime(1000, 1, 1), datetime.datetime(9999, 12, 31)).map(
    lambda each: each.replace(microsecond=0)
)
moments = st.datetimes(datetime.datetime(1800, 1, 1), datetime.datetime(2200, 1, 1))
whole = st.integers(-FAR, FAR)
letters = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5).filter(lambda text: text != GAP)
KINDS = {
    "float64": ("number", st.floats(allow_nan=False, allow_infinity=False), "float64"),
    "float32": ("number", st.floats(allow_nan=False, allow_infinity=False, width=32), "float32"),
    "Float64": ("number", st.floats(allow_nan=False, allow_infinity=False), "Float64"),
    "Int64": ("integer", whole, "Int64"),
    "UInt64": ("integer", st.integers(0, FAR), "UInt64"),
    "Int8": ("integer", st.integers(-128, 127), "Int8"),
    "whole_float": ("integer", whole.map(float), "float64"),
    "day": ("date", days.map(str), "str"),
    "minute": ("date", clocks.map(lambda each: str(each)[:16]), "object"),
    "second": ("date", clocks.map(lambda each: each.isoformat()), "string"),
    "micro": ("date", moments.map(lambda each: each.isoformat(" ", "microseconds")), "object"),
    "milli": ("date", moments.map(lambda each: each.isoformat("T", "milliseconds")), "object"),
    "datetime_s": ("date", clocks, "datetime64[s]"),
    "datetime_us": ("date", moments, "datetime64[us]"),
    "datetime_ns": ("date", moments, "datetime64[ns]"),
    "midnight": ("date", days.map(pd.Timestamp), "datetime64[s]"),
    "days": ("date", days, "object"),
    "text": ("category", letters, "object"),
    "str": ("category", letters, "str"),
    "dates_as_text": ("category", days.map(str), "object"),
    "whole_category": ("category", st.integers(-(2**63), 2**63 - 1), "Int64"),
    "float_category": ("category", st.floats(allow_nan=False), "float64"),
    "float32_category": ("category", st.floats(allow_nan=False, width=32), "float32"),
    "date_category": ("category", moments, "datetime64[us]"),
    "day_category": ("category", days, "object"),
    "truth": ("category", st.booleans(), "object"),
    "boolean": ("category", st.booleans(), "boolean"),
    "ranks": ("category", st.sampled_from(["low", "high"]), pd.CategoricalDtype(["low", "middle", "high"], True)),
    "numbered": ("category", st.sampled_from([3, 1]), pd.CategoricalDtype([3, 2, 1])),
    "dated": (
        "category",
        st.sampled_from([pd.Timestamp("2020-01-01")]),
        pd.CategoricalDtype(pd.to_datetime(["2021-01-01 10:00", "2020-01-01 00:00"])),
    ),
}


@st.composite
def tables(draw):
    num_rows = draw(st.integers(2, 10))
    columns = {}
    for name, (_, cells, dtype) in KINDS.items():
        values = [draw(cells), *draw(st.lists(st.none() | cells, min_size=num_rows - 1, max_size=num_rows - 1))]
        columns[name] = pd.Series(values, dtype=dtype)
    classes = [f"c{each}" for each in draw(st.lists(st.integers(0, 2), min_size=num_rows, max_size=num_rows))]
    return pd.DataFrame({**columns, "y": pd.Series(classes, dtype="str")})


@settings(max_examples=25, deadline=None)
@given(tables())
def test_there_and_back_is_the_identity(frame):
    kinds = {name: kind for name, (kind, _, _) in KINDS.items()}
    pd.testing.assert_frame_equal(round_trip(frame, kinds=kinds), frame, check_exact=True)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, False, None] * 4, "category"),
        (np.arange(12), "integer"),
        (np.arange(12) / 2, "number"),
        (pd.Series([*range(11), None], dtype="Int64"), "integer"),
        ([0, 1, 2] * 4, "category"),
        (pd.Series([1, None, 2] * 4, dtype="Int64"), "category"),
        (np.linspace(1e20, 2e20, 12), "number"),
        (["2020-01-01", "9999-12-31", None] * 4, "date"),
        (["2020-01-01 10:00", "2020-01-01 00:00"] * 6, "date"),
        (["2020-01-01 00:00:00", "2020-01-02 00:00:00"] * 6, "date"),
        (["2020-01-01 25:00", "2020-01-02 00:00"] * 6, "category"),
        (["2020-02-30", "2020-02-28"] * 6, "category"),
        ([datetime.date(2020, 1, 1), None] * 6, "date"),
        (pd.Series(["b", "a", None] * 4, dtype=pd.CategoricalDtype([*"cba"], ordered=True)), "category"),
        (pd.Series(pd.to_datetime(["2020-01-01 00:00:00.000000001"] * 12)).astype("datetime64[s]"), "date"),
    ],
)
def test_kinds_are_inferred_and_types_kept(values, kind):
    values = pd.Series(values, dtype=object) if isinstance(values, list) and None in values else values
    frame = with_target(values)
    assert infer(frame).columns[0].kind == kind
    pd.testing.assert_frame_equal(round_trip(frame), frame, check_exact=True)


def test_nanoseconds_are_cut_to_microseconds():
    frame = with_target(
        pd.Series(
            pd.to_datetime(["2020-01-01 00:00:00.123456789", "2020-01-02 00:00:00.000000000"]), dtype="datetime64[ns]"
        )
    )
    assert round_trip(frame)["x"].tolist() == [pd.Timestamp("2020-01-01 00:00:00.123456"), pd.Timestamp("2020-01-02")]


def test_dates_count_from_1970_in_the_unit_of_their_text():
    counts = {"1970-01-03": 2, "1970-01-01 01:30": 90, "1970-01-01T00:01:30": 90, "1970-01-01 00:00:00.5": 500_000}
    for text, count in (counts | {"9999-12-31": 2_932_896, "0001-01-01": -719_162}).items():
        assert infer(with_target([text] * 4)).value("x", text) == count


@settings(max_examples=30, deadline=None)
@given(st.lists(st.none() | st.floats(allow_nan=False), min_size=4, max_size=7), st.data())
def test_a_category_has_the_same_text_in_any_rows(values, data):
    frame = with_target(pd.Series([1.5, 2.0, 3.0, *values], dtype="float64"))
    columns = infer(frame, kinds={"x": "category"})
    texts = columns.table(frame).X_cat[:, 0]
    rows = data.draw(st.lists(st.integers(0, len(frame) - 1), min_size=1, max_size=5))
    assert columns.table(frame.iloc[rows]).X_cat[:, 0].tolist() == texts[rows].tolist()
    assert texts[1:3].tolist() == ["2.0", "3.0"]


def test_whole_categories_have_no_point_whatever_their_type():
    columns = infer(with_target(pd.Series([1, 2, None, 3], dtype="Int64")))
    assert columns.table(with_target([1.0, np.nan])).X_cat[:, 0].tolist() == ["1", GAP]
    assert columns.table(with_target(np.array([1, 2]))).X_cat[:, 0].tolist() == ["1", "2"]


def test_gaps_have_columns_of_their_own():
    frame = with_target([1.5, np.nan, 2.5, 3.0])
    frame.insert(1, "full", [0.5, 1.5, 2.0, 2.5])
    frame.insert(2, "text", ["a", None, "b", "a"])
    columns = infer(frame)
    assert [columns.mask_of(name) for name in ("x", "full", "text", "y", "none")] == ["x (missing)", *[None] * 4]
    assert columns.categorical == ("text", "x (missing)")
    assert columns.table(frame).X_cat[:, 1].tolist() == ["no", "yes", "no", "no"]


def test_fills_are_medians_of_the_training_rows():
    frame = with_target([1.5, np.nan, 2.5, 3.0, 101.0, 103.0])
    frame["n"] = pd.Series([1, None, 4, 5, 6, 7], dtype="Int64")
    columns = infer(frame, kinds={"n": "integer"})
    assert columns.table(frame).X_num[1].tolist() == [3.0, 5.0]
    training = columns.with_fills(frame.iloc[[0, 1, 2]])
    assert training.table(frame).X_num[1].tolist() == [2.0, 2.0]
    assert columns.with_fills(frame.iloc[[1]]).table(frame).X_num[1].tolist() == [3.0, 5.0]  # none to take it from


def test_the_datamodule_fills_with_medians_of_its_training_part(tmp_path):
    people().to_csv(tmp_path / "people.csv", index=False)
    data = CSV(path=str(tmp_path / "people.csv"), target="income", mlp=None)
    data.setup()
    column = data.codec.columns.numerical.index("height")
    train = data.parts["train"]
    gaps = train.X_cat[:, data.codec.columns.categorical.index("height (missing)")] == "yes"
    assert (train.X_num[gaps, column] == np.median(train.X_num[~gaps, column])).all()
    torch.save(data.state_dict(), tmp_path / "state.pt")
    other = CSV(path="none.csv", target="income")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.codec.columns == data.codec.columns


@pytest.mark.parametrize(
    ("frame", "kinds", "message"),
    [
        (
            with_target([1.5, None] * 6).assign(**{"x (missing)": 1}),
            {},
            "column 'x' has gaps.* 'x \\(missing\\)': rename",
        ),
        (with_target(["a", GAP] * 6), {}, "column x has the category '\\(missing\\)'.*rename it"),
        (with_target(np.arange(12) + FAR), {}, f"x, row 1: {FAR + 1} is beyond 2\\*\\*53.*x=drop, or .*x=category"),
        (with_target(-np.arange(12) - FAR), {}, "row 1: .* is beyond"),
        (with_target(pd.Series([FAR + 1, None] * 6, dtype="Int64")), {"x": "integer"}, "row 0: .* is beyond"),
        (with_target([str(FAR + 1), None] * 6), {"x": "integer"}, "row 0: .* is beyond"),
        (with_target(["9999-12-31 10:00:00.000001"] * 12), {}, "row 0: .*microseconds; round the dates"),
        (with_target(np.arange(12) / 2), {"x": "integer"}, "row 1: 0.5 is not whole.*data.columns.x=number"),
        (with_target([[1]] * 12), {}, "column x holds values of type list.*data.columns.x=drop"),
        (with_target([{}] * 12), {}, "type dict"),
        (with_target([np.ones(2)] * 12), {}, "type ndarray"),
        (with_target([1, "a"] * 6), {}, "type int, str"),
        (with_target(pd.to_timedelta(range(12), unit="s")), {}, "type Timedelta"),
        (with_target(pd.date_range("2020", periods=12, tz="UTC")), {}, "time zones"),
        (with_target(["2020-01-01 10:00Z"] * 12), {}, "row 0: .* has a time zone; convert"),
        (with_target(["2020-01-01", "2020-1-2"] * 6), {"x": "date"}, "row 1: '2020-1-2' is no ISO date"),
        (with_target(np.arange(12)), {"x": "date"}, "int64 with numbers, which kind date does not suit"),
        (with_target([True, False] * 6), {"x": "number"}, "truth values, which kind number does not suit"),
        (with_target(pd.date_range("2020", periods=12)), {"x": "integer"}, "kind integer does not suit"),
        (with_target([None] * 12, "a.b"), {}, "no value.*'data.columns={\"a.b\": drop}'"),
        (with_target([None] * 12, "a\nb"), {}, "no value"),
        (with_target(np.arange(12)), {"x": "nmber"}, "data.columns.x=nmber: choose one of"),
    ],
)
def test_what_cannot_be_used_is_one_line(frame, kinds, message):
    with pytest.raises(TableError, match=message) as caught:
        infer(frame, kinds=kinds)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.b", "a b", "a'b", 'a"b', "größe", "1", "x", "a=b", "null"])
def test_what_messages_tell_works_on_the_command_line(name):
    with pytest.raises(TableError) as caught:
        infer(with_target([None] * 12, name))
    argument = shlex.split(str(caught.value)[str(caught.value).index("leave it out with ") :])[-1]
    assert OmegaConf.to_container(OmegaConf.from_dotlist([argument])) == {"data": {"columns": {name: "drop"}}}


@pytest.mark.parametrize(
    ("values", "value", "message"),
    [
        (np.arange(12), "30.5", "x='30.5': .* is not whole"),
        (np.arange(12), str(FAR + 1), "is beyond 2\\*\\*53"),
        (np.arange(12), "old", "x='old': .* is no number"),
        (np.arange(12) / 2, "inf", "infinite"),
        (["2020-01-01", "2020-01-02"] * 6, "2020-01-01 10:00", "is finer than the column's days"),
        (["2020-01-01 10:00", "2020-01-02 10:00"] * 6, "2020-01-01 10:00:01", "finer than the column's minutes"),
        (["2020-01-01", "2020-01-02"] * 6, "2020-02-30", "no ISO date"),
    ],
)
def test_values_are_refused_rather_than_rounded(values, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        infer(with_target(values)).value("x", value)
    assert "\n" not in str(caught.value)


def test_values_of_the_columns_kind_are_taken():
    columns = infer(with_target(["2020-01-01", "2020-01-02"] * 6))
    assert columns.value("x", "1970-01-02 00:00") == columns.value("x", datetime.date(1970, 1, 2)) == 1
    assert columns.value("y", "a") == "a"
    assert infer(with_target(np.arange(12))).value("x", "30.0") == 30


def read(text, tmp_path, separator=","):
    (tmp_path / "my.csv").write_text(text)
    return read_table(tmp_path / "my.csv", separator)


def test_integers_beside_gaps_are_read_exactly(tmp_path):
    frame = read("a,b,c,self\n" + f"{FAR + 1},1.5,,1\n,,,2\n" * 6, tmp_path)
    assert frame["a"].dtype == "Int64"
    assert frame["a"].dropna().tolist() == [FAR + 1] * 6
    assert frame[["b", "c"]].dtypes.tolist() == ["float64"] * 2


@pytest.mark.parametrize("header", ["a,b,a", "a,a,b", '"a",b,a', "a,a.1,a"])
def test_a_name_that_is_there_twice_is_noticed(header, tmp_path):
    with pytest.raises(TableError, match="column 'a' is there twice; rename one"):
        read(header + "\n" + "1,2,3\n" * 12, tmp_path)


def test_names_may_be_numbers_alike(tmp_path):
    pd.DataFrame({"a": range(12)}).rename(columns={"a": 1}).assign(**{"1": 2}).to_csv(tmp_path / "my.csv", index=False)
    with pytest.raises(TableError, match="column '1' is there twice"):
        read_table(tmp_path / "my.csv", ",")


@pytest.mark.parametrize(("text", "message"), [("a,b\n1,2\n1,2,3\n", "cannot be read"), ("", "cannot be read"),
                                               ("a,b\n" + "1,2,3\n" * 12, "more cells than its header")])  # fmt: skip
def test_broken_files_are_one_line(text, message, tmp_path):
    with pytest.raises(TableError, match=message) as caught:
        read(text, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_parquet_table_comes_back_as_it_was(tmp_path):
    frame = pd.DataFrame(
        {
            "day": [datetime.date(9999, 12, 31), None, *[datetime.date(2020, 1, 1)] * 10],
            "truth": pd.Series([True, None, False] * 4, dtype=object),
            "rank": pd.Categorical(["low", "high", None] * 4, ["low", "middle", "high"], ordered=True),
            "far": pd.Series(pd.to_datetime(["2020-01-01"] * 12)).astype("datetime64[us]"),
            "y": [*"ab"] * 6,
        }
    )
    frame.to_parquet(tmp_path / "my.parquet", index=False)
    read = read_table(tmp_path / "my.parquet", ",")
    pd.testing.assert_frame_equal(round_trip(read), read)
    assert read["truth"].dtype == object
    frame.assign(lists=[[1, 2]] * 12).to_parquet(tmp_path / "my.parquet", index=False)
    with pytest.raises(TableError, match=r"data\.columns\.lists=drop"):
        infer(read_table(tmp_path / "my.parquet", ","))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            [*"ab"] * 15 + ["rare"],
            "class 'rare' of the target has too few rows .*1 in all.*leave such rows out, or merge",
        ),
        ([*"ab"] * 15 + ["rare"] * 2, "class 'rare' .*2 in all"),
        ([*"abcdefghij"] * 3, "10 classes do not fit in parts of 20% and 80% of 30 rows: .*merge classes"),
    ],
)
def test_rare_classes_are_named(classes, message, tmp_path):
    pd.DataFrame({"x": np.arange(len(classes)) / 2, "y": classes}).to_csv(tmp_path / "my.csv", index=False)
    data = CSV(path=str(tmp_path / "my.csv"), target="y")
    with pytest.raises(TableError, match=message) as caught:
        data.setup()
    assert "\n" not in str(caught.value)


def test_a_target_beyond_its_type_is_held_within():
    frame = pd.DataFrame({"x": np.arange(12) / 2, "y": np.arange(12, dtype=np.int8)})
    columns = infer(frame, task="regression")
    table = columns.table(frame)
    table.y[0] = 200.2
    assert columns.frame(table)["y"].tolist() == [127, *range(1, 12)]


def test_columns_of_another_version_are_refused():
    state = infer(with_target([1.5, 2.5])).state_dict()
    del state["columns"][0]["cells"]
    with pytest.raises(ValueError, match="another version"):
        OwnColumns.from_state(state)
