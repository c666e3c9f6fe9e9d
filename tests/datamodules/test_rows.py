"""Row numbers for training: every row once a pass, and on from where a run stopped."""

import pytest
import torch

from datamodules.base import BatchIndexSampler
from datamodules.synthesis.rows import RowLoader


def loader(num_rows, batch_size, num_batches, rank=0, world_size=1):
    return RowLoader(BatchIndexSampler(num_rows, batch_size, True, 3, rank, world_size), num_batches)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 4), (10, 64), (8, 4)])
def test_passes_follow_each_other_in_one_epoch(num_rows, batch_size):
    batches = [each.index for each in loader(num_rows, batch_size, 9)]
    assert len(batches) == len(loader(num_rows, batch_size, 9)) == 9
    per_pass = -(-num_rows // batch_size)
    first, second = (torch.cat(batches[i * per_pass : (i + 1) * per_pass]) for i in range(2))
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(num_rows))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("done", [1, 3, 4])
def test_it_goes_on_where_it_stopped(done):
    whole = [each.index.tolist() for each in loader(10, 4, 8)]
    stopped = loader(10, 4, 8)
    begun = iter(stopped)
    for _ in range(done):
        next(begun)
    again = loader(10, 4, 8)
    again.load_state_dict(stopped.state_dict())
    assert [each.index.tolist() for each in again] == whole[done:]


def test_ranks_share_the_rows():
    rows = [torch.cat([each.index for each in loader(11, 3, 2, rank, 2)]) for rank in (0, 1)]
    assert len(rows[0]) == len(rows[1]) == 5
    assert not set(rows[0].tolist()) & set(rows[1].tolist())
