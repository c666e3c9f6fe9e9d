"""What a run tells its logger, W&B or a CSV file; and the upload of what W&B has kept offline.

python -m experiments.tracking sync                          upload every offline run below runs/ that has ended
python -m experiments.tracking sync --run-root DIR --dry-run   print the commands that would
"""

import argparse
import contextlib
import logging
import netrc
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.files import whole_file
from callbacks.results import read_json
from experiments.config import NOT_IDENTITY, ConfigError, Experiment, flattened, told_in_a_line
from experiments.sweep import is_running

log = logging.getLogger("genpred")
# At the end of an online run. What is not uploaded by then stays in the run's folder: a job that is stopped has little
# time, and one without a network would wait for ever.
SECONDS_TO_UPLOAD = 60.0
SECONDS_TO_DISK = 1.0  # of what is logged; W&B's own 15 are lost when a run is killed


class RunLogger(WandbLogger):
    """Lightning's logger of W&B, for a run whose configuration is complete when it begins, and that outlives W&B.

    Where W&B fails in mid-run, the run goes on, and what it logs from there on is kept offline in a further folder
    under the same id. Where that fails, too, the run goes on without W&B. Both are warnings in the run's log.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._wandb_init.pop("anonymous", None)  # which W&B has given up, and warns of
        self._lost = False

    def log_hyperparams(self, params: Any) -> None:
        """Nothing: the configuration holds what the Trainer hands over here, under names that do not collide."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, images or tables."""
        self._guarded(lambda: super(RunLogger, self).log_metrics(metrics, step))

    def finish(self, results: dict[str, Any]) -> None:
        """Leave the scores of a finished run, with the published figures beside them, and end it.

        Args:
            results: the contents of a ``results.json``.
        """
        if results["variables"]:
            columns = list(dict.fromkeys(metric for scores in results["variables"].values() for metric in scores))
            lines = [[name, *map(scores.get, columns)] for name, scores in results["variables"].items()]
            self.log_table("tables/variables", ["variable", *columns], lines)
        self._guarded(lambda: self.experiment.summary.update(summary(results)))
        self._guarded(lambda: self.experiment.finish())

    @rank_zero_only
    def _guarded(self, write: Callable[[], Any]) -> None:
        if self._lost:
            return
        try:
            write()
            return
        except Exception as error:  # whatever W&B raises, the run is worth more
            log.warning("W&B failed (%s): the run goes on, and is logged offline from here on", _line(error))
        try:
            self.open_offline()
            write()
        except Exception as error:
            self._lost = True
            log.warning("W&B failed again (%s): the run goes on without it", _line(error))

    def open_offline(self) -> None:
        """Leave what is open, and begin the run's next folder, offline."""
        close_wandb()
        self._experiment = None
        self._wandb_init["mode"] = "offline"
        _ = self.experiment


def run_logger(experiment: Experiment, folder: Path, git_commit: str) -> Logger | None:
    """The logger that the setting ``logger`` names; W&B's run has begun when this returns.

    ``logger=wandb`` logs online where one is logged in and W&B can be reached, else offline.

    Args:
        experiment: from ``compose``.
        folder: of the run, in which every file of the logger lies.
        git_commit: of the code that runs.

    Raises:
        ConfigError: W&B is not installed, or ``wandb_online`` is asked for and cannot be had.
    """
    kind = experiment.config["logger"]
    if kind == "none":
        return None
    if kind == "csv":
        # Lightning's logger would delete the file of the part of a run that was interrupted.
        taken = len(list(folder.glob("csv*")))
        return CSVLogger(str(folder), name="", version=f"csv_{taken + 1}" if taken else "csv")
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"logger={kind}: wandb cannot be imported ({_line(error)}): install it, or choose logger=csv"
        ) from error
    settings = {"silent": True, "console": "off", "finish_timeout": SECONDS_TO_UPLOAD}
    if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:  # its name is not promised
        settings["x_transaction_log_flush_interval"] = SECONDS_TO_DISK
    config = experiment.config
    logger = RunLogger(
        name=f"{experiment.name}/{experiment.variant}/seed{config['seed']}",
        save_dir=str(folder),
        id=_run_id(folder / "wandb_id"),
        project=config["project"],
        group=config["group"],
        job_type=config["task"],
        tags=[experiment.method, experiment.dataset, config["preset"]],
        config=run_config(experiment, git_commit),
        mode=_mode(kind),
        settings=settings,
    )
    try:
        _ = logger.experiment
    except Exception as error:
        if kind == "wandb_online":
            raise ConfigError(
                f"logger=wandb_online: {_line(error)}; `wandb login`, or log offline with logger=wandb"
            ) from error
        log.warning("W&B cannot be had online (%s): the run is logged offline", _line(error))
        logger.open_offline()
    return logger


