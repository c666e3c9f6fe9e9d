"""Convolutions over frames: the image preprocessor of the GP-VAE's image models.

Source: Fortuin, Baranchuk, Raetsch, Mandt, "GP-VAE: Deep Probabilistic Time Series Imputation", AISTATS 2020, and their
published code.

On binary frames two 3x3 convolutions need no convolution over pixels: there are only 2^9 distinct 3x3 patches (3^9 if
pixels can be missing). The hidden layer is evaluated once for each patch and projected onto the nine taps of the second
convolution; what remains for a pixel is a sum of nine table look-ups instead of 2 * 9 * hidden_channels products. This
is an identity, not an approximation.

Frames of any values have no such table; `blockwise` has the convolutions for them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from .blockwise import PATCHES_PER_BLOCK, TAPS, ParameterGradients, blockwise_convolution, hidden_layer
from .mlp import glorot_


class _PatchTable(torch.autograd.Function):
    """Hidden layer of distinct patches, projected onto the taps of the second convolution.

    relu(patches @ hidden_weight.T + hidden_bias) @ projection.T, transposed, evaluated block by block; the hidden layer
    is never stored and is recomputed in the backward pass, which is faster than to write it to memory and read it.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        patches: Tensor,  # [patch, in_channels * 9]
        hidden_weight: Tensor,  # [hidden, in_channels * 9]
        hidden_bias: Tensor,  # [hidden]
        projection: Tensor,  # [out_channels * 9, hidden]
    ) -> Tensor:
        ctx.save_for_backward(patches, hidden_weight, hidden_bias, projection)
        blocks = [
            projection @ hidden_layer(block, hidden_weight, hidden_bias).t()
            for block in patches.split(PATCHES_PER_BLOCK)
        ]
        return torch.cat(blocks, dim=1)  # [out_channels * 9, patch]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_table: Tensor) -> tuple[Tensor | None, ...]:
        patches, *parameters = ctx.saved_tensors
        gradients = ParameterGradients(*parameters)
        blocks = zip(patches.split(PATCHES_PER_BLOCK), grad_table.split(PATCHES_PER_BLOCK, dim=1), strict=True)
        for block, grad_block in blocks:
            gradients.add(block, grad_block)
        return None, *gradients.result()


