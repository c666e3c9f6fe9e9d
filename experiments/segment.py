"""Label pictures: ``python -m experiments.segment --checkpoint RUN --input FOLDER --output FOLDER``."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config import ConfigError, told_in_a_line
from experiments.trained import StoredRun, move

if TYPE_CHECKING:
    from lightning_modules.segmentation.pixel_ensemble import PixelEnsemble

DESCRIPTION = """Label the pictures of a folder with an ensemble that `experiments.run <method>_<data set>` has trained.

Each picture gets a PNG of its own size whose pixels are the numbers of classes, shown in the classes' colours. The
table uncertainty.csv lists the pictures, the one whose labels the members agree on least first: annotate that one next.
A folder has the form of data set `folder`: pictures, or images/ with them in it; masks that it has are not read."""


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


@told_in_a_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0, or 2 where the run or a picture cannot be used, with one line on standard error.
    """
    arguments = _parser().parse_args(argv)
    scores = segment(arguments.checkpoint, arguments.input, arguments.output, arguments.device)
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
    from datamodules.segmentation.own_images import pictures
    from datamodules.segmentation.palette import palette
    from lightning_modules.segmentation.pixel_ensemble import image_uncertainty

    try:
        found = [source] if source.is_file() else pictures(source)
    except ImagesError as error:
        raise ConfigError(f"--input {' '.join(str(error).split())}") from error
    module = load(run)
    device = move(module, device)
    colours = palette(module.hparams.num_classes).tobytes()
    scores = {}
    for picture in found:
        try:
            image = read_rgb(picture)
        except ImagesError as error:
            raise ConfigError(f"--input {picture}: {error}") from error
        pixels = torch.from_numpy(whole_image(image, module.hparams.image_size)).to(device)
        answer = module.predict(pixels[None].float() / 255)
        labels = at_own_size(answer.labels[0].cpu().numpy(), *image.size)
        mask = Image.fromarray(labels.astype(np.uint8), mode="P")
        mask.putpalette(colours)
        name = Path(os.path.relpath(picture, source.parent if source.is_file() else source))
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


def load(run: Path) -> "PixelEnsemble":
    """An ensemble as a run has left it; its training images need not be at hand.

    Args:
        run: the run's folder, or one of its checkpoints.

    Raises:
        ConfigError: there is no such run, it is not one of segmentation, or it is not trained.
    """
    stored = StoredRun.of_task(run, "segmentation")
    with stored.usable():
        module, checkpoint = stored.module_and_checkpoint()
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    return module


if __name__ == "__main__":
    sys.exit(main())
