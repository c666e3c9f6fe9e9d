"""The ensemble of pixel classifiers: against separate trainings in plain torch, and features that are up-sampled."""

import contextlib
import itertools
import math
from typing import NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from ddp import run_in_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from callbacks.rng import RandomState
from datamodules.segmentation.pixels import PixelSampler, TrainingPixels
from experiments.config import compose
from lightning_modules.networks.upsampling import blend, corners
from lightning_modules.segmentation.backbones.ddpm import DDPMBackbone
from lightning_modules.segmentation.base import PixelBackbone, Segmentation
from lightning_modules.segmentation.pixel_ensemble import PixelEnsemble, image_uncertainty, project, vote

SIZE, CLASSES, MEMBERS = 16, 5, 3
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # of torch, used by Lightning
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*module.s. in eval mode at the start of training.*"),
]


class Maps(PixelBackbone):
    """Two maps at half, one at a quarter, of the resolution, from fixed random convolutions."""

    channels = (4, 6, 3)
    kept_buffers = ("noise",)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        convolutions = [nn.Conv2d(3, 4, 2, 2), nn.Conv2d(3, 6, 4, 4), nn.Conv2d(3, 3, 2, 2)]
        for parameter in itertools.chain(*(layer.parameters() for layer in convolutions)):
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.convolutions = nn.ModuleList(convolutions).requires_grad_(False)
        self.register_buffer("noise", torch.zeros(2))

    def forward(self, images):
        return [layer(images).sin() for layer in self.convolutions]


class Batch(NamedTuple):
    images: torch.Tensor
    masks: torch.Tensor


