"""The UNet of diffusion models of images, with the names of the published checkpoints.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, NeurIPS 2020; Dhariwal, Nichol: Diffusion Models Beat GANs
on Image Synthesis, NeurIPS 2021, whose released state dicts load key for key. Blocks of a level are residual, some
followed by attention over all pixels; down- and up-sampling happen inside residual blocks; the step scales and shifts
each block's second norm. As features it stops behind the last decoder block that is asked for (Baranchuk et al., ICLR
2022).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 32


class UNet(nn.Module):
    """Predicts from a noisy image and its step; with the defaults the published network of 552,814,086 parameters.

    Args:
        image_size: height and width in pixels at which ``attention_resolutions`` are counted; other sizes pass, if
            they can be halved as often as there are levels after the first.
        in_channels: of the image.
        out_channels: of the prediction; twice ``in_channels`` where the variance is learnt.
        base_width: channels of the first level; a multiple of 32, like all widths.
        channel_multipliers: width of each level in units of ``base_width``, from the finest level on.
        num_residual_blocks: of each level of the encoder; the decoder has one more.
        attention_resolutions: heights in pixels of the levels that have attention.
        channels_per_head: of the attention.
        dropout: probability that a number is set to 0 inside residual blocks, in training.

    Raises:
        ValueError: the sizes do not go together.
    """

    def __init__(
        self,
        image_size: int = 256,
        in_channels: int = 3,
        out_channels: int = 6,
        base_width: int = 256,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_residual_blocks: int = 2,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        channels_per_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if base_width % _GROUPS:
            raise ValueError(f"base_width={base_width} must be a multiple of {_GROUPS}, the groups of the norms")
        self.divisor = 2 ** (len(channel_multipliers) - 1)
        if image_size % self.divisor:
            raise ValueError(f"image_size={image_size} cannot be halved {len(channel_multipliers) - 1} times")
        self.base_width = base_width
        embedding = 4 * base_width
        self.time_embed = nn.Sequential(nn.Linear(base_width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

        def residual(width: int, out: int, resample: str | None = None) -> ResidualBlock:
            return ResidualBlock(width, out, embedding, dropout, resample)

        def attention(width: int, side: int) -> list[nn.Module]:
            return [AttentionBlock(width, channels_per_head)] if side in attention_resolutions else []

        width, side = base_width * channel_multipliers[0], image_size
        self.input_blocks = nn.ModuleList([Block(Convolution(in_channels, width, 3, padding=1))])
        skips = [width]
        for level, multiplier in enumerate(channel_multipliers):
            for _ in range(num_residual_blocks):
                out = multiplier * base_width
                self.input_blocks.append(Block(residual(width, out), *attention(out, side)))
                width = out
                skips.append(width)
            if level < len(channel_multipliers) - 1:
                self.input_blocks.append(Block(residual(width, width, "down")))
                side //= 2
                skips.append(width)
        self.middle_block = Block(
            residual(width, width), AttentionBlock(width, channels_per_head), residual(width, width)
        )
        self.output_blocks = nn.ModuleList()
        self.decoder_channels, self.decoder_strides = [], []  # of each decoder block's output; pixels of the image
        for level, multiplier in reversed(list(enumerate(channel_multipliers))):
            for place in range(num_residual_blocks + 1):
                out = multiplier * base_width
                layers = [residual(width + skips.pop(), out), *attention(out, side)]
                width = out
                if level > 0 and place == num_residual_blocks:
                    layers.append(residual(width, width, "up"))
                    side *= 2
                self.output_blocks.append(Block(*layers))
                self.decoder_channels.append(width)
                self.decoder_strides.append(image_size // side)
        self.out = nn.Sequential(Norm(width), nn.SiLU(), zeroed(nn.Conv2d(width, out_channels, 3, padding=1)))

    def forward(self, images: Tensor, step: Tensor) -> Tensor:
        """The prediction for noisy images.

        Args:
            images: [batch, in_channels, height, width].
            step: [batch] int64, of the diffusion process.

        Returns:
            [batch, out_channels, height, width].
        """
        for features in self._decoder_outputs(images, step):
            last = features
        return self.out(last.to(images.dtype))

    def decoder_maps(self, images: Tensor, step: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Outputs of decoder blocks; nothing behind the last of them is computed.

        Args:
            images: [batch, in_channels, height, width], noisy.
            step: [batch] int64; each image has its own.
            blocks: numbers of decoder blocks, ascending.

        Returns:
            For each block, float32 [batch, ``decoder_channels[block]``, h, w], where h is the height divided by
            ``decoder_strides[block]``.

        Raises:
            ValueError: there are no such blocks, or they are not ascending.
        """
        if (
            list(blocks) != sorted(set(blocks))
            or not blocks
            or not 0 <= blocks[0] <= blocks[-1] < len(self.output_blocks)
        ):
            raise ValueError(f"blocks={list(blocks)}: choose ascending numbers from 0 to {len(self.output_blocks) - 1}")
        maps = []
        for number, features in enumerate(self._decoder_outputs(images, step)):
            if number in blocks:
                maps.append(features.float())
            if number == blocks[-1]:
                break
        return maps

    def cast_torso(self, dtype: torch.dtype) -> Self:
        """Keep the convolutions of all blocks in a type of 16 bits, as the published features were computed.

        Norms, the embedding of the step and the head stay float32; activations between convolutions have the type.
        """
        for part in (*self.input_blocks, self.middle_block, *self.output_blocks):
            for module in part.modules():
                if isinstance(module, nn.Conv1d | nn.Conv2d):
                    module.to(dtype)
        return self

    def _decoder_outputs(self, images: Tensor, step: Tensor) -> Iterator[Tensor]:
        """Output of each decoder block, computed when it is asked for."""
        if any(side % self.divisor for side in images.shape[-2:]):
            raise ValueError(
                f"images of {list(images.shape[-2:])} pixels: both sides must be multiples of {self.divisor}"
            )
        embedding = self.time_embed(sinusoidal(step, self.base_width).to(self.time_embed[0].weight.dtype))
        features, skips = images.to(self.input_blocks[0][0].weight.dtype), []
        for block in self.input_blocks:
            features = block(features, embedding)
            skips.append(features)
        features = self.middle_block(features, embedding)
        for block in self.output_blocks:
            features = block(torch.cat([features, skips.pop()], dim=1), embedding)
            yield features


