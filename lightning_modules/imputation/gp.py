"""GP: a Gaussian process in data space for each feature, with exact inference.

Each feature's series are draws of one process in time, observed with noise; the process's hyper-parameters, shared by
all series, maximise the exact marginal likelihood of the observed values, and its posterior fills in the missing ones.
Features know nothing of each other. Roberts, Osborne, Ebden, Reece, Gibson & Aigrain: Gaussian processes for
time-series modelling, Phil. Trans. R. Soc. A 371, 2013, is what row "GP" of Table 2 refers to; its kernel and fitting
are not published, both are ours: the kernel with the best validation likelihood, and Adam on minibatches of series.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.distributions.kernels import KERNELS
from lightning_modules.distributions.predictive import GaussianPrediction, Likelihood, PointPrediction
from lightning_modules.imputation.base import Imputer, SeriesBatch
from lightning_modules.networks.learning_rate import halved_learning_rate

# Keeps covariances away from singular, and the density of a feature that never varies from growing without end.
MINIMUM_NOISE_VARIANCE = 1e-4


class LogDensity(torch.autograd.Function):
    """log N(residual; 0, covariance) but for its constant, of residuals [..., time] under [..., time, time].

    The gradient is the closed form of Rasmussen & Williams (2006), equation 5.9: quicker than the one through the
    Cholesky factorisation, and finite wherever the density is.
    """

    @staticmethod
    def forward(ctx: Any, residual: Tensor, covariance: Tensor) -> Tensor:
        """-(residual^T K^-1 residual + log |K|) / 2, [...]."""
        factor = torch.linalg.cholesky_ex(covariance).L  # unlike `cholesky`, it does not wait for a GPU to report
        weights = torch.cholesky_solve(residual[..., None], factor)  # K^-1 residual, [..., time, 1]
        ctx.save_for_backward(factor, weights)
        log_determinant = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * ((residual * weights[..., 0]).sum(-1) + log_determinant)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """-K^-1 residual and (K^-1 residual residual^T K^-1 - K^-1) / 2, each times `gradient` [...]."""
        factor, weights = ctx.saved_tensors
        slope = weights @ weights.mT - torch.cholesky_inverse(factor)  # [..., time, time]
        return -gradient[..., None] * weights[..., 0], (0.5 * gradient)[..., None, None] * slope


class GP(Imputer):
    """One Gaussian process over time for each feature: a constant mean, a stationary kernel, white noise.

    The linear algebra is in float64. A step takes time O(batch * feature * time^3), memory O(batch * feature * time^2).

    Args:
        num_features: features of a time step.
        likelihood: data that are "bernoulli" are treated as real numbers too, but imputed by the mean alone, kept in
            [0, 1]: a normal density of zeros and ones would stand beside probabilities of them.
        kernel: covariance function of the processes.
        length_scale: where the learned length scale of every feature starts, in units of time.
        kernel_variance: where the learned variance of the process starts, in squared units of the data.
        noise_variance: where the learned variance of the noise starts; it stays above 1e-4.
        learning_rate: of Adam, on the means and on the logarithms of the others.
        learning_rate_half_life: steps after which the rate is halved, again and again; None: constant.
        learning_rate_floor: the rate is not halved below this.
    """

    def __init__(
        self,
        num_features: int,
        likelihood: Likelihood = "gaussian",
        kernel: Literal["cauchy", "rbf", "matern12", "matern32", "matern52"] = "matern12",
        length_scale: float = 10.0,
        kernel_variance: float = 0.5,
        noise_variance: float = 0.5,
        learning_rate: float = 0.1,
        learning_rate_half_life: int | None = 100,
        learning_rate_floor: float = 1e-3,
    ) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"kernel={kernel!r} is not known; choose one of {sorted(KERNELS)}")
        starts = {"length_scale": length_scale, "kernel_variance": kernel_variance, "noise_variance": noise_variance}
        for (name, start), lowest in zip(starts.items(), (0, 0, MINIMUM_NOISE_VARIANCE), strict=True):
            if not lowest < start < math.inf:
                raise ValueError(f"{name}={start} must be above {lowest} and finite: its logarithm is learned")
        self.save_hyperparameters()

        def learned(start: float) -> nn.Parameter:
            return nn.Parameter(torch.full((num_features,), start))

        self.prior_mean = learned(0.0)
        self.log_length_scale = learned(math.log(length_scale))
        self.log_variance = learned(math.log(kernel_variance))
        self.log_excess_noise = learned(math.log(noise_variance - MINIMUM_NOISE_VARIANCE))

    @property
    def noise_variance(self) -> Tensor:
        """Of each feature, [feature] float64."""
        return MINIMUM_NOISE_VARIANCE + self.log_excess_noise.double().exp()

    def process_covariance(self, values: Tensor, times: Tensor | None) -> Tensor:
        """Of the processes without noise: [feature, time, time] float64, [batch, feature, time, time] with times."""
        times = torch.arange(values.shape[1], device=values.device) if times is None else times
        scaled_times = times.double()[..., None, :] / self.log_length_scale.double().exp()[:, None]
        correlation = KERNELS[self.hparams.kernel](scaled_times, length_scale=1.0)
        return self.log_variance.double().exp()[:, None, None] * correlation

    def observations(self, values: Tensor, observed_mask: Tensor, process: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of the observed values from the prior mean [batch, feature, time], and its covariance.

        Where nothing is observed, the distance is 0 and the row of the covariance [batch, feature, time, time] is one
        of the identity: it changes neither density nor posterior, and no shape depends on the data.
        """
        observed = observed_mask.mT  # [batch, feature, time]
        residual = torch.where(observed, values.mT.double() - self.prior_mean.double()[:, None], 0.0)
        covariance = torch.where(observed[..., :, None] & observed[..., None, :], process, 0.0)
        covariance.diagonal(dim1=-2, dim2=-1).add_(torch.where(observed, self.noise_variance[:, None], 1.0))
        return residual, covariance

    def forward(
        self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None
    ) -> GaussianPrediction | PointPrediction:
        """Exact posterior predictive of a new observation at every time, noise included; of binary data its mean.

        Rasmussen & Williams (2006), equations 2.25 and 2.26.
        """
        process = self.process_covariance(values, times)
        residual, covariance = self.observations(values, observed_mask, process)
        cross = torch.where(observed_mask.mT[..., None], process, 0.0)
        factor = torch.linalg.cholesky_ex(covariance).L
        whitened = torch.linalg.solve_triangular(factor, cross, upper=False)  # [batch, feature, observed time, time]
        weights = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)
        mean = self.prior_mean.double()[:, None] + (whitened.mT @ weights)[..., 0]  # [batch, feature, time]
        if self.hparams.likelihood == "bernoulli":
            return PointPrediction(mean.clamp(0, 1).mT.to(values.dtype))
        variance = process.diagonal(dim1=-2, dim2=-1) - whitened.square().sum(-2)
        scale = (variance.clamp(min=0) + self.noise_variance[:, None]).sqrt()
        return GaussianPrediction(mean.mT.to(values.dtype), scale.mT.to(values.dtype))

    def loss(self, batch: SeriesBatch) -> Tensor:
        """Negative log marginal likelihood of the observed values, batch mean in nats a series."""
        process = self.process_covariance(batch.values, batch.times)
        residual, covariance = self.observations(batch.values, batch.observed_mask, process)
        log_density = LogDensity.apply(residual, covariance).sum(1)  # [batch]
        log_density = log_density - 0.5 * math.log(2 * math.pi) * batch.observed_mask.sum((1, 2))
        return -log_density.mean()

    def training_step(self, batch: SeriesBatch, batch_index: int) -> Tensor:
        """One step up the marginal likelihood."""
        loss = self.loss(batch)
        self.log("train/loss", loss.detach())
        return loss

    def configure_optimizers(self) -> dict:
        """Adam, its rate halved at fixed steps where asked for."""
        hparams = self.hparams
        optimizer = torch.optim.Adam(self.parameters(), lr=hparams.learning_rate, fused=True)
        return halved_learning_rate(optimizer, hparams.learning_rate_half_life, hparams.learning_rate_floor)
