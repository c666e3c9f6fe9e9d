"""Colours for the classes of a mask."""

import functools

import numpy as np
from numpy.typing import NDArray

FIRST = (38, 38, 38)  # class 0, most often the background
LEVELS = np.linspace(0, 255, 18).round()  # of each channel, of the colours there are to choose from


@functools.cache
def _chosen(num_colours: int) -> NDArray[np.uint8]:
    colours = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS, indexing="ij"), -1).reshape(-1, 3)
    places = oklab(colours)
    bright = places[:, 0] > 0.5  # the others would be taken for class 0
    colours, places = colours[bright], places[bright]
    chosen = [np.array(FIRST, float)]
    nearest = np.full(len(colours), np.inf)
    while len(chosen) < num_colours:
        nearest = np.minimum(nearest, np.square(places - oklab(chosen[-1])).sum(-1))
        chosen.append(colours[nearest.argmax()])
    result = np.stack(chosen[:num_colours]).astype(np.uint8)
    result.flags.writeable = False
    return result


def palette(num_colours: int) -> NDArray[np.uint8]:
    """Red, green and blue of each class, uint8 [class, 3]: a dark grey, then what lies farthest from all before it.

    Distances are those of Oklab, in which equal ones look about equal. The first colours of a longer palette are those
    of a shorter one.

    Raises:
        ValueError: fewer than 1 or more than 256 colours.
    """
    if not 1 <= num_colours <= 256:
        raise ValueError(f"num_colours={num_colours}: there are palettes of 1 to 256 colours.")
    return _chosen(num_colours)


def oklab(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lightness (0 to 1) and two opponent axes of sRGB colours [..., 3] in 0..255 (Ottosson, Oklab, 2020)."""
    scaled = np.asarray(colours, float) / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_opponents = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_cones.T) @ to_opponents.T
