"""Fully connected networks, the temporal encoder of the GP-VAE, and the initialisation of Keras.

Sources: Fortuin, Baranchuk, Raetsch, Mandt, "GP-VAE: Deep Probabilistic Time Series Imputation", AISTATS 2020 (the
networks); Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010
(the initialisation).
"""

from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def glorot_(module: Module) -> Module:
    """Initialises all dense and convolutional layers inside a module as Keras does: Glorot-uniform, zero biases.

    A weight is uniform in ±sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, equation 16); the fans are the numbers
    of input and output channels, each times the size of the kernel. torch's own defaults differ in both respects.

    Args:
        module: any module; its `Linear`, `Conv1d`, `Conv2d` and `ConvTranspose2d` parts (itself included) are changed
            in place.

    Returns:
        The same module.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module


def mlp(in_features: int, hidden: list[int], out_features: int) -> nn.Sequential:
    """Dense layers with ReLU between them and a linear output, Glorot-initialised.

    Args:
        in_features: size of the last axis of the input.
        hidden: widths of the hidden layers; an empty list gives one linear layer.
        out_features: size of the last axis of the output.

    Returns:
        A module that maps [..., in_features] to [..., out_features].
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.ReLU()]
        in_features = width
    layers.append(nn.Linear(in_features, out_features))
    return glorot_(nn.Sequential(*layers))


class TemporalConvolution(nn.Conv1d):
    """Convolution over time with zero padding to the same length, for series stored as [batch, time, feature].

    The padding is (window - 1) // 2 steps before the series and window // 2 after it, as TensorFlow's "same" has it:
    11 and 12 steps for a window of 24. The parameters are those of `nn.Conv1d`: weight [out_features, in_features,
    window], bias [out_features]. Computed as one matrix product, without exchanging the time and feature axes: over the
    unfolded windows, as fast as torch's convolution; or, where a step is so much wider than the filters that unfolding
    it would cost more (pictures), over single steps, whose contributions to each place in the window are then shifted
    and added.

    Args:
        in_features: features of a time step of the input.
        out_features: number of filters.
        window: number of time steps that a filter spans.
    """

    def __init__(self, in_features: int, out_features: int, window: int) -> None:
        super().__init__(in_features, out_features, window)

    def forward(self, series: Tensor) -> Tensor:
        """Convolves [batch, time, in_features] to [batch, time, out_features]."""
        out_features, in_features, window = self.weight.shape
        before, after = (window - 1) // 2, window // 2
        if in_features > 2 * out_features:
            weight = self.weight.permute(2, 0, 1).reshape(window * out_features, in_features)
            products = nn.functional.linear(series, weight).unflatten(-1, (window, out_features))
            products = nn.functional.pad(products, (0, 0, 0, 0, before, after))  # [batch, time, window, out_features]
            num_steps = series.shape[1]
            return sum((products[:, k : k + num_steps, k] for k in range(window)), self.bias)
        padded = nn.functional.pad(series, (0, 0, before, after))
        # The features of one step stay contiguous in the unfolded windows, so the copy below moves whole rows.
        windows = padded.unfold(1, window, 1).transpose(2, 3).flatten(2)  # [batch, time, window * in_features]
        return nn.functional.linear(windows, self.weight.transpose(1, 2).flatten(1), self.bias)


def temporal_encoder(in_features: int, sizes: list[int], out_features: int, window: int) -> nn.Sequential:
    """The GP-VAE's encoder: a convolution over time, then dense layers for each time step, Glorot-initialised.

    The convolution has sizes[0] filters and no activation after it; dense layers with ReLU of the widths sizes[1:]
    follow, and a linear output (Fortuin et al. 2020, appendix A, and their published code).

    Args:
        in_features: features of a time step of the input.
        sizes: number of filters, then the widths of the dense layers; at least one entry.
        out_features: features of a time step of the output.
        window: number of time steps that the convolution spans.

    Returns:
        A module that maps [batch, time, in_features] to [batch, time, out_features].

    Raises:
        ValueError: if `sizes` is empty or `window` is less than 1.
    """
    if not sizes:
        raise ValueError("temporal_encoder: sizes is empty; give the number of filters as its first entry, e.g. [256]")
    if window < 1:
        raise ValueError(f"temporal_encoder: window is {window} time steps; give at least 1")
    convolution = glorot_(TemporalConvolution(in_features, sizes[0], window))
    return nn.Sequential(convolution, *mlp(sizes[0], sizes[1:], out_features))
