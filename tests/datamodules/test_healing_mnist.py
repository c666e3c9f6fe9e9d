"""The generator against exact rotations and the published baselines; mechanisms against their stated laws."""

import hashlib
import math
import multiprocessing
import typing

import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from datamodules import sources
from datamodules.imputation import missingness
from datamodules.imputation.batch import SeriesBatch
from datamodules.imputation.healing_mnist import CHUNK, HealingMNIST, load_mnist, rotated_frames

MNIST_FILES = [name for name in sources.SOURCES if "ubyte" in name]


def unpack(bits, num_pixels):
    return np.unpackbits(bits, axis=-1, count=num_pixels).astype(bool)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache of this file's own, in which the digits are generated once."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENPRED_DATA", str(folder))
        patch.delenv("GENPRED_MIRROR", raising=False)
        HealingMNIST(source="digits").prepare_data()
    return folder


@pytest.fixture
def digits(home, monkeypatch):
    monkeypatch.setenv("GENPRED_DATA", str(home))

    def make(**options):
        module = HealingMNIST(source="digits", **options)
        module.prepare_data()
        module.setup()
        return module

    return make


def everything(dataset):
    return dataset[torch.arange(len(dataset))]


def test_quarter_turns_accumulate():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    frames = unpack(rotated_frames(images, np.full((3, 5), 90.0)), 64).reshape(3, 5, 8, 8)
    for t in range(5):
        assert np.array_equal(frames[:, t], np.rot90(images, t + 1, axes=(1, 2)) > 127)


def test_frames_are_repeated_rotations_of_the_quantised_grey_image():
    generator = np.random.default_rng(1)
    images = (255 * generator.random((4, 28, 28)) ** 2).astype(np.uint8)
    angles = generator.normal(0, 20, (4, 6))
    frames = unpack(rotated_frames(images, angles), 784).reshape(4, 6, 28, 28)
    centre = np.array([13.5, 13.5])
    for image, turns, sequence in zip(images, angles, frames, strict=True):
        grey = image.astype(np.float64)
        for angle, frame in zip(np.deg2rad(turns), sequence, strict=True):
            matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
            exact = affine_transform(grey, matrix, centre - matrix @ centre, order=3)
            grey = np.floor(np.clip(exact, 0, 255) + 0.5)
            assert np.array_equal(frame, grey > 127)


def test_frames_do_not_depend_on_how_the_work_is_shared():
    generator = np.random.default_rng(2)
    images = generator.integers(0, 256, (CHUNK + 7, 8, 8), dtype=np.uint8)
    angles = generator.normal(0, 20, (CHUNK + 7, 2))
    together = rotated_frames(images, angles)
    for row in (0, 1, CHUNK - 1, CHUNK, CHUNK + 6):
        assert np.array_equal(rotated_frames(images[row : row + 1], angles[row : row + 1])[0], together[row])


def test_batches_of_digits(digits):
    module = digits(num_frames=10)
    assert module.model_arguments == {
        "num_features": 64,
        "num_steps": 10,
        "likelihood": "bernoulli",
        "image_shape": [8, 8],
        "num_classes": 10,
    }
    assert (module.task, module.data_variant) == ("imputation", "digits")
    bunch = sklearn.datasets.load_digits()
    for dataset, labels in ((module.train_set, bunch.target[:1200]), (module.test_set, bunch.target[1200:])):
        batch = everything(dataset)
        assert isinstance(batch, SeriesBatch)
        assert batch.times is None
        for tensor, dtype in zip(
            batch[:6], [torch.float32, torch.bool, torch.float32, torch.bool, torch.int64, torch.int64], strict=True
        ):
            assert tensor.dtype == dtype
        for tensor in batch[:4]:
            assert tensor.shape == (len(labels), 10, 64)
        assert torch.equal(batch.observed_mask, ~batch.target_mask)
        assert torch.equal(batch.values, torch.where(batch.observed_mask, batch.target, 0.0))
        assert set(batch.target.unique().tolist()) == {0.0, 1.0}
        assert batch.label.tolist() == labels.tolist()
        assert batch.index.tolist() == list(range(len(labels)))
    rows = torch.tensor([5, 2, 2])
    whole = everything(module.test_set)
    assert all(torch.equal(a, b[rows]) for a, b in zip(module.test_set[rows][:6], whole[:6], strict=True))
    scaled = np.rint(bunch.images * 255 / 16).astype(np.uint8)
    assert module.data_sha256 == {"digits": hashlib.sha256(scaled.tobytes()).hexdigest()}


