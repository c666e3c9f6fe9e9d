"""GRUI-GAN: a recurrent generator learns whole series from incomplete ones against a critic, then is searched.

Luo, Cai, Zhang, Xu, Yuan: Multivariate Time Series Imputation with Generative Adversarial Networks, NeurIPS 2018. The
generator turns noise z into a series, fed with its own outputs; a Wasserstein critic compares series of it with the
incomplete ones of the data; both are GRUs whose state decays with the time since a value was last observed. To impute a
series one looks for the z whose series fits the observed entries and pleases the critic; the rest of it is the answer.

As published, the critic tells the two apart by the gaps alone, which generated series do not have, and the generator
learns next to nothing from it. With ``mask_generated`` each generated series gets the gaps of one of the data before
the critic sees it (Bora, Price, Dimakis: AmbientGAN, ICLR 2018), and ``gradient_penalty`` takes the place of
``weight_clip`` (Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville: Improved Training of Wasserstein GANs, NeurIPS 2017):
then it learns. Both are off by default and on in preset plus.
"""

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.distributions.predictive import Likelihood, PointPrediction
from lightning_modules.imputation.base import Imputer, SeriesBatch
from lightning_modules.networks.adam import TensorFlowAdam
from lightning_modules.networks.grui import GRUI, time_since_observed
from lightning_modules.networks.mlp import glorot_


