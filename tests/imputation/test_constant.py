"""The fills against pandas."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.build import build_module
from experiments.config import compose
from lightning_modules.imputation.constant import FILLS, Constant

PANDAS = {
    "mean": lambda frame: frame.assign(**frame.mean()),
    "median": lambda frame: frame.assign(**frame.median()),
    "forward": lambda frame: frame.ffill(),
    "last": lambda frame: frame.ffill(),
    "next": lambda frame: frame.bfill(),
    "linear": lambda frame: frame.interpolate(method="index", limit_direction="both"),
}


@st.composite
def incomplete_series(draw):
    """Values [batch, time, feature] with garbage where not observed, mask, and irregular times or None."""
    seed, num_steps = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 12))
    generator = np.random.default_rng(seed)
    shape = (draw(st.integers(1, 3)), num_steps, draw(st.integers(1, 4)))
    # A rate of each series and feature: some have nothing observed, some everything.
    observed = generator.random(shape) < draw(st.floats(0, 1)) * generator.choice([0, 1, 2], (shape[0], 1, shape[2]))
    values = generator.normal(size=shape)
    times = generator.random(shape[:2]).cumsum(1) - 3 if draw(st.booleans()) else None
    return values, observed, times


@pytest.mark.parametrize("fill", FILLS)
@settings(max_examples=60, deadline=None)
@given(series=incomplete_series())
def test_fills_equal_pandas(fill, series):
    values, observed, times = series
    tensors = [None if array is None else torch.from_numpy(array) for array in (values, observed, times)]
    filled = Constant(fill)(*tensors).mean.numpy()
    columns = [f"feature{j}" for j in range(values.shape[2])]
    for row in range(len(values)):
        index = range(values.shape[1]) if times is None else times[row]
        frame = pd.DataFrame(np.where(observed[row], values[row], np.nan), index=index, columns=columns)
        expected = PANDAS[fill](frame).fillna(0.0)
        np.testing.assert_allclose(filled[row], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fill", FILLS)
def test_every_fill_is_an_experiment_without_training(fill):
    experiment = compose(f"{fill}_physionet")
    module = build_module(experiment)
    assert isinstance(module, Constant)
    assert module.hparams.fill == fill
    assert not list(module.parameters())


def test_linear_interpolation_follows_the_clock_not_the_position():
    values = torch.tensor([[[0.0], [9.0], [9.0], [10.0]]])
    observed_mask = torch.tensor([True, False, False, True])[None, :, None]
    filled = FILLS["linear"](values, observed_mask, torch.tensor([[0.0, 1.0, 8.0, 10.0]]))
    assert filled.flatten().tolist() == pytest.approx([0, 1, 8, 10])
