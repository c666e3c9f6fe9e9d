"""One picture of what several finished runs say of the same series, as Figure 2 of the GP-VAE's paper.

python -m experiments.figures runs/brits_physionet/default/seed0 runs/gpvae_physionet/*/seed0 \
    --output figures/imputations.png --series 12,340 --variables HR,Temp,Glucose
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import ConfigError, Experiment, nearest

if TYPE_CHECKING:
    from lightning_modules.imputation.base import Imputer


def load_run(folder: Path) -> tuple[dict[str, Any], "Imputer"]:
    """Configuration of a run, and its method with the weights that were scored.

    Raises:
        ConfigError: it is no run, or one that has not been trained to its end.
    """
    from omegaconf import OmegaConf

    from callbacks.checkpoints import AtomicCheckpointIO
    from experiments.build import build_module, is_trained

    if not (folder / "results.json").is_file():
        raise ConfigError(f"{folder} holds no finished run (results.json is not there): run its experiment first")
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    module = build_module(Experiment(str(folder), "", "", "", config))
    if is_trained(module):
        module.load_state_dict(AtomicCheckpointIO().load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"])
    return config, module.eval()


def draw(folders: list[Path], output: Path, series: list[int], variables: list[str]) -> None:
    """Draw test series of the first run's data as each run imputes them.

    Args:
        folders: of finished runs on the same data.
        output: the PNG; appears whole or not at all.
        series: numbers of test series; none: those in which most is hidden.
        variables: names; none: those of which these series show the most.

    Raises:
        ConfigError: a run cannot be used, the runs' data differ, or there is no such series or variable.
    """
    import torch

    from callbacks.figures import chosen_entries, panels, panels_figure, save_figure
    from experiments.build import build_data

    runs = {_label(folder, folders): load_run(folder) for folder in folders}
    (first, (config, _)), *others = runs.items()
    for name, (other, _) in others:
        # Batches may differ; which entries are seen and which are hidden may not.
        differing = [
            key for key in config["data"] if key not in NOT_CONTENT and config["data"][key] != other["data"][key]
        ]
        if differing:
            raise ConfigError(f"data.{differing[0]} of {name} is not that of {first}: draw runs on the same data")
    data = build_data(Experiment(first, "", "", "", config))
    if not hasattr(data, "variables"):
        raise ConfigError(f"the variables of {config['data']['class']} have no names: there is nothing to label")
    data.prepare_data()
    data.setup("test")
    unknown = [name for name in variables if name not in data.variables]
    if unknown:
        raise ConfigError(f"--variables: {unknown[0]} is not one of the data.{nearest(unknown[0], data.variables)}")
    rows = series or range(min(len(data.test_set), 500))
    if max(rows) >= len(data.test_set) or min(rows) < 0:
        raise ConfigError(f"--series: the test part has the series 0 to {len(data.test_set) - 1}")
    batch = data.test_set[torch.tensor(rows)]
    masks = batch.observed_mask.numpy(), batch.target_mask.numpy()
    kept, shown = chosen_entries(*masks, len(series) or 2, 4)
    batch = type(batch)(*(None if field is None else field[torch.from_numpy(kept)] for field in batch))
    columns = [data.variables.index(name) for name in variables] or shown
    with torch.no_grad():
        predictives = {
            name: module(batch.values, batch.observed_mask, batch.times) for name, (_, module) in runs.items()
        }
        drawn = panels(batch, predictives, data, columns, num_draws=100)
    save_figure(panels_figure(drawn, getattr(data, "time_label", "time")), output)


NOT_CONTENT = ("batch_size", "evaluation_batch_size", "evaluation_samples", "num_workers", "seed")


def _label(folder: Path, folders: list[Path]) -> str:
    """Method of a run; its folder where another run is of the same method."""
    methods = [each.resolve().parents[1].name.rsplit("_", 1)[0] for each in folders]
    method = folder.resolve().parents[1].name.rsplit("_", 1)[0]
    return method if methods.count(method) == 1 else f"{method} {folder.resolve().parent.name}/{folder.name}"


def main(argv: list[str] | None = None) -> int:
    """Draw; returns the exit status, 2 with one line on standard error where that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs on the same data")
    parser.add_argument("--output", type=Path, default=Path("figures/imputations.png"))
    parser.add_argument("--series", default="", help="numbers of test series, such as 12,340")
    parser.add_argument("--variables", default="", help="names of variables, such as HR,Temp")
    arguments = parser.parse_args(argv)
    try:
        try:
            series = [int(number) for number in arguments.series.split(",") if number]
        except ValueError as error:
            raise ConfigError(f"--series {arguments.series}: write whole numbers, such as 12,340") from error
        from datamodules.sources import SourceError

        try:
            draw(arguments.runs, arguments.output, series, [name for name in arguments.variables.split(",") if name])
        except SourceError as error:
            raise ConfigError(str(error)) from error
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
