"""All categorical columns of a table side by side in one vector, and sums over the part that each column has in it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCK = 128  # categories that are added up one after the other; float32 would lose digits over thousands
_SMALLEST = 1e-30  # probability that the logarithm of a one-hot vector has in place of 0, as TabDDPM's authors have it


class Segments(nn.Module):
    """Where each categorical column lies in a vector with an entry for every category of every column.

    A module, so that its index tensors move between devices with its owner; it has no parameters and no state. Sums
    over a column are sums of its entries alone, never differences of running sums, which cancel.

    Args:
        sizes: number of categories of each column, each at least 1.

    Attributes:
        sizes: [column, 1] int64.
        offsets: [column, 1] int64, the place of each column's category 0.
        column: [category] int64, the column that each place belongs to.
        block: [category] int64, the block that each place belongs to, a part of a wide column.
        block_column: [block] int64, the column that each block belongs to.
    """

    sizes: Tensor
    offsets: Tensor
    column: Tensor
    block: Tensor
    block_column: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        if not len(sizes) or min(sizes) < 1:
            raise ValueError(
                f"sizes={list(sizes)}: give the number of categories of at least one column, each 1 or more; a table "
                "without categorical columns needs no multinomial process"
            )
        counts = torch.tensor(sizes, dtype=torch.int64)
        self.num_columns, self.num_categories = len(counts), int(counts.sum())
        self.register_buffer("sizes", counts[:, None], persistent=False)
        self.register_buffer("offsets", (counts.cumsum(0) - counts)[:, None], persistent=False)
        column = torch.arange(len(counts)).repeat_interleave(counts)
        begins = (torch.arange(self.num_categories) - self.offsets[column, 0]) % _BLOCK == 0  # a block of a column
        self.num_blocks = int(begins.sum())
        self.register_buffer("column", column, persistent=False)
        self.register_buffer("block", begins.cumsum(0) - 1, persistent=False)
        self.register_buffer("block_column", column[begins], persistent=False)

    def check(self, categories: Tensor) -> None:
        """Raise ValueError if a category is not in 0..size-1; to be called once for a table, since it reads values."""
        if categories.ndim != 2 or categories.shape[1] != self.num_columns:
            raise ValueError(f"categories have shape {tuple(categories.shape)}: need [batch, {self.num_columns}]")
        sizes = self.sizes[:, 0]
        wrong = ((categories < 0) | (categories >= sizes)).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            raise ValueError(
                f"row {row}, column {column}: category {categories[row, column].item()} is not in "
                f"0..{sizes[column].item() - 1}; leave out rows with categories that training did not have"
            )

    def sum(self, values: Tensor) -> Tensor:
        """Sums over each column's categories: [category, batch] to [column, batch]."""
        blocks = values.new_zeros(self.num_blocks, values.shape[1]).index_add(0, self.block, values)
        if self.num_blocks == self.num_columns:
            return blocks
        return values.new_zeros(self.num_columns, values.shape[1]).index_add(0, self.block_column, blocks)

    def expand(self, values: Tensor) -> Tensor:
        """Each column's value at all of its categories: [column, batch] to [category, batch]."""
        if self.num_blocks > self.num_columns:  # by way of the blocks, so that gradients are summed by them
            values = values.index_select(0, self.block_column)
        return values.index_select(0, self.block)

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Log probabilities of each column's categories, each column normalised by its own logsumexp.

        Args:
            logits: [batch, category], finite.

        Returns:
            [category, batch], float32 for logits of a shorter type.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_categories:
            raise ValueError(f"logits have shape {tuple(logits.shape)}: need [batch, {self.num_categories}]")
        if logits.dtype.itemsize < 4:
            logits = logits.float()
        logits = logits.t().contiguous()
        index = self.column[:, None].expand_as(logits)
        largest = logits.new_full((self.num_columns, logits.shape[1]), -math.inf)
        largest = largest.scatter_reduce_(0, index, logits.detach(), "amax")
        shifted = logits - self.expand(largest)
        return shifted - self.expand(self.sum(shifted.exp()).log())

    def one_hot(self, categories: Tensor) -> Tensor:
        """float32 [batch, category], 1 at the category of each column and 0 elsewhere."""
        zeros = torch.zeros(len(categories), self.num_categories, device=categories.device)
        return zeros.scatter_(1, categories + self.offsets[:, 0], 1.0)

    def log_one_hot(self, categories: Tensor) -> Tensor:
        """float32 [batch, category], 0 at the category of each column and log(1e-30) = -69.08 elsewhere.

        The network of TabDDPM's authors reads categories so.
        """
        shape = (len(categories), self.num_categories)
        low = torch.full(shape, math.log(_SMALLEST), device=categories.device)
        return low.scatter_(1, categories + self.offsets[:, 0], 0.0)

    def draw(self, weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a category of each column by the inverse of its cumulative weights.

        Args:
            weights: [category, batch], not negative, each column's with a positive sum; they need not add up to 1.
            generator: source of randomness on the weights' device; None: torch's global one.

        Returns:
            int64 [batch, column].
        """
        # In float64, since the columns before one are part of its running sum; [batch, category], in a single copy.
        copy = weights.t().to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        cumulative = copy.cumsum_(1)
        end = cumulative.index_select(1, (self.offsets + self.sizes - 1)[:, 0])  # [batch, column]
        begin = F.pad(end[:, :-1], (1, 0))
        uniform = torch.rand(end.shape, generator=generator, dtype=torch.float64, device=end.device)
        place = torch.searchsorted(cumulative, begin.lerp(end, uniform), right=True) - self.offsets[:, 0]
        return torch.minimum(place, self.sizes[:, 0] - 1)  # a target that is rounded up to the end is the last one's
