"""Draw synthetic rows: ``python -m experiments.synthesize --checkpoint RUN --rows 10000 --output synthetic.csv``."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config import ConfigError, told_in_a_line
from experiments.trained import StoredRun, move

if TYPE_CHECKING:
    import pandas as pd

    from lightning_modules.synthesis.base import Synthesizer

DESCRIPTION = """Draw rows from a method that `experiments.run <method>_<table>` has trained.

The output has the columns of the training table, their types, categories and ranges. With --where, columns have the
values that are given: --where 'income=>50K' --where 'sex=Female'. What is left of --where after the first = is the
value. For the class this is what the model was trained for; other columns are held in place while the rest is drawn."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.synthesize",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", metavar="RUN", type=Path, required=True, help="a run's folder, or a .ckpt in it"
    )
    parser.add_argument("--rows", metavar="N", type=int, required=True, help="rows to draw")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help=".csv or .parquet")
    parser.add_argument("--where", metavar="COLUMN=VALUE", action="append", default=[], help="may be given repeatedly")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same rows (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU where there is one")
    return parser


@told_in_a_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0, or 2 where the run or an argument cannot be used, with one line on standard error.
    """
    arguments = _parser().parse_args(argv)
    frame = synthesize(
        arguments.checkpoint, arguments.rows, arguments.output, arguments.where, arguments.seed, arguments.device
    )
    print(f"{arguments.output}: {len(frame):,} rows of {frame.shape[1]} columns")
    return 0


def synthesize(
    run: Path, num_rows: int, output: Path, where: list[str], seed: int = 0, device: str = "auto"
) -> "pd.DataFrame":
    """Draw rows and write them.

    Args:
        run: folder of a run of a synthesis experiment, or a checkpoint in it.
        num_rows: how many.
        output: ``.csv`` or ``.parquet``; appears whole or not at all.
        where: conditions, each ``column=value``.
        seed: of the draw.
        device: of torch, or "auto".

    Returns:
        What was written.

    Raises:
        ConfigError: an argument or the run cannot be used.
    """
    if num_rows < 1:
        raise ConfigError(f"--rows {num_rows}: ask for at least one")
    if not -(2**63) <= seed < 2**64:
        raise ConfigError(f"--seed {seed}: give a number of at most 64 bits, such as 7")
    if output.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--output {output}: it must end in .csv or .parquet")
    for each in where:
        if "=" not in each[1:]:
            raise ConfigError(f"--where '{each}': write column=value")
    pairs = [each.split("=", 1) for each in where]
    conditions = dict(pairs)
    if len(conditions) < len(pairs):
        raise ConfigError(f"--where: {', '.join(where)} name a column twice; give it one value")
    import torch

    from callbacks.files import whole_file
    from callbacks.synthetic_table import write_table

    learnt = StoredRun.of_task(run, "synthesis").config["data"].get("path")
    if learnt and output.resolve() == Path(learnt).resolve():
        raise ConfigError(f"--output {output} is the table that the run has learnt from: give another name")
    module = load(run)
    generator = torch.Generator(move(module, device)).manual_seed(seed)
    try:
        with whole_file(output) as file:  # opened first: an output that cannot be written is no news after an hour
            frame = module.sample(num_rows, generator, conditions)
            write_table(frame, file, output.suffix)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror or error}") from error
    return frame


def load(run: Path) -> "Synthesizer":
    """A method as a run has left it; its training table need not be at hand.

    Args:
        run: the run's folder (its last state, which is the one that was scored), or one of its checkpoints.

    Raises:
        ConfigError: there is no such run, it is not one of synthesis, or it is not trained.
    """
    stored = StoredRun.of_task(run, "synthesis")
    with stored.usable():
        module, checkpoint = stored.module_and_checkpoint()
        # The table's own arguments, such as its path, are of no use without it.
        data = stored.data_class(**{key: value for key, value in stored.config["data"].items() if key != "class"})
        data.load_state_dict(checkpoint[stored.data_class.__qualname__])
        module.attach(data)
        module.load_state_dict(checkpoint["state_dict"])
    return module


if __name__ == "__main__":
    sys.exit(main())
