"""SwAV: inputs of every second bottleneck of a self-supervised ResNet-50, or of one that is twice as wide.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments, NeurIPS 2020; as features for few-shot segmentation: Baranchuk, Rubachev, Voynov, Khrulkov, Babenko:
Label-Efficient Semantic Segmentation with Diffusion Models, ICLR 2022, whose thesis row "SwAV" is the wide one. All
channels of the wide network are doubled, not only those inside a bottleneck, hence it is no "wide ResNet".
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from lightning_modules.segmentation.backbones import loading
from lightning_modules.segmentation.backbones.frozen import FrozenBackbone, Normalise

_ADDRESS = "https://storage.yandexcloud.net/yandex-research/ddpm-segmentation/models/"
_DROPPED = ("projection_head.", "prototypes.")  # what pre-training adds to the trunk
_DEPTHS = (3, 4, 6, 3)  # bottlenecks of each layer; a map is the input of every second one


class SwAVBackbone(FrozenBackbone):
    """Trunk of a ResNet-50 trained by SwAV; what follows the last input that is needed is not computed.

    Args:
        checkpoint: file of the authors' pre-training, whose entry ``state_dict`` holds the trunk, all of which must be
            there, and the projection head and prototypes, which are dropped. "untrained": random weights.
        width: 1, a ResNet-50 with maps of 6,720 channels in all; 2, twice as wide, 13,440 channels.
        untrained_seed: of the weights of "untrained".

    Raises:
        ValueError: ``checkpoint`` is None or does not fit, or ``width`` is neither 1 nor 2.
    """

    def __init__(self, checkpoint: str | None = None, width: Literal[1, 2] = 1, untrained_seed: int = 0) -> None:
        super().__init__()
        if width not in (1, 2):
            raise ValueError(f"width={width}: choose 1, a ResNet-50, or 2, one that is twice as wide")
        if checkpoint is None:
            folder = "swav_checkpoints" if width == 1 else "swav_w2_checkpoints"
            raise ValueError(
                "checkpoint=None: give the path of SwAV's weights, such as bedroom, ffhq, cat or horse from "
                f"{_ADDRESS}{folder}/, or '{loading.UNTRAINED}'"
            )
        self.normalise = Normalise()
        with loading.seeded(untrained_seed):
            self.trunk = _Trunk(64 * width)
        self.channels = tuple(block.conv1.in_channels for layer in self.trunk.layers for block in layer[::2])
        self.weights_sha256 = {}
        if checkpoint != loading.UNTRAINED:
            path = Path(checkpoint).expanduser()
            state = loading.entry(loading.read_checkpoint(path), "state_dict", str(path))
            state = {name.removeprefix("module."): value for name, value in state.items()}
            state = {name: value for name, value in state.items() if not name.startswith(_DROPPED)}
            loading.load_strictly(self.trunk, state, str(path))
            self.weights_sha256[path.name] = loading.file_sha256(path)
        self.trunk.to(memory_format=torch.channels_last)
        self.freeze()

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Inputs of bottlenecks 0, 2, ... of each layer, at 1/4 to 1/32 of the images' resolution."""
        return self.trunk(self.normalise(images))


class _Trunk(nn.Module):
    """ResNet-50 up to its last bottleneck, the names of its tensors as everywhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inside, size = width, width
        for number, depth in enumerate(_DEPTHS, start=1):
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and number > 1 else 1
                shortcut = None
                if i == 0:
                    shortcut = nn.Sequential(
                        nn.Conv2d(size, 4 * inside, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * inside)
                    )
                blocks.append(Bottleneck(size, inside, stride, shortcut))
                size = 4 * inside
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            inside *= 2

    @property
    def layers(self) -> list[nn.Sequential]:
        """The four layers of bottlenecks."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[batch, 3, height, width] to the inputs of every second bottleneck."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for layer in self.layers:
            for i, block in enumerate(layer):
                if i % 2 == 0:
                    maps.append(x)
                if layer is self.layer4 and i == 2:
                    break  # its output is not needed
                x = block(x)
        return maps
