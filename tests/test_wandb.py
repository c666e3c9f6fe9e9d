"""W&B: what a run leaves there, interrupted, killed or on two processes; uploading later; its sweeps."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from experiments import build, figures, grid, sweep, tracking
from experiments.config import ConfigError, compose, config_hash
from experiments.grid import cells, resolve
from experiments.run import main
from lightning_modules.imputation.vae import VAE

ROOT = Path(__file__).parents[1]
STEPS = 6
SMALL = [
    "data.evaluation_samples=5", "data.batch_size=5", f"trainer.max_steps={STEPS}", "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1", "checkpoint.every_n_steps=1", "model.latent_dim=4", "model.encoder_sizes=[8]",
    "model.decoder_sizes=[8]", "logger=wandb", "group=series", "project=trial", "seed=2",
]  # fmt: skip
PUBLISHED = {
    "test/mse": {"mean": 0.25, "std": 0.5, "source": "a book"},
    "test/mae": {"mean": 0.125, "std": None, "source": "a book"},
}


@pytest.fixture
def arguments(tmp_path):
    """A quick experiment on a table of two variables, and where it goes."""
    generator, parts = np.random.default_rng(0), []
    for number in range(20):
        values = np.where(generator.random((6, 2)) < 0.3, np.nan, generator.normal(size=(6, 2)))
        parts.append(pd.DataFrame({"id": number, "time": range(6), "a": values[:, 0], "b": values[:, 1]}))
    pd.concat(parts).to_csv(tmp_path / "series.csv", index=False)
    return ["vae_csv", *SMALL, f"data.path={tmp_path / 'series.csv'}", f"run_root={tmp_path / 'runs'}"]


def folder_of(arguments):
    return compose(arguments[0], arguments[1:]).folder


def wandb_records(path):
    """The records of a `.wandb` file: protobufs in blocks of 32 KiB, in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, pieces, records = 7, [], []
    while position + 7 <= len(content):
        rest = 32768 - position % 32768
        _, size, kind = struct.unpack_from("<IHB", content, position)
        if rest < 7 or kind == 0:
            position += rest
            continue
        pieces = [] if kind in (1, 2) else pieces  # a whole record, or the first piece of one
        pieces.append(content[position + 7 : position + 7 + size])
        position += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            records.append(wandb_internal_pb2.Record.FromString(b"".join(pieces)))
    return records


def items(updates):
    return {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in updates}


def read_wandb(folder):
    """Id, configuration, history, summary and exit code (None: no record of an end) of each W&B file of a run."""
    tracking.close_wandb()  # waits for W&B's process, which may still write
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda each: each.stat().st_mtime_ns):
        found = {"id": None, "config": {}, "history": [], "summary": {}, "exit": None, "run": None, "path": path}
        for record in wandb_records(path):
            match record.WhichOneof("record_type"):
                case "run":
                    found["id"], found["run"] = record.run.run_id, record.run
                    found["config"] |= items(record.run.config.update)
                case "config":
                    found["config"] |= items(record.config.update)
                case "history":
                    found["history"].append(items(record.history.item))
                case "summary":
                    found["summary"] |= items(record.summary.update)
                case "exit":
                    found["exit"] = record.exit.exit_code
        yield found


class InterruptionError(Exception):
    pass


def rows_of(part, key="train/loss"):
    return [row["trainer/global_step"] for row in part["history"] if key in row]


