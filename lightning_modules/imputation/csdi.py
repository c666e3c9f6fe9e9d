"""CSDI: a diffusion model of the missing entries, conditional on the observed ones.

A network learns to tell the noise in some entries of a series from the other entries: in training, a random part of the
observed entries is hidden and takes noise; to impute, what is missing starts as pure noise, which is taken away step by
step. Every run of that process is one draw of the conditional distribution, and the median of many is the imputation.

Tashiro, Song, Song, Ermon: CSDI, Conditional Score-based Diffusion Models for Probabilistic Time Series Imputation,
NeurIPS 2021. Sizes, initialisation and the dropout of 0.1 are those of the authors' code. As there, entries whose
value nobody knows take part in training as noisy zeros that are not scored. Departures: the learning rate drops at 75 %
and 90 % of the steps instead of the epochs, and the noise of a draw belongs to its series.
"""

from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.optim.lr_scheduler import MultiStepLR

from lightning_modules.distributions.noise import normal_by_row
from lightning_modules.distributions.predictive import Likelihood
from lightning_modules.imputation.base import Imputer, SeriesBatch
from lightning_modules.networks.csdi import Condition, CSDINetwork
from lightning_modules.processes.gaussian import posterior_mean_variance, predict_start_from_noise, q_sample
from lightning_modules.processes.schedules import alphas_cumprod, quadratic

# Entries of all series that pass through the network together while sampling: about 1.5 GB where a device needs many to
# be busy; on a CPU as few as it has cache for.
_ENTRIES_AT_ONCE = 2**18
_ENTRIES_AT_ONCE_ON_CPU = 2**15
_KEYS_OF_A_DRAW = 2**40  # row numbers are smaller


