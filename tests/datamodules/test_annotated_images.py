"""The annotated sets: layout, cleaning, splits, pixels of an ensemble, and the published archive."""

import dataclasses
import hashlib
import io
import os
import tarfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pooch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from datamodules import sources
from datamodules.segmentation import annotated_images
from datamodules.segmentation.annotated_images import AnnotatedImages
from datamodules.segmentation.facts import DATASETS, UNLABELLED
from datamodules.segmentation.images import ImagesError, nearest, read_mask, whole_image, whole_mask
from datamodules.segmentation.palette import palette
from datamodules.segmentation.pixels import PixelSampler, TrainingPixels, ignore_small_regions

MIRROR = os.environ.get("GENPRED_MIRROR", "")
SIZE = 64
NUM_TRAIN, NUM_TEST = 3, 5


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("GENPRED_DATA", str(folder))
    monkeypatch.delenv("GENPRED_MIRROR", raising=False)
    return folder


def shapes(seed):
    """An image and its mask: class 1 on a background of 0, the ignored 255, 19 pixels of class 2, 20 of class 3."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    row, column = generator.integers(2, 20, 2)
    mask[row : row + 20, column : column + 25] = 1
    mask[50:54] = 255
    mask[60, 1:20] = 2
    mask[62, 1:21] = 3
    image = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return image, mask


def write(folder, stem, image, mask, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{stem}{suffix}")
    np.save(folder / f"{stem}.npy", mask)


@pytest.fixture
def cats(tmp_path, monkeypatch):
    """A mirror with a small cat_15 whose files come in no order, one of them in a folder of its own."""
    small = dataclasses.replace(DATASETS["cat_15"], train_images=NUM_TRAIN, test_images=NUM_TEST)
    monkeypatch.setitem(DATASETS, "cat_15", small)
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("GENPRED_MIRROR", str(mirror))
    folder = mirror / "images" / "cat_15"
    for part, stems in (("train", "c z a/m"), ("test", "y b q d k")):
        for stem in stems.split():
            place = folder / "real" / part / stem
            write(place.parent, f"cat_{place.name}", *shapes(ord(place.name)))
    return folder


def opened(name="cat_15", **options):
    module = AnnotatedImages(name, **({"image_size": SIZE, "num_members": 3} | options))
    module.prepare_data()
    module.setup()
    return module


def cleaned(mask, ignore_label=255):
    """The published rule, a pixel at a time."""
    result = mask.copy()
    for label in range(256):
        places = [(i, j) for i in range(len(mask)) for j in range(len(mask)) if mask[i, j] == label]
        if label != ignore_label and 0 < len(places) < 20:
            for place in places:
                result[place] = ignore_label
    return result


def test_files_are_read_in_order_and_training_masks_are_cleaned(cats):
    module = opened()
    expected = [shapes(ord(stem)) for stem in "mcz"]  # a/cat_m, cat_c, cat_z
    assert torch.equal(module.train_images, torch.from_numpy(np.stack([i.transpose(2, 0, 1) for i, _ in expected])))
    masks = np.stack([cleaned(mask) for _, mask in expected])
    assert np.array_equal(module.train_masks.numpy(), masks)
    counts = [Counter(mask.ravel().tolist()) for mask in masks]
    assert all(count[3] == 20 and count[2] == 0 and count[255] == 4 * SIZE + 19 for count in counts)

    batches = list(module.test_dataloader())
    for row, (batch, stem) in enumerate(zip(batches, "bdkqy", strict=True)):
        image, mask = shapes(ord(stem))
        assert (batch.index.tolist(), batch.images.dtype) == ([row], torch.uint8)
        assert np.array_equal(batch.images[0].numpy(), image.transpose(2, 0, 1))
        assert np.array_equal(batch.masks[0].numpy(), mask)  # nothing is cleaned
    limited = opened(train_images=2, test_images=3, evaluation_batch_size=2)
    assert torch.equal(limited.train_images, module.train_images[:2])
    assert [len(batch.index) for batch in limited.test_dataloader()] == [2, 1]


def test_a_class_that_is_ignored_is_not_counted_as_small(cats):
    mask = np.zeros((8, 8), np.uint8)
    mask[0, :3] = 5
    assert np.array_equal(ignore_small_regions(mask, 0), np.zeros_like(mask))
    mask[:] = 1
    mask[0, :3] = 0
    assert np.array_equal(ignore_small_regions(mask, 0), mask)


@pytest.mark.parametrize(("size", "new"), [(64, 64), (64, 48), (64, 17), (16, 40), (1, 3)])
def test_resizing_against_other_code(size, new):
    generator = np.random.default_rng(size)
    image = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = generator.integers(0, 9, (size, size), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(tensor, (new, new), mode="bilinear", antialias=True)[0]
    assert np.abs(whole_image(Image.fromarray(image), new) - expected.numpy()).max() <= 1.01
    rows = [int(i * size / new + 1e-9) for i in range(new)]
    assert np.array_equal(whole_mask(mask, new, 255), [[mask[i, j] for j in rows] for i in rows])
    assert np.array_equal(nearest(mask, size, size), mask)


@settings(deadline=None, max_examples=40)
@given(
    num_pixels=st.integers(1, 200),
    pixels=st.integers(1, 30),
    members=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 9),
)
def test_each_member_sees_each_pixel_once(num_pixels, pixels, members, seed, epoch):
    if num_pixels < pixels:
        with pytest.raises(ValueError, match=f"{num_pixels} annotated pixels, which do not fill a batch of {pixels}"):
            PixelSampler(num_pixels, pixels, members, seed)
        return
    sampler = PixelSampler(num_pixels, pixels, members, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) == num_pixels // pixels
    assert all(batch.shape == (pixels, members) for batch in batches)
    for member in torch.cat(batches).T.tolist():
        assert len(set(member)) == len(member)
        assert set(member) <= set(range(num_pixels))


def test_orders_differ_by_member_epoch_and_seed():
    def orders(seed, epoch):
        sampler = PixelSampler(60, 1, 4, seed)
        sampler.set_epoch(epoch)
        return sampler.rows().T.tolist()

    before = torch.get_rng_state()
    drawn = [order for seed in range(4) for epoch in range(4) for order in orders(seed, epoch)]
    assert torch.equal(torch.get_rng_state(), before)
    assert orders(2, 3) == drawn[(4 * 2 + 3) * 4 :][:4]
    flat = np.array(drawn)
    # Two independent permutations agree in one place on average.
    agreements = (flat[:, None] == flat[None]).sum(-1)[~np.eye(64, dtype=bool)]
    assert agreements.max() <= 9
    assert agreements.mean() == pytest.approx(1, abs=0.1)


def test_batches_hold_the_labels_of_all_annotated_pixels(cats):
    module = opened(pixels_per_batch=50)
    masks = module.train_masks.numpy()
    annotated = {(i, p) for i in range(NUM_TRAIN) for p in range(SIZE * SIZE) if masks[i].ravel()[p] != 255}
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == len(annotated) // 50
    image, position, label = (torch.cat([getattr(b, name) for b in batches]) for name in batches[0]._fields)
    assert image.dtype == position.dtype == label.dtype == torch.int64
    assert np.array_equal(label, masks[image, position // SIZE, position % SIZE])
    for member in range(3):
        seen = set(zip(image[:, member].tolist(), position[:, member].tolist(), strict=True))
        assert len(seen) == 50 * len(batches)
        assert seen <= annotated
    assert not torch.equal(position[:, 0], position[:, 1])


class Recorder(LightningModule):
    """Records the pixels of each step; its weights depend on them in order."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.position.sum(0).tolist()))
        values = torch.stack([batch.image, batch.position, batch.label]).double().mean((1, 2)) / SIZE**2
        return (values.float() * self.weight).sum().square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*GPU available but not used")
