"""Two 3x3 convolutions with a wide hidden layer between them that never goes through memory.

For few channels and many hidden ones, as in the image preprocessor of the GP-VAE (Fortuin et al., AISTATS 2020), the
time of a step on a CPU is that of writing the hidden layer and reading it again. Here it is evaluated in blocks of
pixels that stay in the cache, and once more in the backward pass; and only where a 3x3 patch holds anything but zeros,
black or missing, for all other pixels have the same hidden vector. This is an identity, not an approximation.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

TAPS = 9  # of a 3x3 kernel; tap 3 * row + column, as in `weight.flatten(-2)`
PATCHES_PER_BLOCK = 1024  # 1 MiB of a 256 channel hidden layer in float32: stays in a core's second-level cache
SPREAD_ENTRIES = 2**18  # entries of what a group of frames spreads over its pixels: likewise 1 MiB


def hidden_layer(patches: Tensor, hidden_weight: Tensor, hidden_bias: Tensor) -> Tensor:
    """relu(patches @ hidden_weight.T + hidden_bias), [patch, hidden]."""
    return torch.addmm(hidden_bias, patches, hidden_weight.t()).relu_()


class ParameterGradients:
    """Gradients of relu(patches @ hidden_weight.T + hidden_bias) @ projection.T, summed over blocks of patches.

    The hidden layer is computed once more for each block. The blocks are summed in float64: float32 would lose a digit
    over twenty of them.
    """

    def __init__(self, hidden_weight: Tensor, hidden_bias: Tensor, projection: Tensor) -> None:
        self.parameters = hidden_weight, hidden_bias, projection
        self.weight = torch.zeros_like(hidden_weight.t(), dtype=torch.float64)  # [in_channels * 9, hidden]
        self.bias = torch.zeros_like(hidden_bias, dtype=torch.float64)
        self.projection = torch.zeros_like(projection, dtype=torch.float64)

    def add(self, patches: Tensor, grad: Tensor) -> None:
        """Add a block: patches [patch, in_channels * 9], gradient of their products [out_channels * 9, patch]."""
        hidden_weight, hidden_bias, projection = self.parameters
        hidden = hidden_layer(patches, hidden_weight, hidden_bias)
        self.projection.add_(grad @ hidden)
        grad_hidden = (grad.t() @ projection).mul_(hidden.sign_())  # the ReLU's slope, 0 or 1
        self.weight.add_(patches.t() @ grad_hidden)
        self.bias.add_(grad_hidden.sum(0))

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Those of hidden_weight, hidden_bias and projection."""
        dtype = self.parameters[0].dtype
        return self.weight.t().to(dtype).contiguous(), self.bias.to(dtype), self.projection.to(dtype)


