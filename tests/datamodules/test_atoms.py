"""Numbers as states: there and back, and nothing learnt from what stands in for them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.synthesis.atoms import BETWEEN, Atoms
from datamodules.synthesis.codec import NamedColumns, TableCodec
from datamodules.synthesis.preprocessing import Table


def table(seed=0, num_rows=400, letters=True):
    """Half of column 0 is 0, a tenth its largest value; column 1 has no atom, column 2 four integers."""
    random = np.random.default_rng(seed)
    zero = np.where(random.random(num_rows) < 0.5, 0.0, random.exponential(3.0, num_rows))
    zero[random.random(num_rows) < 0.1] = 50.0
    X_num = np.column_stack([zero, random.normal(size=num_rows), random.choice([1.0, 2.0, 5.0, 9.0], num_rows)])
    X_cat = random.choice(["a", "b"], (num_rows, 1)).astype(object) if letters else None
    return Table(X_num, X_cat, random.integers(2, size=num_rows))


def test_atoms_are_found_by_their_share():
    atoms = Atoms.fit(table().X_num, 0.05)
    assert {j: values.tolist() for j, values in atoms.values.items()} == {0: [0.0, 50.0], 2: [1.0, 2.0, 5.0, 9.0]}
    assert atoms.whole == {2}
    assert Atoms.fit(None, 0.05).values == {}
    with pytest.raises(ValueError, match=r"atoms=1.5 must lie between 0 and 1"):
        Atoms.fit(table().X_num, 1.5)


@pytest.mark.parametrize("letters", [True, False])
def test_split_and_merge_are_inverse_and_the_rest_tells_nothing(letters):
    whole = table(letters=letters)
    atoms = Atoms.fit(whole.X_num, 0.05)
    split = atoms.split(whole, np.random.default_rng(0))
    assert split.X_num.shape[1] == 2
    is_atom = split.X_cat[:, int(letters)] != BETWEEN
    np.testing.assert_array_equal(is_atom, np.isin(whole.X_num[:, 0], [0.0, 50.0]))
    between = whole.X_num[~is_atom, 0]
    assert set(split.X_num[is_atom, 0]) <= set(between)
    assert split.X_num[is_atom, 0].mean() == pytest.approx(between.mean(), rel=0.3)
    merged = atoms.merge(split, 3, whole.X_num.dtype)
    np.testing.assert_array_equal(merged.X_num, whole.X_num)
    assert (merged.X_cat is None) == (not letters)
    if letters:
        np.testing.assert_array_equal(merged.X_cat, whole.X_cat)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["binclass", "regression"]))
def test_a_codec_with_atoms_gives_atoms_back_exactly(seed, task):
    whole = table(seed)
    if task == "regression":
        whole = whole._replace(y=np.random.default_rng(seed).normal(size=len(whole.y)))
    codec = TableCodec.fit(whole, NamedColumns(("x", "y", "z"), ("c",), "t"), task, "quantile", atoms=0.05)
    encoded = codec.encode(whole, np.random.default_rng(1))
    assert encoded.numericals.shape[1] == codec.num_numericals == 2 + (task == "regression")
    assert codec.category_counts == [2, 3, 4]
    again = TableCodec.from_state(codec.state_dict(), NamedColumns)
    frame = again.decode(*encoded)
    atom = np.isin(whole.X_num[:, 0], [0.0, 50.0])
    np.testing.assert_array_equal(frame["x"][atom], whole.X_num[atom, 0])
    np.testing.assert_array_equal(frame["z"], whole.X_num[:, 2])
    np.testing.assert_allclose(frame["x"], whole.X_num[:, 0], atol=0.5)


def test_conditions_know_the_states():
    codec = TableCodec.fit(table(), NamedColumns(("x", "y", "z"), ("c",), "t"), "binclass", "quantile", atoms=0.05)
    at_atom = codec.encode_conditions({"x": 0, "z": 5})
    assert at_atom.categories[1] == codec.encode(table()).categories[table().X_num[:, 0] == 0][0, 1]
    assert at_atom.categories[2] == codec.encode(table()).categories[table().X_num[:, 2] == 5][0, 2]
    between = codec.encode_conditions({"x": 1.5, "y": 0.3})
    assert list(between.numericals) == [0, 1]
    assert between.categories[1] == codec.encode(table()).categories[~np.isin(table().X_num[:, 0], [0, 50])][0, 1]
    X_num = np.random.default_rng(0).choice([0.5, 1.5], (400, 1))
    halves = TableCodec.fit(table()._replace(X_num=X_num), NamedColumns(("x",), ("c",), "t"), "binclass", "quantile",
                            atoms=0.05)  # fmt: skip
    assert halves.encode_conditions({"x": 1.5}).categories == {1: 1}
    with pytest.raises(ValueError, match=r"x=1.0: the column has no values but 0.5, 1.5; give one of them"):
        halves.encode_conditions({"x": 1.0})
    with pytest.raises(ValueError, match=r"z=3: the column has no values but 1, 2, 5, 9; give"):
        codec.encode_conditions({"z": 3})
