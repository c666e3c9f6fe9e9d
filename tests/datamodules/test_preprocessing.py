"""Tables to a model's arrays and back: against scikit-learn column by column, brute force, and the published facts."""

import io
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kstest, norm
from sklearn.preprocessing import MinMaxScaler, OrdinalEncoder, QuantileTransformer, StandardScaler

from datamodules.synthesis.numerical import QuantileTransform, num_quantiles, snap
from datamodules.synthesis.preprocessing import Table, TableTransform

LOWEST = -5.1993375826  # scikit-learn's score of the smallest value


def random_columns(num_rows=3000, seed=0, dtype=np.float64):
    """Continuous, heavy-tailed, zero-inflated, few integers, atom in the middle, atom at the top, two values."""
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=(7, num_rows))
    columns = [
        normal[0] * 1e4 - 3e5,
        np.exp(3 * normal[1]),
        np.where(generator.random(num_rows) < 0.916, 0, np.exp(normal[2]) * 1000),
        generator.integers(1, 17, num_rows),
        np.where(generator.random(num_rows) < 0.4, 1.5, normal[4]),
        np.minimum(normal[5], 0.7),
        generator.integers(0, 2, num_rows) * 5.0 - 1,
    ]
    return np.stack(columns, axis=1).astype(dtype)


def random_table(task="binclass", num_rows=300, seed=0):
    """Arguments of `TableTransform.fit` but the task."""
    generator = np.random.default_rng(seed)
    X_cat = np.stack([generator.choice(["b", "a", "nan"], num_rows), generator.choice(["x", "10", "9"], num_rows)], 1)
    y = generator.normal(1e5, 2e4, num_rows) if task == "regression" else generator.integers(0, 2, num_rows)
    return random_columns(num_rows, seed, np.float32), X_cat, y


