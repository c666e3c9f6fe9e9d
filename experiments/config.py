"""Configuration of an experiment, composed with OmegaConf and checked against the constructors it will call.

An experiment is ``<method>_<dataset>``. Its configuration is ``defaults.yaml``, then ``methods/<method>.yaml``,
``datasets/<dataset>.yaml``, ``tuned/<method>_<dataset>.yaml`` where there is one, the chosen preset of these files, and
the command line, each laid over the ones before. Where two tasks have a data set of one name, the second task's file is
``datasets/<dataset>.<task>.yaml``. The arguments of the LightningModule's, the DataModule's and the
Trainer's constructors are the schema: each layer is checked on its own, so that an error names the file.
"""

import difflib
import functools
import hashlib
import importlib
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec

ROOT = Path(__file__).parent
P = ParamSpec("P")
SECTIONS = ("model", "data", "trainer")
SETTINGS = {
    "task": str,
    "preset": str,
    "seed": int,
    "run_root": str,
    "logger": Literal["wandb", "wandb_online", "csv", "none"],
    "project": str,
    "group": str | None,
    "force": bool,
    "baselines": list[str],
    "checkpoint": {"every_n_steps": int, "monitor": str | None, "mode": Literal["min", "max"]},
}
# What says where and how to run, not what: it neither names the run folder nor has to agree with the stored run.
NOT_IDENTITY = ("seed", "run_root", "logger", "project", "group", "force")


class ConfigError(ValueError):
    """A configuration that cannot be run; its message is one line that names the place and the remedy."""


