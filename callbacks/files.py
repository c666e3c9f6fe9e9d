"""Files that are whole or absent; needs no torch, so that reports start at once."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name complete, or not at all.

    The bytes go to ``.<name>.partial`` in the same folder (a rename across file systems would be a copy), reach the
    disk (fsync) and only then take the name. A failure removes the partial file; a killed process leaves it, and the
    next write takes it over. One writer per path at a time: rank 0 of the one job that owns a run's folder.

    Args:
        path: the file to write; missing folders are made.

    Yields:
        A binary file object.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, survives a power cut
    finally:
        os.close(folder)
