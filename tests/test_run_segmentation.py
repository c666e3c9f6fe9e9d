"""Whole runs of segmentation through the command line: from pre-training on unlabelled images to masks."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.source_table_segmentation import PUBLISHED_WEIGHTS
from experiments import segment
from experiments.run import main
from lightning_modules.segmentation.base import Segmentation

ROOT = Path(__file__).parents[1]
TINY = ["data.image_size=32", "data.num_members=3", "logger=csv"]


def disc(generator, size=40):
    """A picture of a bright disc on a dark ground, and its mask."""
    y, x = np.mgrid[:size, :size]
    centre, radius = generator.uniform(12, size - 12, 2), generator.uniform(6, 11)
    mask = (np.hypot(y - centre[0], x - centre[1]) < radius).astype(np.uint8)
    ground, colour = generator.uniform(10, 90, 3), generator.uniform(140, 245, 3)
    picture = np.where(mask[..., None] > 0, colour, ground) + generator.normal(0, 6, (size, size, 3))
    return picture.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures, of which eight are annotated; two of these are for test."""
    place, generator = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for part in ("images", "masks", "test/images", "test/masks"):
        (place / part).mkdir(parents=True)
    for number in range(12):
        picture, mask = disc(generator)
        home = place / "test" if number in (6, 7) else place
        Image.fromarray(picture).save(home / "images" / f"{number}.png")
        if number < 8:
            np.save(home / "masks" / f"{number}.npy", mask)
    (place / "classes.json").write_text('["ground", "disc"]')
    return place


