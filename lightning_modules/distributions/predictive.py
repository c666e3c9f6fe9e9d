"""Predictive distributions over a whole series: what an imputer answers."""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal

from lightning_modules.distributions.banded import KLDivergence
from lightning_modules.distributions.noise import normal_by_row

Likelihood = Literal["bernoulli", "gaussian"]


class LatentPosterior(Protocol):
    """A Gaussian over latents that maps standard normal noise of its mean's shape to a sample."""

    mean: Tensor

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """One sample, differentiable in the parameters."""

    def transform(self, noise: Tensor) -> Tensor:
        """The sample that belongs to this noise."""


class DiagonalGaussian:
    """Independent normals; the prior is standard normal.

    Args:
        mean: any shape.
        scale: standard deviations, same shape, positive.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        if mean.shape != scale.shape:
            raise ValueError(f"mean has shape {tuple(mean.shape)}, scale {tuple(scale.shape)}: they must be equal")
        self.mean, self.scale = mean, scale

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """One reparametrised sample of the mean's shape."""
        mean = self.mean
        return self.transform(torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device))

    def transform(self, noise: Tensor) -> Tensor:
        """The sample that belongs to this standard normal noise of the mean's shape."""
        return self.mean + self.scale * noise

    def kl_divergence(self) -> KLDivergence:
        """KL to the standard normal, per entry (Kingma & Welling, 2014, appendix B), in its two parts."""
        variance = self.scale.square()
        return KLDivergence(0.5 * (variance - 1 - variance.log()), 0.5 * self.mean.square())


def observation_distribution(likelihood: Likelihood, output: Tensor, scale: Tensor | float = 1.0) -> Distribution:
    """p(x | z) from the decoder's output: Bernoulli logits, or the mean of a normal of the given scale."""
    # No argument checks: they read every entry, which on a GPU stalls each step.
    if likelihood == "bernoulli":
        return Bernoulli(logits=output, validate_args=False)
    return Normal(output, scale, validate_args=False)


class PointPrediction:
    """An imputation without uncertainty.

    Args:
        mean: [batch, time, feature].
    """

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """[num_samples, batch, time, feature], all alike."""
        return self.mean.expand(num_samples, *self.mean.shape)

    def log_prob(self, value: Tensor, rows: Tensor | None = None) -> None:
        """None: a point has no density."""
        return


class LatentPredictive:
    """p(x | observed) = E_q(z)[p(x | z)] of a latent-variable model.

    Args:
        posterior: q(z | observed).
        decode: latent sample -> p(x | z) over [batch, time, feature].
    """

    def __init__(self, posterior: LatentPosterior, decode: Callable[[Tensor], Distribution]) -> None:
        self.posterior, self.decode = posterior, decode

    @property
    def mean(self) -> Tensor:
        """[batch, time, feature]: the decoder's mean at the posterior mean, as the GP-VAE's authors impute."""
        return self.decode(self.posterior.mean).mean

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """[num_samples, batch, time, feature]: new latents and new observations for each sample."""
        draws = []
        for _ in range(num_samples):  # one at a time: memory stays that of one forward pass
            observation = self.decode(self.posterior.rsample(generator))
            if isinstance(observation, Bernoulli):
                draws.append(torch.bernoulli(observation.probs, generator=generator))
            else:
                mean = observation.mean
                noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
                draws.append(mean + observation.stddev * noise)
        return torch.stack(draws)

    def log_prob(self, value: Tensor, rows: Tensor | None = None) -> Tensor:
        """Log density of each entry under one latent sample, in nats (a lower bound in expectation, by Jensen).

        Args:
            value: [batch, time, feature].
            rows: [batch] int64 row numbers in the data set. The latent noise then belongs to the row, so that the
                figure does not depend on batch size or number of processes. None: torch's global generator.
        """
        if rows is None:
            latent = self.posterior.rsample()
        else:
            latent = self.posterior.transform(normal_by_row(rows, tuple(self.posterior.mean.shape[1:])))
        return self.decode(latent).log_prob(value)
