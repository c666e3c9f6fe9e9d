"""The UNet: against published counts, numpy written out, hooks, and another library's network of the same sizes."""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks import pretraining_step
from lightning_modules.networks.unet import AttentionBlock, ResidualBlock, UNet, sinusoidal
from lightning_modules.segmentation.diffusion import DiffusionPretraining

# Sorted "name sizes" of the tensors in the released files of Baranchuk et al. (ICLR 2022).
SHA256 = "fe93167087f7317b01c4b4261dc38d6303b8de63cf64d7994d1f946790cc6384"
TINY = {
    "image_size": 32, "base_width": 32, "channel_multipliers": (1, 2, 2), "num_residual_blocks": 1,
    "attention_resolutions": (8,), "channels_per_head": 16,
}  # fmt: skip


def randomised(module, seed=0):
    """Small random numbers in all parameters, since branches that start as nothing would hide their faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            fan_in = math.prod(parameter.shape[1:]) if parameter.dim() > 1 else 20
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
            if parameter.dim() == 1 and name.endswith("weight"):  # of a norm
                parameter.add_(1)
    return module.eval()


@pytest.fixture(scope="module")
def tiny():
    return randomised(UNet(**TINY))


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return UNet()


def images(number, side=32, seed=1):
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(seed))


def numbers_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_names_and_shapes_are_those_of_the_released_files(published):
    state = published.state_dict()
    lines = sorted(f"{name} {'x'.join(map(str, value.shape))}" for name, value in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == SHA256
    assert (len(state), numbers_of(published)) == (566, 552_814_086)
    parts = {
        "time_embed": (4, 1_312_768), "input_blocks": (212, 163_431_424), "middle_block": (26, 46_159_872),
        "output_blocks": (320, 341_895_680), "out": (4, 14_342),
    }  # fmt: skip
    for name, counts in parts.items():
        part = getattr(published, name)
        assert (len(part.state_dict()), numbers_of(part)) == counts, name
    blocks = published.output_blocks
    assert [numbers_of(blocks[number]) for number in (5, 8, 12)] == [52_453_376, 15_479_296, 3_083_520]


def test_the_tiny_network_has_its_counts(tiny):
    assert (len(tiny.state_dict()), numbers_of(tiny)) == (198, 1_371_974)


def test_multiply_adds_of_the_published_network_and_of_a_part_of_it(published):
    given = torch.empty(1, 3, 256, 256, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")

    def giga(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / 2e9  # it counts an addition and a multiplication

    whole, needed = giga(lambda: published(*given)), giga(lambda: published.decoder_maps(*given, [5, 6, 7, 8, 12]))
    assert whole == pytest.approx(1119.83, abs=0.01)
    assert needed == pytest.approx(605.68, abs=0.01)
    assert needed / whole <= 0.6
    assert giga(lambda: published.decoder_maps(*given, [8])) == pytest.approx(398.44, abs=0.01)
    assert giga(lambda: published.decoder_maps(*given, [5])) == pytest.approx(346.63, abs=0.01)


def test_decoder_blocks_have_the_published_channels_and_sides(published):
    channels = [1024] * 6 + [512] * 6 + [256] * 6
    sides = [8] * 2 + [16] * 3 + [32] * 3 + [64] * 3 + [128] * 3 + [256] * 4
    assert published.decoder_channels == channels
    assert [256 // stride for stride in published.decoder_strides] == sides
    given = torch.empty(2, 3, 256, 256, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    maps = published.decoder_maps(*given, range(18))
    assert [(each.shape[1], each.shape[2]) for each in maps] == list(zip(channels, sides, strict=True))


# ---- the layers in numpy


def array(value):
    return value.detach().numpy()


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(x, norm):
    batch, channels = x.shape[:2]
    groups = x.reshape(batch, 32, -1)
    mean, variance = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
    normalised = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(batch, channels, -1)
    return (normalised * array(norm.weight)[:, None] + array(norm.bias)[:, None]).reshape(x.shape)


def convolved(x, layer):
    weight, (height, width) = array(layer.weight), x.shape[2:]
    reach = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    total = array(layer.bias)[None, :, None, None] * np.ones((len(x), 1, height, width))
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            window = padded[:, :, i : i + height, j : j + width]
            total = total + np.einsum("oc,bchw->bohw", weight[:, :, i, j], window)
    return total


@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("out", [32, 64])
def test_a_residual_block_written_out(out, resample):
    block = randomised(ResidualBlock(32, out, 24, 0.1, resample).double())
    x, embedding = torch.randn(2, 32, 6, 4, dtype=torch.float64), torch.randn(2, 24, dtype=torch.float64)
    resampled = {
        None: lambda y: y,
        "down": lambda y: (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4,
        "up": lambda y: y.repeat(2, axis=2).repeat(2, axis=3),
    }[resample]
    hidden = convolved(resampled(silu(group_norm(x.numpy(), block.in_layers[0]))), block.in_layers[2])
    linear = block.emb_layers[1]
    conditions = silu(embedding.numpy()) @ array(linear.weight).T + array(linear.bias)
    scale, shift = conditions[:, :out, None, None], conditions[:, out:, None, None]
    hidden = convolved(silu(group_norm(hidden, block.out_layers[0]) * (1 + scale) + shift), block.out_layers[3])
    skip = resampled(x.numpy())
    expected = hidden + (skip if out == 32 else convolved(skip, block.skip_connection))
    np.testing.assert_allclose(array(block(x, embedding)), expected, rtol=1e-10, atol=1e-10)


def test_attention_splits_heads_before_query_key_and_value():
    channels, per_head = 64, 16
    block = randomised(AttentionBlock(channels, per_head).double())
    x = torch.randn(2, channels, 3, 5, dtype=torch.float64)
    pixels = group_norm(x.numpy(), block.norm).reshape(2, channels, 15)
    qkv = np.einsum("oc,bcp->bop", array(block.qkv.weight)[..., 0], pixels) + array(block.qkv.bias)[:, None]
    mixed = np.zeros_like(pixels)
    for image in range(2):
        for head in range(channels // per_head):
            first = head * 3 * per_head
            query, key, value = (qkv[image, first + k * per_head : first + (k + 1) * per_head] for k in range(3))
            weights = np.exp(query.T @ key / math.sqrt(per_head))  # [query pixel, key pixel]
            weights /= weights.sum(1, keepdims=True)
            mixed[image, head * per_head : (head + 1) * per_head] = value @ weights.T
    projected = np.einsum("oc,bcp->bop", array(block.proj_out.weight)[..., 0], mixed)
    projected += array(block.proj_out.bias)[:, None]
    np.testing.assert_allclose(array(block(x)), x.numpy() + projected.reshape(x.shape), rtol=1e-10, atol=1e-10)


def test_the_embedding_of_steps_is_cosines_then_sines():
    steps = np.array([0, 1, 50, 999])
    embedding = sinusoidal(torch.from_numpy(steps), 256).numpy()
    assert embedding.dtype == np.float32
    for place in range(128):
        angle = steps / 10_000 ** (place / 128)
        np.testing.assert_allclose(embedding[:, place], np.cos(angle), atol=2e-4)
        np.testing.assert_allclose(embedding[:, 128 + place], np.sin(angle), atol=2e-4)


# ---- the whole network


def test_maps_are_those_of_hooks_and_nothing_behind_them_runs(tiny):
    given, step = images(2), torch.tensor([3, 700])
    seen = {}
    hooks = [
        block.register_forward_hook(lambda module, arguments, output, number=number: seen.update({number: output}))
        for number, block in enumerate([*tiny.output_blocks, tiny.out])
    ]
    tiny(given, step)
    assert len(seen) == 7
    whole = dict(seen)
    for blocks in ([1], [0, 2, 4], list(range(6))):
        seen.clear()
        maps = tiny.decoder_maps(given, step, blocks)
        assert sorted(seen) == list(range(blocks[-1] + 1))
        for number, features in zip(blocks, maps, strict=True):
            assert torch.equal(features, whole[number])
            side = 32 // tiny.decoder_strides[number]
            assert features.shape == (2, tiny.decoder_channels[number], side, side)
    for hook in hooks:
        hook.remove()
    assert len({features.std().item() for features in whole.values()}) == 7


def test_each_image_of_a_batch_has_its_own_step(tiny):
    given, steps = images(3), torch.tensor([0, 250, 999])
    together, same = tiny(given, steps), tiny(given[:1].expand(2, -1, -1, -1), steps[:2])
    for number in range(3):
        alone = tiny(given[number : number + 1], steps[number : number + 1])[0]
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-5)
    assert (same[0] - same[1]).abs().mean() > 0.01  # the step matters


def test_a_new_network_predicts_zero_and_starts_as_nothing_but_its_skips():
    network = UNet(**TINY)
    assert torch.equal(network(images(1), torch.tensor([5])), torch.zeros(1, 6, 32, 32))
    resampled = {None: lambda x: x, "down": lambda x: F.avg_pool2d(x, 2), "up": lambda x: F.interpolate(x, (16, 16))}
    seen = set()
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            given = torch.randn(1, module.in_layers[0].num_channels, 8, 8)
            expected = module.skip_connection(resampled[module.resample](given))
            assert torch.equal(module(given, torch.randn(1, 4 * TINY["base_width"])), expected)
            seen.add(module.resample)
        elif isinstance(module, AttentionBlock):
            given = torch.randn(1, module.norm.num_channels, 8, 8)
            assert torch.equal(module(given), given)
            assert not module.proj_out.weight.any()
            seen.add("attention")
    assert seen == {None, "down", "up", "attention"}


def written_out(state, images, step):
    """The published network of the sizes TINY, from its state dict alone: its prediction, and each decoder block's map.

    Blocks 2 and 4 of the encoder halve the sides, the last layers of blocks 1 and 3 of the decoder double them.
    """

    def norm(name, x):
        return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(name, x, padding):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def residual(name, x, embedding, resample):
        hidden = resample(F.silu(norm(f"{name}.in_layers.0", x)))
        hidden = conv(f"{name}.in_layers.2", hidden, 1)
        scale, shift = linear(f"{name}.emb_layers.1", F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        hidden = conv(f"{name}.out_layers.3", F.silu(norm(f"{name}.out_layers.0", hidden) * (1 + scale) + shift), 1)
        x = resample(x)
        return hidden + (conv(f"{name}.skip_connection", x, 0) if f"{name}.skip_connection.weight" in state else x)

    def attention(name, x):
        batch, channels, height, width = x.shape
        pixels = norm(f"{name}.norm", x).flatten(2)
        qkv = F.conv1d(pixels, state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])
        per_head = TINY["channels_per_head"]
        query, key, value = qkv.reshape(-1, 3 * per_head, height * width).split(per_head, dim=1)  # heads in the batch
        shares = (query.mT @ key / math.sqrt(per_head)).softmax(-1)  # [., query's pixel, key's pixel]
        mixed = (value @ shares.mT).reshape(batch, channels, height * width)
        return x + F.conv1d(mixed, state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"]).view_as(x)

    def same(x):
        return x

    def halved(x):
        return F.avg_pool2d(x, 2)

    def doubled(x):
        return F.interpolate(x, scale_factor=2, mode="nearest")

    def block(name, x, embedding, resample):
        """Layers in the order of their numbers; the last residual one resamples."""
        inside = [key.removeprefix(f"{name}.") for key in state if key.startswith(f"{name}.")]
        layers = sorted({int(key.partition(".")[0]) for key in inside})
        for layer in layers:
            part = f"{name}.{layer}"
            if f"{part}.qkv.weight" in state:
                x = attention(part, x)
            elif f"{part}.in_layers.0.weight" in state:
                x = residual(part, x, embedding, resample if layer == layers[-1] else same)
            else:
                x = conv(part, x, 1)
        return x

    angles = step[:, None] / 10_000 ** (torch.arange(16) / 16)  # half of the base width
    embedding = linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1).to(images.dtype))
    embedding = linear("time_embed.2", F.silu(embedding))
    x, skips, maps = images, [], []
    for number in range(6):
        x = block(f"input_blocks.{number}", x, embedding, halved if number in (2, 4) else same)
        skips.append(x)
    x = block("middle_block", x, embedding, same)
    for number in range(6):
        x = torch.cat([x, skips.pop()], dim=1)
        x = block(f"output_blocks.{number}", x, embedding, doubled if number in (1, 3) else same)
        maps.append(x)
    return conv("out.2", F.silu(norm("out.0", x)), 1), maps


def test_blocks_and_skips_are_wired_as_published():
    network = randomised(UNet(**TINY).double())
    given, step = images(2).double(), torch.tensor([3, 40])
    with torch.no_grad():
        expected, expected_maps = written_out(network.state_dict(), given, step)
        result, maps = network(given, step), network.decoder_maps(given, step, range(6))
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    for features, truth in zip(maps, expected_maps, strict=True):
        torch.testing.assert_close(features, truth.float(), rtol=1e-4, atol=1e-5)


def test_other_sizes_and_memory_formats_pass(tiny):
    given = images(1, 64)[..., :40]
    assert tiny(given, torch.tensor([7])).shape == (1, 6, 64, 40)
    last = given.to(memory_format=torch.channels_last)
    torch.testing.assert_close(tiny(last, torch.tensor([7])), tiny(given, torch.tensor([7])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_the_torso_in_16_bits_is_its_convolutions_alone(tiny, dtype, share):
    cast = UNet(**TINY)
    cast.load_state_dict(tiny.state_dict())
    assert cast.eval().cast_torso(dtype) is cast
    for name, module in cast.named_modules():
        torso = isinstance(module, nn.Conv1d | nn.Conv2d) and not name.startswith("out.")
        for parameter in module.parameters(recurse=False):
            assert parameter.dtype == (dtype if torso else torch.float32), name
    expected, result = (network(images(2), torch.tensor([3, 700])) for network in (tiny, cast))
    assert result.dtype == torch.float32
    assert 0 < (result - expected).std() < share * expected.std()
    maps = cast.decoder_maps(images(2), torch.tensor([3, 700]), [1, 4])
    for features, truth in zip(maps, tiny.decoder_maps(images(2), torch.tensor([3, 700]), [1, 4]), strict=True):
        assert torch.equal(features, features.to(dtype).float())  # of 16 bits, given as float32
        assert (features - truth).std() < share * truth.std()


def test_dropout_is_of_training_alone():
    network = randomised(UNet(**TINY, dropout=0.5))
    given, step = images(1), torch.tensor([9])
    assert torch.equal(network(given, step), network(given, step))
    network.train()
    assert not torch.equal(network(given, step), network(given, step))


def test_wrong_sizes_are_named(tiny):
    with pytest.raises(ValueError, match=r"base_width=48 must be a multiple of 32"):
        UNet(**(TINY | {"base_width": 48}))
    with pytest.raises(ValueError, match=r"image_size=34 cannot be halved 2 times"):
        UNet(**(TINY | {"image_size": 34}))
    with pytest.raises(ValueError, match=r"channels_per_head=24 does not divide 64"):
        UNet(**(TINY | {"channels_per_head": 24}))
    step = torch.tensor([0])
    with pytest.raises(ValueError, match=r"images of \[30, 32\] pixels: both sides must be multiples of 4"):
        tiny(images(1)[:, :, :30], step)
    for blocks in ([], [2, 1], [1, 1], [-1, 2], [6]):
        with pytest.raises(ValueError, match=r"blocks=.*: choose ascending numbers from 0 to 5") as raised:
            tiny.decoder_maps(images(1), step, blocks)
        assert str(blocks) in str(raised.value)


# ---- the same network in diffusers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers brings packages that warn when they are imported
def test_diffusers_computes_the_same_with_the_same_weights():
    pytest.importorskip("diffusers", reason="needs the extra bench")
    module = DiffusionPretraining()
    ours, theirs = randomised(module.network), pretraining_step.diffusers_network(module).eval()
    level = len(module.hparams.channel_multipliers)

    def copied(target, source):
        for name, parameter in target.named_parameters():
            parameter.copy_(source.get_parameter(name).view_as(parameter))

    def copied_residual(target, source):
        pairs = [
            (target.norm1, source.in_layers[0]), (target.conv1, source.in_layers[2]),
            (target.time_emb_proj, source.emb_layers[1]), (target.norm2, source.out_layers[0]),
            (target.conv2, source.out_layers[3]),
        ]  # fmt: skip
        if target.conv_shortcut is not None:
            pairs.append((target.conv_shortcut, source.skip_connection))
        for pair in pairs:
            copied(*pair)

    def copied_attention(target, source):
        copied(target.group_norm, source.norm)
        copied(target.to_out[0], source.proj_out)
        for kind in ("weight", "bias"):
            value = getattr(source.qkv, kind).reshape(
                source.num_heads, 3, -1, *source.qkv.weight.shape[1:2][: kind == "weight"]
            )
            for place, layer in enumerate((target.to_q, target.to_k, target.to_v)):
                getattr(layer, kind).copy_(value[:, place].reshape_as(getattr(layer, kind)))

    with torch.no_grad():
        copied(theirs.conv_in, ours.input_blocks[0][0])
        copied(theirs.time_embedding.linear_1, ours.time_embed[0])
        copied(theirs.time_embedding.linear_2, ours.time_embed[2])
        for number, block in enumerate(theirs.down_blocks):
            copied_residual(block.resnets[0], ours.input_blocks[1 + 2 * number][0])
            if number < level - 1:
                copied_residual(block.downsamplers[0], ours.input_blocks[2 + 2 * number][0])
            else:
                copied_attention(block.attentions[0], ours.input_blocks[1 + 2 * number][1])
        for place in (0, 1):
            copied_residual(theirs.mid_block.resnets[place], ours.middle_block[2 * place])
        copied_attention(theirs.mid_block.attentions[0], ours.middle_block[1])
        for number, block in enumerate(theirs.up_blocks):
            for place in (0, 1):
                copied_residual(block.resnets[place], ours.output_blocks[2 * number + place][0])
                if number == 0:
                    copied_attention(block.attentions[place], ours.output_blocks[place][1])
            if number < level - 1:
                copied_residual(block.upsamplers[0], ours.output_blocks[2 * number + 1][-1])
        copied(theirs.conv_norm_out, ours.out[0])
        copied(theirs.conv_out, ours.out[2])
        given, step = images(2, 64), torch.tensor([4, 800])
        expected = theirs(given, step).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(given, step), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
