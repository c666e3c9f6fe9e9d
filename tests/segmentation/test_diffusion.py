"""Pre-training: its losses written out, its average, its samples against a known distribution, resuming, two ranks."""

import copy
import io
import math

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed
from ddp import run_in_processes
from PIL import Image
from torch import nn
from torch.distributions import Normal, kl_divergence

from callbacks.diffusion_metrics import DiffusionMetrics
from callbacks.rng import RandomState
from datamodules.segmentation.batch import ImageBatch
from datamodules.segmentation.image_folder import ImageFolder
from lightning_modules.segmentation.diffusion import DiffusionPretraining, scaled

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*srun.*command is available:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]
TINY = {
    "image_size": 16, "channel_multipliers": (1, 2), "attention_resolutions": (8,), "channels_per_head": 16,
    "num_diffusion_steps": 50, "warm_up_steps": 0, "learning_rate": 1e-3,
}  # fmt: skip
STEPS = TINY["num_diffusion_steps"]


def module(seed=0, **options):
    torch.manual_seed(seed)
    return DiffusionPretraining(**(TINY | options))


def filled(model, seed=1):
    """Random numbers where zeros would make all predictions alike; the average has others than the network."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def pictures(number, side=16, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (number, 3, side, side), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two kinds of picture, a bright and a dark half, with little noise."""
    place, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(26):
        pixels = np.full((16, 16, 3), 40)
        pixels[:, :8] = (200, 120, 60) if number % 2 else (60, 120, 200)
        Image.fromarray((pixels + generator.integers(-5, 6, pixels.shape)).astype(np.uint8)).save(
            place / f"{number}.png"
        )
    return place


@pytest.fixture
def data(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GENPRED_DATA", str(tmp_path / "cache"))
    return lambda **options: ImageFolder(
        str(folder), **({"image_size": 16, "batch_size": 4, "validation_fraction": 0.3} | options)
    )


def trainer(callbacks=(), **options):
    shared = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu", "use_distributed_sampler": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return L.Trainer(**(shared | options), callbacks=list(callbacks))


# ---- the losses


class Constant(nn.Module):
    """Says the same of every pixel."""

    def __init__(self, noise, fraction):
        super().__init__()
        self.values = torch.tensor([*noise, *fraction])[None, :, None, None]

    def forward(self, images, step):
        return self.values.expand(len(images), -1, *images.shape[2:])


def test_both_losses_written_out():
    model = module(num_diffusion_steps=STEPS)
    start, step = scaled(pictures(5)), torch.tensor([0, 1, 20, 49, 20])
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    said, fraction = [0.3, -0.2, 0.0], [0.5, -1.0, 0.2]
    losses = model.losses(Constant(said, fraction), start, noise, step)
    betas = np.linspace(1e-4 * 1000 / STEPS, 0.02 * 1000 / STEPS, STEPS)
    abar = np.cumprod(1 - betas)
    said, fraction = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (said, fraction))
    for row, t in enumerate(step.tolist()):
        x, eps = start[row].double(), noise[row].double()
        assert losses.mse[row].item() == pytest.approx(((eps - said) ** 2).mean().item(), rel=1e-5)
        noisy = math.sqrt(abar[t]) * x + math.sqrt(1 - abar[t]) * eps
        before = abar[t - 1] if t else 1.0
        small = betas[max(t, 1)] * (1 - abar[max(t, 1) - 1]) / (1 - abar[max(t, 1)])
        mean = (noisy - betas[t] / math.sqrt(1 - abar[t]) * said) / math.sqrt(1 - betas[t])
        deviation = ((1 + fraction) / 4 * math.log(betas[t]) + (1 - fraction) / 4 * math.log(small)).exp()
        model_of_it = Normal(mean, deviation.expand(mean.shape))
        if t:
            true_mean = math.sqrt(before) * betas[t] * x + math.sqrt(1 - betas[t]) * (1 - before) * noisy
            truth = Normal(true_mean / (1 - abar[t]), math.sqrt(small))
            nats = kl_divergence(truth, model_of_it).mean().item()
        else:
            upper = torch.where(x > 0.999, torch.inf, x + 1 / 255)
            lower = torch.where(x < -0.999, -torch.inf, x - 1 / 255)
            nats = -(model_of_it.cdf(upper) - model_of_it.cdf(lower)).clamp(min=1e-12).log().mean().item()
        assert losses.bound[row].item() == pytest.approx(nats * STEPS / math.log(2), rel=2e-3), t


