"""Fill the gaps of a table: ``python -m experiments.impute --checkpoint RUN --input my.csv --output filled.csv``."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import ConfigError, told_in_a_line
from experiments.trained import StoredRun, move

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from datamodules.imputation.windows import Preparation, Windows
    from lightning_modules.imputation.base import Imputer

DESCRIPTION = """Fill the gaps of a table of time series with a method that `experiments.run <method>_csv` has trained.

The output has the input's format, rows, columns and types, in the input's order; what was observed is not touched.
Whole numbers stay whole where every filled value is whole, else their column becomes one of floating type. Series
longer than those of the training are filled window by window, and overlapping windows are blended. A method without
training (mean, forward, ...) knows no table: it takes the averages it needs from the input, and a series whole."""
BUDGET = 16_000_000  # numbers in the samples of one batch


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.impute",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", metavar="RUN", type=Path, required=True, help="a run's folder, or a .ckpt in it"
    )
    parser.add_argument("--input", metavar="FILE", type=Path, required=True, help=".csv, .parquet or .npz")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="may be the input itself")
    parser.add_argument(
        "--samples", metavar="N", type=int, default=0, help="draws of each gap; adds columns <variable>_std"
    )
    parser.add_argument(
        "--quantiles", metavar="Q,Q", default="", help="levels, such as 0.05,0.5,0.95; adds columns <variable>_q<level>"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU where there is one")
    return parser


@told_in_a_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0, or 2 where the run or the table cannot be used, with one line on standard error.
    """
    arguments = _parser().parse_args(argv)
    levels = _levels(arguments.quantiles, arguments.samples)
    from datamodules.sources import SourceError  # imports torch with what follows

    try:
        told = impute(
            arguments.checkpoint, arguments.input, arguments.output, arguments.samples, levels, arguments.device
        )
    except SourceError as error:
        raise ConfigError(str(error)) from error
    print(told)
    return 0


def _levels(text: str, samples: int) -> list[float]:
    """Quantile levels in order.

    Raises:
        ConfigError: they are not numbers between 0 and 1, or there are too few samples.
    """
    try:
        levels = sorted({float(level) for level in text.split(",") if level.strip()})
    except ValueError as error:
        raise ConfigError(f"--quantiles {text}: write numbers between 0 and 1, such as 0.05,0.5,0.95") from error
    if any(not 0 < level < 1 for level in levels):
        raise ConfigError(f"--quantiles {text}: they must lie between 0 and 1")
    if samples < 0 or samples == 1:
        raise ConfigError(f"--samples {samples}: a spread takes 2 or more, 100 serve most purposes")
    if levels and not samples:
        raise ConfigError(f"--quantiles {text} are taken from samples: add --samples 100")
    return levels


def impute(run: Path, source: Path, target: Path, samples: int, levels: list[float], device: str = "auto") -> str:
    """Fill the gaps of a table.

    Args:
        run: folder of a run of a ``_csv`` experiment, or a checkpoint in it.
        source: the table.
        target: where to write it; appears whole or not at all.
        samples: draws of each gap for columns of standard deviations and quantiles; 0: no such columns.
        levels: of the quantiles, ascending.
        device: of torch, or "auto".

    Returns:
        What was done, in one line.

    Raises:
        ConfigError: the run cannot be used.
        SourceError: the table cannot be used.
    """
    import numpy as np

    from callbacks.files import whole_file
    from datamodules.imputation.tables import read_table
    from datamodules.imputation.windows import Windows, whole

    if target.suffix != source.suffix:
        raise ConfigError(f"--output {target}: it is written like the input, so it has to end in '{source.suffix}'")
    trained = Trained.load(run)
    table = read_table(source, trained.form)
    table.check_new_columns([*(["_std"] if samples else []), *(f"_q{level:g}" for level in levels)])
    preparation = trained.preparation_for(table)
    rows = preparation.rows(table.series, dtype=trained.dtype)
    cut = whole(table.series).cut(preparation.num_steps, preparation.stride)
    windows = Windows(rows, cut, preparation.num_steps, np.zeros(len(cut.series), dtype=np.int64))
    batch_size = trained.options["evaluation_batch_size"]
    try:
        with whole_file(target) as file:  # opened first: an output that cannot be written is no news after an hour
            filled, deviation = predict(trained.module, windows, preparation, samples, levels, batch_size, device)
            table.write(file, filled, deviation)
    except OSError as error:
        raise ConfigError(f"--output {target} cannot be written: {error.strerror or error}") from error
    missing = np.isnan(table.series.values)
    return (
        f"{target}: filled {missing.sum():,} of {missing.size:,} values of {missing.shape[1]} variable(s) in "
        f"{len(table.series.ids):,} series"
    )