def run(root, name, *overrides):
    """Run an experiment in this process; its folder and what it left in results.json."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([name, f"run_root={root}", *overrides]) == 0
    (results,) = (root / name).glob("*/*/results.json")
    return results.parent, json.loads(results.read_text())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, folder):
    """A pre-training of a few steps."""
    root = tmp_path_factory.mktemp("pretraining")
    return run(
        root, "unet_images", f"data.paths=[{folder}]", "data.image_size=32", "data.batch_size=4", "max_steps=6",
        "logger=csv", "trainer.log_every_n_steps=1", "trainer.precision=32-true", "model.channel_multipliers=[1,2]",
        "checkpoint.every_n_steps=3", "model.attention_resolutions=[16]", "channels_per_head=32",
        "check_val_every_n_epoch=1",
    )  # fmt: skip


def test_a_process_of_few_steps_is_trained_and_sampled(folder, tmp_path):
    """Of 40 steps, fewer than a grid of samples takes network calls by default."""
    place, results = run(
        tmp_path, "unet_images", f"data.paths=[{folder}]", "data.image_size=16", "data.batch_size=4", "max_steps=1",
        "logger=none", "trainer.precision=32-true", "model.channel_multipliers=[1]", "channels_per_head=32",
        "model.attention_resolutions=[]", "model.num_diffusion_steps=40",
    )  # fmt: skip
    assert np.isfinite(results["metrics"]["test/mse"])
    assert (place / "figures" / "samples.png").exists()


def test_pretraining_leaves_losses_and_samples(pretrained):
    place, results = pretrained
    assert results["steps"] == 6
    assert {"test/mse", "test/bits_per_dim"} == results["metrics"].keys()
    assert "val/mse" in results["validation"]
    with Image.open(place / "figures" / "samples.png") as samples:
        assert samples.size[0] > 100
    assert "train/mse" in (place / "csv" / "metrics.csv").read_text()


def test_a_run_on_ones_own_folder_from_pretraining_to_masks(pretrained, folder, tmp_path, capsys):
    place, results = run(
        tmp_path, "ddpm_folder", f"data.path={folder}", f"model.backbone.checkpoint={pretrained[0]}",
        "blocks=[2,3]", "steps=[20,80]", "torso=float32", "seed=3", *TINY,
    )  # fmt: skip
    assert results["metrics"]["test/miou"] > 0.8  # the disc is brighter than its ground
    assert results["variables"]["disc"]["test/iou"] > 0.7
    assert results["comparable"] is False
    assert {"last.ckpt"} <= set(results["data_sha256"])  # of the backbone's weights
    assert (place / "figures" / "segmentations.png").stat().st_size > 5000
    state = torch.load(place / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name for name in state if name.startswith("backbone.")} == {"backbone.noise"}
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))  # the run's seed
    assert torch.equal(state["backbone.noise"], noise)
    assert results["data_sha256"]["noise"] == hashlib.sha256(noise.numpy().tobytes()).hexdigest()

    # What has no mask gets one, of its own size.
    (tmp_path / "new").mkdir()
    picture, mask = disc(np.random.default_rng(9), size=48)
    Image.fromarray(picture[:, :44]).save(tmp_path / "new" / "wide.jpg")
    Image.fromarray(mask).save(tmp_path / "new" / "wide.png")  # a mask beside its picture is no picture
    Image.fromarray(picture).save(tmp_path / "new" / "square.png")
    arguments = ["--checkpoint", str(place), "--input", str(tmp_path / "new"), "--output", str(tmp_path / "masks")]
    assert segment.main([*arguments, "--uncertainty", "png"]) == 0
    for name, truth in (("wide", mask[:, :44]), ("square", mask)):
        with Image.open(tmp_path / "masks" / f"{name}.png") as written:
            assert (np.array(written) == truth).mean() > 0.9
        with Image.open(tmp_path / "masks" / f"{name}.uncertainty.png") as written:
            assert np.array(written).shape == truth.shape
    lines = (tmp_path / "masks" / "uncertainty.csv").read_text().splitlines()
    scores = [float(line.rpartition(",")[2]) for line in lines[1:]]
    assert segment.main(arguments) == 0  # into its own folder again
    assert len(scores) == 2
    assert 0 <= scores[1] <= scores[0] <= np.log(3)
    (tmp_path / "new" / "broken.jpg").write_bytes(b"no picture")
    assert segment.main(arguments) == 2
    assert "broken.jpg" in capsys.readouterr().err
    assert segment.main(["--checkpoint", str(pretrained[0]), *arguments[2:]]) == 2
    assert "not one of segmentation" in capsys.readouterr().err


def test_weights_that_are_not_those_of_the_training_are_refused(pretrained, folder, tmp_path, capsys):
    """A pre-training that goes on leaves other weights under the same name."""
    again = tmp_path / "pretraining"
    shutil.copytree(pretrained[0], again)
    place, _ = run(
        tmp_path, "ddpm_folder", f"data.path={folder}", f"model.backbone.checkpoint={again}", "blocks=[2]",
        "steps=[20]", "torso=float32", "max_steps=1", *TINY,
    )  # fmt: skip
    picture, masks = folder / "images" / "0.png", tmp_path / "masks"
    command = ["--checkpoint", str(place), "--input", str(picture), "--output", str(masks)]
    assert segment.main(command) == 0
    last = again / "checkpoints" / "last.ckpt"
    before, checkpoint = last.read_bytes(), torch.load(last, weights_only=True)
    (masks / "0.png").unlink()
    checkpoint["state_dict"]["average.out.2.bias"] += 1
    torch.save(checkpoint, last)
    capsys.readouterr()
    assert segment.main(command) == 2
    told = capsys.readouterr().err
    assert f"last.ckpt of model.backbone.checkpoint={again} changed since this ensemble was trained: put the" in told
    assert "force=true" in told
    assert told.count("\n") == 1
    assert not (masks / "0.png").exists()
    last.write_bytes(before)
    assert segment.main(command) == 0


def test_a_run_on_a_set_in_the_published_layout(tmp_path, monkeypatch):
    """30 and 30 pictures as the horses have, of a disc as class 1, without pixels of any other class."""
    generator = np.random.default_rng(2)
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("GENPRED_MIRROR", str(mirror))
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path / "data"))
    for part in ("train", "test"):
        home = mirror / "images" / "horse_21" / "real" / part
        home.mkdir(parents=True)
        for number in range(30):
            picture, mask = disc(generator)
            Image.fromarray(picture).save(home / f"horse_{number}.png")
            np.save(home / f"horse_{number}.npy", mask)
    place, results = run(tmp_path, "rgb_horse21", "max_epochs=4", *TINY)
    metrics, classes = results["metrics"], results["variables"]
    assert classes["background"]["test/iou"] > 0.8
    assert classes["person"]["test/iou"] > 0.6
    # The published mean is over all 21 classes, of which those without a pixel count as 0; the other over these two.
    total = classes["background"]["test/iou"] + classes["person"]["test/iou"]
    assert metrics["test/miou"] == pytest.approx(total / 21)
    assert metrics["test/miou_ignore"] == pytest.approx(total / 2, rel=1e-6)
    assert (results["data_variant"], results["comparable"]) == ("published", False)  # of 32 pixels, not 256
    assert list(results["data_sha256"]) == ["images/horse_21"]
    assert (place / "figures" / "segmentations.png").stat().st_size > 5000


class Disagreeing(torch.nn.Module):
    """Says of each pixel 1, and how uncertain it is: by its row in nats, and ln 4 in what pads a picture."""

    hparams = SimpleNamespace(image_size=32, num_classes=2, num_members=4)

    def predict(self, images):
        nats = torch.linspace(0, 1, 32)[:, None].repeat(1, 32)
        nats[16:] = math.log(4)
        return Segmentation(torch.ones(1, 32, 32, dtype=torch.int64), nats[None])


@pytest.mark.parametrize("kind", [None, "png", "npy"])
def test_what_pads_a_picture_is_not_uncertain(tmp_path, monkeypatch, kind):
    """A picture of 64 x 32 pixels is seen in the upper half of a square of 32."""
    monkeypatch.setattr(segment, "load", lambda run: Disagreeing())
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "in" / "wide.jpg")
    given = ["--checkpoint", str(tmp_path), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert segment.main([*given, *(["--uncertainty", kind] if kind else [])]) == 0
    rows = np.linspace(0, 1, 32)[:16]
    top = np.sort(np.repeat(rows, 32))[-51:].mean()  # a tenth of 16 x 32 pixels
    assert (tmp_path / "out" / "uncertainty.csv").read_text().splitlines()[1] == f"wide.jpg,{top:.6f}"
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"uncertainty.csv", "wide.png", *([f"wide.uncertainty.{kind}"] if kind else [])}
    expected = np.tile(np.repeat(rows, 2)[:, None], 64)  # at the picture's own size
    if kind == "npy":
        np.testing.assert_allclose(np.load(tmp_path / "out" / "wide.uncertainty.npy"), expected, rtol=1e-6)
    elif kind == "png":
        with Image.open(tmp_path / "out" / "wide.uncertainty.png") as grey:
            np.testing.assert_allclose(np.array(grey) / 255 * math.log(4), expected, atol=math.log(4) / 500)


def picture(path):
    """A picture, or something else that a person has made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.zeros((8, 8), np.uint8))
    elif path.suffix == ".csv":
        path.write_text("picture,uncertainty,remark\n")
    else:
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(path)


