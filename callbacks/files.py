"""Files that are whole or absent, and a log that survives a full disk; without torch, so that reports start at once."""

import contextlib
import io
import logging
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


class WriteError(OSError):
    """A file that could not be written, in words: the file, the reason, the remedy."""

    @classmethod
    def of(cls, path: str | Path, error: OSError) -> "WriteError":
        """Of the file that was to be written, and what the system said."""
        return cls(error.errno, error.strerror or str(error), str(path))

    def __str__(self) -> str:
        return (
            f"{self.filename} could not be written: {self.strerror}. What was there before is untouched. Free some "
            "space or make the folder writable, then start the same command again."
        )


class _Watched(io.FileIO):
    """A file that keeps the error it met: a library that writes into it may raise one of its own instead."""

    failure: OSError | None = None

    def write(self, content: Any) -> int | None:
        with self.noting():
            return super().write(content)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error
            raise


@contextlib.contextmanager
def whole_file(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name complete, or not at all.

    The bytes go to ``.<name>.partial`` in the same folder (a rename across file systems would be a copy), reach the
    disk (fsync) and only then take the name, with the permissions of what was there before. A failure removes the
    partial file; a killed process leaves it, and the next write takes it over. One writer per path at a time: rank 0 of
    the one job that owns a run's folder.

    Args:
        path: the file to write; missing folders are made.
        previous: another name in the same folder, which the file that was there before takes. At any moment there is a
            whole file under one of the two. None: what was there before is replaced.

    Yields:
        A binary file object.

    Raises:
        WriteError: the file cannot be written. What fails for other reasons while it is open passes through.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = _Watched(partial, "wb")
        with contextlib.suppress(FileNotFoundError):  # nobody may read what was not for them before
            os.fchmod(raw.fileno(), stat.S_IMODE(path.stat().st_mode))
    except OSError as error:
        raise WriteError.of(path, error) from error
    try:
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            with raw.noting():
                os.fsync(raw.fileno())
        with raw.noting():
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(partial, path)
            _sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a folder that became read-only keeps it
            partial.unlink(missing_ok=True)
        if raw.failure is not None:
            raise WriteError.of(path, raw.failure) from error
        raise


def _sync(folder: Path) -> None:
    """Let a new name, too, survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LogFile(logging.FileHandler):
    """A log that may lose lines: a full disk is told once on standard error, and the run goes on."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (of the standard library)
        """Tell of an error of the disk once; of others as usual."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f"{self.baseFilename} could not be written: {error.strerror}. It lacks lines.", file=sys.stderr)

    def close(self) -> None:
        """Close it, with or without its last lines."""
        with contextlib.suppress(OSError):
            super().close()