@pytest.mark.filterwarnings("ignore:.*`srun` command is available")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize("steps", [4, 17])
def test_training_is_taken_up_in_mid_epoch(cats, tmp_path, steps):
    path = tmp_path / "stopped.ckpt"

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == steps:
                trainer.save_checkpoint(path)

    def fit(module, callbacks=(), ckpt_path=None):
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = Trainer(
            accelerator="cpu", max_epochs=2, use_distributed_sampler=False, callbacks=list(callbacks), **quiet
        )
        data = opened(pixels_per_batch=1000)
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)

    whole, rest = Recorder(), Recorder()
    fit(whole, [Save()])
    assert len(whole.seen) == 2 * (len(opened().train_pixels) // 1000) == 22
    fit(rest, ckpt_path=path)
    assert rest.seen == whole.seen[steps:]
    assert torch.equal(rest.weight, whole.weight)


def test_ranks_learn_from_the_same_pixels_and_share_the_test_images(cats, monkeypatch):
    seen, tested = [], []
    for rank in range(2):
        monkeypatch.setattr(AnnotatedImages, "rank", rank)
        monkeypatch.setattr(AnnotatedImages, "world_size", 2)
        module = opened()
        seen.append(next(iter(module.train_dataloader())))
        tested += [batch.index.tolist() for batch in module.test_dataloader()]
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
    assert tested == [[0], [2], [4], [1], [3]]


def stems(module):
    """Names of the images by which the parts are told apart: the noise of `shapes` is that of its seed."""
    known = {shapes(ord(stem))[0].tobytes(): stem for stem in "mczbdkqy"}
    parts = module.train_images, torch.cat([batch.images for batch in module.test_dataloader()])
    return ["".join(known[image.permute(1, 2, 0).numpy().tobytes()] for image in part) for part in parts]


def test_other_splits_have_the_published_sizes(cats):
    splits = [stems(opened(split="resplit", split_seed=seed)) for seed in range(5)]
    for train, test in splits:
        assert (len(train), len(test)) == (NUM_TRAIN, NUM_TEST)
        assert set(train + test) == set("mczbdkqy")
        assert (sorted(train), sorted(test)) == (list(train), list(test))
    assert len({train for train, _ in splits}) > 2
    assert splits[0] == stems(opened(split="resplit", split_seed=0))
    # So that no release of a library changes the data in silence; RandomState(0).permutation(8) starts with 6, 2, 1.
    assert splits[0][0] == "".join(sorted("bcdkmqyz"[i] for i in (6, 2, 1)))
    assert stems(opened(split_seed=7)) == ["mcz", "bdkqy"]  # the released one knows no seed


def test_what_can_be_compared_with_published_figures(cats):
    full = {"image_size": 256}
    assert (opened(**full).data_variant, opened(**full).comparable) == ("published", True)
    resplit = opened(split="resplit", **full)
    assert (resplit.data_variant, resplit.comparable) == ("resplit", True)
    assert not opened(image_size=64).comparable
    assert not opened(train_images=2, **full).comparable
    assert not opened(test_images=2, **full).comparable
    (cats / "classes.json").write_text(str(list(DATASETS["cat_15"].classes)).replace("'", '"'))
    assert (opened(**full).data_variant, opened(**full).comparable) == ("other images", False)
    (cats / "classes.json").write_text('["background", "cat"]')
    with pytest.raises(sources.SourceError, match=r'classes\.json: the masks of this set need .*"whiskers"'):
        opened()
    (cats / "classes.json").write_text("[")
    with pytest.raises(sources.SourceError, match="not JSON"):
        opened()


def test_what_methods_and_metrics_are_told(cats):
    module = opened(seed=8)
    assert module.model_arguments == {"num_classes": 15, "image_size": SIZE, "num_members": 3, "noise_seed": 8}
    assert module.evaluation_arguments == {"num_classes": 15, "ignore_label": 255}
    assert module.class_names[13] == "whiskers"
    assert module.palette.shape == (15, 3)
    bedroom = AnnotatedImages("bedroom_28")  # known before a file is there
    assert bedroom.model_arguments["num_classes"] == 29
    assert bedroom.evaluation_arguments == {"num_classes": 29, "ignore_label": 0}
    assert bedroom.comparable
    one, other = opened().data_sha256, module.data_sha256
    assert one == other
    assert list(one) == ["images/cat_15"]


def test_the_sum_is_of_all_files(cats):
    before = opened().data_sha256
    path = next((cats / "real" / "test").glob("*.npy"))
    mask = np.load(path)
    mask[0, 0] ^= 1
    np.save(path, mask)
    assert opened().data_sha256 != before


def test_all_faulty_files_are_named_at_once(cats):
    train, test = cats / "real" / "train", cats / "real" / "test"
    np.save(train / "cat_c.npy", np.zeros((SIZE, SIZE + 1), np.uint8))
    beyond = shapes(1)[1]
    beyond[0, :4] = [15, 200, 254, 14]
    np.save(train / "cat_z.npy", beyond)
    (test / "cat_y.png").write_bytes((test / "cat_y.png").read_bytes()[:300])
    np.save(test / "cat_b.npy", np.zeros((SIZE, SIZE)))
    (test / "cat_d.npy").write_bytes(b"no array")
    image, mask = shapes(1)
    write(test, "cat_k", image[:, :-2], mask[:, :-2])
    np.save(test / "cat_q.npy", np.full((SIZE, SIZE), 300))
    module = AnnotatedImages("cat_15", image_size=SIZE)
    with pytest.raises(ImagesError) as caught:
        module.prepare_data()
    lines = str(caught.value).splitlines()
    assert "7 to be put right" in lines[0], lines
    expected = {
        "train/cat_c.npy": "65 x 64 pixels, but cat_c.png has 64 x 64",
        "train/cat_z.npy": "label 15, 200, 254, but there are 15 classes, 0 to 14, and 255",
        "test/cat_y.png": "image file is truncated",
        "test/cat_b.npy": "float64",
        "test/cat_d.npy": "does not decode",
        "test/cat_k.png": "62 x 64 pixels, but must be square",
        "test/cat_q.npy": "its values are 300 to 300",
    }
    for name, reason in expected.items():
        assert [name in line and reason in line for line in lines].count(True) == 1, name


def test_no_two_threads_parse_a_header_at_once(tmp_path, monkeypatch):
    """Which older patch releases of Python do not survive."""
    np.save(tmp_path / "mask.npy", np.eye(4, dtype=np.uint8))
    load, inside, most = np.load, [], []

    def watched(*arguments, **options):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.005)
        inside.pop()
        return load(*arguments, **options)

    monkeypatch.setattr(np, "load", watched)
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(read_mask, [tmp_path / "mask.npy"] * 12))
    assert len(most) == 12
    assert max(most) == 1
    assert all(np.array_equal(mask, np.eye(4)) for mask in masks)


