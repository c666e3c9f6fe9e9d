"""What a benchmark table is described by; the descriptions are in `datamodules.synthesis.benchmark_facts`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from datamodules.synthesis.preprocessing import Task
from datamodules.synthesis.row_splits import Split


@dataclass(frozen=True)
class Edition:
    """One way to have the rows of a data set.

    Attributes:
        files: raw files, as paths inside the folder `tabular` of a mirror. Those that `datamodules.sources` knows are
            downloaded where needed, the others have to be put there by hand.
        rows: number of rows in them.
        read: gives the rows from the paths of the files and the facts of the data set.
        split: the published split of these rows; of a substitute the split that comes nearest to it.
        class_counts: number of rows of each class; empty for regression.
        variant: "published", or the name of a substitute for rows that are hard to have.
    """

    files: tuple[str, ...]
    rows: int
    read: Callable[[list[Path], "Dataset"], pd.DataFrame]
    split: Split
    class_counts: tuple[int, ...] = ()
    variant: str = "published"


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set before its rows are read.

    Attributes:
        task: "regression", "binclass" or "multiclass".
        page: where the raw files are described and may be had.
        numerical: columns of ``X_num`` in their order.
        target: column of ``y``.
        sizes: published numbers of training, validation and test rows.
        editions: ways to have the rows; the first that is at hand is used.
        categorical: columns of ``X_cat`` in their order.
        dropped: columns that the raw files may have and nothing uses.
        number_type: numpy's name of the type of ``X_num``.
        category_type: likewise of ``X_cat``.
        target_type: likewise of ``y``; real targets are cut off where it is an integer.
        target_quantile: in every part, rows are left out whose target exceeds this quantile of the training targets.
    """

    task: Task
    page: str
    numerical: tuple[str, ...]
    target: str
    sizes: tuple[int, int, int]
    editions: tuple[Edition, ...]
    categorical: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    number_type: str = "float64"
    category_type: str = "object"
    target_type: str = "int64"
    target_quantile: float | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for regression."""
        return len(self.editions[0].class_counts)
