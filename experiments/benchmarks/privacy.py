"""Time and memory of the distances to the closest record.

    python -m experiments.benchmarks.privacy [--parts mixed numerical wide] [--rows 150000]

So many synthetic rows beside as many training rows, all of them used, 50 columns. mixed: 10 of numbers and 40 of 10
categories; numerical: 50 of numbers; wide: as mixed, with 20 categories, for which indicators are sparse. Each in a
process of its own, whose peak counts everything: Python, libraries and tables. Some distances are checked against every
pair, written from the definition.
"""

import argparse
import os
import subprocess
import sys
import time

import numpy as np
from numpy.typing import NDArray

from callbacks.privacy import distances_to_closest_record
from experiments.benchmarks.measure import peak_memory, state

PARTS = {"mixed": (10, 40, 10), "numerical": (50, 0, 0), "wide": (10, 40, 20)}  # numerical, categorical, categories
CHECKED = 20  # rows


def table(part: str, num_rows: int, seed: int) -> tuple[NDArray, NDArray | None, NDArray]:
    """Random rows; categories are the same in each table."""
    num_numerical, num_categorical, num_categories = PARTS[part]
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=(num_rows, num_numerical))
    categories = generator.integers(0, num_categories, (num_rows, num_categorical), dtype=np.int8).astype("U2")
    categories[:num_categories] = np.arange(num_categories).astype("U2")[:, None]
    return numbers, categories if num_categorical else None, np.arange(num_rows) % 2


def measure(part: str, num_rows: int) -> None:
    """Print time and peak of this process."""
    synthetic, train = table(part, num_rows, 1), table(part, num_rows, 0)
    start = time.perf_counter()
    distances = distances_to_closest_record(synthetic, train, "binclass", max_rows=None)
    seconds = time.perf_counter() - start
    peak = peak_memory() / 1e9
    error = np.abs(distances[:CHECKED] - by_definition([*synthetic], [*train])).max()
    if error > 1e-9:
        raise SystemExit(f"distances are off by {error:.1e}: nothing that is worth its time is measured here")
    numerical, categorical, categories = PARTS[part]
    columns = f"{numerical} numbers" + (f" + {categorical} of {categories} categories" if categorical else "")
    print(f"{part:<10}{num_rows:,} x {num_rows:,} rows, {columns}: {seconds:.1f} s, {peak:.2f} GB at most (target 2)")


def by_definition(synthetic: list[NDArray | None], train: list[NDArray | None]) -> NDArray[np.float64]:
    """Distances of the first rows."""
    (X, C, y), (X_real, C_real, y_real) = synthetic, train
    low, width = X_real.min(axis=0), np.ptp(X_real, axis=0)
    found = []
    for i in range(min(CHECKED, len(X))):
        square = (((X[i] - low) / width - (X_real - low) / width) ** 2).sum(axis=1) + (y[i] != y_real)
        found.append(np.sqrt(square + (0 if C is None else (C[i] != C_real).sum(axis=1))).min())
    return np.array(found)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rows", type=int, default=150_000)
    arguments = parser.parse_args(argv)
    print(state(), flush=True)
    for part in arguments.parts:
        code = f"from experiments.benchmarks import privacy; privacy.measure({part!r}, {arguments.rows})"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
