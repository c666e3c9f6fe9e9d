"""Time and memory of GP-VAE's training step, beside other ways to compute it.

Run: python -m experiments.benchmarks.gpvae_step. The parts, each of which can be run alone with --parts:

gp: sample + KL against dense algebra (see `gp_part`).
physionet: a whole step of gpvae_physionet against PyPOTS' GP-VAE of the same sizes; needs the extra `bench`.
healing: a whole step of gpvae_hmnist, presets paper and plus, with the tabulated preprocessor against plain
convolutions.
"""

import argparse
from collections.abc import Sequence

from experiments.benchmarks.gp_part import gp_part
from experiments.benchmarks.measure import timing_options


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen parts."""
    # Not at the top: the processes in which `gp_part` measures memory import this module again.
    from experiments.benchmarks.whole_step import healing_part, physionet_part

    parts = {"gp": gp_part, "physionet": physionet_part, "healing": healing_part}
    parser = argparse.ArgumentParser(description="Time and memory of GP-VAE's training step.")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="all unless given")
    options = timing_options(parser, arguments, repeats=30)
    for part in options.parts:
        parts[part](options.repeats)


if __name__ == "__main__":
    main()