class Data(L.LightningDataModule):
    """Three images of random squares, whose red says the class; the darkest are not annotated."""

    def __init__(self, pixels_per_batch=64, members=MEMBERS):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        squares = torch.randint(256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
        self.train_images = squares.repeat_interleave(SIZE // 4, 2).repeat_interleave(SIZE // 4, 3)
        masks = self.train_images[:, 0].long() * (CLASSES + 1) // 256 - 1
        self.masks = torch.where(masks < 0, 255, masks).to(torch.uint8)
        self.pixels = TrainingPixels(self.masks, 255)
        self.batch, self.members = pixels_per_batch, members

    def sampler(self):
        return PixelSampler(len(self.pixels), self.batch, self.members, seed=3)

    def train_dataloader(self):
        from datamodules.base import TensorLoader

        return TensorLoader(self.pixels, self.sampler())


def full_features(ensemble, images):
    """Features of all pixels in the order of the ensemble's weights, [image, channel, height, width]."""
    maps = ensemble.by_resolution(ensemble.backbone(images))
    return torch.cat([F.interpolate(each, (SIZE, SIZE), mode="bilinear", align_corners=False) for each in maps], 1)


def plain_member(ensemble, member):
    """A member as a network of torch's own layers, with the same parameters."""
    sizes = [13, *ensemble.hparams.hidden, CLASSES]
    layers = []
    for i, (width, out) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(width, out)
        linear.weight.data = ensemble.weights[i][member].detach().T.clone()
        linear.bias.data = ensemble.biases[i][member, 0].detach().clone()
        layers += [linear, nn.ReLU(), nn.BatchNorm1d(out)]
    return nn.Sequential(*layers[:-2])


def member_tensors(ensemble):
    """All that members are made of; the first axis of each is a multiple of the members."""
    norms = [each for norm in ensemble.norms for each in (*norm.parameters(), norm.running_mean, norm.running_var)]
    return [*ensemble.weights, *ensemble.biases, *norms]


def trainer(folder, **arguments):
    return L.Trainer(
        default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, log_every_n_steps=1000,
        **({"accelerator": "cpu", "devices": 1, "enable_checkpointing": False} | arguments),
    )  # fmt: skip


def made(**arguments):
    torch.manual_seed(0)
    settings = {"num_members": MEMBERS, "hidden": [8, 6]} | arguments
    return PixelEnsemble(Maps(), CLASSES, SIZE, **settings)


def separate_training(network, features, labels, data, member, rate, epochs, rule_from, patience):
    """A member alone, in float64, as the published loop trains it; how many steps it takes."""
    network.double()
    optimizer, sampler = torch.optim.Adam(network.parameters(), lr=rate), data.sampler()
    best, worse, steps = math.inf, 0, 0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for numbers in sampler:
            chosen = data.pixels.annotated[numbers[:, member].long()]
            optimizer.zero_grad()
            loss = F.cross_entropy(network(features[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            steps += 1
            if epoch >= rule_from:
                best, worse = (loss.item(), 0) if loss.item() < best else (best, worse + 1)
                if worse > patience:
                    return steps
    return steps


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_ten_members_are_ten_separate_trainings_each_with_its_own_end(tmp_path, monkeypatch, cache):
    """In float64: float32 may put a hidden unit on the other side of zero, and the trainings part."""
    features_of = PixelEnsemble.pixel_features
    monkeypatch.setattr(PixelEnsemble, "pixel_features", lambda *arguments: features_of(*arguments).double())
    members, rate, epochs, rule_from, patience = 10, 0.01, 9, 2, 6
    ensemble = made(
        num_members=members, feature_cache=cache, learning_rate=rate, stop_rule_from_epoch=rule_from, patience=patience
    )
    ensemble.double().backbone.float()
    data, taken = Data(members=members), torch.zeros(members, dtype=torch.int64)
    plain = [plain_member(ensemble, member) for member in range(members)]

    class Count(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            taken.add_((~module.stopped).long())

    run = trainer(tmp_path, max_epochs=epochs, max_steps=-1, callbacks=[Count()])
    run.fit(ensemble, data)

    features = ensemble.pixel_features(torch.arange(3).repeat_interleave(SIZE**2), torch.arange(SIZE**2).repeat(3))
    wanted = full_features(ensemble, data.train_images.float() / 255).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(features.float(), wanted, atol=1e-5, rtol=1e-5)
    labels = data.masks.flatten().long()
    steps = [
        separate_training(network, features, labels, data, member, rate, epochs, rule_from, patience)
        for member, network in enumerate(plain)
    ]
    assert taken.tolist() == steps
    assert len(set(steps)) > 4
    assert max(steps) <= run.global_step
    for member, network in enumerate(plain):
        for layer, number in ((0, 0), (3, 1), (6, 2)):
            torch.testing.assert_close(ensemble.weights[number][member].T, network[layer].weight, atol=1e-9, rtol=0)
            torch.testing.assert_close(ensemble.biases[number][member, 0], network[layer].bias, atol=1e-9, rtol=0)
        for layer, norm in ((2, ensemble.norms[0]), (5, ensemble.norms[1])):
            for name in ("weight", "bias", "running_mean", "running_var"):
                ours = getattr(norm, name).view(members, -1)[member]
                torch.testing.assert_close(ours, getattr(network[layer], name), atol=1e-9, rtol=0)

    images = data.train_images[:2].float() / 255
    answer = ensemble.float().eval().predict(images)
    seen = full_features(ensemble, images).permute(0, 2, 3, 1).flatten(0, 2)
    logits = torch.stack([network.float().eval()(seen).T for network in plain])
    labels, uncertainty = vote(logits, "hard")
    assert torch.equal(answer.labels.flatten(), labels)
    torch.testing.assert_close(answer.uncertainty.flatten(), uncertainty, atol=1e-5, rtol=1e-4)
    assert (labels.bincount(minlength=CLASSES) > 0).sum() > 1


SMALL_DDPM = {
    "base_width": 32, "channel_multipliers": [1, 2], "num_residual_blocks": 1, "attention_resolutions": [8],
    "channels_per_head": 16, "blocks": [0, 1, 2], "steps": [50], "trained_size": SIZE, "image_size": SIZE,
}  # fmt: skip


def trained_on_a_unet(folder, torso, accelerator="cpu", **arguments):
    """An ensemble that has learnt from a small UNet's features."""
    torch.manual_seed(0)
    backbone = DDPMBackbone("untrained", **SMALL_DDPM, torso=torso)
    ensemble = PixelEnsemble(backbone, CLASSES, SIZE, MEMBERS, [8, 6], **arguments)
    trainer(folder, max_epochs=2, max_steps=-1, accelerator=accelerator).fit(ensemble, Data())
    return ensemble


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_features_of_16_bits_are_kept_whole_in_16_bits(tmp_path, cache):
    short, long = (
        trained_on_a_unet(tmp_path / str(dtype), "float16", feature_dtype=dtype, feature_cache=cache)
        for dtype in (None, "float32")
    )
    assert {table.dtype for table in short.tables} == {torch.float16}
    assert {table.dtype for table in long.tables} == {torch.float32}
    assert all(map(torch.equal, member_tensors(short), member_tensors(long)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_features_on_the_disk_train_like_those_on_a_gpu(tmp_path, dtype):
    disk, memory = (
        trained_on_a_unet(tmp_path / cache, "float16", "gpu", feature_dtype=dtype, feature_cache=cache)
        for cache in ("disk", "memory")
    )
    assert {table.device.type for table in disk.tables} == {"cpu"}
    for one, other in zip(member_tensors(disk), member_tensors(memory), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    image, position = torch.tensor([[0, 2], [1, 1]]), torch.tensor([[0, 17], [200, SIZE**2 - 1]])
    features, expected = (each.pixel_features(image.cuda(), position.cuda()) for each in (disk, memory))
    assert features.device.type == "cuda"
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("torso", ["float32", "bfloat16"])
def test_other_features_are_kept_in_32_bits(tmp_path, torso):
    assert {table.dtype for table in trained_on_a_unet(tmp_path, torso, feature_dtype=None).tables} == {torch.float32}


class Large(Maps):
    """One feature is extraordinary."""

    def __init__(self, worst):
        super().__init__()
        self.worst = worst

    def forward(self, images):
        maps = super().forward(images)
        maps[1][-1, 2, 1, 1] = self.worst
        return maps


@pytest.mark.parametrize(
    ("worst", "dtype", "told"),
    [
        (70_000.0, "float32", None),
        (
            70_000.0,
            "float16",
            "a feature of 70000 is beyond 65,504, the largest number of float16: set model.feature_d",
        ),
        (math.nan, "float32", "the backbone's features are not finite: where it computes in 16 bits, let it take more"),
        (math.inf, "float16", "the backbone's features are not finite"),
    ],
)
def test_features_that_cannot_be_kept_are_told(tmp_path, worst, dtype, told):
    ensemble = PixelEnsemble(Large(worst), CLASSES, SIZE, MEMBERS, [8, 6], feature_dtype=dtype)
    with pytest.raises(ValueError, match=told) if told else contextlib.nullcontext():
        trainer(tmp_path, max_epochs=1, max_steps=1).fit(ensemble, Data())


def test_pixels_at_once_and_images_at_once_do_not_matter(monkeypatch):
    """Of images that are not square, and whose width a chunk does not divide."""
    ensemble = made().eval()
    images = torch.rand(2, 3, SIZE, 3 * SIZE)
    whole = Segmentation(*map(torch.cat, zip(*(ensemble.predict(image) for image in images.split(1)), strict=True)))
    monkeypatch.setattr("lightning_modules.segmentation.pixel_ensemble._NUMBERS_AT_ONCE", {"cpu": 100})
    parts = ensemble.predict(images)
    assert whole.labels.shape == (2, SIZE, 3 * SIZE)
    assert torch.equal(whole.labels, parts.labels)
    torch.testing.assert_close(whole.uncertainty, parts.uncertainty)


def test_a_member_does_not_depend_on_how_many_there_are():
    few, many = made(num_members=2), made(num_members=10)
    for one, other in zip(few.weights, many.weights, strict=True):
        assert torch.equal(one, other[:2])
    assert not torch.equal(few.weights[0][0], few.weights[0][1])
    assert many.weights[0].detach().std() == pytest.approx(0.02, rel=0.1)


def test_the_published_numbers_are_the_defaults():
    config = compose("ddpm_ffhq34", ["model.backbone.checkpoint=untrained"]).config
    model, backbone = config["model"], config["model"]["backbone"]
    assert (model["stop_rule_from_epoch"], model["patience"], model["learning_rate"]) == (4, 50, 1e-3)
    assert (model["num_members"], model["vote"], config["data"]["pixels_per_batch"]) == (10, "hard", 64)
    assert (config["trainer"]["max_epochs"], config["trainer"]["max_steps"]) == (100, -1)
    assert (backbone["blocks"], backbone["steps"]) == ([5, 6, 7, 8, 12], [50, 150, 250])
    assert (backbone["torso"], backbone["noise_seed"], config["data"]["image_size"]) == ("float16", 0, 256)
    assert [PixelEnsemble(Maps(), classes, SIZE).hparams.hidden for classes in (29, 30)] == [[128, 32], [256, 128]]
    ensemble = PixelEnsemble(Maps(), CLASSES, SIZE)
    assert (ensemble.hparams.stop_rule_from_epoch, ensemble.hparams.patience) == (4, 50)
    group = ensemble.configure_optimizers().param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.9, 0.999), 1e-8)
    assert [(norm.eps, norm.momentum) for norm in ensemble.norms] == [(1e-5, 0.1)] * 2


def test_members_weights_and_the_orders_of_their_pixels_are_drawn_apart(monkeypatch):
    class Recording(torch.Generator):
        def manual_seed(self, key):
            keys.append(key)
            return super().manual_seed(key)

    backbone, keys = Maps(), []
    monkeypatch.setattr(torch, "Generator", Recording)
    torch.manual_seed(3)
    keys.clear()
    PixelEnsemble(backbone, CLASSES, SIZE)
    initial = keys.copy()
    keys.clear()
    sampler = PixelSampler(64, 64, 10, seed=3)
    for epoch in range(100):
        sampler.set_epoch(epoch)
        sampler.rows()
    assert len(set(initial)) == 3 * 10
    assert len(set(keys)) == 10 * 100
    assert not set(initial) & set(keys)


@pytest.mark.parametrize(
    ("features", "classes", "count"),
    [
        (8448, 15, 1_086_415),
        (8448, 29, 1_086_877),
        (8448, 30, 2_200_478),
        (8448, 34, 2_200_994),
        (12288, 19, 1_578_067),
    ],
)
def test_members_have_the_published_number_of_parameters(features, classes, count):
    backbone = Maps()
    backbone.channels = (features,)
    ensemble = PixelEnsemble(backbone, classes, SIZE, num_members=1)
    assert sum(parameter.numel() for parameter in ensemble.parameters() if parameter.requires_grad) == count


# Up-sampling and the first Linear


def maps_and_weights():
    generator = torch.Generator().manual_seed(4)
    maps = [torch.randn(1, c, s, s, generator=generator, dtype=torch.float64) for c, s in ((7, 4), (5, 8), (3, 16))]
    weight = torch.randn(15, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(6, generator=generator, dtype=torch.float64)
    return maps, weight.split([7, 5, 3]), bias


def up(maps, **options):
    return F.interpolate(maps, (32, 32), **({"mode": "bilinear", "align_corners": False} | options))


def applied(maps, weight):
    return torch.einsum("bchw,cd->bdhw", maps, weight)


def linear_first(maps, weights):
    """What the ensemble does: the Linear at each map's own resolution, then the blend; [1, hidden, 32, 32] float32."""
    z = []
    for each, weight in zip(maps, weights, strict=True):
        index, share = corners(torch.arange(32 * 32), tuple(each.shape[-2:]), (32, 32))
        z.append(blend(project(each[0], weight.float()), index, share))
    return sum(z).T.unflatten(1, (32, 32))[None]


def test_the_first_linear_commutes_with_up_sampling():
    maps, weights, bias = maps_and_weights()
    z = applied(torch.cat([up(each) for each in maps], 1), torch.cat(list(weights)))
    bias = bias[:, None, None]
    ours = (linear_first(maps, weights) + bias).relu()
    torch.testing.assert_close(ours, (z + bias).relu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", ["bias in each", "relu before", "corners", "nearest", "chained"])
def test_what_does_not_commute_differs(wrong):
    maps, weights, bias = maps_and_weights()
    bias = bias[:, None, None]
    projected = [applied(each, weight) for each, weight in zip(maps, weights, strict=True)]
    z = {
        "bias in each": lambda: sum(up(each + bias) for each in projected),
        "relu before": lambda: sum(up(each.relu()) for each in projected) + bias,
        "corners": lambda: sum(up(each, align_corners=True) for each in projected) + bias,
        "nearest": lambda: sum(up(each, mode="nearest", align_corners=None) for each in projected) + bias,
        "chained": lambda: sum(up(F.interpolate(each, (24, 24), mode="bilinear")) for each in projected) + bias,
    }[wrong]()
    assert ((linear_first(maps, weights) + bias).relu() - z.relu()).abs().max() > 0.05


@pytest.mark.parametrize(
    ("normalised", "commutes"),
    [
        (lambda maps: maps * 2.5 - torch.arange(maps.shape[1])[:, None, None], True),  # of each channel
        (lambda maps: F.normalize(maps, dim=1), False),
        (lambda maps: F.layer_norm(maps.movedim(1, -1), maps.shape[1:2]).movedim(-1, 1), False),
    ],
    ids=["affine", "L2", "LayerNorm"],
)
def test_what_normalises_pixels_does_not_commute(normalised, commutes):
    maps, weights, _ = maps_and_weights()
    before = linear_first([normalised(each) for each in maps], weights)
    after = sum(applied(normalised(up(each)), weight) for each, weight in zip(maps, weights, strict=True))
    assert ((before - after).abs().max() < 1e-4) == commutes
    assert commutes or (before - after).abs().max() > 0.05


@pytest.mark.parametrize("sides", [(4, 4), (8, 8), (32, 32), (5, 3), (40, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_corners_blend_to_what_interpolate_gives(sides, dtype):
    size = (32, 24)
    maps = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(sides[0])).to(dtype)
    wanted = F.interpolate(maps.float(), size, mode="bilinear", align_corners=False)
    index, weight = corners(torch.arange(32 * 24), sides, size)  # [pixel, 4]
    for number in range(2):
        got = blend(maps[number].flatten(1).T.contiguous(), index.view(*size, 4), weight.view(*size, 4))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.permute(2, 0, 1), wanted[number], atol=1e-5, rtol=1e-5)


def test_projection_is_the_first_linear():
    maps, weight = torch.randn(5, 4, 3), torch.randn(MEMBERS, 5, 8)
    wanted = torch.einsum("chw,mcd->hwmd", maps, weight).flatten(0, 1).flatten(1)
    torch.testing.assert_close(project(maps, weight.transpose(0, 1).flatten(1)), wanted, atol=1e-5, rtol=1e-5)


# The vote


def test_of_equal_votes_the_first_class_wins():
    named = torch.tensor([[3, 1, 2, 0], [1, 3, 2, 4], [1, 3, 4, 4], [3, 1, 4, 2]])  # [member, pixel]
    labels, _ = vote(F.one_hot(named, 5).transpose(1, 2).float() * 9, "hard")
    assert labels.tolist() == [torch.mode(named[:, pixel]).values.item() for pixel in range(4)] == [1, 1, 2, 4]


def test_a_soft_vote_can_overrule():
    probability = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.0001, 0.9999]])[..., None]  # [member, class, pixel]
    assert vote(probability.log(), "hard")[0].item() == 0
    assert vote(probability.log(), "soft")[0].item() == 1


def test_divergence_is_zero_in_agreement_and_at_most_the_logarithm_of_the_members():
    agreed = torch.randn(1, 7, 4).expand(10, 7, 4)
    torch.testing.assert_close(vote(agreed, "hard")[1], torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(vote(1e4 * torch.eye(10)[..., None], "hard")[1], torch.tensor([math.log(10)]))
    p = np.array([[0.7, 0.3], [0.2, 0.8]])
    entropy = lambda q: -(q * np.log(q)).sum(-1)  # noqa: E731
    wanted = entropy(p.mean(0)) - entropy(p).mean()
    assert vote(torch.from_numpy(np.log(p))[..., None], "soft")[1].item() == pytest.approx(wanted)


def test_an_images_uncertainty_is_that_of_its_worst_tenth():
    values = torch.arange(64.0).view(1, 8, 8)
    assert image_uncertainty(values).item() == pytest.approx(np.arange(58, 64).mean())


# The stop rule


def stopped_after(losses, patience):
    """How many batches a member of the published code trains on: after each it counts those that were not better."""
    best, worse = math.inf, 0
    for number, loss in enumerate(losses, start=1):
        if loss < best:
            best, worse = loss, 0
        else:
            worse += 1
        if worse > patience:
            return number
    return None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=30), st.integers(0, 4))
def test_the_stop_rule_is_that_of_each_member_alone(losses, patience):
    ensemble = made(num_members=2, patience=patience)
    stopped = [None, None]
    for number, both in enumerate(losses, start=1):
        ensemble.update_stop_rule(torch.tensor(both, dtype=torch.float32))
        for member in range(2):
            if ensemble.stopped[member] and stopped[member] is None:
                stopped[member] = number
    assert stopped == [stopped_after([both[member] for both in losses], patience) for member in range(2)]


@pytest.mark.parametrize("asked_every", [1, 7])
def test_a_member_that_stopped_stays_as_it_was(tmp_path, monkeypatch, asked_every):
    monkeypatch.setattr("lightning_modules.segmentation.pixel_ensemble._ASKED_EVERY", asked_every)
    ensemble, data = made(stop_rule_from_epoch=1, patience=2), Data(pixels_per_batch=32)
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            adam = [state[name] for state in trainer.optimizers[0].state.values() for name in ("exp_avg", "exp_avg_sq")]
            state = [tensor.detach().view(MEMBERS, -1).clone() for tensor in (*member_tensors(module), *adam)]
            seen.append((module.losses.detach().clone(), module.stopped.clone(), state))

    run = trainer(tmp_path, max_epochs=50, max_steps=-1, callbacks=[Watch()])
    run.fit(ensemble, data)
    per_epoch = len(data.sampler())
    assert run.global_step == len(seen) < 50 * per_epoch
    for member in range(MEMBERS):
        losses = [each[0][member].item() for each in seen[per_epoch:]]
        last = per_epoch + stopped_after(losses, 2)
        assert [bool(each[1][member]) for each in seen] == [False] * (last - 1) + [True] * (len(seen) - last + 1)
        for before, end, earlier in zip(seen[last - 1][2], seen[-1][2], seen[last - 2][2], strict=True):
            assert torch.equal(before[member], end[member])
            assert not torch.equal(before[member], earlier[member])


def test_how_often_the_host_asks_does_not_matter(tmp_path, monkeypatch):
    results = []
    for asked_every in (1, 11):
        monkeypatch.setattr("lightning_modules.segmentation.pixel_ensemble._ASKED_EVERY", asked_every)
        ensemble = made(stop_rule_from_epoch=0, patience=3)
        run = trainer(tmp_path, max_epochs=50, max_steps=-1)
        run.fit(ensemble, Data(pixels_per_batch=64))
        results.append((run.global_step, member_tensors(ensemble)))
    assert results[0][0] < results[1][0]
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(one, other)


def test_processes_whose_losses_round_differently_stop_alike():
    """What the first one says holds: the others get the state of its stop rule before each step."""

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.ensemble = made(num_members=2, patience=0)

        def forward(self):
            return sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)

    def on_rank():
        step = Step()
        model, ensemble = nn.parallel.DistributedDataParallel(step), step.ensemble
        ensemble.update_stop_rule(torch.tensor([1.0, 1.0]))
        ensemble.update_stop_rule(torch.tensor([1.0, 0.5]) + torch.distributed.get_rank() * torch.tensor([-1e-6, 1.0]))
        apart = ensemble.stopped.tolist()
        model()
        return apart, ensemble.stopped.tolist(), ensemble.best_loss.tolist(), ensemble.num_worse.tolist()

    first, second = run_in_processes(2, on_rank)
    assert first == ([True, False], [True, False], [1.0, 0.5], [1, 0])
    assert second == ([False, True], *first[1:])


def test_a_run_goes_on_in_mid_epoch_as_if_it_had_not_stopped(tmp_path):
    def run(folder, max_steps, path=None):
        ensemble = made(stop_rule_from_epoch=1, patience=3)
        checkpoints = L.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=cut, save_last=True)
        arguments = {"max_epochs": 20, "max_steps": max_steps, "enable_checkpointing": True}
        engine = trainer(folder, callbacks=[checkpoints, RandomState()], **arguments)
        engine.fit(ensemble, Data(), ckpt_path=path, weights_only=True)
        return ensemble, engine.global_step

    per_epoch = len(Data().sampler())
    cut = per_epoch + 3  # the stop rule counts already
    whole, steps = run(tmp_path / "whole", -1)
    assert steps > cut + 1
    run(tmp_path / "cut", cut)
    stored = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name for name in stored if name.startswith("backbone.")} == {"backbone.noise"}
    continued, further = run(tmp_path / "cut", -1, tmp_path / "cut" / "last.ckpt")
    assert further == steps
    for one, other in zip(member_tensors(whole), member_tensors(continued), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole.best_loss, continued.best_loss)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"num_members=0"):
        made(num_members=0)
    with pytest.raises(ValueError, match=r"hidden=\[3\]"):
        made(hidden=[3])
    ensemble = made()
    ensemble.channels = [1, 2]
    with pytest.raises(ValueError, match=r"Maps gave maps of \[4, 6, 3\] channels, not \[1, 2\]"):
        ensemble.predict(torch.rand(1, 3, SIZE, SIZE))