class _TapSum(torch.autograd.Function):
    """Sum over the nine taps of table[channel, tap, index of the neighbour under the tap].

    `index` is an index image as `_index_image` makes it: flat, with one column of padding between rows and one row
    between frames, so that the neighbours of all pixels under one tap are one contiguous piece of it.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, index: Tensor, frames: int, height: int, width: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.frame_shape = (frames, height, width)
        ctx.num_entries = table.shape[2]
        length = frames * (height + 1) * (width + 1)
        shifted = index.as_strided((3, 3, length), (width + 1, 1, 1))  # the neighbours under each tap
        sums = torch.stack([channel.unflatten(0, (3, 3)).gather(2, shifted).sum((0, 1)) for channel in table])
        images = sums.view(-1, frames, height + 1, width + 1)[:, :, :height, :width]
        return images.transpose(0, 1).contiguous()  # [frame, channel, height, width]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        frames, height, width = ctx.frame_shape
        channels, length = grad.shape[1], frames * (height + 1) * (width + 1)
        # Sums over some 1e5 pixels: float32 would lose three digits in the entry of the most frequent patch.
        padded = grad.new_zeros(channels, frames, height + 1, width + 1, dtype=torch.float64)
        padded[:, :, :height, :width] = grad.transpose(0, 1)
        # Most pixels of a picture have the same empty patch, and additions to one bin wait for each other: adjacent
        # pixels go to different copies of the bins, where these are few enough to stay in the cache.
        copies = 4 if ctx.num_entries <= 2**10 else 1
        if copies > 1:
            index = index.clone()
        for copy in range(1, copies):
            index[copy::copies] += copy * ctx.num_entries
        # One row for each tap, which torch spreads over the cores.
        shifted = index.as_strided((1, 3, 3, length), (0, width + 1, 1, 1)).expand(channels, -1, -1, -1)
        bins = padded.new_zeros(channels, 3, 3, copies * ctx.num_entries)
        bins.scatter_add_(3, shifted, padded.view(channels, 1, 1, length).expand(-1, 3, 3, -1))
        bins = bins.view(channels, TAPS, copies, ctx.num_entries).sum(2)
        return bins.to(grad.dtype), None, None, None, None


def _index_image(digits: Tensor, base: int) -> Tensor:
    """Number of the 3x3 patch around each pixel, in a flat padded layout.

    Args:
        digits: [frame, height, width] int16 in 0..base-1.
        base: 2 or 3.

    Returns:
        [frame * (height + 1) * (width + 1) + 2 * (width + 2)] int64. Pixel (f, y, x) is at position (width + 2) +
        (f * (height + 1) + y) * (width + 1) + x; all other positions lie outside the frames and hold base**9.
    """
    frames, height, width = digits.shape
    row = width + 1
    length, margin = frames * (height + 1) * row, row + 1
    padded = digits.new_zeros(length + 2 * margin)
    padded[margin : margin + length].view(frames, height + 1, row)[:, :height, :width] = digits
    # int16 holds 3**9 - 1, and the narrow type keeps the sums in the cache. The two directions separate.
    rows = padded[:-2] + padded[1:-1] * base + padded[2:] * base**2
    patches = rows[: -2 * row] + rows[row:-row] * base**3 + rows[2 * row :] * base**6
    index = torch.full((length + 2 * margin,), base**TAPS, dtype=torch.int64, device=digits.device)
    inside = patches.view(frames, height + 1, row)[:, :height, :width]
    index[margin : margin + length].view(frames, height + 1, row)[:, :height, :width] = inside
    return index


def tabulated_binary_convolution(
    values: Tensor,
    observed_mask: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
) -> Tensor:
    """conv3x3(relu(conv3x3(frames))) with "same" zero padding, for binary frames, by table look-up.

    Equal to `nn.functional.conv2d` twice, in value and in the gradients with respect to all four parameters; there is
    no gradient with respect to the frames. A pixel is a digit of base 2 (0, 1) or, with a mask, of base 3: missing,
    observed 0, observed 1. Zero padding has the same inputs as the digit 0.

    The frames must be binary: that is the caller's promise (the data modules of binary images keep it) and is not
    checked, as it would cost a pass over the data in each step. Values that are not 0 or 1 give wrong results or an
    index error.

    Args:
        values: [frame, height, width] 0 or 1, of any dtype; ignored where not observed.
        observed_mask: [frame, height, width] 0 or 1 (1 = observed), the second input channel; None = one channel.
        hidden_weight: [hidden_channels, in_channels, 3, 3], in_channels being 1 without and 2 with a mask.
        hidden_bias: [hidden_channels].
        output_weight: [out_channels, hidden_channels, 3, 3].
        output_bias: [out_channels].

    Returns:
        [frame, out_channels, height, width] in the dtype of the weights.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    in_channels = 1 if observed_mask is None else 2
    if values.ndim != 3 or (observed_mask is not None and observed_mask.shape != values.shape):
        mask_shape = None if observed_mask is None else list(observed_mask.shape)
        raise ValueError(
            f"tabulated_binary_convolution: values have shape {list(values.shape)} and observed_mask {mask_shape}; "
            "give both as [frame, height, width]"
        )
    if hidden_weight.shape[1:] != (in_channels, 3, 3) or output_weight.shape[1:] != (hidden_weight.shape[0], 3, 3):
        raise ValueError(
            f"tabulated_binary_convolution: weights of shapes {list(hidden_weight.shape)} and "
            f"{list(output_weight.shape)} are not [hidden, {in_channels}, 3, 3] and [out, hidden, 3, 3]; a frame has "
            "one input channel, and one more with an observed_mask"
        )
    base = in_channels + 1
    digits = values.to(torch.int16)
    if observed_mask is not None:
        digits = (digits + 1) * observed_mask.to(torch.int16)
    index = _index_image(digits, base)

    num_patches = base**TAPS
    if base == 2 or index.is_cuda:  # few, or cheap beside the synchronisation that a count of them would need
        occurring = torch.arange(num_patches, device=index.device)
    else:
        occurring = torch.bincount(index)[:num_patches].nonzero().flatten()
    powers = base ** torch.arange(TAPS, device=index.device)
    patch_digits = occurring[:, None] // powers % base  # [patch, 9]
    patches = patch_digits if observed_mask is None else torch.cat([patch_digits == 2, patch_digits >= 1], dim=1)

    hidden_channels, out_channels = hidden_weight.shape[0], output_weight.shape[0]
    with torch.autocast(values.device.type, enabled=False):
        # Contiguous: products with the strided view are five times slower.
        projection = output_weight.permute(0, 2, 3, 1).contiguous().view(out_channels * TAPS, hidden_channels)
        entries = _PatchTable.apply(patches.to(hidden_weight.dtype), hidden_weight.flatten(1), hidden_bias, projection)
        # The last entry stands for a neighbour outside the frame: the second convolution pads the hidden layer with
        # zeros, which is not the hidden layer of an empty patch.
        table = entries.new_zeros(out_channels * TAPS, num_patches + 1).index_copy(1, occurring, entries)
        sums = _TapSum.apply(table.view(out_channels, TAPS, -1), index, *values.shape)
        return sums + output_bias[:, None, None]


