"""Randomness that continues over a resume as if the run had never stopped."""

import logging
import random
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed
from torch import Tensor

log = logging.getLogger("genpred")


def _draw_states() -> dict[str, Any]:
    """States of this process's global generators, as plain values and tensors."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  (the global generator is what libraries draw from)
    version, words, gauss_next = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy_key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_position": int(numpy_state["state"]["pos"]),
        "numpy_has_gauss": int(numpy_state["has_gauss"]),
        "numpy_gauss": float(numpy_state["gauss"]),
        "python_version": version,
        "python_words": torch.tensor(words),
        "python_gauss": gauss_next,
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": states["numpy_key"].numpy().astype(np.uint32), "pos": states["numpy_position"]},
            "has_gauss": states["numpy_has_gauss"],
            "gauss": states["numpy_gauss"],
        }
    )
    random.setstate((states["python_version"], tuple(states["python_words"].tolist()), states["python_gauss"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class RandomState(L.Callback):
    """Gives training one stream of random numbers, which validation does not touch and a resume continues.

    The states of all global generators (torch on the CPU and on this rank's GPU, numpy, Python) are taken when a
    training batch ends and put back when the next one begins, so nothing in between has a say in training: neither a
    validation, nor the seed that a data loader draws when it is iterated anew, nor a restart. Each checkpoint holds the
    states of all ranks. A resumed run is then identical to the last bit to one that never stopped, wherever in an epoch
    the checkpoint was written, provided that the number of ranks is the same.
    """

    def __init__(self) -> None:
        self._between: dict[str, Any] | None = None  # states at the end of the last training batch, None during one

    def on_train_batch_start(self, *_: Any) -> None:
        """Continue where the last training batch ended."""
        if self._between is not None:
            _set_states(self._between)
            self._between = None

    def on_train_batch_end(self, *_: Any) -> None:
        """Note where the next training batch continues."""
        self._between = _draw_states()

    def state_dict(self) -> dict[str, Any]:
        """States of all ranks, in their order: tensors and plain numbers only. A collective, called by every rank."""
        # A callback that saves before this one's on_train_batch_end has run finds None: the present states are the
        # right ones then.
        mine = _draw_states() if self._between is None else self._between
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"ranks": [mine]}
        ranks: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(ranks, mine)
        return {"ranks": ranks}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take this rank's states for the first training batch; testing a checkpoint leaves the generators alone."""
        if trainer.state.fn != "fit":
            return
        ranks = checkpoint["callbacks"].get(self.state_key, {}).get("ranks", [])
        if len(ranks) != trainer.world_size:
            log.warning(
                "the checkpoint holds random states of %d ranks, this run has %d: it continues, but with other random "
                "numbers than an uninterrupted run. Resume with as many ranks for identical results.",
                len(ranks),
                trainer.world_size,
            )
            return
        self._between = {
            name: value.cpu().clone() if isinstance(value, Tensor) else value
            for name, value in ranks[trainer.global_rank].items()
        }
