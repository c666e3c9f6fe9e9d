"""Reading images and masks of any origin, and bringing them to one size."""

import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from datamodules.sources import SourceError

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MARK = ("Software", "genpred")  # text in the PNG files of predicted masks, by which they are known again
LISTED = 20  # faulty files that an error names
# NumPy parses a file's header as Python, and CPython before 3.11.8 and 3.12.2 may fail to do so in two threads at once
# (its issue 106905: "AST constructor recursion depth mismatch").
_PARSER = threading.Lock()
Resize = Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]  # a mask to a height and a width


class ImagesError(SourceError, ValueError):
    """Images that cannot be used; the message names the files, what is wrong with each, and the remedy.

    A ValueError as well, since a configuration that names such images is at fault, too.
    """


def read_rgb(file: Path | bytes, shortest: int | None = None) -> Image.Image:
    """Decode an image upright, in red, green and blue.

    Its EXIF orientation is applied. Grey levels of 16 bits lose the lower eight, what is transparent lies on white, of
    several frames the first is taken.

    Args:
        file: a path, or a file's content.
        shortest: pixels of the shorter side that suffice; a larger JPEG is decoded at a reduced size, never below.

    Raises:
        ImagesError: it cannot be decoded; the reason alone, without the file's name.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if shortest is not None:
                image.draft(None, (shortest, shortest))
            return _rgb(ImageOps.exif_transpose(image))
    except ImagesError:
        raise
    except Exception as error:  # each of Pillow's decoders has errors of its own
        reason = "it is no image of a known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ImagesError(f"it does not decode: {reason}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImagesError("its pixels are floating-point numbers; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle, resized to `size` with an antialiased bicubic filter."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    # Where it shrinks by more than six, whole blocks of pixels are averaged first: faster, and hardly to be seen.
    return image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side), reducing_gap=3.0)


def channels_first(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB image, uint8 [3, height, width]."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def fitted(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of an image whose longer side is brought to `size`."""
    longest = max(width, height)
    return tuple(max(1, (2 * side * size + longest) // (2 * longest)) for side in (width, height))


def whole_image(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """All of an image as a square, uint8 [3, size, size].

    The longer side is resized to `size` (bilinear, antialiased; nothing happens at its own size). An image that is not
    square lies in the upper left corner, and is continued by its mirror image on the right or below.
    """
    width, height = fitted(*image.size, size)
    pixels = channels_first(image.resize((width, height), Image.Resampling.BILINEAR))
    return np.pad(pixels, ((0, 0), (0, size - height), (0, size - width)), mode="symmetric")


def nearest(labels: NDArray, height: int, width: int) -> NDArray:
    """Labels at another size: row i is row floor(i * old height / new height), columns likewise."""
    rows = np.arange(height) * labels.shape[0] // height
    columns = np.arange(width) * labels.shape[1] // width
    return labels[rows[:, None], columns]


def whole_mask(
    mask: NDArray[np.uint8],
    size: int,
    ignore_label: int,
    resize: Resize = nearest,
) -> NDArray[np.uint8]:
    """The mask [height, width] of an image as `whole_image` shows it, uint8 [size, size]; beside it `ignore_label`.

    Args:
        mask: numbers of classes.
        size: height and width, in pixels.
        ignore_label: of what lies beside an image that is not square.
        resize: brings a mask to a height and a width.
    """
    width, height = fitted(mask.shape[1], mask.shape[0], size)
    square = np.full((size, size), ignore_label, dtype=np.uint8)
    square[:height, :width] = resize(mask, height, width)
    return square


def at_own_size(labels: NDArray, width: int, height: int) -> NDArray:
    """Labels [height, width] of an image of that size, from those [size, size] of its `whole_image`."""
    inner_width, inner_height = fitted(width, height, len(labels))
    return nearest(labels[:inner_height, :inner_width], height, width)


def most_frequent(mask: NDArray[np.uint8], height: int, width: int, ignore_label: int) -> NDArray[np.uint8]:
    """A mask at another size, in which thin strokes survive.

    A pixel has the class that most pixels have in its place of the mask, the first of several; `ignore_label` only
    where none of them is annotated. Where the mask grows, and at its own size, this is `nearest`.
    """
    mask = nearest(mask, max(height, mask.shape[0]), max(width, mask.shape[1]))
    rows, columns = (
        np.searchsorted(np.arange(new) * old // new, np.arange(old), side="right") - 1
        for new, old in ((height, mask.shape[0]), (width, mask.shape[1]))
    )
    places = rows[:, None] * width + columns  # of each pixel, [old height, old width]
    result = np.full(height * width, ignore_label, dtype=np.uint8)
    most = np.zeros(height * width, dtype=np.int64)
    for label in np.bincount(mask.ravel()).nonzero()[0]:
        if label != ignore_label:
            count = np.bincount(places[mask == label], minlength=height * width)
            result[count > most] = label
            np.maximum(most, count, out=most)
    return result.reshape(height, width)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Numbers of classes, uint8 [height, width], from a NumPy file or a PNG of grey levels or of a palette's entries.

    Raises:
        ImagesError: it cannot be read, or its values are no numbers of classes; the reason alone.
    """
    try:
        mask = _read_array(path) if path.suffix.lower() == ".npy" else _read_indices(path)
    except ImagesError:
        raise
    except Exception as error:  # as of Pillow, and NumPy's are of several kinds, too
        raise ImagesError(f"it does not decode: {error}") from error
    if mask.ndim != 2:
        raise ImagesError(f"a mask has a height and a width, this one the shape {list(mask.shape)}")
    if mask.dtype.kind not in "biu":
        raise ImagesError(f"its values are of type {mask.dtype}; save the numbers of the classes as uint8")
    if mask.size == 0 or mask.min() < 0 or mask.max() > 255:
        found = f"{mask.min()} to {mask.max()}" if mask.size else "none"
        raise ImagesError(f"numbers of classes lie between 0 and 255, its values are {found}")
    return mask.astype(np.uint8)


def _read_array(path: Path) -> NDArray:
    content = io.BytesIO(path.read_bytes())  # several files at a time
    with _PARSER:
        array = np.load(content, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ImagesError("it is an archive of arrays; save the mask alone with numpy.save")
    return array


def is_predicted(path: Path) -> bool:
    """Whether a PNG file bears the mark of a mask, or a map of uncertainty, that an ensemble has drawn."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(MARK[0]) == MARK[1]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # of another kind, or damaged
        return False


def is_hidden(name: str) -> bool:
    """Whether a relative path is of a hidden file or folder, or one of those that archives of macOS bring along."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _read_indices(path: Path) -> NDArray:
    with Image.open(path) as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise ImagesError(
                f"it is a picture in colours (mode {image.mode}), from which no numbers of classes can be read; save "
                f"it with a palette, or with the number of the class as grey level"
            )
        # Grey levels of two and four bits are spread over eight when they are decoded.
        spread = {"L;2": 85, "L;4": 17}.get(image.tile[0][3] if image.tile else None, 1)
        return np.asarray(ImageOps.exif_transpose(image)) // spread  # turned as its picture is


def listed(problems: list[str]) -> str:
    """The first problems, a line each, and how many there are beyond."""
    lines = [f"\n  - {problem}" for problem in problems[:LISTED]]
    if len(problems) > LISTED:
        lines.append(f"\n  - and {len(problems) - LISTED} more")
    return "".join(lines)
