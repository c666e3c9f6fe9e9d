"""From a resolved configuration to a finished run folder."""

import contextlib
import datetime
import errno
import importlib.metadata
import json
import logging
import math
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import OmegaConf

from callbacks import signals
from callbacks.checkpoints import (
    PREVIOUS,
    AtomicCheckpointIO,
    checkpoint_callbacks,
    is_out_of_memory,
    latest_checkpoint,
)
from callbacks.collapse import PosteriorCollapse
from callbacks.diffusion_metrics import DiffusionMetrics
from callbacks.figures import ImputationFigure
from callbacks.files import LogFile, WriteError, whole_file
from callbacks.finite import FiniteGradients
from callbacks.imputation_metrics import ImputationMetrics
from callbacks.preemption import Preemption
from callbacks.progress import progress_bars
from callbacks.results import RunStatistics, ValidationScores, read_json, write_json_atomically
from callbacks.rng import RandomState
from callbacks.same_data import SameData
from callbacks.sample_grid import SampleGrid
from callbacks.segmentation_figures import SegmentationFigure
from callbacks.segmentation_metrics import SegmentationMetrics
from callbacks.synthesis_figures import SynthesisFigure
from callbacks.synthesis_metrics import SynthesisMetrics
from callbacks.synthetic_table import SyntheticTable
from datamodules import sources
from datamodules.source_table_segmentation import PUBLISHED_WEIGHTS
from experiments import processes, slurm
from experiments.config import ConfigError, Experiment, compose, config_hash, differences, load_class, nearest
from experiments.report import print_run, published_figures
from experiments.tracking import RunLogger, close_wandb, run_logger

log = logging.getLogger("genpred")
METRICS = {
    "imputation": ImputationMetrics,
    "synthesis": SynthesisMetrics,
    "segmentation": SegmentationMetrics,
    "pretraining": DiffusionMetrics,
}


BF16_OF_CPUS = ("avx512_bf16", "amx_bf16", "sve_bf16")  # others have to emulate it
PUBLISHED = "published:"  # in a configuration, before the name of weights that can be downloaded


class RunError(RuntimeError):
    """A run that cannot go on; its message says what to do."""


def build_module(experiment: Experiment) -> L.LightningModule:
    """The method, from plain values only."""
    return _construct(experiment.config["model"], f"{experiment.name}: model")


def build_data(experiment: Experiment) -> L.LightningDataModule:
    """The data set's module."""
    return _construct(experiment.config["data"], f"{experiment.name}: data")


def _construct(section: dict[str, Any], origin: str) -> Any:
    arguments = {key: _argument(value, f"{origin}.{key}") for key, value in section.items() if key != "class"}
    try:
        return load_class(section["class"], origin)(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{origin}: {error}") from error


def _argument(value: Any, origin: str) -> Any:
    """An argument of a constructor: an object where it names a class, a file where it names published weights."""
    if isinstance(value, dict) and "class" in value:
        return _construct(value, origin)
    if isinstance(value, str) and value.startswith(PUBLISHED):
        name = value.removeprefix(PUBLISHED)
        if name not in PUBLISHED_WEIGHTS:
            raise ConfigError(f"{origin}={value} is not known.{nearest(name, PUBLISHED_WEIGHTS)}")
        return str(sources.fetch_unpinned(PUBLISHED_WEIGHTS[name], lambda path: path.stat().st_size > 2**20))
    return value


def execute(experiment: Experiment, dry_run: bool = False) -> dict[str, Any]:
    """Train and score an experiment, or continue or report what is there; print its table.

    Args:
        experiment: from ``compose``.
        dry_run: one batch of everything, in a folder that is thrown away.

    Returns:
        The contents of ``results.json``.

    Raises:
        RunError: another process works in the folder; it holds a run of another configuration or of other data, or
            damaged files; it cannot be written; the run diverges, or memory runs out.
        ConfigError: a constructor refuses its arguments.
    """
    slurm.check_resources(experiment)
    processes.end_with_the_first()
    _quieten()
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            results = _run(experiment, Path(folder), dry_run=True)
            print_run(results)
            return results
    folder = experiment.folder
    with contextlib.ExitStack() as stack:
        seconds = 180 if slurm.restarts() else 1  # a file system may hold the lock of a node that died for some time
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if _is_first_process():  # ranks that the strategy starts on its own belong to the process with the lock
                stack.enter_context(filelock.FileLock(folder / ".lock", timeout=seconds))
        except filelock.Timeout as error:
            raise RunError(
                f"another process works in {folder}; wait for it, or choose another run_root or seed"
            ) from error
        except OSError as error:
            raise RunError(
                f"{folder} cannot be written: {error.strerror}; choose another folder with run_root=..."
            ) from error
        try:
            results = _start(experiment, folder)
        except OSError as error:
            if not _is_of_writing(error, folder):
                raise
            told = error if isinstance(error, WriteError) else WriteError.of(error.filename or folder, error)
            raise RunError(f"{told} The run continues from its last checkpoint.") from error
    if _is_first_process():
        print_run(results)
    return results


def _is_of_writing(error: OSError, folder: Path) -> bool:
    full_or_read_only = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return isinstance(error, WriteError) or full_or_read_only or str(error.filename).startswith(str(folder))


def _is_first_process() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("SLURM_PROCID", 0)) == 0


