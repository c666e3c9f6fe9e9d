"""What all backbones share: frozen, of images alone, named weights; and colour and place."""

import pytest
import torch
from backbone_inputs import SMALL_DDPM, SMALL_MAE, photographs
from torch import nn

from lightning_modules.segmentation.backbones.ddpm import DDPMBackbone
from lightning_modules.segmentation.backbones.mae import MAEBackbone
from lightning_modules.segmentation.backbones.rgb import RGBBackbone
from lightning_modules.segmentation.backbones.swav import SwAVBackbone
from lightning_modules.segmentation.backbones.timm import TimmBackbone


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
