"""The user's own images and masks: layouts, sizes, and a report of all faulty files."""

import json
import logging
import os
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datamodules.segmentation.images import (
    MARK,
    ImagesError,
    at_own_size,
    fitted,
    most_frequent,
    read_mask,
    whole_image,
    whole_mask,
)
from datamodules.segmentation.own_images import OwnImages, check_folder

COLOURS = np.array([[20, 20, 20], [220, 40, 40], [40, 220, 40], [40, 40, 220]], np.uint8)


def painted(height=32, width=48, split=10):
    """A mask of three classes in large blocks, and the image that shows each class in its colour."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, split:] = 1
    mask[height // 2 :, 2 * width // 3 :] = 2
    return COLOURS[mask], mask


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)


def make_folder(folder, stems="abcde"):
    """Masks of both kinds, in folders of their own; the last image has none."""
    for number, stem in enumerate(stems):
        image, mask = painted(split=8 + number)
        save(folder / "images" / f"{stem}.png", image)
        if stem != stems[-1]:
            save(folder / "masks" / f"{stem}{'.npy' if number % 2 else '.png'}", mask)
    return folder


def opened(folder, **options):
    module = OwnImages(str(folder), **({"image_size": 48, "pixels_per_batch": 16, "num_members": 2} | options))
    module.prepare_data()
    module.setup()
    return module


def names(pairs):
    return [pair.image.stem for pair in pairs]


def test_images_and_masks_in_two_folders(tmp_path):
    module = opened(make_folder(tmp_path / "own", "abcdef"), test_fraction=0.4)
    assert check_folder(tmp_path / "own") == []
    assert module.unlabelled == [tmp_path / "own" / "images" / "f.png"]
    assert (len(module.train_images), len(module.test_set)) == (3, 2)
    assert module.model_arguments == {"num_classes": 3, "image_size": 48, "num_members": 2, "noise_seed": 0}
    assert module.class_names == ["class 0", "class 1", "class 2"]
    assert (module.data_variant, module.comparable, module.task) == ("own", False, "segmentation")
    tested = {tuple(names(opened(tmp_path / "own", test_fraction=0.4, split_seed=s).test_set.pairs)) for s in range(9)}
    assert len(tested) > 3
    assert names(opened(tmp_path / "own", test_fraction=0.4).test_set.pairs) == names(module.test_set.pairs)
    batch = next(iter(module.train_dataloader()))
    height, width = 32, 48
    split = {stem: 8 + number for number, stem in enumerate("abcdef")}
    trained = [stem for stem in "abcde" if stem not in names(module.test_set.pairs)]
    for image, position, label in zip(*(each.flatten().tolist() for each in batch), strict=True):
        row, column = divmod(position, 48)
        assert row < height
        assert label == painted(height, width, split[trained[image]])[1][row, column]


def test_images_and_masks_beside_each_other(tmp_path):
    image, mask = painted()
    save(tmp_path / "a.jpg", image)
    save(tmp_path / "a.png", mask)  # a mask: there is an image of another format
    save(tmp_path / "b.png", image)  # an image, though a PNG
    save(tmp_path / "b.npy", mask)
    save(tmp_path / "c.PNG", image)  # an image without a mask
    save(tmp_path / "d.tif", image)
    save(tmp_path / "test" / "t.jpg", image)
    save(tmp_path / "test" / "t.png", mask)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "classes.json").write_text('["sky", "sea", "land", "ship"]')
    assert check_folder(tmp_path) == []
    module = opened(tmp_path)
    assert names(module.files.annotated) == ["a", "b"]
    assert names(module.test_set.pairs) == ["t"]
    assert [path.name for path in module.unlabelled] == ["c.PNG", "d.tif"]
    assert list(module.class_names) == ["sky", "sea", "land", "ship"]
    assert module.model_arguments["num_classes"] == 4


def test_a_class_that_no_mask_has_is_told(tmp_path, caplog):
    folder = make_folder(tmp_path / "own")
    (folder / "classes.json").write_text('["sky", "sea", "land", "ship"]')
    with caplog.at_level(logging.WARNING, logger="genpred"):
        opened(folder)
    assert [record.getMessage() for record in caplog.records] == [f"{folder}: no mask has the classes ship"]


def test_one_mask_is_enough(tmp_path, caplog):
    folder = make_folder(tmp_path / "own", "ab")
    with caplog.at_level(logging.WARNING, logger="genpred"):
        module = opened(folder)
    assert "the scores are those of the same images" in caplog.text
    assert module.data_variant == "own, scored on the training images"
    assert (len(module.train_images), names(module.test_set.pairs)) == (1, ["a"])
    several = opened(make_folder(tmp_path / "more"), test_fraction=0.0)
    assert (len(several.train_images), len(several.test_set)) == (4, 4)
    assert len(opened(tmp_path / "more", test_fraction=0.99).train_images) == 1


def test_strokes_are_enough(tmp_path):
    image, _ = painted()
    mask = np.full(image.shape[:2], 255, np.uint8)
    mask[3, 2:27] = 0
    mask[20:25, 30:36] = 1
    save(tmp_path / "a.jpg", image)
    save(tmp_path / "a.npy", mask)
    module = opened(tmp_path)
    assert len(module.train_pixels) == 25 + 30
    assert learnt(module) == {0: 25, 1: 30}
    # The same with 0 for what is not annotated.
    save(tmp_path / "a.npy", np.where(mask == 255, 0, mask + 1).astype(np.int64))
    module = opened(tmp_path, ignore_label=0)
    assert learnt(module) == {1: 25, 2: 30}
    assert module.model_arguments["num_classes"] == 3
    assert module.evaluation_arguments == {"num_classes": 3, "ignore_label": 0}


def test_thin_strokes_outlive_the_reduction_of_their_image(tmp_path, caplog):
    """Three strokes of a pixel's width on a picture that is reduced to a quarter, none where `nearest` would look."""
    image, _ = painted(800, 1000)
    mask = np.full(image.shape[:2], 255, np.uint8)
    mask[101:, 302] = 0
    mask[203, 99:900] = 1
    mask[605:610, 605:625] = 2
    save(tmp_path / "a.jpg", image)
    save(tmp_path / "a.npy", mask)
    with caplog.at_level(logging.WARNING, logger="genpred"):
        module = opened(tmp_path, image_size=250, test_fraction=0)
    assert learnt(module) == {0: 175 - 1, 1: 201, 2: 2 * 6}  # where strokes cross, the longer part wins or the first
    assert "left" not in caplog.text


