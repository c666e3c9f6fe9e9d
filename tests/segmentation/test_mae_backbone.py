"""The masked autoencoder as a backbone: against a transformer written out, published counts."""

import argparse
import math

import pytest
import torch
from backbone_inputs import SMALL_MAE, normalised, numbers, photographs, sizes
from torch.nn import functional as F

from lightning_modules.segmentation.backbones import loading
from lightning_modules.segmentation.backbones.mae import MAEBackbone


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