def told_in_a_line(command: Callable[P, int]) -> Callable[P, int]:
    """Let a command tell a `ConfigError` in its one line on standard error, and end with exit status 2."""

    @functools.wraps(command)
    def telling(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return telling


@dataclass(frozen=True)
class Experiment:
    """A resolved experiment: ``config`` holds plain values only."""

    name: str
    method: str
    dataset: str
    variant: str
    config: dict[str, Any]
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the run lives: the same experiment, variant and seed always meet in one folder."""
        return Path(self.config["run_root"]) / self.name / self.variant / f"seed{self.config['seed']}"

    @property
    def identity(self) -> dict[str, Any]:
        """What a stored run has to agree with, to be continued."""
        return {key: value for key, value in self.config.items() if key not in NOT_IDENTITY}


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?', or the list of what is known where nothing is near."""
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{match[0]}'?" if match else f" Known: {', '.join(known)}."


def _task(path: Path) -> str:
    found = re.search(r"^task: *(\w+)", path.read_text(), flags=re.MULTILINE)
    if not found:
        raise ConfigError(f"{_origin(path)}: the line 'task: <imputation|segmentation|synthesis>' is missing")
    return found[1]


def _not_for(method: str) -> list[str]:
    """The data sets that a method's file says it cannot do, in the line ``not_for: [<dataset>, ...]``."""
    path = ROOT / "methods" / f"{method}.yaml"
    found = re.search(r"^not_for: *\[([\w, ]*)\]", path.read_text(), flags=re.MULTILINE)
    return [each.strip() for each in found[1].split(",")] if found else []


def _origin(path: Path) -> str:
    return path.relative_to(ROOT.parent).as_posix()


def experiments() -> dict[str, list[str]]:
    """Names of all experiments by task; reads file names and two lines of each, nothing else."""
    methods = [(path.stem, _task(path)) for path in sorted((ROOT / "methods").glob("*.yaml"))]
    datasets = [(_dataset(path), _task(path)) for path in sorted((ROOT / "datasets").glob("*.yaml"))]
    names: dict[str, list[str]] = {}
    for method, task in methods:
        left_out = _not_for(method)
        fit = [dataset for dataset, its_task in datasets if its_task == task and dataset not in left_out]
        names.setdefault(task, []).extend(f"{method}_{dataset}" for dataset in fit)
    return names


def _dataset(path: Path) -> str:
    """Name of a data set from its file's; that of a second task is ``<dataset>.<task>.yaml``."""
    return path.name.split(".")[0]


def _dataset_path(method: str, dataset: str) -> Path | None:
    """The file of a data set for the task of a method."""
    task = _task(ROOT / "methods" / f"{method}.yaml")
    paths = [path for path in (ROOT / "datasets").glob(f"{dataset}.*yaml") if _task(path) == task]
    return paths[0] if paths else None


def split_name(name: str) -> tuple[str, str]:
    """Method and data set of an experiment's name.

    Raises:
        ConfigError: there is no such experiment.
    """
    known = {experiment for names in experiments().values() for experiment in names}
    if name not in known:
        for path in (ROOT / "methods").glob("*.yaml"):
            if name in [f"{path.stem}_{dataset}" for dataset in _not_for(path.stem)]:
                raise ConfigError(
                    f"experiment '{name}' does not exist: {_origin(path)} says what it is not for, and why"
                )
        raise ConfigError(f"experiment '{name}' does not exist.{nearest(name, known)}")
    for cut in (match.start() for match in re.finditer("_", name)):
        method, dataset = name[:cut], name[cut + 1 :]
        if (ROOT / "methods" / f"{method}.yaml").exists() and _dataset_path(method, dataset) is not None:
            return method, dataset
    raise AssertionError(name)


def load_class(path: str, origin: str) -> type:
    """The class behind a dotted path."""
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{origin}: class {path!r} cannot be imported: {error}") from error


def arguments_of(cls: type) -> dict[str, Any]:
    """Annotation of each constructor argument."""
    hints = typing.get_type_hints(cls.__init__)
    names = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
    return {name: hints.get(name, Any) for name in names}


def defaults_of(cls: type) -> dict[str, Any]:
    """Default of each constructor argument that has one, sequences as lists."""
    parameters = inspect.signature(cls).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def check(layer: Mapping[str, Any], schema: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    """Compare a layer of the configuration with the schema.

    Args:
        layer: nested plain values.
        schema: for each key its annotation, or the schema of what is below it.
        origin: file or command line, named in errors.
        prefix: path of the layer within the configuration.

    Raises:
        ConfigError: an unknown key, or a value of a wrong type.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    for key, value in layer.items():
        place = f"{origin}: {prefix}{key}"
        if key not in schema:
            raise ConfigError(f"{place} is not known.{nearest(str(key), schema)}")
        expected = schema[key]
        if isinstance(expected, Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{place}={value!r} must hold keys: {', '.join(sorted(expected))}")
            check(value, expected, origin, f"{prefix}{key}.")
            continue
        try:
            TypeAdapter(expected, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
        except ValidationError as error:
            expected_words = " or ".join(dict.fromkeys(each["msg"] for each in error.errors()))
            raise ConfigError(f"{place}={value!r} is of a wrong type: {expected_words}") from error


def _read(path: Path) -> dict[str, Any]:
    """A YAML file as plain values; an absent file is empty."""
    from omegaconf import OmegaConf

    if not path.exists():
        return {}
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # the parser's own errors have no common base class
        raise ConfigError(f"{_origin(path)}: not valid YAML: {' '.join(str(error).split())}") from error


def _read_overrides(overrides: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    for override in overrides:
        if "=" not in override or override.startswith(("=", "-")):
            raise ConfigError(f"command line: '{override}' is not of the form key=value")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(overrides), resolve=True)
    except Exception as error:
        raise ConfigError(f"command line: {' '.join(str(error).split())}") from error


def _expand_short_keys(overrides: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """``evaluation=published`` for ``data.evaluation=published``: an argument's bare name, where it names one only."""
    expanded: dict[str, Any] = {key: value for key, value in overrides.items() if key in SECTIONS}
    for key, value in overrides.items():
        if key in SECTIONS:
            continue
        homes = [home for home in _places(schema) if key in _at(schema, home)] if key not in schema else []
        if len(homes) > 1:
            choices = " or ".join(".".join([*home, key]) for home in homes)
            raise ConfigError(f"command line: {key} is not unique: write {choices}")
        if homes:
            place = expanded
            for step in homes[0]:
                place = place.setdefault(step, {})
            place[key] = value
        elif key in schema:
            expanded[key] = value
        else:
            every = set(schema).union(*(_at(schema, home) for home in _places(schema)))
            raise ConfigError(f"command line: {key} is not known.{nearest(key, every)}")
    return expanded


def _places(schema: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The sections, and their arguments that are objects with arguments of their own."""
    places, found = [(section,) for section in SECTIONS], []
    while places:
        place = places.pop(0)
        found.append(place)
        places += [(*place, key) for key, value in _at(schema, place).items() if isinstance(value, Mapping)]
    return found


def _at(config: Any, place: tuple[str, ...]) -> Any:
    """What lies at a place of nested mappings; empty where nothing does."""
    for key in place:
        config = config.get(key, {}) if isinstance(config, Mapping) else {}
    return config


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One line for each key whose values differ."""
    left, right = flattened(stored), flattened(wanted)
    absent = "(absent)"
    return [
        f"{key}: stored {left.get(key, absent)!r}, now {right.get(key, absent)!r}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key, absent) != right.get(key, absent)
    ]


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the configuration as canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def compose(name: str, overrides: list[str] | None = None) -> Experiment:
    """Resolve an experiment.

    Args:
        name: ``<method>_<dataset>``.
        overrides: ``key=value`` with dotted keys, as on the command line.

    Raises:
        ConfigError: in one line, the place of what is wrong and the nearest right name.
    """
    method, dataset = split_name(name)
    paths = [
        ROOT / "defaults.yaml",
        ROOT / "methods" / f"{method}.yaml",
        _dataset_path(method, dataset),
        ROOT / "tuned" / f"{name}.yaml",
    ]
    layers = [(_origin(path), _read(path)) for path in paths]
    layers[1][1].pop("not_for", None)  # split_name has heeded it
    raw_overrides = _read_overrides(overrides or [])
    classes: dict[tuple[str, ...], type] = {}
    schema: dict[str, Any] = dict(SETTINGS)
    for section in ("model", "data"):
        schema[section] = _object_schema((section,), [*layers, ("command line", raw_overrides)], classes)
    schema["trainer"] = _trainer_arguments()

    command_line = _expand_short_keys(raw_overrides, schema)
    presets = [(f"{origin}: presets", layer.pop("presets", None) or {}) for origin, layer in layers]
    known_presets = {"paper"}.union(*(preset for _, preset in presets))
    preset = command_line.get("preset", layers[0][1]["preset"])
    if preset not in known_presets:
        raise ConfigError(
            f"command line: preset '{preset}' of {name} does not exist.{nearest(str(preset), known_presets)}"
        )
    for origin, each in presets:
        for key, layer in each.items():
            check(layer, schema, f"{origin}.{key}")
    layers += [(f"{origin}.{preset}", each.get(preset) or {}) for origin, each in presets]
    for origin, layer in [*layers, ("command line", command_line)]:
        check(layer, schema, origin)
    config = _complete(_merge([layer for _, layer in layers] + [command_line]), classes, dataset)
    try:
        before = _complete(_merge([layer for _, layer in layers]), classes, dataset)
    except ConfigError:  # the files alone may lack what only a user can name, such as data.path
        before = _merge([layer for _, layer in layers])
        for place, cls in classes.items():
            _at(before, place[:-1])[place[-1]] = defaults_of(cls) | _at(before, place)

    unchanged = flattened(before)
    changed = {
        key: value
        for key, value in flattened(command_line).items()
        if key.split(".")[0] not in NOT_IDENTITY and (key == "preset" or unchanged.get(key) != value)
    }
    if changed.get("preset") == layers[0][1]["preset"]:
        del changed["preset"]
    variant = config_hash(changed)[:8] if changed else "default"
    return Experiment(name, method, dataset, variant, config, tuple(overrides or ()))


def _object_schema(
    place: tuple[str, ...], layers: list[tuple[str, dict]], classes: dict[tuple[str, ...], type]
) -> dict[str, Any]:
    """Annotations of what constructs the object at a place, and of the objects that are arguments of it.

    An argument is an object where some layer gives it a ``class``. Their classes are added to ``classes``.
    """
    cls = classes[place] = _class_of(place, layers)
    annotations = arguments_of(cls)
    for key in annotations:
        inner = (*place, key)
        if any("class" in found for _, layer in layers if isinstance(found := _at(layer, inner), Mapping)):
            annotations[key] = _object_schema(inner, layers, classes)
    return {"class": str} | annotations


def _class_of(place: tuple[str, ...], layers: list[tuple[str, dict]]) -> type:
    for origin, layer in reversed(layers):
        found = _at(layer, place)
        if isinstance(found, Mapping) and found.get("class") is not None:
            return load_class(found["class"], f"{origin}: {'.'.join(place)}.class")
    raise ConfigError(f"{layers[1][0]} and {layers[2][0]}: {'.'.join(place)}.class is missing")


def _trainer_arguments() -> dict[str, Any]:
    import lightning

    return arguments_of(lightning.Trainer)


def _merge(layers: list[dict[str, Any]]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.merge(*layers))


def _complete(config: dict[str, Any], classes: dict[tuple[str, ...], type], dataset: str) -> dict[str, Any]:
    """Fill in the constructors' defaults and what the data determine of the model."""
    data_class = classes["data",]
    data = {key: value for key, value in config["data"].items() if key != "class"}
    known = defaults_of(data_class)
    if "seed" in known:
        known["seed"] = config["seed"]
    try:
        facts = data_class(**(known | data)).model_arguments
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data set {dataset}: {error}") from error
    config["data"] = {"class": config["data"]["class"]} | known | data
    for place, cls in classes.items():
        if place[0] != "model":
            continue
        wanted, given = arguments_of(cls), _at(config, place)
        determined = {key: value for key, value in facts.items() if key in wanted}
        arguments = {"class": given["class"]} | defaults_of(cls) | determined | given
        missing = [key for key in wanted if key not in arguments]
        if missing:
            name = ".".join([*place, missing[0]])
            raise ConfigError(f"{name} has no default, and data set {dataset} does not determine it: set it")
        _at(config, place[:-1])[place[-1]] = arguments
    return config
