"""The grids of sweeps: which runs a sweep is, in which order.

A sweep is ``sweeps/<name>.yaml``, a list of blocks. A block is the product of its ``methods``, ``datasets``, ``seeds``,
``variants`` (each the overrides of one variant, as on the command line; "" is none) and ``grid`` (values for each key),
without the cells that agree in every key with an entry of its ``exclude``. Cells are numbered block by block; within a
block the seed changes slowest, then the grid's keys as written, then variant and method, and fastest the data set. So
neither a block added at the end nor seeds added at the end of the last block change the number of any cell.
"""

import functools
import itertools
import json
import operator
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import ConfigError, Experiment, check, compose, config_hash, nearest, split_name

SWEEPS = Path(__file__).parent / "sweeps"
BLOCK = {
    "methods": list[str],
    "datasets": list[str],
    "seeds": list[int],
    "variants": list[str],
    "grid": dict[str, list[Any]],
    "exclude": list[dict[str, Any]],
}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: ``overrides`` make its variant; the seed is apart from them."""

    index: int
    experiment: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def arguments(self) -> list[str]:
        """What follows ``python -m experiments.run``."""
        return [self.experiment, *self.overrides, f"seed={self.seed}"]

    @functools.cached_property
    def values(self) -> dict[str, Any]:
        """The overrides, read as the command line reads them: {dotted key: value}."""
        from omegaconf import OmegaConf

        read = OmegaConf.to_container(OmegaConf.from_dotlist(list(self.overrides)))
        keys = [override.split("=", 1)[0] for override in self.overrides]
        return {key: functools.reduce(operator.getitem, key.split("."), read) for key in keys}

    def __str__(self) -> str:
        return shlex.join(self.arguments)


def variant_name(values: Mapping[str, Any]) -> str:
    """The variant's name in run folders and results, without composing (and so without torch).

    Args:
        values: {dotted key: value}, the keys in full (``data.evaluation``), the values other than the defaults.
    """
    return config_hash(dict(values))[:8] if values else "default"


def sweeps() -> list[str]:
    """Names of all sweeps."""
    return sorted(path.stem for path in SWEEPS.glob("*.yaml"))


def cells(name: str, without: Collection[str] = ()) -> list[Cell]:
    """The cells of a sweep, in the order of their numbers.

    Args:
        name: of the sweep.
        without: methods whose cells are left out; the others keep their numbers.

    Raises:
        ConfigError: there is no such sweep, or its file names what does not exist or holds a cell twice; or it has no
            such method to leave out, or no other.
    """
    from omegaconf import OmegaConf

    path = SWEEPS / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"sweep '{name}' does not exist.{nearest(name, sweeps())}")
    origin = path.relative_to(SWEEPS.parents[1]).as_posix()
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # the parser's own errors have no common base class
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error
    content = content if isinstance(content, dict) else {}
    check(content, {"blocks": list[dict[str, Any]]}, origin)
    found: dict[tuple[str, frozenset[str], int], Cell] = {}
    for number, block in enumerate(content.get("blocks", [])):
        for experiment, overrides, seed in _block_cells(block, f"{origin}: blocks[{number}]"):
            cell = Cell(len(found), experiment, overrides, seed)
            if found.setdefault((experiment, frozenset(overrides), seed), cell) is not cell:
                raise ConfigError(f"{origin}: blocks[{number}] holds {cell} a second time: exclude it there")
    if not found:
        raise ConfigError(f"{origin}: blocks is empty: a sweep has at least one cell")
    methods = {each: split_name(each)[0] for each in dict.fromkeys(cell.experiment for cell in found.values())}
    for method in without:
        if method not in methods.values():
            has = ", ".join(dict.fromkeys(methods.values()))
            raise ConfigError(f"sweep {name} has no method '{method}' to be without; it has {has}")
    kept = [cell for cell in found.values() if methods[cell.experiment] not in without]
    if not kept:
        raise ConfigError(f"sweep {name} has no cell without {', '.join(without)}: leave one of them in")
    return kept


def _block_cells(block: dict[str, Any], place: str) -> list[tuple[str, tuple[str, ...], int]]:
    """Experiment, overrides and seed of each cell of a block."""
    check(block, BLOCK, place)
    for key in ("methods", "datasets", "seeds"):
        if not block.get(key):
            raise ConfigError(f"{place}.{key} is missing or empty")
    variants = [shlex.split(variant) for variant in block.get("variants", [""])]
    grid = [[f"{key}={_spelt(value)}" for value in values] for key, values in block.get("grid", {}).items()]
    for override in itertools.chain(*variants, *grid):
        if "=" not in override or override.startswith(("=", "-")):
            raise ConfigError(f"{place}: '{override}' is not of the form key=value")
        if override.startswith("seed="):
            raise ConfigError(f"{place}: '{override}' belongs in seeds")
    exclusions = [
        {key: value if isinstance(value, list) else [value] for key, value in each.items()}
        for each in block.get("exclude", [])
    ]
    met: set[int] = set()
    kept: list[tuple[str, tuple[str, ...], int]] = []
    for seed, values, variant, method, dataset in itertools.product(
        block["seeds"], itertools.product(*grid), variants, block["methods"], block["datasets"]
    ):
        overrides = (*variant, *values)
        facts = {"method": method, "dataset": dataset, "seed": str(seed)}
        facts |= dict(override.split("=", 1) for override in overrides)
        excluding = [
            number
            for number, each in enumerate(exclusions)
            if all(facts.get(key) in map(_spelt, excluded) for key, excluded in each.items())
        ]
        met.update(excluding)
        if not excluding:
            kept.append((f"{method}_{dataset}", overrides, seed))
    for number in range(len(exclusions)):
        if number not in met:
            raise ConfigError(f"{place}.exclude[{number}] agrees with no cell: {block['exclude'][number]}")
    if not kept:
        raise ConfigError(f"{place} has no cell: exclude leaves nothing")
    for experiment in dict.fromkeys(experiment for experiment, _, _ in kept):
        try:
            split_name(experiment)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
    return kept


def _spelt(value: Any) -> str:
    """A YAML value as the command line spells it."""
    return value if isinstance(value, str) else json.dumps(value)


def resolve(
    name: str, overrides: list[str] | None = None, without: Collection[str] = ()
) -> list[tuple[Cell, Experiment]]:
    """The cells of a sweep with their configurations, so that whatever is wrong shows before anything starts.

    Args:
        name: of the sweep.
        overrides: key=value, laid over every cell.
        without: methods whose cells are left out.

    Raises:
        ConfigError: as by `cells`; a cell cannot be composed; or two of them would be one run.
    """
    resolved: list[tuple[Cell, Experiment]] = []
    owners: dict[Path, Cell] = {}
    for cell in cells(name, without):
        try:
            experiment = compose(cell.experiment, [*cell.arguments[1:], f"group={name}", *(overrides or [])])
        except ConfigError as error:
            raise ConfigError(f"sweep {name}, cell {cell.index} ({cell}): {error}") from error
        owner = owners.setdefault(experiment.folder, cell)
        if owner is not cell:
            raise ConfigError(f"sweep {name}: cells {owner.index} and {cell.index} are one run, {experiment.folder}")
        resolved.append((cell, experiment))
    return resolved


def spans(numbers: list[int]) -> list[list[int]]:
    """Runs of neighbours among numbers, in order: first and last of each, or the only one."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return found
