"""Label pictures: ``python -m experiments.segment --checkpoint RUN --input FOLDER --output FOLDER``.

With ``--check FOLDER`` instead: whether a run could learn from the folder.
"""

import argparse
import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from experiments.config import ConfigError, told_in_a_line
from experiments.trained import StoredRun, move

if TYPE_CHECKING:
    from lightning_modules.segmentation.pixel_ensemble import PixelEnsemble

DESCRIPTION = """Label the pictures of a folder with an ensemble that `experiments.run <method>_<data set>` has trained.

Each picture gets a PNG of its own size whose pixels are the numbers of classes, shown in the classes' colours. The
table uncertainty.csv lists the pictures, the one whose labels the members agree on least first: annotate that one next.
A folder has the form of data set `folder`: pictures, or images/ with them in it; masks that it has are not read.
Files in the output's folder are replaced only if this command wrote them.

With --check nothing is labelled: what hinders `experiments.run <method>_folder data.path=FOLDER`, and pictures that do
not decode, are named, one problem a line, and the exit status is 2 if there are any."""

_TABLE, _COLUMNS = "uncertainty.csv", ("picture", "uncertainty")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.segment",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", metavar="RUN", type=Path, help="a run's folder, or a .ckpt in it")
    parser.add_argument("--input", metavar="PATH", type=Path, help="a folder of pictures, or one picture")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where the masks go; is made")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU where there is one")
    parser.add_argument(
        "--uncertainty",
        choices=("png", "npy"),
        help="write that of each pixel beside the mask: x.uncertainty.png, whose white is total disagreement, or "
        "x.uncertainty.npy, in nats",
    )
    parser.add_argument("--check", metavar="FOLDER", type=Path, help="name what is wrong with images and masks")
    parser.add_argument("--ignore-label", metavar="N", type=int, help="with --check: as data.ignore_label (255)")
    return parser


@told_in_a_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0, or 2 where the run or a picture cannot be used, with one line on standard error, or where a
        folder that is checked has problems, which are printed.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    needed = {f"--{name}": getattr(arguments, name) for name in ("checkpoint", "input", "output")}
    if arguments.check is not None:
        beside = [name for name, value in needed.items() if value is not None]
        if beside or arguments.uncertainty:
            parser.error(f"--check labels nothing: leave out {', '.join(beside) or '--uncertainty'}")
        if arguments.ignore_label is not None and not 0 <= arguments.ignore_label <= 255:
            parser.error(f"--ignore-label {arguments.ignore_label}: it must lie between 0 and 255")
        return check(arguments.check, arguments.ignore_label)
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}; or --check FOLDER")
    if arguments.ignore_label is not None:
        parser.error("--ignore-label is for --check: a trained run knows its own")
    scores = segment(arguments.checkpoint, arguments.input, arguments.output, arguments.device, arguments.uncertainty)
    print(f"{len(scores)} masks in {arguments.output}")
    return 0


def check(folder: Path, ignore_label: int | None = None) -> int:
    """Print what is wrong with a folder of images and masks, a line for each problem.

    Args:
        folder: see `datamodules.segmentation.own_images.OwnImages`.
        ignore_label: likewise; None: its default.

    Returns:
        The exit status: 0, or 2 if there are problems.
    """
    from datamodules.segmentation.facts import UNANNOTATED
    from datamodules.segmentation.own_images import check_folder

    problems = check_folder(folder, UNANNOTATED if ignore_label is None else ignore_label)
    for problem in problems:
        print(" ".join(problem.split()))
    if not problems:
        print(f"{folder} can be learnt from")
    return 2 if problems else 0