def test_a_class_that_is_lost_is_told(tmp_path, caplog):
    for name, row in (("a", 2), ("b", 3), ("c", None)):
        image, mask = painted(200, 400)
        mask[mask == 2] = 1
        if row is not None:
            mask[row::8] = 2
        save(tmp_path / f"{name}.jpg", image)
        save(tmp_path / f"{name}.npy", mask)
    (tmp_path / "classes.json").write_text('["sky", "sea", "wire"]')
    with caplog.at_level(logging.WARNING, logger="genpred"):
        opened(tmp_path, image_size=50, test_fraction=0)
    (told,) = [record.getMessage() for record in caplog.records if "no pixel" in record.getMessage()]
    assert told == (
        f"{tmp_path}: no pixel of 'wire' is left in 2 of the 2 training masks that have it, such as a.npy, at "
        "data.image_size=50: raise it, or draw the class broader"
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="genpred"):
        opened(tmp_path, image_size=400, test_fraction=0)
    assert "no pixel" not in caplog.text


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 24), st.integers(1, 24), st.integers(0, 10**6))
def test_a_reduced_mask_has_the_most_frequent_class_of_each_place(height, width, rows, columns, seed):
    mask = np.random.default_rng(seed).choice([0, 1, 5, 255], (height, width), p=[0.1, 0.1, 0.1, 0.7]).astype(np.uint8)
    reduced = most_frequent(mask, rows, columns, 255)
    for i, j in np.ndindex(rows, columns):
        (top, below), (left, right) = (
            (k * old // new, max((k + 1) * old // new, k * old // new + 1))
            for k, old, new in ((i, height, rows), (j, width, columns))
        )
        inside = Counter(label for label in mask[top:below, left:right].ravel().tolist() if label != 255)
        assert reduced[i, j] == min(inside, key=lambda label: (-inside[label], label), default=255)
    assert (reduced != 255).any() == (mask != 255).any()


def learnt(module):
    """How many pixels of each label are learnt from."""
    labels = module.train_pixels[torch.arange(len(module.train_pixels))].label
    values, counts = labels.unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32), (100, 37), (40, 40), (3, 90)])