class ImagePreprocessor(nn.Module):
    """Two 3x3 convolutions with ReLU between them, applied to each frame alone; Glorot-initialised.

    Conv(in_channels -> hidden_channels), ReLU, Conv(hidden_channels -> out_channels), and a ReLU on the output, as the
    published code has it. With a mask channel that last ReLU can die: all outputs are 0, and the model ignores its
    input.

    Args:
        image_shape: [height, width] of a binary frame, or [height, width, channels] of one with any values, pixels.
        in_channels: channels of a frame with those of its mask; None: without a mask. A mask has as many channels as
            the frame has.
        hidden_channels: channels between the convolutions.
        out_channels: channels of the result; None: those of a frame.
        output_relu: whether a ReLU follows the second convolution.

    Raises:
        ValueError: if `image_shape` is not two or three positive numbers.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        in_channels: int | None = None,
        hidden_channels: int = 256,
        out_channels: int | None = None,
        output_relu: bool = True,
    ) -> None:
        super().__init__()
        if len(image_shape) not in (2, 3) or min(image_shape) < 1:
            raise ValueError(
                f"ImagePreprocessor: image_shape is {list(image_shape)}; give [height, width] in pixels for binary "
                "frames, [height, width, channels] for others"
            )
        self.binary = len(image_shape) == 2
        self.image_shape = tuple(image_shape[:2])
        self.channels = 1 if self.binary else image_shape[2]
        self.output_relu = output_relu
        self.hidden = nn.Conv2d(in_channels or self.channels, hidden_channels, 3, padding=1)
        self.output = nn.Conv2d(hidden_channels, out_channels or self.channels, 3, padding=1)
        glorot_(self)

    def forward(self, frames: Tensor) -> Tensor:
        """Convolves frames with any values.

        Args:
            frames: [..., in_channels, height, width].

        Returns:
            [..., out_channels, height, width].

        Raises:
            ValueError: if the last three axes are not those of the constructor.
        """
        frame_shape = (self.hidden.in_channels, *self.image_shape)
        if frames.ndim < 3 or frames.shape[-3:] != frame_shape:
            raise ValueError(
                f"ImagePreprocessor: frames have shape {list(frames.shape)}; the last axes must be {list(frame_shape)}"
            )
        result = self.output(nn.functional.relu(self.hidden(frames.reshape(-1, *frame_shape))))
        return self._finish(result, frames.shape[:-3])

    def forward_binary(self, values: Tensor, observed_mask: Tensor | None = None) -> Tensor:
        """The same convolutions for frames of zeros and ones, many times faster on a CPU.

        Equal to `forward` on the stacked channels (values, observed_mask). That the values are binary, and 0 where they
        are not observed, is the caller's promise (see `tabulated_binary_convolution`). There is no gradient with
        respect to the input.

        Args:
            values: [..., height, width] 0 or 1, of any dtype.
            observed_mask: [..., height, width] 0 or 1 (1 = observed); given exactly if in_channels is 2.

        Returns:
            [..., out_channels, height, width].

        Raises:
            ValueError: if the shapes do not fit, or the mask does not fit `in_channels`.
        """
        if values.ndim < 2 or values.shape[-2:] != self.image_shape:
            raise ValueError(
                f"ImagePreprocessor: values have shape {list(values.shape)}; the last axes must be "
                f"{list(self.image_shape)}"
            )
        if observed_mask is not None and observed_mask.shape != values.shape:
            raise ValueError(
                f"ImagePreprocessor: observed_mask has shape {list(observed_mask.shape)}, values have "
                f"{list(values.shape)}; give both for the same pixels"
            )
        result = tabulated_binary_convolution(
            values.reshape(-1, *self.image_shape),
            None if observed_mask is None else observed_mask.reshape(-1, *self.image_shape),
            self.hidden.weight,
            self.hidden.bias,
            self.output.weight,
            self.output.bias,
        )
        return self._finish(result, values.shape[:-2])

    def forward_pixels(self, pixels: Tensor) -> Tensor:
        """The same convolutions for frames of any values stored with their channels last, many times faster on a CPU.

        There the time goes with the pixels that are not surrounded by zeros (see `blockwise_convolution`), and there is
        no gradient with respect to the input. On a GPU the plain convolutions run, with channels last.

        Args:
            pixels: [..., height, width, in_channels].

        Returns:
            [..., height, width, out_channels].

        Raises:
            ValueError: if the last three axes are not those of the constructor.
        """
        if not pixels.is_cpu:
            return self.forward(pixels.movedim(-1, -3)).movedim(-3, -1)
        frame_shape = (*self.image_shape, self.hidden.in_channels)
        if pixels.ndim < 3 or pixels.shape[-3:] != frame_shape:
            raise ValueError(
                f"ImagePreprocessor: pixels have shape {list(pixels.shape)}; the last axes must be {list(frame_shape)}"
            )
        result = blockwise_convolution(
            pixels.reshape(-1, *frame_shape),
            self.hidden.weight,
            self.hidden.bias,
            self.output.weight,
            self.output.bias,
        )
        return self._finish(result, pixels.shape[:-3])

    def forward_series(self, values: Tensor, observed_mask: Tensor | None = None) -> Tensor:
        """Series of flattened frames, as a series model takes and returns them.

        Binary frames (`image_shape` of two numbers) have one output channel; on a GPU the plain convolutions run, which
        are quick there and deterministic.

        Args:
            values: [batch, time, height * width], 0 or 1, and 0 where not observed; with channels [batch, time,
                height * width * channels], any values, the channels of a pixel side by side.
            observed_mask: the same shape; given exactly if in_channels counts a mask.

        Returns:
            The shape of `values`.
        """
        frame_shape = self.image_shape if self.binary else (*self.image_shape, self.channels)
        frames = values.unflatten(-1, frame_shape)  # [batch, time, height, width] or with channels last
        mask = None if observed_mask is None else observed_mask.unflatten(-1, frame_shape)
        if not self.binary:
            pixels = frames if mask is None else torch.cat([frames, mask.to(frames.dtype)], dim=-1)
            return self.forward_pixels(pixels).flatten(-3)
        if values.is_cuda:
            channels = [frames] if mask is None else [frames, mask.to(frames.dtype)]
            return self.forward(torch.stack(channels, dim=-3)).flatten(-3)
        return self.forward_binary(frames, mask).flatten(-3)

    def _finish(self, result: Tensor, leading: torch.Size) -> Tensor:
        if self.output_relu:
            result = nn.functional.relu(result)
        return result.view(*leading, *result.shape[1:])
