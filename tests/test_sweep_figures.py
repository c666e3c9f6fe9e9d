"""Figures of a sweep: which runs make which point, what is grey, what is refused."""

import json
import statistics

import matplotlib.image
import numpy as np
import pytest

from experiments import grid
from experiments.config import ConfigError
from experiments.figures import main
from experiments.grid import cells, variant_name
from experiments.runs import collect
from experiments.sweep_figures import curve_figure, heatmap_figure, sweep_scores

SWEEP = """
blocks:
  - methods: [vae, gpvae]
    datasets: [digits]
    seeds: [0, 1]
    variants: [model.beta=0.5]
    grid: {model.latent_dim: [200, 2, 16], data.data_seed: [3, 4], model.encoder_sizes: [[8], [64]]}
    exclude: [{method: gpvae, model.latent_dim: 16, model.encoder_sizes: [[8]]}]
  - {methods: [mean], datasets: [digits], seeds: [0]}
"""
AXES = ["model.latent_dim", "model.encoder_sizes"]


def value(cell):
    """What a run scored: another number for each cell."""
    size, (width,), data_seed = (cell.values[key] for key in (*AXES, "data.data_seed"))
    return (
        (2 if cell.experiment.startswith("gp") else 1) * np.log(size or 1) + width / 100 + data_seed / 7 + cell.seed / 3
    )


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A function that writes the results of the cells that are asked for; the sweep is called "small"."""
    folder = tmp_path / "experiments" / "sweeps"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(SWEEP)
    monkeypatch.setattr(grid, "SWEEPS", folder)

    def write(keep=lambda cell: True):
        for cell in cells("small"):
            if not cell.values or keep(cell):
                variant = variant_name(cell.values)
                place = tmp_path / "runs" / cell.experiment / variant / f"seed{cell.seed}"
                place.mkdir(parents=True)
                results = {"experiment": cell.experiment, "variant": variant, "seed": cell.seed}
                results["metrics"] = {"test/mse": value(cell) if cell.values else 1.0}
                (place / "results.json").write_text(json.dumps(results))
        return collect([tmp_path / "runs"])

    return write


def wide(cell):
    """Whether a cell has encoders of 64 units."""
    return cell.values.get("model.encoder_sizes") == [64]


def test_a_line_is_the_mean_and_deviation_over_seeds_of_any_kind(finished):
    lost = cells("small")[-2]  # the last one of the first block
    assert lost.values
    runs = finished(lambda cell: cell != lost)
    figure, note = curve_figure(sweep_scores("small", ["model.latent_dim"], "test/mse", runs))
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"  # from 2 to 200
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("latent dim", "MSE ↓")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "16", "200"]
    labels = [container.get_label() for container in ax.containers]
    expected = {
        f"{method} model.encoder_sizes=[{width}]": (method, width) for width in (8, 64) for method in ("vae", "gpvae")
    }
    assert set(labels) == set(expected)
    for container, label in zip(ax.containers, labels, strict=True):
        method, width = expected[label]
        line, _, (bars,) = container
        sizes = [2, 200] if (method, width) == ("gpvae", 8) else [2, 16, 200]
        assert line.get_xdata().tolist() == sizes
        for x, y, (low, high) in zip(sizes, line.get_ydata(), bars.get_segments(), strict=True):
            values = [
                value(cell) for cell in cells("small")
                if cell != lost and cell.experiment == f"{method}_digits"
                and cell.values["model.latent_dim"] == x and cell.values["model.encoder_sizes"] == [width]
            ]  # fmt: skip
            assert len(values) in (3, 4)
            assert y == pytest.approx(statistics.fmean(values))
            assert high[1] - low[1] == pytest.approx(2 * statistics.stdev(values))
    assert note == "digits, model.beta=0.5; mean ± standard deviation over 3 to 4 runs; 1 of 44 runs are missing"
    assert figure.get_supxlabel().replace("\n", " ") == note


def test_a_map_has_a_place_for_each_pair_and_is_grey_where_no_run_is(finished):
    runs = finished(lambda cell: cell.values["model.latent_dim"] != 200 or cell.experiment == "vae_digits")
    figure, note = heatmap_figure(sweep_scores("small", AXES, "test/mse", runs), y_title="units")
    panels = figure.axes[:2]
    assert [ax.get_title() for ax in panels] == ["vae", "gpvae"]
    for ax, method in zip(panels, ("vae", "gpvae"), strict=True):
        assert (ax.get_xlabel(), panels[0].get_ylabel()) == ("latent dim", "units")
        assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "16", "200"]
        assert [text.get_text() for text in ax.get_yticklabels()] == ["8", "64"]
        grey, means = (np.ma.filled(image.get_array().astype(float), np.nan) for image in ax.images)
        written = {text.get_position(): text.get_text() for text in ax.texts}
        for row, width in enumerate((8, 64)):
            for column, size in enumerate((2, 16, 200)):
                values = [
                    value(cell) for cell in cells("small")
                    if cell.experiment == f"{method}_digits" and cell.values["model.latent_dim"] == size
                    and cell.values["model.encoder_sizes"] == [width]
                ]  # fmt: skip
                absent = method == "gpvae" and size == 200
                assert len(values) == (0 if (method, width, size) == ("gpvae", 8, 16) else 4)
                assert np.isnan(grey[row, column]) == (not absent)
                if absent or not values:
                    assert np.isnan(means[row, column])
                    assert (column, row) not in written
                else:
                    assert means[row, column] == pytest.approx(np.mean(values))
                    assert float(written[column, row]) == pytest.approx(np.mean(values), abs=0.005)
    assert (
        note == "digits, model.beta=0.5; mean over 4 runs; grey: 2 of 11 places without a run; 8 of 44 runs are missing"
    )


def test_the_command_line_draws_both(finished, tmp_path, capsys, monkeypatch):
    finished(wide)
    monkeypatch.chdir(tmp_path)
    assert main(["curve", "small", "--x", "model.latent_dim", "--metric", "test/mse", "--x-title", "size"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "figures/small_curve.png"
    assert told[1].endswith("; 20 of 44 runs are missing")
    arguments = ["--x", AXES[0], "--y", AXES[1], "--metric", "test/mse", "--output", "map.png", str(tmp_path / "runs")]
    assert main(["heatmap", "small", *arguments]) == 0
    for name in ("figures/small_curve.png", "map.png"):
        assert matplotlib.image.imread(tmp_path / name)[..., :3].std() > 0.05


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["smal", "--x", "model.latent_dim"], "sweep 'smal' does not exist. Did you mean 'small'?"),
        (["small", "--x", "latent_dim"], "sweep small does not set latent_dim. Did you mean 'model.latent_dim'?"),
        (
            ["small", "--x", "model.latent_dim", "--metric", "test/mae"],
            "no run of sweep small has the metric test/mae. Did you mean 'test/mse'?",
        ),
        (["small", "elsewhere", "--x", "model.latent_dim"], "no run of sweep small is finished in the folders given: "),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(finished, arguments, error, tmp_path, capsys, monkeypatch):
    finished()
    monkeypatch.chdir(tmp_path)
    assert main(["curve", "--metric", "test/mse", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {error}")
    assert told.count("\n") == 1
    assert not (tmp_path / "figures").exists()


def test_a_curve_wants_numbers(finished, tmp_path):
    sweep_text = SWEEP.replace("[200, 2, 16]", "[2, null, 16]")
    (tmp_path / "experiments" / "sweeps" / "small.yaml").write_text(sweep_text)
    with pytest.raises(ConfigError, match=r"--x model.latent_dim: its value None is no number"):
        curve_figure(sweep_scores("small", ["model.latent_dim"], "test/mse", finished()))
