"""The noise-predicting network of CSDI: transformers over time and over features in turn, inside gated residual layers.

Tashiro, Song, Song, Ermon: CSDI, Conditional Score-based Diffusion Models for Probabilistic Time Series Imputation,
NeurIPS 2021, section 5 and appendix; initialisation, activations and dropout as in the authors' code. The residual
layers are those of DiffWave (Kong et al., ICLR 2021).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WEIGHTS_AT_ONCE = 2**20  # attention weights of one pass on a CPU: 4 MB, which stay in its cache


def dropout(value: Tensor, probability: float) -> Tensor:
    """Set entries to 0 with this probability and scale up the others; on a CPU from 16 random bits an entry.

    torch's own draws one number after the other there, which takes longer than the matrix products around it.
    """
    if probability == 0:
        return value
    if not value.is_cpu:
        return F.dropout(value, probability)
    words = torch.empty(-(-value.numel() // 4), dtype=torch.int64, device=value.device).random_(-(2**63), None)
    random = words.view(torch.int16)[: value.numel()].view(value.shape)
    kept = random >= round(probability * 2**16) - 2**15
    return value * (kept.to(value.dtype) / (1 - probability))


def attention(query: Tensor, key: Tensor, value: Tensor, probability: float) -> Tensor:
    """softmax(query key^T / sqrt(width)) value, with dropout of the attention weights.

    Args:
        query: [sequence, head, position, width]; so are ``key``, ``value`` and the result.
        key: as above.
        value: as above.
        probability: of the dropout.
    """
    if probability == 0 or not query.is_cpu:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=probability)
    # torch has no fused kernel with dropout for CPUs: the weights of a few sequences at a time stay in the cache.
    _, heads, length, width = query.shape
    sequences = max(1, _WEIGHTS_AT_ONCE // (heads * length**2))
    parts = zip((query / math.sqrt(width)).split(sequences), key.split(sequences), value.split(sequences), strict=True)
    return torch.cat([dropout((q @ k.mT).softmax(-1), probability) @ v for q, k, v in parts])


class TransformerLayer(nn.Module):
    """One encoder layer of a transformer, normalised after each half, with GELU.

    Args:
        channels: width of a position.
        num_heads: attention heads, a divisor of ``channels``.
        hidden: width of the feed-forward half.
        dropout: probability; of the attention weights, of the hidden units and of what each half adds.
    """

    def __init__(self, channels: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.attention_output = nn.Linear(channels, channels)
        self.attention_norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, hidden)
        self.output = nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.xavier_uniform_(self.query_key_value.weight)
        nn.init.zeros_(self.query_key_value.bias)
        nn.init.zeros_(self.attention_output.bias)

    def forward(self, series: Tensor) -> Tensor:
        """[sequence, position, channel] to the same shape; positions attend to each other."""
        probability = self.dropout if self.training else 0.0
        heads = self.query_key_value(series).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [sequence, head, position, width] each
        attended = attention(query, key, value, probability).transpose(1, 2).flatten(2)
        series = self.attention_norm(series + dropout(self.attention_output(attended), probability))
        hidden = dropout(F.gelu(self.hidden(series)), probability)
        return self.norm(series + dropout(self.output(hidden), probability))


class ResidualLayer(nn.Module):
    """Attention over time, then over features, a gate that sees the side information, and a skip connection.

    Args:
        channels: width of an entry.
        num_heads: attention heads.
        dropout: probability of the transformers' dropout.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.time_layer = TransformerLayer(channels, num_heads, 64, dropout)  # 64: published, whatever the channels
        self.feature_layer = TransformerLayer(channels, num_heads, 64, dropout)
        self.middle = _pointwise(channels, 2 * channels)
        self.output = _pointwise(channels, 2 * channels)

    def forward(self, state: Tensor, step: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """The next state and what goes to the output.

        Args:
            state: [draw, batch, time, feature, channel].
            step: embedded diffusion step, [batch or 1, 1, 1, channel].
            side: projected side information, [batch or 1, time, feature, 2 channel].

        Returns:
            Both of the shape of ``state``.
        """
        num_draws, num_series, _, _, _ = state.shape
        over_time = (state + step).transpose(2, 3).flatten(0, 2)  # [draw * batch * feature, time, channel]
        over_time = self.time_layer(over_time).unflatten(0, (num_draws, num_series, -1))
        over_features = self.feature_layer(over_time.transpose(2, 3).flatten(0, 2)).view_as(state)
        gate, value = (self.middle(over_features) + side).chunk(2, dim=-1)
        residual, skip = self.output(gate.sigmoid() * value.tanh()).chunk(2, dim=-1)
        return (state + residual) * math.sqrt(0.5), skip


class Condition(NamedTuple):
    """What the network sees of the series at every diffusion step, projected once."""

    hidden: Tensor  # [batch, time, feature] bool, True where an entry is to be predicted
    state: Tensor  # [batch, time, feature, channel], projection of the conditional values
    sides: list[Tensor]  # one a layer, [batch, time, feature, 2 channel], projections of the side information


class CSDINetwork(nn.Module):
    """Predicts the noise in the hidden entries of series.

    Args:
        num_features: features of a time step.
        num_steps: diffusion steps.
        num_layers: residual layers.
        channels: width of an entry inside the network.
        num_heads: attention heads, a divisor of ``channels``.
        step_embedding: width of the embedding of the diffusion step, even.
        time_embedding: width of the embedding of the time stamps, even.
        feature_embedding: width of the learned embedding of the features.
        dropout: probability of the transformers' dropout.
    """

    def __init__(
        self,
        num_features: int,
        num_steps: int,
        num_layers: int = 4,
        channels: int = 64,
        num_heads: int = 8,
        step_embedding: int = 128,
        time_embedding: int = 128,
        feature_embedding: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels={channels} must be a multiple of num_heads={num_heads}: heads share them out")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1): it is the probability that a unit is set to 0")
        for name, width in (("step_embedding", step_embedding), ("time_embedding", time_embedding)):
            if width < 4 or width % 2:
                raise ValueError(f"{name}={width} must be even and at least 4: half of it are sines, half cosines")
        self.side_widths = (time_embedding, feature_embedding, 1)
        self.feature_embedding = nn.Embedding(num_features, feature_embedding)
        self.side_projection = _pointwise(sum(self.side_widths), num_layers * 2 * channels)  # of all layers at once
        self.step_layers = nn.Sequential(
            nn.Linear(step_embedding, step_embedding), nn.SiLU(), nn.Linear(step_embedding, step_embedding), nn.SiLU()
        )
        self.step_projection = nn.Linear(step_embedding, num_layers * channels)
        self.input = _pointwise(2, channels)
        self.layers = nn.ModuleList([ResidualLayer(channels, num_heads, dropout) for _ in range(num_layers)])
        self.last_hidden = _pointwise(channels, channels)
        self.output = nn.Linear(channels, 1)
        nn.init.zeros_(self.output.weight)
        self.register_buffer("step_waves", _step_waves(num_steps, step_embedding), persistent=False)

    def condition(self, values: Tensor, conditional_mask: Tensor, times: Tensor | None = None) -> Condition:
        """Everything that does not depend on the noise.

        Args:
            values: [batch, time, feature], read where the mask is True.
            conditional_mask: [batch, time, feature] bool, True where the value is given.
            times: [batch, time] time stamps; None: 0..T-1.
        """
        mask = conditional_mask.to(values.dtype)[..., None]  # [batch, time, feature, 1]
        state = F.linear(values[..., None] * mask, self.input.weight[:, :1], self.input.bias)
        if times is None:
            times = torch.arange(values.shape[1], device=values.device)[None]
        # The projection of [time, feature, mask] is a sum of three, of which two are shared by many entries.
        by_time, by_feature, by_mask = self.side_projection.weight.split(self.side_widths, dim=1)
        times = time_waves(times, by_time.shape[1]).to(values.dtype)
        times = F.linear(times, by_time, self.side_projection.bias)  # [batch or 1, time, layer * 2 channel]
        features = F.linear(self.feature_embedding.weight, by_feature)  # [feature, layer * 2 channel]
        parts = (part.chunk(len(self.layers), dim=-1) for part in (times[:, :, None], features, by_mask[:, 0]))
        sides = [torch.addcmul(time + feature, mask, weight) for time, feature, weight in zip(*parts, strict=True)]
        return Condition(~conditional_mask, state, sides)

    def forward(self, noisy: Tensor, step: Tensor, condition: Condition) -> Tensor:
        """The noise in ``noisy``, [draw, batch, time, feature]; of use where an entry is hidden.

        Args:
            noisy: [draw, batch, time, feature], several noisy versions of the same series; read where hidden.
            step: diffusion step of each series, [batch] int64, or [1] for all.
            condition: of the series.
        """
        state = F.linear((noisy * condition.hidden)[..., None], self.input.weight[:, 1:])
        state = (state + condition.state).relu()  # [draw, batch, time, feature, channel]
        steps = self.step_projection(self.step_layers(self.step_waves[step]))[:, None, None]
        total: Tensor | float = 0.0
        for layer, embedded, side in zip(self.layers, steps.chunk(len(self.layers), -1), condition.sides, strict=True):
            state, skip = layer(state, embedded, side)
            total = total + skip
        hidden = self.last_hidden(total / math.sqrt(len(self.layers))).relu()
        return self.output(hidden)[..., 0]


def time_waves(times: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of time stamps (Vaswani et al., 2017): [..., time] to [..., time, width] float32.

    Sine and cosine of the time at wavelengths from 2 pi to 20,000 pi of its units, in turn.
    """
    frequency = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=times.device) / width)
    angle = times.double()[..., None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()


def _step_waves(num_steps: int, width: int) -> Tensor:
    """Sinusoidal embedding of diffusion steps, [num_steps, width]: frequencies from 1 to 10,000, as in DiffWave."""
    frequency = 10.0 ** (4 * torch.arange(width // 2, dtype=torch.float64) / (width // 2 - 1))
    angle = torch.arange(num_steps, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def _pointwise(in_channels: int, out_channels: int) -> nn.Linear:
    """A layer applied to each entry, its weight drawn as the authors draw it (He et al., 2015)."""
    layer = nn.Linear(in_channels, out_channels)
    nn.init.kaiming_normal_(layer.weight)
    return layer
