"""Weights from files: read without running code from them, and put into a network only if every tensor fits."""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

UNTRAINED = "untrained"  # in place of a checkpoint: the weights that a network starts with
_NAMED = 3  # tensors that an error names of each kind


def read_checkpoint(path: str | Path, allowed: Sequence[type] = ()) -> dict[str, Any]:
    """The dict that a file of weights holds, on the CPU; the file may contain plain values and tensors only.

    Args:
        path: a file that ``torch.save`` wrote, of any age, or a ``.safetensors`` file.
        allowed: further classes that may occur in the file.

    Raises:
        ValueError: there is no such file, or it is damaged, holds no dict, or objects of other classes.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder, not a file of weights" if path.is_dir() else "does not exist"
        raise ValueError(f"checkpoint {path} {what}: give the path of a file, downloaded or copied by hand")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(list(allowed)):
            # Old files are no archives, which only can be mapped into memory instead of read.
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch and safetensors raise what their parsers happen to, without the file's name
        raise ValueError(
            f"checkpoint {path} is damaged, no file of weights, or holds objects besides tensors and plain values, "
            f"which are not read since they could run code: fetch it again, or save the bare state dict. {error!r}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"checkpoint {path} holds a {type(checkpoint).__name__} instead of a dict of tensors")
    return checkpoint


def load_strictly(module: nn.Module, state: Mapping[str, Any], origin: str) -> None:
    """Copy a state dict into a module if it holds the module's tensors and nothing else; else the module stays as is.

    Args:
        module: any network.
        state: tensors by the names of ``module.state_dict()``; floating types are converted.
        origin: where they are from, for the error.

    Raises:
        ValueError: see `check_state`.
    """
    check_state(module, state, origin)
    module.load_state_dict(state)


def check_state(module: nn.Module, state: Mapping[str, Any], origin: str) -> None:
    """Compare a state dict with a module, which may be on the meta device.

    Raises:
        ValueError: tensors are missing, unexpected, of another shape, or not finite; the first few are named.
    """
    wanted = module.state_dict()
    tensors = {name: value for name, value in state.items() if name in wanted and isinstance(value, Tensor)}
    faults = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "no tensor": [name for name in state if name in wanted and name not in tensors],
        "of another shape": [
            f"{name} {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
            for name, value in tensors.items()
            if value.shape != wanted[name].shape
        ],
        "not finite": [name for name, value in tensors.items() if not value.isfinite().all()],
    }
    if any(faults.values()):
        listed = (
            f"{len(names)} {kind}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
            for kind, names in faults.items()
            if names
        )
        raise ValueError(
            f"{origin} does not fit {type(module).__name__} with its {len(wanted)} tensors; {'; '.join(listed)}. "
            "Give the checkpoint of this very network, or the network the sizes that it was trained with"
        )


def entry(checkpoint: Mapping[str, Any], key: str, origin: str) -> Mapping[str, Any]:
    """The dict that a checkpoint has under a key.

    Raises:
        ValueError: it has none; the first keys that it has are named.
    """
    if not isinstance(checkpoint.get(key), Mapping):
        has = ", ".join(map(str, list(checkpoint)[:_NAMED]))
        raise ValueError(f"{origin} has {has}, ..., but no dict '{key}', where its weights should be: another file?")
    return checkpoint[key]


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(*tensors: Tensor) -> str:
    """SHA-256 of the bytes of tensors, one after another, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's generator of the CPU as if just seeded, and leave it as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
