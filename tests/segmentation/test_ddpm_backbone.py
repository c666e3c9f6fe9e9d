"""The diffusion UNet as a backbone: against hooks in the whole network, published counts."""

import hashlib
import math

import lightning as L
import numpy as np
import pytest
import torch
from backbone_inputs import SMALL_DDPM, SMALL_UNET, numbers, photographs, sizes

from lightning_modules.networks.unet import UNet
from lightning_modules.segmentation.backbones import loading
from lightning_modules.segmentation.backbones.ddpm import DDPMBackbone
from lightning_modules.segmentation.diffusion import DiffusionPretraining


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
