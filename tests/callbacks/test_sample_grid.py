"""Grids of drawn images: their pixels, when they are drawn, and that training does not notice."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.figures import save_figure
from callbacks.sample_grid import SampleGrid, grid_figure


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


class Drawing:
    """What the callback asks of a LightningModule."""

    device = torch.device("cpu")

    def __init__(self, num_diffusion_steps=1000):
        self.hparams = SimpleNamespace(num_diffusion_steps=num_diffusion_steps)
        self.calls = []

    def sample(self, num_images, generator, sampling_steps):
        self.calls.append((num_images, generator.initial_seed(), sampling_steps))
        return torch.randint(256, (num_images, 3, 4, 6), dtype=torch.uint8, generator=generator)


class Precision:
    """Notes that samples are drawn within the run's precision."""

    def __init__(self):
        self.entered = 0

    @contextlib.contextmanager
    def forward_context(self):
        self.entered += 1
        yield


def made(step=0, zero=True, logger=None):
    return SimpleNamespace(global_step=step, is_global_zero=zero, precision_plugin=Precision(), logger=logger)


@pytest.mark.parametrize(("number", "columns"), [(6, 3), (5, 3), (1, 1)])
def test_the_file_shows_each_pixel_in_its_place(tmp_path, number, columns):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (number, 3, 4, 6), dtype=np.uint8))
    save_figure(grid_figure(images, columns), tmp_path / "samples.png")
    found, rows = pixels(tmp_path / "samples.png"), -(-number // columns)
    assert found.shape == (2 * 4 * rows, 2 * 6 * columns, 3)  # a pixel is drawn as 2 x 2
    expected = np.full((4 * rows, 6 * columns, 3), 255, np.uint8)
    for place, image in enumerate(images.numpy()):
        row, column = divmod(place, columns)
        expected[4 * row : 4 * row + 4, 6 * column : 6 * column + 6] = image.transpose(1, 2, 0)
    np.testing.assert_array_equal(found, expected.repeat(2, 0).repeat(2, 1))


def test_grids_come_at_their_steps_from_the_same_noise(tmp_path):
    grid = SampleGrid(tmp_path / "figures", every_n_steps=3, num_images=4, columns=2, sampling_steps=7, seed=5)
    module, drawn, files = Drawing(), [], set()
    for step in [0, 0, 1, 2, 3, 3, 4, 5, 6, 7]:  # two batches make a step at first
        trainer = made(step)
        grid.on_train_batch_end(trainer, module, None, None, 0)
        if trainer.precision_plugin.entered:
            drawn.append(step)
            files.add((tmp_path / "figures" / "samples.png").read_bytes())
    assert drawn == [3, 6]
    assert module.calls == [(4, 5, 7)] * 2
    assert len(files) == 1
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["samples.png"]


def test_after_the_test_one_is_drawn_and_handed_to_a_logger_of_images(tmp_path):
    handed = []
    logger = SimpleNamespace(log_image=lambda key, images: handed.append((key, images)))
    module, grid = Drawing(), SampleGrid(tmp_path, num_images=3, columns=2)
    before = torch.get_rng_state()
    grid.on_test_end(made(logger=logger), module)
    assert torch.equal(before, torch.get_rng_state())
    assert handed == [("figures/samples", [str(tmp_path / "samples.png")])]
    assert pixels(tmp_path / "samples.png").shape == (16, 24, 3)


@pytest.mark.parametrize(("there", "taken"), [(1000, 50), (50, 50), (40, 40)])
def test_an_image_takes_no_more_steps_than_the_process_has(there, taken, tmp_path):
    module = Drawing(there)
    SampleGrid(tmp_path, num_images=1).on_test_end(made(), module)
    assert module.calls == [(1, 0, taken)]


def test_only_the_first_process_draws(tmp_path):
    module, grid = Drawing(), SampleGrid(tmp_path, every_n_steps=1)
    grid.on_train_batch_end(made(1, zero=False), module, None, None, 0)
    grid.on_test_end(made(zero=False), module)
    assert not module.calls
    assert not list(tmp_path.iterdir())
