"""SwAV's ResNet-50 as a backbone: against torchvision's network, published counts."""

import pytest
import torch
import torchvision
from backbone_inputs import normalised, numbers, photographs, sizes
from torch import nn
from torchvision.models.resnet import Bottleneck

from lightning_modules.segmentation.backbones import loading
from lightning_modules.segmentation.backbones.swav import SwAVBackbone


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
