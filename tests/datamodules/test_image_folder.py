"""Unlabelled images: decoding, the cache, the held-out part, and mirror images that resume."""

import hashlib
import io
import multiprocessing
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import sources
from datamodules.base import BatchIndexSampler
from datamodules.segmentation.image_folder import ImageFolder, MirrorSampler
from datamodules.segmentation.images import ImagesError, centre_square, read_rgb


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("GENPRED_DATA", str(folder))
    return folder


def noise(seed, height=8, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels, format="png", **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, format, **options)
    return file.getvalue()


def make_folder(folder, num_images=12, first=0, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + num_images):
        (folder / f"{number:03d}.png").write_bytes(encoded(noise(number, **options)))
    return folder


def opened(*paths, **options):
    module = ImageFolder([str(path) for path in paths], **({"image_size": 8} | options))
    module.prepare_data()
    module.setup()
    return module


def contents(dataset):
    return dataset[torch.arange(len(dataset))].images


def arrays(home):
    """Finished folders of images in the cache."""
    return [path.parent.name for path in home.glob("image_folder/*/images.npy") if path.parent.suffix == ""]


def test_every_kind_of_image_is_read_right():
    red, green, blue = (np.full((2, 3), value) for value in (200, 100, 40))
    colours = np.stack([red, green, blue], -1).astype(np.uint8)
    colours[0, 0] = [10, 20, 30]
    grey = colours[..., 0]
    alpha = np.full((2, 3), 255, np.uint8)
    alpha[1, 1] = 0
    on_white = colours.copy()
    on_white[1, 1] = 255
    paletted = Image.fromarray(np.array([[0, 1, 1], [1, 1, 1]], np.uint8))
    paletted.putpalette([10, 20, 30, 200, 100, 40])
    transparent = paletted.copy()
    transparent.info["transparency"] = 0
    first_white = colours.copy()
    first_white[0, 0] = 255
    cmyk = Image.fromarray(np.dstack([255 - colours, np.zeros_like(grey)]), mode="CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored rows are columns from the right
    cases = {
        "colours": (encoded(colours), colours),
        "grey": (encoded(grey), np.dstack([grey] * 3)),
        "grey, 16 bits": (encoded(Image.fromarray(grey.astype(np.uint16) * 256 + 77)), np.dstack([grey] * 3)),
        "transparency": (encoded(np.dstack([colours, alpha])), on_white),
        "grey and transparency": (
            encoded(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])),
            np.where(alpha[..., None] == 0, 255, np.dstack([grey] * 3)),
        ),
        "palette": (encoded(paletted), colours),
        "gif": (encoded(paletted, "gif"), colours),
        "palette with a transparent entry": (encoded(transparent, transparency=0), first_white),
        "printing inks": (encoded(cmyk, "tiff"), colours),
        "turned": (encoded(colours, exif=exif.tobytes()), np.rot90(colours, -1)),
        "bilevel": (encoded(Image.fromarray(grey > 100)), np.dstack([255 * (grey > 100)] * 3)),
    }
    for name, (data, expected) in cases.items():
        assert np.array_equal(np.asarray(read_rgb(data)), expected), name
    with pytest.raises(ImagesError, match="floating-point"):
        read_rgb(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff"))


def test_the_middle_is_cut_out_and_resized_with_antialiasing():
    pixels = noise(1, 24, 37)
    assert np.array_equal(np.asarray(centre_square(Image.fromarray(pixels), 24)), pixels[:, 6:30])
    assert np.array_equal(
        np.asarray(centre_square(Image.fromarray(pixels.swapaxes(0, 1)), 24)), pixels[:, 6:30].swapaxes(0, 1)
    )
    pixels = noise(1, 24, 36) // 2 + 64  # Pillow cuts off what overshoots between its two passes
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    for size in (8, 32):  # the square's edges see what lies beside it, as if all of the image was resized
        ours = np.asarray(centre_square(Image.fromarray(pixels), size))
        expected = torch.nn.functional.interpolate(whole, (size, 3 * size // 2), mode="bicubic", antialias=True)
        expected = expected[0, :, :, size // 4 : 5 * size // 4].permute(1, 2, 0).clamp(0, 255).numpy()
        assert np.abs(ours - expected).max() <= 1.01
    # Finest stripes become grey, also where a JPEG is decoded at a reduced size.
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 254
    for image in (Image.fromarray(stripes), read_rgb(encoded(stripes, "jpeg", quality=100), shortest=16)):
        assert np.abs(np.asarray(centre_square(image, 8)).astype(int) - 127).max() <= 2
    assert read_rgb(encoded(stripes, "jpeg"), shortest=16).size == (32, 32)


def test_content_alone_decides(tmp_path, home):
    first = opened(make_folder(tmp_path / "a"), validation_fraction=0.3)
    other = tmp_path / "b"
    (other / "deeper").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for number, path in enumerate(sorted((tmp_path / "a").iterdir())):
            if number < 6:
                (other / "deeper" / f"{99 - number}.PNG").write_bytes(path.read_bytes())
            if number > 3:  # two of them are in both
                archive.write(path, f"x/{100 - number}.png")
        archive.writestr("__MACOSX/x/._1.png", b"no image")
        archive.writestr("notes.txt", b"no image")
    (other / ".hidden.png").write_bytes(b"no image")
    again = opened(tmp_path / "c.zip", other, validation_fraction=0.3)
    assert len(arrays(home)) == 1
    assert first.data_sha256["a"] not in again.data_sha256.values()
    for name in ("train_set", "held_out_set"):
        assert torch.equal(contents(getattr(first, name)), contents(getattr(again, name)))

    # The part of an image is what its sum says, whatever else there is.
    more = opened(make_folder(tmp_path / "a", 200, 12), validation_fraction=0.3)
    pixels = {hashlib.sha256(encoded(noise(n))).digest(): noise(n) for n in range(212)}
    expected = [pixels[key] for key in sorted(pixels) if int.from_bytes(key[:8]) < 0.3 * 2**64]
    assert 40 < len(expected) < 90
    assert np.array_equal(contents(more.held_out_set).permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert len(more.train_set) == 212 - len(expected)
    held_out = {image.tobytes() for image in contents(more.held_out_set).numpy()}
    assert {image.tobytes() for image in contents(first.held_out_set).numpy()} <= held_out
    assert next(iter(more.val_dataloader())).index.tolist() == list(range(len(expected)))[:64]


def test_both_parts_have_an_image(tmp_path):
    folder = make_folder(tmp_path / "a", 2)
    for fraction in (1e-9, 1 - 1e-9):
        module = opened(folder, validation_fraction=fraction)
        assert (len(module.train_set), len(module.held_out_set)) == (1, 1)
    (folder / "000.png").write_bytes((folder / "001.png").read_bytes())
    with pytest.raises(ImagesError, match="1 image, but training needs two"):
        opened(folder)


def test_a_changed_file_is_seen(tmp_path, home):
    folder = make_folder(tmp_path / "a")
    before = opened(folder)
    path = folder / "003.png"
    path.write_bytes(encoded(noise(77)))
    os.utime(path, ns=(1, 1))
    after = opened(folder)
    assert len(arrays(home)) == 2
    assert before.data_sha256 != after.data_sha256
    everything = torch.cat([contents(after.train_set), contents(after.held_out_set)]).permute(0, 2, 3, 1).numpy()
    assert any(np.array_equal(image, noise(77)) for image in everything)


def epoch_of(module, epoch=0):
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_mirror_images_depend_on_seed_epoch_and_row_alone(tmp_path):
    folder = make_folder(tmp_path / "a", 150)
    plain = opened(folder, flip=False, batch_size=16)
    originals = contents(plain.train_set)
    assert not torch.equal(originals, originals.flip(-1))
    seen = {}
    for seed in (0, 1):
        module = opened(folder, seed=seed, batch_size=16)
        for epoch in (0, 1):
            torch.manual_seed(epoch)
            batches = epoch_of(module, epoch)
            rows = torch.cat([batch.index for batch in batches])
            images = torch.cat([batch.images for batch in batches])
            assert sorted(rows.tolist()) == list(range(len(originals)))
            mirrored = (images != originals[rows]).flatten(1).any(1)
            expected = torch.where(mirrored[:, None, None, None], originals[rows].flip(-1), originals[rows])
            assert torch.equal(images, expected)
            assert 0.35 < mirrored.float().mean() < 0.65
            seen[seed, epoch] = mirrored[rows.argsort()]
    for one in seen:
        for other in seen:
            if one != other:
                assert 0.3 < (seen[one] == seen[other]).float().mean() < 0.7
    for batch in plain.train_dataloader():
        assert torch.equal(batch.images, originals[batch.index])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_is_taken_up_in_its_middle(tmp_path, num_workers):
    module = opened(make_folder(tmp_path / "a", 40), batch_size=4, num_workers=num_workers)
    whole = epoch_of(module, 3)
    interrupted = module.train_dataloader()
    interrupted.sampler.set_epoch(3)
    iterator = iter(interrupted)
    for _ in range(5):
        next(iterator)
    state = interrupted.state_dict()
    assert state == {"epoch": 3, "batches": 5}
    resumed = module.train_dataloader()
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == len(whole) - 5
    for ours, theirs in zip(rest, whole[5:], strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.index, theirs.index)


def test_ranks_share_the_mirrored_rows():
    plain, mirrored = (
        [sampler(23, 4, True, 5, rank, 2) for rank in range(2)] for sampler in (BatchIndexSampler, MirrorSampler)
    )
    for one, other in zip(plain, mirrored, strict=True):
        one.set_epoch(2)
        other.set_epoch(2)
        assert torch.equal(other.rows() % 23, one.rows())
        assert len(list(other)) == len(one)
    [alone] = [MirrorSampler(23, 23, True, 5)]
    alone.set_epoch(2)
    together = {*mirrored[0].rows().tolist(), *mirrored[1].rows().tolist()}
    assert together < set(alone.rows().tolist())  # a row is mirrored on whatever rank it is


def break_some(folder):
    """Three files that cannot be used, by name."""
    whole = (folder / "004.png").read_bytes()
    (folder / "004.png").write_bytes(whole[: len(whole) // 2])
    (folder / "006.jpg").write_bytes(b"<html>not found</html>")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "007.tif")
    return ["004.png", "006.jpg", "007.tif"]


def test_files_that_do_not_decode_are_named_and_nothing_is_kept(tmp_path, home):
    folder = make_folder(tmp_path / "a")
    names = break_some(folder)
    with pytest.raises(ImagesError) as caught:
        opened(folder)
    message = str(caught.value)
    assert message.startswith("3 of the images")
    assert all(str(folder / name) in message for name in names)
    assert "data.on_error=skip" in message
    assert arrays(home) == []
    with pytest.raises(sources.SourceError, match=r"prepare_data\(\)"):
        ImageFolder([str(folder)], image_size=8).setup()

    skipping = opened(folder, on_error="skip")
    assert [os.path.basename(name) for name in skipping.skipped] == sorted(names)
    assert len(skipping.train_set) + len(skipping.held_out_set) == 11
    with pytest.raises(ImagesError, match="3 of the images"):  # though the cache is there now
        opened(folder)


def test_many_faults_are_cut_short(tmp_path):
    folder = make_folder(tmp_path / "a", 2)
    for number in range(25):
        (folder / f"broken{number:02d}.jpg").write_bytes(b"%d" % number)
    with pytest.raises(ImagesError, match="25 of the images") as caught:
        opened(folder)
    assert str(caught.value).count("broken") == 20
    assert "and 5 more" in str(caught.value)


def test_a_damaged_archive_names_its_member(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", encoded(noise(number)))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 255  # of the first member
    path.write_bytes(data)
    with pytest.raises(ImagesError, match=r"images\.zip: 0\.png: .*CRC"):
        opened(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImagesError, match="not a zip archive that can be read"):
        opened(path)


def build(paths, barrier, results):
    barrier.wait()
    module = opened(*paths, validation_fraction=0.2)
    results.put([dataset.images.sum().item() for dataset in (module.train_set, module.held_out_set)])


def test_two_processes_build_the_cache_at_once(tmp_path, home):
    folder = make_folder(tmp_path / "a", 60)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=build, args=([folder], barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    total = sum(noise(number).sum(dtype=int) for number in range(60))
    assert found == [[total, total]] * 2  # both datasets look at one array
    assert len(arrays(home)) == 1
    assert not [path for path in home.rglob("*") if "unfinished" in path.name]


def test_workers_get_the_path_and_not_the_images(tmp_path):
    module = opened(make_folder(tmp_path / "a", 30, height=64, width=64), image_size=64)
    sent = pickle.dumps(module.train_set)
    assert len(sent) < 2000
    assert torch.equal(contents(pickle.loads(sent)), contents(module.train_set))


def test_names_of_known_sets_and_what_to_do_without_them(tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    make_folder(mirror / "images" / "celeba_unlabelled")
    monkeypatch.setenv("GENPRED_MIRROR", str(mirror))
    module = opened("celeba_unlabelled")
    assert len(module.train_set) + len(module.held_out_set) == 12
    assert module.model_arguments == {"image_size": 8}
    assert module.evaluation_arguments == {}
    assert (module.comparable, module.data_variant, module.task) == (False, "own", "pretraining")
    with pytest.raises(sources.SourceError, match=r"images/lfw_64\.zip is neither in GENPRED_MIRROR"):
        opened("lfw")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paths": None}, "data.paths is not set"),
        ({"paths": []}, "data.paths is not set"),
        ({"paths": "x", "image_size": 0}, "image_size=0"),
        ({"paths": "x", "validation_fraction": 0.0}, "validation_fraction=0.0"),
        ({"paths": "x", "on_error": "ignore"}, "on_error='ignore'"),
    ],
)
def test_impossible_arguments_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(**options)


def test_places_without_images_are_refused_in_words(tmp_path):
    with pytest.raises(ImagesError, match="nowhere is neither a folder nor a file"):
        ImageFolder("nowhere").prepare_data()
    (tmp_path / "a").mkdir()
    with pytest.raises(ImagesError, match=r"holds no image: their names must end in one of \.png"):
        ImageFolder(str(tmp_path / "a")).prepare_data()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, home, monkeypatch):
    folder = make_folder(tmp_path / "a")
    home.write_text("a file")
    with pytest.raises(sources.SourceError, match="GENPRED_DATA"):
        opened(folder)


@pytest.mark.data
def test_real_faces(home):
    if any(sources.find_unverified(f"images/{name}") is None for name in ("lfw_64.zip", "celeba_unlabelled")):
        pytest.skip("the faces are not in GENPRED_MIRROR")
    module = opened("lfw", "celeba_unlabelled", image_size=64)
    assert len(module.train_set) + len(module.held_out_set) == 6617 + 680
    assert 0.035 < len(module.held_out_set) / 7297 < 0.065
    with zipfile.ZipFile(sources.find_unverified("images/lfw_64.zip")) as archive:
        content = archive.read("00000.jpg")
    expected = np.asarray(Image.open(io.BytesIO(content)))  # 64 pixels already
    sums = sources.open_arrays(module._folder())[0]["sha256"]
    row = [bytes(each) for each in sums].index(hashlib.sha256(content).digest())
    assert np.array_equal(module.train_set.images[row].transpose(1, 2, 0), expected)
