"""The sums of TabDDPM's published arrays, and how arrays are held against them.

Two of cardio's arrays are left out: which of some rows with equal numbers they hold is not known.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from datamodules.sources import SourceError

SUMS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("array_sha256.json").read_text())


def npy_sha256(array: NDArray, order: str) -> str:
    """SHA-256 of a `.npy` file as numpy 1 wrote it.

    Args:
        array: numbers, strings or objects. Strings as objects are pickled, and their bytes tell whether equal strings
            are one object.
        order: "C" or "F", the order in memory.
    """
    array = np.array(array, order=order)
    file = io.BytesIO()
    if array.dtype.hasobject:
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(array))
        # Numpy 2 pickles with another protocol and names its own modules otherwise.
        file.write(pickle.dumps(array, protocol=3).replace(b"cnumpy._core.", b"cnumpy.core."))
    else:
        npy.write_array(file, array, version=(1, 0))
    return hashlib.sha256(file.getbuffer()).hexdigest()


def check(name: str, arrays: Mapping[str, NDArray]) -> None:
    """Hold arrays against the sums of the published ones; there is nothing to hold those against that have no sum.

    Args:
        name: data set.
        arrays: under the published names.

    Raises:
        SourceError: an array is not the published one.
    """
    for key, expected in SUMS.get(name, {}).items():
        if expected not in (npy_sha256(arrays[key], order) for order in "CF"):
            raise SourceError(
                f"{name}: {key} is not the published array, whose SHA-256 is {expected}. A raw file holds other "
                f"values than the published one; replace it."
            )