@dataclass(frozen=True)
class Trained:
    """A method as a run has left it, and how its table was laid out."""

    module: "Imputer"
    form: Any
    preparation: "Preparation | None"
    options: dict[str, Any]

    @classmethod
    def load(cls, run: Path) -> "Trained":
        """From a run's folder (its last state, which is the one that was scored) or one of its checkpoints.

        Raises:
            ConfigError: there is no such run, it did not use a table, or it is not trained.
        """
        from callbacks.checkpoints import AtomicCheckpointIO
        from datamodules.imputation.csv import CSV
        from datamodules.imputation.windows import Preparation
        from experiments.build import build_data, build_module, is_trained
        from experiments.config import Experiment, load_class

        folder, config, data_class, checkpoint = StoredRun.find(run)
        if not issubclass(data_class, CSV):
            raise ConfigError(
                f"--checkpoint {run}: its run is on {data_class.__name__}, not on a table; train one on yours with "
                f"python -m experiments.run gpvae_csv data.path=..."
            )
        experiment = Experiment(str(folder), "", "", "", config)
        if checkpoint.is_file():
            module_class = load_class(config["model"]["class"], f"{folder / 'config.yaml'}: model.class")
            try:
                state = AtomicCheckpointIO().load_checkpoint(checkpoint)[data_class.__qualname__]
                module = module_class.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
                preparation = Preparation.from_state(state)
            except (ValueError, KeyError, RuntimeError) as error:
                raise ConfigError(
                    f"--checkpoint {checkpoint} cannot be used: {' '.join(str(error).split())}"
                ) from error
            return cls(module, preparation.form.without_labels(closed=True), preparation, config["data"])
        module = build_module(experiment)
        if is_trained(module):
            raise ConfigError(f"--checkpoint {run}: there is no checkpoint yet; let its training begin first")
        return cls(module, build_data(experiment).form.without_labels(closed=False), None, config["data"])

    @property
    def dtype(self) -> "torch.dtype":
        """float64 for a method without weights, so that what it copies comes out as it went in."""
        import torch

        return torch.float64 if self.preparation is None else torch.float32

    def preparation_for(self, table: Any) -> "Preparation":
        """How the table is prepared: as in the training, or, without one, by the table's own averages."""
        from datamodules.imputation.windows import Preparation, whole

        if self.preparation is not None:
            return self.preparation
        # A rule takes a series whole, whatever the window: inside a longer gap one would see nothing to go by.
        num_steps = int(table.series.lengths.max())
        return Preparation.fit(table, whole(table.series), num_steps, num_steps)


def predict(
    module: "Imputer",
    windows: "Windows",
    preparation: "Preparation",
    samples: int,
    levels: list[float],
    batch_size: int,
    device: str = "auto",
) -> tuple[dict[str, "NDArray[np.float64]"], "NDArray[np.float64] | None"]:
    """Impute windows, and blend them where they overlap.

    A window counts less towards its ends. Each statistic is blended by itself: the quantiles of the windows are
    averaged (Ratcliff, Psychological Bulletin 86, 1979), for those of averaged samples would be too narrow.

    Args:
        module: the method.
        windows: that cover all rows.
        preparation: that made them.
        samples: draws of each window; 0: none.
        levels: of the quantiles, ascending.
        batch_size: windows of a batch, at most.
        device: of torch, or "auto".

    Returns:
        Arrays [row, variable] in the table's units: the imputations under "" and each quantile under "_q<level>"; and
        the standard deviation, None without samples.

    Raises:
        ConfigError: a method has no samples to give, its answers are not finite, or there is no such device.
    """
    import torch

    from lightning_modules.distributions.predictive import PointPrediction

    device = move(module, device)
    torch.manual_seed(0)  # for methods with noise of their own
    scores = windows.rows.scores
    indices = torch.arange(len(windows))
    total = torch.zeros(len(scores), dtype=torch.float64)
    for part in indices.split(4096):
        rows, weight, _ = _places(windows, part)
        total.index_add_(0, rows, weight)
    names = ["", *(["_std"] if samples else []), *(f"_q{level:g}" for level in levels)]
    blended = {name: torch.zeros_like(scores) for name in names}
    batch_size = max(1, min(batch_size, BUDGET // (max(samples, 1) * windows.num_steps * scores.shape[1])))
    with torch.no_grad():
        for part in indices.split(batch_size):
            batch = windows[part]
            times = None if batch.times is None else batch.times.to(device)
            predictive = module(batch.values.to(device), batch.observed_mask.to(device), times)
            found = {}
            if samples and isinstance(predictive, PointPrediction):
                raise ConfigError(f"--samples {samples}: {type(module).__name__} gives a point, not a distribution")
            if not isinstance(predictive, PointPrediction):
                # Before the mean is read, and whether samples are asked for or not: where the mean is that of draws,
                # they belong to the rows from then on, and not to the places in a batch.
                draws = predictive.sample(max(samples, 1), rows=part.to(device))
            if samples:
                found["_std"] = draws.std(0)
                found |= zip((f"_q{level:g}" for level in levels), _quantiles(draws, levels), strict=True)
            found[""] = predictive.mean
            rows, weight, inside = _places(windows, part)
            share = (weight / total[rows]).to(scores.dtype)[:, None]
            for name, value in found.items():  # [batch, time, variable]
                blended[name].index_add_(0, rows, value.cpu().to(scores.dtype)[inside] * share)
    if not all(value.isfinite().all() for value in blended.values()):
        raise ConfigError(f"{type(module).__name__} gives numbers that are not finite: its training has diverged")
    deviation = preparation.spreads(blended.pop("_std")) if samples else None
    return {name: preparation.values(value) for name, value in blended.items()}, deviation


def _places(windows: "Windows", indices: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Row and weight [place] of each time step of some windows, and where they stand in [window, time]."""
    import torch

    rows, inside = (torch.from_numpy(each) for each in windows.segments.select(indices.numpy()).grid(windows.num_steps))
    position = torch.arange(windows.num_steps)
    weight = torch.minimum(position + 1, inside.sum(1, keepdim=True) - position).double()
    return rows[inside], weight[inside], inside


def _quantiles(draws: "torch.Tensor", levels: list[float]) -> list["torch.Tensor"]:
    """Quantiles over the first axis, between order statistics linearly; ascending in the levels to the last bit."""
    ordered = draws.sort(0).values
    found = []
    for level in levels:
        position = level * (len(ordered) - 1)
        below = min(int(position), len(ordered) - 2)
        lower, upper = ordered[below], ordered[below + 1]
        found.append((lower + (position - below) * (upper - lower)).minimum(upper))
    return found


if __name__ == "__main__":
    sys.exit(main())
