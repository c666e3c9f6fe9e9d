"""SMOTE: new rows between a training row and one of its nearest neighbours of the same class.

Chawla, Bowyer, Hall, Kegelmeyer: SMOTE, Synthetic Minority Over-sampling Technique, JAIR 2002; with categories SMOTE-NC
of its section 6.1. As a generator of whole tables, and for regression, as in TabDDPM (Kotelnikov et al., ICML 2023),
where it ran on imbalanced-learn 0.7: every class is drawn from; the halves of a real target below and above its median
stand in for classes, and the target is interpolated like any number; with categories ``margin`` has no effect, and a
category that differs counts as half of the median standard deviation of the smallest class' numbers.

That library is not used here, for its interface and its present version are for another purpose, as read in 0.14:
``fit_resample`` balances classes. It gives the training rows back with the new ones, refuses a real target, and refuses
a class with no more rows than neighbours. New numbers lie anywhere between the two rows: there is no ``margin``. Since
0.12 ``SMOTENC`` takes the median of each class, and over the root of 2 where half of the smallest class' was published,
so that it finds other neighbours. It holds indicators of the neighbours of all new rows at once, and searches the
neighbours again for each table that is drawn. What both have in common gives the same rows, which a test holds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import OneHotEncoder

from lightning_modules.synthesis.base import Synthesizer, TableSource

BLOCK = 2**24  # numbers of a [row, neighbor, column] array at a time
WIDEST_DENSE = 512  # indicators of categories up to which dense rows are quicker


class SMOTE(Synthesizer):
    """Interpolation between neighbours; numbers are to be scaled to [0, 1] by the training range.

    Args:
        num_neighbors: nearest rows of the same class that one is chosen from.
        margin: a new number is at least ``margin / 2`` of the way from both rows; 0: anywhere between them. In [0, 1].
            A table with categories has 0, as published.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, num_neighbors: int = 5, margin: float = 0.0) -> None:
        super().__init__()
        if num_neighbors < 1:
            raise ValueError(f"num_neighbors={num_neighbors} must be at least 1")
        if not 0 <= margin <= 1:
            raise ValueError(f"margin={margin} must lie in [0, 1]: it is the part of the way that is left out")
        self.save_hyperparameters()

    def attach(self, source: TableSource) -> None:
        """Find every row's neighbours.

        Raises:
            ValueError: a class has a single row, or no column is numerical.
        """
        super().attach(source)
        self.numericals, self.categories, target = (tensor.numpy(force=True) for tensor in source.encoded)
        if not self.numericals.shape[1]:
            raise ValueError("SMOTE interpolates numbers, and the table has none: use another method")
        num_classes = len(source.codec.class_counts)
        groups = target if num_classes else (self.numericals[:, 0] > np.median(self.numericals[:, 0])).astype(np.int64)
        self.groups = [np.flatnonzero(groups == group) for group in range(num_classes or 2)]
        alone = [len(rows) for rows in self.groups].index(1) if 1 in map(len, self.groups) else None
        if alone is not None:
            which = "one half of the target, cut at its median,"
            if num_classes:
                which = f"class {source.codec.transform.target.categories[0][alone]} of the target"
            raise ValueError(f"{which} has one row only, so that it has no neighbour: leave it out")
        self.groups = [rows for rows in self.groups if len(rows)]
        points = self._points()
        self.neighbors = [self._neighbors(points[rows], rows) for rows in self.groups]
        # How many of a row's neighbours have the category that one of them has, [row, neighbor, column] of each group.
        self.votes = [_votes(self.categories[neighbors]) for neighbors in self.neighbors]

    def _points(self) -> NDArray[np.float32] | csr_matrix:
        """Rows with the distance that neighbours are found by, [row, coordinate]."""
        if not self.categories.shape[1]:
            return self.numericals
        smallest = min(self.groups, key=len)
        unit = np.median(self.numericals[smallest].std(axis=0)) / 2
        indicators = OneHotEncoder(dtype=np.float32).fit_transform(self.categories) * np.float32(unit)
        if indicators.shape[1] > WIDEST_DENSE:
            return csr_matrix(hstack([self.numericals, indicators]))
        return np.hstack([self.numericals, indicators.toarray()])

    def _neighbors(self, points: NDArray | csr_matrix, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Nearest other rows of each of a group's rows, [row, neighbor]."""
        count = min(self.hparams.num_neighbors, len(rows) - 1)
        return rows[NearestNeighbors(n_neighbors=count).fit(points).kneighbors(return_distance=False)]

    def sample(
        self, num_rows: int, generator: torch.Generator, conditions: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Draw rows: of each class, or half, its share, one class after the other.

        Raises:
            ValueError: ``num_rows`` is below 1, or conditions are given that SMOTE cannot meet.
        """
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows}: ask for at least one row")
        if conditions:
            raise ValueError("SMOTE takes no conditions: draw more rows and select them with pandas")
        seed = torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device).item()
        random = np.random.default_rng(seed)
        sizes = np.array([len(rows) for rows in self.groups])
        bounds = np.rint(np.cumsum(sizes) / sizes.sum() * num_rows).astype(np.int64)
        parts = [
            self._between(rows, neighbors, votes, count, random)
            for rows, neighbors, votes, count in zip(
                self.groups, self.neighbors, self.votes, np.diff(bounds, prepend=0).tolist(), strict=True
            )
        ]
        numericals, categories = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        target = None
        if len(self.codec.class_counts):
            target = torch.arange(len(self.groups)).repeat_interleave(torch.from_numpy(np.diff(bounds, prepend=0)))
        return self.codec.decode(numericals, categories, target)

    def _between(
        self,
        rows: NDArray[np.int64],
        neighbors: NDArray[np.int64],
        votes: NDArray[np.int32],
        count: int,
        random: np.random.Generator,
    ) -> tuple[NDArray, NDArray]:
        """New rows of a group: numericals [count, feature], categories [count, column]."""
        place, neighbor = np.divmod(random.integers(neighbors.size, size=count), neighbors.shape[1])
        start, end = self.numericals[rows[place]], self.numericals[neighbors[place, neighbor]]
        margin = 0.0 if self.categories.shape[1] else self.hparams.margin
        numericals = start + random.uniform(margin / 2, 1 - margin / 2, (count, 1)) * (end - start)
        categories = np.empty((count, self.categories.shape[1]), dtype=np.int64)
        for block in np.array_split(np.arange(count), 1 + count * votes[0].size // BLOCK):
            # The commonest category; of equally common ones each has as many neighbours, so any is as likely.
            some = votes[place[block]]  # [block, neighbor, column]
            chosen = (some + 0.5 * random.random(some.shape, dtype=np.float32)).argmax(1)  # [block, column]
            near = neighbors[place[block][:, None], chosen]
            categories[block] = np.take_along_axis(self.categories, near, 0)
        return numericals.astype(np.float32), categories


def _votes(near: NDArray[np.int64]) -> NDArray[np.int32]:
    """How many of the neighbours have the same category as each of them, [row, neighbor, column] in and out."""
    votes = np.zeros(near.shape, dtype=np.int32)
    for each in range(near.shape[1]):  # all pairs at once would be as many times larger
        votes += near == near[:, each, None]
    return votes
