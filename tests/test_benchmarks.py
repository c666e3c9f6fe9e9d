"""The benchmarks run, compare what is the same, and refuse to time what is not."""

import sys

import pytest
import torch

from experiments.benchmarks import gp_likelihood, gp_part, gpvae_step, healing_mnist, measure, whole_step
from experiments.benchmarks.levers import levers, main
from experiments.grid import cells
from lightning_modules.distributions.banded import BandedGaussian
from lightning_modules.imputation.gpvae import GPVAE
from lightning_modules.networks import conv


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(whole_step, "BATCH", 2)
    # The second size is one that the dense form does not fit.
    monkeypatch.setattr(gp_part, "SIZES", ((2, 6, 3, 2.0), (3, 8, 2, 2.0)))
    monkeypatch.setattr(gp_part, "DENSE_LIMIT", 2 * 3 * 6**2)


def test_steps_take_turns():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = measure.alternate(steps, repeats=3)
    assert "".join(calls) == "ab" + "ababab"
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_whole_steps_without_pypots(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pypots", None)
    gpvae_step.main(["--parts", "physionet", "healing", "--repeats", "1"])
    out = capsys.readouterr().out
    assert out.count("pip install -e '.[bench]'") == 1
    for line in ("genpred  ", "tabulated  ", "plain convolutions / tabulated: ", "preset paper", "preset plus"):
        assert line in out


def test_a_tabulated_form_that_is_off_is_not_timed(monkeypatch):
    exact = conv.tabulated_binary_convolution
    monkeypatch.setattr(conv, "tabulated_binary_convolution", lambda *arguments: 1.01 * exact(*arguments))
    with pytest.raises(RuntimeError, match="preset paper: loss or gradients of the tabulated form are off by"):
        whole_step.healing_part(repeats=1)


def test_frames_look_like_healing_mnist(monkeypatch):
    monkeypatch.setattr(whole_step, "BATCH", 64)
    batch = whole_step.healing_series(num_frames=10)
    assert batch.target.shape == (64, 10, 784)
    assert set(batch.target.unique().tolist()) == {0.0, 1.0}
    assert batch.target.mean().item() == pytest.approx(0.133, abs=0.01)  # white pixels of the published data
    assert batch.observed_mask.float().mean().item() == pytest.approx(1 - 0.453, abs=0.01)


def test_generating_digits_leaves_the_cache_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path))
    healing_mnist.main(["--source", "digits"])
    assert "1797 sequences of digits: " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_gp_part(capsys):
    gpvae_step.main(["--parts", "gp", "--repeats", "1"])
    out = capsys.readouterr().out
    assert out.count("banded  ") == out.count("dense   ") == 2
    assert "dense does not fit at 3" in out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyPOTS brings packages that warn when they are imported
def test_pypots_computes_the_same_loss(monkeypatch):
    imputation = pytest.importorskip("pypots.imputation", reason="needs the extra bench")
    torch.manual_seed(0)
    # An odd window: for an even one PyPOTS' convolution is one step off. A short length scale: PyPOTS factorises its
    # prior in float32, which costs digits where the covariance is nearly singular.
    sizes = {"window": 5, "length_scale": 0.5, "kernel_variance": 1.005, "beta": 0.2}
    ours = GPVAE(6, 9, latent_dim=4, encoder_sizes=[8, 7], decoder_sizes=[5], precision_activation="sigmoid", **sizes)
    other = imputation.GPVAE(
        n_features=6, n_steps=9, latent_size=4, encoder_sizes=(8, 7), decoder_sizes=(5,), kernel="cauchy", beta=0.2,
        sigma=1.005, length_scale=0.5, window_size=5, device="cpu", verbose=False,
    )  # fmt: skip
    theirs = other.model.backbone
    with torch.no_grad():
        last = [torch.cat(pair) for pair in zip(
            theirs.encoder.mu_layer.parameters(), theirs.encoder.logvar_layer.parameters(), strict=True
        )]  # fmt: skip
        sources = [*theirs.encoder.net.parameters(), *last, *theirs.decoder.parameters()]
        for target, source in zip(ours.parameters(), sources, strict=True):
            target.copy_(source)
    batch = whole_step.random_series(num_steps=9, num_features=6)
    torch.manual_seed(1)
    expected = other.model.train()(
        {"X": batch.values, "missing_mask": batch.observed_mask.float()}, calc_criterion=True
    )
    # The same noise in the same places: ours is drawn time by time.
    monkeypatch.setattr(BandedGaussian, "rsample", lambda self: self.transform(torch.randn(self.mean.shape)))
    torch.manual_seed(1)
    torch.testing.assert_close(ours.loss(batch)["loss"], expected["loss"], rtol=1e-5, atol=0)
    whole_step.pypots_step(*whole_step.build("gpvae_physionet")[:1], whole_step.random_series(48, 35))()


def test_levers_are_what_the_presets_differ_in():
    assert levers("gpvae_hmnist") == [
        "model.mask_channel=true", "model.preprocessor_relu=false", "model.remasking=0.5",
    ]  # fmt: skip
    assert levers("gpvae_hmnist", "paper") == [
        "model.mask_channel=false", "model.preprocessor_relu=true", "model.remasking=0.0",
    ]  # fmt: skip
    wanted = ["model.ema_decay=null", "model.step_draws=uniform", "model.exact_proportions=false"]
    wanted += ["model.category_input=log_one_hot", "data.spread_ties=false"]
    assert sorted(levers("tabddpm_insurance", "paper")) == sorted(wanted)
    with pytest.raises(SystemExit, match=r"tabddpm_insurance is no imputer; see .* tabddpm_ablation"):
        main(["tabddpm_insurance"])


def test_the_sweep_of_tabddpm_leaves_out_each_lever_and_reads_no_test_row():
    planned = cells("tabddpm_ablation")
    assert all("data.evaluation=validation" in cell.overrides for cell in planned)
    for dataset in ("california", "diabetes", "abalone", "insurance"):
        experiment = f"tabddpm_{dataset}"
        without = {
            cell.overrides[1] for cell in planned if cell.experiment == experiment and "preset=plus" in cell.overrides
        }
        idle = {"diabetes": {"category_input"}, "california": {"category_input", "exact_proportions"}}
        idle = idle.get(dataset, {"exact_proportions"})  # no categories, no classes
        expected = {each for each in levers(experiment, "paper") if not any(key in each for key in idle)}
        assert without == expected | {"data.atoms=0.05", "data.evaluation=validation"}


def test_the_likelihood_of_gpytorch_is_ours(capsys):
    pytest.importorskip("gpytorch", reason="needs the extra bench")
    gp_likelihood.main(["--repeats", "1"])
    assert "GPyTorch / genpred: " in capsys.readouterr().out


def test_the_likelihood_without_gpytorch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gpytorch", None)
    gp_likelihood.main(["--repeats", "1"])
    out = capsys.readouterr().out
    assert "GPyTorch is not installed" in out
    assert "genpred  " in out
    assert "GPyTorch / genpred" not in out
