"""A table's way to a model and back: what may be asked of its columns, and the types in which rows come out."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.synthesis.codec import NamedColumns, TableCodec
from datamodules.synthesis.columns import OwnColumns
from datamodules.synthesis.preprocessing import Table

NAMES = NamedColumns(("few", "many", "real"), ("c",), "t")


def table(dtype=np.float32, task="regression"):
    """Integers 0 to 4, all integers from 10 to 409, numbers in [0.1, 0.7], and a target of integers or two classes."""
    random = np.random.default_rng(0)
    numbers = [random.integers(0, 5, 400), np.arange(400) + 10, np.linspace(0.1, 0.7, 400)]
    X_num = np.column_stack(numbers if np.dtype(dtype).kind == "f" else numbers[:2]).astype(dtype)
    X_cat = random.choice(["a", "b"], (400, 1)).astype(object)
    y = random.integers(3, 30, 400) if task == "regression" else random.integers(0, 2, 400)
    return Table(X_num, X_cat, y)


def fitted(dtype=np.float32, task="regression", normalisation="quantile", atoms=None):
    whole = table(dtype, task)
    names = NamedColumns(NAMES.numerical[: whole.X_num.shape[1]], NAMES.categorical, NAMES.target)
    return whole, TableCodec.fit(whole, names, task, normalisation, atoms)


def stored(codec, columns_class=NamedColumns):
    """The codec as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(codec.state_dict(), file)
    file.seek(0)
    return TableCodec.from_state(torch.load(file, weights_only=True), columns_class)


@pytest.mark.parametrize("normalisation", ["quantile", "minmax", "standard"])
@pytest.mark.parametrize("atoms", [None, 0.05])
@pytest.mark.parametrize("through", ["encode_conditions", "decode"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("few", "2.5", "few='2.5': the column has no values but 0, 1, 2, 3, 4; give one of them"),
        ("few", -1, "few=-1: it is outside of the column's training range, 0 to 4; give a number within it"),
        ("real", "99", "real='99': it is outside of the column's training range, 0.1 to 0.7; give"),
        ("real", 1e300, "real=1e+300: it is outside of the column's training range"),
        ("real", "nan", "real='nan': give a finite number"),
        ("t", 99, "t=99: it is outside of the column's training range, 3 to 29; give"),
        ("t", "7.5", "t='7.5': the column has whole numbers alone; give 8"),
    ],
)
def test_numbers_that_a_column_cannot_have_are_refused(normalisation, atoms, through, name, value, message):
    whole, codec = fitted(normalisation=normalisation, atoms=atoms)
    codec = stored(codec)
    arguments = ({name: value},) if through == "encode_conditions" else (*codec.encode(whole), {name: value})
    with pytest.raises(ValueError) as raised:
        getattr(codec, through)(*arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("atoms", [None, 0.05])
def test_numbers_that_it_can_have_come_out_in_every_row(atoms):
    whole, codec = fitted(atoms=atoms)
    given = {"few": "4", "many": 10, "real": "0.7", "t": "29"}  # the ends of the ranges among them
    assert codec.encode_conditions(given)
    frame = codec.decode(*codec.encode(whole), given)
    assert (frame["few"] == 4).all()
    assert (frame["many"] == 10).all()
    assert (frame["real"] == np.float32(0.7)).all()
    assert (frame["t"] == 29).all()


@pytest.mark.parametrize("dtype", ["float32", "Float32", "float64"])
def test_the_ends_of_ones_own_columns_are_what_the_table_shows(dtype):
    frame = pd.DataFrame({"x": pd.Series(np.linspace(0.1, 0.7, 200)).astype(dtype), "y": np.arange(200) / 3})
    columns = OwnColumns.infer(frame, "y", {}, None, "a table")
    codec = stored(TableCodec.fit(columns.table(frame), columns, "regression", "quantile"), OwnColumns)
    for end in ("0.1", "0.7"):
        drawn = codec.decode(*codec.encode(columns.table(frame)), {"x": end})["x"]
        assert drawn.dtype == dtype
        assert (drawn == frame["x"].dtype.type(float(end)) if dtype != "Float32" else drawn == np.float32(end)).all()
    with pytest.raises(ValueError, match=r"x='0.71': it is outside of the column's training range, 0.1 to 0.7; give"):
        codec.encode_conditions({"x": "0.71"})


def test_integers_take_whole_numbers_alone():
    _, codec = fitted(np.int64, "binclass")
    with pytest.raises(ValueError, match=r"many=20.5: the column has whole numbers alone; give 20"):
        codec.encode_conditions({"many": 20.5})
    assert codec.encode_conditions({"many": 21}).numericals


def test_dates_of_ones_own_table_are_named_as_dates():
    frame = pd.DataFrame({"day": [f"2020-{month:02d}-{day:02d}" for month in range(1, 11) for day in range(1, 29)]})
    frame["y"] = np.arange(len(frame)) * 1.5
    columns = OwnColumns.infer(frame, "y", {}, None, "a table")
    codec = stored(TableCodec.fit(columns.table(frame), columns, "regression", "quantile"), OwnColumns)
    with pytest.raises(ValueError, match=r"day='2021-01-01': .* training range, 2020-01-01 to 2020-10-28; give"):
        codec.encode_conditions({"day": "2021-01-01"})
    assert codec.encode_conditions({"day": "2020-10-28"}).numericals


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("task", ["binclass", "regression"])
def test_types_come_back_where_all_numbers_are_states(dtype, task):
    whole = table(dtype, task)
    whole = whole._replace(X_num=whole.X_num[:, :1])
    codec = stored(TableCodec.fit(whole, NamedColumns(("few",), ("c",), "t"), task, "quantile", atoms=0.05))
    assert codec.atoms.whole == {0}
    frame = codec.decode(*codec.encode(whole))
    assert frame["few"].dtype == dtype
    assert frame["t"].dtype == whole.y.dtype
    np.testing.assert_array_equal(frame["few"], whole.X_num[:, 0])


def test_a_checkpoint_without_the_type_of_numbers_is_still_read():
    whole, codec = fitted(np.float32, "binclass", atoms=0.05)
    state = {key: value for key, value in codec.state_dict().items() if key != "num_type"}
    pd.testing.assert_frame_equal(
        TableCodec.from_state(state, NamedColumns).decode(*codec.encode(whole)), codec.decode(*codec.encode(whole))
    )


def test_a_whole_target_is_rounded_for_users_and_not_for_evaluators():
    whole, codec = fitted()
    numericals, categories, target = codec.encode(whole)
    numericals[:, 0] += 0.01
    evaluated = codec.for_evaluation().decode(numericals, categories, target)
    expected = codec.transform.inverse(numericals, categories).y
    np.testing.assert_array_equal(evaluated["t"], expected)
    assert (evaluated["t"] % 1 != 0).any()
    received = codec.decode(numericals, categories, target)
    assert received["t"].dtype == np.int64
    np.testing.assert_array_equal(received["t"], np.rint(expected))
    pd.testing.assert_frame_equal(codec.in_own_types(evaluated), received)
    assert codec.for_evaluation() == dataclasses.replace(codec, exact_target=True)
    real = TableCodec.fit(whole._replace(y=whole.y / 2), NAMES, "regression", "quantile")
    drawn = real.decode(numericals, categories, target)
    assert (drawn["t"] * 2 % 1 != 0).any()
