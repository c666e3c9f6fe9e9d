"""What each lever of an imputer's preset is worth, measured on the validation split, never on the test split.

python -m experiments.benchmarks.levers gpvae_physionet [key=value ...] [--steps 500] [--rows 1000] [--leave-one-out]

Trains the preset `paper`, then `paper` with one lever of `plus` at a time, then with each further key=value alone, then
`plus` whole, each for a few steps from the same seed, and prints the validation figures of the last step. With
--leave-one-out it trains `plus` without one of its levers at a time. What TabDDPM's levers are worth is seen in samples
of whole trainings only: the sweep tabddpm_ablation.
"""

import argparse
import json
import logging

import lightning as L
from rich.console import Console
from rich.table import Table

from callbacks.imputation_metrics import ImputationMetrics
from experiments.build import build_data, build_module
from experiments.config import Experiment, compose, flattened


def levers(name: str, preset: str = "plus") -> list[str]:
    """The arguments in which the presets `plus` and `paper` differ, as overrides with the values of one."""
    configs = {each: compose(name, [f"preset={each}"]).config for each in ("paper", "plus")}
    paper, plus = (flattened({key: configs[each][key] for key in ("model", "data")}) for each in ("paper", "plus"))
    values = {"paper": paper, "plus": plus}[preset]
    spelt = {key: values[key] if isinstance(values[key], str) else json.dumps(values[key]) for key in values}
    return [f"{key}={spelt[key]}" for key in plus if plus[key] != paper[key]]


def validation_scores(experiment: Experiment, steps: int) -> dict[str, float]:
    """Train for some steps and score the validation split: val/mse, val/mae, val/nll and the KL's mean part, nats."""
    L.seed_everything(experiment.config["seed"], workers=True, verbose=False)
    data, module = build_data(experiment), build_module(experiment)
    metrics = ImputationMetrics(**data.evaluation_arguments | {"classifier": None})
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(
        max_steps=steps,
        callbacks=[metrics],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        gradient_clip_val=experiment.config["trainer"]["gradient_clip_val"],
        **quiet,
    )
    trainer.fit(module, data)
    kl_mean_part = float(trainer.callback_metrics["train/kl_mean_part"])
    scorer = L.Trainer(callbacks=[metrics], use_distributed_sampler=False, **quiet)
    return scorer.validate(module, data, verbose=False)[0] | {"kl_mean_part": kl_mean_part}


def main(argv: list[str] | None = None) -> None:
    """Print a table with a row for each variant as soon as it is there."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.levers", description=__doc__)
    parser.add_argument("name", help="an experiment with a preset plus, such as gpvae_physionet")
    parser.add_argument("candidates", nargs="*", help="further overrides to measure alone")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rows", type=int, default=1000, help="validation rows")
    parser.add_argument("--leave-one-out", action="store_true", help="preset=plus without each lever, instead")
    arguments = parser.parse_intermixed_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if compose(arguments.name).config["task"] != "imputation":
        raise SystemExit(f"{arguments.name} is no imputer; see python -m experiments.sweep tabddpm_ablation")
    shared = [f"data.validation_rows={arguments.rows}"]
    if "fit_on" in compose(arguments.name).config["data"]:
        shared.append("data.fit_on=train")  # else the validation rows are trained on
    if arguments.leave_one_out:
        without = [*levers(arguments.name, "paper"), *arguments.candidates]
        variants = [["preset=plus", lever] for lever in without]
    else:
        variants = [[], *([lever] for lever in [*levers(arguments.name), *arguments.candidates]), ["preset=plus"]]
    table = Table("change to preset=paper", "NLL", "MSE", "MAE", "mean part of KL")
    for variant in variants:
        scores = validation_scores(compose(arguments.name, shared + variant), arguments.steps)
        figures = [f"{scores[key]:.4f}" for key in ("val/nll", "val/mse", "val/mae")]
        table.add_row(" ".join(variant) or "none", *figures, f"{scores['kl_mean_part']:.1f}")
        print(" ".join(variant) or "none", *figures, f"{scores['kl_mean_part']:.1f}", flush=True)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