def test_validation_rows_and_limits(digits):
    published, separate = digits(), digits(fit_on="train")
    assert [len(s) for s in (published.train_set, published.validation_set, published.test_set)] == [1200, 150, 597]
    assert [len(s) for s in (separate.train_set, separate.validation_set, separate.test_set)] == [1050, 150, 597]
    train, validation = everything(published.train_set), everything(published.validation_set)
    for name in ("values", "observed_mask", "target", "target_mask", "label"):
        assert torch.equal(getattr(train, name)[1050:], getattr(validation, name))
        assert torch.equal(getattr(train, name)[:1050], getattr(everything(separate.train_set), name))
    assert validation.index.tolist() == list(range(150))

    limited = digits(train_rows=7, validation_rows=5, test_rows=3, batch_size=4, evaluation_batch_size=2)
    assert [len(b.index) for b in limited.train_dataloader()] == [4, 3]
    assert [b.index.tolist() for b in limited.val_dataloader()] == [[0, 1], [2, 3], [4]]
    assert [b.index.tolist() for b in limited.test_dataloader()] == [[0, 1], [2]]


def test_several_sequences_of_a_digit_stay_on_one_side_of_the_split(digits):
    module = digits(num_frames=2, sequences_per_digit=3, fit_on="train")
    assert [len(s) for s in (module.train_set, module.validation_set, module.test_set)] == [3150, 150, 597]
    target = sklearn.datasets.load_digits().target
    train = everything(module.train_set)
    assert train.label.tolist() == np.repeat(target[:1050], 3).tolist()
    assert everything(module.validation_set).label.tolist() == target[1050:1200].tolist()
    sequences = train.target.reshape(1050, 3, -1)
    assert (sequences[:, 0] != sequences[:, 1]).any(-1).float().mean() > 0.95


@pytest.mark.slow
def test_data_depend_on_the_data_seed_and_frames_not_on_the_mechanism(digits):
    reference = everything(digits(num_frames=3).test_set)
    same = everything(digits(num_frames=3, seed=9).test_set)
    assert all(torch.equal(a, b) for a, b in zip(reference[:6], same[:6], strict=True))
    other_seed = everything(digits(num_frames=3, data_seed=1).test_set)
    assert (other_seed.target != reference.target).any(-1).any(-1).float().mean() > 0.99
    for mechanism in ("random", "spatial", "temporal_positive", "temporal_negative"):
        batch = everything(digits(num_frames=3, missingness=mechanism).test_set)
        assert torch.equal(batch.target, reference.target)
        # A patch of the spatial mechanism covers most of such a small frame: 1,791 nearly independent draws.
        assert batch.target_mask.float().mean().item() == pytest.approx(0.6, abs=3 * standard_error(0.6, 1791))


def test_two_processes_prepare_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)

    def work():
        barrier.wait()
        HealingMNIST(source="digits", num_frames=2).prepare_data()

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    folders = [path for path in (tmp_path / "healing_mnist").iterdir() if path.is_dir()]
    assert len(folders) == 2
    module = HealingMNIST(source="digits", num_frames=2)
    module.setup()
    assert len(module.test_set) == 597


def test_setup_without_data_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path))
    with pytest.raises(sources.SourceError, match=r"missing or incomplete .* prepare_data\(\)"):
        HealingMNIST(source="digits").setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequences_per_digit": 2}, "sequences_per_digit=2: MNIST gives one"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"rotation_std": -1.0}, "rotation_std=-1.0"),
    ],
)
def test_impossible_arguments_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        HealingMNIST(**options)


def test_the_constructor_can_be_checked_by_its_annotations():
    hints = typing.get_type_hints(HealingMNIST.__init__)
    assert typing.get_args(hints["source"]) == ("mnist", "digits")
    assert set(typing.get_args(hints["missingness"])) == {
        "mnar", "random", "spatial", "temporal_positive", "temporal_negative",
    }  # fmt: skip


def standard_error(rate, count):
    return math.sqrt(rate * (1 - rate) / count)


def test_mnar_hides_white_pixels_twice_as_often():
    generator = np.random.default_rng(3)
    frames = generator.random((100, 10, 300)) < 0.13
    hidden = ~missingness.mnar(frames, generator)
    for colour, rate in ((False, 0.4), (True, 0.8)):
        chosen = hidden[frames == colour]
        assert chosen.mean() == pytest.approx(rate, abs=4 * standard_error(rate, chosen.size))


