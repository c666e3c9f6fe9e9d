"""The benchmark tables against the sums, sizes and splits that were published with them, and made-up raw files."""

import dataclasses
import datetime
import hashlib
import io
import json
import tarfile
import zipfile
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pooch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler, OrdinalEncoder

from datamodules import sources
from datamodules.sources import Source, SourceError
from datamodules.synthesis import benchmark, published_arrays, raw_tables, row_splits
from datamodules.synthesis.benchmark import DATASETS, BenchmarkTable, data_sha256, data_variant, load_arrays

PARTS = ("train", "val", "test")
SUBSTITUTES = {
    "fb-comments": ("features-test-set", 10_044 - 105),
    "higgs-small": ("validation-and-test-rows", 35_298),
    "miniboone": ("subset-5044", 5044),
}
BY_HAND = ("king", "wilt")


@pytest.fixture
def raw(monkeypatch):
    """Nothing is downloaded; a test whose raw files are missing is skipped."""

    def fetch(name):
        path = sources.find(name)
        if path is None:
            pytest.skip(f"{name} is neither in GENPRED_MIRROR nor in the cache")
        return path

    monkeypatch.setattr(sources, "fetch", fetch)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror and a cache without any file; `mirror(path, content)` puts one there."""
    monkeypatch.setenv("GENPRED_MIRROR", str(tmp_path))
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path / "home"))

    def put(path, content):
        file = tmp_path / "tabular" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return put


def beside(name, file):
    """A file of the mirror that only tests read."""
    path = sources.find_unverified(f"tabular/{name}/{file}")
    if path is None:
        pytest.skip(f"tabular/{name}/{file} is not in GENPRED_MIRROR")
    return path


def shorter(monkeypatch, name, rows, class_counts=(), sizes=None):
    """Facts of a data set whose made-up raw file has fewer rows."""
    dataset = DATASETS[name]
    edition = dataclasses.replace(dataset.editions[0], rows=rows, class_counts=class_counts)
    dataset = dataclasses.replace(dataset, editions=(edition,), sizes=sizes or dataset.sizes)
    monkeypatch.setitem(DATASETS, name, dataset)


def file_sums(array):
    sums = set()
    for order in "CF":
        file = io.BytesIO()
        np.save(file, np.array(array, order=order))
        sums.add(hashlib.sha256(file.getvalue()).hexdigest())
    return sums


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in DATASETS if name not in (*BY_HAND, *SUBSTITUTES, "default")])
def test_arrays_are_the_published_ones_to_the_last_bit(name, raw, monkeypatch):
    monkeypatch.setattr(published_arrays, "check", lambda *_: None)
    arrays = load_arrays(name)
    assert data_variant(name) == "published"
    expected = published_arrays.SUMS[name]
    unknown = {"cardio": {"X_cat_train", "X_cat_val"}}
    assert set(expected) == set(arrays) - unknown.get(name, set())
    for key, digest in expected.items():
        array = arrays[key]
        found = {published_arrays.npy_sha256(array, order) for order in "CF"} if array.dtype == object else None
        assert digest in (found or file_sums(array)), key


@pytest.mark.data
def test_default_has_the_published_scores_of_a_logistic_regression(raw):
    """Its sums are not known. Published is how a logistic regression does on the real rows, to four digits."""
    assert "default" not in published_arrays.SUMS
    arrays = load_arrays("default")
    ordinal = OrdinalEncoder().fit(np.concatenate([arrays[f"X_cat_{part}"] for part in PARTS]))
    scaler = MinMaxScaler().fit(arrays["X_num_train"])
    train, test = (
        np.hstack([scaler.transform(arrays[f"X_num_{part}"]), ordinal.transform(arrays[f"X_cat_{part}"])])
        for part in ("train", "test")
    )
    model = LogisticRegression(max_iter=5000, tol=1e-8).fit(train, arrays["y_train"])
    probability, label = model.predict_proba(test)[:, 1], arrays["y_test"]
    assert accuracy_score(label, probability > 0.5) == pytest.approx(0.8108, abs=6e-5)
    assert f1_score(label, probability > 0.5, average="macro") == pytest.approx(0.6180, abs=6e-5)
    assert roc_auc_score(label, probability) == pytest.approx(0.7123, abs=6e-5)


def test_sums_of_files_are_those_of_numpy_itself():
    for array in (np.arange(6, dtype=np.float32).reshape(2, 3), np.array([["a", "bcd"], ["", "ef"]])):
        assert {published_arrays.npy_sha256(array, order) for order in "CF"} == file_sums(array)


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in DATASETS if name not in BY_HAND])
def test_facts_are_those_of_the_published_description(name):
    info, dataset = json.loads(beside(name, "info.json").read_text()), DATASETS[name]
    assert (info["task_type"], info["n_num_features"], info["n_cat_features"]) == (
        dataset.task,
        len(dataset.numerical),
        len(dataset.categorical),
    )
    assert tuple(info[f"{part}_size"] for part in PARTS) == dataset.sizes
    assert dataset.num_classes == {"binclass": 2, "regression": 0, "multiclass": info.get("n_classes")}[dataset.task]
    assert all(len(edition.class_counts) == dataset.num_classes for edition in dataset.editions)


@pytest.mark.data
@pytest.mark.parametrize("name", ["adult", "buddy", "california", "churn2", "default", "diabetes", "gesture", "house"])
def test_known_seeds_give_the_published_rows_in_their_order(name, raw):
    published = np.load(beside(name, "split_idx.npz"))
    arrays = load_arrays(name)
    whole = np.empty(sum(DATASETS[name].sizes), arrays["y_train"].dtype)
    for part in PARTS:
        whole[published[part]] = arrays[f"y_{part}"]
    for part, rows in DATASETS[name].editions[0].split(whole).items():
        assert np.array_equal(rows, published[part])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("abalone", [3]),
        ("adult", [9, 16, 7, 15, 6, 5, 2, 42]),
        ("buddy", [3, 56, 19, 10, 4]),
        ("cardio", [2, 3, 3, 2, 2, 2]),
        ("churn2", [3, 2, 2, 2]),
        ("default", [2, 7, 4]),
        ("insurance", [2, 2, 4]),
    ],
)
def test_numbers_of_categories_in_training_parts(name, counts, raw):
    categories = load_arrays(name)["X_cat_train"]
    assert [len(set(column)) for column in categories.T] == counts
    assert all(isinstance(category, str) for category in categories.flat)


@pytest.mark.data
def test_quirks_of_the_published_arrays(raw):
    adult, buddy, churn, cardio = map(load_arrays, ("adult", "buddy", "churn2", "cardio"))
    assert "nan" in adult["X_cat_train"][:, 0]
    assert np.mean(adult["X_num_train"][:, 3:5] == 0, axis=0) == pytest.approx([0.916, 0.954], abs=5e-4)
    assert set(buddy["X_cat_train"][buddy["y_train"] == 2, 0]) == {"0.0"}
    assert np.array_equal(churn["X_num_train"][:, 5], churn["X_num_train"][:, 6])
    assert len(cardio["y_val"]) == 14_000 > len(cardio["y_test"]) == 11_200


@pytest.mark.data
def test_rows_of_cardio_are_used_once_and_nothing_else_changes(raw):
    listed = json.loads(beside("cardio", "cardio_idx.json").read_text())
    assert len({row for rows in listed.values() for row in rows}) == 70_000 - 20
    edition = DATASETS["cardio"].editions[0]
    frame = edition.read([sources.fetch("cardio_train.csv")], DATASETS["cardio"])
    rows = edition.split(frame["cardio"].to_numpy())
    assert sorted(np.concatenate([*rows.values()])) == list(range(70_000))
    changed = 0
    for part, columns in rows.items():
        numbers = frame[[*DATASETS["cardio"].numerical, "cardio"]].to_numpy()
        assert np.array_equal(numbers[columns], numbers[listed[part]])
        changed += np.sum(columns != listed[part])
    assert changed == 20 + 2 * 3


@pytest.mark.data
@pytest.mark.parametrize("name", SUBSTITUTES)
def test_a_substitute_is_named_and_keeps_the_columns(name, raw, caplog):
    variant, num_rows = SUBSTITUTES[name]
    if data_variant(name) == "published":
        pytest.skip("the published rows are at hand")
    arrays = load_arrays(name)
    assert data_variant(name) == variant in caplog.text
    assert sum(len(arrays[f"y_{part}"]) for part in PARTS) == num_rows
    assert arrays["X_num_train"].shape[1] == len(DATASETS[name].numerical)
    assert all(
        digest == sources.file_sha256(sources.find_unverified(f"tabular/{file}"))
        for file, digest in data_sha256(name).items()
    )


@pytest.mark.parametrize(
    ("variant", "num_samples", "expected"),
    [
        ("features-test-set", 1_264_000, 64_147),  # 8.018 a training row, as published
        ("features-test-set", None, 8000),
        ("features-test-set", 3, 1),
        ("published", 1_264_000, 1_264_000),
    ],
)
def test_from_a_substitute_as_many_rows_are_drawn_a_training_row(monkeypatch, caplog, variant, num_samples, expected):
    monkeypatch.setattr(benchmark, "data_variant", lambda name: variant)
    data = BenchmarkTable("fb-comments", num_samples=num_samples, sampling_seeds=2)
    data.encoded = SimpleNamespace(target=np.zeros(8000))
    data.trainer = SimpleNamespace(fast_dev_run=False, global_rank=0, world_size=1)
    assert [request.num_rows for request in data.test_dataloader()] == [expected] * 2
    assert ("8000 training rows, not 157638" in caplog.text) == (num_samples not in (None, expected))


@pytest.mark.data
def test_recipe_of_facebook_comments_step_by_step(raw):
    if data_variant("fb-comments") == "published":
        pytest.skip("the published rows are at hand")
    arrays = load_arrays("fb-comments")
    names = [*(f"c{number}" for number in range(53)), "target"]
    frame = pd.read_csv(sources.fetch("Features_TestSet.csv"), names=names).drop(columns=["c14", "c37"])
    train, rest = train_test_split(frame, test_size=0.2, random_state=2)
    val, test = train_test_split(rest, test_size=0.5, random_state=2)
    limit = train["target"].quantile(0.99)
    categorical = ["c3", *names[39:53]]
    for part, rows in zip(PARTS, (train, val, test), strict=True):
        rows = rows[rows["target"] <= limit]
        assert np.array_equal(arrays[f"y_{part}"], rows["target"].to_numpy(np.float32))
        assert np.array_equal(arrays[f"X_cat_{part}"], rows[categorical].to_numpy(np.int64).astype(str))
        numbers = rows[rows.columns.difference([*categorical, "target"])]
        assert np.array_equal(arrays[f"X_num_{part}"], numbers.to_numpy(np.float32))


@pytest.mark.data
def test_labels_of_miniboone_are_the_published_ones(raw):
    labels = (np.arange(130_064) < raw_tables.MINIBOONE_SIGNAL).astype(np.int64)
    for part, rows in DATASETS["miniboone"].editions[0].split(labels).items():
        assert published_arrays.SUMS["miniboone"][f"y_{part}"] in file_sums(labels[rows])


def test_the_text_of_miniboone(mirror, monkeypatch):
    values = np.random.default_rng(0).normal(size=(5, 50)).round(4)
    rows = "\n".join("  ".join(map(str, row)) for row in values.tolist())
    file = mirror("miniboone/MiniBooNE_PID.txt", f" 2 3\n{rows}\n")
    monkeypatch.setattr(raw_tables, "MINIBOONE_SIGNAL", 2)
    frame = raw_tables.miniboone([file], DATASETS["miniboone"])
    assert np.array_equal(frame[list(DATASETS["miniboone"].numerical)], values)
    assert frame["signal"].tolist() == [1, 1, 0, 0, 0]
    for content in ("", " 3 2\n" + rows, " 2 3\n1 2 3\n", " 2 3\n1 2 x\n"):
        with pytest.raises(SourceError, match="MiniBooNE_PID"):
            raw_tables.miniboone([mirror("miniboone/MiniBooNE_PID.txt", content)], DATASETS["miniboone"])


@pytest.fixture
def house(raw):
    """The raw file of house and arrays from it; to be asked for before another mirror."""
    content = beside("house", "house_16H.csv").read_text()
    return content, load_arrays("house"), load_arrays("house", "seeded", 3)


@pytest.mark.data
def test_house_from_its_published_arrays(house, mirror):
    _, arrays, drawn = house
    for key, array in arrays.items():
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(array))
        mirror(f"house/{key}.npy", file.getvalue())
    assert set(data_sha256("house")) == {f"house/{key}.npy" for key in arrays}
    assert all(np.array_equal(array, arrays[key]) for key, array in load_arrays("house").items())
    assert all(np.array_equal(array, drawn[key]) for key, array in load_arrays("house", "seeded", 3).items())


@pytest.mark.data
def test_seeded_splits(raw):
    published, same, other = (
        load_arrays("diabetes"),
        load_arrays("diabetes", "seeded"),
        load_arrays("diabetes", "seeded", 1),
    )
    assert all(np.array_equal(same[key], array) for key, array in published.items())  # seeds 0 and 0 are the published
    assert {key: array.shape for key, array in other.items()} == {key: array.shape for key, array in published.items()}
    assert not np.array_equal(other["X_num_test"], same["X_num_test"])
    for part in PARTS:
        assert other[f"y_{part}"].mean() == pytest.approx(268 / 768, abs=0.005)
    pooled = [np.concatenate([arrays[f"X_num_{part}"] for part in PARTS]) for arrays in (published, other)]
    assert np.array_equal(*(values[np.lexsort(values.T)] for values in pooled))


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(5, 60)] * 3), st.integers(0, 9), st.integers(1, 3), st.booleans())
def test_a_seeded_split_uses_every_row_once_in_the_proportions(sizes, seed, factor, stratified):
    y = np.arange(factor * sum(sizes)) % 2
    rows = row_splits.seeded(y, sizes, seed, stratified=stratified)
    assert np.array_equal(np.sort(np.concatenate([*rows.values()])), np.arange(len(y)))
    assert [len(rows[part]) for part in PARTS] == [factor * size for size in sizes]
    if stratified:
        assert all(abs(2 * y[chosen].sum() - len(chosen)) <= 2 for chosen in rows.values())


KING_HEADER = (
    "id,date,price,bedrooms,bathrooms,sqft_living,sqft_lot,floors,waterfront,view,condition,grade,sqft_above,"
    "sqft_basement,yr_built,yr_renovated,zipcode,lat,long,sqft_living15,sqft_lot15"
)
KING_DAYS = ("20141013", "20141025", "20141026", "20141027", "20140502", "20150514", "20141209", "20150101")


def king_file(count=40, price="221900"):
    rows = []
    for number in range(count):
        day = KING_DAYS[number % len(KING_DAYS)]
        rows.append(
            f'"{7129300520 + number}","{day}T000000",{price if number else "1.225e+006"},3,{1 + number / 4},1180,5650,'
            f'"1.5",{number % 2},{number % 5},{1 + number % 4},7,1180,0,{1955 + number},0,"98178",47.5112,-122.257,'
            f"1340,{number}"
        )
    return "\n".join([KING_HEADER, *rows, ""])


def test_king_from_a_made_up_file(mirror, monkeypatch):
    shorter(monkeypatch, "king", 40, sizes=(24, 8, 8))
    mirror("king/kc_house_data.csv", king_file())
    with pytest.raises(SourceError, match=r"split='seeded'.*split_idx\.npz"):
        load_arrays("king")
    order = np.random.default_rng(0).permutation(40)
    file = io.BytesIO()
    np.savez(file, train=order[:24], val=order[24:32], test=order[32:])
    mirror("king/split_idx.npz", file.getvalue())
    arrays = load_arrays("king")
    assert {key: (array.shape, array.dtype.str) for key, array in arrays.items() if "train" in key} == {
        "X_num_train": ((24, 17), "<f8"),
        "X_cat_train": ((24, 3), "<U21"),
        "y_train": ((24,), "<f8"),
    }
    numbers, categories, prices = (
        np.concatenate([arrays[f"{key}_{part}"] for part in PARTS])[np.argsort(order)]
        for key in ("X_num", "X_cat", "y")
    )
    assert prices.tolist() == [1_225_000.0, *[221_900.0] * 39]
    assert categories[6].tolist() == ["0", "1", "3"]
    moscow = ZoneInfo("Europe/Moscow")
    midnights = [datetime.datetime.strptime(day, "%Y%m%d").replace(tzinfo=moscow).timestamp() for day in KING_DAYS]
    expected = [midnight / 1000 - min(midnights) / 1000 for midnight in midnights]
    assert numbers[: len(KING_DAYS), 1].tolist() == expected
    row = numbers[6].tolist()
    assert row[0] == 7129300526
    assert row[2:] == [3, 2.5, 1180, 5650, 1.5, 7, 1180, 0, 1961, 0, 98178, 47.5112, -122.257, 1340, 6]


def wilt_file(count=60, diseased=20):
    rows = [f"{n},{n / 7:.6f},{n},2.5,-{n},{n * n},{2 if n < diseased else 1}" for n in range(count)]
    return "\n".join(["id,V1,V2,V3,V4,V5,Class", *rows, ""])


def test_wilt_from_a_made_up_file(mirror, monkeypatch):
    shorter(monkeypatch, "wilt", 60, (40, 20), (36, 12, 12))
    mirror("wilt/wilt.csv", wilt_file())
    with pytest.raises(SourceError, match=r"split='seeded'.*wilt_idx\.json"):
        load_arrays("wilt")
    order = np.random.default_rng(0).permutation(60).tolist()
    listed = {"train": order[:36], "val": order[36:48], "test": order[48:]}
    mirror("wilt/wilt_idx.json", json.dumps(listed))
    arrays = load_arrays("wilt")
    assert "X_cat_train" not in arrays
    for part, rows in listed.items():
        expected = [[round(n / 7, 6), n, 2.5, -n, n * n] for n in rows]
        assert np.array_equal(arrays[f"X_num_{part}"], np.array(expected, dtype=np.float64))
        assert arrays[f"y_{part}"].tolist() == [int(n < 20) for n in rows]
    drawn = load_arrays("wilt", "seeded", 5)
    assert [drawn[f"y_{part}"].sum() for part in PARTS] == [12, 4, 4]

    for wrong in ({**listed, "val": order[35:47]}, {**listed, "test": order[48:-1]}, {"train": order}):
        mirror("wilt/wilt_idx.json", json.dumps(wrong))
        with pytest.raises(SourceError, match=r"list of rows.*Replace|Replace its list of rows"):
            load_arrays("wilt")
    mirror("wilt/wilt_idx.json", json.dumps({"train": order[:37], "val": order[37:48], "test": order[48:]}))
    with pytest.raises(SourceError, match=r"\(37, 11, 12\) rows, expected \(36, 12, 12\)"):
        load_arrays("wilt")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("wilt", wilt_file().replace("V3", "V9"), "lacks V3 and has the unknown column V9"),
        ("wilt", wilt_file(59), "59 rows, expected 60"),
        ("wilt", wilt_file(diseased=21), "39 of class 0, 21 of class 1, expected"),
        ("wilt", wilt_file().replace("2.5", "?", 1), "column V3 has cells that are no numbers"),
        ("wilt", wilt_file().replace("2.5", "", 1), "column V3 has cells that are no numbers"),
        ("wilt", wilt_file().replace("2.5,", "", 1), "Expected 7 columns, got 6"),
        ("wilt", wilt_file().replace(",1\n", ",3\n", 1), "column Class: 3 is none of 1, 2"),
        ("wilt", "", "Empty CSV file"),
        ("king", king_file(price=""), "column price has cells that are no numbers"),
        ("king", king_file().replace("20141025T", "20141325T"), "column date"),
        ("king", king_file().replace('"1.5",1,', '"1.5",,', 1), "column waterfront has empty cells"),
    ],
)
def test_damaged_raw_files_are_refused_in_words(name, content, words, mirror, monkeypatch):
    shorter(monkeypatch, "wilt", 60, (40, 20))
    shorter(monkeypatch, "king", 40)
    path = mirror(DATASETS[name].editions[0].files[0], content)
    with pytest.raises(SourceError) as caught:
        load_arrays(name, "seeded")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.data
def test_other_values_than_the_published_are_refused(house, mirror):
    mirror("house/house_16H.csv", house[0].replace("130600", "130601", 1))
    with pytest.raises(SourceError, match=r"house: y_.* is not the published array"):
        load_arrays("house")


def test_unknown_names_and_missing_files(mirror):
    with pytest.raises(ValueError, match=r"'abalon'\. Did you mean 'abalone'"):
        load_arrays("abalon")
    with pytest.raises(ValueError, match="There are abalone, adult"):
        data_variant("titanic")
    with pytest.raises(ValueError, match="split='random': it must be one of published, seeded"):
        load_arrays("abalone", "random")
    with pytest.raises(SourceError, match=r"kc_house_data\.csv is not downloaded\. Get it from https://www\.kaggle"):
        load_arrays("king")
    # Without any file: what can be downloaded in full comes first.
    assert (data_variant("higgs-small"), data_variant("house")) == ("published", "published")
    assert data_variant("fb-comments") == "features-test-set"


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_of_an_archive_is_downloaded(kind, mirror, tmp_path, monkeypatch):
    archive, content = io.BytesIO(), b"1,2,3\n"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("folder/file.csv", content)
    else:
        with tarfile.open(fileobj=archive, mode="w:gz") as opened:
            info = tarfile.TarInfo("folder/file.csv")
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    bodies = {
        "https://a/broken": b"PK\3\4",
        "https://a/other": archive.getvalue(),
        "https://a/good": archive.getvalue(),
    }

    def download(self, url, path, _):
        with open(path, "wb") as file:
            file.write(bodies[url])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    urls = ("https://a/broken#folder/file.csv", "https://a/other#file.csv", "https://a/good#folder/file.csv")
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(
        sources.SOURCES, "file.csv", Source("file.csv", "x/file.csv", urls, (digest,), "none", "nobody")
    )
    assert sources.fetch("file.csv").read_bytes() == content
    assert [path.name for path in (tmp_path / "home").rglob("*") if path.is_file() and path.suffix != ".lock"] == [
        "file.csv"
    ]
