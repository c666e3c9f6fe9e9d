"""Files of weights: what does not fit is named, what is damaged is refused, and reading runs no code."""

import argparse
import math
import pickle
from pathlib import Path

import pytest
import torch
from backbone_inputs import numbers
from safetensors.torch import save_file
from torch import nn

from lightning_modules.segmentation.backbones import loading


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"1 missing: 0\.bias\."),
        (lambda s: s.update({"head.weight": torch.ones(1)}), r"1 unexpected: head\.weight\."),
        (lambda s: s.update({"0.weight": torch.ones(3, 2)}), r"1 of another shape: 0\.weight \(3, 2\) instead of"),
        (lambda s: s.update({"1.bias": torch.tensor([1.0, math.nan])}), r"1 not finite: 1\.bias\."),
        (lambda s: s.update({"1.bias": [1.0, 2.0]}), r"1 no tensor: 1\.bias\."),
        (lambda s: [s.pop(name) for name in list(s)[:5]], r"5 missing: 0\.weight, 0\.bias, 1\.weight, \.\.\.\. "),
    ],
)  # fmt: skip
def test_one_wrong_tensor_is_named_and_nothing_is_loaded(layer, change, message):
    state = numbers(layer.state_dict())
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    loading.load_strictly(layer, state, "x.pt")
    torch.testing.assert_close(layer.state_dict(), state)
    layer.load_state_dict(before)
    change(state)
    with pytest.raises(ValueError, match=rf"x\.pt does not fit Sequential with its 7 tensors; {message}"):
        loading.load_strictly(layer, state, "x.pt")
    torch.testing.assert_close(layer.state_dict(), before)


def test_a_file_is_read_whatever_its_age_and_a_damaged_one_is_named(layer, tmp_path):
    path = tmp_path / "weights.pt"
    for archive in (True, False):
        torch.save(layer.state_dict(), path, _use_new_zipfile_serialization=archive)
        torch.testing.assert_close(loading.read_checkpoint(path), dict(layer.state_dict()))
        whole = path.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"weights\.pt is damaged"):
                loading.read_checkpoint(path)
    path = tmp_path / "weights.safetensors"
    save_file(layer.state_dict(), path)
    torch.testing.assert_close(loading.read_checkpoint(path), dict(layer.state_dict()))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        loading.read_checkpoint(path)
    path = tmp_path / "weights.pt"
    torch.save(layer.state_dict()["0.weight"], path)
    with pytest.raises(ValueError, match=r"weights\.pt holds a Tensor instead of a dict"):
        loading.read_checkpoint(path)
    with pytest.raises(ValueError, match=r"away\.pt does not exist: give the path"):
        loading.read_checkpoint(tmp_path / "away.pt")
    with pytest.raises(ValueError, match=r"is a folder"):
        loading.read_checkpoint(tmp_path)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_reading_runs_no_code(tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    for writer in (torch.save, lambda value, where: where.write_bytes(pickle.dumps(value, protocol=2))):
        writer({"model": {}, "args": Trap(trace)}, path)
        with pytest.raises(ValueError, match=r"weights\.pth is damaged, no file of weights, or holds objects"):
            loading.read_checkpoint(path, allowed=[argparse.Namespace])
        assert not trace.exists()
