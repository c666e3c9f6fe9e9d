"""Intersection over union: by brute force over sets of pixels, and as torchmetrics has it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ddp import run_in_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from callbacks import segmentation_figures
from callbacks.segmentation_figures import SegmentationFigure, coloured, segmentation_figure
from callbacks.segmentation_metrics import PixelCounts, SegmentationMetrics
from datamodules.segmentation.images import read_rgb
from datamodules.segmentation.own_images import OwnImages


def drawn(seed, classes, ignore_label, absent=()):
    generator = np.random.default_rng(seed)
    present = [number for number in range(classes) if number not in absent]
    masks = generator.choice([*present, ignore_label], (3, 6, 5)).astype(np.uint8)
    return generator.choice(present, (3, 6, 5)), masks


def whole(masks):
    """The extent of images without padding."""
    return torch.tensor(masks.shape[1:]).expand(len(masks), 2)


def published(labels, masks, classes, ignore_label):
    """The mean over scored classes, with sets of (image, row, column)."""
    scores = []
    for number in range(classes):
        if number != ignore_label:
            said, true = (set(zip(*np.nonzero(each == number), strict=True)) for each in (labels, masks))
            scores.append(len(said & true) / (1e-8 + len(said | true)))
    return np.mean(scores)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.sampled_from([0, 255]))
def test_scores_are_those_of_sets_and_of_torchmetrics(seed, classes, ignore_label):
    labels, masks = drawn(seed, classes, ignore_label, absent=[classes - 1] if classes > 3 else [])
    counts = PixelCounts(classes, ignore_label)
    for label, mask in zip(labels, masks, strict=True):  # accumulated over images
        counts.update(torch.from_numpy(label)[None], torch.from_numpy(mask)[None], whole(mask[None]))
    scores = counts.compute()
    assert scores["miou"].item() == pytest.approx(published(labels, masks, classes, ignore_label))
    usual = MulticlassJaccardIndex(classes, average="none", ignore_index=ignore_label)
    usual.update(torch.from_numpy(labels), torch.from_numpy(masks).long())
    annotated = masks != ignore_label
    present = [
        number for number in range(classes)
        if number != ignore_label and ((labels == number) | (masks == number))[annotated].any()
    ]  # fmt: skip
    assert scores["miou_ignore"].item() == pytest.approx(usual.compute()[present].mean().item(), abs=1e-6)
    assert scores["pixel_accuracy"].item() == pytest.approx((labels == masks)[annotated].mean())


def test_pixels_without_annotation_and_absent_classes_count_against_the_published_score():
    counts = PixelCounts(3, 255)
    masks = torch.tensor([[[0, 255, 1, 1]]], dtype=torch.uint8)
    counts.update(torch.tensor([[[0, 0, 1, 1]]]), masks, whole(masks))
    scores = counts.compute()
    assert scores["miou"].item() == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores["miou_ignore"].item() == 1.0
    np.testing.assert_allclose(counts.by_class["iou"], [0.5, 1, 0], atol=1e-7)


def test_counts_of_processes_add_up():
    """Of shares of different size, one of them empty."""
    labels, masks = (torch.from_numpy(each) for each in drawn(0, 4, 255))
    together = PixelCounts(4, 255)
    together.update(labels, masks, whole(masks))
    wanted = {name: value.item() for name, value in together.compute().items()}

    def on_rank():
        counts, share = PixelCounts(4, 255), [slice(0, 1), slice(1, 3), slice(3, 3)][torch.distributed.get_rank()]
        counts.update(labels[share], masks[share], whole(masks[share]))
        return {name: value.item() for name, value in counts.compute().items()}, counts.by_class["iou"].tolist()

    assert run_in_processes(3, on_rank) == [(wanted, together.by_class["iou"].tolist())] * 3


@pytest.fixture
def pictures(tmp_path):
    """A folder with pictures twice as wide as high, higher than wide, and square, all of which is annotated."""
    generator = np.random.default_rng(0)
    for name, size in (("wide", (16, 32)), ("high", (32, 8)), ("square", (32, 32))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{name}.jpg")
        Image.fromarray(generator.integers(0, 3, size, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    data = OwnImages(str(tmp_path), image_size=32, test_fraction=0, evaluation_batch_size=2)
    data.prepare_data()
    data.setup()
    return data


def test_padding_is_not_scored(pictures):
    """Whatever is said of it, a perfect labelling scores 1, and one fault counts as in the pictures alone."""
    for fault in (False, True):
        metrics = SegmentationMetrics(**pictures.evaluation_arguments)
        logged = {}
        module = SimpleNamespace(device="cpu", log_dict=lambda scores, logged=logged, **_: logged.update(scores))
        metrics.on_test_epoch_start(None, module)
        said, true = [], []
        for number, batch in enumerate(pictures.test_dataloader()):
            labels = torch.where(batch.masks == 255, 1, batch.masks.long())
            if fault and number == 0:
                labels[0, 3, 4] = (labels[0, 3, 4] + 1) % 3
            metrics.on_test_batch_end(None, module, SimpleNamespace(labels=labels), batch)
            for label, mask, pair in zip(labels, batch.masks, pictures.test_set.pairs[2 * number :], strict=False):
                width, height = read_rgb(pair.image).size
                said.append(label[:height, :width].flatten().numpy())
                true.append(mask[:height, :width].flatten().numpy())
        metrics.on_test_epoch_end(None, module)
        wanted = published(np.concatenate(said)[None], np.concatenate(true)[None], 3, 255)
        assert logged["test/miou"].item() == pytest.approx(wanted)
        assert (logged["test/miou"].item() > 1 - 1e-8) == (not fault)
        assert logged["test/miou_ignore"].item() < 1 if fault else logged["test/pixel_accuracy"].item() == 1


def test_the_figure_shows_no_padding(pictures, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(segmentation_figures, "keep_figure", lambda figure, *_: drawn.append(figure))
    callback, trainer = (
        SegmentationFigure(tmp_path),
        SimpleNamespace(is_global_zero=True, datamodule=pictures, logger=None),
    )
    for batch in pictures.test_dataloader():
        answer = SimpleNamespace(labels=batch.masks.long(), uncertainty=torch.rand(batch.masks.shape))
        callback.on_test_batch_end(trainer, None, answer, batch)
    callback.on_test_end(trainer, None)
    shapes = [ax.images[0].get_array().shape[:2] for ax in drawn[0].axes if ax.images]
    assert shapes[:12] == [(32, 8)] * 4 + [(32, 32)] * 4 + [(16, 32)] * 4


def test_the_figure_shows_each_label_in_its_colour():
    palette = np.array([[0, 0, 0], [200, 10, 10]], np.uint8)
    picture = coloured(np.array([[0, 1, 255]]), palette)
    assert picture.tolist() == [[[0, 0, 0], [200, 10, 10], [255, 255, 255]]]
    figure = segmentation_figure(
        np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.int64),
        np.zeros((2, 4, 4), np.float32), palette, ["background", "a $ \\bad{ $"],
    )  # fmt: skip
    assert len([ax for ax in figure.axes if ax.images]) >= 8
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["background", "a \\$ \\bad{ \\$"]
    figure.canvas.draw()  # no formula is looked for in a name
