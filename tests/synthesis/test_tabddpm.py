"""TabDDPM: its losses against expectations written out, its samples against the distribution that it was shown."""

from types import SimpleNamespace

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import source

from callbacks.finite import FiniteGradients
from datamodules.base import BatchIndexSampler
from datamodules.sources import SourceError
from datamodules.synthesis.rows import RowLoader
from experiments.benchmarks.measure import operations
from experiments.build import build_data, build_module
from experiments.config import compose
from lightning_modules.processes import schedules
from lightning_modules.synthesis.tabddpm import TabDDPM

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*srun.*command is available:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]


def mixed(num_rows=3000, seed=0):
    """Two classes with known shares; a number whose mean, and a category whose odds, depend on the class."""
    random = np.random.default_rng(seed)
    y = (random.random(num_rows) < 0.3).astype(np.int64)
    number = np.where(y, 3.0, -1.0) + 0.5 * random.standard_normal(num_rows)
    category = np.where(random.random(num_rows) < np.where(y, 0.9, 0.2), "a", random.choice(["b", "c"], num_rows))
    integer = random.integers(0, 5, num_rows).astype(float)
    return source(np.column_stack([number, integer]), category[:, None].astype(object), y, "binclass")


def fitted(model, table, steps, batch_size=512, accelerator="cpu", callbacks=()):
    trainer = L.Trainer(
        max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=100, accelerator=accelerator, callbacks=[*callbacks], devices=1,
    )  # fmt: skip
    model.attach(table)
    trainer.fit(model, RowLoader(BatchIndexSampler(len(table.frame), batch_size, shuffle=True), steps))
    return trainer


def constant_output(model, value):
    """Make the network say the same of every row."""
    with torch.no_grad():
        model.denoiser.trunk[-1].weight.zero_()
        model.denoiser.trunk[-1].bias.copy_(torch.tensor(value))


@pytest.mark.parametrize("category_input", ["log_one_hot", "one_hot"])
def test_the_losses_are_the_expectations_of_the_paper(category_input):
    num_steps, sizes = 6, (3, 4)
    random = np.random.default_rng(1)
    categories = np.column_stack([random.integers(size, size=40_000) for size in sizes])
    categories[:3, 0], categories[:4, 1] = range(3), range(4)
    table = source(random.standard_normal((40_000, 2)), categories, random.integers(2, size=40_000), "binclass")
    model = TabDDPM(hidden=(8,), num_diffusion_steps=num_steps, category_input=category_input)
    model.attach(table)
    logits = np.array([0.3, -1.0, 0.5, 0.0, 1.2, -0.4, 0.1])
    constant_output(model, [0.25, -0.5, *logits])
    torch.manual_seed(0)
    gaussian_loss, multinomial_loss = model.losses(*table.encoded).tolist()
    # The noise is standard normal, whatever the step: E (noise - c)^2 = 1 + c^2.
    assert gaussian_loss == pytest.approx(1 + (0.25**2 + 0.5**2) / 2, abs=0.02)

    abar = schedules.alphas_cumprod(schedules.cosine(num_steps)).numpy()
    before = np.concatenate([[1.0], abar[:-1]])
    expected = 0.0
    for column, size in enumerate(sizes):
        start = sum(sizes[:column])
        p0 = np.exp(logits[start : start + size]) / np.exp(logits[start : start + size]).sum()
        shares = np.bincount(categories[:, column]) / len(categories)
        for x0 in range(size):
            one_hot = np.eye(size)[x0]
            for t in range(num_steps):
                alpha = abar[t] / before[t]
                q_noisy = abar[t] * one_hot + (1 - abar[t]) / size
                for xt in range(size):
                    reached = alpha * np.eye(size)[xt] + (1 - alpha) / size  # q(x_t | x_{t-1}) for each x_{t-1}
                    q = reached * (before[t] * one_hot + (1 - before[t]) / size)
                    p = reached * (before[t] * p0 + (1 - before[t]) / size)
                    q, p = q / q.sum(), p / p.sum()
                    kept = q > 0
                    kl = (q[kept] * np.log(q[kept] / p[kept])).sum()
                    expected += shares[x0] * q_noisy[xt] * kl  # T times the mean over steps
            last = abar[-1] * one_hot + (1 - abar[-1]) / size
            expected += shares[x0] * (last * np.log(last * size)).sum()
    assert multinomial_loss == pytest.approx(expected / len(sizes), rel=0.03)