def scikit_learn(normalisation, num_rows):
    if normalisation == "quantile":
        count = min(max(min(num_rows // 30, 1000), 10), num_rows)
        return QuantileTransformer(
            n_quantiles=count, output_distribution="normal", subsample=10**9, random_state=0, copy=True
        )
    return MinMaxScaler() if normalisation == "minmax" else StandardScaler()


@pytest.mark.parametrize("normalisation", ["quantile", "minmax", "standard"])
@pytest.mark.parametrize("num_rows", [4, 50, 3000])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_numericals_equal_scikit_learn(normalisation, num_rows, dtype):
    X, others = random_columns(num_rows, 0, dtype), random_columns(500, 1, dtype)
    y = np.arange(num_rows) % 2
    ours = TableTransform.fit(X, None, y, "binclass", normalisation)
    theirs = scikit_learn(normalisation, num_rows).fit(X)
    tolerance = 1e-4 if dtype == np.float32 else 1e-6  # scikit-learn then computes in float32
    varying = X.min(axis=0) < X.max(axis=0)  # constant columns differ on purpose
    for part in (X, others):
        scores = ours.transform(part, None, np.zeros(len(part), dtype=int)).numericals
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores[:, varying], theirs.transform(part)[:, varying], tolerance, tolerance)
    drawn = np.random.default_rng(2).normal(size=X.shape)
    values = np.clip(theirs.inverse_transform(drawn.copy()), X.min(axis=0), X.max(axis=0))
    assert (np.abs(ours.numerical.inverse(drawn) - values) <= 0.1 * tolerance * np.ptp(X, axis=0))[:, varying].all()


def test_number_of_quantiles_is_the_published_one():
    published = {
        2672: 89, 26048: 868, 12053: 401, 13209: 440, 44800: 1000, 6400: 213, 491: 16, 157638: 1000, 6318: 210,
        62751: 1000, 14581: 486, 856: 28, 13832: 461, 83240: 1000, 3096: 103,
    }  # fmt: skip
    assert {rows: num_quantiles(rows) for rows in published} == published
    assert [num_quantiles(rows) for rows in (1, 9, 10, 330)] == [1, 9, 10, 11]


def test_an_atom_at_the_end_of_the_range_has_the_score_of_the_end():
    X, _, y = random_table(num_rows=3000)
    scores = TableTransform.fit(X, None, y, "binclass").transform(X, None, y).numericals
    zeros = X[:, 2] == 0
    assert zeros.mean() > 0.9
    np.testing.assert_allclose(scores[zeros, 2], LOWEST, rtol=0, atol=3e-7)
    assert scores[~zeros, 2].min() > 1
    np.testing.assert_allclose(scores[X[:, 5] == X[:, 5].max(), 5], -LOWEST, rtol=0, atol=3e-7)
    ages = np.minimum(np.arange(1.0, 3001) % 60, 52)[:, None]
    for dtype, score in ((np.float64, -LOWEST), (np.float32, norm.ppf(1 - 8 / 120))):
        column = ages.astype(dtype)
        highest = QuantileTransform.fit(column).transform(column)[ages == 52]
        np.testing.assert_allclose(highest, score, atol=0.1)
    wide = X[:, :1] * np.float64(1e9)
    transform = QuantileTransform.fit(wide)
    ends = np.array([wide.min(axis=0), wide.max(axis=0)])
    np.testing.assert_array_equal(transform.inverse(transform.transform(ends)), ends)


def test_dequantised_columns_are_normal_and_return_the_same_values():
    X = random_columns(3000)
    transform = QuantileTransform.fit(X)
    scores = transform.transform(X, np.random.default_rng(0))
    np.testing.assert_array_equal(scores, transform.transform(X, np.random.default_rng(0)))
    for j in range(X.shape[1]):
        assert kstest(scores[:, j], "norm").pvalue > 0.01
        if j in (2, 3, 4, 5, 6):
            assert kstest(transform.transform(X)[:, j], "norm").pvalue < 1e-6
    again = transform.inverse(scores)
    assert (np.abs(again - X) <= 1e-5 * np.ptp(X, axis=0)).all()
    for j, atom in ((2, 0), (4, 1.5), (6, 4)):
        assert (again[X[:, j] == atom, j] == atom).mean() > 0.999  # float32 may step over the atom's last rank


@st.composite
def tables(draw):
    """Small tables of every kind, with ties, and their task and normalisation."""
    num_rows, task = draw(st.integers(2, 40)), draw(st.sampled_from(["binclass", "multiclass", "regression"]))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64]))
    numbers = {
        np.int64: st.integers(-(2**40), 2**40) | st.integers(-3, 3),
        np.float32: st.floats(-1000, 1000, width=16, allow_subnormal=False),
        np.float64: st.floats(-1e6, 1e6, width=32, allow_subnormal=False) | st.sampled_from([0.0, 1.0]),
    }[dtype]
    X_num = draw(st.none() | arrays(dtype, (num_rows, draw(st.integers(1, 3))), elements=numbers))
    least = 1 if X_num is None else 0
    words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)
    cells = draw(st.sampled_from([words, st.integers(-5, 5), st.booleans()]))
    rows = st.lists(cells, min_size=num_rows, max_size=num_rows)
    columns = draw(st.lists(rows, min_size=least, max_size=3))
    X_cat = np.array(columns).T if columns else None
    if columns and draw(st.booleans()):
        X_cat = X_cat.astype(object)
    y = draw(arrays(np.float64, num_rows, elements=st.floats(-1e3, 1e3, width=16)))
    if task != "regression":
        y = np.arange(num_rows) % (2 if task == "binclass" else draw(st.integers(2, num_rows)))
        y = np.array([f"class {each}" for each in y]) if draw(st.booleans()) else y
    return X_num, X_cat, y, task, draw(st.sampled_from(["quantile", "minmax", "standard"]))


