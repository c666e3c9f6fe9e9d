"""Compiled functions, on devices where they pay."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch


def compiled(function: Callable, device: torch.device, wanted: bool | None) -> Callable:
    """A function compiled for the shapes that it meets, or itself.

    Args:
        function: of tensors.
        device: where the tensors lie.
        wanted: whether it is compiled; None: on GPUs for which code can be generated here.
    """
    if not (can_compile(device) if wanted is None else wanted):
        return function
    # Not for all shapes at once: batches have one or two sizes, and random numbers of symbolic shape are not compiled.
    return torch.compile(function, dynamic=False)


def can_compile(device: torch.device) -> bool:
    """Whether torch's compiler can make kernels for a GPU.

    It wants compute capability 7, and Triton, which builds a C module for itself: with a compiler and Python's headers.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]  # as Triton looks for them
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return any(map(shutil.which, compilers)) and headers.exists() and torch.cuda.get_device_capability(device) >= (7, 0)
