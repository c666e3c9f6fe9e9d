"""Which seeds of GP-VAE on Healing MNIST begin with an image preprocessor that passes nothing on.

As published, its single output channel ends in a ReLU. Where its weights happen to be such that hardly any pixel comes
out above 0, the encoder sees no image, and the posterior collapses.

Run: python -m experiments.benchmarks.preprocessor_at_start
"""

import argparse
from collections.abc import Sequence

import lightning as L
import torch

from experiments.benchmarks.whole_step import healing_series
from experiments.build import build_module
from experiments.config import compose


def passed_on(seed: int) -> float:
    """Share of the white pixels of rotated digits that come out of a fresh preprocessor above 0.

    Args:
        seed: of the run, as in ``seed=...`` of the command line.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    module = build_module(compose("gpvae_hmnist"))
    frames = healing_series(module.hparams.num_steps).values.unflatten(-1, module.hparams.image_shape)
    with torch.no_grad():
        return (module.preprocessor.forward_binary(frames).squeeze(2)[frames > 0] > 0).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each seed."""
    parser = argparse.ArgumentParser(description="Share of white pixels that a fresh preprocessor passes on.")
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 to this, not included")
    options = parser.parse_args(arguments)
    print("seed   share of white pixels of enlarged, rotated digits above 0 behind the preprocessor")
    for seed in range(options.seeds):
        print(f"{seed:4}   {passed_on(seed):.3f}", flush=True)


if __name__ == "__main__":
    main()