def test_a_table_comes_back_with_its_dependencies():
    torch.manual_seed(0)
    table = mixed()
    options = {"hidden": (64, 64), "num_diffusion_steps": 50, "learning_rate": 3e-3}
    model = TabDDPM(**options, ema_decay=0.99, category_input="one_hot", exact_proportions=True)
    fitted(model, table, 600)
    frame = model.sample(4000, torch.Generator().manual_seed(0))
    real = table.frame
    assert frame.dtypes.to_dict() == real.dtypes.to_dict()
    assert list(frame.columns) == list(real.columns)
    assert (frame["y"] == 1).sum() == round(4000 * (real["y"] == 1).mean())
    assert set(frame["n1"]) == {0.0, 1.0, 2.0, 3.0, 4.0}  # snapped
    for label in (0, 1):
        ours, theirs = frame[frame["y"] == label], real[real["y"] == label]
        assert ours["n0"].mean() == pytest.approx(theirs["n0"].mean(), abs=0.12)
        assert ours["n0"].std() == pytest.approx(theirs["n0"].std(), abs=0.15)
        shares = [each["c0"].value_counts(normalize=True) for each in (ours, theirs)]
        assert (shares[0] - shares[1]).abs().max() < 0.06
    same, other = (model.sample(50, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    pd.testing.assert_frame_equal(same, model.sample(50, torch.Generator().manual_seed(0)))
    assert not same.equals(other)


@pytest.mark.slow
def test_conditions_hold_and_the_rest_follows_them():
    torch.manual_seed(0)
    options = {"hidden": (64, 64), "num_diffusion_steps": 50, "learning_rate": 3e-3}
    model = TabDDPM(**options, ema_decay=0.99, category_input="one_hot")
    fitted(model, mixed(), 600)
    rows = model.sample(1000, torch.Generator().manual_seed(0), {"y": 1})
    assert (rows["y"] == 1).all()
    assert rows["n0"].mean() == pytest.approx(3, abs=0.2)  # of the other class: -1
    rows = model.sample(1000, torch.Generator().manual_seed(0), {"n0": 3.25, "c0": "b"})
    assert (rows["n0"] == 3.25).all()
    assert (rows["c0"] == "b").all()
    with pytest.raises(ValueError, match=r"no column 'z'; it has n0, n1, c0, y"):
        model.sample(1, torch.Generator(), {"z": 1})
    with pytest.raises(ValueError, match=r"c0='q' is no category of the training part; there are a, b, c"):
        model.sample(1, torch.Generator(), {"c0": "q"})
    with pytest.raises(ValueError, match=r"num_rows=0"):
        model.sample(0, torch.Generator())


@pytest.mark.slow
def test_a_real_target_is_a_feature_and_tables_may_lack_a_kind_of_column():
    random = np.random.default_rng(0)
    X = random.standard_normal((1500, 1))
    y = 2 * X[:, 0] + 0.1 * random.standard_normal(1500)
    torch.manual_seed(0)
    model = TabDDPM(hidden=(64, 64), num_diffusion_steps=50, learning_rate=3e-3)
    fitted(model, source(X, None, y, "regression"), 600)
    frame = model.sample(2000, torch.Generator().manual_seed(0))
    assert np.corrcoef(frame["n0"], frame["y"])[0, 1] > 0.95
    letters = random.choice(["a", "b"], (500, 2)).astype(object)
    model = TabDDPM(network="resnet", hidden=(16, 16), num_diffusion_steps=5)
    fitted(model, source(None, letters, random.integers(3, size=500), "multiclass"), 3)
    assert set(model.sample(100, torch.Generator())["c1"]) <= {"a", "b"}


def test_the_rate_stays_for_two_steps_and_falls_to_zero():
    rates = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    model = TabDDPM(hidden=(8,), num_diffusion_steps=5, learning_rate=1.0)
    table = mixed(200)
    model.attach(table)
    trainer = L.Trainer(
        max_steps=10, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Watch()],
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, RowLoader(BatchIndexSampler(200, 64, shuffle=True), 10))
    assert rates == pytest.approx([1.0, 1.0, *(1 - (step - 1) / 10 for step in range(2, 10))])


@pytest.mark.parametrize(("sampling_steps", "calls"), [(None, 40), (8, 8)])
def test_a_sample_takes_as_many_network_calls_as_told(sampling_steps, calls):
    model = TabDDPM(hidden=(8,), num_diffusion_steps=40, sampling_steps=sampling_steps)
    model.attach(mixed(200))
    seen = []
    model.denoiser.register_forward_hook(lambda module, arguments, output: seen.append(arguments))
    model.sample(100, torch.Generator())
    assert len(seen) == calls
    assert [int(each[1]) for each in seen] == sorted({int(each[1]) for each in seen}, reverse=True)
    assert int(seen[0][1]) == 39
    assert int(seen[-1][1]) == 0


def test_stratified_steps_are_uniform_and_even():
    model = TabDDPM(num_diffusion_steps=10, step_draws="stratified")
    torch.manual_seed(0)
    for _ in range(20):
        assert torch.bincount(model.draw_steps(1000, torch.device("cpu")), minlength=10).sub(100).abs().max() <= 1
    firsts = torch.stack([model.draw_steps(7, torch.device("cpu"))[0] for _ in range(2000)])
    assert torch.bincount(firsts, minlength=10).sub(200).abs().max() < 60


def test_hundreds_of_categories_train_and_sample():
    random = np.random.default_rng(0)
    wide = np.column_stack([random.integers(3, size=2000), random.integers(500, size=2000)])
    wide[:500, 1] = range(500)
    model = TabDDPM(hidden=(32,), num_diffusion_steps=20)
    fitted(model, source(random.standard_normal((2000, 1)), wide, random.integers(2, size=2000), "binclass"), 30)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.sample(500, torch.Generator())["c1"].between(0, 499).all()


def wide_table(categories, num_rows=4096):
    """Numbers and columns of so many categories, with two classes."""
    random = np.random.default_rng(0)
    letters = np.column_stack([random.integers(size, size=num_rows) for size in categories])
    letters[: max(categories)] = np.arange(max(categories))[:, None] % categories  # each at least once
    num_numbers = 6 if categories == ADULT else 10
    return source(
        random.standard_normal((num_rows, num_numbers)), letters, random.integers(2, size=num_rows), "binclass"
    )


ADULT = (9, 16, 7, 15, 6, 5, 2, 42)


@pytest.mark.parametrize("categories", [ADULT, (10,) * 40])
def test_steps_are_made_of_few_operations(categories):
    """Of a training step with the choice of its rows and the check of its gradients; of a reverse step."""
    model = TabDDPM(hidden=(256, 256), ema_decay=0.999, sampling_steps=3)
    model.attach(wide_table(categories))
    optimizer = torch.optim.AdamW(model.denoiser.parameters(), fused=True)
    index, guard, trainer = torch.randperm(4096), FiniteGradients(), SimpleNamespace(global_step=0)

    def step():
        optimizer.zero_grad()
        model.losses(*(tensor[index] for tensor in model.encoded)).sum().backward()
        guard.on_before_optimizer_step(trainer, model, optimizer)
        optimizer.step()
        model.update_average(0)

    assert operations(step) <= 250
    held, target = model.hold(model.codec.encode_conditions({})), model.encoded.target
    with torch.no_grad():
        assert operations(lambda: model.reverse(model.average, 4096, target, held, torch.Generator())) / 3 <= 100


def test_zeros_and_ones_make_the_first_layer_an_embedding():
    """The projection of a row is that of its numbers, and its categories' rows of a table, added up."""
    table = wide_table((3, 5), 50)
    model = TabDDPM(hidden=(8,), category_input="one_hot")
    model.attach(table)
    seen = []
    model.denoiser.projection.register_forward_hook(lambda module, arguments, output: seen.append(output))
    numbers, categories, target = table.encoded
    model.denoise(model.denoiser, numbers, categories, torch.zeros(1, dtype=torch.int64), target)
    weight, bias = model.denoiser.projection.weight, model.denoiser.projection.bias
    embeddings = weight[:, 10:].t()  # [category, 128]
    added = [embeddings[categories[:, 0]], embeddings[3 + categories[:, 1]]]
    torch.testing.assert_close(seen[0], numbers @ weight[:, :10].t() + added[0] + added[1] + bias)


def test_samples_are_drawn_with_the_averaged_weights():
    table = mixed(200)
    torch.manual_seed(0)
    model = TabDDPM(hidden=(8,), num_diffusion_steps=10, ema_decay=0.9)
    plain = TabDDPM(hidden=(8,), num_diffusion_steps=10)
    weights, fitted_weights = [], {}

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            weights.append(pl_module.denoiser.projection.weight.detach().clone())
            fitted_weights.update(pl_module.denoiser.state_dict())

    model.attach(table)
    average = model.denoiser.projection.weight.detach().clone()
    fitted(model, table, 12, callbacks=[Watch()])
    for step, weight in enumerate(weights):
        decay = min(0.9, step / (9 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(model.average.projection.weight, average)

    plain.attach(table)
    frames = []
    for state in (model.average.state_dict(), fitted_weights):
        plain.denoiser.load_state_dict(state)
        frames.append(plain.sample(100, torch.Generator().manual_seed(0)))
    drawn = model.sample(100, torch.Generator().manual_seed(0))
    pd.testing.assert_frame_equal(drawn, frames[0])
    assert not drawn.equals(frames[1])


def test_mixed_precision_rounds_products_of_the_network_alone():
    """Of a network whose output bfloat16 can hold, nothing else is left to be rounded: losses, gradients, samples."""
    table = mixed(500)
    model = TabDDPM(hidden=(8,), num_diffusion_steps=20)
    model.attach(table)
    constant_output(model, [0.25, -0.5, 1.5, -0.75, 0.125])
    held, bias = model.hold(model.codec.encode_conditions({"n0": 0.3})), model.denoiser.trunk[-1].bias
    found = []
    for mixed_precision in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
            losses = model.losses(*table.encoded)
            with torch.no_grad():
                rows = model.reverse(model.denoiser, 500, table.encoded.target, held, torch.Generator().manual_seed(0))
                said = model.denoise(
                    model.denoiser, *table.encoded[:2], torch.zeros(1, dtype=torch.int64), table.encoded.target
                )
        assert said[0].dtype == (torch.bfloat16 if mixed_precision else torch.float32)  # it does compute in it
        found.append((losses, *rows))
    for full, rounded in zip(*found, strict=True):
        assert rounded.dtype == full.dtype
        torch.testing.assert_close(rounded, full, rtol=0, atol=0)
    assert found[0][0].dtype == torch.float32
    gradients = [torch.autograd.grad(each[0].sum(), bias)[0] for each in found]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=2**-8, atol=1e-3)  # that of a product is one


@pytest.mark.slow
@pytest.mark.data
def test_losses_of_california_are_those_of_the_authors_code():
    """Mean of the first 100 steps: 0.5523 in a run of theirs, 0.5531 in another."""
    experiment = compose("tabddpm_california", ["model.compile=false"])
    L.seed_everything(0, verbose=False)
    data, model = build_data(experiment), build_module(experiment)
    try:
        data.prepare_data()
    except SourceError:
        pytest.skip("the raw file is not at hand")

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 100

    trainer = L.Trainer(
        max_steps=30_000, callbacks=[Stop()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=100, accelerator="cpu", limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, data)
    assert trainer.global_step == 100  # of those by which the learning rate falls
    assert float(trainer.callback_metrics["train/gaussian_loss"]) == pytest.approx(0.5527, abs=0.004)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_step_waits_for_a_gpu():
    """Training steps between logged ones, with the check of gradients; and reverse steps under conditions."""

    class Watched(TabDDPM):
        def training_step(self, batch, batch_index):
            torch.cuda.set_sync_debug_mode("error" if 5 <= batch_index < 45 else "default")
            return super().training_step(batch, batch_index)

        def on_train_batch_end(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    model, table = Watched(hidden=(16,), num_diffusion_steps=10, ema_decay=0.99), mixed()
    try:
        fitted(model, table, 60, accelerator="gpu", callbacks=[FiniteGradients(4)])
        model.to("cuda")
        held = model.hold(model.codec.encode_conditions({"n0": 0.3, "c0": "b"}))
        target, generator = torch.zeros(100, dtype=torch.int64, device="cuda"), torch.Generator("cuda")
        with torch.no_grad():
            torch.cuda.set_sync_debug_mode("error")
            model.reverse(model.average, 100, target, held, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"ema_decay=1.5 must lie between 0 and 1"):
        TabDDPM(ema_decay=1.5)
    with pytest.raises(ValueError, match=r"hidden=\[8, 9\]: all blocks"):
        TabDDPM(network="resnet", hidden=(8, 9))
    with pytest.raises(ValueError, match=r"count=2000"):
        TabDDPM(sampling_steps=2000)


def check_compiled(device):
    """In expectation: compiled random numbers are others. Two tables, so that shapes change."""
    for num_rows in (3000, 2000):
        table, losses = mixed(num_rows), {}
        for choice in (False, True):
            torch.manual_seed(0)
            model = TabDDPM(hidden=(16,), num_diffusion_steps=20, compile=choice)
            model.attach(table)
            model.to(device).on_fit_start()
            torch.manual_seed(1)
            with torch.no_grad():
                losses[choice] = torch.stack([model.compiled_losses(*model.encoded) for _ in range(20)]).mean(0)
        torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0.02)


@pytest.mark.slow
def test_compiled_losses_are_those_that_are_not():
    check_compiled("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compiled_losses_are_those_that_are_not_on_a_gpu():
    check_compiled("cuda")