def _start(experiment: Experiment, folder: Path) -> dict[str, Any]:
    config_path, results_path = folder / "config.yaml", folder / "results.json"
    if experiment.config["force"] and _is_first_process() and not slurm.restarts():  # else a requeued job's own work
        _clear(folder)
    if config_path.exists():
        try:
            stored = OmegaConf.to_container(OmegaConf.load(config_path))
        except Exception as error:  # the parser's own errors have no common base class
            reason = " ".join(str(error).split())
            raise RunError(f"{config_path} is damaged ({reason}); start over with force=true") from error
        lines = differences(stored, experiment.identity | {"seed": experiment.config["seed"]})
        if lines:
            raise RunError(
                f"{folder} holds a run of another configuration ({'; '.join(lines)}); "
                "start over with force=true, or choose another run_root"
            )
    elif _is_first_process():
        _write_text(config_path, OmegaConf.to_yaml(experiment.identity | {"seed": experiment.config["seed"]}))
    if results_path.exists():
        print(f"{folder} is finished; force=true runs it again")
        try:
            results = read_json(results_path)
        except ValueError as error:
            raise RunError(str(error)) from error
        _check_same_data(experiment, results)
        return results
    return _run(experiment, folder)


def _check_same_data(experiment: Experiment, results: dict[str, Any]) -> None:
    """Make sure that the scores of a finished run are of what its user's files hold now, if they are still there.

    Raises:
        RunError: they have changed.
    """
    path = experiment.config["data"].get("path")
    if not path or not Path(path).exists():
        return
    before = results.get("data_sha256", {})
    changed = [name for name, now in build_data(experiment).data_sha256.items() if before.get(name, now) != now]
    if changed:
        raise RunError(
            f"{', '.join(changed)} changed since this run was finished: put the old data back, start over with "
            "force=true, or keep both with another run_root"
        )


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())


