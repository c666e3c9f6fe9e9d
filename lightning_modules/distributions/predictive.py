"""Predictive distributions over a whole series: what an imputer answers."""

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal

from lightning_modules.distributions.banded import KLDivergence
from lightning_modules.distributions.noise import normal_by_row
from lightning_modules.distributions.student import StudentT4

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

    def sample(self, num_samples: int, generator: torch.Generator | None = None, rows: Tensor | None = None) -> Tensor:
        """[num_samples, batch, time, feature], all alike."""
        return self.mean.expand(num_samples, *self.mean.shape)

    def log_prob(self, value: Tensor, rows: Tensor | None = None) -> None:
        """None: a point has no density."""
        return

    def log_mixture(self, value: Tensor, num_samples: int, rows: Tensor | None = None) -> None:
        """None: a point has no density."""
        return


class GaussianPrediction:
    """Independent normals in closed form.

    Args:
        mean: [batch, time, feature].
        scale: standard deviations, same shape, positive.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.scale = mean, scale

    def sample(self, num_samples: int, generator: torch.Generator | None = None, rows: Tensor | None = None) -> Tensor:
        """[num_samples, batch, time, feature]."""
        draws = [self.mean + self.scale * _noise(self.mean, generator, rows, draw) for draw in range(num_samples)]
        return torch.stack(draws)

    def log_prob(self, value: Tensor, rows: Tensor | None = None) -> Tensor:
        """Log density of each entry in nats, exact."""
        return Normal(self.mean, self.scale, validate_args=False).log_prob(value)

    def log_mixture(self, value: Tensor, num_samples: int, rows: Tensor | None = None) -> Tensor:
        """The same as ``log_prob``, which has no latent to average over."""
        return self.log_prob(value)


class LatentPredictive:
    """p(x | observed) = E_q(z)[p(x | z)] of a latent-variable model.

    Args:
        posterior: q(z | observed).
        decode: latent sample -> p(x | z) over [batch, time, feature].
    """

    def __init__(self, posterior: LatentPosterior, decode: Callable[[Tensor], Distribution | StudentT4]) -> None:
        self.posterior, self.decode = posterior, decode

    @property
    def mean(self) -> Tensor:
        """[batch, time, feature]: the decoder's mean at the posterior mean, as the GP-VAE's authors impute."""
        return self.decode(self.posterior.mean).mean

    def sample(self, num_samples: int, generator: torch.Generator | None = None, rows: Tensor | None = None) -> Tensor:
        """[num_samples, batch, time, feature]: new latents and new observations for each sample.

        Args:
            num_samples: draws.
            generator: source of randomness; None: torch's global one.
            rows: [batch] int64 row numbers in the data set, to which the noise then belongs, instead of a generator.
        """
        draws = []
        for draw in range(num_samples):  # one at a time: memory stays that of one forward pass
            noise = _noise(self.posterior.mean, generator, rows, 2 * draw)
            observation = self.decode(self.posterior.transform(noise))
            noise = _noise(observation.mean, generator, rows, 2 * draw + 1)
            if isinstance(observation, Bernoulli):
                draws.append((torch.special.ndtr(noise) < observation.probs).to(noise.dtype))
            elif isinstance(observation, StudentT4):
                draws.append(observation.transform(noise))
            else:
                draws.append(observation.mean + observation.stddev * noise)
        return torch.stack(draws)

    def log_prob(self, value: Tensor, rows: Tensor | None = None) -> Tensor:
        """Log density of each entry under one latent sample, in nats (a lower bound in expectation, by Jensen).

        Args:
            value: [batch, time, feature].
            rows: [batch] int64 row numbers in the data set. The latent noise then belongs to the row, so that the
                figure does not depend on batch size or number of processes. None: torch's global generator.
        """
        return self._log_prob(value, rows, draw=0)

    def log_mixture(self, value: Tensor, num_samples: int, rows: Tensor | None = None) -> Tensor:
        """Log of the density of each entry averaged over latent samples, in nats; the first is that of ``log_prob``.

        Args:
            value: [batch, time, feature].
            num_samples: latent samples.
            rows: as in ``log_prob``.
        """
        total = self._log_prob(value, rows, draw=0)
        for draw in range(1, num_samples):  # one at a time: memory stays that of one forward pass
            total = torch.logaddexp(total, self._log_prob(value, rows, draw))
        return total - math.log(num_samples)

    def _log_prob(self, value: Tensor, rows: Tensor | None, draw: int) -> Tensor:
        noise = _noise(self.posterior.mean, None, rows, draw)
        return self.decode(self.posterior.transform(noise)).log_prob(value)


def _noise(like: Tensor, generator: torch.Generator | None, rows: Tensor | None, draw: int) -> Tensor:
    """Standard normal noise of the shape of ``like``: of the rows where they are given, else of the generator."""
    if rows is not None:
        return normal_by_row(rows, tuple(like.shape[1:]), seed=draw).to(like.dtype)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
