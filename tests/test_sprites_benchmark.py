"""The benchmark on SPRITES runs, compares what is the same, and refuses to time what is not."""

import pytest

from experiments.benchmarks import sprites_step
from lightning_modules.networks import blockwise, conv


def test_figures_cover_as_much_of_the_frames_as_those_of_sprites():
    batch = sprites_step.coloured_series(8, [64, 64, 3], 8)
    assert batch.target.shape == (8, 8, 64 * 64 * 3)
    assert batch.observed_mask.float().mean().item() == pytest.approx(0.4, abs=0.01)
    pixels = blockwise._padded_pixels(batch.values.view(64, 64, 64, 3))
    positions = blockwise._positions_of_patches(pixels, 64, 64, 64)
    assert len(positions) / 64**3 == pytest.approx(0.274, abs=0.01)  # of the real frames, with masks at random


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "plus"])
def test_both_forms_are_timed_and_measured(preset, monkeypatch, capsys):
    monkeypatch.setattr(sprites_step, "BATCH", 2)
    sprites_step.main(["--presets", preset, "--repeats", "1"])
    out = capsys.readouterr().out
    for line in (f"preset {preset}", "blockwise  ", "plain convolutions / blockwise: ", "MB at the peak of a step"):
        assert line in out


def test_a_blockwise_form_that_is_off_is_not_timed(monkeypatch):
    exact = conv.blockwise_convolution
    monkeypatch.setattr(sprites_step, "BATCH", 1)
    monkeypatch.setattr(conv, "blockwise_convolution", lambda *arguments: 1.01 * exact(*arguments))
    with pytest.raises(RuntimeError, match="preset paper: loss or gradients of the blockwise form are off by"):
        sprites_step.time_part("paper", repeats=1)
