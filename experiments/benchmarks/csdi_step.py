"""Time of CSDI's training step and of sampling, beside PyPOTS' CSDI of the same sizes; needs the extra `bench`.

Run: python -m experiments.benchmarks.csdi_step [--repeats 5] [--threads 1]

A training step is zero_grad, loss, backward and Adam's update, dropout included. Sampling is a whole reverse process of
a few diffusion steps for one draw of each series. Both on one and the same batch of random data of PhysioNet's shape;
the two implementations take turns in one process.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.imputation.batch import SeriesBatch
from experiments.benchmarks.measure import alternate, timing_options
from experiments.benchmarks.whole_step import INSTALL, print_times, random_series
from experiments.build import build_module
from experiments.config import compose
from lightning_modules.imputation.csdi import CSDI

BATCH = 16  # published
DIFFUSION_STEPS = 2  # while sampling: all 50 cost alike


def build(*overrides: str) -> CSDI:
    """The module of csdi_physionet, freshly initialised."""
    torch.manual_seed(0)
    return build_module(compose("csdi_physionet", list(overrides)))


def first_rows(batch: SeriesBatch, rows: int) -> SeriesBatch:
    """The first rows of a batch."""
    return SeriesBatch(*(None if field is None else field[:rows] for field in batch))


def training_step(module: CSDI, batch: SeriesBatch) -> Callable[[], float]:
    """Ours: a closure that takes one step and returns the loss."""
    rates = {"lr": module.hparams.learning_rate, "weight_decay": module.hparams.weight_decay}
    optimizer = torch.optim.Adam(module.parameters(), **rates, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = module.loss(batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def sampling(module: CSDI, batch: SeriesBatch) -> Callable[[], Tensor]:
    """Ours: a closure that draws every series of the batch once."""
    module.eval()
    return lambda: module(batch.values, batch.observed_mask).sample(1, rows=batch.index)


def pypots_model(module: CSDI, num_steps: int) -> Any:
    """PyPOTS' model of the sizes of `module`, with its optimiser.

    Raises:
        ImportError: PyPOTS is not installed.
        RuntimeError: its model has another number of parameters.
    """
    from pypots import imputation

    hparams = module.hparams
    other = imputation.CSDI(
        n_steps=num_steps,
        n_features=hparams.num_features,
        n_layers=hparams.num_layers,
        n_heads=hparams.num_heads,
        n_channels=hparams.channels,
        d_time_embedding=hparams.time_embedding,
        d_feature_embedding=hparams.feature_embedding,
        d_diffusion_embedding=hparams.step_embedding,
        n_diffusion_steps=hparams.num_diffusion_steps,
        beta_start=hparams.beta_start,
        beta_end=hparams.beta_end,
        batch_size=BATCH,
        device="cpu",
        verbose=False,
    )
    ours, theirs = (sum(each.numel() for each in model.parameters()) for model in (module, other.model))
    if ours != theirs:
        raise RuntimeError(f"not the same model: PyPOTS has {theirs} parameters, ours {ours}")
    return other


def _times(batch: SeriesBatch) -> Tensor:
    return torch.arange(batch.values.shape[1], dtype=torch.float32).expand(len(batch.values), -1)


def pypots_training_step(module: CSDI, batch: SeriesBatch) -> Callable[[], float]:
    """A training step of PyPOTS as its own loop does it, with targets that were chosen before."""
    other = pypots_model(module, batch.values.shape[1])
    target_mask = module.choose_targets(batch.observed_mask)
    inputs = {
        "X_ori": batch.values.mT.contiguous(),
        "indicating_mask": target_mask.mT.float(),
        "cond_mask": (batch.observed_mask & ~target_mask).mT.float(),
        "observed_tp": _times(batch),
    }
    other.model.train()

    def step() -> float:
        other.optimizer.zero_grad()
        loss = other.model(inputs, calc_criterion=True)["loss"].sum()
        loss.backward()
        other.optimizer.step()
        return loss.item()

    return step


def pypots_sampling(module: CSDI, batch: SeriesBatch) -> Callable[[], Mapping[str, Tensor]]:
    """PyPOTS' reverse process, one draw of each series, without gradients as in its `predict`."""
    other = pypots_model(module, batch.values.shape[1])
    inputs = {
        "X": batch.values.mT.contiguous(),
        "cond_mask": batch.observed_mask.mT.float(),
        "observed_tp": _times(batch),
    }
    other.model.eval()

    def sample() -> Mapping[str, Tensor]:
        with torch.no_grad():
            return other.model(inputs, n_sampling_times=1)

    return sample


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description="Time of CSDI's training step and of sampling.")
    options = timing_options(parser, arguments, repeats=5)
    batch = first_rows(random_series(num_steps=48, num_features=35), BATCH)
    for title, overrides, ours, theirs in (
        ("training step", (), training_step, pypots_training_step),
        (
            f"one draw of each series, {DIFFUSION_STEPS} diffusion steps",
            (f"num_diffusion_steps={DIFFUSION_STEPS}",),
            sampling,
            pypots_sampling,
        ),
    ):
        module = build(*overrides)
        print(f"\ncsdi_physionet, {title}, batch {list(batch.values.shape)}")
        steps: dict[str, Callable[[], object]] = {"genpred": ours(module, batch)}
        try:
            steps["PyPOTS"] = theirs(module, batch)
        except ModuleNotFoundError as error:
            if error.name != "pypots":
                raise
            print(INSTALL)
        print_times(alternate(steps, options.repeats), "PyPOTS", "genpred", "PyPOTS / genpred at least 1.5")


if __name__ == "__main__":
    main()
