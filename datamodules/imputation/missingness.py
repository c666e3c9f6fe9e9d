"""Mechanisms that hide entries of image sequences, as pure functions of a numpy generator.

All take or give arrays [sequence, time, pixel], return True where an entry stays observed, and draw row after row.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

Mechanism = Literal["mnar", "random", "spatial", "temporal_positive", "temporal_negative"]


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
        rate: probability of hiding an entry, in (0, 1).
        autocorrelation: correlation of neighbouring time steps.

    Returns:
        bool [sequence, time, pixel], True where observed.

    Raises:
        ValueError: no such chain exists (its transition probabilities would leave [0, 1]).
    """
    after_hidden = rate + autocorrelation * (1 - rate)
    after_observed = rate - autocorrelation * rate
    if not (0 <= after_hidden <= 1 and 0 <= after_observed <= 1):
        raise ValueError(
            f"autocorrelation={autocorrelation} is impossible with rate={rate}: "
            f"it must lie between {-min(rate / (1 - rate), (1 - rate) / rate):.3f} and 1."
        )
    uniform = generator.random(shape, dtype=np.float32)
    hidden = np.empty(shape, dtype=bool)
    hidden[:, 0] = uniform[:, 0] < np.float32(rate)
    for t in range(1, shape[1]):
        probability = np.where(hidden[:, t - 1], np.float32(after_hidden), np.float32(after_observed))
        hidden[:, t] = uniform[:, t] < probability
    return ~hidden