def _clear(folder: Path) -> None:
    """Remove what a run has left, the mark of a finished run first."""
    import shutil

    (folder / "results.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _run(experiment: Experiment, folder: Path, dry_run: bool = False) -> dict[str, Any]:
    config = experiment.config
    file, console = LogFile(folder / "log.txt"), logging.StreamHandler()
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console.setLevel(logging.INFO if _is_first_process() else logging.CRITICAL)
    console.addFilter(lambda record: record.exc_info is None)  # tracebacks of what is told in a line are for the file
    ours, lightning = logging.getLogger("genpred"), logging.getLogger("lightning.pytorch")
    handlers = [(logger, file) for logger in (ours, lightning, logging.getLogger("py.warnings"))]
    handlers += [(logger, console) for logger in (ours, logging.getLogger("py.warnings"))]
    for logger, handler in handlers:
        logger.addHandler(handler)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        return _fit_and_test(experiment, folder, dry_run, config)
    except BaseException:
        close_wandb()
        raise
    finally:
        logging.captureWarnings(False)
        for logger, handler in handlers:
            logger.removeHandler(handler)
        file.close()


def _fit_and_test(experiment: Experiment, folder: Path, dry_run: bool, config: dict[str, Any]) -> dict[str, Any]:
    L.seed_everything(config["seed"], workers=True, verbose=False)
    data, module = build_data(experiment), build_module(experiment)
    statistics, collapse = RunStatistics(), PosteriorCollapse()
    same_data, validation = SameData(), ValidationScores()
    metrics = _metrics(data, dry_run)
    checkpoints = folder / "checkpoints"
    callbacks = [metrics, FiniteGradients(), collapse, statistics, RandomState(), same_data, validation]
    callbacks += [processes.EndWithTheOthers(), *progress_bars()]
    if not dry_run:
        callbacks += _outputs(data, experiment, folder)
        callbacks += [*checkpoint_callbacks(checkpoints, **config["checkpoint"]), Preemption(checkpoints)]
    commit = _git_commit()  # now: the checkout may be at another when the run ends
    logger = None if dry_run else run_logger(experiment, folder, commit)
    arguments = mixed_precision(module, config["trainer"]) | config["trainer"]
    trainer = _trainer(arguments, folder, logger, callbacks, dry_run)
    log.info("started %s in %s", experiment.name, folder)
    with _one_line():
        if is_trained(module):
            resumed = None if dry_run else latest_checkpoint(checkpoints)
            if resumed:
                log.info("continuing from %s", resumed)
            with signals.deferred():
                trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
        scores = trainer.test(module, data, verbose=False, weights_only=True)[0]
    variables = getattr(data, "variables", None) or getattr(data, "class_names", None)
    by_variable = _by_variable(metrics.by_feature, variables) if variables else {}
    published = published_figures(experiment.name) if data.comparable else {}
    baselines = {name: _score_baseline(name, experiment, data, folder, dry_run) for name in config["baselines"]}
    results = {
        "experiment": experiment.name,
        "method": experiment.method,
        "dataset": experiment.dataset,
        "preset": config["preset"],
        "variant": experiment.variant,
        "seed": config["seed"],
        "metrics": scores,
        "validation": validation.scores,
        "bootstrap": _draws(metrics),
        "published": {key: value for key, value in published.items() if key in scores},
        "baselines": baselines,
        "variables": by_variable,
        **statistics.statistics,
        "warnings": collapse.warnings,
        "config_sha256": config_hash(experiment.identity),
        "data_sha256": same_data.sums,
        "data_variant": data.data_variant,
        "comparable": data.comparable,
        "versions": _versions(),
        "device": _device(trainer),
        "precision": trainer.precision,
        "world_size": trainer.world_size,
        "git_commit": commit,
        "command": _command(experiment),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if not dry_run and trainer.is_global_zero:
        with _one_line():
            write_json_atomically(folder / "results.json", results)
        (checkpoints / PREVIOUS).unlink(missing_ok=True)  # what it was kept for is over
        if isinstance(logger, RunLogger):
            logger.finish(results)
    return results


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Whether data suit a method or a metric is seen when they meet: what they say of it is one line for the user.

    So is what a run says that diverges or lacks memory. Where it came from is in log.txt.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, FloatingPointError) as error:
        log.exception("the run cannot go on")
        raise RunError(" ".join(str(error).split())) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        log.exception("the run cannot go on")
        raise RunError(
            f"out of memory: {' '.join(str(error).split()) or 'the system gives no more'}. Lower data.batch_size and "
            "raise trainer.accumulate_grad_batches by as much, which is another run; or start the same command where "
            "there is more memory: this one continues from its last checkpoint"
        ) from error


def _by_variable(scores: dict[str, Any], variables: list[str]) -> dict[str, dict[str, float]]:
    """Scores of each variable by its name, without those for which nothing was there to score."""
    columns = {f"test/{metric}": values.tolist() for metric, values in scores.items()}
    return {
        variable: {metric: values[j] for metric, values in columns.items() if math.isfinite(values[j])}
        for j, variable in enumerate(variables)
    }


def _draws(metrics: L.Callback) -> dict[str, list[float | None]]:
    """Scores for bootstrap draws of the scored rows, where the task has them; None for a draw without a score."""
    return {
        name: [round(value, 4) if math.isfinite(value) else None for value in draws.tolist()]
        for name, draws in (metrics.draws if hasattr(type(metrics), "draws") else {}).items()
    }


def is_trained(module: L.LightningModule) -> bool:
    """Whether a method is trained; others are ready when they have seen their table, or at once."""
    return is_overridden("training_step", module, L.LightningModule)


def _metrics(data: L.LightningDataModule, dry_run: bool) -> L.Callback:
    """The task's metrics; one batch need not hold all the classes that a classifier wants."""
    arguments = data.evaluation_arguments
    if dry_run and "classifier" in arguments:
        arguments["classifier"] = None
    try:
        return METRICS[data.task](**arguments)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _outputs(data: L.LightningDataModule, experiment: Experiment, folder: Path) -> list[L.Callback]:
    """What the task leaves in the run's folder beside its figures of merit."""
    if data.task == "synthesis":
        return [SyntheticTable(folder / "synthetic.csv"), SynthesisFigure(folder / "figures")]
    if data.task == "segmentation":
        return [SegmentationFigure(folder / "figures")]
    if data.task == "pretraining":
        return [SampleGrid(folder / "figures")]
    draws = data.evaluation_arguments.get("samples", 0)
    return [ImputationFigure(folder / "figures", experiment.method, num_draws=draws)]


def _trainer(
    arguments: dict[str, Any], folder: Path, logger: Logger | None, callbacks: list[L.Callback], dry_run: bool
) -> L.Trainer:
    progress = any(isinstance(callback, L.pytorch.callbacks.ProgressBar) for callback in callbacks)
    complete = {
        "default_root_dir": str(folder),
        "logger": logger or False,
        "callbacks": callbacks,
        # Lightning's own requeue saves inside a signal's handler, and any later job there would find its file.
        "plugins": [AtomicCheckpointIO(), *([SLURMEnvironment(auto_requeue=False)] if slurm.is_step() else [])],
        "use_distributed_sampler": False,  # the DataModule shards without padding
        "enable_checkpointing": not dry_run,
        "enable_progress_bar": progress,
        "enable_model_summary": False,
        **arguments,
        **({"fast_dev_run": True} if dry_run else {}),
    }
    try:
        return L.Trainer(**complete)
    except (MisconfigurationException, TypeError, ValueError) as error:  # such as a GPU where there is none
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def mixed_precision(module: L.LightningModule, arguments: dict[str, Any]) -> dict[str, str]:
    """The Trainer's precision for a method that gains from bfloat16, where a device is taken that computes in it.

    Args:
        module: the method; ``mixed_precision_on`` names the kinds of devices on which it gains, "cuda" or "cpu".
        arguments: the Trainer's; a precision among them is meant to hold everywhere.
    """
    import torch

    kinds, accelerator = getattr(module, "mixed_precision_on", ()), arguments.get("accelerator", "auto")
    if "precision" in arguments:
        return {}
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        gains = "cuda" in kinds and torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available()):
        gains = "cpu" in kinds and any(torch.cpu.get_capabilities().get(name) for name in BF16_OF_CPUS)
    else:
        gains = False
    return {"precision": "bf16-mixed"} if gains else {}


