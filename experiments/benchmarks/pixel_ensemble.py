"""The ensemble of pixel classifiers beside the published way to compute it.

    python -m experiments.benchmarks.pixel_ensemble [--parts predict train memory] [--repeats 3] [--threads 2]

Ten members on features of the published shape: 15 maps of a UNet for an image of 256 pixels, 8,448 channels in all,
here of random numbers. predict: labels of an image, ours beside up-sampling all maps and asking one member after the
other, some rows of pixels at a time. train: one step, ours beside ten modules with an Adam each, one after the other,
which a loader hands rows of up-sampled features (of one image, 2.2 GB); both ways pick new pixels for each step. What
the pixels' features alone take is shown besides. memory: bytes of an image's features, and the peak of training on 50
images, the published UNet with random weights in memory: it describes the last image, when the features of all others
are there, and random numbers stand for theirs, to save its minute an image.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from datamodules.segmentation.batch import PixelBatch
from experiments.benchmarks.measure import alternate, largest_error, peak_memory, ratio, timing_options
from lightning_modules.segmentation.backbones.ddpm import DDPMBackbone
from lightning_modules.segmentation.base import PixelBackbone
from lightning_modules.segmentation.pixel_ensemble import PixelEnsemble, vote

SIZE, CLASSES, MEMBERS, PIXELS, IMAGES = 256, 29, 10, 64, 50
# Channels and side of the maps of blocks 5, 6, 7, 8 and 12, at each of three steps.
MAPS = [(1024, 32), (512, 32), (512, 32), (512, 64), (256, 128)] * 3
ROWS = 16  # of pixels that the published way up-samples at a time: 138 MB of features


class RandomMaps(PixelBackbone):
    """Maps of the published shape, drawn for each call; half-precision numbers, as a UNet of 16 bits makes them."""

    channels = tuple(channels for channels, _ in MAPS)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[batch, 3, height, width] to 15 maps."""
        generator = torch.Generator().manual_seed(0)
        return [
            torch.randn(len(images), channels, side, side, generator=generator).half().float()
            for channels, side in MAPS
        ]


class RandomButLast(RandomMaps):
    """The published UNet for the last image, random maps for those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.before = DDPMBackbone("untrained"), IMAGES - 1

    def forward(self, images: Tensor) -> list[Tensor]:
        """[batch, 3, height, width] to 15 maps."""
        self.before -= len(images)
        return super().forward(images) if self.before >= 0 else self.unet(images)


def build(feature_dtype: str = "float16", backbone: type[RandomMaps] = RandomMaps) -> PixelEnsemble:
    """A freshly initialised ensemble."""
    torch.manual_seed(0)
    return PixelEnsemble(backbone(), CLASSES, SIZE, MEMBERS, feature_dtype=feature_dtype)


def separate(ensemble: PixelEnsemble) -> list[nn.Sequential]:
    """The members as modules of torch's own layers."""
    sizes = [sum(RandomMaps.channels), *ensemble.hparams.hidden, CLASSES]
    members = []
    for number in range(MEMBERS):
        layers: list[nn.Module] = []
        for i, (width, out) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(width, out)
            linear.weight.data = ensemble.weights[i][number].detach().T.contiguous()
            linear.bias.data = ensemble.biases[i][number, 0].detach().clone()
            layers += [linear, nn.ReLU(), nn.BatchNorm1d(out)]
        members.append(nn.Sequential(*layers[:-2]))
    return members


def fit_start(ensemble: PixelEnsemble, num_images: int) -> None:
    """Let the ensemble describe so many images."""
    images = torch.zeros(num_images, 3, SIZE, SIZE, dtype=torch.uint8)
    ensemble._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(train_images=images), global_step=0, log_every_n_steps=10**9
    )
    ensemble.on_fit_start()


def predict(repeats: int) -> None:
    """Labels of one image."""
    ensemble = build().eval()
    members = [member.eval() for member in separate(ensemble)]
    image = torch.zeros(1, 3, SIZE, SIZE)
    maps = ensemble.by_resolution(ensemble.backbone(image))

    class Kept(RandomMaps):
        def forward(self, images: Tensor) -> list[Tensor]:
            return maps

    ensemble.backbone, ensemble.channels = Kept(), [each.shape[1] for each in maps]

    @torch.no_grad()
    def published() -> Tensor:
        features = [F.interpolate(each, (SIZE, SIZE), mode="bilinear", align_corners=False) for each in maps]
        labels = []
        for start in range(0, SIZE, ROWS):
            rows = torch.cat([each[0, :, start : start + ROWS] for each in features]).flatten(1).T  # [pixel, channel]
            labels.append(vote(torch.stack([member(rows).T for member in members]), "hard")[0])
        return torch.cat(labels).view(SIZE, SIZE)

    answers: dict[str, Tensor] = {}

    def keep(name: str, labels: Tensor) -> None:
        answers[name] = labels

    seconds = alternate(
        {
            "ours": lambda: keep("ours", ensemble.predict(image).labels[0]),
            "published": lambda: keep("published", published()),
        },
        repeats,
    )
    equal = (answers["ours"] == answers["published"]).float().mean().item()
    if equal < 0.9999:
        raise SystemExit(f"only {equal:.2%} of the labels are equal: these are not two ways to compute the same")
    _print("predict, one image of 256 pixels, ten members", seconds, f"{equal:.4%} of the labels equal; target 8")


