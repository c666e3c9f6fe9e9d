"""Configurations: composition, the schema, and the one line that a wrong one earns."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from PIL import Image

from experiments import config
from experiments.build import build_data
from experiments.config import ConfigError, compose, differences, experiments
from experiments.run import main

EVERY = [name for names in experiments().values() for name in names]


def test_layers_are_laid_over_each_other_in_order():
    default = compose("gpvae_hmnist").config
    assert default["model"]["latent_dim"] == 256  # tuned pair
    assert default["model"]["mask_channel"] is False  # constructor
    assert default["trainer"]["max_steps"] == 18750  # data set
    assert default["trainer"]["gradient_clip_val"] == 1e4  # method
    assert default["model"]["num_features"] == 784  # determined by the data
    plus = compose("gpvae_hmnist", ["preset=plus", "model.latent_dim=8"]).config
    assert plus["model"]["mask_channel"] is True
    assert plus["model"]["latent_dim"] == 8


def test_short_keys_find_their_place_and_seeds_reach_the_data():
    resolved = compose("gpvae_physionet", ["evaluation=published", "seed=3"]).config
    assert resolved["data"]["evaluation"] == "published"
    assert resolved["data"]["seed"] == 3


def test_the_variant_names_what_differs_and_nothing_else():
    default = compose("gpvae_physionet")
    assert default.variant == "default"
    same = compose(
        "gpvae_physionet", ["seed=4", "run_root=elsewhere", "logger=none", "model.latent_dim=35", "preset=paper"]
    )
    assert same.variant == "default"
    assert same.folder.as_posix() == "elsewhere/gpvae_physionet/default/seed4"
    changed = compose("gpvae_physionet", ["model.latent_dim=34"])
    assert changed.variant != "default"
    assert changed.variant == compose("gpvae_physionet", ["latent_dim=34"]).variant
    assert changed.variant != compose("gpvae_physionet", ["model.latent_dim=33"]).variant


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["csdi_sprites"],
            "experiment 'csdi_sprites' does not exist: experiments/methods/csdi.yaml says what it is not for, and why",
        ),
        (["gpvae_physionte"], "experiment 'gpvae_physionte' does not exist. Did you mean 'gpvae_physionet'?"),
        (
            ["gpvae_digits", "model.lenght_scale=2"],
            "command line: model.lenght_scale is not known. Did you mean 'length_scale'?",
        ),
        (["gpvae_digits", "lenght_scale=2"], "command line: lenght_scale is not known. Did you mean 'length_scale'?"),
        (
            ["gpvae_digits", "trainer.max_step=2"],
            "command line: trainer.max_step is not known. Did you mean 'max_steps'?",
        ),
        (["gpvae_digits", "data.bach_size=2"], "command line: data.bach_size is not known. Did you mean 'batch_size'?"),
        (["gpvae_digits", "sede=2"], "command line: sede is not known. Did you mean 'seed'?"),
        (["gpvae_digits", "trainer.max_steps=abc"], "command line: trainer.max_steps='abc' is of a wrong type"),
        (["gpvae_digits", "model.latent_dim=1.5"], "command line: model.latent_dim=1.5 is of a wrong type"),
        (["gpvae_digits", "model.mask_channel=1"], "command line: model.mask_channel=1 is of a wrong type"),
        (["gpvae_digits", "model.kernel=no"], "command line: model.kernel=False is of a wrong type"),
        (["gpvae_digits", "model=3"], "command line: model=3 must hold keys: "),
        (["gpvae_digits", "checkpoint.mode=least"], "command line: checkpoint.mode='least' is of a wrong type"),
        (
            ["rgb_celeba19", "model.backbone=3"],
            "command line: model.backbone=3 must hold keys: ",
        ),
        (
            ["ddpm_celeba19", "model.backbone.block=[1]"],
            "command line: model.backbone.block is not known. Did you mean 'blocks'?",
        ),
        (["ddpm_celeba19", "blocks=1"], "command line: model.backbone.blocks=1 is of a wrong type"),
        (["ddpm_celeba19", "bloks=[1]"], "command line: bloks is not known. Did you mean 'blocks'?"),
        (
            ["ddpm_celeba19", "model.backbone.checkpoint=published:ddpm/ffqh", "run_root=RUNS"],
            "ddpm_celeba19: model.backbone.checkpoint=published:ddpm/ffqh is not known. Did you mean 'ddpm/ffhq'?",
        ),
        (["gpvae_hmnist", "preset=pluss"], "preset 'pluss' of gpvae_hmnist does not exist. Did you mean 'plus'?"),
        (["gpvae_digits", "seed"], "command line: 'seed' is not of the form key=value"),
        (
            ["gpvae_digits", "model.class=nowhere.GPVAE"],
            "command line: model.class: class 'nowhere.GPVAE' cannot be imported",
        ),
        (["gpvae_digits", "data.rotation_std=-1.0"], "data set digits: rotation_std=-1.0"),
        (["gpvae_digits", "model.remasking=1.5", "run_root=RUNS"], "model: remasking=1.5 must lie in [0, 1]"),
    ],
)
def test_a_wrong_configuration_stops_in_one_line(arguments, message, capsys, tmp_path):
    assert main([argument.replace("RUNS", str(tmp_path / "runs")) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_wrong_key_or_type_in_a_file_names_the_file(tmp_path, monkeypatch):
    import shutil

    root = tmp_path / "experiments"
    shutil.copytree(config.ROOT, root, ignore=shutil.ignore_patterns("__pycache__", "results"))
    monkeypatch.setattr(config, "ROOT", root)
    path = root / "tuned" / "gpvae_hmnist.yaml"
    original = path.read_text()
    path.write_text(original.replace("latent_dim: 256", "latent_dims: 256"))
    with pytest.raises(ConfigError, match=r"^experiments/tuned/gpvae_hmnist.yaml: model.latent_dims is not known. Did"):
        compose("gpvae_hmnist")
    path.write_text(original.replace("remasking: 0.5", "remasking: half"))
    with pytest.raises(ConfigError, match=r"^experiments/tuned/gpvae_hmnist.yaml: presets.plus: model.remasking='half"):
        compose("gpvae_hmnist")  # checked even when the preset is not chosen
    path.write_text(original + "\n  bad: [indent")
    with pytest.raises(ConfigError, match=r"^experiments/tuned/gpvae_hmnist.yaml: not valid YAML"):
        compose("gpvae_hmnist")


@pytest.fixture
def own_table(tmp_path):
    """A table of a user's own, which the experiments on data set csv have to be given."""
    path = tmp_path / "table.csv"
    path.write_text("id,time,a,b\ns,0,1,2\ns,1,3,4\n")
    return f"data.path={path}"


