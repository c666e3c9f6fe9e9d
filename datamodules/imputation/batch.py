"""The batch that every imputation data set hands to every imputation method."""

from typing import NamedTuple

from torch import Tensor


class SeriesBatch(NamedTuple):
    """Time series with missing entries, and the truth where it is known.

    `observed_mask` and `target_mask` never overlap. An entry in neither is missing for good: nobody knows its value.

    Attributes:
        values: float32 [batch, time, feature], in the units of the model (z-scores, or {0, 1} for images); 0 where not
            observed. It is all that a model may look at, together with `observed_mask` and `times`.
        observed_mask: bool [batch, time, feature], True where `values` is visible to the model.
        target: float32 [batch, time, feature], the truth where known, 0 elsewhere; the units of `values`.
        target_mask: bool [batch, time, feature], True where an imputation is scored: hidden, with the truth known.
        label: int64 [batch], class of the series.
        index: int64 [batch], row of the series in its split, in the order of the files. It does not depend on batch
            size or number of processes, so that it can key evaluation noise and the halves of the classifier.
        times: float32 [batch, time], time stamps; None for the regular grid 0, 1, ..., time - 1 shared by all series.
    """

    values: Tensor
    observed_mask: Tensor
    target: Tensor
    target_mask: Tensor
    label: Tensor
    index: Tensor
    times: Tensor | None = None