def train(repeats: int) -> None:
    """One step of ten members."""
    ensemble = build("float32")
    fit_start(ensemble, 1)
    members = separate(ensemble)
    generator = torch.Generator().manual_seed(1)
    position = torch.randint(SIZE**2, (repeats + 1, PIXELS, MEMBERS), generator=generator)
    label = torch.randint(CLASSES, (SIZE**2,), generator=generator)
    optimizer = ensemble.configure_optimizers()
    separately = [torch.optim.Adam(member.parameters(), lr=1e-3) for member in members]
    losses: dict[str, list[Tensor]] = {"ours": [], "one after another": []}
    picking: dict[str, list[float]] = {"ours": [], "one after another": []}

    # The order of channels is that of the ensemble's weights.
    maps = [
        table.view(*sides, -1).permute(2, 0, 1)[None]
        for table, sides in zip(ensemble.tables, ensemble.sides, strict=True)
    ]
    rows = torch.empty(SIZE, SIZE, sum(RandomMaps.channels))
    for each, part in zip(maps, rows.split([each.shape[1] for each in maps], dim=-1), strict=True):
        part.copy_(F.interpolate(each, (SIZE, SIZE), mode="bilinear", align_corners=False)[0].permute(1, 2, 0))
    pixels = TensorDataset(rows.flatten(0, 1), label)
    loaders = [iter(DataLoader(pixels, batch_sampler=position[:, :, number].tolist())) for number in range(MEMBERS)]
    steps = iter(position)

    def ours() -> None:
        chosen = next(steps)
        batch = PixelBatch(torch.zeros_like(chosen), chosen, label[chosen])
        optimizer.zero_grad()
        losses_of_members = ensemble.member_losses(batch)
        losses_of_members.sum().backward()
        optimizer.step()
        losses["ours"].append(losses_of_members.detach())
        start = time.perf_counter()
        ensemble.pixel_features(batch.image.T, batch.position.T)  # once more, for its time alone
        picking["ours"].append(time.perf_counter() - start)

    def published() -> None:
        of_members, picked = [], 0.0
        for member, its_optimizer, loader in zip(members, separately, loaders, strict=True):
            start = time.perf_counter()
            features, labels = next(loader)
            picked += time.perf_counter() - start
            its_optimizer.zero_grad()
            loss = F.cross_entropy(member(features), labels)
            loss.backward()
            its_optimizer.step()
            of_members.append(loss.detach())
        losses["one after another"].append(torch.stack(of_members))
        picking["one after another"].append(picked)

    seconds = alternate({"ours": ours, "published": published}, repeats)
    seconds["ours"] = [whole - twice for whole, twice in zip(seconds["ours"], picking["ours"][1:], strict=True)]
    error = largest_error(*losses.values())
    if error > 1e-3:
        raise SystemExit(f"the losses differ by {error:.1e}: these are not two ways to compute the same")
    _print("train, one step of ten members, 64 pixels each", seconds, f"losses agree to {error:.0e}; target 5")
    for name, values in picking.items():
        print(f"  of it, the pixels' features, {name}: {1e3 * statistics.median(values[1:]):.1f} ms", flush=True)


def memory() -> None:
    """The cache of an image, and the peak of a process that trains on 50."""
    ensemble = build()
    fit_start(ensemble, 1)
    mebibytes = sum(table.nbytes for table in ensemble.tables) / 2**20
    print(f"memory: {mebibytes:.1f} MiB of features an image in float16 (target 48)", flush=True)
    code = "from experiments.benchmarks import pixel_ensemble; pixel_ensemble.train_on_many()"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
    print(done.stdout, end="", flush=True)


def train_on_many() -> None:
    """Two steps on 50 images; prints the most memory that the process had."""
    ensemble = build(backbone=RandomButLast)
    fit_start(ensemble, IMAGES)
    optimizer = ensemble.configure_optimizers()
    for _ in range(2):
        image, position = torch.randint(IMAGES, (PIXELS, MEMBERS)), torch.randint(SIZE**2, (PIXELS, MEMBERS))
        optimizer.zero_grad()
        ensemble.member_losses(PixelBatch(image, position, torch.randint(CLASSES, image.shape))).sum().backward()
        optimizer.step()
    peak = peak_memory() / 1e9
    print(f"memory: {peak:.2f} GB at most to train on {IMAGES} images (target 6; the published code: about 210)")


def _print(title: str, seconds: dict[str, list[float]], note: str) -> None:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(title)
    for name, median in medians.items():
        print(f"  {name:<12}{1e3 * median:10.1f} ms")
    print(f"  published / ours: {ratio(seconds['published'], seconds['ours'])} ({note})", flush=True)


PARTS = {"predict": predict, "train": train, "memory": memory}


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = timing_options(parser, argv, repeats=3)
    for part in arguments.parts:
        PARTS[part](*([] if part == "memory" else [arguments.repeats]))


if __name__ == "__main__":
    main()
