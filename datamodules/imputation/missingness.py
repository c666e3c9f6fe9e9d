"""Mechanisms that hide entries of time series, as pure functions of a numpy generator.

`hide` is for series of any kind with values missing already, [series, time, feature]: it returns True where an entry is
to be hidden, among the observed ones only, and hides an exact number of them. `draw_observed` is for binary image
sequences, [sequence, time, pixel]: it returns True where an entry stays observed, and draws row after row. Its rates
are those of the published data, probabilities of each entry: the number that is hidden varies about its expectation.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, minimum_filter1d
from scipy.stats import norm

Mechanism = Literal["mnar", "random", "spatial", "temporal_positive", "temporal_negative"]
SeriesMechanism = Literal["mcar", "mar", "mnar", "block", "temporal_positive", "temporal_negative"]


def hide(
    mechanism: SeriesMechanism,
    values: NDArray[np.floating],
    observed: NDArray[np.bool_],
    rate: float,
    generator: np.random.Generator,
) -> NDArray[np.bool_]:
    """Choose round(rate * number of observed entries) of time series to hide, under a mechanism's default arguments.

    Args:
        mechanism: "mcar", "mar" and "block" are the functions of these names, "mnar" is `self_masked`;
            "temporal_positive" and "temporal_negative" are `temporal` with lag-1 autocorrelation 0.7 and -0.5, or as
            near to -0.5 as the rate allows, in time steps whether observed or not. These chains hide a number that
            varies; as many entries as it is off by, of either kind all alike, then change sides.
        values: [series, time, feature], in any units; not read where not observed.
        observed: bool, same shape, True where a value is known.
        rate: part of the observed entries to hide, in [0, 1).
        generator: source of randomness, advanced.

    Returns:
        bool, same shape, True where hidden: a subset of `observed`.

    Raises:
        ValueError: an argument is out of range, an observed value is not finite, or the mechanism cannot hide so many.
    """
    if values.ndim != 3 or values.shape != observed.shape or observed.dtype != np.bool_:
        raise ValueError(
            f"values have shape {values.shape}, observed has shape {observed.shape} and dtype {observed.dtype}: "
            "both must be [series, time, feature], and observed must be bool"
        )
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate} must be at least 0 and below 1: it is the part of the observed entries to hide")
    unusable = np.count_nonzero(observed & ~np.isfinite(values))
    if unusable:
        raise ValueError(f"{unusable} observed value(s) are not finite; let observed be False where a value is missing")
    match mechanism:
        case "mcar":
            return mcar(observed, rate, generator)
        case "mar":
            return mar(values, observed, rate, generator)
        case "mnar":
            return self_masked(values, observed, rate, generator)
        case "block":
            return block(observed, rate, generator)
        case "temporal_positive":
            return _exact(~temporal(observed.shape, generator, rate, 0.7), observed, rate, generator)
        case "temporal_negative":
            autocorrelation = max(-0.5, _lowest_autocorrelation(rate))
            return _exact(~temporal(observed.shape, generator, rate, autocorrelation), observed, rate, generator)
    raise ValueError(f"mechanism={mechanism!r} is not known; choose one of {list(get_args(SeriesMechanism))}")


def mcar(observed: NDArray[np.bool_], rate: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Missing completely at random: round(rate * observed entries) of them, all sets of that size equally likely.

    Args:
        observed: bool, any shape, True where a value is known.
        rate: part of the observed entries to hide.
        generator: source of randomness, advanced.

    Returns:
        bool, same shape, True where hidden.
    """
    known = np.flatnonzero(observed)
    hidden = np.zeros(observed.shape, dtype=bool)
    hidden.reshape(-1)[generator.choice(known, size=round(rate * known.size), replace=False, shuffle=False)] = True
    return hidden


def mar(
    values: NDArray[np.floating],
    observed: NDArray[np.bool_],
    rate: float,
    generator: np.random.Generator,
    deciding: float = 0.3,
    slope: float = 1.0,
) -> NDArray[np.bool_]:
    """Missing at random: what is hidden depends on other features, which are never hidden, and on nothing else.

    A random part of the features decides. The larger their values at a time, the likelier the other features' entries
    of that time are hidden: the log-odds are slope * s + constant, where s is the sum of the deciding features'
    standardised values (0 where not observed), scaled to standard deviation 1 over the entries that may be hidden, and
    the constant is such that exactly round(rate * observed entries) are hidden.

    Args:
        values: [series, time, feature], not read where not observed.
        observed: bool, same shape, True where a value is known.
        rate: part of the observed entries to hide, those of the deciding features counted.
        generator: source of randomness, advanced.
        deciding: part of the features that decide; at least one does, and at least one does not.
        slope: change of the log-odds per standard deviation of s.

    Returns:
        bool, same shape, True where hidden.

    Raises:
        ValueError: fewer than two features are observed at all, or those that do not decide have too few entries.
    """
    usable = np.flatnonzero(observed.any((0, 1)))
    if usable.size < 2:
        raise ValueError(
            f"missing at random needs features that decide about others, but {usable.size} of the "
            f"{observed.shape[2]} feature(s) have observed values; choose another mechanism, such as 'mcar'"
        )
    number = min(max(round(deciding * usable.size), 1), usable.size - 1)
    deciders = np.sort(generator.choice(usable, size=number, replace=False))
    candidates = observed.copy()
    candidates[:, :, deciders] = False
    count, available = round(rate * np.count_nonzero(observed)), np.count_nonzero(candidates)
    if count > available:
        raise ValueError(
            f"rate={rate} asks for {count} hidden entries, but the features {deciders.tolist()} decide and are never "
            f"hidden, and the others have {available} observed entries: lower the rate, or choose another mechanism"
        )
    score = _standardised(values[:, :, deciders], observed[:, :, deciders]).sum(-1, keepdims=True)
    score = _standardised(np.broadcast_to(score, values.shape), candidates, per_feature=False)
    return _logistic_choice(slope * score, candidates, count, generator)


