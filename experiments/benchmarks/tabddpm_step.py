"""Time and memory of TabDDPM's training step and of its reverse step, beside its bare network.

Run: python -m experiments.benchmarks.tabddpm_step. The parts, each of which can be run alone with --parts:

steps: forward and backward of the network alone against the whole training step (choice of its rows, loss, backward,
optimiser, averaged weights), and the network's forward against the whole reverse step, at the shapes and sizes of
CASES; operations that reach the device are counted, views left out.
compile: the same training step compiled.
bf16: the same training step with the network in bfloat16.
million: 1,000,000 rows of 50 columns: normalised by quantiles as in a run, the same training steps, then as many rows
drawn and put back into their own values; peak memory of the process. No Trainer, whose callbacks and logging take no
memory to speak of, and no scores.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.synthesis.codec import NamedColumns, TableCodec
from datamodules.synthesis.preprocessing import Normalisation, Table
from experiments.benchmarks.measure import alternate, operations, peak_memory, ratio, timing_options
from lightning_modules.synthesis.tabddpm import TabDDPM


class Case(NamedTuple):
    """A table's shape and a network.

    Attributes:
        numericals: features.
        categories: number of categories of each column.
        num_classes: of the label; 0: none.
        hidden: widths of the network.
        target: what the training step may take of the network's forward and backward.
    """

    numericals: int
    categories: tuple[int, ...]
    num_classes: int
    hidden: tuple[int, ...]
    target: float


ADULT = (9, 16, 7, 15, 6, 5, 2, 42)
CASES = {
    "adult, 256-256": Case(6, ADULT, 2, (256, 256), 1.5),
    "10 + 40 x 10, 256-256": Case(10, (10,) * 40, 2, (256, 256), 1.8),
    "adult, tuned": Case(6, ADULT, 2, (256, 1024, 1024, 1024, 1024, 256), 1.1),
    "california, tuned": Case(9, (), 0, (512, 256, 256, 256, 256, 128), 1.1),
}


def random_source(case: Case, num_rows: int, normalisation: Normalisation = "standard") -> SimpleNamespace:
    """What a DataModule hands to a method, of random rows."""
    random = np.random.default_rng(0)
    features = case.numericals - (not case.num_classes)
    X_num = random.standard_normal((num_rows, features)).astype(np.float32)
    X_cat = (
        np.column_stack([random.integers(count, size=num_rows) for count in case.categories])
        if case.categories
        else None
    )
    y = random.integers(case.num_classes, size=num_rows) if case.num_classes else random.standard_normal(num_rows)
    task = "binclass" if case.num_classes else "regression"
    names = (tuple(f"n{j}" for j in range(features)), tuple(f"c{j}" for j in range(len(case.categories))), "y")
    table = Table(X_num, X_cat, y)
    codec = TableCodec.fit(table, NamedColumns(*names), task, normalisation)
    return SimpleNamespace(codec=codec, encoded=codec.encode(table), frame=None)


def model_of(case: Case, source: SimpleNamespace, **options: Any) -> TabDDPM:
    """A fresh model with averaged weights."""
    torch.manual_seed(0)
    model = TabDDPM(hidden=case.hidden, ema_decay=0.999, **options)
    model.attach(source)
    model.on_fit_start()
    return model


def training_step(model: TabDDPM, batch_size: int, bf16: bool = False) -> Callable[[], None]:
    """A whole training step on random rows, as the Trainer makes it."""
    optimizer = torch.optim.AdamW(model.denoiser.parameters(), lr=1e-3, weight_decay=0.0, fused=True)

    def step() -> None:
        index = torch.randint(len(model.encoded.target), (batch_size,))
        batch = [tensor[index] for tensor in model.encoded]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.compiled_losses(*batch).sum()
        loss.backward()
        optimizer.step()
        model.update_average(10_000)

    return step


def network_step(model: TabDDPM) -> Callable[[], None]:
    """Forward and backward of the network alone."""
    network, row, step, labels = _network_input(model)

    def run() -> None:
        network.zero_grad()
        network(row, step, labels).square().mean().backward()

    return run


def _network_input(model: TabDDPM) -> tuple[torch.nn.Module, Tensor, Tensor, Tensor | None]:
    target = model.encoded.target
    row = torch.randn(len(target), sum(model.sizes))
    step = torch.randint(model.hparams.num_diffusion_steps, (len(row),))
    return copy.deepcopy(model.denoiser), row, step, target if len(model.codec.class_counts) else None


def reverse_steps(model: TabDDPM, num_rows: int, target: Tensor | None) -> Callable[[], object]:
    """A reverse process of as many steps as the model makes."""
    held, generator = model.hold(model.codec.encode_conditions({})), torch.Generator().manual_seed(0)
    network = model.average.eval()
    return lambda: model.reverse(network, num_rows, target, held, generator)


def steps_part(repeats: int, batch_size: int) -> None:
    """Prints times and operations of whole steps and of the bare network."""
    head = f"{'case':24}{'network':>9}{'step':>9}{'ratio':>7}{'target':>7}{'ops':>5}"
    print(f"{head}{'network':>11}{'reverse':>9}{'ratio':>7}{'ops':>5}   ms, medians")
    for name, case in CASES.items():
        few = 5  # reverse steps of a process
        model = model_of(case, random_source(case, batch_size), sampling_steps=few)
        train = training_step(model, batch_size)
        seconds = alternate({"network": network_step(model), "step": train}, repeats)
        network, row, step, labels = _network_input(model)
        with torch.no_grad():
            drawn = alternate(
                {
                    "network": lambda: network(row, step[:1], labels),  # noqa: B023  (run before the next case)
                    "reverse": reverse_steps(model, batch_size, labels),
                },
                repeats,
            )
            count = operations(reverse_steps(model, batch_size, labels)) / few
        medians = {key: 1e3 * statistics.median(value) for key, value in seconds.items()}
        forward, reverse = (1e3 * statistics.median(drawn[key]) for key in ("network", "reverse"))
        whole = medians["step"] / medians["network"]
        first = f"{medians['network']:9.1f}{medians['step']:9.1f}{whole:7.2f}{case.target:7.1f}{operations(train):5d}"
        second = f"{forward:11.1f}{reverse / few:9.1f}{reverse / few / forward:7.2f}{count:5.0f}"
        print(f"{name:24}{first}{second}", flush=True)


def variant_part(repeats: int, batch_size: int, name: str, options: dict[str, Any], bf16: bool) -> None:
    """Prints how many times quicker a variant of the training step is."""
    for case_name, case in CASES.items():
        source = random_source(case, batch_size)
        plain, variant = model_of(case, source), model_of(case, source, **options)
        steps = {"plain": training_step(plain, batch_size), name: training_step(variant, batch_size, bf16)}
        seconds = alternate(steps, repeats)
        print(f"{case_name:24} plain / {name}: {ratio(seconds['plain'], seconds[name])}", flush=True)


def million_part(repeats: int, batch_size: int, num_rows: int) -> None:
    """Prints time and peak memory of training on, and drawing, so many rows of 50 columns."""
    case = Case(25, (10,) * 25, 2, (256, 256), 0)
    start = time.perf_counter()
    model = model_of(case, random_source(case, num_rows, "quantile"), sampling_steps=20)
    step = training_step(model, batch_size)
    ready = time.perf_counter()
    for _ in range(repeats):
        step()
    trained = time.perf_counter()
    frame = model.sample(num_rows, torch.Generator().manual_seed(0))
    drawn = time.perf_counter()
    print(
        f"{num_rows:,} rows of 25 numbers and 25 columns of 10 categories: made, and encoded by quantiles, in "
        f"{ready - start:.0f} s; {repeats} training steps of {batch_size} rows without the Trainer, "
        f"{1e3 * (trained - ready) / repeats:.0f} ms each; {len(frame):,} rows drawn with 20 network calls and decoded "
        f"in {drawn - trained:.0f} s; peak memory of the process {peak_memory() / 1e9:.1f} GB (target: below 8)",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen parts."""
    parts = {
        "steps": steps_part,
        "compile": lambda repeats, batch: variant_part(repeats, batch, "compiled", {"compile": True}, False),
        "bf16": lambda repeats, batch: variant_part(repeats, batch, "bf16", {}, True),
        "million": lambda repeats, batch: million_part(repeats, batch, options.rows),
    }
    parser = argparse.ArgumentParser(description="Time and memory of TabDDPM's steps.")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="all unless given")
    parser.add_argument("--batch-size", type=int, default=4096, help="rows of a step")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the part million")
    options = timing_options(parser, arguments, repeats=15)
    for part in options.parts:
        print(f"\n{part}")
        parts[part](options.repeats, options.batch_size)


if __name__ == "__main__":
    main()
