"""MAE: outputs of the last transformer blocks of a masked autoencoder's encoder.

He, Chen, Xie, Li, Dollár, Girshick: Masked Autoencoders Are Scalable Vision Learners, CVPR 2022; as features for
few-shot segmentation: Baranchuk, Rubachev, Voynov, Khrulkov, Babenko: Label-Efficient Semantic Segmentation with
Diffusion Models, ICLR 2022, whose encoder, a ViT-L with patches of 8 pixels at 256 pixels, is the default here. The
encoder sees all patches, in their own order; the authors shuffle them and undo it, which changes nothing.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from lightning_modules.segmentation.backbones import loading
from lightning_modules.segmentation.backbones.frozen import FrozenBackbone, Normalise

_ADDRESS = "https://storage.yandexcloud.net/yandex-research/ddpm-segmentation/models/mae_checkpoints/"
_DECODER_WIDTH, _DECODER_DEPTH, _DECODER_HEADS = 512, 8, 16  # of every published MAE


class MAEBackbone(FrozenBackbone):
    """Encoder of a masked autoencoder; its class token and its last norm are left out.

    Args:
        checkpoint: file of the authors' pre-training, whose entry ``model`` holds encoder and decoder: all tensors of
            both must be there, and the decoder is dropped. "untrained": random weights and positions, as drawn by timm.
        trained_size: side of the images that the encoder was trained on, and reads, in pixels.
        patch_size: side of a patch, in pixels.
        width: of a token.
        depth: number of blocks.
        num_heads: of the attention.
        num_blocks: the last blocks whose outputs are the maps.
        untrained_seed: of the weights of "untrained".

    Raises:
        ValueError: ``checkpoint`` is None or does not fit, or there are fewer blocks than ``num_blocks``.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        trained_size: int = 256,
        patch_size: int = 8,
        width: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        num_blocks: int = 12,
        untrained_seed: int = 0,
    ) -> None:
        super().__init__()
        if checkpoint is None:
            raise ValueError(
                "checkpoint=None: give the path of an MAE's weights, such as bedroom, ffhq, cat or horse from "
                f"{_ADDRESS}, or '{loading.UNTRAINED}'"
            )
        if not 1 <= num_blocks <= depth:
            raise ValueError(f"num_blocks={num_blocks}: choose between 1 and all depth={depth} blocks")
        self.num_blocks, self.trained_size = num_blocks, trained_size
        self.channels = (width,) * num_blocks
        self.normalise = Normalise()
        with loading.seeded(untrained_seed):
            self.encoder = VisionTransformer(
                img_size=trained_size, patch_size=patch_size, embed_dim=width, depth=depth, num_heads=num_heads,
                num_classes=0, norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )  # fmt: skip
        self.weights_sha256 = {}
        if checkpoint != loading.UNTRAINED:
            path = Path(checkpoint).expanduser()
            state = loading.entry(loading.read_checkpoint(path, allowed=[argparse.Namespace]), "model", str(path))
            with torch.device("meta"):
                decoder = _Decoder(width, self.encoder.patch_embed.num_patches, patch_size)
            parts = {name: value for name, value in state.items() if name in decoder.state_dict()}
            loading.check_state(decoder, parts, f"{path}, decoder,")
            loading.load_strictly(self.encoder, {name: state[name] for name in state if name not in parts}, str(path))
            self.weights_sha256[path.name] = loading.file_sha256(path)
        self.freeze()

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Output of each of the last blocks, [batch, width, side / patch, side / patch]."""
        if images.shape[-2:] != (self.trained_size, self.trained_size):
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels: this encoder has positions for "
                f"{self.trained_size} x {self.trained_size}; set the data's image_size to {self.trained_size}"
            )
        return self.encoder.forward_intermediates(
            self.normalise(images), indices=self.num_blocks, norm=False, output_fmt="NCHW", intermediates_only=True
        )


class _Decoder(nn.Module):
    """The decoder's tensors, to compare a file with."""

    def __init__(self, encoder_width: int, num_patches: int, patch_size: int) -> None:
        super().__init__()
        width = _DECODER_WIDTH
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, num_patches + 1, width))
        self.decoder_embed = nn.Linear(encoder_width, width)
        self.decoder_blocks = nn.ModuleList(Block(width, _DECODER_HEADS, qkv_bias=True) for _ in range(_DECODER_DEPTH))
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch_size**2 * 3)