def test_missing_files_are_named(cats):
    (cats / "real" / "train" / "cat_c.npy").unlink()
    (cats / "real" / "train" / "cat_z.png").unlink()
    with pytest.raises(ImagesError, match=r"(?s)cat_c\.png: it has no mask cat_c\.npy.*cat_z\.npy: it has no image"):
        opened()
    (cats / "real" / "train" / "cat_c.png").unlink()
    (cats / "real" / "train" / "cat_z.npy").unlink()
    with pytest.raises(sources.SourceError, match="has 1 training and 5 test images, but cat_15 has 3 and 5"):
        opened()


def test_setup_alone_downloads_nothing():
    with pytest.raises(sources.SourceError, match=r"cat_15 is not at hand\. Call prepare_data\(\)"):
        AnnotatedImages("cat_15").setup()


@pytest.fixture
def server(cats, tmp_path, monkeypatch):
    """The published archive at its address, and no mirror."""
    monkeypatch.delenv("GENPRED_MIRROR")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(cats, "datasets/cat_15")
        archive.add(cats / "real" / "train", "datasets/horse_21/real/train")
    answer = {"content": file.getvalue(), "asked": []}

    def download(self, url, path, *rest):
        answer["asked"].append(url)
        with open(path, "wb") as target:
            target.write(answer["content"])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    return answer


