"""Networks that tell from a noisy row of a table, and the step it is at, what the noise or the clean row was.

Kotelnikov, Baranchuk, Rubachev, Babenko: TabDDPM, Modelling Tabular Data with Diffusion Models, ICML 2023, section 4:
the step and the label are embedded, added to a linear projection of the row, and a trunk of dense layers follows. The
trunks are those of Gorishniy, Rubachev, Khrulkov, Babenko: Revisiting Deep Learning Models for Tabular Data, NeurIPS
2021. All layers are initialised as torch does by itself.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDING_SIZE = 128  # of step, label and projected row; published, whatever the trunk


class Denoiser(nn.Module):
    """A row, its diffusion step and its label, embedded and added up, through a trunk of dense layers.

    Args:
        in_features: size of a row.
        num_steps: diffusion steps.
        trunk: maps [batch, 128] to [batch, in_features].
        num_classes: number of classes of the label; 0: the label is a real number; None: there is no label.
    """

    def __init__(self, in_features: int, num_steps: int, trunk: nn.Module, num_classes: int | None = None) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps}: a diffusion process needs at least one step")
        if num_classes is not None and num_classes < 0:
            raise ValueError(
                f"num_classes={num_classes}: give the number of classes, 0 for a real label, or None for no label"
            )
        self.num_steps, self.num_classes = num_steps, num_classes
        width = EMBEDDING_SIZE
        self.step_layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        if num_classes is not None:
            self.label_layer = nn.Embedding(num_classes, width) if num_classes else nn.Linear(1, width)
        self.projection = nn.Linear(in_features, width)
        self.trunk = trunk
        self.register_buffer("step_waves", step_waves(num_steps, width), persistent=False)

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the network says of each entry of the noisy rows: noise of numbers, logits of categories.

        Args:
            x: [batch, in_features].
            timesteps: diffusion step of each row, [batch] int64, or [1] for all.
            labels: [batch] int64 classes or real numbers, as ``num_classes`` says; None without a label.

        Returns:
            [batch, in_features].

        Raises:
            ValueError: a label is missing, or there is one that the network has no place for.
        """
        if (labels is None) != (self.num_classes is None):
            raise ValueError(
                f"labels are {'missing' if labels is None else 'given'}, but the network has "
                f"num_classes={self.num_classes}: None is a network without a label"
            )
        embedded = self.embed_steps(timesteps)
        if labels is not None:
            embedded = embedded + self.embed_labels(labels)
        return self.trunk(self.projection(x) + embedded)

    def embed_steps(self, timesteps: Tensor) -> Tensor:
        """[batch] int64 to [batch, 128]; a step that many rows are at passes through the layers once."""
        if len(timesteps) > self.num_steps:
            return F.embedding(timesteps, self.step_layers(self.step_waves))
        return self.step_layers(F.embedding(timesteps, self.step_waves))

    def embed_labels(self, labels: Tensor) -> Tensor:
        """[batch] int64 classes or real numbers to [batch, 128]."""
        if self.num_classes:
            return F.embedding(labels, F.silu(self.label_layer.weight))
        return F.silu(self.label_layer(labels[:, None].to(self.label_layer.weight.dtype)))


class ResidualBlock(nn.Module):
    """x + dropout(linear(dropout(relu(linear(norm(x)))))), Gorishniy et al. 2021, section 3.2.

    The norm is over the row's features and not over the batch: a batch mixes rows at all steps, samples are at one.

    Args:
        width: size of a row inside the network.
        hidden: width between the two layers.
        hidden_dropout: probability that a hidden unit is set to 0.
        residual_dropout: probability that an entry of what the block adds is set to 0.
    """

    def __init__(self, width: int, hidden: int, hidden_dropout: float, residual_dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(hidden_dropout),
            nn.Linear(hidden, width), nn.Dropout(residual_dropout),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] to the same shape."""
        return x + self.layers(x)


def mlp_denoiser(
    in_features: int,
    num_steps: int,
    hidden: Sequence[int],
    dropout: float = 0.0,
    num_classes: int | None = None,
) -> Denoiser:
    """TabDDPM's denoiser: a trunk of linear layers with ReLU and dropout, and a linear output.

    Args:
        in_features: size of a row.
        num_steps: diffusion steps.
        hidden: widths of the trunk's hidden layers; in the published ones those between the first and last are equal.
        dropout: probability that a hidden unit is set to 0.
        num_classes: of the label, see `Denoiser`.

    Raises:
        ValueError: an argument is out of range.
    """
    _check_sizes(in_features=in_features)
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden={list(hidden)}: give the width of at least one hidden layer, each 1 or more")
    _check_dropout(dropout=dropout)
    layers: list[nn.Module] = []
    for width_before, width in zip([EMBEDDING_SIZE, *hidden], hidden, strict=False):
        layers += [nn.Linear(width_before, width), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    trunk = nn.Sequential(*layers, nn.Linear(hidden[-1], in_features))
    return Denoiser(in_features, num_steps, trunk, num_classes)


def resnet_denoiser(
    in_features: int,
    num_steps: int,
    width: int = 256,
    hidden: int = 512,
    num_blocks: int = 4,
    hidden_dropout: float = 0.0,
    residual_dropout: float = 0.0,
    num_classes: int | None = None,
) -> Denoiser:
    """A denoiser whose trunk is the ResNet of Gorishniy et al. (2021): linear, residual blocks, norm, ReLU, linear.

    Args:
        in_features: size of a row.
        num_steps: diffusion steps.
        width: size of a row inside the trunk.
        hidden: width between the two layers of a block.
        num_blocks: residual blocks.
        hidden_dropout: probability that a hidden unit of a block is set to 0.
        residual_dropout: probability that an entry of what a block adds is set to 0.
        num_classes: of the label, see `Denoiser`.

    Raises:
        ValueError: an argument is out of range.
    """
    _check_sizes(in_features=in_features, width=width, hidden=hidden, num_blocks=num_blocks)
    _check_dropout(hidden_dropout=hidden_dropout, residual_dropout=residual_dropout)
    blocks = [ResidualBlock(width, hidden, hidden_dropout, residual_dropout) for _ in range(num_blocks)]
    head = [nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, in_features)]
    trunk = nn.Sequential(nn.Linear(EMBEDDING_SIZE, width), *blocks, *head)
    return Denoiser(in_features, num_steps, trunk, num_classes)


def step_waves(num_steps: int, width: int) -> Tensor:
    """Sinusoidal embedding of diffusion steps (Vaswani et al., 2017), [num_steps, width] float32.

    Cosines, then sines, of the step's number at width / 2 frequencies 10,000^(-i / (width / 2)), from 1 downwards.
    """
    half = width // 2
    frequency = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float64))
    angle = torch.arange(num_steps, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


def _check_dropout(**probabilities: float) -> None:
    for name, probability in probabilities.items():
        if not 0 <= probability < 1:
            raise ValueError(f"{name}={probability} must lie in [0, 1): it is the probability that a unit is set to 0")
