"""PhysioNet/Computing in Cardiology Challenge 2012: two days of intensive care, 35 variables by the hour.

Binning as in BRITS (Cao et al., 2018), extra hidden entries and evaluation as in GP-VAE (Fortuin et al., 2020). The
arrays published with GP-VAE are not available; these are made from the raw files of the challenge.
"""

import io
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules import sources
from datamodules.base import ResumableDataModule, TensorLoader
from datamodules.imputation.batch import SeriesBatch
from datamodules.imputation.missingness import SeriesMechanism, hide

# Name and unit, in the order of BRITS: the series of the challenge without MechVent and Weight.
VARIABLES: dict[str, str] = {
    "DiasABP": "mmHg",
    "HR": "1/min",
    "Na": "mEq/L",
    "Lactate": "mmol/L",
    "NIDiasABP": "mmHg",
    "PaO2": "mmHg",
    "WBC": "1/nL",
    "pH": "",
    "Albumin": "g/dL",
    "ALT": "IU/L",
    "Glucose": "mg/dL",
    "SaO2": "%",
    "Temp": "°C",
    "AST": "IU/L",
    "Bilirubin": "mg/dL",
    "HCO3": "mmol/L",
    "BUN": "mg/dL",
    "RespRate": "1/min",
    "Mg": "mmol/L",
    "HCT": "%",
    "SysABP": "mmHg",
    "FiO2": "",
    "K": "mEq/L",
    "GCS": "",
    "Cholesterol": "mg/dL",
    "NISysABP": "mmHg",
    "TroponinT": "µg/L",
    "MAP": "mmHg",
    "TroponinI": "µg/L",
    "PaCO2": "mmHg",
    "Platelets": "1/nL",
    "Urine": "mL",
    "NIMAP": "mmHg",
    "Creatinine": "mg/dL",
    "ALP": "IU/L",
}
NUM_HOURS = 48
FORMAT_VERSION = 1  # part of the cache's name: raise it whenever the same raw files give other arrays


