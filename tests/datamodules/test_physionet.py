"""Parsing against a plain reading of the rules, splits and hidden entries, and the counts of the real stays."""

import io
import tarfile
import typing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from datamodules import sources
from datamodules.imputation.physionet import NUM_HOURS, VARIABLES, Physionet, parse_archive

NAMES = list(VARIABLES)


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))


def read_plainly(text):
    values = np.full((NUM_HOURS, len(NAMES)), np.nan, dtype=np.float32)
    for line in text.splitlines()[1:]:
        time, parameter, value = line.split(",")
        hour = int(time.split(":")[0])
        if parameter in NAMES and hour < NUM_HOURS:
            values[hour, NAMES.index(parameter)] = float(value)
    return values


def random_stay(generator, num_rows):
    minutes = np.sort(generator.integers(0, 48 * 60 + 1, num_rows))
    parameters = generator.choice([*NAMES[:6], "pH", "Weight", "MechVent", ""], num_rows)
    values = generator.normal(size=num_rows)
    cells = zip(minutes, parameters, values, strict=True)
    rows = [f"{minute // 60:02d}:{minute % 60:02d},{parameter},{value:.3g}" for minute, parameter, value in cells]
    return "\n".join(["Time,Parameter,Value", "00:00,RecordID,1", "00:00,Age,54", "00:00,Height,-1", *rows, ""])


def test_variables_are_the_challenge_s_series_without_two():
    series = """
        Albumin ALP ALT AST Bilirubin BUN Cholesterol Creatinine DiasABP FiO2 GCS Glucose HCO3 HCT HR K Lactate Mg MAP
        MechVent Na NIDiasABP NIMAP NISysABP PaCO2 PaO2 pH Platelets RespRate SaO2 SysABP Temp TroponinI TroponinT
        Urine WBC Weight
    """
    series = set(series.split())
    assert series - set(NAMES) == {"MechVent", "Weight"}
    assert len(series) - 2 == len(NAMES) == len(set(NAMES)) == 35
    assert (NAMES[0], NAMES[17], NAMES[-1]) == ("DiasABP", "RespRate", "ALP")


def test_parsing_by_hand(tmp_path):
    head = "Time,Parameter,Value\n"
    files = {
        "set-a/": "",
        "set-a/30.txt": head + "00:00,RecordID,30\n00:00,HR,70\n00:59,HR,71\n01:00,HR,72\n47:59,pH,7.5\n48:00,pH,6.9",
        "set-a/9.txt": head.replace("\n", "\r\n") + "00:07,HR,-1\r\n10:45,,1.9\r\n10:45,Weight,80\r\n",
        "set-a/20.txt": head,
    }
    write_archive(tmp_path / "set.tar.gz", files)
    records, values = parse_archive(tmp_path / "set.tar.gz")
    assert records.tolist() == [9, 20, 30]
    assert values.shape == (3, 48, 35)
    assert values.dtype == np.float32
    known = {tuple(cell): values[tuple(cell)] for cell in np.argwhere(~np.isnan(values)).tolist()}
    heart, acidity = NAMES.index("HR"), NAMES.index("pH")
    assert known == {(0, 0, heart): -1, (2, 0, heart): 71, (2, 1, heart): 72, (2, 47, acidity): 7.5}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(0, 300), min_size=1, max_size=5))
