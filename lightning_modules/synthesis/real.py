"""Real: the training part itself, the row that tells what synthetic rows are to be measured by."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from lightning_modules.synthesis.base import Synthesizer, TableSource


class Real(Synthesizer):
    """Rows of the training part: all of them in their order, or fewer at random; never one twice."""

    def attach(self, source: TableSource) -> None:
        """Keep the training part."""
        super().attach(source)
        self.frame = source.frame

    def sample(
        self, num_rows: int, generator: torch.Generator, conditions: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Rows of the training part.

        Raises:
            ValueError: there are not so many, or conditions are given.
        """
        if conditions:
            raise ValueError("real rows take no conditions: select them with pandas")
        if num_rows > len(self.frame):
            raise ValueError(
                f"num_rows={num_rows}: the training part has {len(self.frame)} rows; lower data.num_samples"
            )
        if num_rows == len(self.frame):
            return self.frame
        chosen = torch.randperm(len(self.frame), generator=generator, device=generator.device)[:num_rows]
        return self.frame.iloc[chosen.tolist()].reset_index(drop=True)
