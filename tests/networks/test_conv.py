"""The tabulated convolution is the convolution: values, borders, gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d
from torch import Tensor, nn

from lightning_modules.networks.conv import (
    ImagePreprocessor,
    _index_image,
    _PatchTable,
    _TapSum,
    tabulated_binary_convolution,
)


def random_frames(shape: list[int], masked: bool, seed: int) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(shape, generator=generator) < 0.4
    if not masked:
        return values, None
    observed_mask = torch.rand(shape, generator=generator) < 0.5
    return values & observed_mask, observed_mask


def random_parameters(in_channels: int, hidden: int, out_channels: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(hidden, in_channels, 3, 3), (hidden,), (out_channels, hidden, 3, 3), (out_channels,)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def plain(values: Tensor, observed_mask: Tensor | None, parameters: list[Tensor]) -> Tensor:
    channels = [values] if observed_mask is None else [values, observed_mask]
    frames = torch.stack(channels, dim=1).to(parameters[0].dtype)
    hidden = nn.functional.relu(nn.functional.conv2d(frames, parameters[0], parameters[1], padding=1))
    return nn.functional.conv2d(hidden, parameters[2], parameters[3], padding=1)


def values_and_gradients(output: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    weight = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weight).sum(), parameters)]


def assert_equal_to_plain(values: Tensor, observed_mask: Tensor | None, parameters: list[Tensor]) -> None:
    expected = values_and_gradients(plain(values, observed_mask, parameters), parameters)
    actual = values_and_gradients(tabulated_binary_convolution(values, observed_mask, *parameters), parameters)
    for ours, truth in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12 * max(1.0, truth.abs().max().item()))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 3), (3, 2), (7, 5), (28, 28)])
def test_equals_the_plain_convolution(height, width, masked):
    values, observed_mask = random_frames([3, height, width], masked, seed=height * 31 + width)
    assert_equal_to_plain(values, observed_mask, random_parameters(1 + masked, 6, 2, torch.float64, seed=1))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_equals_the_plain_convolution_in_any_shape(frames, height, width, out_channels, masked, seed):
    values, observed_mask = random_frames([frames, height, width], masked, seed)
    assert_equal_to_plain(values, observed_mask, random_parameters(1 + masked, 3, out_channels, torch.float64, seed))


@pytest.mark.parametrize("masked", [False, True])
def test_every_patch_is_right(masked):
    # Each possible 3x3 frame once: all patches occur as centres, more than one block of them.
    base = 3 if masked else 2
    digits = torch.from_numpy(np.indices((base,) * 9).reshape(9, -1).T.reshape(-1, 3, 3).copy())
    values, observed_mask = (digits == 2, digits >= 1) if masked else (digits, None)
    assert_equal_to_plain(values, observed_mask, random_parameters(1 + masked, 4, 1, torch.float64, seed=2))


def test_equals_scipy():
    values, observed_mask = random_frames([2, 5, 6], masked=True, seed=3)
    parameters = random_parameters(2, 4, 1, torch.float64, seed=4)
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in parameters)
    actual = tabulated_binary_convolution(values, observed_mask, *parameters).detach().numpy()
    for frame in range(2):
        channels = [values[frame].double().numpy(), observed_mask[frame].double().numpy()]
        hidden = [
            np.maximum(sum(correlate2d(channels[c], w1[h, c], mode="same") for c in range(2)) + b1[h], 0)
            for h in range(4)
        ]
        expected = sum(correlate2d(hidden[h], w2[0, h], mode="same") for h in range(4)) + b2[0]
        np.testing.assert_allclose(actual[frame, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_single_precision_at_full_size(masked):
    # The incoming gradient is exact in float32 and of one sign: what differs is the arithmetic, not the conditioning.
    values, observed_mask = random_frames([16, 28, 28], masked, seed=5)
    single = random_parameters(1 + masked, 32, 1, torch.float32, seed=6)
    exact = [parameter.detach().double().requires_grad_() for parameter in single]
    weight = torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(6))
    truth = plain(values, observed_mask, exact)
    output = tabulated_binary_convolution(values, observed_mask, *single)
    expected = [truth.detach(), *torch.autograd.grad(truth, exact, weight.double())]
    actual = [output.detach(), *torch.autograd.grad(output, single, weight)]
    for ours, truth in zip(actual, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - truth).abs().max() <= 1e-6 * truth.abs().max()


def test_digits_and_weights_of_any_type_agree():
    values, observed_mask = random_frames([2, 4, 4], masked=True, seed=7)
    parameters = random_parameters(2, 5, 1, torch.float32, seed=8)
    expected = tabulated_binary_convolution(values, observed_mask, *parameters)
    for dtype in (torch.float32, torch.uint8):
        actual = tabulated_binary_convolution(values.to(dtype), observed_mask.to(dtype), *parameters)
        assert torch.equal(actual, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # sums of look-ups gain nothing from a narrow type
        assert torch.equal(tabulated_binary_convolution(values, observed_mask, *parameters), expected)


def test_gradient_of_the_look_up():
    digits = torch.randint(0, 2, (2, 3, 2), dtype=torch.int16, generator=torch.Generator().manual_seed(9))
    index = _index_image(digits, 2) % 5  # five entries keep the numerical differences quick
    table = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(10), requires_grad=True)
    assert torch.autograd.gradcheck(lambda entries: _TapSum.apply(entries, index, 2, 3, 2), (table,))


def test_gradient_of_the_patch_table():
    generator = torch.Generator().manual_seed(11)
    patches = torch.randint(0, 2, (12, 9), generator=generator).double()
    parameters = [
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in [(3, 9), (3,), (9, 3)]
    ]
    assert torch.autograd.gradcheck(lambda *inputs: _PatchTable.apply(patches, *inputs), parameters)


@pytest.mark.parametrize("output_relu", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_preprocessor_paths_agree(masked, output_relu):
    torch.manual_seed(12)
    module = ImagePreprocessor([5, 4], in_channels=1 + masked, hidden_channels=8, output_relu=output_relu).double()
    values, observed_mask = random_frames([2, 3, 5, 4], masked, seed=13)
    channels = [values] if observed_mask is None else [values, observed_mask]
    expected = module(torch.stack(channels, dim=2).double())
    actual = module.forward_binary(values, observed_mask)
    assert actual.shape == (2, 3, 1, 5, 4)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert bool((actual < 0).any()) is not output_relu
    flat_mask = None if observed_mask is None else observed_mask.flatten(2)
    series = module.forward_series(values.flatten(2).double(), flat_mask)
    torch.testing.assert_close(series, expected.flatten(2), rtol=0, atol=1e-12)


def test_grey_frames_take_gradients():
    torch.manual_seed(14)
    module = ImagePreprocessor([3, 3], in_channels=3, hidden_channels=4, out_channels=3, output_relu=False).double()
    frames = torch.rand(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert module(frames).shape == (2, 3, 3, 3)
    assert torch.autograd.gradcheck(module, (frames,))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\[28\].*\[height, width\]"):
        ImagePreprocessor([28])
    module = ImagePreprocessor([4, 5], in_channels=2, hidden_channels=2)
    values = torch.zeros(3, 4, 5)
    with pytest.raises(ValueError, match="one more with an observed_mask"):
        module.forward_binary(values)
    with pytest.raises(ValueError, match=r"observed_mask has shape \[2, 4, 5\]"):
        module.forward_binary(values, torch.ones(2, 4, 5))
    with pytest.raises(ValueError, match=r"values have shape \[3, 5, 4\]"):
        module.forward_binary(values.transpose(1, 2), values.transpose(1, 2))
    with pytest.raises(ValueError, match=r"must be \[2, 4, 5\]"):
        module(values)