class CSDIPrediction:
    """The conditional distribution, known by its draws.

    Draws that belong to ``rows`` are kept: ``mean`` and ``sample`` with the same rows read one and the same set, which
    grows when more are asked for.

    Args:
        draw: gives [draw, batch, time, feature] for int64 keys [draw, batch], a draw being a function of its key.
        places: [batch] int64: 0, 1, ..., on the device of the draws.
        num_samples: draws of which ``mean`` is the median.
        rows: [batch] int64 row numbers to which the draws of ``mean`` belong; None: those that ``sample`` is given
            first, or the places in the batch if it is given none before.
    """

    def __init__(
        self, draw: Callable[[Tensor], Tensor], places: Tensor, num_samples: int, rows: Tensor | None = None
    ) -> None:
        self.draw, self.places, self.num_samples, self.rows = draw, places, num_samples, rows
        self._kept: Tensor | None = None

    @cached_property
    def mean(self) -> Tensor:
        """[batch, time, feature]: the median of the draws, as the authors impute (the lower one of two)."""
        draws = self.sample(self.num_samples, rows=self.places if self.rows is None else self.rows)
        # Not torch.median, which CUDA has no deterministic form of.
        return draws.sort(dim=0).values[(self.num_samples - 1) // 2]

    def sample(self, num_samples: int, generator: torch.Generator | None = None, rows: Tensor | None = None) -> Tensor:
        """[num_samples, batch, time, feature]: each a run of the whole reverse process; observed entries are kept.

        Args:
            num_samples: draws.
            generator: source of randomness; None: torch's global one.
            rows: [batch] int64 row numbers in the data set, to which the noise then belongs, instead of a generator.
        """
        if rows is None:
            device = None if generator is None else generator.device
            keys = torch.randint(2**63 - 1, (num_samples, len(self.places)), generator=generator, device=device)
            return self.draw(keys.to(self.places.device))
        if self.rows is None:
            self.rows = rows
        if not torch.equal(rows, self.rows):
            return self.draw(_keys(0, num_samples, rows))
        present = 0 if self._kept is None else len(self._kept)
        if present < num_samples:
            further = self.draw(_keys(present, num_samples, rows))
            self._kept = further if self._kept is None else torch.cat([self._kept, further])
        return self._kept[:num_samples]

    def log_prob(self, value: Tensor, rows: Tensor | None = None) -> None:
        """None: the density of a draw is not tractable."""
        return

    def log_mixture(self, value: Tensor, num_samples: int, rows: Tensor | None = None) -> None:
        """None: the density of a draw is not tractable."""
        return


def _keys(start: int, stop: int, rows: Tensor) -> Tensor:
    """[draw, batch] int64, another number for every draw of every row."""
    return torch.arange(start, stop, device=rows.device)[:, None] * _KEYS_OF_A_DRAW + rows


class CSDI(Imputer):
    """Conditional diffusion model with attention over time and over features.

    Args:
        num_features: features of a time step.
        likelihood: data that are "bernoulli" are treated as real numbers too, but draws are kept in [0, 1].
        num_diffusion_steps: steps from data to noise.
        beta_start: variance of the noise that the first step adds.
        beta_end: variance of the noise that the last step adds; between them its square root grows linearly.
        num_layers: residual layers.
        channels: width of an entry inside the network.
        num_heads: attention heads, a divisor of ``channels``.
        step_embedding: width of the embedding of the diffusion step.
        time_embedding: width of the sinusoidal embedding of the time stamps, whose wavelengths are 6 to 63,000 units.
        feature_embedding: width of the learned embedding of the features.
        dropout: probability of the transformers' dropout.
        learning_rate: of Adam, a tenth of it after 75 % of the training's steps, a hundredth after 90 %.
        weight_decay: of Adam, the L2 penalty.
        num_samples: draws of which the imputation is the median.
    """

    mixed_precision_on = ("cuda",)  # matrix products fill nearly all of a step; the diffusion's own sums are float32

    def __init__(
        self,
        num_features: int,
        likelihood: Likelihood = "gaussian",
        num_diffusion_steps: int = 50,
        beta_start: float = 1e-4,
        beta_end: float = 0.5,
        num_layers: int = 4,
        channels: int = 64,
        num_heads: int = 8,
        step_embedding: int = 128,
        time_embedding: int = 128,
        feature_embedding: int = 16,
        dropout: float = 0.1,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-6,
        num_samples: int = 100,
    ) -> None:
        super().__init__()
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1: the imputation is the median of the draws")
        self.save_hyperparameters()
        widths = (step_embedding, time_embedding, feature_embedding)
        self.network = CSDINetwork(
            num_features, num_diffusion_steps, num_layers, channels, num_heads, *widths, dropout=dropout
        )
        betas = quadratic(num_diffusion_steps, beta_start, beta_end)
        self.register_buffer("alphas_cumprod", alphas_cumprod(betas), persistent=False)  # [step] float64

    def forward(
        self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None, rows: Tensor | None = None
    ) -> CSDIPrediction:
        """Predictive distribution; draws when asked, at its full price each time.

        Args:
            values: [batch, time, feature], 0 where not observed.
            observed_mask: [batch, time, feature] bool, True where observed.
            times: [batch, time] time stamps; None for the regular grid 0..T-1.
            rows: [batch] int64 row numbers to which the draws of ``mean`` belong; None: see `CSDIPrediction`.
        """
        draw = partial(self.draw, values, observed_mask, times)
        places = torch.arange(len(values), device=values.device)
        return CSDIPrediction(draw, places, self.hparams.num_samples, rows)

    def validation_step(self, batch: SeriesBatch, batch_index: int) -> CSDIPrediction:
        """Impute by draws that belong to the rows, whatever batch they are in."""
        return self(batch.values, batch.observed_mask, batch.times, rows=batch.index)

    def choose_targets(self, observed_mask: Tensor) -> Tensor:
        """Hide a part of each series' observed entries, drawn uniformly from [0, 1]; bool [batch, time, feature]."""
        observed = observed_mask.flatten(1)  # [batch, entry]
        random = torch.rand(observed.shape, device=observed.device).masked_fill(~observed, 2.0)
        place = random.argsort(dim=1).argsort(dim=1)  # in a random order of the observed entries, the others behind
        fraction = torch.rand(len(observed), 1, device=observed.device)
        return (place < (observed.sum(1, keepdim=True) * fraction).round()).view_as(observed_mask)

    def loss(self, batch: SeriesBatch) -> Tensor:
        """Mean of (noise - predicted noise)^2 over the targets of the batch, at a random step for each series."""
        target_mask = self.choose_targets(batch.observed_mask)
        step = torch.randint(self.hparams.num_diffusion_steps, (len(batch.values),), device=batch.values.device)
        noise = torch.randn_like(batch.values)
        noisy = q_sample(batch.values, noise, self.alphas_cumprod, step)
        condition = self.network.condition(batch.values, batch.observed_mask & ~target_mask, batch.times)
        predicted = self.network(noisy[None], step, condition)[0]  # [batch, time, feature]
        return ((noise - predicted).square() * target_mask).sum() / target_mask.sum().clamp(min=1)

    def training_step(self, batch: SeriesBatch, batch_index: int) -> Tensor:
        """One step of the denoising loss."""
        loss = self.loss(batch)
        self.log("train/loss", loss.detach())
        return loss

    def configure_optimizers(self) -> dict:
        """Adam with an L2 penalty, its rate dropped tenfold at 75 % and at 90 % of the training."""
        hparams = self.hparams
        optimizer = torch.optim.Adam(
            self.parameters(), lr=hparams.learning_rate, weight_decay=hparams.weight_decay, fused=True
        )
        steps = self.trainer.estimated_stepping_batches
        schedule = MultiStepLR(optimizer, [int(0.75 * steps), int(0.9 * steps)], gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def draw(self, values: Tensor, observed_mask: Tensor, times: Tensor | None, keys: Tensor) -> Tensor:
        """Draw from the conditional distribution, as many series and draws at once as fit the memory.

        Args:
            values: [batch, time, feature], 0 where not observed.
            observed_mask: [batch, time, feature] bool.
            times: [batch, time] time stamps, or None.
            keys: [draw, batch] int64, from each of which all noise of its draw is made.

        Returns:
            [draw, batch, time, feature], the values where they are observed.
        """
        draws = torch.empty((*keys.shape, *values.shape[1:]), dtype=values.dtype, device=values.device)
        passed_at_once = (_ENTRIES_AT_ONCE_ON_CPU if values.is_cpu else _ENTRIES_AT_ONCE) // values[0].numel()
        draws_at_once = max(1, min(len(keys), passed_at_once))
        series_at_once = max(1, passed_at_once // draws_at_once)
        for first_series in range(0, len(values), series_at_once):
            series = slice(first_series, first_series + series_at_once)
            some_times = None if times is None else times[series]
            condition = self.network.condition(values[series], observed_mask[series], some_times)
            for first_draw in range(0, len(keys), draws_at_once):
                chunk = slice(first_draw, first_draw + draws_at_once)
                draws[chunk, series] = self.reverse(condition, keys[chunk, series], values.dtype)
        if self.hparams.likelihood == "bernoulli":
            draws.clamp_(0, 1)
        return torch.where(observed_mask, values, draws)

    def reverse(self, condition: Condition, keys: Tensor, dtype: torch.dtype) -> Tensor:
        """The reverse process, from noise to [draw, batch, time, feature], of which the hidden entries are of use.

        Its state keeps ``dtype``, whatever the network computes in: fifty roundings to bf16 would add up.
        """
        shape = tuple(condition.hidden.shape[1:])

        def noise(seed: int) -> Tensor:
            return normal_by_row(keys.flatten(), shape, seed).to(dtype).view(*keys.shape, *shape)

        steps = torch.arange(self.hparams.num_diffusion_steps, device=keys.device).split(1)
        noisy = noise(seed=len(steps))
        for index in reversed(range(len(steps))):
            predicted = self.network(noisy, steps[index], condition)
            start = predict_start_from_noise(noisy, predicted, self.alphas_cumprod, steps[index])
            mean, variance = posterior_mean_variance(start, noisy, self.alphas_cumprod, steps[index])
            noisy = mean + variance.sqrt() * noise(seed=index) if index > 0 else mean
        return noisy