def labelled(monkeypatch, source, output, *more):
    """The exit status of labelling with an ensemble that is not loaded."""
    monkeypatch.setattr(segment, "load", lambda run: Disagreeing())
    return segment.main(["--checkpoint", "run", "--input", str(source), "--output", str(output), *more])


@pytest.mark.parametrize(
    ("pictures", "drawn", "source", "output", "more"),
    [
        (["my/a.gif"], "my/x.png", "my", "my", []),  # the picture itself
        ([], "my/x.png", "my/x.png", "my", []),
        (["my/images/a.gif"], "my/images/x.png", "my", "my", []),
        (["my/a.gif", "my/x.jpg"], "my/x.png", "my", "my", []),  # the annotation beside it
        (["my/images/a.gif", "my/images/x.png"], "my/masks/x.png", "my/images", "my/masks", []),
        (["my/images/a.gif", "my/images/deep/x.jpg"], "out/images/deep/x.png", "my", "out", []),
        (["my/a.gif", "my/x.jpg"], "out/x.uncertainty.png", "my", "out", ["--uncertainty", "png"]),
        (["my/a.gif", "my/x.jpg"], "out/x.uncertainty.npy", "my", "out", ["--uncertainty", "npy"]),
        (["my/a.gif", "my/x.jpg"], "out/uncertainty.csv", "my", "out", []),
    ],
)
def test_what_a_person_has_drawn_is_never_replaced(
    pictures, drawn, source, output, more, tmp_path, monkeypatch, capsys
):
    """Nor is anything written beside it."""
    for name in (*pictures, drawn):
        picture(tmp_path / name)
    content, before = (tmp_path / drawn).read_bytes(), sorted(tmp_path.rglob("*"))
    assert labelled(monkeypatch, tmp_path / source, tmp_path / output, *more) == 2
    told = capsys.readouterr().err
    assert told == (
        f"error: --output {tmp_path / output}: {tmp_path / drawn} is there already, and this command did not write it: "
        "give another folder with --output\n"
    )
    assert (tmp_path / drawn).read_bytes() == content
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_what_the_command_has_written_is_replaced(kind, tmp_path, monkeypatch):
    picture(tmp_path / "x.jpg")
    output = tmp_path / "out"
    for _ in range(2):
        assert labelled(monkeypatch, tmp_path, output, "--uncertainty", kind) == 0
    assert {path.name for path in output.iterdir()} == {"x.png", f"x.uncertainty.{kind}", "uncertainty.csv"}
    for path in output.glob("*.png"):
        with Image.open(path) as written:
            assert written.text == {"Software": "genpred"}
    with Image.open(output / "x.png") as mask:
        Image.fromarray(np.array(mask)).save(output / "x.png")  # edited and saved by another program
    assert labelled(monkeypatch, tmp_path, output) == 2


