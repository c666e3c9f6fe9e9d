"""Intersection over union: by brute force over sets of pixels, and as torchmetrics has it."""

import numpy as np
import pytest
import torch
from ddp import run_in_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from callbacks.segmentation_figures import coloured, segmentation_figure
from callbacks.segmentation_metrics import PixelCounts


def drawn(seed, classes, ignore_label, absent=()):
    generator = np.random.default_rng(seed)
    present = [number for number in range(classes) if number not in absent]
    masks = generator.choice([*present, ignore_label], (3, 6, 5)).astype(np.uint8)
    return generator.choice(present, (3, 6, 5)), masks


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
        counts.update(torch.from_numpy(label)[None], torch.from_numpy(mask)[None])
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
    counts.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 255, 1, 1]]], dtype=torch.uint8))
    scores = counts.compute()
    assert scores["miou"].item() == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores["miou_ignore"].item() == 1.0
    np.testing.assert_allclose(counts.by_class["iou"], [0.5, 1, 0], atol=1e-7)


def test_counts_of_processes_add_up():
    """Of shares of different size, one of them empty."""
    labels, masks = (torch.from_numpy(each) for each in drawn(0, 4, 255))
    whole = PixelCounts(4, 255)
    whole.update(labels, masks)
    wanted = {name: value.item() for name, value in whole.compute().items()}

    def on_rank():
        counts, share = PixelCounts(4, 255), [slice(0, 1), slice(1, 3), slice(3, 3)][torch.distributed.get_rank()]
        counts.update(labels[share], masks[share])
        return {name: value.item() for name, value in counts.compute().items()}, counts.by_class["iou"].tolist()

    assert run_in_processes(3, on_rank) == [(wanted, whole.by_class["iou"].tolist())] * 3


def test_the_figure_shows_each_label_in_its_colour():
    palette = np.array([[0, 0, 0], [200, 10, 10]], np.uint8)
    picture = coloured(np.array([[0, 1, 255]]), palette)
    assert picture.tolist() == [[[0, 0, 0], [200, 10, 10], [255, 255, 255]]]
    figure = segmentation_figure(
        np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.int64),
        np.zeros((2, 4, 4), np.float32), palette, ["background", "thing"],
    )  # fmt: skip
    assert len([ax for ax in figure.axes if ax.images]) >= 8
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["background", "thing"]