@settings(deadline=None, max_examples=200)
@given(tables())
def test_tables_return(table):
    X_num, X_cat, y, task, normalisation = table
    transform = TableTransform.fit(X_num, X_cat, y, task, normalisation)
    model = transform.transform(X_num, X_cat, y)
    assert np.isfinite(model.numericals).all()
    assert model.numericals.dtype == np.float32
    assert model.categories.dtype == np.int64
    again = transform.inverse(*model)
    for name in ("X_num", "X_cat", "y"):
        before, after = getattr(Table(X_num, X_cat, y), name), getattr(again, name)
        if before is None:
            assert after is None
            continue
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        if name == "X_num" or (task == "regression" and name == "y"):
            spread = np.ptp(before.astype(np.float64), axis=0)
            error = np.abs(after.astype(np.float64) - before.astype(np.float64))
            assert (error <= 2e-6 * spread + (0.5 if before.dtype.kind == "i" else 0)).all()
            assert (after.min(axis=0) >= before.min(axis=0)).all()
            assert (after.max(axis=0) <= before.max(axis=0)).all()
        else:
            np.testing.assert_array_equal(after, before)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["quantile", "minmax", "standard"]), st.integers(0, 2**32 - 1))
def test_whatever_a_model_draws_stays_in_the_table(normalisation, seed):
    X_num, X_cat, y = random_table("regression", 60, seed)
    transform = TableTransform.fit(X_num, X_cat, y, "regression", normalisation)
    generator = np.random.default_rng(seed)
    drawn = generator.standard_cauchy((50, 8)) * 10.0 ** generator.integers(-3, 30)
    codes = generator.integers(0, transform.category_counts, (50, 2))
    table = transform.inverse(drawn, codes)
    assert (table.X_num >= X_num.min(axis=0)).all()
    assert (table.X_num <= X_num.max(axis=0)).all()
    assert y.min() <= table.y.min() <= table.y.max() <= y.max()
    for j in (3, 6):
        assert np.isin(table.X_num[:, j], X_num[:, j]).all()
    for j in range(2):
        assert np.isin(table.X_cat[:, j], X_cat[:, j]).all()


