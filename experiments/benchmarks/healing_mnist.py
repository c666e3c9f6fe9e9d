"""Time and memory of generating Healing MNIST. Run: python -m experiments.benchmarks.healing_mnist.

Makes all 70,000 sequences in a temporary cache. The raw digits come from where every run takes them (GENPRED_MIRROR,
the cache, the network) and are fetched before the clock starts.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from unittest.mock import patch

from datamodules import sources
from datamodules.imputation.healing_mnist import HealingMNIST, load_digits, load_mnist
from experiments.benchmarks.measure import peak_memory, state


def main(arguments: Sequence[str] | None = None) -> None:
    """Generates both splits once and prints what that took."""
    parser = argparse.ArgumentParser(description="Time and memory of generating Healing MNIST.")
    parser.add_argument("--source", choices=("mnist", "digits"), default="mnist", help="digits: small, no files needed")
    options = parser.parse_args(arguments)
    print(state(), flush=True)
    load = load_mnist if options.source == "mnist" else load_digits
    num_sequences = sum(len(load(split)[0]) for split in ("train", "test"))
    # What is in the cache already stays at hand: its folder of raw files is laid out like a mirror.
    raw = sources.data_home() / "raw"
    mirrors = [os.environ.get("GENPRED_MIRROR", ""), str(raw) if raw.is_dir() else ""]
    with tempfile.TemporaryDirectory() as cache:
        places = {"GENPRED_DATA": cache, "GENPRED_MIRROR": os.pathsep.join(filter(None, mirrors))}
        with patch.dict(os.environ, places):
            start = time.perf_counter()
            HealingMNIST(source=options.source).prepare_data()
            seconds = time.perf_counter() - start
    memory = peak_memory() / 1e9
    print(f"{num_sequences} sequences of {options.source}: {seconds:.1f} s, peak memory of the process {memory:.2f} GB")
    if options.source == "mnist":
        print("Target: less than 90 s and 2 GB")


if __name__ == "__main__":
    main()
