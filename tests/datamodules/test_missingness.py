"""Hidden entries of series of any kind: exact numbers, and the law by which each mechanism chooses.

Of the mechanisms of binary image sequences the expected rates are here; the rest is tested beside the data that use
them, in test_healing_mnist.py.
"""

import math
import typing

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest, norm
from sklearn.linear_model import LogisticRegression

from datamodules.imputation import missingness
from datamodules.imputation.missingness import SeriesMechanism, block, hide, mar, mcar, self_masked

MECHANISMS = typing.get_args(SeriesMechanism)


def incomplete(shape, seed, part=0.6):
    """Normal values in which each feature has a scale of its own, NaN where not observed."""
    generator = np.random.default_rng(seed)
    observed = generator.random(shape) < part
    values = generator.normal(size=shape) * 10.0 ** np.arange(-1, shape[2] - 1) + 5
    return np.where(observed, values, np.nan), observed


@settings(max_examples=60, deadline=None)
@given(
    mechanism=st.sampled_from(MECHANISMS),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(3, 6)),
    rate=st.floats(0, 0.35),
    seed=st.integers(0, 2**32 - 1),
)
def test_only_observed_entries_are_hidden_and_as_many_as_asked(mechanism, shape, rate, seed):
    values, observed = incomplete(shape, seed)
    observed[0, 0, :3] = True
    values[~np.isfinite(values)] = np.inf
    values[0, 0, :3] = 1.0
    try:
        hidden = hide(mechanism, values, observed, rate, np.random.default_rng(seed))
    except ValueError:
        assert mechanism == "mar"  # too few entries of features that do not decide
        reject()
    assert hidden.shape == observed.shape
    assert hidden.dtype == bool
    assert not (hidden & ~observed).any()
    assert hidden.sum() == round(rate * observed.sum())


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_choice_is_the_generators(mechanism):
    values, observed = incomplete((30, 20, 4), 0)
    first, same, other = (hide(mechanism, values, observed, 0.3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    # Neither the unit of a feature nor what stands where nothing is observed plays a part.
    moved = np.where(observed, 3 * values - 7, -1e30)
    assert np.array_equal(hide(mechanism, moved, observed, 0.3, np.random.default_rng(1)), first)


def test_mcar_chooses_every_entry_equally_often():
    observed = np.random.default_rng(0).random((4, 5, 6)) < 0.5
    generator = np.random.default_rng(1)
    times_hidden = sum(mcar(observed, 0.25, generator).astype(int) for _ in range(4000))
    rate = round(0.25 * observed.sum()) / observed.sum()
    error = times_hidden[observed] / 4000 - rate
    assert np.abs(error).max() < 5 * math.sqrt(rate * (1 - rate) / 4000)


@pytest.mark.parametrize("slope", [1.0, -0.5])
def test_self_masking_is_logistic_in_the_standardised_value(slope):
    values, observed = incomplete((400, 30, 3), 2)
    hidden = self_masked(values, observed, 0.2, np.random.default_rng(3), slope)
    assert hidden.sum() == round(0.2 * observed.sum())
    for feature in range(3):
        value = values[:, :, feature][observed[:, :, feature]]
        z = (value - value.mean()) / value.std()
        chosen = hidden[:, :, feature][observed[:, :, feature]]
        assert np.sign(np.corrcoef(z, chosen)[0, 1]) == np.sign(slope)
        fitted = LogisticRegression(C=np.inf).fit(z[:, None], chosen)
        assert fitted.coef_[0, 0] == pytest.approx(slope, abs=0.15)  # standard error 0.033
        # The rate in each tenth of the values is that of the logistic curve with the fitted constant.
        for tenth in np.array_split(np.argsort(z), 10):
            expected = expit(slope * z[tenth] + fitted.intercept_[0]).mean()
            assert binomtest(int(chosen[tenth].sum()), tenth.size, expected).pvalue > 1e-5


def test_missing_at_random_depends_on_the_deciding_feature_only():
    """Two features: one decides, the other is correlated with it; given the first, the second's value is irrelevant."""
    generator = np.random.default_rng(4)
    first = generator.normal(size=(500, 40))
    own = generator.normal(size=(500, 40))
    values = np.stack([first, 0.8 * first + 0.6 * own], axis=2)
    observed = np.ones(values.shape, dtype=bool)
    for seed in range(4):
        hidden = mar(values, observed, 0.2, np.random.default_rng(seed), slope=1.5)
        assert hidden.sum() == round(0.2 * observed.sum())
        assert hidden.any((0, 1)).sum() == 1  # the feature that decides is never hidden
        target = int(hidden.any((0, 1)).argmax())
        decider, chosen = values[:, :, 1 - target].ravel(), hidden[:, :, target].ravel()
        both = np.stack([decider / decider.std(), values[:, :, target].ravel()], axis=1)
        fitted = LogisticRegression(C=np.inf).fit(both, chosen)
        assert fitted.coef_[0, 0] == pytest.approx(1.5, abs=0.15)  # standard error 0.03
        assert fitted.coef_[0, 1] == pytest.approx(0.0, abs=0.15)
        assert np.corrcoef(values[:, :, target].ravel(), chosen)[0, 1] > 0.2  # through the other feature


def test_missing_at_random_with_several_deciding_features():
    values, observed = incomplete((300, 20, 10), 5)
    hidden = mar(values, observed, 0.3, np.random.default_rng(6))
    assert hidden.sum() == round(0.3 * observed.sum())
    deciding = ~hidden.any((0, 1))
    assert deciding.sum() == 3
    z = (values - np.nanmean(values, (0, 1))) / np.nanstd(values, (0, 1))
    score = np.nan_to_num(z[:, :, deciding]).sum(-1)
    part = (hidden[:, :, ~deciding].sum(-1) / np.maximum(observed[:, :, ~deciding].sum(-1), 1)).ravel()
    low, high = (part[score.ravel() < -1].mean(), part[score.ravel() > 1].mean())
    assert high > low + 0.25
    own = z[:, :, ~deciding][observed[:, :, ~deciding]]  # independent of the deciding features here
    assert abs(np.corrcoef(own, hidden[:, :, ~deciding][observed[:, :, ~deciding]])[0, 1]) < 4 / math.sqrt(own.size)


def runs(hidden):
    """Lengths of the runs along time, in the order of series and features."""
    rows = np.moveaxis(hidden, 1, 2).reshape(-1, hidden.shape[1]).astype(int)
    edges = np.diff(np.pad(rows, ((0, 0), (1, 1))), axis=1)
    return np.argwhere(edges == -1)[:, 1] - np.argwhere(edges == 1)[:, 1], np.argwhere(edges == 1)[:, 1]


@pytest.mark.parametrize("length", [1, 4, 7])
def test_blocks_are_runs_of_the_stated_length(length):
    observed = np.ones((300, 50, 8), dtype=bool)
    hidden = block(observed, 0.01, np.random.default_rng(7), length)
    assert hidden.sum() == 1200
    lengths, starts = runs(hidden)
    inner = (starts > 0) & (starts + lengths < 50)
    # At this rate runs seldom meet; one at most is cut short.
    assert np.mean(lengths[inner] == length) > 0.9
    assert np.sum(lengths[inner] < length) <= 1
    # Where the data have gaps, the same outage hides what is left of it.
    sparse = np.random.default_rng(8).random(observed.shape) < 0.3
    hidden = block(sparse, 0.2, np.random.default_rng(9), length)
    assert hidden.sum() == round(0.2 * sparse.sum())
    neighbours = sparse[:, 1:] & sparse[:, :-1]
    both, first = hidden[:, 1:][neighbours], hidden[:, :-1][neighbours]
    after_hidden = both[first].mean()
    # Of neighbours in time, a run that hides the first hides the second unless it ends there.
    expected = 1 - 1 / length + (1 / length) * 0.2
    assert after_hidden == pytest.approx(expected, abs=0.06)


def test_blocks_fall_everywhere_alike():
    observed = np.ones((2000, 12, 3), dtype=bool)
    hidden = block(observed, 0.3, np.random.default_rng(10))
    assert hidden.sum() == round(0.3 * observed.size)
    assert np.abs(hidden.mean((0, 2)) - 0.3).max() < 0.03  # 6,000 series: standard error 0.006, both ends included
    assert np.abs(hidden.mean((0, 1)) - 0.3).max() < 0.03


@pytest.mark.parametrize(
    ("mechanism", "rate", "autocorrelation"),
    [
        ("temporal_positive", 0.1, 0.7),
        ("temporal_positive", 0.6, 0.7),
        ("temporal_negative", 0.6, -0.5),
        ("temporal_negative", 0.1, -1 / 9),  # never two hidden in succession: as negative as it can be
    ],
)
def test_temporal_mechanisms_keep_the_marginal_rate_and_the_sign(mechanism, rate, autocorrelation):
    values, observed = incomplete((3000, 12, 4), 11, part=0.7)
    hidden = hide(mechanism, values, observed, rate, np.random.default_rng(12))
    for t in range(12):
        seen = hidden[:, t][observed[:, t]]
        assert binomtest(int(seen.sum()), seen.size, rate).pvalue > 1e-5
    pair = observed[:, 1:] & observed[:, :-1]
    assert np.corrcoef(hidden[:, 1:][pair], hidden[:, :-1][pair])[0, 1] == pytest.approx(autocorrelation, abs=0.02)


class Constant:
    """A generator whose noise is one number everywhere."""

    def __init__(self, value):
        self.value = value

    def standard_normal(self, shape, dtype):
        return np.full(shape, self.value, dtype)


class Grid:
    """A generator that draws every combination of equally likely uniform numbers once, in time or for one entry."""

    def __init__(self, size):
        self.size = size

    def random(self, shape, dtype):
        steps = np.meshgrid(*[(np.arange(self.size) + 0.5) / self.size] * shape[1], indexing="ij")
        return np.stack(steps, axis=-1).reshape(shape).astype(dtype)


def test_the_expected_number_of_hidden_pixels_is_the_rate_exactly():
    """Over every value that a uniform number takes, as many are hidden as the probabilities sum up to."""
    frames = np.ones((1000, 1, 1), dtype=bool)
    assert [(~missingness.mnar(white, Grid(1000))).sum() for white in (frames, ~frames)] == [800, 400]
    assert (~missingness.random(frames.shape, Grid(1000))).sum() == 600
    assert (~missingness.random(frames.shape, Grid(1000), rate=0.25)).sum() == 250
    # After a hidden step 0.88 and after an observed one 0.18, or 0.4 and 0.9; what two steps keep, all do.
    for autocorrelation in (0.7, -0.5):
        hidden = ~missingness.temporal((1000**2, 2, 1), Grid(1000), 0.6, autocorrelation)
        assert hidden.sum((0, 2)).tolist() == [600_000] * 2


def test_the_threshold_of_the_spatial_field_is_that_of_its_own_deviation():
    """A smoothed constant is that constant: it tells where the threshold lies."""
    distance = np.arange(-8, 9)  # four widths: scipy's filter ends there
    weights = np.exp(-(distance**2) / 8)
    deviation = np.sum((weights / weights.sum()) ** 2)  # of two axes: the product of two roots of this
    for rate in (0.6, 0.25):
        threshold = deviation * norm.ppf(rate)
        for value, hidden in ((threshold - 1e-6, True), (threshold + 1e-6, False)):
            assert (missingness.spatial((1, 1, 784), (28, 28), Constant(value), rate) != hidden).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mechanism": "random"}, r"mechanism='random' is not known; choose one of \['mcar'"),
        ({"rate": 1.0}, "rate=1.0 must be at least 0 and below 1"),
        ({"observed": np.ones((2, 3), dtype=bool)}, r"observed has shape \(2, 3\)"),
        ({"observed": np.ones((2, 3, 2))}, "dtype float64: .* observed must be bool"),
        ({"values": np.full((2, 3, 2), np.nan)}, "12 observed value.* are not finite"),
        ({"mechanism": "mar", "rate": 0.6}, r"rate=0.6 asks for 7 hidden entries, but the features \[.\] decide"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(change, message):
    arguments = {
        "mechanism": "mcar",
        "values": np.zeros((2, 3, 2)),
        "observed": np.ones((2, 3, 2), dtype=bool),
        "rate": 0.5,
        "generator": np.random.default_rng(0),
    }
    with pytest.raises(ValueError, match=message):
        hide(**arguments | change)


def test_one_feature_cannot_decide_about_others():
    observed = np.ones((2, 3, 2), dtype=bool)
    observed[:, :, 1] = False
    with pytest.raises(ValueError, match=r"1 of the 2 feature.* choose another mechanism"):
        hide("mar", np.zeros((2, 3, 2)), observed, 0.1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        missingness.block(observed, 0.1, np.random.default_rng(0), length=0)