def log_picture(folder: Path, key: str, picture: Path) -> None:
    """Log a picture to the W&B run that a finished run has begun, as `run_logger` logs.

    The run's scores are told again behind it: what is uploaded last stands in W&B's summary.

    Args:
        folder: of the run, with ``wandb_id`` in it.
        key: the picture's name in W&B.
        picture: a file.

    Raises:
        ConfigError: W&B is not installed.
    """
    from omegaconf import OmegaConf

    results = read_json(folder / "results.json")
    overrides = shlex.split(results["command"])[4:]
    # The project is no part of the stored configuration; the group is not stored at all, and W&B keeps the one it has.
    projects = [each.removeprefix("project=") for each in overrides if each.startswith("project=")]
    default = OmegaConf.load(Path(__file__).with_name("defaults.yaml"))["project"]
    where = {"logger": "wandb", "project": [default, *projects][-1], "group": None}
    experiment = Experiment(
        results["experiment"],
        results["method"],
        results["dataset"],
        results["variant"],
        OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) | where,
        tuple(overrides),
    )
    logger = run_logger(experiment, folder, results["git_commit"])
    logger.log_image(key, [str(picture)])
    logger.finish(results)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@rank_zero_only
def _run_id(path: Path) -> str:
    """The id of a run, stored before anything is logged: a run that is started again continues the same W&B run."""
    if not path.exists():
        # An agent of W&B has chosen the id already.
        chosen = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        with whole_file(path) as file:
            file.write((chosen or secrets.token_hex(4)).encode())
    return path.read_text().strip()


def _mode(kind: str) -> str:
    if kind == "wandb_online":
        return "online"
    if os.environ.get("WANDB_MODE") == "disabled":
        return "disabled"
    return "online" if logged_in() else "offline"


def logged_in() -> bool:
    """Whether W&B knows its user here, and is not told to stay offline."""
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].strip("/")
        path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()  # where wandb looks
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def run_config(experiment: Experiment, git_commit: str) -> dict[str, Any]:
    """What W&B shows of a run's configuration, flat, so that a table has a column for each key.

    ``label`` is the method with what makes the variant: runs that differ in seed or data set alone share it.
    """
    changes = [each for each in experiment.overrides if each.split("=")[0] not in NOT_IDENTITY]
    return {
        **flattened(experiment.identity),
        "experiment": experiment.name,
        "method": experiment.method,
        "dataset": experiment.dataset,
        "variant": experiment.variant,
        "label": " ".join([experiment.method, *changes]),
        "seed": experiment.config["seed"],
        "git_commit": git_commit,
    }


def summary(results: dict[str, Any]) -> dict[str, float]:
    """The scores of a run, the published figures, and by how much ours are above them.

    Args:
        results: the contents of a ``results.json``.
    """
    metrics, published = results["metrics"], results["published"]
    found = dict(metrics)
    for key, figure in published.items():
        found[f"published/{key}"] = figure["mean"]
        if figure["std"] is not None:
            found[f"published_std/{key}"] = figure["std"]
        found[f"difference/{key}"] = metrics[key] - figure["mean"]
    return found


def close_wandb() -> None:
    """End what W&B has open after a failure, as failed; does nothing where no run is open."""
    if wandb := sys.modules.get("wandb"):
        for end in (lambda: wandb.finish(exit_code=1), wandb.teardown):
            with contextlib.suppress(Exception):  # it must not hide the failure itself
                end()
        wandb.run = None  # which stays after a failure, and would be taken for the next run


def offline_runs(run_root: Path) -> Iterator[tuple[Path, str, list[Path]]]:
    """Run folder, id, and W&B's folders in the order in which they began, of each run that was logged offline."""
    found: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for folder in sorted(run_root.rglob("wandb/offline-run-*"), key=lambda path: path.name):
        if match := re.fullmatch(r"offline-run-\d{8}_\d{6}-(.+)", folder.name):
            found[folder.parents[1], match[1]].append(folder)
    for (run, run_id), folders in sorted(found.items()):
        yield run, run_id, folders


def sync(run_root: Path, entity: str | None, dry_run: bool) -> int:
    """Upload offline runs, each by one command with all its folders, so that its parts follow one another.

    Args:
        run_root: below which runs lie.
        entity: user or team on W&B; None: that of the login.
        dry_run: print the commands alone.

    Returns:
        How many runs could not be uploaded.

    Raises:
        ConfigError: there is no such folder.
    """
    if not run_root.is_dir():
        raise ConfigError(f"--run-root {run_root}: there is no such folder")
    program = [found] if (found := shutil.which("wandb")) else [sys.executable, "-m", "wandb"]
    failed = 0
    for run, _, folders in offline_runs(run_root):
        if is_running(run):  # W&B would take what there is for the whole, and leave the rest where it is
            print(f"{run} still runs: left for later", flush=True)
            continue
        if all(list(folder.glob("*.wandb.synced")) for folder in folders):
            continue
        command = [*program, "sync", *(["--entity", entity] if entity else []), *map(str, folders)]
        print(shlex.join(["wandb", *command[len(program) :]]), flush=True)
        failed += 0 if dry_run else bool(subprocess.run(command).returncode)
    return failed


@told_in_a_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where an upload failed, 2 where there is nothing to read."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tracking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="sync")
    each = commands.add_parser("sync", help="upload offline runs")
    each.add_argument("--run-root", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    each.add_argument("--entity", help="user or team on W&B; default: that of the login")
    each.add_argument("--dry-run", action="store_true", help="print the commands alone")
    arguments = parser.parse_args(argv)
    failed = sync(arguments.run_root, arguments.entity, arguments.dry_run)
    if failed:
        print(f"{failed} not uploaded; the same command tries again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