def test_what_only_a_user_can_name_is_asked_for_and_taken(own_table, capsys):
    for arguments in (["gpvae_csv"], ["gpvae_csv", "--print"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith("error: data set csv: data.path is not set: name your table")
    experiment = compose("gpvae_csv", [own_table])
    assert (experiment.config["model"]["num_features"], experiment.config["model"]["num_steps"]) == (2, 2)
    assert experiment.variant != "default"
    assert compose("gpvae_csv", [own_table, "model.latent_dim=35", "data.window=null"]).variant == experiment.variant
    assert compose("gpvae_csv", [own_table, "model.latent_dim=34"]).variant != experiment.variant


@pytest.fixture
def own_folder(tmp_path):
    """Two images of a user's own, one of which is annotated."""
    for name in ("images/a.jpg", "images/b.jpg", "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = Image.new("L", (32, 32), 0)
        image.paste(1, (8, 8, 24, 24))
        image.save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", EVERY)
def test_every_experiment_resolves_to_plain_values_for_every_preset(name, own_table, own_folder):
    def walk(value):
        if isinstance(value, dict):
            return all(walk(each) for each in value.values())
        if isinstance(value, list):
            return all(walk(each) for each in value)
        return type(value) in (str, int, float, bool, type(None))

    presets = ["paper"]
    if name in ("gpvae_hmnist", "gpvae_physionet") or name.startswith("tabddpm_"):
        presets.append("plus")
    if name.startswith("ddpm_"):
        presets += ["small", "untrained"]
    for preset in presets:
        own = [own_table] if name.endswith("_csv") else []
        own += [f"data.path={own_folder}"] if name.endswith("_folder") else []
        own += [f"data.paths=[{own_folder}]"] if name.endswith("_images") else []
        own += ["data.target=b"] if name in ("real_csv", "smote_csv", "tabddpm_csv") else []
        assert walk(compose(name, [f"preset={preset}", *own]).config)


def test_every_yaml_opens_with_what_it_is():
    for path in config.ROOT.glob("*/*.yaml"):
        assert path.read_text().startswith("# "), path


def test_print_shows_the_resolved_configuration_and_stops(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["gpvae_hmnist", "seed=7", "--print"]) == 0
    out = capsys.readouterr().out
    assert OmegaConf.to_container(OmegaConf.create(out)) == compose("gpvae_hmnist", ["seed=7"]).config
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_experiment_without_importing_torch():
    code = "import sys\ntry:\n  from experiments.run import main; main(['--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False False")
    listed = done.stdout.split()
    assert set(EVERY) <= set(listed)
    assert "imputation:" in listed


def test_differences_name_keys_with_both_values():
    lines = differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
    assert lines == ["a.c: stored 2, now 3", "d: stored '(absent)', now 4"]


@pytest.mark.parametrize(
    ("name", "overrides", "comparable"),
    [
        ("gpvae_hmnist", ["data.data_seed=1", "data.fit_on=train"], True),
        ("gpvae_hmnist", ["data.missingness=random"], False),
        ("gpvae_hmnist", ["data.num_frames=5"], False),
        ("gpvae_hmnist", ["data.test_rows=100"], False),
        ("gpvae_sprites", ["data.mask_unit=pixel"], True),
        ("gpvae_sprites", ["data.test_rows=100"], False),
        ("gpvae_sprites", ["data.missing_rate=0.5"], False),
        ("gpvae_physionet", ["data.split_seed=3"], True),
        ("gpvae_physionet", ["data.test_rows=100"], False),
        ("gpvae_physionet", ["data.train_rows=100", "data.validation_rows=10"], True),
        ("gpvae_physionet", ["data.missingness=mar"], False),
        ("gpvae_physionet", ["data.holdout_fraction=0.2"], False),
    ],
)
def test_published_figures_say_nothing_of_other_gaps_or_rows(name, overrides, comparable):
    assert build_data(compose(name, overrides)).comparable is comparable
