"""Runs that a command is pointed at with ``--checkpoint RUN``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.config import ConfigError, Experiment, load_class

if TYPE_CHECKING:
    import lightning as L
    import torch


class StoredRun(NamedTuple):
    """What lies in a run's folder.

    Attributes:
        folder: the run's.
        config: resolved, plain values.
        data_class: class of its DataModule.
        checkpoint: the one that was named, or the run's last; need not exist.
    """

    folder: Path
    config: dict[str, Any]
    data_class: type
    checkpoint: Path

    @classmethod
    def find(cls, run: Path) -> "StoredRun":
        """Read a run's configuration.

        Args:
            run: the run's folder (its last state, which is the one that was scored), or one of its checkpoints.

        Raises:
            ConfigError: there is no such run.
        """
        from omegaconf import OmegaConf

        folder = run.parent.parent if run.suffix == ".ckpt" else run
        path = folder / "config.yaml"
        if not path.is_file() or (run.suffix == ".ckpt" and not run.is_file()):
            raise ConfigError(
                f"--checkpoint {run}: not a run's folder (with config.yaml in it) nor a checkpoint in one"
            )
        try:
            config = OmegaConf.to_container(OmegaConf.load(path))
        except Exception as error:  # the parser's own errors have no common base class
            raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
        data_class = load_class(config["data"]["class"], f"{path}: data.class")
        checkpoint = run if run.suffix == ".ckpt" else folder / "checkpoints" / "last.ckpt"
        return cls(folder, config, data_class, checkpoint)

    @classmethod
    def of_task(cls, run: Path, task: str) -> "StoredRun":
        """As `find`, a run of one task that has a checkpoint.

        Raises:
            ConfigError: there is no such run, it is one of another task, or it has no checkpoint.
        """
        found = cls.find(run)
        if getattr(found.data_class, "task", None) != task:
            raise ConfigError(f"--checkpoint {run}: its run is not one of {task}, but on {found.data_class.__name__}")
        if not found.checkpoint.is_file():
            raise ConfigError(
                f"--checkpoint {run}: there is no checkpoint; a method without training keeps nothing, and the "
                "training of another has to begin first"
            )
        return found

    def module_and_checkpoint(self) -> "tuple[L.LightningModule, dict[str, Any]]":
        """The method, freshly made, and what the checkpoint holds."""
        from callbacks.checkpoints import AtomicCheckpointIO
        from experiments.build import build_module

        module = build_module(Experiment(str(self.folder), "", "", "", self.config))
        return module, AtomicCheckpointIO().load_checkpoint(self.checkpoint)

    @contextlib.contextmanager
    def usable(self) -> Iterator[None]:
        """Say in a line what makes the checkpoint unfit for its method or data.

        Raises:
            ConfigError: what is done inside fails.
        """
        try:
            yield
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--checkpoint {self.checkpoint} cannot be used: {reason}") from error


def move(module: "torch.nn.Module", device: str) -> "torch.device":
    """Move a module to a device and make it ready for evaluation.

    Args:
        module: the method.
        device: of torch, or "auto": a GPU where there is one.

    Returns:
        The device.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        module.to(device).eval()
        torch.Generator(device)  # some devices can hold a module and draw nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--device {device} cannot be used: {reason}") from error
    return torch.device(device)