def test_the_archive_is_downloaded_once_and_pinned(server, home):
    expected = ["mcz", "bdkqy"]
    assert stems(opened()) == expected
    assert stems(opened()) == expected
    assert len(server["asked"]) == 1
    assert server["asked"][0].endswith("yandex-research/ddpm-segmentation/datasets.tar.gz")
    archive = home / "raw" / "ddpm-segmentation" / "datasets.tar.gz"
    pin = archive.with_name("datasets.tar.gz.sha256")
    assert pin.read_text() == hashlib.sha256(server["content"]).hexdigest()
    assert sorted(path.name for path in (home / "raw" / "images").iterdir() if path.is_dir()) == ["cat_15"]

    # A damaged copy is fetched anew; another content than the first is refused.
    unpacked = home / "raw" / "images" / "cat_15"
    unpacked.rename(home / "aside")
    archive.write_bytes(b"damaged")
    assert stems(opened()) == expected
    assert len(server["asked"]) == 2
    unpacked.rename(home / "aside2")
    archive.unlink()
    server["content"] += b"\0"
    with pytest.raises(sources.SourceError, match=rf"got .* expected {pin.read_text()}(?s:.*)remove .*\.sha256"):
        opened()
    assert not unpacked.exists()


def test_a_page_in_place_of_the_archive_is_not_kept(server, home):
    whole, server["content"] = server["content"], b"<html>please log in</html>"
    with pytest.raises(sources.SourceError, match="gave 26 bytes of another kind"):
        opened()
    server["content"] = whole
    assert stems(opened()) == ["mcz", "bdkqy"]