class _BlockwiseConvolution(torch.autograd.Function):
    """base + conv3x3(relu(conv3x3(frames)) - relu(conv3x3(black frames))), the latter without its bias.

    The difference is 0 except where a patch holds something else than zeros. Pixels lie in the flat layout of
    `_padded_pixels`; position p is pixel (f, y, x) with p = (f * (height + 1) + y) * (width + 1) + x.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        frames: Tensor,  # [frame, height, width, in_channels]
        hidden_weight: Tensor,  # [hidden, 9 * in_channels]
        hidden_bias: Tensor,  # [hidden]
        spread: Tensor,  # [9 * out_channels, hidden]: what a hidden pixel adds to each of the nine pixels round it
        black_spread: Tensor,  # [9 * out_channels]: the same for the hidden pixel of a black patch
        base: Tensor,  # [height, width, out_channels]: result for a black frame
    ) -> Tensor:
        num_frames, height, width, _ = frames.shape
        row, out_channels = width + 1, base.shape[-1]
        frame_length, margin = (height + 1) * row, row + 1
        pixels = _padded_pixels(frames)
        positions = _positions_of_patches(pixels, num_frames, height, width)
        ctx.save_for_backward(pixels, positions, hidden_weight, hidden_bias, spread, black_spread)
        ctx.width = width

        result = base.new_empty(num_frames, *base.shape)
        frames_of_group = max(1, SPREAD_ENTRIES // (len(spread) * frame_length))
        firsts = range(0, num_frames, frames_of_group)
        ends = torch.tensor(firsts[1:], dtype=torch.int64) * frame_length
        groups = positions.tensor_split(torch.searchsorted(positions, ends))
        for first, group, images in zip(firsts, groups, result.split(frames_of_group), strict=True):
            length = len(images) * frame_length
            spreads = spread.new_zeros(len(spread), length + 2 * margin)
            for block in group.split(PATCHES_PER_BLOCK):
                hidden = hidden_layer(_patches(pixels, block, width), hidden_weight, hidden_bias)
                entries = torch.addmm(black_spread[:, None], spread, hidden.t(), beta=-1)  # [9 * out_channels, patch]
                index = block + (margin - first * frame_length)
                spreads.scatter_(1, index.expand(len(spread), -1), entries)
            sums = spread.new_zeros(out_channels, length)
            for tap, added in enumerate(spreads.view(TAPS, out_channels, -1)):
                # A pixel receives from its neighbour on the side opposite to that to which the tap spreads.
                start = (2 - tap // 3) * row + 2 - tap % 3
                sums += added[:, start : start + length]
            inside = sums.view(out_channels, -1, height + 1, row)[:, :, :height, :width]
            torch.add(inside.permute(1, 2, 3, 0), base, out=images)
        return result  # [frame, height, width, out_channels]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        pixels, positions, hidden_weight, hidden_bias, spread, black_spread = ctx.saved_tensors
        grad_pixels = _padded_pixels(grad)
        gradients = ParameterGradients(hidden_weight, hidden_bias, spread)
        grad_black = torch.zeros_like(black_spread, dtype=torch.float64)
        for block in positions.split(PATCHES_PER_BLOCK):
            grad_spread = _patches(grad_pixels, block, ctx.width)  # [patch, 9 * out_channels]
            gradients.add(_patches(pixels, block, ctx.width), grad_spread.t())
            grad_black -= grad_spread.sum(0)
        return None, *gradients.result(), grad_black.to(grad.dtype), grad.sum(0)


def _padded_pixels(frames: Tensor) -> Tensor:
    """[frame, height, width, channel] as [position, channel]: a zero after each row, a row of zeros after each frame.

    Before the first and after the last pixel there are width + 2 zeros, so that every pixel has all its neighbours.
    """
    num_frames, height, width, channels = frames.shape
    length, margin = num_frames * (height + 1) * (width + 1), width + 2
    pixels = frames.new_zeros(length + 2 * margin, channels)
    pixels[margin : margin + length].view(num_frames, height + 1, width + 1, channels)[:, :height, :width] = frames
    return pixels


def _positions_of_patches(pixels: Tensor, num_frames: int, height: int, width: int) -> Tensor:
    """Positions of the pixels whose 3x3 patch is not all zero, ascending, int64."""
    row = width + 1
    first, *others = pixels.unbind(1)
    nonzero = first != 0
    for channel in others:
        nonzero |= channel != 0
    rows = nonzero[:-2] | nonzero[1:-1] | nonzero[2:]
    patches = rows[: -2 * row] | rows[row:-row] | rows[2 * row :]
    images = patches.view(num_frames, height + 1, row)
    images[:, height:], images[:, :, width:] = False, False
    return patches.nonzero()[:, 0]


def _patches(pixels: Tensor, positions: Tensor, width: int) -> Tensor:
    """The 3x3 patches round some positions of `_padded_pixels`, [position, 9 * channel]: row, column, channel."""
    channels = pixels.shape[1]
    # The three pixels of a patch's row are contiguous: one piece of 3 * channels numbers from any position on.
    triples = pixels.as_strided((len(pixels) - 2, 3 * channels), (channels, 1))
    upper_left = torch.arange(0, 3 * (width + 1), width + 1, device=pixels.device)
    rows = (positions[:, None] + upper_left).flatten()
    return triples.index_select(0, rows).view(len(positions), TAPS * channels)


def blockwise_convolution(
    frames: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, output_bias: Tensor
) -> Tensor:
    """conv3x3(relu(conv3x3(frames))) with "same" zero padding, for a CPU, without a hidden layer in memory.

    Equal to `nn.functional.conv2d` twice, in value and in the gradients with respect to all four parameters; there is
    no gradient with respect to the frames. Pixels whose 3x3 patch is all zero share one hidden vector, so that the time
    goes with the number of the other patches: frames that are largely black or missing gain most.

    Args:
        frames: [frame, height, width, in_channels], channels last, any values, in the dtype of the weights.
        hidden_weight: [hidden_channels, in_channels, 3, 3].
        hidden_bias: [hidden_channels].
        output_weight: [out_channels, hidden_channels, 3, 3].
        output_bias: [out_channels].

    Returns:
        [frame, height, width, out_channels].

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    if (
        frames.ndim != 4
        or hidden_weight.shape[1:] != (frames.shape[-1], 3, 3)
        or output_weight.shape[1:] != (hidden_weight.shape[0], 3, 3)
    ):
        raise ValueError(
            f"blockwise_convolution: frames of shape {list(frames.shape)} and weights of shapes "
            f"{list(hidden_weight.shape)} and {list(output_weight.shape)} are not [frame, height, width, in], "
            "[hidden, in, 3, 3] and [out, hidden, 3, 3]"
        )
    height, width = frames.shape[1:3]
    out_channels, hidden_channels = output_weight.shape[:2]
    with torch.autocast(frames.device.type, enabled=False):
        # The taps in reverse order: from what a pixel takes from its neighbours to what it gives them.
        spread = output_weight.flip(2, 3).permute(2, 3, 0, 1).reshape(TAPS * out_channels, hidden_channels)
        black_spread = spread @ hidden_bias.relu()
        # Whether the neighbour that gives a tap lies inside the frame: the second convolution pads the hidden layer
        # with zeros, which is not the hidden layer of a black patch.
        ones = output_bias.new_ones(1, 1, height, width)
        inside = nn.functional.unfold(ones, 3, padding=1)[0].flip(0).t()  # [height * width, 9]
        base = (inside @ black_spread.view(TAPS, out_channels) + output_bias).view(height, width, out_channels)
        gathered = hidden_weight.permute(0, 2, 3, 1).flatten(1)  # [hidden, 9 * in_channels]
        return _BlockwiseConvolution.apply(frames, gathered, hidden_bias, spread, black_spread, base)
