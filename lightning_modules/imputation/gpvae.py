"""GP-VAE: a VAE over time steps whose latents follow a Gaussian process in time, with a banded Gaussian posterior.

Fortuin, Baranchuk, Rätsch, Mandt: GP-VAE, Deep Probabilistic Time Series Imputation, AISTATS 2020. The defaults follow
the authors' published code where it differs from the paper: the posterior's precision is U U^T with U upper bidiagonal,
its off-diagonal entries are forced positive and its diagonal above one, and missing entries enter as zeros without a
mask. Departures: no value that is not finite is turned into 0 in silence (a callback stops the run instead). Ours, and
used by the preset `plus`, are the arguments from ``mask_channel`` on, several length scales, and the contractive form
of the posterior.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from lightning_modules.distributions.banded import BandedGaussian
from lightning_modules.distributions.gaussian_process import GaussianProcessPrior
from lightning_modules.distributions.kernels import KERNELS
from lightning_modules.distributions.likelihood import masked_log_likelihood
from lightning_modules.distributions.predictive import LatentPredictive, Likelihood, observation_distribution
from lightning_modules.distributions.student import StudentT4
from lightning_modules.imputation.base import Imputer, SeriesBatch
from lightning_modules.imputation.constant import linear_fill
from lightning_modules.networks.adam import TensorFlowAdam
from lightning_modules.networks.conv import ImagePreprocessor
from lightning_modules.networks.frame_decoder import FrameDecoder
from lightning_modules.networks.learning_rate import halved_learning_rate
from lightning_modules.networks.mlp import mlp, temporal_encoder


class GPVAE(Imputer):
    """Variational autoencoder with a Gaussian-process prior over the latent time series.

    Args:
        num_features: features of a time step (pixels of a frame, clinical variables).
        num_steps: length of the regular time grid 0..T-1, whose prior is factorised once.
        likelihood: "bernoulli" for binary data, "gaussian" otherwise.
        image_shape: where a time step is a picture, [height, width] if it is binary, else [height, width, channels],
            the channels of a pixel side by side; adds the convolutional preprocessor.
        latent_dim: latent time series.
        encoder_sizes: filters of the temporal convolution, then widths of the layers applied to each time step.
        decoder_sizes: widths of the decoder's hidden layers.
        window: time steps that the encoder's convolution spans.
        kernel: covariance function of the prior.
        length_scale: of the kernel, in units of time; several: the latents share them evenly.
        kernel_variance: of the kernel.
        jitter: added to the prior covariance's diagonal.
        precision_activation: makes the entries of U positive; "sigmoid" bounds them by one; "contractive" makes the
            off-diagonal ones a part, by a sigmoid, of the diagonal ones below them, so that a deviation shrinks from
            each step to the next and no variance can grow without bound along the series.
        beta: weight of the KL divergence.
        learning_rate: of Adam.
        learning_rate_half_life: steps after which the rate is halved, again and again; None: constant.
        learning_rate_floor: the rate is not halved below this.
        mask_channel: give the observed mask to the encoder, beside the values.
        preprocessor_relu: a ReLU on the preprocessor's output, as published. It can die, and the posterior with it.
        remasking: while training, a fraction of each series' observed entries, drawn uniformly from [0, remasking], is
            hidden from the encoder; the likelihood still covers them.
        learned_scale: learn the standard deviation of the Gaussian likelihood, instead of 1: that of each feature, or
            one for all pixels of a picture, many of which never change, so that their own would go to 0.
        encoder_fill: what the encoder sees where nothing is observed: "zero", as published, or "linear", a straight
            line in time between the feature's neighbouring observed values (not for pictures).
        student_noise: Student's t with four degrees of freedom in place of the normal in the Gaussian likelihood: wild
            values then do not widen the scale of all the others.
        decoder_channels: of a convolutional decoder, for pictures whose sides are multiples of four; its hidden dense
            layer has the first of ``decoder_sizes``. None: the dense decoder, as published.
    """

    def __init__(
        self,
        num_features: int,
        num_steps: int,
        likelihood: Likelihood = "gaussian",
        image_shape: Sequence[int] | None = None,
        latent_dim: int = 35,
        encoder_sizes: Sequence[int] = (128, 128),
        decoder_sizes: Sequence[int] = (256, 256),
        window: int = 24,
        kernel: Literal["cauchy", "rbf", "matern12", "matern32", "matern52"] = "cauchy",
        length_scale: float | Sequence[float] = 2.0,
        kernel_variance: float = 1.0,
        jitter: float = 1e-3,
        precision_activation: Literal["softplus", "sigmoid", "contractive"] = "softplus",
        beta: float = 1.0,
        learning_rate: float = 1e-3,
        learning_rate_half_life: int | None = None,
        learning_rate_floor: float = 1e-4,
        mask_channel: bool = False,
        preprocessor_relu: bool = True,
        remasking: float = 0.0,
        learned_scale: bool = False,
        encoder_fill: Literal["zero", "linear"] = "zero",
        student_noise: bool = False,
        decoder_channels: int | None = None,
    ) -> None:
        super().__init__()
        scales = list(length_scale) if isinstance(length_scale, Sequence) else [length_scale]
        if not 0 < len(scales) <= latent_dim:
            raise ValueError(f"length_scale={scales}: give at least one, and at most as many as latents ({latent_dim})")
        if encoder_fill == "linear" and image_shape:
            raise ValueError("encoder_fill='linear' is for series without image_shape; leave it at 'zero' for pictures")
        if decoder_channels is not None and not image_shape:
            raise ValueError(f"decoder_channels={decoder_channels} is for pictures; leave it at null for other series")
        for name, given in (("learned_scale", learned_scale), ("student_noise", student_noise)):
            if given and likelihood != "gaussian":
                raise ValueError(f"{name}=true needs likelihood='gaussian', not {likelihood!r}")
        if not 0 <= remasking <= 1:
            raise ValueError(f"remasking={remasking} must lie in [0, 1]: it is a fraction of the observed entries")
        self.save_hyperparameters()
        self.preprocessor = None
        if image_shape:
            channels = (image_shape[2] if len(image_shape) > 2 else 1) * (2 if mask_channel else 1)
            self.preprocessor = ImagePreprocessor(image_shape, in_channels=channels, output_relu=preprocessor_relu)
        # A picture's mask goes through the preprocessor; otherwise it stands beside the values.
        in_features = num_features * (2 if mask_channel and not image_shape else 1)
        self.encoder = temporal_encoder(in_features, encoder_sizes, 3 * latent_dim, window)
        if decoder_channels is not None:
            self.decoder = FrameDecoder(latent_dim, image_shape, decoder_channels, decoder_sizes[0])
        else:
            self.decoder = mlp(latent_dim, decoder_sizes, num_features)
        self.log_scale = nn.Parameter(torch.zeros(1 if image_shape else num_features)) if learned_scale else None
        self.length_scales = scales
        # Which length scale each latent has; neighbours have the same one.
        self.scale_index = torch.arange(latent_dim) * len(scales) // latent_dim
        self.prior = self.prior_at(torch.arange(num_steps, dtype=torch.float64))

    def prior_at(self, times: Tensor, dtype: torch.dtype | None = None) -> GaussianProcessPrior:
        """The prior over the latent series at the time stamps [..., time], [..., latent] or, if alike, [..., 1]."""
        hparams, kernel = self.hparams, KERNELS[self.hparams.kernel]
        covariances = [
            kernel(times.double(), scale, hparams.kernel_variance, hparams.jitter) for scale in self.length_scales
        ]
        index = self.scale_index if len(covariances) > 1 else None
        return GaussianProcessPrior(torch.stack(covariances, dim=-3), dtype, index)

    def encode(self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> BandedGaussian:
        """q(z | x) over [batch, latent, time]; the times matter to a linear fill only."""
        if self.hparams.encoder_fill == "linear":
            values = linear_fill(values, observed_mask, times)
        mask = observed_mask if self.hparams.mask_channel else None
        if self.preprocessor is not None:
            values = self.preprocessor.forward_series(values, mask)
        elif mask is not None:
            values = torch.cat([values, mask.to(values.dtype)], dim=-1)
        latent_dim = self.hparams.latent_dim
        output = self.encoder(values).mT  # [batch, 3 latent, time]
        mean, precision = output.split([latent_dim, 2 * latent_dim], dim=1)
        # Channels 2j and 2j+1 hold the diagonal and the off-diagonal of latent j, as in the authors' code.
        diagonal, off_diagonal = precision.unflatten(1, (latent_dim, 2)).unbind(2)
        off_diagonal = off_diagonal[..., :-1]
        if self.hparams.precision_activation == "contractive":
            diagonal = 1 + softplus(diagonal)
            return BandedGaussian(mean, diagonal, torch.sigmoid(off_diagonal) * diagonal[..., 1:])
        activation = softplus if self.hparams.precision_activation == "softplus" else torch.sigmoid
        return BandedGaussian(mean, 1 + activation(diagonal), activation(off_diagonal))

    def decode(self, latent: Tensor) -> Distribution | StudentT4:
        """p(x | z) over [batch, time, feature] for latents [batch, latent, time]."""
        scale = 1.0 if self.log_scale is None else self.log_scale.exp()
        if self.hparams.student_noise:
            return StudentT4(self.decoder(latent.mT), scale)
        return observation_distribution(self.hparams.likelihood, self.decoder(latent.mT), scale)

    def forward(self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> LatentPredictive:
        """Predictive distribution. Time stamps shape the prior, which matters in training, and a linear fill."""
        return LatentPredictive(self.encode(values, observed_mask, times), self.decode)

    def remask(self, observed_mask: Tensor) -> Tensor:
        """Hide a random fraction of each series' observed entries, [batch, time, feature]."""
        fraction = self.hparams.remasking * torch.rand(len(observed_mask), 1, 1, device=observed_mask.device)
        return observed_mask & (torch.rand(observed_mask.shape, device=observed_mask.device) >= fraction)

    def loss(self, batch: SeriesBatch) -> dict[str, Tensor]:
        """Negative ELBO: batch mean of -sum_observed log p(x | z) + beta KL(q || GP prior), in nats a series."""
        values, seen_mask = batch.values, batch.observed_mask
        if self.hparams.remasking:
            seen_mask = self.remask(seen_mask)
            values = values * seen_mask
        posterior = self.encode(values, seen_mask, batch.times)
        observation = self.decode(posterior.rsample())
        nll = -masked_log_likelihood(observation, batch.values, batch.observed_mask).mean()
        prior = self.prior if batch.times is None else self.prior_at(batch.times, posterior.mean.dtype)
        variance_part, mean_part = (part.sum(1).mean() for part in posterior.kl_divergence(prior))
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