def test_an_archive_that_breaks_off_leaves_nothing_that_looks_complete(server, home):
    whole, server["content"] = server["content"], server["content"][: len(server["content"]) // 2]
    with pytest.raises(sources.SourceError, match=r"datasets\.tar\.gz is damaged: .* Remove it"):
        opened()
    assert not (home / "raw" / "images" / "cat_15").exists()
    for path in (home / "raw" / "ddpm-segmentation").iterdir():
        path.unlink()
    server["content"] = whole
    assert stems(opened()) == ["mcz", "bdkqy"]


def test_an_archive_without_the_set_is_refused(server):
    with pytest.raises(sources.SourceError, match="there is no folder ffhq_34 in it"):
        opened("ffhq_34")


def test_horses_of_one_folder_are_split_with_a_fixed_seed(tmp_path, monkeypatch):
    small = dataclasses.replace(DATASETS["weizmann_horse"], train_images=4, test_images=8)
    monkeypatch.setitem(DATASETS, "weizmann_horse", small)
    monkeypatch.setenv("GENPRED_MIRROR", str(tmp_path))
    with pytest.raises(sources.SourceError, match="cannot be downloaded from here"):
        opened("weizmann_horse")
    folder = tmp_path / "images" / "weizmann_horse"
    folder.mkdir(parents=True)
    for number in range(12):
        Image.fromarray(np.full((16, 16, 3), 20 * number, np.uint8)).save(folder / f"horse{number:03d}.jpg")
        mask = np.zeros((16, 16), np.uint8)
        mask[:8, : number + 3] = 1
        Image.fromarray(mask).save(folder / f"horse{number:03d}.png")

    def numbers(module):
        parts = module.train_images, torch.cat([batch.images for batch in module.test_dataloader()])
        return [[round(image.float().mean().item() / 20) for image in part] for part in parts]

    options = {"image_size": 16, "pixels_per_batch": 5}
    train, test = numbers(opened("weizmann_horse", **options))
    assert sorted(train + test) == list(range(12))
    assert train == sorted(np.random.RandomState(0).permutation(12)[:4].tolist())
    assert numbers(opened("weizmann_horse", split_seed=5, **options)) == [train, test]
    assert numbers(opened("weizmann_horse", split="resplit", split_seed=5, **options)) != [train, test]
    module = opened("weizmann_horse", **options)
    assert module.train_masks[2].sum() == 8 * (train[2] + 3)
    assert (module.data_variant, module.comparable) == ("own split", False)
    for path in sorted(folder.glob("*0[0-8].*")):
        path.unlink()
    with pytest.raises(sources.SourceError, match="3 images with masks, too few for 4"):
        opened("weizmann_horse", **options)


def test_facts_are_the_published_ones():
    expected = {  # training, test, outputs, scored classes, ignored label
        "bedroom_28": (40, 20, 29, 28, 0),
        "ffhq_34": (20, 20, 34, 34, 255),
        "cat_15": (30, 20, 15, 15, 255),
        "horse_21": (30, 30, 21, 21, 255),
        "celeba_19": (20, 500, 19, 19, 255),
        "ade_bedroom_30": (50, 650, 30, 30, 255),
    }
    assert list(DATASETS)[:6] == list(expected)
    for name, counts in expected.items():
        facts = DATASETS[name]
        arguments = AnnotatedImages(name).evaluation_arguments
        scored = len(set(range(arguments["num_classes"])) - {arguments["ignore_label"]})
        assert (facts.train_images, facts.test_images, len(facts.classes), scored, facts.ignore_label) == counts
        assert len(set(facts.classes)) == len(facts.classes)
        assert int(name.rpartition("_")[2]) == scored
    assert all(path.startswith("images/") for path in UNLABELLED.values())


def test_colours_can_be_told_apart():
    def lab(colours):  # CIE 1976, of sRGB under D65
        scaled = colours / 255
        linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        xyz = linear @ to_xyz.T / (to_xyz.sum(1))
        f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
        return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)

    for number, least in ((2, 80), (19, 25), (34, 15)):
        places = lab(palette(number).astype(float))
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1)[~np.eye(number, dtype=bool)]
        assert distances.min() > least, number
    assert len(np.unique(palette(256), axis=0)) == 256
    assert np.array_equal(palette(34)[:19], palette(19))
    first = palette(34)[0]
    assert first.max() < 64
    assert np.ptp(first) == 0
    assert lab(palette(34).astype(float))[1:, 0].min() > 35
    for number in (0, 257):
        with pytest.raises(ValueError, match=f"num_colours={number}"):
            palette(number)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cat_16"}, "'cat_16': it must be one of bedroom_28"),
        ({"split": "random"}, "split='random'"),
        ({"split_seed": -1}, "split_seed=-1"),
        ({"image_size": 0}, "image_size=0"),
        ({"num_members": 0}, "num_members=0"),
        ({"pixels_per_batch": 0}, "pixels_per_batch=0"),
        ({"train_images": 31}, "train_images=31: cat_15 has 30 of them"),
        ({"test_images": 0}, "test_images=0"),
    ],
)
def test_impossible_arguments_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        AnnotatedImages(**({"name": "cat_15"} | options))


