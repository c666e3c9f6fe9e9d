from types import SimpleNamespace
from typing import NamedTuple

import lightning as L
import matplotlib.image
import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from callbacks.figures import ImputationFigure, chosen_entries, curve_of, panels, panels_figure


class Batch(NamedTuple):
    values: Tensor
    observed_mask: Tensor
    target: Tensor
    target_mask: Tensor
    index: Tensor
    times: Tensor | None = None


def batch(series=5, time=9, variables=4, binary=False):
    g = torch.Generator().manual_seed(0)
    shape = (series, time, variables)
    truth = torch.randn(shape, generator=g)
    truth = (truth > 0).float() if binary else truth
    observed = torch.rand(shape, generator=g) < 0.5
    hidden = ~observed & (torch.rand(shape, generator=g) < 0.5)
    return Batch(truth * observed, observed, truth * (observed | hidden), hidden, torch.arange(series) + 10)


class Answer:
    """Mean 0.5, normal draws of standard deviation 2, or a point."""

    def __init__(self, like, spread=2.0):
        self.mean = torch.full_like(like, 0.5)
        self.spread = spread

    def sample(self, num_samples, *, rows):
        quantiles = torch.from_numpy(norm.ppf((np.arange(num_samples) + 0.5) / num_samples)).float()
        return self.mean + self.spread * quantiles[:, None, None, None]


def data_module(**more):
    facts = {"variables": ["HR", "pH", "Na", "K"], "units": ["1/min", "", "mEq/L", "mEq/L"], "time_label": "hours"}
    scales = {"mean": np.array([80.0, 7.4, 140.0, 4.0]), "standard_deviation": np.array([10.0, 0.1, 5.0, 0.5])}
    return SimpleNamespace(**facts, **scales, model_arguments={"image_shape": None}, **more)


def test_the_series_and_variables_with_most_hidden_entries_are_chosen():
    hidden = np.zeros((4, 6, 3), dtype=bool)
    observed = np.zeros_like(hidden)
    hidden[2, :5, 1], hidden[0, :3, 0], hidden[0, :2, 1], observed[1] = True, True, True, True
    series, variables = chosen_entries(observed, hidden, 2, 2)
    assert series.tolist() == [0, 2]
    assert variables.tolist() == [0, 1]  # variable 1 is hidden in both; 0 comes before 2 where neither is
    assert [len(each) for each in chosen_entries(observed, hidden, 10, 10)] == [4, 3]


def test_curves_are_in_the_variables_unit_and_a_point_has_no_band():
    data = batch()
    draws = Answer(data.values).sample(200, rows=data.index)[:, 1, :, 2]
    mean = torch.full((9,), 0.5)
    curve = curve_of(mean, draws, 140.0, 5.0)
    np.testing.assert_allclose(curve.mean, 142.5)
    half = np.quantile(norm.ppf((np.arange(200) + 0.5) / 200), 0.975)  # of the draws in units of their spread
    np.testing.assert_allclose(curve.lower, 142.5 - 5 * 2 * half, rtol=1e-6)
    np.testing.assert_allclose(curve.upper, 142.5 + 5 * 2 * half, rtol=1e-6)
    for point in (draws[:0], mean.expand(200, 9)):
        assert curve_of(mean, point, 140.0, 5.0).lower is None


def test_what_is_drawn_is_what_the_data_hold():
    data = batch(series=2)
    rows = panels(data, {"GP-VAE": Answer(data.values), "BRITS": Answer(data.values, 0.0)}, data_module(), [1, 2], 50)
    figure = panels_figure(rows, "hours")
    axes = np.array(figure.axes).reshape(2, 2)
    assert [ax.get_ylabel() for ax in axes[0]] == ["pH", "Na [mEq/L]"]
    assert [ax.get_title() for ax in axes[1]] == ["pH, series 11", "Na, series 11"]
    assert all(ax.get_xlabel() == "hours" for ax in axes[1])
    lines = {line.get_label(): line.get_xydata() for line in axes[1, 1].lines}
    for name, mask in (("observed", data.observed_mask), ("hidden truth", data.target_mask)):
        times = np.flatnonzero(mask[1, :, 2])
        np.testing.assert_allclose(lines[name][:, 0], times)
        np.testing.assert_allclose(lines[name][:, 1], 140 + 5 * data.target[1, times, 2].numpy(), rtol=1e-6)
    filled = lines["forward fill"][:, 1]
    first = np.flatnonzero(data.observed_mask[1, :, 2])[0]
    assert np.isnan(filled[:first]).all()
    assert filled[first] == pytest.approx(140 + 5 * data.values[1, first, 2].item())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(labels) == {"GP-VAE", "GP-VAE 95 %", "BRITS", "forward fill", "observed", "hidden truth"}


class Module(L.LightningModule):
    def __init__(self, data):
        super().__init__()
        self.data = data

    def forward(self, values, observed_mask, times=None):
        assert not self.training
        return Answer(values, spread=1.0)

    def test_step(self, batch, batch_index):
        return self(batch.values, batch.observed_mask, batch.times)


class Data(L.LightningDataModule):
    def __init__(self, data, facts):
        super().__init__()
        self.data = data
        self.__dict__.update(facts)

    def test_dataloader(self):
        return torch.utils.data.DataLoader([self.data], batch_size=None)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
@pytest.mark.parametrize("kind", ["series", "binary frames", "coloured frames", "nameless"])
def test_a_test_leaves_a_picture(kind, tmp_path):
    shape = {"binary frames": [2, 2], "coloured frames": [2, 2, 3]}.get(kind)
    data = batch(binary=kind == "binary frames", variables=4 if shape is None else int(np.prod(shape)))
    facts = vars(data_module()) if kind == "series" else {}
    callback = ImputationFigure(tmp_path / "figures", "GP-VAE")
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[callback], logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.test(Module(data), Data(data, facts | {"model_arguments": {"image_shape": shape}}), verbose=False)
    path = tmp_path / "figures" / "imputations.png"
    assert path.exists() == (kind != "nameless")
    if path.exists():
        picture = matplotlib.image.imread(path)
        assert min(picture.shape[:2]) > 200
        assert picture[..., :3].std() > 0.05
        assert not list(path.parent.glob(".*"))
