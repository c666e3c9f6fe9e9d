"""Runs that a command is pointed at with ``--checkpoint RUN``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.config import ConfigError, load_class

if TYPE_CHECKING:
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
