"""What the features of a diffusion model's UNet tell apart without any annotation: clusters over blocks and steps.

The form of Figure 4 of Baranchuk et al., Label-Efficient Semantic Segmentation with Diffusion Models, ICLR 2022.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config import ConfigError, Experiment, compose, experiments, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_modules.segmentation.backbones.ddpm import DDPMBackbone

OF_PICTURES = "celeba19"  # the data set whose configuration of `ddpm` is that for pictures of no data set


def cluster_figure(
    source: str,
    checkpoint: str | None,
    blocks: Sequence[int],
    steps: Sequence[int],
    chosen: Sequence[int],
    num_clusters: int = 5,
    seed: int = 0,
    overrides: Sequence[str] = (),
    device: str = "auto",
) -> "Figure":
    """k-means clusters of the pixels of pictures, by the up-sampled features of each block and step.

    The network and its features are those of method `ddpm`, see `DDPMBackbone`; k-means is exact, see `map_kmeans`.

    Args:
        source: a data set of segmentation, whose test images are meant, a folder of pictures, or one picture.
        checkpoint: a pre-training run, which means ``preset=small`` at its images' size; or any other checkpoint of
            `DDPMBackbone`; None: that of the configuration, which may have to be downloaded.
        blocks: of the UNet's decoder, ascending; empty: those of the configuration.
        steps: of the diffusion process; empty: those of the configuration.
        chosen: numbers of the pictures in the order of their paths; empty: the first two.
        num_clusters: of each picture by each block and step.
        seed: of k-means.
        overrides: key=value, laid over the configuration.
        device: of torch, or "auto".

    Raises:
        ConfigError: an argument or the run cannot be used, or a picture does not decode.
        SourceError: the data set or the weights cannot be had.
    """
    import numpy as np
    import torch

    from callbacks.segmentation_figures import cluster_colours, clusters_figure
    from datamodules.segmentation.images import ImagesError, fitted, read_rgb, whole_image
    from experiments.build import build_module
    from experiments.trained import move
    from lightning_modules.segmentation.map_kmeans import cluster_images, renumbered

    dataset = source if f"ddpm_{source}" in experiments()["segmentation"] else None
    given = [*_of_checkpoint(checkpoint)]
    given += [f"model.backbone.blocks={list(blocks)}"] if blocks else []
    given += [f"model.backbone.steps={list(steps)}"] if steps else []
    experiment = compose(f"ddpm_{dataset or OF_PICTURES}", [*given, *overrides])
    files = _test_images(experiment) if dataset else _pictures(source)
    chosen = chosen or range(min(2, len(files)))
    if max(chosen) >= len(files) or min(chosen) < 0:
        raise ConfigError(f"--pictures {','.join(map(str, chosen))}: {source} has the pictures 0 to {len(files) - 1}")
    size = experiment.config["data"]["image_size"]
    if not 1 <= num_clusters <= size**2:
        raise ConfigError(
            f"--clusters {num_clusters}: choose between 1 and {size**2}, the pixels of a picture at "
            f"data.image_size={size}"
        )
    squares, extents = [], []
    for file in (files[number] for number in chosen):
        try:
            picture = read_rgb(file)
        except ImagesError as error:
            raise ConfigError(f"--images {file}: {error}") from error
        squares.append(whole_image(picture, size))
        extents.append(fitted(*picture.size, size))  # width and height; what lies beyond is no picture
    network = Experiment("ddpm", "", "", "", {"model": experiment.config["model"]["backbone"]})
    backbone: DDPMBackbone = build_module(network)
    device = move(backbone, device)
    images = torch.from_numpy(np.stack(squares)).to(device).float() / 255
    try:
        found = cluster_images(backbone, images, num_clusters, seed=seed)  # [image, step and block, size, size]
    except ValueError as error:
        raise ConfigError(f"--images {source} cannot be clustered at data.image_size={size}: {error}") from error
    labels = found.unflatten(1, (backbone.num_steps, -1))
    # What is alike has one colour: that of the step before, in the first step that of the block before.
    for panels in labels:
        for step, block in np.ndindex(*panels.shape[:2]):
            if step or block:
                before = panels[step - 1, block] if step else panels[0, block - 1]
                panels[step, block] = renumbered(panels[step, block], before, num_clusters)
    labels = labels.cpu().numpy()
    sides = [size // backbone.network.decoder_strides[block] for block in backbone.blocks]
    return clusters_figure(
        [square[:, :height, :width] for square, (width, height) in zip(squares, extents, strict=True)],
        [each[..., :height, :width] for each, (width, height) in zip(labels, extents, strict=True)],
        [f"step {step}" for step in backbone.steps.tolist()],
        [f"block {block}\n{side} × {side}" for block, side in zip(backbone.blocks, sides, strict=True)],
        cluster_colours(num_clusters),
    )


def _of_checkpoint(checkpoint: str | None) -> list[str]:
    """The overrides with which `ddpm` takes a checkpoint; those of a run fit its network and its images, too."""
    from experiments.trained import StoredRun

    if checkpoint is None:
        return []
    path = Path(checkpoint)
    if not path.is_dir() and path.suffix != ".ckpt":
        return [f"model.backbone.checkpoint={checkpoint}"]
    run = StoredRun.of_task(path, "pretraining")
    size = run.config["data"]["image_size"]
    return ["preset=small", f"model.backbone.checkpoint={run.checkpoint}", f"data.image_size={size}"]


def _test_images(experiment: Experiment) -> list[Path]:
    from experiments.build import build_data

    data = build_data(experiment)
    data.prepare_data()
    data.setup("test")
    return [pair.image for pair in data.test_set.pairs]


def _pictures(source: str) -> list[Path]:
    from datamodules.segmentation.images import ImagesError
    from datamodules.segmentation.own_images import pictures

    path = Path(source)
    if not path.exists():
        known = [name.removeprefix("ddpm_") for name in experiments()["segmentation"] if name.startswith("ddpm_")]
        raise ConfigError(f"--images {source}: it is no folder or picture, and no data set.{nearest(source, known)}")
    try:
        return pictures(path) if path.is_dir() else [path]
    except ImagesError as error:
        raise ConfigError(f"--images {' '.join(str(error).split())}") from error