def test_regression_puts_the_target_in_front_and_never_snaps_it():
    X_num, X_cat, _ = random_table(num_rows=600)
    y = np.random.default_rng(3).integers(3, 20, 600)
    transform = TableTransform.fit(X_num, X_cat, y, "regression")
    model = transform.transform(X_num, X_cat, y)
    assert transform.num_classes == 0
    features = np.column_stack([y, X_num])
    expected = scikit_learn("quantile", 600).fit_transform(features)
    np.testing.assert_allclose(model.numericals, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model.target, (y - y.mean()) / y.std(ddof=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(transform.target.inverse(model.target), y, rtol=1e-6)
    scores = np.random.default_rng(4).normal(size=features.shape)
    table = transform.inverse(scores, model.categories)
    assert table.y.dtype == np.float64
    assert (table.y != np.rint(table.y)).mean() > 0.5
    assert sorted(transform.snapped) == [3, 6]
    assert TableTransform.fit(X_num, X_cat, y.astype(np.float32), "regression").inverse(*model).y.dtype == np.float32


def test_classes_are_the_condition_and_stay_as_they_are():
    X_num, X_cat, y = random_table()
    transform = TableTransform.fit(X_num, X_cat, y, "binclass")
    model = transform.transform(X_num, X_cat, y)
    assert model.numericals.shape == X_num.shape
    assert model.target.dtype == np.int64
    np.testing.assert_array_equal(model.target, y)
    assert transform.num_classes == 2
    words = np.array(["<=50K", ">50K"])[y]
    model = TableTransform.fit(X_num, X_cat, words, "binclass").transform(X_num, X_cat, words)
    np.testing.assert_array_equal(model.target, y)


@settings(deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=32, unique=True).map(sorted),
    st.lists(st.floats(-60, 60), min_size=1, max_size=20),
)
def test_snapping_finds_the_nearest_value(values, drawn):
    drawn += [(lower + upper) / 2 for lower, upper in pairwise(values)]
    expected = [min(values, key=lambda value: (abs(value - Fraction(each)), value)) for each in drawn]
    column = snap(np.array(drawn)[:, None], {0: np.array(values, dtype=np.float64)})[:, 0]
    np.testing.assert_array_equal(column, expected)


def test_columns_of_at_most_32_integers_are_snapped():
    rows = np.arange(660)
    X = np.stack([rows % 32, rows % 33, rows % 2 + 0.5, rows * 0 - 7, 3 * (rows % 5)], axis=1).astype(np.float32)
    transform = TableTransform.fit(X, None, rows % 2, "binclass", integer_columns=[1])
    assert {j: len(values) for j, values in transform.snapped.items()} == {0: 32, 3: 1, 4: 5}
    scores = np.random.default_rng(0).normal(size=(500, 5))
    table = transform.inverse(scores, np.zeros((500, 0), dtype=int), rows[:500] % 2)
    assert set(np.unique(table.X_num[:, 4])) == {0, 3, 6, 9, 12}
    np.testing.assert_array_equal(table.X_num[:, 1], np.rint(table.X_num[:, 1]))
    assert table.X_num.dtype == np.float32
    assert (table.X_num[:, 2] % 0.5 != 0).any()
    table = TableTransform.fit(rows[:, None] ** 3, None, rows % 2, "binclass").inverse(
        scores[:, :1], np.zeros((500, 0), dtype=int), rows[:500] % 2
    )
    assert table.X_num.dtype == np.int64


def test_constant_columns_are_zero_and_return_the_constant():
    values = [0.1, -7.0, 1e10, 0.0]
    X = np.tile(np.array(values), (21, 1))
    y = np.arange(21) % 2
    for normalisation in ("quantile", "minmax", "standard"):
        transform = TableTransform.fit(X, None, y, "binclass", normalisation)
        assert not transform.transform(X + 1, None, y).numericals.any()
        drawn = np.random.default_rng(0).normal(size=(21, 4)) * 100
        np.testing.assert_array_equal(transform.inverse(drawn, np.zeros((21, 0), dtype=int), y).X_num, X)
    target = np.full(21, 0.1)
    model = TableTransform.fit(np.arange(21.0)[:, None], None, target, "regression").transform(X[:, :1], None, target)
    assert not model.target.any()
    assert not model.numericals[:, 0].any()


def test_columns_of_tiny_and_huge_numbers_keep_their_detail():
    base = np.random.default_rng(0).normal(size=(500, 1))
    y = np.arange(500) % 2
    scores = [
        TableTransform.fit(base * unit, None, y, "binclass", kind).transform(base * unit, None, y).numericals
        for kind in ("quantile", "minmax", "standard")
        for unit in (1, 2.0**-100, 2.0**900)
    ]
    for group in (scores[:3], scores[3:6], scores[6:]):
        for other in group[1:]:
            np.testing.assert_allclose(group[0], other, rtol=1e-5, atol=1e-6)


def test_categories_equal_scikit_learn():
    generator = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in generator.permutation(10_000)])
    few = np.array(["b", "é", "A", "nan", "10", "9", ""])
    num_rows = 20_000
    chosen = np.concatenate([np.arange(10_000), generator.integers(0, 10_000, 10_000)])
    X = np.stack([words[chosen], generator.choice(few, num_rows)], axis=1)
    y = np.arange(num_rows) % 3
    others = np.array([["w17", "new"], ["w-1", "A"], ["w9", "b"]])
    for train, part in ((X, others), (X.astype(object), others.astype(object)), (X.astype(object), others)):
        transform = TableTransform.fit(None, train, y, "multiclass")
        theirs = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1).fit(train)
        counts = [len(each) for each in theirs.categories_]
        assert transform.category_counts.tolist() == counts == [10_000, 7]
        model = transform.transform(None, train, y)
        np.testing.assert_array_equal(model.categories, theirs.transform(train))
        assert model.numericals.shape == (num_rows, 0)
        expected = theirs.transform(part)
        codes = transform.transform(None, part, y[:3]).categories
        np.testing.assert_array_equal(codes, np.where(expected < 0, counts, expected))
        assert (codes < transform.category_counts).all(1).tolist() == [False, False, True]
        again = transform.inverse(np.zeros((num_rows, 0)), model.categories, y).X_cat
        assert again.dtype == train.dtype
        np.testing.assert_array_equal(again, train)
    integers = generator.integers(-5, 6, (100, 2)) * 7
    codes = TableTransform.fit(None, integers, y[:100], "multiclass").transform(None, integers, y[:100]).categories
    np.testing.assert_array_equal(codes, OrdinalEncoder().fit_transform(integers))