def _score_baseline(
    name: str, experiment: Experiment, data: L.LightningDataModule, folder: Path, dry_run: bool
) -> dict[str, float]:
    """Score another method, which needs no training, on the same test data."""
    same_data = {key: value for key, value in experiment.config["data"].items() if key not in ("class", "seed")}
    overrides = [f"data.{key}={json.dumps(value)}" for key, value in same_data.items()]
    baseline = compose(f"{name}_{experiment.dataset}", overrides)
    module = build_module(baseline)
    if is_trained(module):
        raise ConfigError(f"baselines: {name} needs training; run {baseline.name} on its own")
    metrics = _metrics(data, dry_run)
    trainer = _trainer(experiment.config["trainer"], folder, None, [metrics], dry_run)
    return trainer.test(module, data, verbose=False, weights_only=True)[0]


def _quieten() -> None:
    """Silence advertisements and warnings about what is meant to be as it is."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "💡" not in record.getMessage())
    for handler in logging.getLogger("lightning.pytorch").handlers:
        handler.setLevel(logging.WARNING)  # what it says of devices, four times a run, goes to log.txt only
    for message in (
        ".*does not have many workers.*",  # batches are slices of tensors: workers would slow them down
        ".*srun.*command is available on your system but is not used.*",
        ".*number of training batches .* is smaller than the logging interval.*",  # a short run logs its end alone
        ".*Checkpoint directory .* exists and is not empty.*",  # a run that continues finds its own
        ".*module.s. in eval mode at the start of training.*",  # a frozen backbone stays so
        ".*Using ModelCheckpoint with manual optimization.*",  # of after the step, as it is meant
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _versions() -> dict[str, str]:
    names = ("torch", "lightning", "torchmetrics", "numpy", "scipy", "scikit-learn", "pandas", "catboost")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _device(trainer: L.Trainer) -> str:
    import torch

    if trainer.strategy.root_device.type == "cuda":
        return torch.cuda.get_device_name(trainer.strategy.root_device)
    return trainer.strategy.root_device.type


def _git_commit() -> str:
    """Commit of the code that ran, "-dirty" behind it where files differ; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _command(experiment: Experiment) -> str:
    """The command that makes this run again, wherever its folder is."""
    overrides = [each for each in experiment.overrides if not each.startswith(("force=", "run_root=", "group="))]
    return shlex.join(["python", "-m", "experiments.run", experiment.name, *overrides])
