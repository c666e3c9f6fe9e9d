"""The convolutional decoder of frames, written out in numpy."""

import numpy as np
import pytest
import torch

from lightning_modules.imputation.gpvae import GPVAE
from lightning_modules.networks.frame_decoder import FrameDecoder


def doubled(images, layer):
    """Transposed 4x4 convolution of stride 2: each pixel adds its weights onto 4 x 4 pixels, the outermost cut off."""
    weight, bias = (each.detach().double().numpy() for each in (layer.weight, layer.bias))
    count, _, height, width = images.shape
    result = np.zeros((count, weight.shape[1], 2 * height + 2, 2 * width + 2))
    for row in range(height):
        for column in range(width):
            patch = np.einsum("ni,ioab->noab", images[:, :, row, column], weight)
            result[:, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += patch
    return result[:, :, 1:-1, 1:-1] + bias[:, None, None]


@pytest.mark.parametrize("image_shape", [[8, 12], [12, 4, 3]])
def test_frames_are_those_of_numpy(image_shape):
    torch.manual_seed(0)
    decoder = FrameDecoder(5, image_shape, channels=2, hidden=7)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    latent = torch.randn(2, 3, 5)
    first, second = decoder.dense[0], decoder.dense[2]
    weights = [each.detach().double().numpy() for layer in (first, second) for each in (layer.weight, layer.bias)]
    hidden = np.maximum(latent.double().numpy().reshape(6, 5) @ weights[0].T + weights[1], 0)
    coarse = np.maximum(hidden @ weights[2].T + weights[3], 0)
    coarse = coarse.reshape(6, image_shape[0] // 4, image_shape[1] // 4, 4).transpose(0, 3, 1, 2)
    frames = doubled(np.maximum(doubled(coarse, decoder.doublings[0]), 0), decoder.doublings[2])
    expected = frames.transpose(0, 2, 3, 1).reshape(2, 3, -1)  # the channels of a pixel side by side
    result = decoder(latent)
    assert result.shape == (2, 3, int(np.prod(image_shape)))
    np.testing.assert_allclose(result.detach(), expected, rtol=1e-4, atol=1e-5)


def test_number_of_weights_on_healing_mnist():
    dense = 256 * 256 + 256 + 256 * 32 * 49 + 32 * 49
    assert sum(each.numel() for each in FrameDecoder(256, [28, 28], 16).parameters()) == dense + (
        16 * 32 * 16 + 16 + 16 * 16 * 1 + 1
    )


def test_what_cannot_be_decoded_is_refused():
    with pytest.raises(ValueError, match=r"image_shape is \[28, 30\]; height and width must be multiples of 4"):
        FrameDecoder(5, [28, 30], 2)
    with pytest.raises(ValueError, match="channels=0 and hidden=256 must be at least 1"):
        FrameDecoder(5, [28, 28], 0)
    with pytest.raises(ValueError, match="decoder_channels=4 is for pictures; leave it at null"):
        GPVAE(num_features=3, num_steps=4, decoder_channels=4)
