"""VAE: each time step is encoded and decoded on its own, under a standard normal prior.

Kingma & Welling, Auto-Encoding Variational Bayes, ICLR 2014; here as the baseline of Fortuin et al., GP-VAE, AISTATS
2020, Table 1: the likelihood runs over all entries, so that the model learns to reproduce the zeros that stand where
values are missing. No command of that paper's authors is known for this row: sizes, beta and steps are the GP-VAE's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lightning_modules.distributions.likelihood import masked_log_likelihood
from lightning_modules.distributions.predictive import (
    DiagonalGaussian,
    LatentPredictive,
    Likelihood,
    observation_distribution,
)
from lightning_modules.imputation.base import Imputer, SeriesBatch
from lightning_modules.networks.adam import TensorFlowAdam
from lightning_modules.networks.conv import ImagePreprocessor
from lightning_modules.networks.learning_rate import halved_learning_rate
from lightning_modules.networks.mlp import mlp


class VAE(Imputer):
    """Variational autoencoder over single time steps.

    Args:
        num_features: features of a time step (pixels of a frame, clinical variables).
        likelihood: "bernoulli" for binary data, "gaussian" (unit variance) otherwise.
        image_shape: where a time step is a picture, [height, width] if it is binary, else [height, width, channels],
            the channels of a pixel side by side; adds the convolutional preprocessor.
        latent_dim: latent dimensions a time step.
        encoder_sizes: widths of the encoder's hidden layers.
        decoder_sizes: widths of the decoder's hidden layers.
        beta: weight of the KL divergence.
        learning_rate: of Adam.
        learning_rate_half_life: steps after which the rate is halved, again and again; None: constant.
        learning_rate_floor: the rate is not halved below this.
    """

    def __init__(
        self,
        num_features: int,
        likelihood: Likelihood = "gaussian",
        image_shape: Sequence[int] | None = None,
        latent_dim: int = 35,
        encoder_sizes: Sequence[int] = (128, 128),
        decoder_sizes: Sequence[int] = (256, 256),
        beta: float = 1.0,
        learning_rate: float = 1e-3,
        learning_rate_half_life: int | None = None,
        learning_rate_floor: float = 1e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.preprocessor = ImagePreprocessor(image_shape) if image_shape else None
        self.encoder = mlp(num_features, encoder_sizes, 2 * latent_dim)
        self.decoder = mlp(latent_dim, decoder_sizes, num_features)

    def encode(self, values: Tensor) -> DiagonalGaussian:
        """q(z | x), [batch, time, latent]."""
        if self.preprocessor is not None:
            values = self.preprocessor.forward_series(values)
        mean, raw_scale = self.encoder(values).chunk(2, dim=-1)  # [batch, time, latent] each
        return DiagonalGaussian(mean, softplus(raw_scale))

    def decode(self, latent: Tensor) -> torch.distributions.Distribution:
        """p(x | z) over [batch, time, feature] for latents [batch, time, latent]."""
        return observation_distribution(self.hparams.likelihood, self.decoder(latent))

    def forward(self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> LatentPredictive:
        """Predictive distribution; neither the mask nor the times enter (the encoder sees zeros where values miss)."""
        return LatentPredictive(self.encode(values), self.decode)

    def likelihood_mask(self, observed_mask: Tensor) -> Tensor:
        """Entries whose likelihood is maximised: all of them, the zeros at missing entries included."""
        return torch.ones_like(observed_mask)

    def loss(self, batch: SeriesBatch) -> dict[str, Tensor]:
        """Negative ELBO, batch mean of -sum log p(x | z) + beta KL(q || N(0, 1)), in nats a series."""
        posterior = self.encode(batch.values)
        observation = self.decode(posterior.rsample())
        mask = self.likelihood_mask(batch.observed_mask)
        nll = -masked_log_likelihood(observation, batch.values, mask).mean()
        variance_part, mean_part = (part.sum((1, 2)).mean() for part in posterior.kl_divergence())
        loss = nll + self.hparams.beta * (variance_part + mean_part)
        return {"loss": loss, "nll": nll, "kl_variance_part": variance_part, "kl_mean_part": mean_part}

    def training_step(self, batch: SeriesBatch, batch_index: int) -> Tensor:
        """One step of the negative ELBO."""
        terms = self.loss(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        return terms["loss"]

    def configure_optimizers(self) -> dict:
        """Adam in TensorFlow's form, its rate halved at fixed steps where asked for."""
        hparams = self.hparams
        optimizer = TensorFlowAdam(self.parameters(), lr=hparams.learning_rate)
        return halved_learning_rate(optimizer, hparams.learning_rate_half_life, hparams.learning_rate_floor)