def test_what_the_command_has_written_is_no_picture(tmp_path, monkeypatch, capsys):
    """Where it lies among the pictures, it is replaced, not labelled."""
    picture(tmp_path / "x.jpg")
    for _ in range(2):
        assert labelled(monkeypatch, tmp_path, tmp_path, "--uncertainty", "png") == 0
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"x.jpg", "x.png", "x.uncertainty.png", "uncertainty.csv"}
        assert len((tmp_path / "uncertainty.csv").read_text().splitlines()) == 2
    (tmp_path / "x.jpg").unlink()
    assert labelled(monkeypatch, tmp_path, tmp_path) == 2
    assert "and what an ensemble has drawn is none." in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["flat", "images"])
def test_masks_among_the_pictures_are_no_annotations(layout, tmp_path, monkeypatch):
    """Labelled twice into their own folder, pictures stay what they were: two with a mask by hand, one without."""
    home, masks = (tmp_path, tmp_path) if layout == "flat" else (tmp_path / "images", tmp_path / "masks")
    masks.mkdir(exist_ok=True)
    for number, name in enumerate("abc"):
        picture(home / f"{name}.jpg")
        if number < 2:
            np.save(masks / f"{name}.npy", np.arange(64).reshape(8, 8) // 32)
    for _ in range(2):
        assert labelled(monkeypatch, tmp_path, tmp_path, "--uncertainty", "npy") == 0
        assert segment.main(["--check", str(tmp_path)]) == 0
    assert len((tmp_path / "uncertainty.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("left", [b"", b"no image", b"\x89PNG\r\n\x1a\n", None])
def test_what_is_no_png_is_not_the_commands_own(left, tmp_path, monkeypatch, capsys):
    picture(tmp_path / "in" / "x.jpg")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "x.png"
    target.mkdir() if left is None else target.write_bytes(left)
    assert labelled(monkeypatch, tmp_path / "in", tmp_path / "out") == 2
    assert f"{target} is there already" in capsys.readouterr().err
    assert target.is_dir() if left is None else target.read_bytes() == left


def test_two_pictures_never_share_a_mask(tmp_path, monkeypatch, capsys):
    for names in (("x.jpg", "x.png"), ("x.jpg", "x.gif")):
        home = tmp_path / names[1] / "images"
        for name in names:
            picture(home / name)
        assert labelled(monkeypatch, home.parent, tmp_path / "out") == 2
        assert "has the same name but for its suffix; rename one" in capsys.readouterr().err
    picture(tmp_path / "in" / "x.jpg")
    picture(tmp_path / "in" / "x.uncertainty.jpg")
    assert labelled(monkeypatch, tmp_path / "in", tmp_path / "out", "--uncertainty", "png") == 2
    told = capsys.readouterr().err
    assert "x.jpg and x.uncertainty.jpg would both be written to" in told
    assert not (tmp_path / "out").exists()
    assert labelled(monkeypatch, tmp_path / "in", tmp_path / "out") == 0


def test_the_table_holds_names_of_any_kind(tmp_path, monkeypatch):
    names = ['a "quoted", name.jpg', "plain.jpg", "two\nlines.jpg"]
    for name in names:
        picture(tmp_path / "in" / name)
    assert labelled(monkeypatch, tmp_path / "in", tmp_path / "out") == 0
    with (tmp_path / "out" / "uncertainty.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert sorted(line["picture"] for line in table) == names
    assert all(float(line["uncertainty"]) > 0 for line in table)


def test_pictures_that_are_not_there_are_a_line(tmp_path, monkeypatch, capsys):
    assert labelled(monkeypatch, tmp_path / "nowhere", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"error: --input {tmp_path / 'nowhere'} does not exist (looked for at ")
    (tmp_path / "empty").mkdir()
    assert labelled(monkeypatch, tmp_path / "empty", tmp_path / "out") == 2
    assert "there is no image; their names must end in" in capsys.readouterr().err


def test_a_folder_is_checked_before_any_run(folder, tmp_path, capsys):
    assert segment.main(["--check", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder} can be learnt from\n"
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "images" / "3.png").write_bytes(b"not an image")
    (broken / "images" / "11.png").write_bytes(b"not an image")  # one without a mask
    np.save(broken / "masks" / "1.npy", np.zeros((3, 3), np.uint8))
    np.save(broken / "test" / "masks" / "6.npy", np.full((40, 40), 2, np.uint8))
    assert segment.main(["--check", str(broken)]) == 2
    problems = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].removeprefix(f"{broken}/") for line in problems] == [
        "masks/1.npy", "images/3.png", "test/masks/6.npy", "images/11.png",
    ]  # fmt: skip
    assert main(["rgb_folder", f"data.path={broken}", f"run_root={tmp_path / 'runs'}"]) == 2
    told = capsys.readouterr().err
    assert [line in told for line in problems] == [True, True, True, False]  # what has no mask is not needed
    assert segment.main(["--check", str(broken), "--ignore-label", "2"]) == 2
    assert "masks/6.npy: nothing is annotated" in capsys.readouterr().out
    assert segment.main(["--check", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--input", "in"], "required: --checkpoint, --output; or --check FOLDER"),
        (["--check", "in", "--output", "out"], "--check labels nothing: leave out --output"),
        (["--check", "in", "--uncertainty", "png"], "--check labels nothing: leave out --uncertainty"),
        (["--check", "in", "--ignore-label", "300"], "--ignore-label 300: it must lie between 0 and 255"),
        (
            ["--checkpoint", "a", "--input", "b", "--output", "c", "--ignore-label", "0"],
            "--ignore-label is for --check",
        ),
    ],
)
def test_a_command_that_is_not_whole_is_refused(arguments, told, capsys):
    with pytest.raises(SystemExit) as ended:
        segment.main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_run_that_was_killed_ends_with_the_same_digits(folder, tmp_path):
    arguments = [f"data.path={folder}", *TINY, "checkpoint.every_n_steps=20"]
    _, whole = run(tmp_path / "whole", "rgb_folder", *arguments)
    command = [sys.executable, "-m", "experiments.run", "rgb_folder", f"run_root={tmp_path / 'cut'}", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "cut").rglob("last.ckpt")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "cut").rglob("results.json"))
    _, continued = run(tmp_path / "cut", "rgb_folder", *arguments)
    assert "continuing from" in next((tmp_path / "cut").rglob("log.txt")).read_text()
    assert continued["metrics"] == whole["metrics"]
    assert continued["steps"] == whole["steps"]


def test_faulty_files_are_named_and_nothing_is_left(folder, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "images" / "3.png").write_bytes(b"not an image")
    np.save(broken / "masks" / "1.npy", np.zeros((3, 3), np.uint8))
    assert main(["rgb_folder", f"data.path={broken}", f"run_root={tmp_path / 'runs'}"]) == 2
    told = capsys.readouterr().err
    assert "3.png" in told
    assert "1.npy" in told
    assert not list((tmp_path / "runs").rglob("results.json"))


def test_weights_that_are_not_there_are_a_line(folder, tmp_path, capsys):
    arguments = ["ddpm_folder", f"data.path={folder}", f"run_root={tmp_path}", "logger=none"]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "checkpoint=None: give the path of a UNet's weights" in told
    assert "'published:ddpm/lsun_bedroom'" in told
    assert all(name in told for name in PUBLISHED_WEIGHTS if name.startswith("ddpm/"))
    assert "or the folder of a pre-training run" in told
    assert main([*arguments, "model.backbone.checkpoint=nowhere"]) == 2
    told = capsys.readouterr().err
    assert "nowhere does not exist" in told
    assert told.count("\n") == 1
