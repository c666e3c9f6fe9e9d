"""The user's own columns: there and back is the identity, and what cannot be used is one line."""

import datetime
import shlex

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from people import people

from datamodules.own_tables import TableError
from datamodules.synthesis import csv
from datamodules.synthesis.cells import GAP
from datamodules.synthesis.columns import OwnColumns
from datamodules.synthesis.csv import CSV, GAP_TEXTS, read_table

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
        (with_target([*"abcdefghijkl", None, None]), {}, "column x has 12 categories in 12 rows: it looks like a key"),
        (with_target([f"{i},5" for i in range(12)]), {}, "write its decimals with a point"),
        (
            pd.DataFrame({"x": np.arange(4), "y": [None] * 4}),
            {},
            "column y has no value at all: name another data.target",
        ),
        (pd.DataFrame({"x": np.arange(4), "y": ["2020-01-01"] * 4}), {}, "is of dates, .* another data.target"),
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


def test_categories_that_are_told_are_read_as_written(tmp_path):
    text = "zip,a,b,y\n" + '02139,1.50,1,a\n"2139",NA,NA,b\n007,,2,a\nNone,1.5,3.5,b\n' * 4
    (tmp_path / "my.csv").write_text(text)
    kinds = {"zip": "category", "a": "category", "missing": "category"}
    frame = read_table(tmp_path / "my.csv", ",", kinds)
    assert frame["zip"].tolist() == ["02139", "2139", "007", "None"] * 4
    assert frame["a"].dropna().tolist() == ["1.50", "NA", "1.5"] * 4
    assert frame["b"].dropna().tolist() == [1.0, 2.0, 3.5] * 4  # another column's gaps are pandas'
    del kinds["missing"]
    pd.testing.assert_frame_equal(round_trip(frame, kinds=kinds), frame)
    round_trip(frame, kinds=kinds).to_csv(tmp_path / "again.csv", index=False)
    assert (tmp_path / "again.csv").read_text().splitlines()[1].startswith("02139,1.50,")