def self_masked(
    values: NDArray[np.floating],
    observed: NDArray[np.bool_],
    rate: float,
    generator: np.random.Generator,
    slope: float = 1.0,
) -> NDArray[np.bool_]:
    """Missing not at random: the larger a value, the likelier it is hidden.

    The log-odds are slope * z + constant, where z is the value standardised over its feature's observed entries, and
    the constant is such that exactly round(rate * observed entries) are hidden.

    Args:
        values: [series, time, feature], not read where not observed.
        observed: bool, same shape, True where a value is known.
        rate: part of the observed entries to hide.
        generator: source of randomness, advanced.
        slope: change of the log-odds per standard deviation; negative hides small values rather.

    Returns:
        bool, same shape, True where hidden.
    """
    count = round(rate * np.count_nonzero(observed))
    return _logistic_choice(slope * _standardised(values, observed), observed, count, generator)


def block(
    observed: NDArray[np.bool_], rate: float, generator: np.random.Generator, length: int = 5
) -> NDArray[np.bool_]:
    """Outages: runs of time steps in which a feature of a series is hidden.

    Runs of `length` steps appear one after the other, each at a random feature of a random series and at a random time
    (they may begin before the series and end after it), until exactly round(rate * observed entries) are hidden; the
    last run is cut short. Runs that meet make a longer one.

    Args:
        observed: bool [series, time, feature], True where a value is known.
        rate: part of the observed entries to hide.
        generator: source of randomness, advanced.
        length: of a run, in time steps whether observed or not.

    Returns:
        bool, same shape, True where hidden.

    Raises:
        ValueError: `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"length={length} must be at least 1 time step")
    num_series, num_steps, num_features = observed.shape
    # When the run beginning at each place appears; an entry is hidden by the first of the `length` runs that cover it.
    appears = generator.random((num_series, num_steps + length - 1, num_features))
    centre = length // 2
    hidden_at = minimum_filter1d(appears, length, axis=1)[:, centre : centre + num_steps]
    return _largest(-hidden_at, observed, round(rate * np.count_nonzero(observed)))


def _standardised(
    values: NDArray[np.floating], observed: NDArray[np.bool_], per_feature: bool = True
) -> NDArray[np.float64]:
    """Values brought to mean 0 and variance 1 over the observed entries, 0 elsewhere; [series, time, feature]."""
    axes = (0, 1) if per_feature else None
    count = np.maximum(np.sum(observed, axis=axes, keepdims=True), 1)
    mean = np.sum(values, axis=axes, keepdims=True, where=observed, dtype=np.float64) / count
    centred = np.where(observed, values - mean, 0.0)
    deviation = np.sqrt(np.sum(np.square(centred), axis=axes, keepdims=True) / count)
    return centred / np.where(deviation > 0, deviation, 1.0)


def _logistic_choice(
    log_odds: NDArray[np.float64], candidates: NDArray[np.bool_], count: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Exactly `count` candidates, chosen with log-odds that are right up to a constant.

    An entry hidden where log-odds + constant + logistic noise > 0 is hidden with probability sigmoid(log-odds +
    constant). The `count` largest sums are those above some threshold: they choose the constant. (Pareto sampling:
    Rosén, On sampling with probability proportional to size, J. Statist. Plann. Inference 62, 1997.)
    """
    return _largest(log_odds + generator.logistic(size=log_odds.shape), candidates, count)


