"""Pictures of runs and of what features tell apart, through the command line."""

import json
import shutil
from itertools import permutations

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image
from torch.nn import functional as F

from callbacks import figures as drawing
from callbacks import segmentation_figures
from datamodules.imputation.windows import Windows
from datamodules.segmentation.palette import palette
from experiments import run
from experiments.build import build_module
from experiments.config import compose
from experiments.figures import main, run_titles
from experiments.grid import variant_name
from lightning_modules.segmentation.backbones.ddpm import DDPMBackbone

SMALL = ["trainer.max_steps=2", "val_check_interval=1", "model.latent_dim=4", "model.window=3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of two methods on one table, and one on other hidden entries."""
    root = tmp_path_factory.mktemp("figures")
    generator = np.random.default_rng(0)
    lines = [
        f"s{series},{time},{37 + generator.normal():.3f},{80 + 10 * generator.normal():.2f}"
        for series in range(40) for time in range(6)
    ]  # fmt: skip
    (root / "table.csv").write_text("\n".join(["id,time,Temp,HR", *lines, ""]))
    folders = []
    for name, more in (("gpvae_csv", SMALL), ("mean_csv", []), ("mean_csv", ["data.holdout_seed=1"])):
        arguments = [f"data.path={root / 'table.csv'}", f"run_root={root}", "logger=none", *more]
        assert run.main([name, *arguments]) == 0
        folders.append(compose(name, arguments).folder)
    return folders


def test_runs_share_one_picture(runs, tmp_path, monkeypatch, capsys):
    drawn = []
    figure = drawing.panels_figure
    monkeypatch.setattr(drawing, "panels_figure", lambda rows, label: drawn.append(rows) or figure(rows, label))
    output = tmp_path / "pictures" / "two.png"
    given = ["imputations", str(runs[0]), str(runs[1]), "--output", str(output), "--series", "1,5", "--variables", "HR"]
    assert main(given) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert matplotlib.image.imread(output)[..., :3].std() > 0.05
    (rows,) = drawn
    assert [[panel.title for panel in row] for row in rows] == [["HR, series 1"], ["HR, series 5"]]
    panel = rows[0][0]
    assert panel.label == "HR"
    small = "trainer.max_steps=2 val_check_interval=1 model.latent_dim=4 model.window=3"
    assert list(panel.curves) == [f"GP-VAE {small}", "mean imputation"]
    gpvae, mean = panel.curves.values()
    assert gpvae.lower is not None
    assert mean.lower is None
    # The mean fill is the mean of what the panel shows as observed, in the table's units.
    np.testing.assert_allclose(mean.mean, panel.truth[panel.observed].mean(), rtol=1e-5)
    assert 40 < panel.truth[panel.observed].mean() < 120


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["{1}", "{2}"], "data.holdout_seed of mean "),
        (["{1}", "--variables", "Tmp"], "--variables: Tmp is not one of the data. Did you mean 'Temp'?"),
        (["{1}", "--series", "99"], "--series: 99 is none of the test part, which has 0 to 7"),
        (["{1}", "--series", "x"], "--series x: write whole numbers, such as 12,340"),
        (["nowhere"], "nowhere holds no finished run"),
        (["{1}", "--wandb"], "--wandb: {1} has no W&B run (wandb_id is not there)"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(runs, arguments, error, tmp_path, capsys):
    given = [each.format(*runs) for each in arguments]
    assert main(["imputations", *given, "--output", str(tmp_path / "none.png")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {error.format(*runs)}")
    assert told.count("\n") == 1
    assert not (tmp_path / "none.png").exists()


def test_runs_on_other_data_are_refused_in_one_line(runs, tmp_path, capsys):
    """Other data have other options: the table's run is compared with one of another class, in either order."""
    other = tmp_path / "mean_physionet" / "default" / "seed0"
    shutil.copytree(runs[1], other)
    config = OmegaConf.load(other / "config.yaml")
    config["data"] = {"class": "datamodules.imputation.physionet.Physionet", "cohort": "a"}
    OmegaConf.save(config, other / "config.yaml")
    for pair in ((runs[1], other), (other, runs[1])):
        assert main(["imputations", *map(str, pair), "--output", str(tmp_path / "none.png")]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: data.class of mean imputation ")
        assert told.count("\n") == 1


def test_runs_have_the_titles_of_the_tables(tmp_path):
    """Variants are named as `variant_name` of the table's overrides has it, in the folders of `compose`."""
    cases = {
        "brits_physionet": ([], 0, "BRITS"),
        "gpvae_physionet": (["preset=plus"], 0, "GP-VAE plus"),
        "gpvae_hmnist": (["preset=plus", "model.beta=0.5"], 0, "GP-VAE plus model.beta=0.5"),
        "gpvae_sprites": ([], 0, "GP-VAE default/seed0"),
        "gpvae_digits": ([], 1, "GP-VAE default/seed1"),
        "mean_csv": (["data.time_unit=hour"], 0, "mean imputation"),
    }
    folders = []
    for name, (overrides, seed, _) in cases.items():
        values = dict(each.split("=") for each in overrides)
        variant = variant_name({key: float(value) if "." in value else value for key, value in values.items()})
        folder = tmp_path / name / variant / f"seed{seed}"
        folder.mkdir(parents=True)
        results = {"experiment": name, "method": name.split("_")[0], "variant": variant}
        results["command"] = " ".join(["python -m experiments.run", name, *overrides])
        (folder / "results.json").write_text(json.dumps(results))
        folders.append(folder)
    assert run_titles(folders) == [title for *_, title in cases.values()]


def test_a_series_may_be_named_by_its_id(runs, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(drawing, "panels_figure", lambda rows, label: drawn.append(rows) or Figure())
    monkeypatch.setattr(Windows, "ids", np.arange(132_000, 132_008), raising=False)
    command = ["imputations", str(runs[1]), "--output", str(tmp_path / "one.png"), "--variables", "HR", "--series"]
    assert main([*command, "132006,1"]) == 0
    assert [row[0].title for row in drawn[0]] == ["HR, series 6", "HR, series 1"]
    assert main([*command, "140000"]) == 2
    assert capsys.readouterr().err.strip().endswith("which has 0 to 7, and ids from 132000 to 132007")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three pictures of 32 pixels, the one in the middle cut."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] / 31
    for number in range(3):
        waves = [np.sin(generator.uniform(2, 8) * x + generator.uniform(2, 8) * y) for _ in range(3)]
        pixels = (127 * (1 + np.stack(waves, -1))).astype(np.uint8)
        Image.fromarray(pixels[: 20 if number == 1 else 32]).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, pictures):
    """The folder of a pre-training run, as far as its features are concerned."""
    root = tmp_path_factory.mktemp("pretraining")
    experiment = compose(
        "unet_images",
        [f"data.paths=[{pictures}]", "data.image_size=32", "channel_multipliers=[1,2]", f"run_root={root}"],
    )
    module = build_module(experiment)
    for parameter in module.average.parameters():  # away from the start, at which the network reads no step
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    experiment.folder.joinpath("checkpoints").mkdir(parents=True)
    OmegaConf.save(experiment.identity, experiment.folder / "config.yaml")
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(state, experiment.folder / "checkpoints" / "last.ckpt")
    return experiment.folder


def test_each_panel_has_the_clusters_of_its_picture_step_and_block(pictures, pretrained, tmp_path, monkeypatch, capsys):
    drawn = []
    figure = segmentation_figures.clusters_figure
    monkeypatch.setattr(segmentation_figures, "clusters_figure", lambda *given: drawn.append(given) or figure(*given))
    output = tmp_path / "new" / "clusters.png"
    given = ["--checkpoint", str(pretrained), "--images", str(pictures), "--pictures", "2,1,0", "--clusters", "3"]
    assert main(["clusters", *given, "--steps", "400,50", "--blocks", "1,3", "--output", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert matplotlib.image.imread(output)[..., :3].std() > 0.05
    ((images, labels, rows, columns, _),) = drawn
    assert rows == ["step 400", "step 50"]
    assert columns == ["block 1\n32 × 32", "block 3\n32 × 32"]
    assert [each.shape for each in images] == [(3, 32, 32), (3, 20, 32), (3, 32, 32)]
    assert [each.shape for each in labels] == [(2, 2, 32, 32), (2, 2, 20, 32), (2, 2, 32, 32)]
    for number, place in ((2, 0), (0, 2)):
        pixels = torch.from_numpy(np.asarray(Image.open(pictures / f"{number}.png")).transpose(2, 0, 1).copy())
        assert (images[place] == pixels.numpy()).all()
        for i, step in enumerate((400, 50)):
            for j, block in enumerate((1, 3)):
                backbone = DDPMBackbone(str(pretrained), [block], [step], image_size=32, torso="float32")
                (features,) = backbone(pixels[None].float() / 255)
                assert_fixed(features, labels[place][i, j])
                if i or j:  # no other numbers agree with more pixels of the step, or else the block, before
                    before = labels[place][i - 1, j] if i else labels[place][0, j - 1]
                    agreeing = [
                        (np.array(order)[labels[place][i, j]] == before).sum() for order in permutations(range(3))
                    ]
                    assert agreeing[0] == max(agreeing)


@pytest.mark.parametrize("num_classes", [2, 255, 256])
def test_masks_are_drawn_with_as_many_classes_as_a_byte_can_tell_apart(num_classes):
    masks = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colours = palette(num_classes)
    expected = [colours[number].tolist() if number < num_classes else [255] * 3 for number in range(256)]
    for labels in (masks, masks.astype(np.int64)):
        assert segmentation_figures.coloured(labels, colours).reshape(-1, 3).tolist() == expected
    images, names = np.zeros((1, 3, 16, 16), np.uint8), [f"class {number}" for number in range(num_classes)]
    nats = np.zeros((1, 16, 16), np.float32)
    figure = segmentation_figures.segmentation_figure(images, [masks], [masks.astype(np.int64)], nats, colours, names)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def assert_fixed(features, labels):
    """Each pixel lies in the cluster whose mean is nearest, of features that torch has up-sampled."""
    points = F.interpolate(features.double(), labels.shape, mode="bilinear").flatten(2)[0].T
    labels = torch.from_numpy(labels).flatten()
    means = torch.stack([points[labels == number].mean(0) for number in range(3)])
    assert (torch.cdist(points, means).argmin(1) == labels).float().mean() > 0.999


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--blocks", "2,4,8"], "ddpm: model: blocks=[2, 4, 8]: choose ascending numbers from 0 to 7"),
        (["--steps", "50,50"], "ddpm: model: steps=[50, 50]: choose different numbers from 0 to 999"),
        (["--steps", "5o"], "--steps 5o: write whole numbers, such as 12,340"),
        (
            ["--images", "celeb19"],
            "--images celeb19: it is no folder or picture, and no data set. Did you mean 'celeba19'?",
        ),
        (["--images", "{root}"], "--images {root}: there is no image"),
        (["--images", "{root}/broken.txt"], "--images {root}/broken.txt: it does not decode"),
        (["--pictures", "0,3"], "--pictures 0,3: {pictures} has the pictures 0 to 2"),
        (["--clusters", "0"], "--clusters 0: choose between 1 and 1024, the pixels of a picture at data.image_size=32"),
        (["--clusters", "1025"], "--clusters 1025: choose between 1 and 1024, the pixels of a picture"),
        (
            ["data.image_size=60"],
            "--images {pictures} cannot be clustered at data.image_size=60: images of [60, 60] pixels: both sides must",
        ),
        (["--checkpoint", "nowhere"], "ddpm: model: checkpoint nowhere does not exist"),
        (["--checkpoint", "{run}"], "--checkpoint {run}: its run is not one of pretraining, but on CSV"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--output", "{root}/broken.txt/x.png"], "--output {root}/broken.txt/x.png cannot be written"),
    ],
)
def test_what_cannot_be_clustered_is_said_in_one_line(runs, pictures, arguments, error, tmp_path, capsys):
    (tmp_path / "broken.txt").write_text("no picture")
    names = {"root": tmp_path, "pictures": pictures, "run": runs[0]}
    given = ["--images", str(pictures), "--blocks", "1", "--steps", "9", *(each.format(**names) for each in arguments)]
    given += [] if "--checkpoint" in given else ["preset=untrained"]
    given += [] if "--checkpoint" in given or "data.image_size=60" in given else ["data.image_size=32"]
    given += [] if "--output" in given else ["--output", str(tmp_path / "none.png")]
    assert main(["clusters", *given]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {error.format(**names)}")
    assert told.count("\n") == 1
    assert not (tmp_path / "none.png").exists()
