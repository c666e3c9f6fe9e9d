"""An ensemble of small networks that label single pixels, from the features of a frozen backbone.

Baranchuk, Rubachev, Voynov, Khrulkov, Babenko: Label-Efficient Semantic Segmentation with Diffusion Models, ICLR 2022,
after Zhang et al., DatasetGAN, CVPR 2021. A member is Linear, ReLU, BatchNorm, Linear, ReLU, BatchNorm, Linear, trained
on the annotated pixels of a few images; the members differ in their initialisation and in the order of their pixels,
and vote. The published code up-samples all features of an image to its full size. Up-sampling and the first Linear
commute, since the weights of an interpolation sum to one: here the Linear is applied to the maps as they are, its
output is up-sampled, and training blends the four neighbours of the pixels it has drawn. All members are trained at
once.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.networks.member_adam import MemberAdam
from lightning_modules.networks.upsampling import all_corners, blend, corners
from lightning_modules.segmentation.base import AnnotatedBatch, PixelBackbone, PixelBatch, Segmentation

_INITIAL_STD = 0.02
_ASKED_EVERY = 16  # steps between two looks of the host at whether all members have stopped
# Hidden activations of a chunk of pixels, which then stay in a CPU's cache.
_NUMBERS_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}
# Through the backbone. A CPU is busy with one, of which the published UNet has activations of half a gigabyte.
_IMAGES_AT_ONCE = {"cpu": 1, "cuda": 4}


class PixelEnsemble(L.LightningModule):
    """Pixel classifiers over the feature maps of a backbone.

    Args:
        backbone: frozen; its weights are not stored with the run, but the buffers that it names in ``kept_buffers``.
        num_classes: classes of a pixel.
        image_size: height and width of the images, in pixels.
        num_members: members of the ensemble.
        hidden: widths of the two hidden layers; None: 128 and 32 below 30 classes, else 256 and 128, as published.
        learning_rate: of Adam.
        stop_rule_from_epoch: first epoch, from 0 on, in which a member may stop.
        patience: a member stops when more batches than this, one after the other, had no lower loss than the best one.
        vote: "hard", the class that most members name, the first of several; "soft", that of the highest mean
            probability.
        feature_dtype: type in which the training images' features are kept; None: the smallest that keeps those of the
            backbone whole.
        feature_cache: "memory", or "disk", memory-mapped files in the run's folder.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        backbone: PixelBackbone,
        num_classes: int,
        image_size: int,
        num_members: int = 10,
        hidden: Sequence[int] | None = None,
        learning_rate: float = 1e-3,
        stop_rule_from_epoch: int = 4,
        patience: int = 50,
        vote: Literal["hard", "soft"] = "hard",
        feature_dtype: Literal["float16", "float32"] | None = "float32",
        feature_cache: Literal["memory", "disk"] = "memory",
    ) -> None:
        super().__init__()
        if min(num_classes - 1, num_members, image_size, patience + 1) < 1:
            raise ValueError(
                f"num_classes={num_classes} must be at least 2, num_members={num_members} and image_size={image_size} "
                f"at least 1, patience={patience} at least 0"
            )
        hidden = list(hidden) if hidden else ([128, 32] if num_classes < 30 else [256, 128])
        if len(hidden) != 2:
            raise ValueError(f"hidden={hidden}: give the widths of two layers")
        self.save_hyperparameters(ignore="backbone")
        self.backbone = backbone
        # The first Linear's weights lie in the order of `by_resolution`, which is seen when maps are made.
        self.channels = list(backbone.channels)
        sizes = [sum(self.channels), *hidden, num_classes]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (width, out) in enumerate(pairwise(sizes)):
            self.weights.append(torch.stack([self._initial(member, i, width, out) for member in range(num_members)]))
            self.biases.append(torch.zeros(num_members, 1, out))
        self.norms = nn.ModuleList(nn.BatchNorm1d(num_members * width) for width in hidden)
        # State of the stop rule, a number for each member.
        self.register_buffer("best_loss", torch.full((num_members,), torch.inf))
        self.register_buffer("num_worse", torch.zeros(num_members, dtype=torch.int64))
        self.register_buffer("stopped", torch.zeros(num_members, dtype=torch.bool))
        self.tables: list[Tensor] = []  # of each resolution, [image * h * w, channel]
        self.sides: list[tuple[int, int]] = []  # of each resolution, h and w

    @staticmethod
    def _initial(member: int, layer: int, width: int, out: int) -> Tensor:
        """[width, out], drawn for this member and layer whatever the others are."""
        # The last number parts these keys from those of the pixels' orders, which are made from seed and member, too.
        key = torch.initial_seed() * 0x9E3779B97F4A7C15 + member * 0xD1B54A32D192ED03 + layer + 0x2545F4914F6CDD1D
        generator = torch.Generator().manual_seed(key % 2**63)
        return torch.randn(width, out, generator=generator) * _INITIAL_STD

    # Features

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Describe the training images, and keep their maps at their own resolutions.

        Raises:
            ValueError: a feature is not finite, or not any more in the type in which it is kept.
        """
        images = self.trainer.datamodule.train_images  # uint8 [image, 3, height, width]
        told = self.hparams.feature_dtype
        dtype = self.backbone.feature_dtype if told is None else getattr(torch, told)
        folder = None
        if self.hparams.feature_cache == "disk":
            folder = Path(self.trainer.default_root_dir) / "features" / f"rank{self.global_rank}"
            folder.mkdir(parents=True, exist_ok=True)
        tables: list[Tensor] = []
        self.sides = []
        at_once = _IMAGES_AT_ONCE.get(self.device.type, 4)
        for start in range(0, len(images), at_once):
            chosen = images[start : start + at_once].to(self.device)
            maps = self.by_resolution(self.backbone(chosen.float() / 255))
            for number, each in enumerate(maps):
                batch, channels, height, width = each.shape
                if start == 0:
                    shape = (len(images), height * width, channels)
                    tables.append(_table(shape, dtype, self.device, folder and folder / f"{height}x{width}.npy"))
                    self.sides.append((height, width))
                kept = each.flatten(2).mT.to(dtype)
                if not kept.isfinite().all():
                    raise ValueError(_not_finite(each, dtype))
                tables[number][start : start + batch] = kept
        self.tables = [table.flatten(0, 1) for table in tables]

    def by_resolution(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of equal size side by side, [batch, channel, h, w], in the order of the sizes' first appearance.

        Raises:
            ValueError: the backbone's maps have other channels than it says.
        """
        if [each.shape[1] for each in maps] != self.channels:
            found = [each.shape[1] for each in maps]
            raise ValueError(f"{type(self.backbone).__name__} gave maps of {found} channels, not {self.channels}")
        groups: dict[torch.Size, list[Tensor]] = {}
        for each in maps:
            groups.setdefault(each.shape[-2:], []).append(each)
        return [torch.cat(group, dim=1) for group in groups.values()]

    def pixel_features(self, image: Tensor, position: Tensor) -> Tensor:
        """Features of training pixels as bilinear up-sampling would give them.

        Args:
            image: [...] int64, rows of the training part.
            position: [...] int64, row * width + column.

        Returns:
            float32 [..., channel], in the order of `by_resolution`.
        """
        size = self.hparams.image_size
        features = []
        for table, (height, width) in zip(self.tables, self.sides, strict=True):
            index, weight = corners(position, (height, width), (size, size))
            rows = index + (image * (height * width))[..., None]
            # A table on the disk is the CPU's, wherever the classifiers are.
            blended = blend(table, rows.to(table.device), weight.to(table.device))
            features.append(blended.to(position.device))
        return torch.cat(features, dim=-1)

    # Training

    def training_step(self, batch: PixelBatch, batch_index: int) -> Tensor:
        """One step of every member; the sum of their losses gives each its own gradient."""
        losses = self.member_losses(batch)
        self.losses = losses.detach()
        if (self.trainer.global_step + 1) % (self.trainer.log_every_n_steps or 50) == 0:
            self.log("train/loss", self.losses.mean())
        return losses.sum()

    def member_losses(self, batch: PixelBatch) -> Tensor:
        """Cross-entropy of each member on its own pixels, [member], nats."""
        features = self.pixel_features(batch.image.T, batch.position.T)  # [member, pixel, channel]
        z = torch.baddbmm(self.biases[0], features, self.weights[0])  # [member, pixel, hidden]
        for weight, bias, norm in zip(self.weights[1:], self.biases[1:], self.norms, strict=True):
            z = torch.baddbmm(bias, self.normalise(norm, z.relu()), weight)
        losses = F.cross_entropy(z.flatten(0, 1), batch.label.T.flatten(), reduction="none")
        return losses.unflatten(0, (len(z), -1)).mean(1)

    def normalise(self, norm: nn.BatchNorm1d, hidden: Tensor) -> Tensor:
        """Batch normalisation of each member by its own pixels, [member, pixel, hidden]."""
        flat = hidden.transpose(0, 1).flatten(1)  # [pixel, member * hidden]
        return norm(flat).unflatten(1, (len(hidden), -1)).transpose(0, 1)

    def optimizer_step(self, epoch: int, batch_index: int, *arguments: Any, **named: Any) -> None:
        """The optimizer's step; from the first epoch of the stop rule on, without effect on members that stopped."""
        if epoch < self.hparams.stop_rule_from_epoch:
            super().optimizer_step(epoch, batch_index, *arguments, **named)
            return
        self.optimizers(use_pl_optimizer=False).stopped = self.stopped
        statistics = [(each, each.clone()) for norm in self.norms for each in (norm.running_mean, norm.running_var)]
        super().optimizer_step(epoch, batch_index, *arguments, **named)
        for statistic, before in statistics:
            by_member = statistic.view(len(self.stopped), -1)
            by_member.copy_(torch.where(self.stopped[:, None], before.view_as(by_member), by_member))
        # Before the rule looks at this step: the first rank has sent its `stopped` to all others at the step's start.
        if (self.trainer.global_step + 1) % _ASKED_EVERY == 0 and bool(self.stopped.all()):
            self.trainer.should_stop = True
        self.update_stop_rule(self.losses)

    def update_stop_rule(self, losses: Tensor) -> None:
        """Count, for each member, the batches since its best one; nothing waits for the device.

        Args:
            losses: [member] of the last batch.
        """
        better = losses < self.best_loss
        self.best_loss = torch.where(better, losses, self.best_loss)
        self.num_worse = torch.where(better, 0, self.num_worse + 1)
        self.stopped = self.stopped | (self.num_worse > self.hparams.patience)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return MemberAdam(parameters, lr=self.hparams.learning_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the backbone's weights out: it has a file of its own."""
        kept = {f"backbone.{name}" for name in self.backbone.kept_buffers}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            name: value for name, value in state.items() if not name.startswith("backbone.") or name in kept
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the backbone's weights in, as they are."""
        own = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        checkpoint["state_dict"] = own | checkpoint["state_dict"]

    # Prediction

    def test_step(self, batch: AnnotatedBatch, batch_index: int) -> Segmentation:
        """Label all pixels; the metric callbacks score it."""
        return self.predict(batch.images.float() / 255)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Segmentation:
        """Label all pixels of images.

        Args:
            images: [batch, 3, height, width] float32 in [0, 1].
        """
        height, width = images.shape[-2:]
        layers = self.folded_layers()
        maps = self.by_resolution(self.backbone(images))
        num_members, _, hidden = self.weights[0].shape
        weight = self.weights[0].transpose(0, 1).flatten(1)  # [channel, member * hidden]
        weights = weight.split([each.shape[1] for each in maps])
        # A pixel's hidden activations are a weighted sum of four rows of each resolution's product.
        sides = [each.shape[-2:] for each in maps]
        index, share = all_corners(sides, (height, width), images.device)  # [pixel, 4 * resolution] each
        at_once = max(1, _NUMBERS_AT_ONCE.get(images.device.type, 2**20) // (num_members * hidden))
        labels = torch.empty(len(images), height * width, dtype=torch.int64, device=images.device)
        uncertainty = torch.empty(len(images), height * width, device=images.device)
        for number in range(len(images)):
            table = torch.cat([project(each[number], part) for each, part in zip(maps, weights, strict=True)])
            for start in range(0, height * width, at_once):
                pixels = slice(start, start + at_once)
                z = blend(table, index[pixels], share[pixels])  # [pixel, member * hidden]
                z = z.unflatten(1, (num_members, hidden)).transpose(0, 1).add_(self.biases[0])  # the bias once
                for layer, bias in layers:
                    z = torch.baddbmm(bias, z.relu_(), layer)  # [member, pixel, out]
                labels[number, pixels], uncertainty[number, pixels] = vote(z.mT, self.hparams.vote)
        labels, uncertainty = (each.unflatten(1, (height, width)) for each in (labels, uncertainty))
        return Segmentation(labels, uncertainty)

    def folded_layers(self) -> list[tuple[Tensor, Tensor]]:
        """The second and the third Linear, each with the normalisation before it: weights and biases."""
        layers = []
        for weight, bias, norm in zip(self.weights[1:], self.biases[1:], self.norms, strict=True):
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * scale
            scale, shift = (each.view(len(weight), -1, 1) for each in (scale, shift))  # [member, hidden, 1]
            layers.append((weight * scale, bias + shift.mT @ weight))
        return layers


def vote(logits: Tensor, kind: Literal["hard", "soft"]) -> tuple[Tensor, Tensor]:
    """What an ensemble says, and how much its members disagree.

    Args:
        logits: [member, class, pixel].
        kind: see `PixelEnsemble`.

    Returns:
        Classes, int64 [pixel], and the Jensen-Shannon divergence of the members, [pixel], in nats: the entropy of the
        mean distribution less the mean of the entropies, at most the logarithm of the number of members.
    """
    log_probability = logits.log_softmax(1)
    probability = log_probability.exp()
    mean = probability.mean(0)  # [class, pixel]
    entropies = -(probability * log_probability).sum(1).mean(0)
    divergence = (torch.special.entr(mean).sum(0) - entropies).clamp(min=0)
    if kind == "soft":
        return mean.argmax(0), divergence
    classes = logits.shape[1]
    named = logits.argmax(1)  # [member, pixel]
    counts = torch.zeros_like(mean, dtype=torch.int64).scatter_add_(0, named, torch.ones_like(named))
    # Of equal counts the first class: argmax alone does not promise it.
    first = torch.arange(classes - 1, -1, -1, device=logits.device)[:, None]
    return (counts * classes + first).argmax(0), divergence


def image_uncertainty(uncertainty: Tensor) -> Tensor:
    """Mean of the most uncertain tenth of an image's pixels, [batch], from [batch, height, width]."""
    flat = uncertainty.flatten(1)
    return flat.topk(max(flat.shape[1] // 10, 1), dim=1).values.mean(1)


def project(maps: Tensor, weight: Tensor) -> Tensor:
    """The first Linear of all members at low resolution, without its bias.

    Args:
        maps: [channel, h, w].
        weight: [channel, member * hidden].

    Returns:
        [h * w, member * hidden].
    """
    return maps.float().flatten(1).T @ weight


def _not_finite(maps: Tensor, dtype: torch.dtype) -> str:
    """What is wrong with maps of which a number is lost, and what to do."""
    if maps.isfinite().all():
        return (
            f"a feature of {maps.abs().max():.6g} is beyond {torch.finfo(dtype).max:,.0f}, the largest number of "
            f"{str(dtype).removeprefix('torch.')}: set model.feature_dtype=float32"
        )
    return (
        "the backbone's features are not finite: where it computes in 16 bits, let it take more (of ddpm "
        "model.backbone.torso=float32); otherwise its weights are damaged"
    )


def _table(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, path: Path | None) -> Tensor:
    """Room for features: on the device, or in a file."""
    if path is None:
        return torch.empty(shape, dtype=dtype, device=device)
    numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
    return torch.from_numpy(np.lib.format.open_memmap(path, mode="w+", dtype=numpy_dtype, shape=shape))
