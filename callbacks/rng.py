"""Randomness that continues over a resume as if the run had never stopped."""

import logging
import random
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed

log = logging.getLogger("genpred")


def _states() -> dict[str, Any]:
    """States of this process's global generators, as each library gives them."""
    states = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  (the global generator, which libraries draw from)
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    random.setstate(states["python"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _pack(states: dict[str, Any]) -> dict[str, Any]:
    """The same as tensors and plain numbers, which ``torch.load(weights_only=True)`` reads."""
    numpy_state = states["numpy"]
    version, words, gauss = states["python"]
    return {
        **states,
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
    }


def _unpack(packed: dict[str, Any]) -> dict[str, Any]:
    numpy_state, python_state = packed["numpy"], packed["python"]
    return {
        **{name: packed[name].cpu() for name in ("torch", "cuda") if name in packed},
        "numpy": {
            "bit_generator": "MT19937",
            "state": {"key": numpy_state["key"].cpu().numpy().astype(np.uint32), "pos": numpy_state["position"]},
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        },
        "python": (python_state["version"], tuple(python_state["words"].tolist()), python_state["gauss"]),
    }


class RandomState(L.Callback):
    """Gives each rank a stream of random numbers for training, which validation does not touch and a resume continues.

    All ranks are seeded alike, so that they build the same module; when training begins, those behind the first go on
    with a stream of their own, or they would all draw the same noise.

    The states of all global generators (torch on the CPU and on this rank's GPU, numpy, Python) are taken when a
    training batch ends and put back when the next one begins, so nothing in between has a say in training: neither a
    validation, nor the seed that a data loader draws when it is iterated anew, nor a restart. Each checkpoint holds the
    states of all ranks. A resumed run is then identical to the last bit to one that never stopped, wherever in an epoch
    the checkpoint was written, provided that the number of ranks is the same.
    """

    def __init__(self) -> None:
        self._between: dict[str, Any] | None = None  # states at the end of the last training batch, None during one

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the ranks draw apart; a resume then puts back what each of them had."""
        if trainer.global_rank > 0:
            # Not the sum of seed and rank: the second rank would then draw what the first one does with the next seed.
            words = np.random.SeedSequence((torch.initial_seed(), trainer.global_rank)).generate_state(3)
            torch.manual_seed(int(words[0]))
            np.random.seed(int(words[1]))  # noqa: NPY002
            random.seed(int(words[2]))

    def on_train_batch_start(self, *_: Any) -> None:
        """Continue where the last training batch ended."""
        if self._between is not None:
            _set_states(self._between)
            self._between = None

    def on_train_batch_end(self, *_: Any) -> None:
        """Note where the next training batch continues."""
        self._between = _states()

    def state_dict(self) -> dict[str, Any]:
        """States of all ranks, in their order: tensors and plain numbers only. A collective, called by every rank."""
        # A callback that saves before this one's on_train_batch_end has run finds None: the present states are the
        # right ones then.
        mine = _pack(_states() if self._between is None else self._between)
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
        self._between = _unpack(ranks[trainer.global_rank])