@pytest.mark.parametrize("task", ["binclass", "regression"])
@pytest.mark.parametrize("normalisation", ["quantile", "minmax", "standard"])
@pytest.mark.parametrize("dtype", [None, object])
def test_a_checkpoint_holds_plain_values_and_is_enough(task, normalisation, dtype):
    X_num, X_cat, y = random_table(task)
    X_cat = X_cat if dtype is None else np.column_stack([X_cat, np.arange(len(y)) % 4]).astype(dtype)
    if dtype is object:
        X_cat[:, 2] = np.arange(len(y)) % 4
    transform = TableTransform.fit(X_num, X_cat, y, task, normalisation, integer_columns=[3])
    file = io.BytesIO()
    torch.save(transform.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = TableTransform.from_state(state)
    model, other = transform.transform(X_num, X_cat, y), again.transform(X_num, X_cat, y)
    drawn = np.random.default_rng(0).normal(size=model.numericals.shape)
    pairs = [*zip(model, other, strict=True)]
    for table in ([drawn, *model[1:]], model):
        pairs += zip(transform.inverse(*table), again.inverse(*table), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    if dtype is object:
        assert [type(each) for each in again.inverse(*model).X_cat[0]] == [str, str, int]
    with pytest.raises(ValueError, match="in format 2, this program reads format 1: run it again"):
        TableTransform.from_state(state | {"format_version": 2})


def changed(array, place, value):
    array = np.array(array, dtype=object if isinstance(value, str | None) else None)
    array[place] = value
    return array


NUM, CAT, Y = random_table(num_rows=40)
NAN, INF = np.nan, np.inf
GAPS = np.array([["a", None]] * 40, dtype=object)


@pytest.mark.parametrize(
    ("X_num", "X_cat", "y", "options", "message"),
    [
        (changed(NUM, (7, 2), NAN), CAT, Y, {}, "X_num column 2, row 7: nan, a missing value; fill it, or turn"),
        (changed(NUM, (slice(None), 1), NAN), CAT, Y, {}, "X_num column 1 has no value at all: leave the column out"),
        (changed(NUM, (7, 2), -INF), CAT, Y, {}, "X_num column 2, row 7: -inf is infinite; give it a finite value"),
        (NUM.astype(np.float64) * 1e299, CAT, Y, {}, "is beyond 1e+300, where float64 is no longer exact; rescale"),
        (np.full((40, 1), 2**60), CAT, Y, {}, "X_num column 0, row 0: 1152921504606846976 is beyond"),
        (np.full((40, 1), -(2**63)), CAT, Y, {}, "subtract an offset, or make the column categories"),
        (NUM.astype(str), CAT, Y, {}, "X_num column 0 is of type <U32, not of numbers: convert it to integers or"),
        (NUM > 0, CAT, Y, {}, "X_num column 0 is of type bool, not of numbers"),
        (NUM, GAPS, Y, {}, "X_cat column 1 has no value at all: leave the column out"),
        (NUM, changed(CAT, (3, 1), None), Y, {}, "X_cat column 1, row 3: None, a missing value; make it a category"),
        (NUM, changed(CAT.astype(object), (3, 1), NAN), Y, {}, "X_cat column 1, row 3: nan, a missing value"),
        (NUM, changed(CAT.astype(object), (3, 1), 5), Y, {}, "X_cat column 1 holds values of kind mixed-integer: conv"),
        (NUM, NUM, Y, {}, "X_cat column 0 holds values of kind float32: convert all of them to strings"),
        (NUM, CAT, Y.astype(float), {}, "y holds values of kind float64: convert all of them to strings, or all"),
        (NUM, CAT, changed(Y, 5, None), {}, "y, row 5: None, a missing value"),
        (NUM, CAT, changed(Y.astype(float), 5, NAN), {"task": "regression"}, "y, row 5: nan, a missing value"),
        (NUM, CAT, CAT[:, 0], {"task": "regression"}, "y is of type <U3, not of numbers"),
        (NUM, CAT, Y * 0, {}, "task='binclass', but y has 1 classes in the training part: set another task"),
        (NUM, CAT, np.arange(40), {}, "task='binclass', but y has 40 classes in the training part"),
        (NUM, CAT, Y, {"task": "binary"}, "task='binary': choose one of binclass, multiclass, regression"),
        (NUM, CAT, Y, {"normalisation": "z"}, "normalisation='z': choose one of quantile, minmax, standard"),
        (NUM, CAT, Y, {"integer_columns": [0]}, "X_num column 0 is not there, or holds others than integers"),
        (NUM, CAT, Y, {"integer_columns": [7]}, "X_num column 7 is not there"),
        (NUM[:0], CAT[:0], Y[:0], {}, "the training part has no rows"),
        (None, None, Y, {}, "the table has no column beside its target: give X_num or X_cat"),
        (NUM[:39], CAT, Y, {}, "X_num has shape (39, 7), expected (40, columns): a row for each of y"),
        (NUM, CAT[:, 0], Y, {}, "X_cat has shape (40,), expected (40, columns)"),
        (NUM, CAT, Y[:, None], {}, "y has shape (40, 1), expected [row]"),
    ],
)
def test_a_training_part_that_cannot_be_used(X_num, X_cat, y, options, message):
    with pytest.raises(ValueError) as caught:
        TableTransform.fit(X_num, X_cat, y, **{"task": "binclass"} | options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("X_num", "X_cat", "y", "options", "message"),
    [
        (changed(NUM, (7, 2), NAN), CAT, Y, {}, "X_num column 2, row 7: nan, a missing value"),
        (NUM[:, :6], CAT, Y, {}, "X_num has 6 columns, but the training part 7: give the same ones"),
        (NUM, None, Y, {}, "X_cat has 0 columns, but the training part 2"),
        (NUM, np.ones((40, 2), int), Y, {}, "X_cat column 0 is of kind integer, but string in the training part: con"),
        (NUM, CAT, changed(Y, 5, 2), {}, "y, row 5: the training part has no class np.int64(2); leave such rows out"),
    ],
)
def test_another_part_that_cannot_be_used(X_num, X_cat, y, options, message):
    transform = TableTransform.fit(NUM, CAT, Y, "binclass", **options)
    with pytest.raises(ValueError) as caught:
        transform.transform(X_num, X_cat, y)
    assert message in str(caught.value)


def test_ties_are_spread_among_quantiles_alone():
    transform = TableTransform.fit(NUM, CAT, Y, "binclass", "minmax")
    with pytest.raises(ValueError, match="normalisation='quantile' alone: leave generator out"):
        transform.transform(NUM, CAT, Y, np.random.default_rng(0))


def test_a_part_without_rows():
    transform = TableTransform.fit(NUM, CAT, Y, "binclass")
    model = transform.transform(NUM[:0], CAT[:0], Y[:0])
    assert [each.shape for each in model] == [(0, 7), (0, 2), (0,)]
    assert [each.shape for each in transform.inverse(*model)] == [(0, 7), (0, 2), (0,)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: lambda a: changed(a, (4, 2), NAN)}, "numericals, row 4, feature 2: nan; the model has diverged"),
        ({0: lambda a: a[:, :3]}, "numericals has shape (40, 3), expected (40, 7)"),
        ({1: lambda a: a[:3]}, "categories has shape (3, 2), expected (40, 2)"),
        ({1: lambda a: a.astype(float)}, "categories is of type float64: give integers"),
        ({1: lambda a: changed(a, (4, 1), 3)}, "X_cat column 1, row 4: 3 is not the number of a category, which are 0"),
        ({1: lambda a: changed(a, (4, 1), -1)}, "X_cat column 1, row 4: -1 is not the number of a category"),
        ({2: lambda a: None}, "target has shape (), expected (40,): the rows' classes"),
        ({2: lambda a: changed(a, 4, 2)}, "y, row 4: 2 is not the number of a category, which are 0 to 1"),
    ],
)
def test_what_a_model_cannot_have_drawn(change, message):
    transform = TableTransform.fit(NUM, CAT, Y, "binclass")
    model = [change.get(k, lambda a: a)(each) for k, each in enumerate(transform.transform(NUM, CAT, Y))]
    with pytest.raises(ValueError) as caught:
        transform.inverse(*model)
    assert message in str(caught.value)