def test_masks_lie_where_their_images_lie(height, width):
    image, mask = painted(height, width, width // 4)
    size = 40
    square, labels = whole_image(Image.fromarray(image), size), whole_mask(mask, size, 255)
    inner_width, inner_height = fitted(width, height, size)
    assert max(inner_width, inner_height) == size
    assert min(inner_width, inner_height) == max(1, round(min(height, width) * size / max(height, width)))
    assert (labels[:inner_height, :inner_width] != 255).all()
    assert (labels != 255).sum() == inner_height * inner_width
    # The colour that is seen is that of the label, but for the pixel on either side of an edge.
    seen = np.square(square[:, None].astype(float) - COLOURS.T[:, :, None, None]).sum(0).argmin(0)
    assert ((seen != labels) & (labels != 255)).sum() <= 2 * (inner_width + 2 * inner_height)
    if inner_width < size <= 2 * inner_width:  # the mirror image
        beyond = square[:, :, inner_width:]
        assert np.array_equal(beyond, square[:, :, 2 * inner_width - size : inner_width][:, :, ::-1])


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 64))
def test_labels_go_back_to_an_image_of_any_size(height, width, size):
    labels = np.arange(size * size).reshape(size, size)
    inner_width, inner_height = fitted(width, height, size)
    back = at_own_size(labels, width, height)
    assert back.shape == (height, width)
    for row in range(height):
        expected = [labels[row * inner_height // height, column * inner_width // width] for column in range(width)]
        assert back[row].tolist() == expected
    if max(height, width) == size:
        mask = (np.arange(height * width) % 251).astype(np.uint8).reshape(height, width)
        assert np.array_equal(at_own_size(whole_mask(mask, size, 255), width, height), mask)


def test_a_mask_belongs_to_the_upright_image(tmp_path):
    image, mask = painted()
    exif = Image.Exif()
    exif[0x0112] = 8  # upright after a quarter turn anticlockwise
    (tmp_path / "images").mkdir()
    Image.fromarray(np.rot90(image, -1)).save(tmp_path / "images" / "a.png", exif=exif.tobytes())
    save(tmp_path / "masks" / "a.npy", mask)
    assert np.array_equal(opened(tmp_path).train_images[0, :, :32].permute(1, 2, 0), image)
    save(tmp_path / "masks" / "a.npy", np.rot90(mask, -1))
    [problem] = check_folder(tmp_path)
    assert "masks/a.npy: it has 32 x 48 pixels, but a.png has 48 x 32; was it drawn before" in problem


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_mask_is_turned_as_its_image_is(tmp_path, turn):
    image, mask = painted(32, 32)
    exif = Image.Exif()
    exif[0x0112] = turn
    for name, pixels in (("images", image), ("masks", mask)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png", exif=exif.tobytes())
    module = opened(tmp_path, image_size=32)
    assert np.array_equal(COLOURS[module.train_masks[0].numpy()], module.train_images[0].permute(1, 2, 0).numpy())


def test_hidden_copies_are_no_pictures(tmp_path):
    folder = make_folder(tmp_path / "own")
    for part in ("images", "masks"):
        for hidden in (".ipynb_checkpoints", "__MACOSX", ".thumbs"):
            shutil.copytree(folder / part, tmp_path / "copy")
            (tmp_path / "copy").rename(folder / part / hidden)
    module = opened(folder)
    assert len(module.train_images) + len(module.test_set) == 4
    assert len(module.unlabelled) == 1


def test_names_that_are_not_utf_8_are_taken(tmp_path):
    folder = make_folder(tmp_path / "own")
    for part in ("images", "masks"):
        os.rename(bytes(folder / part / "a.png"), bytes(folder / part) + b"/\xe9.png")
    assert list(opened(folder).data_sha256) == ["own"]


def test_masks_of_another_format_are_told(tmp_path):
    folder = make_folder(tmp_path / "own")
    save(folder / "masks" / "e.jpg", painted()[1])
    [problem] = check_folder(folder)
    assert "masks/e.jpg: masks are .png or .npy; save it as one of them" in problem


def test_a_class_of_test_pictures_alone_is_told(tmp_path, caplog):
    folder = make_folder(tmp_path / "own", "abcdef")
    _, mask = painted()
    mask[:4, :4] = 3
    tested = names(opened(folder, test_fraction=0.4).test_set.pairs)[0]
    next((folder / "masks").glob(f"{tested}.*")).unlink()
    save(folder / "masks" / f"{tested}.npy", mask)
    caplog.clear()
    opened(folder, test_fraction=0.4)
    assert "'class 3' is in masks of test pictures alone, so that it cannot be learnt: set another" in caplog.text


def test_masks_that_an_ensemble_has_drawn_are_told(tmp_path, caplog):
    folder = make_folder(tmp_path / "own")
    text = PngInfo()
    text.add_text(*MARK)
    Image.fromarray(painted()[1]).save(folder / "masks" / "e.png", pnginfo=text)
    assert len(opened(folder).unlabelled) == 1
    assert "1 masks that an ensemble has drawn, such as" in caplog.text
    Image.fromarray(painted()[1]).save(folder / "masks" / "e.png")  # accepted
    assert not opened(folder).unlabelled


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_levels_of_few_bits_are_numbers(bits, tmp_path):
    """A PNG written out by hand, as Pillow writes none of 2 or 4 bits."""
    mask = np.resize(np.arange(2 ** min(bits, 3)), (8, 8)).astype(np.uint8)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = np.unpackbits(mask[..., None], axis=2)[..., -bits:].reshape(8, -1)
    lines = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    assert np.array_equal(read_mask(tmp_path / "a.png"), mask)


def test_an_archive_is_no_mask(tmp_path):
    folder = make_folder(tmp_path / "own")
    with (folder / "masks" / "b.npy").open("wb") as file:
        np.savez(file, mask=painted()[1])
    [problem] = check_folder(folder)
    assert "masks/b.npy: it is an archive of arrays; save the mask alone with numpy.save" in problem


def test_a_list_of_classes_of_windows_is_read(tmp_path):
    folder = make_folder(tmp_path / "own")
    (folder / "classes.json").write_text('["sky", "sea", "sand"]', encoding="utf-8-sig")
    assert opened(folder).class_names == ["sky", "sea", "sand"]


def test_masks_with_a_palette_are_numbers(tmp_path):
    image, mask = painted()
    save(tmp_path / "images" / "a.jpg", image)
    (tmp_path / "masks").mkdir()
    paletted = Image.fromarray(mask)
    paletted.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9])
    paletted.save(tmp_path / "masks" / "a.png", bits=2)
    with Image.open(tmp_path / "masks" / "a.png") as stored:
        assert stored.mode == "P"
    assert np.array_equal(opened(tmp_path).train_masks[0, :32], mask)
    save(tmp_path / "masks" / "a.png", mask == 1)
    assert np.array_equal(opened(tmp_path).train_masks[0, :32], mask == 1)


def test_every_faulty_file_is_named_at_once(tmp_path):
    folder = make_folder(tmp_path / "own")
    image, mask = painted()
    (folder / "classes.json").write_text(json.dumps(["sky", "sea", "land"]))

    def add(name, mask=mask, suffix=".npy", image=image):
        save(folder / "images" / f"{name}.png", image)
        save(folder / "masks" / f"{name}{suffix}", mask)

    add("size", mask[:-1])
    add("range", np.where(mask == 2, 3, mask))
    add("negative", mask.astype(int) - 1)
    add("float", mask / 2)
    add("colours", COLOURS[mask], ".png")
    add("empty", np.full_like(mask, 255))
    add("deep", mask[None])
    add("truncated")
    path = folder / "images" / "truncated.png"
    path.write_bytes(path.read_bytes()[:60])
    add("twice")
    save(folder / "masks" / "twice.png", mask)
    add("same")
    save(folder / "images" / "same.jpg", image)
    save(folder / "masks" / "orphan.png", mask)
    (folder / "images" / "unlabelled.jpg").write_bytes(b"no image")
    save(folder / "test" / "images" / "bare.png", image)
    expected = {
        "masks/size.npy": "48 x 31 pixels, but size.png has 48 x 32",
        "masks/range.npy": "label 3, but there are 3 classes, 0 to 2, and 255",
        "masks/negative.npy": "-1 to 1",
        "masks/float.npy": "float64; save the numbers of the classes as uint8",
        "masks/colours.png": "a picture in colours (mode RGB)",
        "masks/empty.npy": "nothing is annotated",
        "masks/deep.npy": "the shape [1, 32, 48]",
        "images/truncated.png": "does not decode",
        "images/twice.png": "two masks, twice.npy and twice.png",
        "images/same.jpg": "same.png has the same name",
        "masks/orphan.png": "there is no image of the same name",
        "images/unlabelled.jpg": "no image of a known format",
        "test/images/bare.png": "without a mask",
    }
    problems = check_folder(folder)
    assert len(problems) == len(expected)
    for name, reason in expected.items():
        assert [f"own/{name}" in line and reason in line for line in problems].count(True) == 1, name

    with pytest.raises(ImagesError) as caught:  # what is only to be predicted does not hinder training
        OwnImages(str(folder)).prepare_data()
    assert "12 to be put right" in str(caught.value)
    assert all(f"own/{name}" in str(caught.value) for name in expected if "unlabelled" not in name)
    with pytest.raises(ValueError, match="12 to be put right"):  # a configuration learns of it before any work
        _ = OwnImages(str(folder)).model_arguments


def test_an_error_names_the_first_twenty(tmp_path):
    for number in range(23):
        save(tmp_path / "masks" / f"{number:02d}.png", painted()[1])
    save(tmp_path / "images" / "a.png", painted()[0])
    with pytest.raises(ImagesError, match="23 to be put right") as caught:
        OwnImages(str(tmp_path)).prepare_data()
    assert str(caught.value).count("no image of the same name") == 20
    assert str(caught.value).endswith(f"and 3 more; all of them: python -m experiments.segment --check {tmp_path}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1, 4), "labels up to 4, but 2, 3 in none of them"),
        ((0, 128, 254), "labels up to 254, but 1, 2, 3, 4, 5, ... in none of them"),
        ((0, 0, 255), "one class alone, 0: .* should 255 be a class"),
    ],
)
def test_labels_with_gaps_are_questioned(tmp_path, values, message):
    image, mask = painted()
    save(tmp_path / "a.jpg", image)
    save(tmp_path / "a.png", np.array(values, np.uint8)[mask])
    with pytest.raises(ImagesError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ('{"0": "sky"}', "must be a list of names"),
        ('["sky", 2]', "must be a list of names"),
        ('["sky", "sea", "sky"]', "two classes have the same name"),
    ],
)
def test_a_faulty_list_of_classes_is_named(tmp_path, text, message):
    folder = make_folder(tmp_path / "own")
    (folder / "classes.json").write_text(text)
    problems = check_folder(folder)
    assert message in problems[0]
    assert "classes.json" in problems[0]


def test_folders_that_hold_nothing_to_learn_from(tmp_path):
    [problem] = check_folder(tmp_path / "nowhere")
    assert "nowhere is not a folder" in problem
    save(tmp_path / "a.jpg", painted()[0])
    [problem] = check_folder(tmp_path)
    assert "there is no image with a mask" in problem
    with pytest.raises(ImagesError, match="there is no image with a mask"):
        opened(tmp_path)


def test_the_sum_is_of_annotated_files(tmp_path):
    folder = make_folder(tmp_path / "own")
    before = opened(folder).data_sha256
    assert list(before) == ["own"]
    (folder / "images" / "e.png").unlink()
    assert opened(folder).data_sha256 == before
    save(folder / "masks" / "a.png", painted(split=30)[1])
    assert opened(folder).data_sha256 != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "data.path is not set"),
        ({"ignore_label": 256}, "ignore_label=256"),
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
        ({"split_seed": -1}, "split_seed=-1"),
        ({"image_size": 0}, "image_size=0"),
        ({"pixels_per_batch": 1}, "pixels_per_batch=1: it must be at least 2"),
    ],
)
def test_impossible_arguments_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        OwnImages(**({"path": str(Path())} | options))