def test_random_hides_independently():
    hidden = ~missingness.random((100, 10, 300), np.random.default_rng(4))
    assert hidden.mean() == pytest.approx(0.6, abs=4 * standard_error(0.6, hidden.size))
    for axis in (0, 1, 2):
        first, second = np.moveaxis(hidden, axis, 0)[:-1].ravel(), np.moveaxis(hidden, axis, 0)[1:].ravel()
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(first.size)


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(0.1, 0.9), fraction=st.floats(0, 1), seed=st.integers(0, 1000))
def test_temporal_chain_has_the_stated_rate_and_autocorrelation(rate, fraction, seed):
    lowest = -min(rate / (1 - rate), (1 - rate) / rate)
    autocorrelation = 0.99 * lowest + fraction * (0.95 - 0.99 * lowest)
    hidden = ~missingness.temporal((200, 12, 100), np.random.default_rng(seed), rate, autocorrelation)
    m = hidden.astype(np.float64)
    # 20,000 independent chains, at each time step; six standard errors, for many examples are tried.
    assert np.abs(m.mean((0, 2)) - rate).max() < 6 * standard_error(rate, 20_000)
    for lag in (1, 2, 5):
        products = (m[:, :-lag] - rate) * (m[:, lag:] - rate) / (rate * (1 - rate))
        error = products.mean((0, 2)) - autocorrelation**lag
        assert np.abs(error).max() < 6 * products.std((0, 2)).max() / math.sqrt(20_000) + 1e-12


def test_an_impossible_chain_is_refused():
    with pytest.raises(ValueError, match=r"autocorrelation=-0.8 is impossible with rate=0.6: .* -0.667 and 1"):
        missingness.temporal((1, 2, 3), np.random.default_rng(0), 0.6, -0.8)


def test_spatial_patches_follow_the_thresholded_field():
    """Rate at every pixel, independence over time, and the neighbours' correlation from the bivariate normal law."""
    hidden = ~missingness.spatial((1500, 2, 144), (12, 12), np.random.default_rng(5))
    m = hidden.reshape(1500, 2, 12, 12).astype(np.float64)
    assert m.mean() == pytest.approx(0.6, abs=0.01)
    assert np.abs(m.mean((0, 1)) - 0.6).max() < 5 * standard_error(0.6, 3000)
    assert abs(np.corrcoef(hidden[:, 0].ravel(), hidden[:, 1].ravel())[0, 1]) < 0.02

    # Smoothing with a Gaussian of width 2 gives the correlation exp(-d^2 / 16); draw pairs from that law.
    normal = np.random.default_rng(6).standard_normal((2, 400_000))
    threshold = 0.2533471031357997  # 60 % point of the standard normal
    for distance in (1, 3):
        correlation = math.exp(-(distance**2) / 16)
        pair = normal[0], correlation * normal[0] + math.sqrt(1 - correlation**2) * normal[1]
        expected = np.mean((pair[0] < threshold) & (pair[1] < threshold))
        found = np.mean(m * np.roll(m, distance, axis=3))
        assert found == pytest.approx(expected, abs=0.01)


def mnist_or_skip():
    if any(sources.find(name) is None for name in MNIST_FILES):
        pytest.skip("MNIST is neither in GENPRED_MIRROR nor in the cache")


@pytest.mark.data
def test_mnist_files_are_read_as_published():
    mnist_or_skip()
    sums = {
        "train": ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624", 60_000),
        "test": ("2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637", 10_000),
    }
    for split, (images_md5, labels_md5, count) in sums.items():
        images, labels, raw = load_mnist(split)
        # The published sums are of the whole raw files, whose headers say magic number and shape.
        header = b"".join(n.to_bytes(4, "big") for n in (0x803, count, 28, 28))
        assert hashlib.md5(header + images.tobytes()).hexdigest() == images_md5
        header = b"".join(n.to_bytes(4, "big") for n in (0x801, count))
        assert hashlib.md5(header + labels.tobytes()).hexdigest() == labels_md5
        assert all(digest in sources.SOURCES[name].sha256 for name, digest in raw.items())


@pytest.mark.data
@pytest.mark.slow
def test_published_baselines(tmp_path, monkeypatch):
    """Rate and errors on the 10,000 test sequences; published: mean 0.168, forward 0.177 (GP-VAE, Table 1)."""
    mnist_or_skip()
    paths = {name: sources.find(name) for name in MNIST_FILES}
    monkeypatch.setattr(sources, "fetch", paths.__getitem__)
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path))
    arrays, _ = sources.open_arrays(HealingMNIST().generate("test"))
    frames, observed = (unpack(arrays[name], 784) for name in ("frames", "observed"))
    hidden = ~observed
    assert hidden.mean() == pytest.approx(0.453, abs=0.002)

    counts = observed.sum(1, keepdims=True)
    mean = np.round((frames & observed).sum(1, keepdims=True) / np.maximum(counts, 1))
    last = np.maximum.accumulate(np.where(observed, np.arange(10)[:, None], -1), axis=1)
    forward = np.take_along_axis(frames, np.maximum(last, 0), axis=1) & (last >= 0)
    for filled, published in ((np.zeros_like(frames), 0.2344), (mean, 0.1677), (forward, 0.1768)):
        assert (filled != frames)[hidden].mean() == pytest.approx(published, abs=0.002)