def time_major(values: Tensor, observed_mask: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Values and mask as [time, batch, feature], time stamps as [time, batch], or 0..T-1 as [time, 1] where None."""
    if times is None:
        times = torch.arange(values.shape[1], dtype=values.dtype, device=values.device)[None]
    return values.transpose(0, 1).contiguous(), observed_mask.transpose(0, 1).contiguous(), times.T


def complete_delta(values: Tensor, times: Tensor) -> Tensor:
    """`time_since_observed` of series without gaps: [time, batch or 1, feature] for values [time, batch, feature]."""
    everything = torch.ones(len(times), 1, 1, dtype=torch.bool, device=times.device)
    return time_since_observed(everything, times).expand(-1, -1, values.shape[2])


class Generator(nn.Module):
    """Series from noise: the first input is made from z, every other one is the output before it.

    Args:
        num_features: features of a time step.
        hidden_size: size of the state.
        latent_dim: size of z.
        dropout: rate on the states that the output layer reads, while training.
    """

    def __init__(self, num_features: int, hidden_size: int, latent_dim: int, dropout: float) -> None:
        super().__init__()
        self.latent = glorot_(nn.Linear(latent_dim, num_features))
        self.cell = GRUI(num_features, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = glorot_(nn.Linear(hidden_size, num_features))
        self.normalise = nn.BatchNorm1d(num_features)  # of the finished series; what is fed back is not normalised

    def forward(self, latent: Tensor, delta: Tensor) -> Tensor:
        """Series [time, batch, feature] for z [batch, latent] and ``delta`` [time, batch or 1, feature]."""
        cell, batch = self.cell, len(latent)
        # Output layer and projection of the next input, one after the other, are one linear map of the state.
        weight = cell.input.weight @ self.output.weight  # [3 hidden, hidden]
        bias = cell.input.weight @ self.output.bias + cell.input.bias
        projected = cell.input(self.latent(latent))
        state = projected.new_zeros(batch, weight.shape[1])
        kept = self.dropout(state.new_ones(len(delta), *state.shape)).unbind() if self.training else [None] * len(delta)
        states = []
        for decay, keep in zip(cell.decays(delta).unbind(), kept, strict=True):
            state = cell.step(cell.split(projected), decay, state)
            states.append(state if keep is None else state * keep)
            projected = nn.functional.linear(states[-1], weight, bias)
        series = self.output(torch.stack(states))
        return self.normalise(series.flatten(0, 1)).unflatten(0, (-1, batch))

    def predict(self, latent: Tensor, series: Tensor, delta: Tensor) -> Tensor:
        """The same with the data's series instead of its own outputs as inputs: [time, batch, feature] predictions."""
        inputs = torch.cat([self.latent(latent)[None], series[:-1]])
        return self.output(self.dropout(torch.stack(self.cell(inputs, delta))))


class Critic(nn.Module):
    """One score for each series, high for what looks like data.

    Args:
        num_features: features of a time step.
        hidden_size: size of the state.
        dropout: rate on the last state, while training.
    """

    def __init__(self, num_features: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.cell = GRUI(num_features, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = glorot_(nn.Linear(hidden_size, 1))

    def forward(self, series: Tensor, delta: Tensor) -> Tensor:
        """[batch] for ``series`` [time, batch, feature] and ``delta`` [time, batch or 1, feature]."""
        return self.output(self.dropout(self.cell(series, delta)[-1])).squeeze(-1)


class GRUIGAN(Imputer):
    """Generative adversarial network with GRUI cells.

    A training batch is one step of the Trainer: a pre-training step at first, then a step of the critic, after every
    ``critic_steps`` of which the generator takes one as well, which the Trainer does not count.

    Args:
        num_features: features of a time step.
        likelihood: "bernoulli" for binary data, whose imputations are kept in [0, 1]; "gaussian" otherwise.
        hidden_size: size of the states of generator and critic.
        latent_dim: size of z.
        dropout: rate in front of both output layers, while training.
        pretraining_steps: steps in which the generator learns to predict the next values, before the critic comes in.
        critic_steps: steps of the critic for one of the generator.
        weight_clip: bound on the absolute value of all weights from then on; None: no bound.
        gradient_penalty: weight of the mean of (|dD/dx| - 1)^2 at points between real and generated series, in the
            critic's loss.
        mask_generated: whether the critic sees generated series with the gaps of real ones.
        gradient_clip: bound on the norm of the gradients of each optimiser's step; None: no bound.
        learning_rate: of the critic's Adam.
        generator_learning_rate: of the generator's.
        pretraining_learning_rate: of the generator's while it is pre-trained.
        beta1: decay rate of the first moment in all of them, the search's included.
        search_steps: steps of the search for z.
        search_learning_rate: of its Adam.
        adversarial_weight: weight of the critic's score in the search, beside the squared error.
    """

    def __init__(
        self,
        num_features: int,
        likelihood: Likelihood = "gaussian",
        hidden_size: int = 64,
        latent_dim: int = 64,
        dropout: float = 0.5,
        pretraining_steps: int = 160,
        critic_steps: int = 8,
        weight_clip: float | None = 0.99,
        gradient_penalty: float = 0.0,
        mask_generated: bool = False,
        gradient_clip: float | None = None,
        learning_rate: float = 1e-3,
        generator_learning_rate: float = 8e-3,
        pretraining_learning_rate: float = 2e-3,
        beta1: float = 0.5,
        search_steps: int = 400,
        search_learning_rate: float = 7e-3,
        adversarial_weight: float = 0.15,
    ) -> None:
        super().__init__()
        if critic_steps < 1:
            raise ValueError(f"critic_steps={critic_steps} must be at least 1: the generator learns from the critic")
        if weight_clip is not None and not weight_clip > 0:
            raise ValueError(
                f"weight_clip={weight_clip} must be positive, or None: it bounds the weights' absolute values"
            )
        if gradient_penalty < 0:
            raise ValueError(f"gradient_penalty={gradient_penalty} must not be negative: it is a weight in the loss")
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = Generator(num_features, hidden_size, latent_dim, dropout)
        self.critic = Critic(num_features, hidden_size, dropout)
        # The same for every series: what a series is imputed with depends on nothing but the series.
        start = 0.1 * torch.randn(latent_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("search_start", start, persistent=False)

    def noise(self, batch: SeriesBatch) -> Tensor:
        """Latents of new series, [batch, latent]."""
        return torch.randn(len(batch.values), self.hparams.latent_dim, device=batch.values.device)

    def pretraining_loss(self, batch: SeriesBatch) -> Tensor:
        """Squared error of the observed values as predicted from those before, summed over a step's features."""
        values, observed_mask, times = time_major(batch.values, batch.observed_mask, batch.times)
        delta = time_since_observed(observed_mask, times)
        prediction = self.generator.predict(self.noise(batch), values, delta)
        return ((prediction - values).square() * observed_mask).sum(-1).mean()

    def shown(self, series: Tensor, observed_mask: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """A generated series and its time since values were observed, as the critic sees them.

        All are [time, batch, feature], ``times`` [time, batch or 1].
        """
        if self.hparams.mask_generated:
            return series * observed_mask, time_since_observed(observed_mask, times)
        return series, complete_delta(series, times)

    def critic_loss(self, batch: SeriesBatch) -> Tensor:
        """Batch mean of D(G(z)) - D(x) plus penalty; without it, at the best D, a multiple of minus their distance."""
        values, observed_mask, times = time_major(batch.values, batch.observed_mask, batch.times)
        delta = time_since_observed(observed_mask, times)
        with torch.no_grad():
            generated = self.generator(self.noise(batch), complete_delta(values, times))
            generated, generated_delta = self.shown(generated, observed_mask, times)
        deltas = torch.cat([delta, generated_delta.expand_as(delta)], 1)
        real_score, generated_score = self.critic(torch.cat([values, generated], 1), deltas).chunk(2)
        loss = generated_score.mean() - real_score.mean()
        if self.hparams.gradient_penalty:
            share = torch.rand(values.shape[1], 1, device=values.device)  # [batch, 1]
            between, between_delta = (torch.lerp(*ends, share) for ends in ((values, generated), deltas.chunk(2, 1)))
            loss = loss + self.hparams.gradient_penalty * self.slope_error(between, between_delta)
        return loss

    def slope_error(self, series: Tensor, delta: Tensor) -> Tensor:
        """Batch mean of (|dD/dx| - 1)^2, the norm taken over a whole series."""
        series = series.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(series, delta).sum(), series, create_graph=True)
        norm = (slope.square().sum((0, 2)) + 1e-12).sqrt()  # a root's own slope at 0 is infinite
        return (norm - 1).square().mean()

    def generator_loss(self, batch: SeriesBatch) -> Tensor:
        """Batch mean of -D(G(z))."""
        values, observed_mask, times = time_major(batch.values, batch.observed_mask, batch.times)
        generated = self.generator(self.noise(batch), complete_delta(values, times))
        return -self.critic(*self.shown(generated, observed_mask, times)).mean()

    def training_step(self, batch: SeriesBatch, batch_index: int) -> None:
        """Pre-training, or a step of the critic and perhaps one of the generator, by the number of steps so far."""
        hparams, step = self.hparams, self.global_step
        pretraining, critic, generator = self.optimizers()
        if step < hparams.pretraining_steps:
            loss = self.pretraining_loss(batch)
            self.descend(loss, pretraining)
            self.log("train/pretraining_loss", loss.detach())
            return
        loss = self.critic_loss(batch)
        self.descend(loss, critic)
        self.log("train/critic_loss", loss.detach())
        if (step - hparams.pretraining_steps + 1) % hparams.critic_steps == 0:
            loss = self.generator_loss(batch)
            self.descend(loss, generator, counted=False)
            self.log("train/generator_loss", loss.detach())
        if hparams.weight_clip is not None:
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.clamp_(-hparams.weight_clip, hparams.weight_clip)
        # Processes that train together normalise their own shares; imputation needs statistics that they agree on.
        for statistic in (self.generator.normalise.running_mean, self.generator.normalise.running_var):
            statistic.copy_(self.trainer.strategy.reduce(statistic, reduce_op="mean"))

    def descend(self, loss: Tensor, optimizer: LightningOptimizer, counted: bool = True) -> None:
        """One step of one optimiser; one that is not counted leaves the Trainer's ``global_step`` alone."""
        self.zero_grad()
        # Every parameter gets a gradient, if only zero: processes that train together wait for all of them.
        self.manual_backward(loss + 0.0 * sum(parameter.sum() for parameter in self.parameters()))
        if counted:
            optimizer.step()
        else:
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients, which Lightning leaves to modules with several optimisers."""
        self.clip_gradients(optimizer, self.hparams.gradient_clip, "norm")

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam in TensorFlow's form: for the generator's pre-training, the critic, the generator."""
        hparams, betas = self.hparams, (self.hparams.beta1, 0.999)
        return [
            TensorFlowAdam(self.generator.parameters(), hparams.pretraining_learning_rate, betas),
            TensorFlowAdam(self.critic.parameters(), hparams.learning_rate, betas),
            TensorFlowAdam(self.generator.parameters(), hparams.generator_learning_rate, betas),
        ]

    def forward(self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> PointPrediction:
        """Search z for each series, whatever the mode of autograd and module; the answer is the generator's series."""
        training = self.training
        self.eval()  # no dropout, and a series' result does not depend on the others in its batch
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return PointPrediction(self.search(values.clone(), observed_mask.clone(), times))
        finally:
            self.train(training)

    def search(self, values: Tensor, observed_mask: Tensor, times: Tensor | None) -> Tensor:
        """Series [batch, time, feature] of the z that minimises squared error - adversarial_weight * D(G(z)).

        The squared error is the sum over a series' observed entries.
        """
        hparams = self.hparams
        values, observed_mask, times = time_major(values, observed_mask, times)
        complete = complete_delta(values, times)
        latent = self.search_start.expand(values.shape[1], -1).clone().requires_grad_()
        optimizer = TensorFlowAdam([latent], hparams.search_learning_rate, (hparams.beta1, 0.999))
        for _ in range(hparams.search_steps):
            series = self.generator(latent, complete)
            error = ((series - values).square() * observed_mask).sum((0, 2))  # [batch]
            loss = error - hparams.adversarial_weight * self.critic(*self.shown(series, observed_mask, times))
            (latent.grad,) = torch.autograd.grad(loss.sum(), latent)
            optimizer.step()
        with torch.no_grad():
            series = self.generator(latent, complete).transpose(0, 1)
            return series.clamp(0, 1) if hparams.likelihood == "bernoulli" else series