def test_the_bound_trains_the_variance_and_the_squared_error_the_noise():
    model, start = module(), scaled(pictures(4))
    output = (0.1 * torch.randn(4, 6, 16, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
    noise, step = torch.randn(start.shape), torch.tensor([0, 1, 20, 49])
    losses = model.losses(lambda images, step: output, start, noise, step)
    of_bound, of_error = (torch.autograd.grad(loss.sum(), output, retain_graph=True)[0] for loss in losses[::-1])
    assert torch.equal(of_bound[:, :3], torch.zeros(4, 3, 16, 16))
    assert torch.equal(of_error[:, 3:], torch.zeros(4, 3, 16, 16))
    assert (of_bound[:, 3:] != 0).flatten(1).any(1).all()
    torch.testing.assert_close(of_error[:, :3], 2 * (output - torch.cat([noise, noise], 1))[:, :3].detach() / 768)


def test_images_are_scaled_to_the_values_of_the_likelihood():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    found = scaled(values)
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found[0, 1].flatten(), np.linspace(-1, 1, 256), atol=1e-6)


# ---- training


class Recorded(DiffusionPretraining):
    """Keeps the weights after each optimizer step."""

    def optimizer_step(self, *arguments, **named):
        super().optimizer_step(*arguments, **named)
        self.trail.append([parameter.detach().clone() for parameter in self.network.parameters()])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_average_moves_once_an_optimizer_step(data, accumulated):
    torch.manual_seed(0)
    model = Recorded(**TINY, ema_decay=0.25)
    model.trail = [[parameter.detach().clone() for parameter in model.network.parameters()]]
    seen = []
    model.network.register_forward_hook(lambda *_: seen.append(1))
    trainer(max_steps=4, accumulate_grad_batches=accumulated, limit_val_batches=0).fit(model, data(batch_size=2))
    assert (len(seen), len(model.trail)) == (4 * accumulated, 5)
    average = [each.double() for each in model.trail[0]]
    for number, weights in enumerate(model.trail[1:]):
        decay = min(0.25, number / (9 + number))  # 0, 1/10, 2/11, then the limit
        average = [decay * old + (1 - decay) * new.double() for old, new in zip(average, weights, strict=True)]
    for found, expected in zip(model.average.parameters(), average, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    distance = [(new - old).abs().max() for new, old in zip(model.network.parameters(), average, strict=True)]
    assert max(distance) > 1e-4
    assert not any(parameter.requires_grad for parameter in model.average.parameters())


def test_the_rate_rises_over_the_first_steps(data):
    rates = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    model = module(learning_rate=0.01, warm_up_steps=3)
    trainer([Watch()], max_steps=6, limit_val_batches=0).fit(model, data())
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_training_lowers_both_losses_on_images_that_it_has_not_seen(data):
    model, images = module(ema_decay=0.9, learning_rate=2e-3), data(batch_size=8)
    before = trainer([DiffusionMetrics()]).validate(model, images, verbose=False)[0]
    assert before["val/mse"] == pytest.approx(1, abs=0.05)  # of a network that says nothing
    trainer(max_steps=25, max_epochs=-1, limit_val_batches=0).fit(model, images)
    after = trainer([DiffusionMetrics()]).validate(model, images, verbose=False)[0]
    assert after["val/mse"] < 0.35
    assert after["val/bits_per_dim"] < 0.6 * before["val/bits_per_dim"]


def same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_run_that_goes_on_in_mid_epoch_is_the_same_to_the_last_bit(data, tmp_path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def run(callbacks, checkpoint=None, **options):
        model, seed = module(dropout=0.2), 1 if checkpoint is None else 2
        torch.manual_seed(seed)  # what comes before the run has no say in one that goes on
        trainer([RandomState(), *callbacks], max_steps=7, max_epochs=-1, **options).fit(
            model, data(), ckpt_path=checkpoint, weights_only=True if checkpoint else None
        )
        return model

    whole = run([Save()])
    state = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert state["epoch"] == 0  # of 5 batches
    resumed = run([], tmp_path / "middle.ckpt")
    same_weights(whole, resumed)
    assert any(not torch.equal(state["state_dict"][name], value) for name, value in whole.state_dict().items())


# ---- evaluation


def test_scores_of_an_image_do_not_depend_on_its_batch():
    model = filled(module(evaluation_repeats=5)).eval()
    images, index = pictures(7), torch.tensor([4, 0, 9, 100, 3, 2, 1])
    told = []
    model.average.register_forward_pre_hook(lambda module, arguments: told.append(arguments[1]))
    with torch.no_grad():
        together = model.validation_step(ImageBatch(images, index), 0)
        parts = [model.test_step(ImageBatch(images[part], index[part]), 0) for part in ([6], [2, 0], [1, 3, 4, 5])]
    for field in ("mse", "bound"):
        found = torch.cat([getattr(part, field) for part in parts])
        torch.testing.assert_close(found, getattr(together, field)[[6, 2, 0, 1, 3, 4, 5]], rtol=1e-4, atol=1e-5)
    assert together.mse.std() > 1e-3
    steps = torch.stack(told[:5])  # [repeat, image]: one of each fifth
    assert torch.equal(steps * 5 // STEPS, torch.arange(5)[:, None].expand(5, 7))


def test_steps_of_the_evaluation_cover_all_of_them_evenly():
    model = module(evaluation_repeats=2)
    told = []
    model.losses = lambda network, start, noise, step: told.append(step) or (torch.zeros(len(step)),) * 2
    index = torch.arange(1000)
    model.validation_step(ImageBatch(torch.zeros(1000, 3, 1, 1, dtype=torch.uint8), index), 0)
    counts = torch.bincount(torch.cat(told), minlength=STEPS)
    assert counts.sum() == 2000
    assert (counts - 2000 / STEPS).abs().max() <= 3


def test_two_processes_are_scored_like_one(data, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    model, images = filled(module()), data(validation_fraction=0.3, evaluation_batch_size=2)
    images.prepare_data()
    images.setup()
    assert len(images.held_out_set) % 2 == 1  # ranks have unequal shares
    expected = trainer([DiffusionMetrics()]).test(copy.deepcopy(model), images, verbose=False)[0]

    def rank():
        number = torch.distributed.get_rank()
        part = data(validation_fraction=0.3, evaluation_batch_size=2)
        part.setup()
        metrics, rows = DiffusionMetrics(), torch.arange(number, len(part.held_out_set), 2)
        logged = {}

        class Logger:
            device = torch.device("cpu")

            @staticmethod
            def log_dict(scores, **_):
                logged.update(scores)

        metrics.on_test_epoch_start(None, Logger)
        with torch.no_grad():
            for few in rows.split(2):
                batch = part.held_out_set[few]
                metrics.on_test_batch_end(None, Logger, model.test_step(batch, 0), batch, 0)
        metrics.on_test_epoch_end(None, Logger)
        return {name: value.item() for name, value in logged.items()}

    for scores in run_in_processes(2, rank):
        assert scores == pytest.approx(expected, rel=1e-5)


# ---- samples


class Normals(nn.Module):
    """Predicts best for pixels that are normal with this mean and deviation."""

    def __init__(self, model, mean, deviation, fraction):
        super().__init__()
        self.signal, self.mean, self.deviation, self.fraction = model.alphas_cumprod, mean, deviation, fraction

    def forward(self, images, step):
        signal = self.signal[step].float()[:, None, None, None]
        variance = signal * self.deviation**2 + 1 - signal
        noise = (1 - signal).sqrt() * (images - signal.sqrt() * self.mean) / variance
        return torch.cat([noise, torch.full_like(noise, self.fraction)], dim=1)


@pytest.mark.parametrize(("count", "fraction"), [(None, -1.0), (None, 1.0), (60, -1.0), (60, 0.3)])
def test_samples_of_the_best_prediction_have_the_distribution(count, fraction):
    """All steps are linear then: the deviation after each is a recursion, which ends near that of the data."""
    model, num_steps, centre, deviation = module(num_diffusion_steps=300), count or 300, 0.1, 0.2
    model.average = Normals(model, centre, deviation, fraction)
    images = model.sample(100, torch.Generator().manual_seed(0), count)
    assert images.dtype == torch.uint8
    abar = np.cumprod(1 - np.linspace(0.1 / 300, 20 / 300, 300))[np.round(np.linspace(0, 299, num_steps)).astype(int)]
    before = np.concatenate([[1.0], abar[:-1]])
    beta = 1 - abar / before
    mean, variance = 0.0, 1.0
    for t in reversed(range(num_steps)):
        signal = abar[t] * deviation**2 + 1 - abar[t]
        gain = np.sqrt(abar[t]) * deviation**2 / signal  # E[x_0 | x_t] = centre + gain * (x_t - sqrt(abar) centre)
        from_start = np.sqrt(before[t]) * beta[t] / (1 - abar[t])
        factor = from_start * gain + np.sqrt(1 - beta[t]) * (1 - before[t]) / (1 - abar[t])
        mean = factor * mean + from_start * (centre - gain * np.sqrt(abar[t]) * centre)
        added = (1 + fraction) / 2 * np.log(beta[t])
        added += (1 - fraction) / 2 * np.log(beta[t] * (1 - before[t]) / (1 - abar[t])) if t else 0
        variance = factor**2 * variance + (np.exp(added) if t else 0)
    assert np.sqrt(variance) == pytest.approx(deviation, rel=0.2)
    values = images.double() / 127.5 - 1
    assert values.mean().item() == pytest.approx(mean, abs=0.004)
    assert values.std().item() == pytest.approx(np.sqrt(variance), rel=0.01)


@pytest.mark.parametrize(("count", "steps"), [(None, list(range(21))), (5, [0, 5, 10, 15, 20])])
def test_samples_are_a_function_of_the_generator(count, steps):
    model = filled(module(num_diffusion_steps=21))
    told, modes = [], []
    model.average.register_forward_pre_hook(lambda module, arguments: told.append(arguments[1]))
    model.average.register_forward_pre_hook(lambda module, arguments: modes.append(module.training))
    images = model.sample(3, torch.Generator().manual_seed(0), count)
    assert torch.stack(told).tolist() == [[step] * 3 for step in reversed(steps)]
    assert not any(modes)
    assert model.average.training
    assert (images.shape, images.dtype) == ((3, 3, 16, 16), torch.uint8)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert torch.equal(images, model.sample(3, torch.Generator().manual_seed(0), count))
    assert torch.equal(before, torch.get_rng_state())  # training draws from this one
    assert not torch.equal(images, model.sample(3, torch.Generator().manual_seed(1), count))


def test_a_reverse_step_of_a_sample_written_out():
    """Two calls only: noise at the last step, then the mean at the first one, x_0 kept in its range in both."""
    model = module()
    model.average = Constant([0.3, -0.2, 0.0], [0.5, -1.0, 0.2])
    images = model.sample(2, torch.Generator().manual_seed(3), 2)
    generator = torch.Generator().manual_seed(3)
    noisy, noise = (torch.randn(2, 3, 16, 16, generator=generator).double() for _ in range(2))
    said, fraction = (model.average.values[:, each].double() for each in (slice(3), slice(3, 6)))
    first, last = (model.alphas_cumprod[place].item() for place in (0, STEPS - 1))
    start = ((noisy - math.sqrt(1 - last) * said) / math.sqrt(last)).clamp(-1, 1)
    alpha = last / first
    mean = (math.sqrt(first) * (1 - alpha) * start + math.sqrt(alpha) * (1 - first) * noisy) / (1 - last)
    small = (1 - alpha) * (1 - first) / (1 - last)
    log_variance = (1 + fraction) / 2 * math.log(1 - alpha) + (1 - fraction) / 2 * math.log(small)
    noisy = mean + (log_variance / 2).exp() * noise
    expected = (((noisy - math.sqrt(1 - first) * said) / math.sqrt(first)).clamp(-1, 1) + 1) * 127.5
    assert (images.double() - expected).abs().max() <= 0.501


# ---- what is kept, what is refused


def test_a_checkpoint_holds_the_average_and_no_table():
    model = filled(module())
    names = model.state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"network", "average"}
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = module(seed=5)
    other.load_state_dict(torch.load(file, weights_only=True))
    same_weights(model, other)
    assert other.alphas_cumprod.dtype == torch.float64
    weight = other.network.input_blocks[0][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"ema_decay=1.0 must lie between 0 and 1"):
        module(ema_decay=1.0)
    with pytest.raises(ValueError, match=r"evaluation_repeats=0 must be at least 1"):
        module(evaluation_repeats=0)
    with pytest.raises(ValueError, match=r"warm_up_steps=-1 at least 0"):
        module(warm_up_steps=-1)
    with pytest.raises(ValueError, match=r"num_steps=20"):
        module(num_diffusion_steps=20)
    with pytest.raises(ValueError, match=r"num_images=0 must be at least 1"):
        module().sample(0, torch.Generator())
    for count in (1, 0, -3):
        with pytest.raises(ValueError, match=rf"sampling_steps={count} at least 2"):
            module().sample(1, torch.Generator(), count)
    with pytest.raises(ValueError, match=r"count=51"):
        module().sample(1, torch.Generator(), 51)
