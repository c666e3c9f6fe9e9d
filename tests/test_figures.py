"""One picture of several runs, through the command line."""

import matplotlib.image
import numpy as np
import pytest

from callbacks import figures as drawing
from experiments import run
from experiments.config import compose
from experiments.figures import main

SMALL = ["trainer.max_steps=2", "val_check_interval=1", "model.latent_dim=4", "model.window=3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of two methods on one table, and one on other hidden entries."""
    root = tmp_path_factory.mktemp("figures")
    generator = np.random.default_rng(0)
    lines = [
        f"s{series},{time},{37 + generator.normal():.3f},{80 + 10 * generator.normal():.2f}"
        for series in range(40) for time in range(6)
    ]  # fmt: skip
    (root / "table.csv").write_text("\n".join(["id,time,Temp,HR", *lines, ""]))
    folders = []
    for name, more in (("gpvae_csv", SMALL), ("mean_csv", []), ("mean_csv", ["data.holdout_seed=1"])):
        arguments = [f"data.path={root / 'table.csv'}", f"run_root={root}", "logger=none", *more]
        assert run.main([name, *arguments]) == 0
        folders.append(compose(name, arguments).folder)
    return folders


def test_runs_share_one_picture(runs, tmp_path, monkeypatch, capsys):
    drawn = []
    figure = drawing.panels_figure
    monkeypatch.setattr(drawing, "panels_figure", lambda rows, label: drawn.append(rows) or figure(rows, label))
    output = tmp_path / "pictures" / "two.png"
    given = [str(runs[0]), str(runs[1]), "--output", str(output), "--series", "1,5", "--variables", "HR"]
    assert main(given) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert matplotlib.image.imread(output)[..., :3].std() > 0.05
    (rows,) = drawn
    assert [[panel.title for panel in row] for row in rows] == [["HR, series 1"], ["HR, series 5"]]
    panel = rows[0][0]
    assert list(panel.curves) == ["gpvae", "mean"]
    assert panel.curves["gpvae"].lower is not None
    assert panel.curves["mean"].lower is None
    # The mean fill is the mean of what the panel shows as observed, in the table's units.
    np.testing.assert_allclose(panel.curves["mean"].mean, panel.truth[panel.observed].mean(), rtol=1e-5)
    assert 40 < panel.truth[panel.observed].mean() < 120


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["{1}", "{2}"], "data.holdout_seed of mean "),
        (["{1}", "--variables", "Tmp"], "--variables: Tmp is not one of the data. Did you mean 'Temp'?"),
        (["{1}", "--series", "99"], "--series: the test part has the series 0 to 7"),
        (["{1}", "--series", "x"], "--series x: write whole numbers, such as 12,340"),
        (["nowhere"], "nowhere holds no finished run"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(runs, arguments, error, tmp_path, capsys):
    given = [each.format(*runs) for each in arguments]
    assert main([*given, "--output", str(tmp_path / "none.png")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {error}")
    assert told.count("\n") == 1
    assert not (tmp_path / "none.png").exists()
