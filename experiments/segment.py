"""Label pictures: ``python -m experiments.segment --checkpoint RUN --input FOLDER --output FOLDER``."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config import ConfigError
from experiments.trained import StoredRun, move

if TYPE_CHECKING:
    from lightning_modules.segmentation.pixel_ensemble import PixelEnsemble

DESCRIPTION = """Label the pictures of a folder with an ensemble that `experiments.run <method>_<data set>` has trained.

Each picture gets a PNG of its own size whose pixels are the numbers of classes, shown in the classes' colours. The
table uncertainty.csv lists the pictures, the one whose labels the members agree on least first: annotate that one next.
Of a folder with images/ in it, these are read; else all pictures below it but masks (x.png beside x.jpg)."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.segment",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", metavar="RUN", type=Path, required=True, help="a run's folder, or a .ckpt in it"
    )
    parser.add_argument(
        "--input", metavar="PATH", type=Path, required=True, help="a folder of pictures, or one picture"
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="where the masks go; is made")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU where there is one")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0, or 2 where the run or a picture cannot be used, with one line on standard error.
    """
    arguments = _parser().parse_args(argv)
    try:
        scores = segment(arguments.checkpoint, arguments.input, arguments.output, arguments.device)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(scores)} masks in {arguments.output}")
    return 0


def segment(run: Path, source: Path, output: Path, device: str = "auto") -> dict[str, float]:
    """Label pictures and write the masks.

    Args:
        run: folder of a run of a segmentation experiment, or a checkpoint in it.
        source: folder of pictures, or one picture.
        output: folder of the masks; each appears whole or not at all.
        device: of torch, or "auto".

    Returns:
        Uncertainty of each picture by its path below ``source``, in nats, the highest first.

    Raises:
        ConfigError: an argument or the run cannot be used, or a picture does not decode.
    """
    import numpy as np
    import torch
    from PIL import Image

    from callbacks.files import whole_file
    from datamodules.segmentation.images import ImagesError, at_own_size, read_rgb, whole_image
    from datamodules.segmentation.palette import palette
    from lightning_modules.segmentation.pixel_ensemble import image_uncertainty

    root, pictures = _pictures(source)
    module = load(run)
    device = move(module, device)
    colours = palette(module.hparams.num_classes).tobytes()
    scores = {}
    for picture in pictures:
        try:
            image = read_rgb(picture)
        except ImagesError as error:
            raise ConfigError(f"--input {picture}: {error}") from error
        pixels = torch.from_numpy(whole_image(image, module.hparams.image_size)).to(device)
        answer = module.predict(pixels[None].float() / 255)
        labels = at_own_size(answer.labels[0].cpu().numpy(), *image.size)
        mask = Image.fromarray(labels.astype(np.uint8), mode="P")
        mask.putpalette(colours)
        name = picture.relative_to(root)
        scores[name.as_posix()] = image_uncertainty(answer.uncertainty).item()
        target = (output / name).with_suffix(".png")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as file:
                mask.save(file, format="PNG")
        except OSError as error:
            raise ConfigError(f"--output {output} cannot be written: {error.strerror or error}") from error
    scores = dict(sorted(scores.items(), key=lambda item: -item[1]))
    lines = ["picture,uncertainty", *(f'"{name}",{score:.6f}' for name, score in scores.items()), ""]
    with whole_file(output / "uncertainty.csv") as file:
        file.write("\n".join(lines).encode())
    return scores


def _pictures(source: Path) -> tuple[Path, list[Path]]:
    """The folder, and the pictures in it, sorted."""
    from datamodules.segmentation.images import SUFFIXES

    if source.is_file():
        return source.parent, [source]
    root = source / "images" if (source / "images").is_dir() else source
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    others = {path.with_suffix("") for path in found if path.suffix.lower() != ".png"}
    pictures = [path for path in found if path.suffix.lower() != ".png" or path.with_suffix("") not in others]
    if not pictures:
        raise ConfigError(f"--input {source}: there is no picture; their names end in one of {', '.join(SUFFIXES)}")
    return root, pictures


def load(run: Path) -> "PixelEnsemble":
    """An ensemble as a run has left it; its training images need not be at hand.

    Args:
        run: the run's folder, or one of its checkpoints.

    Raises:
        ConfigError: there is no such run, it is not one of segmentation, or it is not trained.
    """
    from callbacks.checkpoints import AtomicCheckpointIO
    from experiments.build import build_module
    from experiments.config import Experiment

    folder, config, data_class, checkpoint = StoredRun.find(run)
    if getattr(data_class, "task", None) != "segmentation":
        raise ConfigError(f"--checkpoint {run}: its run is not one of segmentation, but on {data_class.__name__}")
    if not checkpoint.is_file():
        raise ConfigError(f"--checkpoint {run}: there is no checkpoint; the training has to begin first")
    try:
        module = build_module(Experiment(str(folder), "", "", "", config))
        stored = AtomicCheckpointIO().load_checkpoint(checkpoint)
        module.on_load_checkpoint(stored)
        module.load_state_dict(stored["state_dict"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ConfigError(f"--checkpoint {checkpoint} cannot be used: {' '.join(str(error).split())}") from error
    return module


if __name__ == "__main__":
    sys.exit(main())
