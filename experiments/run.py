"""Train and score one experiment: ``python -m experiments.run NAME [key=value ...]``."""

import argparse
import sys

from experiments import slurm
from experiments.config import ConfigError, compose, experiments, told_in_a_line

USAGE = """key=value sets any argument of the method (model.*), of the data set (data.*) or of Lightning's Trainer
(trainer.*), and seed, preset (paper | plus), run_root, logger (wandb | wandb_online | csv | none), project and group of
W&B, force. A key may stand without its prefix where only one of them knows it: evaluation=published, latent_dim=64."""


def _parser() -> argparse.ArgumentParser:
    lists = [f"{task}:\n  " + "\n  ".join(names) for task, names in experiments().items()]
    parser = argparse.ArgumentParser(
        prog="python -m experiments.run",
        description="Train and score one experiment, and print its figures beside the published ones.",
        epilog="\n\n".join([USAGE, "experiments", *lists]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="<method>_<dataset>, one of the list below")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override of the configuration")
    parser.add_argument(
        "--print", action="store_true", dest="print_only", help="print the resolved configuration and stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="one batch of everything; leaves nothing behind")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0; 2, with one line on standard error, where the configuration or the data cannot be used,
        room or memory is lacking, or the run diverges;
        128 and the number of a signal that stopped the run (see `experiments.slurm.stoppable`).
    """
    return slurm.stoppable(lambda: _run(_parser().parse_intermixed_args(argv)))


@told_in_a_line
def _run(arguments: argparse.Namespace) -> int:
    experiment = compose(arguments.name, arguments.overrides)
    if arguments.print_only:
        from omegaconf import OmegaConf

        print(f"# {experiment.folder}\n{OmegaConf.to_yaml(OmegaConf.create(experiment.config))}", end="")
        return 0
    from datamodules.sources import SourceError
    from experiments.build import RunError, execute  # imports torch

    try:
        execute(experiment, dry_run=arguments.dry_run)
    except (RunError, SourceError) as error:
        raise ConfigError(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