class Physionet(ResumableDataModule):
    """Stays of 48 hours x 35 variables, z-scored, with a part of the observed entries hidden for scoring.

    An entry is the last value recorded in that hour (hour = floor of the time since admission). Entry errors of the raw
    files are kept, as by all published methods. Means and standard deviations for the z-scores are those of the visible
    entries of the training stays. The class of a stay is in-hospital death.

    Which stays are used for what:

    * cohort "abc" without `split_seed`: training on set a, validation on set b, testing on set c, each 4,000 stays in
      the order of their numbers.
    * with `split_seed`: the stays of the cohort, permuted by that seed and cut into three equal parts. A cohort of one
      set with evaluation "heldout" is always split so; `split_seed` None means 0 there.
    * evaluation "published": the published code imputes and scores the stays that it was trained on; so the test stays
      are the training stays. Without `split_seed`, a cohort of one set is then used whole, and its validation stays are
      the training stays too: nothing may be selected by them.

    Args:
        cohort: sets of the challenge.
        evaluation: "heldout" tests on stays that were not trained on, "published" on the training stays.
        holdout_fraction: part of the observed entries of the cohort that is hidden, in [0, 1).
        holdout_seed: seed of the choice of hidden entries, which depends on nothing else but cohort, fraction and
            mechanism.
        missingness: mechanism that hides them, see `missingness.hide`; "mcar" is that of the published tables.
        split_seed: seed of a random split, see above.
        batch_size: training rows of a batch on one process.
        evaluation_batch_size: rows of a validation or test batch on one process.
        evaluation_samples: draws of each test stay, whose quantiles are scored (CRPS, coverage); 0: none.
        num_workers: worker processes of each loader.
        seed: seed of the training order.
        train_rows: use the first so many training rows only; z-scores are still those of all training stays.
        validation_rows: use the first so many validation rows only.
        test_rows: use the first so many test rows only.

    Attributes:
        mean: float64 [35], mean of the visible training entries in the units of `VARIABLES`; after `setup`.
        standard_deviation: float64 [35], likewise; 1 for a variable without spread.

    Raises:
        ValueError: `holdout_fraction` is out of range; by `setup`, when the mechanism cannot hide so many.
        SourceError: by `prepare_data` and `setup`, when raw files cannot be had or the cache cannot be written.
    """

    task = "imputation"
    time_label = "hours since admission"

    other_data = ("holdout_fraction", "missingness", "test_rows")

    def __init__(
        self,
        cohort: Literal["abc", "a", "b", "c"] = "abc",
        evaluation: Literal["heldout", "published"] = "heldout",
        holdout_fraction: float = 0.1,
        holdout_seed: int = 0,
        missingness: SeriesMechanism = "mcar",
        split_seed: int | None = None,
        batch_size: int = 64,
        evaluation_batch_size: int = 500,
        evaluation_samples: int = 100,
        num_workers: int = 0,
        seed: int = 0,
        train_rows: int | None = None,
        validation_rows: int | None = None,
        test_rows: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= holdout_fraction < 1:
            raise ValueError(f"holdout_fraction={holdout_fraction}: it must be at least 0 and below 1.")
        self.save_hyperparameters()
        self.mean: NDArray[np.float64] | None = None
        self.standard_deviation: NDArray[np.float64] | None = None
        self.train_set: Stays | None = None
        self.validation_set: Stays | None = None
        self.test_set: Stays | None = None

    @property
    def variables(self) -> list[str]:
        """Names of the 35 variables, in the order of the last dimension."""
        return list(VARIABLES)

    @property
    def units(self) -> list[str]:
        """Unit of each variable; empty where it has none."""
        return list(VARIABLES.values())

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Constructor arguments of a method that the data determine."""
        return {
            "num_features": len(VARIABLES),
            "num_steps": NUM_HOURS,
            "likelihood": "gaussian",
            "image_shape": None,
            "num_classes": 2,
        }

    @property
    def evaluation_arguments(self) -> dict[str, Any]:
        """Arguments of the metrics: no rounding, intervals, and a classifier for death or survival."""
        return {
            "num_features": len(VARIABLES),
            "rounded": False,
            "classifier": "binary",
            "samples": self.hparams.evaluation_samples,
        }

    @property
    def data_variant(self) -> str:
        """The raw files are the published data."""
        return "published"

    @property
    def data_sha256(self) -> dict[str, str]:
        """SHA-256 of the raw files that the arrays were made from, by name; valid after `prepare_data`."""
        sums: dict[str, str] = {}
        for name in self.hparams.cohort:
            sums |= sources.open_arrays(_folder(name))[1]["data_sha256"]
        return sums

    def prepare_data(self) -> None:
        """Parse the raw files, or find the arrays in the cache."""
        for name in self.hparams.cohort:
            prepare_set(name)

    def setup(self, stage: str | None = None) -> None:
        """Split, hide and standardise; idempotent."""
        options = self.hparams
        sets = [sources.open_arrays(_folder(name))[0] for name in options.cohort]
        raw = np.concatenate([arrays["values"] for arrays in sets])  # [stay, hour, variable], NaN = not recorded
        labels = np.concatenate([arrays["labels"] for arrays in sets])
        record_ids = np.concatenate([arrays["record_ids"] for arrays in sets])
        generator = np.random.default_rng(options.holdout_seed)
        hidden = hide(options.missingness, raw, ~np.isnan(raw), options.holdout_fraction, generator)
        train_rows, validation_rows, test_rows = self._split(len(raw))

        visible = np.where(hidden, np.nan, raw)[train_rows].reshape(-1, len(VARIABLES)).astype(np.float64)
        counts = np.sum(~np.isnan(visible), axis=0)
        self.mean = np.nansum(visible, axis=0) / np.maximum(counts, 1)
        variance = np.nansum(np.square(visible - self.mean), axis=0) / np.maximum(counts, 1)
        self.standard_deviation = np.where(variance > 0, np.sqrt(variance), 1.0)

        def stays(rows: NDArray[np.int64], limit: int | None) -> Stays:
            rows = rows[:limit]
            scores = (raw[rows] - self.mean) / self.standard_deviation
            return Stays(scores.astype(np.float32), hidden[rows], labels[rows], record_ids[rows])

        self.train_set = stays(train_rows, options.train_rows)
        self.validation_set = stays(validation_rows, options.validation_rows)
        self.test_set = stays(test_rows, options.test_rows)

    def train_dataloader(self) -> TensorLoader:
        """Shuffled training batches."""
        return self.train_loader(self.train_set)

    def val_dataloader(self) -> TensorLoader:
        """Validation batches in the order of the split."""
        return self.evaluation_loader(self.validation_set)

    def test_dataloader(self) -> TensorLoader:
        """Test batches in the order of the split."""
        return self.evaluation_loader(self.test_set)

    def _split(self, num_stays: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        options = self.hparams
        order = np.arange(num_stays)
        published = options.evaluation == "published"
        if options.split_seed is None and len(options.cohort) == 1 and published:
            return order, order, order
        if options.split_seed is not None or len(options.cohort) == 1:
            order = np.random.default_rng(options.split_seed or 0).permutation(num_stays)
        train, validation, test = np.array_split(order, 3)  # sets a, b and c when the order is that of the files
        return train, validation, train if published else test


class Stays:
    """Standardised stays; indexing by an int64 tensor gives a `SeriesBatch`.

    Args:
        scores: float32 [stay, hour, variable], NaN where not recorded.
        hidden: bool, same shape, True where recorded but hidden from the model.
        labels: int64 [stay], 1 for in-hospital death.
        ids: int64 [stay], record numbers of the challenge.
    """

    def __init__(
        self,
        scores: NDArray[np.float32],
        hidden: NDArray[np.bool_],
        labels: NDArray[np.int64],
        ids: NDArray[np.int64],
    ) -> None:
        self.target = torch.from_numpy(np.nan_to_num(scores, nan=0.0))
        self.target_mask = torch.from_numpy(hidden)
        self.observed_mask = torch.from_numpy(~np.isnan(scores)) & ~self.target_mask
        self.labels = torch.from_numpy(labels)
        self.ids = ids

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, indices: Tensor) -> SeriesBatch:
        target, observed_mask = self.target[indices], self.observed_mask[indices]
        return SeriesBatch(
            values=target * observed_mask,
            observed_mask=observed_mask,
            target=target,
            target_mask=self.target_mask[indices],
            label=self.labels[indices],
            index=indices,
        )


def prepare_set(name: str) -> Path:
    """Parse one set of the challenge unless the cache holds it intact.

    Args:
        name: "a", "b" or "c".

    Returns:
        Folder with `values` float32 [stay, hour, variable] (NaN = not recorded), `labels` and `record_ids` int64
        [stay], in the order of the record numbers.

    Raises:
        SourceError: raw files cannot be had, or do not fit together, or the cache cannot be written.
    """

    def build() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        names = (f"set-{name}.tar.gz", f"Outcomes-{name}.txt")
        archive, outcomes = paths = [sources.fetch(file) for file in names]
        record_ids, values = parse_archive(archive)
        deaths = pd.read_csv(outcomes).set_index("RecordID")["In-hospital_death"]
        if set(deaths.index) != set(record_ids):
            raise sources.SourceError(
                f"{archive} and {outcomes} hold different stays; replace them with the files of one release."
            )
        labels = deaths.loc[record_ids].to_numpy(dtype=np.int64)
        sums = {file: sources.file_sha256(path) for file, path in zip(names, paths, strict=True)}
        arrays = {"values": values, "labels": labels, "record_ids": record_ids}
        return arrays, {"format_version": FORMAT_VERSION, "data_sha256": sums}

    folder = _folder(name)
    sources.ensure_arrays(folder, build)
    return folder


def parse_archive(archive: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Bin the text files of one set by the hour.

    Args:
        archive: tar.gz of `<RecordID>.txt` files with the columns Time (HH:MM since admission), Parameter and Value.

    Returns:
        record numbers int64 [stay] in ascending order; values float32 [stay, 48, 35], the last value of the hour in
        the order of the file, NaN where there is none. Rows at or after 48:00 and rows without a parameter are left
        out.
    """
    tables: dict[int, bytes] = {}
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(".txt"):
                _, _, table = tar.extractfile(member).read().partition(b"\n")
                tables[int(Path(member.name).stem)] = table.strip() + b"\n"
    record_ids = np.array(sorted(tables), dtype=np.int64)
    ordered = [tables[record] for record in record_ids.tolist()]
    stay = np.repeat(np.arange(len(ordered)), [table.count(b"\n") for table in ordered])
    rows = pd.read_csv(
        io.BytesIO(b"".join(ordered)),
        header=None,
        names=["time", "parameter", "value"],
        dtype={"time": "category", "parameter": "category", "value": np.float32},
        skip_blank_lines=False,  # a stay without rows is one blank line here: rows and stays stay aligned
    )
    hours = rows["time"].cat.categories.str.partition(":").get_level_values(0).astype(int).to_numpy()
    hour = np.append(hours, NUM_HOURS)[rows["time"].cat.codes]  # code -1, no time, takes the appended hour
    columns = pd.Index(VARIABLES).get_indexer(rows["parameter"].cat.categories)
    variable = np.append(columns, -1)[rows["parameter"].cat.codes]
    value = rows["value"].to_numpy()
    kept = (hour < NUM_HOURS) & (variable >= 0) & ~np.isnan(value)

    values = np.full((len(ordered), NUM_HOURS, len(VARIABLES)), np.nan, dtype=np.float32)
    cell = np.ravel_multi_index((stay[kept], hour[kept], variable[kept]), values.shape)
    last = pd.Series(value[kept]).groupby(cell).last()
    values.reshape(-1)[last.index.to_numpy()] = last.to_numpy()
    return record_ids, values


def _folder(name: str) -> Path:
    return sources.data_home() / "physionet2012" / f"set-{name}-v{FORMAT_VERSION}"
