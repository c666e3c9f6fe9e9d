"""How well pixels are labelled: the intersection over union of classes, as published and as usual."""

from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric


class Segmentation(Protocol):
    """What a step returned."""

    labels: Tensor  # [batch, height, width] int64


class Batch(Protocol):
    """Annotated images."""

    masks: Tensor  # [batch, height, width] uint8
    extent: Tensor  # [batch, 2] int64, height and width of the picture in the upper left corner; the rest is padding


class PixelCounts(Metric):
    """Counts how often each label got each class, and makes scores of it.

    Args:
        num_classes: classes that can be predicted.
        ignore_label: of pixels without annotation; may be the number of a class, which then is not scored.
    """

    counts: Tensor

    def __init__(self, num_classes: int, ignore_label: int) -> None:
        super().__init__(compute_with_cache=False)
        self.num_classes, self.ignore_label = num_classes, ignore_label
        # The last row holds the pixels without annotation.
        self.add_state("counts", torch.zeros(num_classes + 1, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, labels: Tensor, masks: Tensor, extent: Tensor) -> None:
        """Add images.

        Args:
            labels: [batch, height, width] int64, what was predicted, in 0..num_classes-1.
            masks: [batch, height, width] uint8, the truth.
            extent: [batch, 2] int64, height and width of what is counted of each image, from its upper left corner on.
        """
        truth = masks.long()
        truth = torch.where(truth == self.ignore_label, self.num_classes, truth)
        rows, columns = (torch.arange(side, device=extent.device) for side in masks.shape[1:])
        height, width = extent[:, :, None].unbind(1)  # [batch, 1] each
        picture = (rows < height)[:, :, None] & (columns < width)[:, None]
        pairs = (truth * self.num_classes + labels)[picture]
        self.counts += torch.bincount(pairs, minlength=self.counts.numel()).view_as(self.counts)

    @property
    def scored(self) -> list[int]:
        """Numbers of the classes that are scored."""
        return [number for number in range(self.num_classes) if number != self.ignore_label]

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars "miou", "miou_ignore", "pixel_accuracy".

        miou: by the published rule (Baranchuk et al., ICLR 2022, and their code): over all images together, predictions
        on pixels without annotation counting as wrong, absent classes as 0. miou_ignore: pixels without annotation
        left out, and classes that are neither in the truth nor predicted there. Both are plain means over classes.
        """
        counts = self.counts.double()
        annotated, scored = counts[: self.num_classes], self.scored
        right = annotated.diagonal()
        self.by_class = {"iou": right / (1e-8 + annotated.sum(1) + counts.sum(0) - right)}  # [class]
        union = annotated.sum(1) + annotated.sum(0) - right
        present = [number for number in scored if union[number] > 0]
        return {
            "miou": self.by_class["iou"][scored].mean(),
            "miou_ignore": (right[present] / union[present]).mean(),
            "pixel_accuracy": right.sum() / annotated.sum(),
        }


class SegmentationMetrics(L.Callback):
    """Logs ``test/miou``, ``test/miou_ignore`` and ``test/pixel_accuracy``, see `PixelCounts.compute`.

    Evaluation loaders must give each image to one rank only, un-padded.

    Args:
        num_classes: classes that can be predicted.
        ignore_label: of pixels without annotation; may be the number of a class.
    """

    def __init__(self, num_classes: int, ignore_label: int) -> None:
        self.counts = PixelCounts(num_classes, ignore_label)

    @property
    def by_feature(self) -> dict[str, Tensor]:
        """Intersection over union of each class of the last test, {"iou": [class]}."""
        return self.counts.by_class

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        self.counts.to(pl_module.device).reset()

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Segmentation, batch: Batch, *_: Any
    ) -> None:
        """Add a batch."""
        self.counts.update(outputs.labels, batch.masks, batch.extent)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the scores of all ranks."""
        scores = {f"test/{name}": value for name, value in self.counts.compute().items()}
        # compute() has gathered all ranks already, see `ImputationMetrics`.
        pl_module.log_dict(scores, reduce_fx="max", sync_dist=True)