def segment(
    run: Path,
    source: Path,
    output: Path,
    device: str = "auto",
    uncertainty: Literal["png", "npy"] | None = None,
) -> dict[str, float]:
    """Label pictures and write the masks.

    Args:
        run: folder of a run of a segmentation experiment, or a checkpoint in it.
        source: folder of pictures, or one picture.
        output: folder of the masks; each appears whole or not at all. A file of another origin is not replaced.
        device: of torch, or "auto".
        uncertainty: write that of each pixel as well, beside the mask ``x.png``. "png": grey levels
            ``x.uncertainty.png``, white where the members disagree as much as they can; "npy": float32
            ``x.uncertainty.npy``, in nats; None: no.

    Returns:
        Uncertainty of each picture by its path below ``source``, in nats, the highest first.

    Raises:
        ConfigError: an argument or the run cannot be used, a file would be replaced that this command did not write, or
            a picture does not decode.
    """
    import math

    import numpy as np
    import torch
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from callbacks.files import whole_file
    from datamodules.segmentation.images import MARK, ImagesError, at_own_size, fitted, read_rgb, whole_image
    from datamodules.segmentation.own_images import pictures
    from datamodules.segmentation.palette import palette
    from lightning_modules.segmentation.pixel_ensemble import image_uncertainty

    if not source.exists():
        raise ConfigError(
            f"--input {source} does not exist (looked for at {source.absolute()}): name a folder of pictures, or a "
            "picture"
        )
    try:
        found = [source] if source.is_file() else pictures(source)
    except ImagesError as error:
        raise ConfigError(f"--input {' '.join(str(error).split())}") from error
    top = source.parent if source.is_file() else source
    names = [Path(os.path.relpath(picture, top)) for picture in found]
    _check_targets(names, output, uncertainty)
    module = load(run)
    device = move(module, device)
    size, most = module.hparams.image_size, math.log(module.hparams.num_members)  # nats of total disagreement
    colours = palette(module.hparams.num_classes).tobytes()
    marked = PngInfo()
    marked.add_text(*MARK)
    scores = {}
    for picture, name in zip(found, names, strict=True):
        try:
            image = read_rgb(picture)
        except ImagesError as error:
            raise ConfigError(f"--input {picture}: {error}") from error
        pixels = torch.from_numpy(whole_image(image, size)).to(device)
        answer = module.predict(pixels[None].float() / 255)
        labels, nats = (at_own_size(each[0].cpu().numpy(), *image.size) for each in answer)
        mask = Image.fromarray(labels.astype(np.uint8), mode="P")
        mask.putpalette(colours)
        width, height = fitted(*image.size, size)  # what lies beyond is no picture
        scores[name.as_posix()] = image_uncertainty(answer.uncertainty[:, :height, :width]).item()
        target, *beside = _targets(output / name, uncertainty)
        with _told_of(output):
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as file:
                mask.save(file, format="PNG", pnginfo=marked)
            if uncertainty == "png":
                grey = (255 * nats / max(most, 1e-6)).round().clip(0, 255).astype(np.uint8)
                with whole_file(beside[0]) as file:
                    Image.fromarray(grey).save(file, format="PNG", pnginfo=marked)
            elif uncertainty == "npy":
                with whole_file(beside[0]) as file:
                    np.save(file, nats)
    scores = dict(sorted(scores.items(), key=lambda item: -item[1]))
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(_COLUMNS)
    lines.writerows((name, f"{score:.6f}") for name, score in scores.items())
    with _told_of(output), whole_file(output / _TABLE) as file:
        file.write(table.getvalue().encode(errors="surrogateescape"))  # names of files need not be text
    return scores


@contextlib.contextmanager
def _told_of(output: Path) -> Iterator[None]:
    """Say in a line that a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror or error}") from error


def _targets(picture: Path, uncertainty: str | None) -> list[Path]:
    """The files that a picture gets, under its own name but for the suffix: the mask first."""
    mask = picture.with_suffix(".png")
    return [mask, *([mask.with_suffix(f".uncertainty.{uncertainty}")] if uncertainty else [])]


def _check_targets(names: Sequence[Path], output: Path, uncertainty: str | None) -> None:
    """Look, before any work, at what is there under the names of all files that are to be written.

    Args:
        names: of the pictures, below the input's folder.
        output: see `segment`.
        uncertainty: likewise.

    Raises:
        ConfigError: two pictures have one target, or a file is there that this command did not write.
    """
    meant: dict[Path, Path] = {}
    for name in names:
        for target in _targets(output / name, uncertainty):
            if target in meant:
                raise ConfigError(f"--input: {meant[target]} and {name} would both be written to {target}; rename one")
            meant[target] = name
    for target in [*meant, output / _TABLE]:
        if os.path.lexists(target) and not _is_own(target):
            raise ConfigError(
                f"--output {output}: {target} is there already, and this command did not write it: give another folder "
                "with --output"
            )


def _is_own(path: Path) -> bool:
    """Whether this command wrote a file, as far as it can be told from what is in it."""
    import numpy as np

    from datamodules.segmentation.images import is_predicted

    try:
        if path.suffix == ".csv":
            with path.open() as file:
                return file.readline() == ",".join(_COLUMNS) + "\n"
        if path.suffix == ".npy":  # it has no room for a mark; masks hold integers
            uncertainty = np.lib.format.open_memmap(path, mode="r")
            return uncertainty.ndim == 2 and uncertainty.dtype == np.float32
    except (OSError, ValueError):  # of another kind, or damaged
        return False
    return is_predicted(path)


def load(run: Path) -> "PixelEnsemble":
    """An ensemble as a run has left it; its training images need not be at hand.

    Args:
        run: the run's folder, or one of its checkpoints.

    Raises:
        ConfigError: there is no such run, it is not one of segmentation, it is not trained, or the backbone's weights
            are not those that it was trained with.
    """
    from callbacks.same_data import SameData, weights_sums

    stored = StoredRun.of_task(run, "segmentation")
    with stored.usable():
        module, checkpoint = stored.module_and_checkpoint()
        # A pre-training run that went on or was repeated has other weights under the same name.
        before = checkpoint["callbacks"][SameData().state_key]["sums"]
        changed = [name for name, each in weights_sums(module).items() if before.get(name) != each]
        if changed:
            place = stored.config["model"]["backbone"].get("checkpoint")
            raise ValueError(
                f"{', '.join(changed)} of model.backbone.checkpoint={place} changed since this ensemble was trained: "
                "put the old weights back, or train the ensemble again with force=true"
            )
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    return module


if __name__ == "__main__":
    sys.exit(main())
