"""What the DataModules of users' own tables share: their error, and checks of arguments."""

import difflib
from collections.abc import Iterable

from datamodules.sources import SourceError


class TableError(SourceError, ValueError):
    """A table that cannot be used: one line that names the file, the row, the column and the remedy.

    A ValueError as well, since a configuration that names such a table is at fault, too.
    """

    def __init__(self, message: str) -> None:
        # Names of columns, and messages of pandas and scikit-learn, may have line breaks in them.
        super().__init__(" ".join(message.split()))


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?', or the list of what is known where nothing is near."""
    known = list(known)
    lower = {name.lower(): name for name in known}
    match = difflib.get_close_matches(word.lower(), lower, n=1)
    listed = ", ".join(repr(name) for name in known[:10]) + (", ..." if len(known) > 10 else "")
    return f" Did you mean '{lower[match[0]]}'?" if match else f" There are: {listed or 'none'}."


def separator_of(text: str) -> str:
    r"""The separator of a CSV file as an argument names it: one character, or "\t" for a tab.

    Raises:
        ValueError: it is longer.
    """
    separator = {"\\t": "\t"}.get(text, text)
    if len(separator) != 1:
        raise ValueError(f"separator={separator!r}: it must be one character.")
    return separator


def check_fractions(validation_fraction: float, test_fraction: float) -> None:
    """Raise ValueError if the two parts are not fractions, or leave nothing for training."""
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    for name, value in fractions.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}: it must lie between 0 and 1.")
    if validation_fraction + test_fraction >= 1:
        raise ValueError(f"validation_fraction={validation_fraction} and test_fraction={test_fraction} leave nothing.")