def test_a_run_and_its_continuation_are_one_run_of_wandb_with_all_that_it_knows(arguments, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(build, "published_figures", lambda name: PUBLISHED)

    def fail(self, batch, batch_index):
        raise InterruptionError

    with monkeypatch.context() as patch:
        patch.setattr(VAE, "test_step", fail)
        with pytest.raises(InterruptionError):
            main(arguments)
    assert main(arguments) == 0
    assert list(Path.cwd().iterdir()) == []
    folder = folder_of(arguments)
    results = json.loads((folder / "results.json").read_text())
    first, second = read_wandb(folder)
    run_id = (folder / "wandb_id").read_text()
    assert (first["id"], second["id"]) == (run_id, run_id)
    assert (first["exit"], second["exit"]) == (1, 0)
    assert rows_of(first) == list(range(STEPS))
    assert {"train/nll", "train/kl_mean_part", "val/mse", "val/mae", "val/nll"} <= set().union(*first["history"])
    for part in (first, second):
        run, config = part["run"], part["config"]
        assert (run.project, run.run_group, run.job_type) == ("trial", "series", "imputation")
        assert list(run.tags) == ["vae", "csv", "paper"]
        assert run.display_name == f"vae_csv/{results['variant']}/seed2"
        wandb_own = {key for key in config if key.startswith("_")}
        assert not [key for key in config.keys() - wandb_own if isinstance(config[key], dict)]
        assert config["model.latent_dim"] == 4
        assert config["model.class"] == "lightning_modules.imputation.vae.VAE"
        assert config["data.batch_size"] == 5
        assert config["trainer.max_steps"] == STEPS
        assert "latent_dim" not in config
        for key in ("experiment", "method", "dataset", "variant", "seed", "git_commit"):
            assert config[key] == results[key], key
        assert config["label"].startswith("vae data.evaluation_samples=5 data.batch_size=5 ")
        assert not [word for word in config["label"].split() if word.split("=")[0] in ("seed", "run_root", "group")]
    summary = second["summary"]
    for metric, value in results["metrics"].items():
        assert summary[metric] == value
    mse, mae = results["metrics"]["test/mse"], results["metrics"]["test/mae"]
    compared = {key: value for key, value in summary.items() if key.startswith(("published", "difference"))}
    assert compared == {
        "published/test/mse": 0.25, "published_std/test/mse": 0.5, "difference/test/mse": mse - 0.25,
        "published/test/mae": 0.125, "difference/test/mae": mae - 0.125,
    }  # fmt: skip
    files, media = second["path"].parent / "files", {}
    for row in second["history"]:
        media |= row
    (image,) = media["figures/imputations/filenames"]
    pictures = [np.asarray(Image.open(path)) for path in (files / image, folder / "figures" / "imputations.png")]
    np.testing.assert_array_equal(*pictures)
    table = json.loads((files / media["tables/variables/path"]).read_text())
    lines = {name: dict(zip(table["columns"][1:], scores, strict=True)) for name, *scores in table["data"]}
    assert list(lines) == ["a", "b"]
    assert lines == results["variables"]


def test_a_picture_of_several_runs_is_logged_to_each(arguments, tmp_path):
    folders = []
    for name, seed in (("vae_csv", 2), ("vae_csv", 3)):
        each = [name, *arguments[1:], f"seed={seed}"]
        assert main(each) == 0
        folders.append(folder_of(each))
    output = tmp_path / "both.png"
    assert figures.main(["imputations", *map(str, folders), "--wandb", "--output", str(output)]) == 0
    for folder, seed in zip(folders, (2, 3), strict=True):
        scored, pictured = read_wandb(folder)
        assert pictured["id"] == scored["id"] == (folder / "wandb_id").read_text()
        assert pictured["exit"] == 0
        run, before = pictured["run"], scored["run"]
        assert (run.project, run.job_type, run.display_name) == (before.project, before.job_type, before.display_name)
        assert (run.project, run.display_name.split("/")[-1]) == ("trial", f"seed{seed}")
        assert {key: pictured["config"][key] for key in scored["config"] if key[0] != "_"} == {
            key: value for key, value in scored["config"].items() if key[0] != "_"
        }
        (row,) = [row for row in pictured["history"] if "figures/comparison/filenames" in row]
        (image,) = row["figures/comparison/filenames"]
        pictures = [np.asarray(Image.open(path)) for path in (pictured["path"].parent / "files" / image, output)]
        np.testing.assert_array_equal(*pictures)
        for metric, value in json.loads((folder / "results.json").read_text())["metrics"].items():
            assert pictured["summary"][metric] == value


def test_where_a_run_is_logged_is_no_part_of_what_it_is():
    plain, grouped = compose("mean_digits"), compose("mean_digits", ["group=here", "project=there"])
    assert (plain.identity, plain.folder) == (grouped.identity, grouped.folder)
    assert config_hash(plain.identity) == config_hash(grouped.identity)
    assert (plain.config["project"], plain.config["group"]) == ("genpred", None)


# In its fourth step, before anything of it is logged, a run is killed, or the process in which W&B works.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from experiments.run import main
from lightning_modules.imputation.vae import VAE

original, calls = VAE.training_step, 0

def of_wandb(stat):
    pid, command, _, parent = stat.read_text().split()[:4]
    return command == "(wandb-core)" and int(parent) == os.getpid()

def training_step(self, batch, batch_index):
    global calls
    calls += 1
    if calls == 4:
        time.sleep(3)  # W&B's process writes what it has been given
        if sys.argv[1] == "run":
            os.kill(os.getpid(), signal.SIGKILL)
        (process,) = filter(of_wandb, Path("/proc").glob("[0-9]*/stat"))
        os.kill(int(process.parent.name), signal.SIGKILL)
        time.sleep(0.5)
    return original(self, batch, batch_index)

VAE.training_step = training_step
sys.exit(main(sys.argv[2:]))
"""


def run_until_killed(what, arguments):
    command = [sys.executable, "-c", KILLED, what, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


@pytest.mark.slow
def test_a_killed_run_keeps_its_history_and_its_id(arguments):
    done = run_until_killed("run", arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert main(arguments) == 0
    folder = folder_of(arguments)
    first, second = read_wandb(folder)
    assert first["id"] == second["id"] == (folder / "wandb_id").read_text()
    assert (first["exit"], second["exit"]) == (None, 0)
    assert rows_of(first) == [0, 1, 2]
    assert rows_of(second) == [3, 4, 5]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")
def test_a_run_outlives_wandb(arguments):
    done = run_until_killed("wandb", arguments)
    assert done.returncode == 0, done.stderr
    folder = folder_of(arguments)
    (warning,) = [
        line for line in (folder / "log.txt").read_text().splitlines() if "WARNING genpred: W&B failed" in line
    ]
    assert warning.endswith("the run goes on, and is logged offline from here on")
    first, second = read_wandb(folder)
    assert first["id"] == second["id"] == (folder / "wandb_id").read_text()
    assert (rows_of(first), rows_of(second)) == ([0, 1, 2], [3, 4, 5])
    assert (first["exit"], second["exit"]) == (None, 0)
    scores = json.loads((folder / "results.json").read_text())["metrics"]
    assert {key: second["summary"][key] for key in scores} == scores


@pytest.mark.slow
def test_of_two_processes_one_writes(arguments):
    more = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu", "trainer.val_check_interval=1"]
    command = [sys.executable, "-m", "experiments.run", *arguments, *more]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    folder = folder_of([*arguments, *more])
    (only,) = read_wandb(folder)
    assert json.loads((folder / "results.json").read_text())["world_size"] == 2
    assert (only["id"], only["exit"]) == ((folder / "wandb_id").read_text(), 0)
    assert rows_of(only) == list(range(STEPS))
    assert len(list(folder.glob("wandb/*run-*"))) == 1


@pytest.fixture
def logger(arguments):
    """The logger of a run."""
    experiment = compose(arguments[0], arguments[1:])
    experiment.folder.mkdir(parents=True)
    yield tracking.run_logger(experiment, experiment.folder, "commit")
    tracking.close_wandb()


def test_what_cannot_be_mended_is_told_once_and_stops_nothing(logger, caplog, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wandb.init", refuse)
    monkeypatch.setattr(type(logger.experiment), "log", refuse)
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0}, step)
    told = [record.getMessage() for record in caplog.records if record.name == "genpred"]
    assert len(told) == 2
    assert "the run goes on without it" in told[1]


def test_without_a_network_a_run_is_logged_offline(arguments, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in (("API_KEY", "a" * 40), ("BASE_URL", "http://127.0.0.1:9"), ("INIT_TIMEOUT", "1")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracking.close_wandb()  # which reads these variables once
    experiment = compose(arguments[0], arguments[1:])
    experiment.folder.mkdir(parents=True)
    logger = tracking.run_logger(experiment, experiment.folder, "")
    logger.log_metrics({"train/loss": 1.0}, 0)
    logger.experiment.finish()
    assert "W&B cannot be had online (" in caplog.text
    parts = [part for part in read_wandb(experiment.folder) if part["history"]]
    assert [rows_of(part) for part in parts] == [[0]]
    online = compose(arguments[0], [*arguments[1:], "logger=wandb_online", "seed=3"])
    online.folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"logger=wandb_online: .*`wandb login`, or log offline with logger=wandb$"):
        tracking.run_logger(online, online.folder, "")
    tracking.close_wandb()


def test_without_wandb_nothing_begins(arguments, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(": install it, or choose logger=csv")
    assert not list(folder_of(arguments).glob("checkpoints/*"))


def test_who_asks_for_nothing_gets_nothing(arguments, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    experiment = compose(arguments[0], arguments[1:])
    experiment.folder.mkdir(parents=True)
    logger = tracking.run_logger(experiment, experiment.folder, "")
    logger.log_metrics({"train/loss": 1.0}, 0)
    assert not list(experiment.folder.glob("wandb/**/*.wandb"))
    tracking.close_wandb()


@pytest.mark.parametrize(
    ("variables", "netrc", "online"),
    [
        ({}, None, False),
        ({}, "machine api.wandb.ai login user password key", True),
        ({}, "machine github.com login user password key", False),
        ({}, "not a netrc file", False),
        ({"WANDB_API_KEY": "key"}, None, True),
        ({"WANDB_API_KEY": "key", "WANDB_MODE": "offline"}, None, False),
        ({"WANDB_MODE": "disabled"}, "machine api.wandb.ai login user password key", False),
        ({"WANDB_BASE_URL": "https://wandb.lab.org/"}, "machine api.wandb.ai login user password key", False),
        ({"WANDB_BASE_URL": "https://wandb.lab.org/"}, "machine wandb.lab.org login user password key", True),
    ],
)
@pytest.mark.parametrize("place", ["home", "variable"])
def test_online_only_for_who_is_logged_in(variables, netrc, online, place, tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / ".netrc" if place == "home" else tmp_path / "somewhere"
    if place == "variable":
        monkeypatch.setenv("NETRC", str(path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        path.write_text(netrc + "\n")
        path.chmod(0o600)
    assert tracking.logged_in() is online


FAKE = """#!/bin/sh
for each in "$@"; do printf '%s\\n' "$each"; done >> "$0.log"
echo end >> "$0.log"
case "$*" in *bad00000*) exit 1;; esac
"""


@pytest.fixture
def fake_wandb(tmp_path, monkeypatch):
    """A command `wandb` that notes its arguments, and fails for one run; a function that reads its notes."""
    program = tmp_path / "bin" / "wandb"
    program.parent.mkdir()
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    log = program.with_name("wandb.log")
    return lambda: [call.split() for call in log.read_text().split("end\n")[:-1]] if log.exists() else []


def offline(run, *stamped, synced=()):
    for name in stamped:
        folder = run / "wandb" / f"offline-run-{name}"
        folder.mkdir(parents=True)
        file = folder / f"run-{name.split('-')[1]}.wandb"
        file.touch()
        if name in synced:
            file.with_name(f"{file.name}.synced").touch()
    return [str(run / "wandb" / f"offline-run-{name}") for name in sorted(stamped)]


def test_the_parts_of_a_run_are_uploaded_together_in_order(tmp_path, fake_wandb, capsys):
    root = tmp_path / "runs"
    one = offline(root / "a/default/seed0", "20260102_000000-aaaa0000", "20260101_235959-aaaa0000")
    two = offline(root / "b/default/seed0", "20260101_000000-bbbb0000", "20251231_000000-bad00000")
    half = ("20260101_000000-cccc0000", "20260103_000000-cccc0000")
    three = offline(root / "c/default/seed0", *half, synced=half[:1])
    offline(root / "d/default/seed0", "20260101_000000-dddd0000", synced=["20260101_000000-dddd0000"])
    offline(root / "e/default/seed0", "20260101_000000-eeee0000")
    expected = [["sync", *one], ["sync", two[0]], ["sync", two[1]], ["sync", *three]]
    command = ["sync", "--run-root", str(root)]
    with filelock.FileLock(root / "e/default/seed0/.lock"):
        assert tracking.main([*command, "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1:] for line in lines if line.startswith("wandb ")] == expected
        assert f"{root / 'e/default/seed0'} still runs: left for later" in lines
        assert fake_wandb() == []
        assert tracking.main(command) == 1
    assert fake_wandb() == expected
    assert capsys.readouterr().err == "1 not uploaded; the same command tries again\n"
    assert tracking.main(["sync", "--run-root", str(root / "e"), "--entity", "team"]) == 0
    assert fake_wandb()[-1][:3] == ["sync", "--entity", "team"]
    assert tracking.main(["sync", "--run-root", str(tmp_path / "absent")]) == 2
    assert "absent: there is no such folder" in capsys.readouterr().err


def test_an_agent_of_wandb_runs_each_cell_once(tmp_path, monkeypatch, capsys):
    """The agent is W&B's own; processes it would start are noted."""
    from wandb import wandb_agent

    (tmp_path / "sweeps").mkdir()
    monkeypatch.setattr(grid, "SWEEPS", tmp_path / "sweeps")
    (tmp_path / "sweeps" / "small.yaml").write_text(
        "blocks: [{methods: [mean, forward], datasets: [digits], seeds: [0, 1], exclude: [{method: mean, seed: 1}]}]"
    )
    file = tmp_path / "sweep.yaml"
    more = ["data.test_rows=60", f"run_root={tmp_path}"]
    assert sweep.main(["small", "--wandb", "--output", str(file), *more, "project=trial"]) == 0
    assert sweep.main(["small", "--wandb", *more, "project=trial"]) == 0
    assert capsys.readouterr().out == file.read_text()
    definition = yaml.safe_load(file.read_text())
    assert (definition["name"], definition["project"], definition["method"]) == ("small", "trial", "grid")
    assert definition.keys() == {"name", "project", "method", "program", "command", "parameters"}
    assert (ROOT / definition["program"]).is_file()
    ((parameter, values),) = definition["parameters"].items()
    assert values.keys() == {"values"}
    commands, executed = [], []

    class Noted:
        def __init__(self, command, env, forward_signals):
            commands.append(command)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "a_sweep")
    monkeypatch.setattr(wandb_agent, "AgentProcess", Noted)
    monkeypatch.setattr(build, "execute", executed.append)
    agent = wandb_agent.Agent.__new__(wandb_agent.Agent)
    agent._sweep_command, agent._in_jupyter, agent._function = definition["command"], False, None
    agent._run_processes, agent._forward_signals = {}, False
    for number, value in enumerate(values["values"]):
        told = {"program": definition["program"], "run_id": f"run{number}", "args": {parameter: {"value": value}}}
        agent._command_run(told)
    monkeypatch.delenv("WANDB_RUN_ID")
    for command in commands:
        assert command[:5] == ["/usr/bin/env", "python", "-m", "experiments.sweep", "small"]
        assert sweep.main(command[4:]) == 0
    assert [(each.name, each.config["seed"]) for each in executed] == [
        (cell.experiment, cell.seed) for cell in cells("small")
    ]
    assert [each.config["group"] for each in executed] == ["small"] * 3
    assert {each.config["data"]["test_rows"] for each in executed} == {60}
    assert len({each.folder for each in executed}) == 3
    assert sweep.main(["small", "--list", "--output", str(file)]) == 2
    assert "--output" in capsys.readouterr().err


def test_a_sweep_groups_its_runs_unless_told_otherwise():
    assert {experiment.config["group"] for _, experiment in resolve("table3_small")} == {"table3_small"}
    assert {experiment.config["group"] for _, experiment in resolve("table3_small", ["group=mine"])} == {"mine"}


def test_an_agent_chooses_the_id_of_a_new_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "chosen00")
    assert tracking._run_id(tmp_path / "alone") != "chosen00"
    monkeypatch.setenv("WANDB_SWEEP_ID", "a_sweep")
    assert tracking._run_id(tmp_path / "of an agent") == "chosen00"
    monkeypatch.setenv("WANDB_RUN_ID", "another0")
    assert tracking._run_id(tmp_path / "of an agent") == "chosen00"