def test_labels_are_not_kept_for_each_member():
    masks = torch.zeros(4, 32, 32, dtype=torch.uint8)
    pixels = TrainingPixels(masks, 255)
    assert pixels.labels.untyped_storage().data_ptr() == masks.untyped_storage().data_ptr()


@pytest.mark.data
@pytest.mark.parametrize(("name", "counts"), [("celeba_19", (20, 500)), ("weizmann_horse", (30, 297))])
def test_real_sets(name, counts, monkeypatch):
    monkeypatch.setenv("GENPRED_MIRROR", MIRROR)
    if annotated_images._find(name) is None:
        pytest.skip(f"{name} is not in GENPRED_MIRROR")
    size = DATASETS[name].resolution
    module = opened(name, image_size=size, num_workers=0)
    assert (len(module.train_images), len(module.test_set)) == counts
    assert not module.comparable
    for row, pair in list(enumerate(module.test_set.pairs))[::97]:
        batch = module.test_set[torch.tensor([row])]
        assert np.array_equal(batch.images[0].permute(1, 2, 0), np.asarray(Image.open(pair.image).convert("RGB")))
        mask = np.load(pair.mask) if pair.mask.suffix == ".npy" else np.asarray(Image.open(pair.mask))
        assert np.array_equal(batch.masks[0], mask)
    for mask in module.train_masks:
        counts = torch.bincount(mask.flatten().long(), minlength=256)[:255]
        assert counts[counts > 0].min() >= 20
