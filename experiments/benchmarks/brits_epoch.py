"""Time of an epoch of BRITS on PhysioNet, beside PyPOTS' BRITS of the same sizes, weights and batches.

Run: python -m experiments.benchmarks.brits_epoch. PyPOTS is the extra `bench`; without it only ours is timed. An epoch
is --steps training steps (zero_grad, loss, backward, the optimiser's update), each on another batch of random data of
the real shape; the two take turns in one process. PyPOTS is given the gaps of time, ours computes them in the step.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.imputation.batch import SeriesBatch
from experiments.benchmarks.measure import alternate, largest_error, timing_options
from experiments.benchmarks.whole_step import BATCH, INSTALL, MISSING_RATE, print_times
from experiments.build import build_module
from experiments.config import Experiment, compose
from lightning_modules.imputation.brits import BRITS, both_directions, time_gaps

STEPS = 63  # batches of 64 in the 4,000 training stays of PhysioNet


def random_batches(count: int, num_steps: int, num_features: int) -> list[SeriesBatch]:
    """Standard normal series [BATCH, time, feature] with MISSING_RATE of the entries missing at random.

    Something is observed at both ends of each series: ours starts there, PyPOTS at the ends in any case.
    """
    generator, rows = torch.Generator().manual_seed(0), torch.arange(BATCH)
    batches = []
    for _ in range(count):
        target = torch.randn(BATCH, num_steps, num_features, generator=generator)
        observed_mask = torch.rand(target.shape, generator=generator) >= MISSING_RATE
        observed_mask[:, [0, -1], 0] = True
        values = target * observed_mask
        batches.append(SeriesBatch(values, observed_mask, target, ~observed_mask, torch.zeros_like(rows), rows))
    return batches


def epoch(
    module: nn.Module, loss: Callable[[Any], Tensor], inputs: Sequence[Any], optimizer: Any
) -> Callable[[], None]:
    """A closure that trains on all inputs once."""

    def run() -> None:
        module.train()
        for each in inputs:
            optimizer.zero_grad()
            loss(each).backward()
            optimizer.step()

    return run


def pypots_model(module: BRITS, num_steps: int) -> Any:
    """PyPOTS' BRITS with the sizes of ours and with its learning rate.

    Raises:
        ImportError: PyPOTS is not installed.
    """
    from pypots import imputation
    from pypots.optim import Adam

    hparams = module.hparams
    return imputation.BRITS(
        num_steps,
        hparams.num_features,
        hparams.hidden_size,
        batch_size=BATCH,
        optimizer=Adam(lr=hparams.learning_rate),
        device="cpu",
        verbose=False,
    )


def pypots_inputs(batch: SeriesBatch) -> dict[str, dict[str, Tensor]]:
    """The batch as PyPOTS takes it: both directions, [batch, time, feature], with gaps of time as ours."""
    mask, values = both_directions(batch.observed_mask), both_directions(batch.values)
    times = torch.arange(values.shape[1], dtype=values.dtype)[:, None, None].expand_as(values[..., :1])
    gaps = time_gaps(mask, torch.ones_like(mask[..., :1]), times)
    parts = {"X": values, "missing_mask": mask.to(values.dtype), "deltas": gaps}  # its mask is 1 where observed
    return {
        name: {key: part[direction].transpose(0, 1).contiguous() for key, part in parts.items()}
        for direction, name in enumerate(("forward", "backward"))
    }


@torch.no_grad()
def copy_weights(module: BRITS, other: nn.Module) -> None:
    """Give PyPOTS' weights to ours."""
    num_features = module.hparams.num_features
    for direction, theirs in enumerate((other.model.rits_f, other.model.rits_b)):
        pairs = (
            (module.state_decay, theirs.temp_decay_h.W, theirs.temp_decay_h.b),
            (module.value_decay, theirs.temp_decay_x.W.diagonal()[:, None], theirs.temp_decay_x.b),
            (module.combination, theirs.combining_weight.weight, theirs.combining_weight.bias),
            (module.history, theirs.hist_reg.weight, theirs.hist_reg.bias),
            (module.features, theirs.feat_reg.W, theirs.feat_reg.b),
        )
        for layer, weight, bias in pairs:
            layer.weight[direction] = weight.T
            layer.bias[direction] = bias

        def reordered(gates: Tensor) -> Tensor:  # its order is input, forget, candidate, output
            enter, forget, candidate, output = gates.chunk(4)
            return torch.cat([output, enter, forget, candidate]).t()  # of a weight; a bias stays as it is

        cell = theirs.rnn_cell
        from_values, from_mask = reordered(cell.weight_ih).split(num_features)
        module.gates.weight[direction] = torch.cat([from_values, reordered(cell.weight_hh), from_mask])
        module.gates.bias[direction] = reordered(cell.bias_ih + cell.bias_hh)


def disagreement(module: BRITS, other: nn.Module, batch: SeriesBatch, inputs: dict) -> float:
    """Largest relative difference of imputations and of both terms of the loss; sets our weights to PyPOTS'."""
    copy_weights(module, other)
    with torch.no_grad():
        theirs, terms = other(inputs), module.loss(batch)
        ours = module(batch.values, batch.observed_mask).mean
    # PyPOTS averages the errors over steps and estimates, and has the weight of the consistency inside.
    errors = theirs["reconstruction_loss"] * 3 * batch.values.shape[1], theirs["consistency_loss"] / 0.1
    return largest_error([ours, terms["reconstruction"], terms["consistency"]], [theirs["imputation"], *errors])


def compare(experiment: Experiment, steps: int, repeats: int) -> None:
    """Prints the times of an epoch of ours and of PyPOTS', after a check that both compute the same.

    Raises:
        RuntimeError: they do not.
    """
    torch.manual_seed(0)
    module = build_module(experiment)
    num_steps = 48
    batches = random_batches(steps, num_steps, module.hparams.num_features)
    shape = list(batches[0].values.shape)
    print(f"{experiment.name}, epochs of {steps} steps, batch {shape}, hidden size {module.hparams.hidden_size}")
    optimizer = module.configure_optimizers()["optimizer"]
    runs = {"genpred": epoch(module, lambda batch: module.loss(batch)["loss"], batches, optimizer)}
    try:
        model = pypots_model(module, num_steps)
    except ModuleNotFoundError as error:
        if error.name != "pypots":
            raise
        print(INSTALL)
    else:
        other, inputs = model.model, [pypots_inputs(batch) for batch in batches]
        error = disagreement(module, other, batches[0], inputs[0])
        if not error < 1e-4:
            raise RuntimeError(f"not the same model: imputations or loss differ from PyPOTS' by {error:.1e}")
        print(f"Imputations and loss of the two agree to {error:.0e}")
        loss = lambda each: other(each, calc_criterion=True)["loss"]  # noqa: E731
        runs["PyPOTS"] = epoch(other, loss, inputs, model.optimizer)
    print_times(alternate(runs, repeats), "PyPOTS", "genpred", "PyPOTS / genpred at least 3")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description="Time of an epoch of BRITS beside PyPOTS'.")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of an epoch")
    options = timing_options(parser, arguments, repeats=5)
    compare(compose("brits_physionet"), options.steps, options.repeats)


if __name__ == "__main__":
    main()