def test_parsing_equals_a_plain_reading(seed, lengths, tmp_path_factory):
    generator = np.random.default_rng(seed)
    path = tmp_path_factory.getbasetemp() / "plain.tar.gz"
    files = {f"set-a/{number}.txt": random_stay(generator, rows) for number, rows in enumerate(lengths, start=8)}
    write_archive(path, dict(reversed(files.items())))
    records, values = parse_archive(path)
    assert records.tolist() == list(range(8, 8 + len(lengths)))
    np.testing.assert_array_equal(values, np.stack([read_plainly(text) for text in files.values()]))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Three sets of 7, 8 and 9 made-up stays in a mirror, in the layout of the real files."""
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("GENPRED_MIRROR", str(tmp_path / "mirror"))
    folder = tmp_path / "mirror" / "physionet2012"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(7)
    number, values, labels = 100, [], []
    for name, count in (("a", 7), ("b", 8), ("c", 9)):
        files = {f"set-{name}/{number + k}.txt": random_stay(generator, 200) for k in range(count)}
        deaths = generator.integers(0, 2, count)
        rows = [f"{number + k},6,1,5,-1,{deaths[k]}" for k in generator.permutation(count)]
        table = "\n".join(["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death", *rows])
        write_archive(folder / f"set-{name}.tar.gz", files)
        (folder / f"Outcomes-{name}.txt").write_text(table)
        values += [read_plainly(text) for text in files.values()]
        labels += deaths.tolist()
        number += count
        for file in (f"set-{name}.tar.gz", f"Outcomes-{name}.txt"):
            known = sources.Source(file, f"physionet2012/{file}", (), (sources.file_sha256(folder / file),), "", "")
            monkeypatch.setitem(sources.SOURCES, file, known)
    return np.stack(values), np.array(labels)


def make(**options):
    module = Physionet(**options)
    module.prepare_data()
    module.setup()
    return module


def everything(dataset):
    return dataset[torch.arange(len(dataset))]


def restore(module, batch):
    """Raw values, NaN where not recorded, from a batch of z-scores."""
    raw = batch.target.double().numpy() * module.standard_deviation + module.mean
    return np.where((batch.observed_mask | batch.target_mask).numpy(), raw, np.nan)


def test_batches_hold_z_scores_of_the_visible_training_entries(small):
    values, labels = small
    module = make(holdout_fraction=0.2, split_seed=3)
    assert module.model_arguments == {
        "num_features": 35, "num_steps": 48, "likelihood": "gaussian", "image_shape": None,
        "num_classes": 2,
    }  # fmt: skip
    assert (module.task, module.data_variant, module.variables) == ("imputation", "published", NAMES)
    assert module.data_sha256 == {
        name: source.sha256[0] for name, source in sources.SOURCES.items() if source.path.startswith("physionet")
    }
    order = np.random.default_rng(3).permutation(24)
    parts = [everything(s) for s in (module.train_set, module.validation_set, module.test_set)]
    for part, rows in zip(parts, np.split(order, 3), strict=True):
        np.testing.assert_allclose(restore(module, part), values[rows], atol=1e-5, equal_nan=True)
        assert part.label.tolist() == labels[rows].tolist()
        assert part.index.tolist() == list(range(8))
        assert not (part.observed_mask & part.target_mask).any()
        assert torch.equal(part.values, torch.where(part.observed_mask, part.target, 0.0))
        assert (part.target[~(part.observed_mask | part.target_mask)] == 0).all()
        assert [t.dtype for t in part[:6]] == [
            torch.float32, torch.bool, torch.float32, torch.bool, torch.int64, torch.int64,
        ]  # fmt: skip

    train = parts[0]
    hidden = sum(int(part.target_mask.sum()) for part in parts)
    assert hidden == round(0.2 * np.sum(~np.isnan(values)))
    for variable in range(35):
        visible = train.values[..., variable][train.observed_mask[..., variable]].double()
        if len(visible) > 1:
            assert visible.mean().item() == pytest.approx(0, abs=1e-5)
            assert visible.std(correction=0).item() == pytest.approx(1, abs=1e-5)
        elif len(visible) == 0:
            assert (module.mean[variable], module.standard_deviation[variable]) == (0, 1)


def test_which_stays_are_used_for_what(small):
    _, labels = small

    def used(**options):
        module = make(**options)
        sets = (module.train_set, module.validation_set, module.test_set)
        return module, [everything(s) for s in sets]

    # Without a seed, the cohort's files in order; with sets of equal size these thirds are the sets.
    _, parts = used()
    assert [part.label.tolist() for part in parts] == [p.tolist() for p in np.split(labels, 3)]
    _, parts = used(evaluation="published")
    assert [part.label.tolist() for part in parts] == [p.tolist() for p in (labels[:8], labels[8:16], labels[:8])]
    assert all(torch.equal(a, b) for a, b in zip(parts[0][:6], parts[2][:6], strict=True))
    order = np.random.default_rng(5).permutation(24)
    _, parts = used(evaluation="published", split_seed=5)
    assert [p.label.tolist() for p in parts] == [labels[order[s]].tolist() for s in (slice(8), slice(8, 16), slice(8))]

    only_b = labels[7:15]
    module, parts = used(cohort="b")
    assert set(module.data_sha256) == {"set-b.tar.gz", "Outcomes-b.txt"}
    order = np.random.default_rng(0).permutation(8)
    assert [part.label.tolist() for part in parts] == [only_b[rows].tolist() for rows in np.array_split(order, 3)]
    _, parts = used(cohort="b", evaluation="published")
    assert [part.label.tolist() for part in parts] == [only_b.tolist()] * 3

    limited, parts = used(train_rows=5, validation_rows=2, test_rows=1)
    assert [len(part.label) for part in parts] == [5, 2, 1]
    np.testing.assert_array_equal(limited.mean, make().mean)


def test_hidden_entries_depend_on_their_own_seed_only(small):
    first = make(evaluation="published", cohort="a")
    again = make(evaluation="published", cohort="a", seed=4)
    other = make(evaluation="published", cohort="a", holdout_seed=1)
    assert torch.equal(first.train_set.target_mask, again.train_set.target_mask)
    assert not torch.equal(first.train_set.target_mask, other.train_set.target_mask)
    again.setup("test")
    assert torch.equal(first.train_set.target_mask, again.train_set.target_mask)


def test_the_hidden_entries_are_those_of_the_published_scores_unless_a_mechanism_is_named(small):
    values, _ = small
    recorded = ~np.isnan(values)
    places = np.flatnonzero(recorded)
    for seed in (0, 3):
        chosen = np.random.default_rng(seed).choice(places, round(0.1 * places.size), replace=False, shuffle=False)
        expected = np.zeros(values.shape, dtype=bool)
        expected.reshape(-1)[chosen] = True
        module = make(holdout_seed=seed)
        parts = [everything(each) for each in (module.train_set, module.validation_set, module.test_set)]
        np.testing.assert_array_equal(torch.cat([part.target_mask for part in parts]).numpy(), expected)
    module = make(missingness="mnar")
    hidden = [
        everything(each).target_mask.numpy() for each in (module.train_set, module.validation_set, module.test_set)
    ]
    hidden = np.concatenate(hidden)
    assert hidden.sum() == round(0.1 * places.size)
    assert not (hidden & ~recorded).any()
    assert values[hidden].mean() > np.nanmean(values) + 0.3  # of standard normal values


def test_stays_have_their_record_numbers(small):
    module = make(split_seed=3)
    order = np.random.default_rng(3).permutation(24)
    assert module.test_set.ids.tolist() == (100 + order[16:]).tolist()


def test_files_that_do_not_fit_together_are_refused(small, tmp_path, monkeypatch):
    outcomes = tmp_path / "mirror" / "physionet2012" / "Outcomes-a.txt"
    outcomes.write_text("\n".join(outcomes.read_text().splitlines()[:-1]))
    known = sources.Source(outcomes.name, "physionet2012/Outcomes-a.txt", (), (sources.file_sha256(outcomes),), "", "")
    monkeypatch.setitem(sources.SOURCES, outcomes.name, known)
    with pytest.raises(sources.SourceError, match="hold different stays"):
        Physionet(cohort="a").prepare_data()


def test_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"holdout_fraction=1\.0"):
        Physionet(holdout_fraction=1.0)
    with pytest.raises(sources.SourceError, match=r"missing or incomplete .* prepare_data\(\)"):
        Physionet().setup()
    assert typing.get_type_hints(Physionet.__init__)["split_seed"] == int | None


RAW_FILES = [f"set-{name}.tar.gz" for name in "abc"] + [f"Outcomes-{name}.txt" for name in "abc"]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The real stays, parsed into a cache of this file's own; never downloaded."""
    paths = {name: sources.find(name) for name in RAW_FILES}
    if None in paths.values():
        pytest.skip("PhysioNet 2012 is neither in GENPRED_MIRROR nor in the cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "fetch", paths.__getitem__)
        patch.setenv("GENPRED_DATA", str(tmp_path_factory.mktemp("real")))
        yield make


@pytest.mark.data
@pytest.mark.slow
def test_counts_of_the_real_stays(real):
    module = real(holdout_fraction=0.0)
    expected = {"train": (0.80532, 3, 554), "validation": (0.80467, 7, 568), "test": (0.80531, 3, 585)}
    missing = []
    for name, (fraction, empty, deaths) in expected.items():
        batch = everything(getattr(module, f"{name}_set"))
        assert batch.values.shape == (4000, 48, 35)
        observed = batch.observed_mask.numpy()
        assert 1 - observed.mean() == pytest.approx(fraction, abs=6e-6)
        assert (~observed.any((1, 2))).sum() == empty
        assert batch.label.sum() == deaths
        missing.append(1 - observed.mean())
    assert np.mean(missing) == pytest.approx(0.80510, abs=6e-6)


def fill(batch):
    """Mean of the stay and last value, 0 where there is none, both in float64 [stay, hour, variable]."""
    values, observed = batch.values.double().numpy(), batch.observed_mask.numpy()
    mean = values.sum(1, keepdims=True) / np.maximum(observed.sum(1, keepdims=True), 1)
    last = np.maximum.accumulate(np.where(observed, np.arange(NUM_HOURS)[:, None], -1), axis=1)
    forward = np.where(last >= 0, np.take_along_axis(values, np.maximum(last, 0), axis=1), 0.0)
    return {"mean": np.broadcast_to(mean, values.shape), "forward": forward}


@pytest.mark.data
def test_baselines_of_set_a_within_the_spread_of_hidden_entries(real):
    """Earlier figures for one choice of hidden entries, and standard deviations over eight choices.

    The squared errors are dominated by a few entry errors beyond 50 standard deviations: their spread is wide, that of
    the absolute errors is narrow.
    """
    batch = everything(real(cohort="a", evaluation="published").test_set)
    target, hidden = batch.target.double().numpy(), batch.target_mask.numpy()
    expected = {"mean": ((0.538, 0.043), (0.461, 0.0010)), "forward": ((0.644, 0.055), (0.454, 0.0017))}
    for name, filled in fill(batch).items():
        error = (filled - target)[hidden]
        for found, (figure, deviation) in zip((np.mean(error**2), np.mean(np.abs(error))), expected[name], strict=True):
            assert found == pytest.approx(figure, abs=3 * deviation), name


@pytest.mark.data
@pytest.mark.slow
def test_classifier_on_set_a_within_the_spread_of_hidden_entries(real):
    """AUROC of mortality, first half fits and second half scores; standard deviations over four choices."""
    batch = everything(real(cohort="a", evaluation="published").test_set)
    labels = batch.label.numpy()
    expected = {"mean": (0.679, 0.016), "forward": (0.6825, 0.0082)}
    for name, filled in fill(batch).items():
        inputs = np.where(batch.observed_mask.numpy(), batch.values.numpy(), filled).reshape(4000, -1)
        classifier = LogisticRegression(solver="liblinear", C=1.0, tol=1e-4).fit(inputs[:2000], labels[:2000])
        found = roc_auc_score(labels[2000:], classifier.predict_proba(inputs[2000:])[:, 1])
        figure, deviation = expected[name]
        assert found == pytest.approx(figure, abs=3 * deviation), name