class Block(nn.Sequential):
    """Layers one after another, of which the residual ones are told the step."""

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """[batch, channel, h, w] and [batch, embedding] to [batch, channel, h, w]."""
        for layer in self:
            features = layer(features, embedding) if isinstance(layer, ResidualBlock) else layer(features)
        return features


class Convolution(nn.Conv2d):
    """A convolution of pictures; see `rounded` for that in float16."""

    def forward(self, features: Tensor) -> Tensor:
        """[batch, in_channels, h, w] to [batch, out_channels, h, w]."""
        return rounded(F.conv2d, features, self.weight, self.bias, padding=self.padding)


class Norm(nn.GroupNorm):
    """Group normalisation of 32 groups, in float32 whatever the type of the features."""

    def __init__(self, channels: int) -> None:
        super().__init__(_GROUPS, channels)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channel, ...] to the same shape and type."""
        # Also faster on a CPU, where torch is slow at the gradient of this operation in bfloat16.
        return super().forward(features.to(self.weight.dtype)).to(features.dtype)


class ResidualBlock(nn.Module):
    """x + conv(silu(scale * norm(conv(silu(norm(x)))) + shift)), scale and shift from the step's embedding.

    Args:
        channels: of the input.
        out_channels: of the output; where they differ, x passes through a 1 x 1 convolution.
        embedding: width of the step's embedding.
        dropout: before the last convolution.
        resample: "down" averages 2 x 2 pixels, "up" repeats them, both x and what enters the first convolution.
    """

    def __init__(self, channels: int, out_channels: int, embedding: int, dropout: float, resample: str | None) -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(Norm(channels), nn.SiLU(), Convolution(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        last = zeroed(Convolution(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(Norm(out_channels), nn.SiLU(), nn.Dropout(dropout), last)
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else Convolution(channels, out_channels, 1)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """[batch, channels, h, w] and [batch, embedding] to [batch, out_channels, h', w']."""
        hidden = self.in_layers[:2](features)
        if self.resample == "down":
            hidden, features = F.avg_pool2d(hidden, 2), F.avg_pool2d(features, 2)
        elif self.resample == "up":
            hidden, features = (F.interpolate(each, scale_factor=2, mode="nearest") for each in (hidden, features))
        hidden = self.in_layers[2](hidden)
        scale, shift = self.emb_layers(embedding).to(hidden.dtype)[..., None, None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        hidden = torch.addcmul(shift, norm(hidden), 1 + scale)
        for layer in rest:
            hidden = layer(hidden)
        return self.skip_connection(features) + hidden


class AttentionBlock(nn.Module):
    """x + attention of all pixels to all pixels; the channels of query, key and value lie together for each head.

    Args:
        channels: of input and output.
        channels_per_head: divides them.
    """

    def __init__(self, channels: int, channels_per_head: int) -> None:
        super().__init__()
        if channels % channels_per_head:
            raise ValueError(f"channels_per_head={channels_per_head} does not divide {channels}, a level's width")
        self.num_heads = channels // channels_per_head
        self.norm = Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channel, h, w] to the same shape."""
        # The pixels' channels lie side by side in memory where the features are channels_last.
        pixels = self.norm(features).flatten(2).mT  # [batch, pixel, channel]
        qkv = rounded(F.linear, pixels, self.qkv.weight[..., 0], self.qkv.bias)
        query, key, value = qkv.unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)  # [batch, head, pixel, .]
        mixed = rounded(F.scaled_dot_product_attention, query, key, value)
        mixed = mixed.transpose(1, 2).flatten(2)  # [batch, pixel, channel]
        projected = rounded(F.linear, mixed, self.proj_out.weight[..., 0], self.proj_out.bias)
        return features + projected.mT.unflatten(-1, features.shape[-2:])


def rounded(operation: Callable[..., Tensor], *arguments: Tensor, **options: Any) -> Tensor:
    """An operation's result; of float16 on a CPU, computed in float32 and rounded.

    That is what a GPU does, whose sums of products in float16 are float32. torch's own products in float16 take four
    times as long on a CPU.
    """
    if arguments[0].dtype == torch.float16 and arguments[0].device.type == "cpu":
        return operation(*(each.float() for each in arguments), **options).half()
    return operation(*arguments, **options)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all parameters 0: a residual branch then starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoidal(step: Tensor, width: int) -> Tensor:
    """Embedding of steps: cosines of geometrically falling frequencies from 1 to 1 / 10,000, then the sines.

    Args:
        step: [batch].
        width: even.

    Returns:
        float32 [batch, width].
    """
    frequencies = torch.exp(-math.log(10_000) / (width // 2) * torch.arange(width // 2, device=step.device))
    angles = step[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
