"""The format of what DataModules keep of their training data in a checkpoint."""

from typing import Any


def check_format_version(state: dict[str, Any], expected: int) -> None:
    """Make sure that a kept state is in the format that this program reads.

    Args:
        state: with its number under "format_version".
        expected: the number of this program's format.

    Raises:
        ValueError: it was written by another version of the program.
    """
    if state["format_version"] != expected:
        raise ValueError(
            f"the run keeps its table's facts in format {state['format_version']}, this program reads format "
            f"{expected}: run it again"
        )
