"""Finished runs as they are found in folders, and statistics of their scores."""

import json
import math
import shlex
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import NOT_IDENTITY, ConfigError
from experiments.metrics import Metric

Runs = dict[tuple[str, str], list[dict[str, Any]]]


def collect(folders: list[Path]) -> Runs:
    """Finished runs below some folders, {(experiment, variant): results of each seed}; the first folder wins.

    The results hold the path of their own file, too, as ``file``.

    Raises:
        ConfigError: a file is not JSON.
    """
    runs: dict[tuple[str, str, int], dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            if "wandb" in path.relative_to(folder).parts:  # files of W&B's own
                continue
            try:
                results = json.loads(path.read_text())
            except ValueError as error:
                raise ConfigError(f"{path} is not JSON ({error}): remove it, and run its experiment again") from error
            if isinstance(results, dict) and {"experiment", "variant", "seed", "metrics"} <= results.keys():
                results["file"] = str(path)
                runs.setdefault((results["experiment"], results["variant"], results["seed"]), results)
    grouped: Runs = defaultdict(list)
    for experiment, variant, seed in sorted(runs):
        grouped[experiment, variant].append(runs[experiment, variant, seed])
    return dict(grouped)


def scores(results: list[dict[str, Any]], metric: str) -> list[float]:
    """A metric of each run that has it, ``val/...`` of its last validation; older files lack some."""
    return list(by_run(results, metric).values())


def by_run(results: list[dict[str, Any]], metric: str) -> dict[int, float]:
    """A metric of each run that has it, by its place among the runs."""
    known = [each["metrics"] | each.get("validation", {}) for each in results]
    return {place: its[metric] for place, its in enumerate(known) if metric in its}


def run_names(results: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Experiment and variant of some runs, each pair once."""
    return tuple(dict.fromkeys((each["experiment"], each["variant"]) for each in results))


def variant_label(results: dict[str, Any]) -> str:
    """The overrides that make the variant, as its command spells them; its name where the command has none."""
    overrides = shlex.split(results.get("command", ""))[4:]
    told = [each for each in overrides if each.split("=")[0] not in NOT_IDENTITY]
    return " ".join(told) or results["variant"]


@dataclass(frozen=True)
class PairedDifference:
    """Differences of paired scores: mean, standard deviation, 95 % interval of the mean, how many are above 0."""

    mean: float
    std: float
    low: float
    high: float
    positive: int
    pairs: int

    def reading(self, metric: Metric) -> str:
        """In words: "better", "worse", or "within split noise" where the interval holds 0."""
        if self.low <= 0 <= self.high:
            return "within split noise"
        return "better" if metric.loss(self.mean) < metric.loss(0.0) else "worse"


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """Compare two methods over the same splits, by Student's t.

    Args:
        values: [split], at least two.
        reference: [split], on the same splits.

    Returns:
        Of values - reference; the interval is mean ± t(0.975; n - 1) · std / √n.

    Raises:
        ValueError: fewer than two splits, or not as many references as values.
    """
    from scipy.special import stdtrit

    if len(values) != len(reference) or len(values) < 2:
        raise ValueError(
            f"values of {len(values)} splits, reference of {len(reference)}: run both on the same splits, at least two"
        )
    differences = [value - base for value, base in zip(values, reference, strict=True)]
    mean, std = statistics.fmean(differences), statistics.stdev(differences)
    half = float(stdtrit(len(differences) - 1, 0.975)) * std / math.sqrt(len(differences))
    positive = sum(difference > 0 for difference in differences)
    return PairedDifference(mean, std, mean - half, mean + half, positive, len(differences))


@dataclass(frozen=True)
class Figure:
    """A mean and its standard deviation; None where there is one value only."""

    mean: float
    std: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.std:.3f}" if self.std is not None else "")

    def deviations(self, ours: "Figure | None") -> float | None:
        """Ours less this one, in its standard deviations; None where it has none above 0."""
        return (ours.mean - self.mean) / self.std if ours and self.std else None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure | None":
        """Of some values, with n - 1 in the denominator; None of none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
