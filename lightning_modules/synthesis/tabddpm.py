"""TabDDPM: a diffusion model of the rows of a table.

Numerical features take Gaussian noise, categories are exchanged at random (multinomial diffusion); one network undoes
both, told the step and, in classification, the class. A real target is one more numerical feature.

Kotelnikov, Baranchuk, Rubachev, Babenko: TabDDPM, Modelling Tabular Data with Diffusion Models, ICML 2023, and their
code. Kept of the code, or of its configurations, since it changes results:

- The multinomial loss is T times the KL divergence, and has the prior's, both of which equation 7 lacks: the more steps
  there are, the more categories weigh beside numbers. The prior's is a constant.
- The network reads categories as logarithms of one-hot vectors, 0 and -69: what its first layer makes of them starts
  far larger than what it makes of numbers.
- It reads the number of the step and not its share of all steps: networks for 100 steps see a tenth of the range of
  those for 1,000, and none is of use for another number of steps.
- A reverse step's variance is beta_t, the larger bound: with fewer steps, rows are noisier than with the posterior's.
- The x_0 that the noise implies is not clipped: what leaves the training range comes back at its very ends.
- Equal numbers stay equal: a value that many rows share is a spike in the normal, at a column's end beyond -5 or 5,
  which the network smears.
- Batches are passes over the table: a training part smaller than a batch is a batch as a whole, every time (diabetes,
  491 rows, is passed 30,000 times); else the last batch of a pass is short, and its rows weigh more.
- The learning rate falls from the second step on: the first two have all of it, and the last has some.
- Labels of samples are drawn independently: shares of classes vary from table to table.
- Synthetic tables have up to 8.4 times as many rows as the training part, and predictors learn more from them.
- Numbers of one table, default, are scaled to 0..1 and not to a normal: they begin off the centre of the noise, the
  skewed ones within a small part of its width.

Departures: each column has its own normaliser (the code's, from differences of running sums, cancels and gives NaN in
columns of hundreds of categories); exactly the rows asked for are drawn; the state of the reverse process is float32;
weights that are averaged but never used are not kept. Preset "plus": see `experiments/methods/tabddpm.yaml`.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import pandas as pd
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.compiled import compiled
from lightning_modules.networks.denoisers import mlp_denoiser, resnet_denoiser
from lightning_modules.processes import gaussian, multinomial, schedules
from lightning_modules.processes.gaussian import ReverseVariance
from lightning_modules.processes.segments import Segments
from lightning_modules.synthesis.base import Conditions, Synthesizer, TableSource

# Rows that pass through the network together while sampling: as many as keep a GPU busy, or fit a CPU's cache.
_ROWS_AT_ONCE, _ROWS_AT_ONCE_ON_CPU = 2**16, 2**11
_NUMBERS_AT_ONCE = 2**26  # of a [row, category] tensor, several of which exist at a time


class RowBatch(Protocol):
    """The rows of a training step."""

    index: Tensor  # [batch] int64, rows of the training part


class Held(NamedTuple):
    """Columns that are given beforehand, on the model's device."""

    features: Tensor  # [given] int64
    values: Tensor  # [given] float32
    columns: Tensor  # [given] int64
    categories: Tensor  # [column] int64, 0 for those that are not given


