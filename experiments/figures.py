r"""Figures of finished runs, of sweeps, and of what a diffusion model's features tell apart.

python -m experiments.figures imputations runs/brits_physionet/default/seed0 runs/gpvae_physionet/*/seed0 \
    --output figures/imputations.png --series 12,340 --variables HR,Temp,Glucose
python -m experiments.figures clusters --checkpoint runs/unet_faces/default/seed0 --images celeba19
python -m experiments.figures curve table3_sizes --x data.train_images --metric test/miou
python -m experiments.figures heatmap table3_blocks --x model.backbone.steps --y model.backbone.blocks \
    --metric test/miou

Each prints the path of the picture; FIGURE --help lists its options. With --wandb, imputations are logged to the W&B
run of each folder as well, as figures/comparison.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import ConfigError, Experiment, defaults_of, load_class, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.sweep_figures import Scores
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


def imputations_figure(folders: list[Path], series: list[int], variables: list[str]) -> "Figure":
    """Test series of the first run's data as each run imputes them.

    Args:
        folders: of finished runs on the same data.
        series: numbers of test series, or their ids where the data have some; none: those in which most is hidden.
        variables: names; none: those of which these series show the most.

    Raises:
        ConfigError: a run cannot be used, the runs' data differ, or there is no such series or variable.
    """
    import torch

    from callbacks.figures import chosen_entries, panels, panels_figure
    from experiments.build import build_data

    loaded = [load_run(folder) for folder in folders]
    runs = dict(zip(run_titles(folders), loaded, strict=True))
    (first, (config, _)), *others = runs.items()
    for name, (other, _) in others:
        ours, theirs = _content(config), _content(other)
        differing = [key for key in ours | theirs if key not in ours or key not in theirs or ours[key] != theirs[key]]
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
    rows = _rows(series, data.test_set) or range(min(len(data.test_set), 500))
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
    return panels_figure(drawn, getattr(data, "time_label", "time"))


NOT_CONTENT = ("batch_size", "evaluation_batch_size", "evaluation_samples", "num_workers", "seed")


def _content(config: dict[str, Any]) -> dict[str, Any]:
    """What decides which entries are seen and which are hidden, the class first; batches may differ."""
    data = config["data"]
    complete = {"class": data["class"]} | defaults_of(load_class(data["class"], "data.class")) | data
    return {key: value for key, value in complete.items() if key not in NOT_CONTENT}


def _rows(series: list[int], test_set: Any) -> list[int]:
    """Test rows of some series, each named by its number or, where the data have ids, by its id."""
    rows = {int(each): row for row, each in enumerate(getattr(test_set, "ids", []))}
    for number in series:
        if not 0 <= number < len(test_set) and number not in rows:
            ids = f", and ids from {min(rows)} to {max(rows)}" if rows else ""
            raise ConfigError(f"--series: {number} is none of the test part, which has 0 to {len(test_set) - 1}{ids}")
    return [number if 0 <= number < len(test_set) else rows[number] for number in series]


def run_titles(folders: list[Path]) -> list[str]:
    """A title for each of some finished runs.

    It is that of the published tables, else the title of the method there, with the overrides that are not of the data.
    Runs that share one are told apart by their folders.

    Raises:
        ConfigError: a run's results are damaged.
    """
    from callbacks.results import read_json
    from experiments.runs import variant_label
    from experiments.tables import listed_rows, published_tables

    listed, methods = {}, {}
    for table in published_tables().values():
        for row in listed_rows(table) if table["figures"] else ():
            listed |= {row.key(column["dataset"]): row.title for column in table["columns"]}
            if not row.overrides:
                methods[row.method] = row.title
    try:
        found = [read_json(folder / "results.json") for folder in folders]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    titles = []
    for results in found:
        overrides = [] if results["variant"] == "default" else variant_label(results).split()
        told = [each.removeprefix("preset=") for each in overrides if not each.startswith("data.")]
        title = " ".join([methods.get(results["method"], results["method"]), *told])
        titles.append(listed.get((results["experiment"], results["variant"]), title))
    for names in ([f"{each.resolve().parent.name}/{each.resolve().name}" for each in folders], folders):
        pairs = zip(titles, names, strict=True)
        titles = [f"{title} {name}" if titles.count(title) > 1 else title for title, name in pairs]
    return titles


def _save(figure: "Figure", output: Path) -> None:
    from callbacks.figures import save_figure

    try:
        save_figure(figure, output)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror or error}") from error


def _log(folders: list[Path], picture: Path) -> None:
    from experiments.tracking import log_picture

    for folder in folders:
        log_picture(folder, "figures/comparison", picture)


def _numbers(arguments: argparse.Namespace, name: str) -> list[int]:
    """The whole numbers of an option."""
    text = getattr(arguments, name)
    try:
        return [int(number) for number in text.split(",") if number]
    except ValueError as error:
        raise ConfigError(f"--{name} {text}: write whole numbers, such as 12,340") from error


# Of each kind of figure its options, and what draws it from them: the figure, and a note for standard output.


def _imputations_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs on the same data")
    parser.add_argument("--output", type=Path, default=Path("figures/imputations.png"), help="default: %(default)s")
    parser.add_argument(
        "--series",
        default="",
        help="numbers of test series, such as 12,340; of PhysioNet record ids, too, such as 142675",
    )
    parser.add_argument("--variables", default="", help="names of variables, such as HR,Temp")
    parser.add_argument(
        "--wandb", action="store_true", help="log the picture to the W&B run of each folder, too, as figures/comparison"
    )


def _imputations(arguments: argparse.Namespace) -> tuple["Figure", str]:
    for folder in arguments.runs if arguments.wandb else ():
        if not (folder / "wandb_id").is_file():
            raise ConfigError(
                f"--wandb: {folder} has no W&B run (wandb_id is not there): leave --wandb out, or run its "
                "experiment with logger=wandb"
            )
    variables = [name for name in arguments.variables.split(",") if name]
    return imputations_figure(arguments.runs, _numbers(arguments, "series"), variables), ""


def _clusters_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="laid over the configuration of ddpm")
    parser.add_argument(
        "--checkpoint",
        metavar="RUN",
        help="a pre-training run, or a file of weights (default: the published network, which is downloaded: 2.2 GB)",
    )
    parser.add_argument(
        "--images",
        default="celeba19",
        metavar="NAME",
        help="a data set of segmentation, a folder of pictures, or a picture (default: celeba19)",
    )
    parser.add_argument("--pictures", default="", help="numbers of its pictures (default: the first two)")
    parser.add_argument("--blocks", default="", help="of the decoder, such as 6,8,10,12 (default: the configuration's)")
    parser.add_argument("--steps", default="50,200,400,600,800", help="of the diffusion process (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=5, metavar="K", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of k-means (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU where there is one")
    parser.add_argument("--output", type=Path, default=Path("figures/clusters.png"), help="default: %(default)s")


def _clusters(arguments: argparse.Namespace) -> tuple["Figure", str]:
    from experiments.cluster_figure import cluster_figure

    figure = cluster_figure(
        arguments.images,
        arguments.checkpoint,
        _numbers(arguments, "blocks"),
        _numbers(arguments, "steps"),
        _numbers(arguments, "pictures"),
        arguments.clusters,
        arguments.seed,
        arguments.overrides,
        arguments.device,
    )
    return figure, ""


def _curve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", help="such as table3_sizes")
    parser.add_argument(
        "folders", metavar="FOLDER", nargs="*", type=Path, help="of finished runs (default: runs, experiments/results)"
    )
    parser.add_argument("--metric", required=True, metavar="NAME", help="such as test/miou")
    parser.add_argument("--x", required=True, metavar="KEY", help="a key of the sweep, such as data.train_images")
    parser.add_argument("--x-title", metavar="TEXT", help="default: the key in words")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: figures/SWEEP_<figure>.png")


def _curve(arguments: argparse.Namespace) -> tuple["Figure", str]:
    from experiments.sweep_figures import curve_figure

    return curve_figure(_scores(arguments, arguments.x), arguments.x_title)


def _heatmap_options(parser: argparse.ArgumentParser) -> None:
    _curve_options(parser)
    parser.add_argument("--y", required=True, metavar="KEY", help="another one, such as model.backbone.blocks")
    parser.add_argument("--y-title", metavar="TEXT", help="default: the key in words")


def _heatmap(arguments: argparse.Namespace) -> tuple["Figure", str]:
    from experiments.sweep_figures import heatmap_figure

    return heatmap_figure(_scores(arguments, arguments.x, arguments.y), arguments.x_title, arguments.y_title)


def _scores(arguments: argparse.Namespace, *axes: str) -> "Scores":
    from experiments.runs import collect
    from experiments.sweep_figures import sweep_scores

    arguments.output = arguments.output or Path("figures") / f"{arguments.sweep}_{arguments.figure}.png"
    folders = arguments.folders or [Path("runs"), Path(__file__).parent / "results"]
    return sweep_scores(arguments.sweep, axes, arguments.metric, collect(folders))


FIGURES = {
    "imputations": (_imputations_options, _imputations),
    "clusters": (_clusters_options, _clusters),
    "curve": (_curve_options, _curve),
    "heatmap": (_heatmap_options, _heatmap),
}


def _parsed(argv: list[str]) -> argparse.Namespace:
    """Arguments of the kind of figure that is named first."""
    first = argparse.ArgumentParser(
        prog="python -m experiments.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    first.add_argument("figure", choices=FIGURES)
    first.add_argument("options", nargs="...", help="those of the figure, after which --help lists them")
    kind = first.parse_args(argv[:1]).figure
    parser = argparse.ArgumentParser(prog=f"{first.prog} {kind}")
    FIGURES[kind][0](parser)
    return parser.parse_intermixed_args(argv[1:], argparse.Namespace(figure=kind))


def main(argv: list[str] | None = None) -> int:
    """Draw a figure.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0, or 2 with one line on standard error where it cannot be drawn.
    """
    from datamodules.sources import SourceError

    arguments = _parsed(sys.argv[1:] if argv is None else argv)
    try:
        figure, note = FIGURES[arguments.figure][1](arguments)
        _save(figure, arguments.output)
        if getattr(arguments, "wandb", False):
            _log(arguments.runs, arguments.output)
    except (ConfigError, SourceError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(arguments.output)
    if note:
        print(note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