def _exact(
    hidden: NDArray[np.bool_], observed: NDArray[np.bool_], rate: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Exactly round(rate * observed entries), from entries each hidden with that probability.

    Those that change sides are few, about the root of the number of entries, and drawn at random.
    """
    order = hidden + generator.random(hidden.shape)  # the hidden ones first, each kind in random order
    return _largest(order, observed, round(rate * np.count_nonzero(observed)))


def _largest(score: NDArray[np.float64], candidates: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """True at the `count` candidates with the largest scores; of equal scores the first."""
    places = np.flatnonzero(candidates)
    order = np.argsort(-score.reshape(-1)[places], kind="stable")
    chosen = np.zeros(candidates.shape, dtype=bool)
    chosen.reshape(-1)[places[order[:count]]] = True
    return chosen


def draw_observed(
    mechanism: Mechanism, frames: NDArray[np.bool_], image_shape: tuple[int, int], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Observed entries of binary `frames` under a mechanism with its default rates.

    Args:
        mechanism: one of the functions below; "temporal_positive" and "temporal_negative" are `temporal` with lag-1
            autocorrelation 0.7 and -0.5.
        frames: bool [sequence, time, pixel], True for white.
        image_shape: height and width, whose product is the number of pixels.
        generator: source of randomness, advanced.

    Returns:
        bool [sequence, time, pixel], True where observed.
    """
    match mechanism:
        case "mnar":
            return mnar(frames, generator)
        case "random":
            return random(frames.shape, generator)
        case "spatial":
            return spatial(frames.shape, image_shape, generator)
        case "temporal_positive":
            return temporal(frames.shape, generator, autocorrelation=0.7)
        case "temporal_negative":
            return temporal(frames.shape, generator, autocorrelation=-0.5)


def mnar(
    frames: NDArray[np.bool_], generator: np.random.Generator, black: float = 0.4, white: float = 0.8
) -> NDArray[np.bool_]:
    """Missing not at random: the value itself decides how probably it is hidden.

    The defaults reproduce the published baselines of Healing MNIST; the original masks are not available.

    Args:
        frames: bool [sequence, time, pixel], True for white.
        generator: source of randomness, advanced.
        black: probability of hiding a black entry.
        white: probability of hiding a white entry.

    Returns:
        bool [sequence, time, pixel], True where observed.
    """
    uniform = generator.random(frames.shape, dtype=np.float32)
    return uniform >= np.where(frames, np.float32(white), np.float32(black))


def random(shape: tuple[int, ...], generator: np.random.Generator, rate: float = 0.6) -> NDArray[np.bool_]:
    """Missing completely at random: every entry is hidden with probability `rate`, independently."""
    return generator.random(shape, dtype=np.float32) >= np.float32(rate)


def spatial(
    shape: tuple[int, int, int],
    image_shape: tuple[int, int],
    generator: np.random.Generator,
    rate: float = 0.6,
    length_scale: float = 2.0,
) -> NDArray[np.bool_]:
    """Hidden patches: a smooth Gaussian field, thresholded so that the marginal rate is `rate`. Our own recipe.

    Each frame has its own field: white noise under a Gaussian filter that wraps round the edges, hence with the same
    distribution at every pixel.

    Args:
        shape: sequences, time steps, pixels.
        image_shape: height and width.
        generator: source of randomness, advanced.
        rate: probability of hiding an entry.
        length_scale: standard deviation of the filter in pixels.

    Returns:
        bool [sequence, time, pixel], True where observed.
    """

    def smooth(field: NDArray[np.float32]) -> NDArray[np.float32]:
        return gaussian_filter(field, length_scale, mode="wrap", axes=(-2, -1))

    impulse = np.zeros(image_shape, dtype=np.float32)
    impulse[0, 0] = 1.0
    # White noise of variance 1 under a linear filter has the variance sum(weights**2).
    deviation = np.sqrt(np.square(smooth(impulse), dtype=np.float64).sum())
    field = smooth(generator.standard_normal((*shape[:2], *image_shape), dtype=np.float32))
    return (field >= np.float32(deviation * norm.ppf(rate))).reshape(shape)


def temporal(
    shape: tuple[int, int, int], generator: np.random.Generator, rate: float = 0.6, autocorrelation: float = 0.7
) -> NDArray[np.bool_]:
    """A stationary two-state Markov chain over time for every pixel. Our own recipe.

    With m = 1 for hidden, P(m_t = 1 | m_{t-1}) = rate + autocorrelation (m_{t-1} - rate), which keeps the marginal rate
    and has the autocorrelation `autocorrelation**lag`.

    Args:
        shape: sequences, time steps, pixels.
        generator: source of randomness, advanced.
        rate: probability of hiding an entry, in [0, 1].
        autocorrelation: correlation of neighbouring time steps.

    Returns:
        bool [sequence, time, pixel], True where observed.

    Raises:
        ValueError: no such chain exists (its transition probabilities would leave [0, 1]).
    """
    lowest = _lowest_autocorrelation(rate)
    if not (0 <= rate <= 1 and lowest <= autocorrelation <= 1):
        raise ValueError(
            f"autocorrelation={autocorrelation} is impossible with rate={rate}: "
            f"the rate must lie between 0 and 1, the autocorrelation between {lowest:.3f} and 1."
        )
    after_hidden = rate + autocorrelation * (1 - rate)
    after_observed = rate - autocorrelation * rate
    uniform = generator.random(shape, dtype=np.float32)
    hidden = np.empty(shape, dtype=bool)
    hidden[:, 0] = uniform[:, 0] < np.float32(rate)
    for t in range(1, shape[1]):
        probability = np.where(hidden[:, t - 1], np.float32(after_hidden), np.float32(after_observed))
        hidden[:, t] = uniform[:, t] < probability
    return ~hidden


def _lowest_autocorrelation(rate: float) -> float:
    """The most negative lag-1 autocorrelation of a two-state chain with this marginal rate."""
    return -min(rate, 1 - rate) / max(rate, 1 - rate)