class TabDDPM(Synthesizer):
    """Gaussian and multinomial diffusion of a table's rows with one denoising network.

    Args:
        network: "mlp", as published; or "resnet", with as many residual blocks as ``hidden`` has numbers, all equal.
        hidden: widths of the network's hidden layers.
        dropout: probability that a hidden unit is set to 0.
        num_diffusion_steps: steps from data to noise.
        schedule: of the noise, "cosine" or "linear".
        category_input: how the network reads categories: "log_one_hot", 0 and -69; or "one_hot", 1 and 0, by which the
            first layer is an embedding: its weights hold 128 numbers for each category, and it adds up a row's.
        step_draws: of a training batch: "uniform", independent; "stratified", one from each of as many equal parts
            of all steps as the batch has rows, which lowers the variance of the loss.
        learning_rate: of AdamW, falling linearly to 0.
        weight_decay: of AdamW.
        ema_decay: decay a step of the averaged weights that samples are drawn with, less at first
            (step / (9 + step), from step 0 on); None: the last weights.
        sampling_steps: network calls for a sample, strided over all diffusion steps; None: all of them.
        reverse_variance: of the noise that a reverse step adds to numbers, see `gaussian.reverse_coefficients`.
        exact_proportions: whether samples have the training part's shares of classes, to one row; or drawn ones.
        compile: whether the training loss is compiled; None: on GPUs that can.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: Literal["mlp", "resnet"] = "mlp",
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        num_diffusion_steps: int = 1000,
        schedule: Literal["cosine", "linear"] = "cosine",
        category_input: Literal["log_one_hot", "one_hot"] = "log_one_hot",
        step_draws: Literal["uniform", "stratified"] = "uniform",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        ema_decay: float | None = None,
        sampling_steps: int | None = None,
        reverse_variance: ReverseVariance = "large",
        exact_proportions: bool = False,
        compile: bool | None = None,
    ) -> None:
        super().__init__()
        if network == "resnet" and len(set(hidden)) != 1:
            raise ValueError(f"hidden={list(hidden)}: all blocks of network='resnet' have the same width")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay} must lie between 0 and 1; leave it out for the last weights")
        self.save_hyperparameters()
        betas = {"cosine": schedules.cosine, "linear": schedules.scaled_linear}[schedule](num_diffusion_steps)
        self.register_buffer("alphas_cumprod", schedules.alphas_cumprod(betas), persistent=False)  # [step] float64
        steps = schedules.strided_steps(num_diffusion_steps, sampling_steps or num_diffusion_steps)
        coefficients = gaussian.reverse_coefficients(self.alphas_cumprod[steps], reverse_variance)
        self.register_buffer("sampled_steps", steps, persistent=False)  # ascending
        self.register_buffer("coefficients", coefficients, persistent=False)

    def attach(self, source: TableSource) -> None:
        """Build the network for a table's columns, and take its training part where there is one."""
        super().attach(source)
        hparams, codec = self.hparams, source.codec
        self.segments = Segments(codec.category_counts) if len(codec.category_counts) else None
        self.sizes = [codec.num_numericals, self.segments.num_categories if self.segments else 0]
        table = {"in_features": sum(self.sizes), "num_steps": hparams.num_diffusion_steps}
        table["num_classes"] = len(codec.class_counts) or None
        if hparams.network == "mlp":
            self.denoiser = mlp_denoiser(**table, hidden=hparams.hidden, dropout=hparams.dropout)
        else:
            width, dropout = hparams.hidden[0], hparams.dropout
            self.denoiser = resnet_denoiser(
                **table, width=width, hidden=2 * width, num_blocks=len(hparams.hidden), hidden_dropout=dropout
            )
        # A module, so that it is stored in checkpoints beside the last weights.
        self.average = copy.deepcopy(self.denoiser).requires_grad_(False) if hparams.ema_decay else None
        self.prior_kl = float(multinomial.prior_kl(self.alphas_cumprod, self.segments)) if self.segments else 0.0
        self.encoded = source.encoded
        if self.encoded is not None and self.segments:
            self.segments.check(self.encoded.categories)

    def on_fit_start(self) -> None:
        """Move the training part to the device. No buffer: DDP would send buffers around in every step."""
        self.encoded = type(self.encoded)(*(tensor.to(self.device) for tensor in self.encoded))
        self.compiled_losses = compiled(self.losses, self.device, self.hparams.compile)
        self.loss_sums, self.num_summed = torch.zeros(2, device=self.device), 0

    def training_step(self, batch: RowBatch, batch_index: int) -> Tensor:
        """One step down the sum of both losses."""
        losses = self.compiled_losses(*(tensor[batch.index] for tensor in self.encoded))
        # Single steps are too noisy to be read; nothing waits for the device but the step that is logged.
        self.loss_sums, self.num_summed = self.loss_sums + losses.detach(), self.num_summed + 1
        every = self.trainer.log_every_n_steps
        if every and (self.trainer.global_step + 1) % every == 0:
            means = self.loss_sums / self.num_summed
            self.log_dict({"train/gaussian_loss": means[0], "train/multinomial_loss": means[1]})
            self.log("train/loss", means.sum())
            self.loss_sums, self.num_summed = torch.zeros_like(self.loss_sums), 0
        return losses.sum()

    def losses(self, numericals: Tensor, categories: Tensor, target: Tensor) -> Tensor:
        """Means over a batch of the two losses (Kotelnikov et al., section 3, and the code's factors).

        Args:
            numericals: x_0, [batch, feature].
            categories: x_0, [batch, column] int64.
            target: [batch], read where it is a class.

        Returns:
            [2]: squared error of the predicted noise, mean over features (0 without any); T KL(q || p) of the
            categories and the prior's KL divergence, mean over columns, nats (0 without any).
        """
        num_steps = self.hparams.num_diffusion_steps
        step = self.draw_steps(len(target), target.device)
        noise = torch.randn_like(numericals)
        noisy = gaussian.q_sample(numericals, noise, self.alphas_cumprod, step)
        noisy_categories = categories
        if self.segments:
            noisy_categories = multinomial.q_sample(categories, self.alphas_cumprod, step, self.segments)
        predicted, logits = self.denoise(self.denoiser, noisy, noisy_categories, step, target)
        gaussian_loss = (noise - predicted).square().sum() / max(noise.numel(), 1)
        multinomial_loss = torch.zeros_like(gaussian_loss)
        if self.segments:
            kl = multinomial.posterior_kl(
                logits, categories, noisy_categories, self.alphas_cumprod, step, self.segments
            )
            multinomial_loss = (num_steps * kl.mean() + self.prior_kl) / self.segments.num_columns
        return torch.stack([gaussian_loss, multinomial_loss])

    def draw_steps(self, num_rows: int, device: torch.device) -> Tensor:
        """A diffusion step for each row of a batch, int64 [num_rows], each step as likely as any other."""
        num_steps = self.hparams.num_diffusion_steps
        if self.hparams.step_draws == "uniform":
            return torch.randint(num_steps, (num_rows,), device=device)
        part = torch.arange(num_rows, device=device) / num_rows  # rows are in random order already
        return ((part + torch.rand(1, device=device)) % 1 * num_steps).long().clamp(max=num_steps - 1)

    def denoise(
        self, network: torch.nn.Module, noisy: Tensor, categories: Tensor, step: Tensor, target: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Predicted noise [batch, feature] of the numericals, and logits [batch, category] of the clean categories."""
        row = noisy
        if self.segments:
            log = self.hparams.category_input == "log_one_hot"
            read = self.segments.log_one_hot(categories) if log else self.segments.one_hot(categories)
            row = torch.cat([noisy, read], dim=1)
        labels = target if len(self.codec.class_counts) else None
        return network(row, step, labels).split(self.sizes, dim=1)

    def optimizer_step(self, epoch: int, batch_index: int, *arguments: Any, **named: Any) -> None:
        """The optimiser's step, then the average's: a checkpoint is written before any hook at the end of a batch."""
        super().optimizer_step(epoch, batch_index, *arguments, **named)
        self.update_average(self.trainer.global_step)  # this step is not counted yet

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Average the weights, over fewer steps at first, so that where they began is soon forgotten."""
        if self.average is not None:
            pair = [list(network.parameters()) for network in (self.average, self.denoiser)]
            torch._foreach_lerp_(*pair, 1 - min(self.hparams.ema_decay, step / (9 + step)))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW; its rate stays for two steps, then falls linearly, so that the last step has 2 / steps of it."""
        hparams, num_steps = self.hparams, self.trainer.estimated_stepping_batches
        optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), lr=hparams.learning_rate, weight_decay=hparams.weight_decay, fused=True
        )
        falling = LambdaLR(optimizer, lambda step: 1 - max(step - 1, 0) / num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}

    @torch.no_grad()
    def sample(
        self, num_rows: int, generator: torch.Generator, conditions: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Draw rows: the reverse process from noise, with the averaged weights where there are any.

        Args:
            num_rows: how many.
            generator: source of randomness, on the module's device.
            conditions: values that columns have in every row. A class is what the network is told; other columns are
                held at their noised values in every step (Lugmayr et al., RePaint, CVPR 2022, without resampling), so
                that the others follow them approximately.

        Returns:
            A table like the training part.

        Raises:
            ValueError: ``num_rows`` is below 1, a condition names no column or value of the table, or the model has
                diverged.
        """
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows}: ask for at least one row")
        given = self.codec.encode_conditions(conditions or {})
        target, held = self.draw_target(num_rows, generator, given.target), self.hold(given)
        at_once = _ROWS_AT_ONCE_ON_CPU if self.device.type == "cpu" else _ROWS_AT_ONCE
        at_once = max(256, min(at_once, _NUMBERS_AT_ONCE // sum(self.sizes)))
        network = self.denoiser if self.average is None else self.average
        was_training = network.training
        network.eval()
        labels = [None] * -(-num_rows // at_once) if target is None else target.split(at_once)
        parts = [
            self.reverse(network, min(at_once, num_rows - at_once * i), labels[i], held, generator)
            for i in range(len(labels))
        ]
        network.train(was_training)
        numericals, categories = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        return self.codec.decode(numericals, categories, None if target is None else target.cpu(), conditions)

    def draw_target(self, num_rows: int, generator: torch.Generator, given: int | None) -> Tensor | None:
        """Classes of new rows, int64 [num_rows]; None in regression."""
        if not len(self.codec.class_counts):
            return None
        if given is not None:
            return torch.full((num_rows,), given, device=self.device)
        counts = torch.tensor(self.codec.class_counts, dtype=torch.float64, device=self.device)
        if not self.hparams.exact_proportions:
            return torch.multinomial(counts, num_rows, replacement=True, generator=generator)
        quota = counts / counts.sum() * num_rows
        rest = num_rows - int(quota.floor().sum())
        largest = (quota - quota.floor()).argsort(descending=True, stable=True)[:rest]
        quota = quota.floor().long().index_add(0, largest, torch.ones_like(largest))
        order = torch.randperm(num_rows, generator=generator, device=self.device)
        return torch.arange(len(counts), device=self.device).repeat_interleave(quota)[order]

    def hold(self, given: Conditions) -> Held:
        """Conditions as `reverse` takes them: made once for all rows, since each copy waits for the device."""
        categories = torch.zeros(self.segments.num_columns if self.segments else 0, dtype=torch.int64)
        for column, category in given.categories.items():
            categories[column] = category
        features, columns = (torch.tensor([*each], dtype=torch.int64) for each in (given.numericals, given.categories))
        held = Held(features, torch.tensor([*given.numericals.values()]), columns, categories)
        return Held(*(tensor.to(self.device) for tensor in held))

    def reverse(
        self,
        network: torch.nn.Module,
        num_rows: int,
        target: Tensor | None,
        held: Held,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The reverse process: numericals [num_rows, feature] and categories [num_rows, column] int64."""
        signal = self.alphas_cumprod[self.sampled_steps]
        places = torch.arange(len(signal), device=self.device).split(1)
        steps = self.sampled_steps.split(1)

        def noise() -> Tensor:
            return torch.randn(num_rows, self.sizes[0], generator=generator, device=self.device)

        numericals = noise()
        categories = torch.zeros(num_rows, 0, dtype=torch.int64, device=self.device)
        if self.segments:
            categories = multinomial.uniform_sample(num_rows, self.segments, generator)
        features, columns = held.features, held.columns
        known = held.values.expand(num_rows, -1)
        known_categories = held.categories.expand(num_rows, -1)
        for step, place in zip(reversed(steps), reversed(places), strict=True):
            if len(features):
                noisy = gaussian.q_sample(known, noise().index_select(1, features), signal, place)
                numericals = numericals.index_copy(1, features, noisy)
            if len(columns):
                noisy = multinomial.q_sample(known_categories, signal, place, self.segments, generator)
                categories = categories.index_copy(1, columns, noisy.index_select(1, columns))
            predicted, logits = self.denoise(network, numericals, categories, step, target)
            numericals = gaussian.reverse_step(numericals, predicted, noise(), self.coefficients, place)
            if self.segments:
                categories = multinomial.reverse_step(logits, categories, signal, place, self.segments, generator)
        numericals = numericals.index_copy(1, features, known)
        return numericals, categories.index_copy(1, columns, known_categories.index_select(1, columns))