def test_the_list_of_gaps_is_that_of_pandas(tmp_path):
    assert read("a,b\n" + "".join(f"{gap},1\n" for gap in GAP_TEXTS), tmp_path)["a"].isna().all()
    plain = read(gaps := "a,b,c\n" + "".join(f"{gap},1,x\n" for gap in [*GAP_TEXTS, 1.5, "-0.1"]), tmp_path)
    (tmp_path / "my.csv").write_text(gaps)
    pd.testing.assert_frame_equal(read_table(tmp_path / "my.csv", ",", {"c": "category"}), plain)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("cells", "told", "is_text"),
    [
        (["02139", "12345", ""], None, True),
        ([" 02139", " 12345", " 3"], None, True),
        (['"007"', "1.5", "2"], None, True),
        (["00", "1", "2"], None, True),
        (["2", "3", "007"], None, True),
        (["02139", "12345", "NA"], "number", False),
        (["02139", "12345", "NA"], "integer", False),
        (["0", "10", "20"], None, False),
        (["0.5", "-0.3", "100"], None, False),
        (["0e1", "-0", "1e05"], None, False),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_numbers_with_leading_zeros_are_categories(cells, told, is_text, first, end, tmp_path):
    lines = [f"{cell},2020-01-01 00:05" if first else f"05:00:x,{cell}" for cell in cells * 4]
    (tmp_path / "my.csv").write_bytes(end.join(["x,t" if first else "t,x", *lines]).encode())
    frame = read_table(tmp_path / "my.csv", ",", {"x": told} if told else {})
    if not is_text:
        assert pd.api.types.is_numeric_dtype(frame["x"])
        return
    assert frame["x"].fillna("").tolist() == [cell.strip('"') for cell in cells] * 4
    assert infer(frame.assign(y=[*"ab"] * 6)).columns[1 - first].kind == "category"


@pytest.mark.parametrize("block", [1, 2, 5, 2**24])
def test_leading_zeros_are_found_wherever_blocks_end(block, tmp_path, monkeypatch):
    monkeypatch.setattr(csv, "BLOCK", block)
    for row in range(12):
        lines = ["10;20"] * 12
        assert not csv._may_have_leading_zeros(write_lines(tmp_path, ["x;z", *lines]), ";")
        lines[row] = "10; 020"
        assert csv._may_have_leading_zeros(write_lines(tmp_path, ["x;z", *lines]), ";")


def write_lines(tmp_path, lines):
    (tmp_path / "my.csv").write_text("\n".join(lines))
    return tmp_path / "my.csv"


def test_the_target_of_a_regression_is_a_number_however_it_is_written(tmp_path):
    lines = [f"{i / 2},{i:03d}" for i in range(60)]
    data = CSV(path=str(write_lines(tmp_path, ["x,y", *lines])), target="y", table_task="regression")
    data.setup()
    assert data.table_task == "regression"
    assert data.codec.columns.columns[1].kind == "integer"
    with pytest.raises(TableError, match=r"x has 60 categories in 60 rows.*take it for numbers with data.columns.x="):
        CSV(path=str(write_lines(tmp_path, ["x,y", *(f"{i:03d},{i % 2}" for i in range(60))])), target="y").setup()


@pytest.mark.parametrize(
    ("cells", "kept"),
    [
        (["TRUE", "FALSE", "TRUE"], True),
        (["true", "", "false"], True),
        (["TRUE", "TRUE", ""], True),
        (["True", "False", ""], False),
        (["TRUE", "True", "False"], False),
    ],
)
def test_truth_values_come_back_as_written(cells, kept, tmp_path):
    frame = read_table(write_lines(tmp_path, ["x,y", *(f"{cell},{i}" for i, cell in enumerate(cells * 4))]), ",")
    back = round_trip(frame.assign(y=[*"ab"] * 6))["x"]
    if kept:
        assert back.fillna("").tolist() == cells * 4
    else:
        assert [None if pd.isna(each) else bool(each) for each in back] == [
            {"true": True, "false": False}.get(cell.lower()) for cell in cells * 4
        ]


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


def test_types_of_arrow_come_back(tmp_path):
    """Of numbers as they were, of dates, moments and long texts as pandas' own."""
    days = pd.date_range("2020-01-01", periods=12)
    frame = pd.DataFrame({
        "number": pd.Series([1, 5, None, *range(100, 109)], dtype="int64[pyarrow]"),
        "small": pd.Series(range(12), dtype="uint8[pyarrow]"),
        "day": pd.Series(days.date, dtype=pd.ArrowDtype(pa.date32())),
        "moment": pd.Series(days, dtype=pd.ArrowDtype(pa.timestamp("us"))),
        "text": pd.Series(["a", "b"] * 6, dtype=pd.ArrowDtype(pa.large_string())),
        "y": ["c", "d"] * 6,
    })  # fmt: skip
    frame.to_parquet(tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", ",")
    back = round_trip(found)
    assert back.dtypes.to_dict() == found.dtypes.to_dict()
    assert [str(dtype) for dtype in found.dtypes[:2]] == ["int64[pyarrow]", "uint8[pyarrow]"]
    for name in frame:
        assert back[name].astype(str).tolist() == frame[name].astype(str).str.replace(" 00:00:00", "").tolist()


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64"])
def test_integers_beside_gaps_stay_integers_whoever_wrote_the_file(dtype, tmp_path):
    number = pa.array([1, None, *range(2, 12)], getattr(pa, dtype)())
    pa.parquet.write_table(pa.table({"x": number, "y": ["a", "b"] * 6}), tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", ",")
    assert str(found["x"].dtype).lower() == dtype
    assert found["x"].dropna().tolist() == [1, *range(2, 12)]
    assert found["x"].isna().tolist() == [False, True] + [False] * 10
    assert round_trip(found)["x"].dtype == found["x"].dtype


def test_texts_that_are_nearly_all_different_are_told(caplog):
    with caplog.at_level("WARNING", "genpred"):
        infer(with_target([*(f"person {i}" for i in range(40)), *["nobody"] * 20]))
    assert "column x: 40 of its 41 texts stand in one row only" in caplog.text
    caplog.clear()
    infer(with_target([*(f"town {i}" for i in range(20))] * 3))
    assert not caplog.text


def test_rows_are_those_of_the_file_where_some_have_no_target(tmp_path):
    frame = pd.DataFrame({"d": ["2020-01-01"] * 60, "y": [None] * 10 + [1.5, 2.5] * 25})
    frame.loc[50, "d"] = "2020-2-3x"
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(TableError, match="column d, row 50: '2020-2-3x' is no ISO date"):
        CSV(str(tmp_path / "t.csv"), "y", columns={"d": "date"}).setup()


def test_an_index_of_a_parquet_table_is_a_column_again(tmp_path):
    frame = pd.DataFrame({"id": np.arange(12)[::-1] / 2, "day": ["2020-01-01"] * 12, "y": [*"ab"] * 6})
    for names in (["id"], ["id", "day"]):
        frame.set_index(names).to_parquet(tmp_path / "my.parquet")
        pd.testing.assert_frame_equal(read_table(tmp_path / "my.parquet", ","), frame)
    frame[frame["id"] > 0].to_parquet(tmp_path / "my.parquet")  # row numbers alone
    pd.testing.assert_frame_equal(read_table(tmp_path / "my.parquet", ","), frame[:-1])
    frame.assign(id=1).set_axis(frame["id"] * 2).to_parquet(tmp_path / "my.parquet")
    with pytest.raises(TableError, match="column 'id' is there twice; rename one"):
        read_table(tmp_path / "my.parquet", ",")


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


def own(tmp_path, y, **arguments):
    pd.DataFrame({"x": np.arange(len(y)) / 2, "y": y}).to_csv(tmp_path / "my.csv", index=False)
    return CSV(path=str(tmp_path / "my.csv"), target="y", **{"catboost": {}, **arguments})


@pytest.mark.parametrize(
    ("y", "arguments", "message"),
    [
        (
            ["no"] * 297 + ["yes"] * 3,
            {},
            r"the validation part has 0 row\(s\) of class 'yes' of the target 'y', which needs 1 there for the area "
            r"under the ROC curve \(3 of 300 rows have it\): add rows of it, or set a larger data.validation_fraction",
        ),
        ([0] * 297 + [1] * 3, {"test_fraction": 0.1, "validation_fraction": 0.4}, "the test part has 0 .* class '1' .*"
                                                                                   "larger data.test_fraction"),
        ([0] * 295 + [1] * 5, {"evaluation": "validation"}, "validation part has 1 .* class '1' .* needs 2 there"),
        ([0] * 140 + [1] * 140 + [2] * 2, {"validation_fraction": 0.7, "test_fraction": 0.1, "catboost": None},
         r"the training part has 0 .* class '2' .* to be learnt \(2 of 282 .*leave its rows out, or merge"),
        ([0.0] * 299 + [1.5], {}, "the target 'y' is 0 in each of the .* the .* part, so that .*data.split_seed"),
        ([0.0] * 280 + [0.5] * 20, {"validation_fraction": 0.01, "evaluation": "validation"},
         "is 0 in each of the .* of one half of the validation part, so that R2 is not defined"),
    ],
)  # fmt: skip
def test_what_a_part_lacks_is_said_before_the_training(y, arguments, message, tmp_path):
    task = {"table_task": "regression"} if isinstance(y[0], float) else {}
    with pytest.raises(TableError, match=message) as caught:
        own(tmp_path, y, **task, **arguments).setup()
    assert "\n" not in str(caught.value)


def test_the_remedies_of_a_rare_class_work(tmp_path):
    for options in ({"test_fraction": 0.34, "validation_fraction": 0.33}, {"catboost": None}):
        own(tmp_path, [0] * 297 + [1] * 3, **options).setup()
    own(tmp_path, [0] * 100 + [1] * 100 + [2] * 3).setup()  # scores of three classes are defined without one


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
