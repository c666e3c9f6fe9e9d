"""The blockwise convolution, and the temporal one of wide frames, are the plain ones: values, borders, gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d
from torch import Tensor, nn

from lightning_modules.networks import blockwise
from lightning_modules.networks.blockwise import blockwise_convolution
from lightning_modules.networks.conv import ImagePreprocessor
from lightning_modules.networks.mlp import TemporalConvolution


def sparse_frames(shape: list[int], observed: float, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=dtype)
    return values * (torch.rand(shape, generator=generator) < observed)


def random_parameters(in_channels: int, hidden: int, out_channels: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(hidden, in_channels, 3, 3), (hidden,), (out_channels, hidden, 3, 3), (out_channels,)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def plain(frames: Tensor, parameters: list[Tensor]) -> Tensor:
    w1, b1, w2, b2 = parameters
    hidden = nn.functional.conv2d(frames.permute(0, 3, 1, 2), w1, b1, padding=1).relu()
    return nn.functional.conv2d(hidden, w2, b2, padding=1).permute(0, 2, 3, 1)


def values_and_gradients(output: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    weight = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weight).sum(), parameters)]


def assert_equal_to_plain(frames: Tensor, parameters: list[Tensor]) -> None:
    expected = values_and_gradients(plain(frames, parameters), parameters)
    actual = values_and_gradients(blockwise_convolution(frames, *parameters), parameters)
    for ours, truth in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12 * max(1.0, truth.abs().max().item()))


@pytest.mark.parametrize("observed", [0.0, 0.03, 0.4, 1.0])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (4, 1), (2, 3), (7, 5), (16, 16)])
def test_equals_the_plain_convolution(height, width, observed):
    frames = sparse_frames([9, height, width, 3], observed, seed=height * 31 + width)
    assert_equal_to_plain(frames, random_parameters(3, 6, 2, torch.float64, seed=1))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=3, max_size=3), st.integers(1, 4), st.integers(1, 3), st.floats(0, 1),
    st.integers(1, 9), st.integers(1, 2000), st.integers(0, 2**31),
)  # fmt: skip
def test_any_division_into_blocks_and_groups(shape, in_channels, out_channels, observed, patches, entries, seed):
    frames = sparse_frames([*shape, in_channels], observed, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "PATCHES_PER_BLOCK", patches)
        patch.setattr(blockwise, "SPREAD_ENTRIES", entries)
        assert_equal_to_plain(frames, random_parameters(in_channels, 3, out_channels, torch.float64, seed))


def test_numerical_gradients():
    frames = sparse_frames([2, 3, 4, 2], 0.2, seed=2)
    parameters = random_parameters(2, 3, 2, torch.float64, seed=3)
    assert torch.autograd.gradcheck(lambda *inputs: blockwise_convolution(frames, *inputs), parameters)


def test_biases_of_zero_have_the_gradient_of_the_plain_convolution():
    # As Keras initialises them: the hidden pixel of a black patch then lies on the kink of the ReLU.
    w1, b1, w2, b2 = random_parameters(3, 4, 3, torch.float64, seed=4)
    with torch.no_grad():
        b1.zero_()
        b2.zero_()
    assert_equal_to_plain(sparse_frames([2, 6, 6, 3], 0.1, seed=5), [w1, b1, w2, b2])


def test_equals_scipy():
    frames = sparse_frames([2, 5, 6, 2], 0.3, seed=6)
    parameters = random_parameters(2, 4, 1, torch.float64, seed=7)
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in parameters)
    actual = blockwise_convolution(frames, *parameters).detach().numpy()
    for frame, result in zip(frames.numpy(), actual, strict=True):
        hidden = [
            np.maximum(sum(correlate2d(frame[..., c], w1[h, c], mode="same") for c in range(2)) + b1[h], 0)
            for h in range(4)
        ]
        expected = sum(correlate2d(hidden[h], w2[0, h], mode="same") for h in range(4)) + b2[0]
        np.testing.assert_allclose(result[..., 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("observed", [0.1, 1.0])
def test_single_precision_at_full_size(observed):
    # The incoming gradient is of one sign: what differs is the arithmetic, and the side of the ReLU's kink on which a
    # few of a million hidden pixels lie. The plain convolutions are off by twice as much.
    frames = sparse_frames([8, 64, 64, 3], observed, seed=8, dtype=torch.float32)
    single = random_parameters(3, 32, 3, torch.float32, seed=9)
    exact = [parameter.detach().double().requires_grad_() for parameter in single]
    weight = torch.rand(8, 64, 64, 3, generator=torch.Generator().manual_seed(10))
    truth = plain(frames.double(), exact)
    output = blockwise_convolution(frames, *single)
    expected = [truth.detach(), *torch.autograd.grad(truth, exact, weight.double())]
    actual = [output.detach(), *torch.autograd.grad(output, single, weight)]
    for ours, truth in zip(actual, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - truth).abs().max() <= 3e-6 * truth.abs().max()


def test_autocast_leaves_it_alone():
    frames = sparse_frames([2, 5, 4, 3], 0.5, seed=11, dtype=torch.float32)
    parameters = random_parameters(3, 5, 2, torch.float32, seed=12)
    expected = blockwise_convolution(frames, *parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(blockwise_convolution(frames, *parameters), expected)


def test_a_pixel_that_is_not_a_number_is_seen_by_its_neighbours_only():
    frames = torch.zeros(2, 9, 9, 1, dtype=torch.float64)
    frames[1, 4, 4] = torch.nan
    output = blockwise_convolution(frames, *random_parameters(1, 3, 1, torch.float64, seed=13))
    expected = torch.zeros(2, 9, 9, 1, dtype=torch.bool)
    expected[1, 2:7, 2:7] = True
    assert torch.equal(output.isnan(), expected)


@pytest.mark.parametrize("output_relu", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_preprocessor_paths_agree(masked, output_relu):
    torch.manual_seed(14)
    in_channels = 6 if masked else None
    module = ImagePreprocessor([5, 4, 3], in_channels, hidden_channels=8, output_relu=output_relu).double()
    values = sparse_frames([2, 7, 5, 4, 3], 0.5, seed=15)
    mask = values != 0 if masked else None
    pixels = values if mask is None else torch.cat([values, mask.double()], dim=-1)
    expected = module(pixels.movedim(-1, -3)).movedim(-3, -1)  # [batch, time, height, width, channel]
    assert expected.shape == values.shape
    torch.testing.assert_close(module.forward_pixels(pixels), expected, rtol=0, atol=1e-12)
    assert bool((expected < 0).any()) is not output_relu
    series = module.forward_series(values.flatten(2), None if mask is None else mask.flatten(2))
    torch.testing.assert_close(series, expected.flatten(2), rtol=0, atol=1e-12)


@pytest.mark.gpu
def test_preprocessor_on_a_gpu():
    torch.manual_seed(16)
    module = ImagePreprocessor([8, 6, 3], hidden_channels=8)
    values = sparse_frames([2, 3, 8 * 6 * 3], 0.5, seed=17, dtype=torch.float32)
    expected = module.forward_series(values)
    actual = module.cuda().forward_series(values.cuda())
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=1e-3)  # cuDNN may multiply in TF32


def test_wrong_shapes_are_named():
    frames, parameters = torch.zeros(2, 4, 5, 3), random_parameters(2, 4, 1, torch.float32, seed=18)
    with pytest.raises(ValueError, match=r"frames of shape \[2, 4, 5, 3\] and weights of shapes \[4, 2, 3, 3\]"):
        blockwise_convolution(frames, *parameters)
    with pytest.raises(ValueError, match=r"image_shape is \[4, 5, 0\].*\[height, width, channels\]"):
        ImagePreprocessor([4, 5, 0])
    module = ImagePreprocessor([4, 5, 3], in_channels=6, hidden_channels=2)
    with pytest.raises(ValueError, match=r"pixels have shape \[2, 4, 5, 3\]; the last axes must be \[4, 5, 6\]"):
        module.forward_pixels(frames)


@pytest.mark.parametrize("window", [1, 2, 3, 8])
@pytest.mark.parametrize("in_features", [5, 200])  # 200 is wide beside 3 filters: the other way of computing it
def test_temporal_convolution_of_wide_frames(in_features, window):
    torch.manual_seed(19)
    module = TemporalConvolution(in_features, 3, window).double()
    series = torch.randn(2, 6, in_features, dtype=torch.float64, requires_grad=True)
    inputs = [series, *module.parameters()]
    padded = nn.functional.pad(series.mT, ((window - 1) // 2, window // 2))
    expected = nn.functional.conv1d(padded, module.weight, module.bias).mT
    actual = module(series)
    for ours, truth in zip(values_and_gradients(actual, inputs), values_and_gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
