"""Pre-training of a diffusion UNet on images without annotation, whose features then segment them.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, NeurIPS 2020, with the learnt variance and the hybrid loss
of Nichol and Dhariwal, Improved DDPM, ICML 2021, and the network of Dhariwal and Nichol, Diffusion Models Beat GANs,
NeurIPS 2021: what the published networks of Baranchuk et al. (ICLR 2022) were trained by. The defaults are a network
for images of 64 pixels that a CPU can train; the published one is `UNet`'s own default.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import lightning as L
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.distributions.noise import normal_by_row
from lightning_modules.networks.unet import UNet
from lightning_modules.processes import gaussian, schedules

_BITS = 1.4426950408889634  # of a nat
_GOLDEN = 0.6180339887498949  # its multiples modulo 1 spread evenly


class ImageBatch(Protocol):
    """Images without annotation (the data side defines the type)."""

    images: Tensor  # [batch, 3, height, width] uint8
    index: Tensor  # [batch] int64, row in the part


class DiffusionLosses(NamedTuple):
    """What the loss is made of, for each image."""

    mse: Tensor  # [batch] squared error of the predicted noise, mean over the image's numbers
    bound: Tensor  # [batch] term of the variational bound times the number of steps, bits per dimension


class DiffusionPretraining(L.LightningModule):
    """Denoising diffusion of images.

    Args:
        image_size: height and width of the images, in pixels.
        base_width: see `UNet`, like the next five.
        channel_multipliers: of the levels.
        num_residual_blocks: of a level.
        attention_resolutions: in pixels.
        channels_per_head: of the attention.
        dropout: in training.
        num_diffusion_steps: steps from image to noise, with the linear schedule.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        warm_up_steps: optimizer steps over which the learning rate rises from 0.
        bound_weight: of the variational bound, in bits per dimension, beside the squared error.
        ema_decay: decay an optimizer step of the averaged weights, less at first (step / (9 + step), from step 0 on).
            They are what is validated, sampled and used for features.
        evaluation_repeats: steps at which each image is scored.

    Raises:
        ValueError: an argument is out of range.
    """

    mixed_precision_on = ("cuda", "cpu")  # convolutions fill nearly all of a step; the losses are float32

    def __init__(
        self,
        image_size: int = 64,
        base_width: int = 32,
        channel_multipliers: Sequence[int] = (1, 2, 4, 6),
        num_residual_blocks: int = 1,
        attention_resolutions: Sequence[int] = (8,),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        num_diffusion_steps: int = 1000,
        learning_rate: float = 2e-4,
        weight_decay: float = 0.0,
        warm_up_steps: int = 200,
        bound_weight: float = 1e-3,
        ema_decay: float = 0.999,
        evaluation_repeats: int = 4,
    ) -> None:
        super().__init__()
        if not 0 < ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay} must lie between 0 and 1")
        if min(evaluation_repeats, warm_up_steps + 1) < 1:
            raise ValueError(
                f"evaluation_repeats={evaluation_repeats} must be at least 1, warm_up_steps={warm_up_steps} at least 0"
            )
        self.save_hyperparameters()
        self.network = UNet(
            image_size, 3, 6, base_width, channel_multipliers, num_residual_blocks, attention_resolutions,
            channels_per_head, dropout,
        ).to(memory_format=torch.channels_last)  # fmt: skip
        # A module, so that it is stored in checkpoints beside the last weights.
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        betas = schedules.scaled_linear(num_diffusion_steps)
        self.register_buffer("alphas_cumprod", schedules.alphas_cumprod(betas), persistent=False)  # [step] float64

    def training_step(self, batch: ImageBatch, batch_index: int) -> Tensor:
        """One step down the hybrid loss (Nichol and Dhariwal, 2021, equation 16)."""
        start = scaled(batch.images)
        step = torch.randint(self.hparams.num_diffusion_steps, (len(start),), device=self.device)
        losses = self.losses(self.network, start, torch.randn_like(start), step)
        mse, bound = losses.mse.mean(), losses.bound.mean()
        self.log_dict({"train/mse": mse, "train/bits_per_dim": bound})
        return mse + self.hparams.bound_weight * bound

    def losses(self, network: UNet, start: Tensor, noise: Tensor, step: Tensor) -> DiffusionLosses:
        """Both losses of each image.

        Args:
            network: the one that is trained, or its average.
            start: x_0, [batch, 3, height, width] in [-1, 1].
            noise: standard normal, of the same shape.
            step: [batch] int64.
        """
        signal = self.alphas_cumprod
        noisy = gaussian.q_sample(start, noise, signal, step)
        predicted, fraction = network(noisy, step).float().chunk(2, dim=1)  # [batch, 3, height, width] each
        # The bound trains the variance only.
        mean = gaussian.reverse_mean(noisy, predicted.detach(), signal, step)
        log_variance = gaussian.learned_log_variance(fraction, signal, step)
        term = gaussian.bound_term(start, noisy, mean, log_variance, signal, step)
        mse = (noise - predicted).square().flatten(1).mean(1)
        return DiffusionLosses(mse, term * (_BITS * self.hparams.num_diffusion_steps))

    def optimizer_step(self, epoch: int, batch_index: int, *arguments: Any, **named: Any) -> None:
        """The optimizer's step, then the average's: a checkpoint is written before any hook at the end of a batch."""
        super().optimizer_step(epoch, batch_index, *arguments, **named)
        self.update_average(self.trainer.global_step)  # this step is not counted yet

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Average the weights, over fewer steps at first, so that where they began is soon forgotten."""
        pair = [list(network.parameters()) for network in (self.average, self.network)]
        torch._foreach_lerp_(*pair, 1 - min(self.hparams.ema_decay, step / (9 + step)))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, its rate rising from 0 at first."""
        hparams = self.hparams
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=hparams.learning_rate, weight_decay=hparams.weight_decay, fused=True
        )
        rising = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (hparams.warm_up_steps + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rising, "interval": "step"}}

    def validation_step(self, batch: ImageBatch, batch_index: int) -> DiffusionLosses:
        """Losses of the averaged weights at steps and with noise that belong to the image's row alone."""
        start = scaled(batch.images)
        hparams, repeats = self.hparams, self.hparams.evaluation_repeats
        first = batch.index.double() * _GOLDEN % 1  # [batch]
        sums = [torch.zeros(len(start), device=self.device) for _ in DiffusionLosses._fields]
        for repeat in range(repeats):  # one step from each of as many equal parts of all
            step = ((first + repeat) / repeats * hparams.num_diffusion_steps).long()
            noise = normal_by_row(batch.index, tuple(start.shape[1:]), seed=repeat)
            losses = self.losses(self.average, start, noise, step)
            sums = [total + loss for total, loss in zip(sums, losses, strict=True)]
        return DiffusionLosses(*(total / repeats for total in sums))

    def test_step(self, batch: ImageBatch, batch_index: int) -> DiffusionLosses:
        """As in validation."""
        return self.validation_step(batch, batch_index)

    @torch.no_grad()
    def sample(self, num_images: int, generator: torch.Generator, sampling_steps: int | None = None) -> Tensor:
        """Draw images with the averaged weights: the reverse process from noise, x_0 kept in its range.

        Args:
            num_images: how many.
            generator: source of randomness, on the module's device.
            sampling_steps: network calls, strided over all diffusion steps; None: all of them.

        Returns:
            [num_images, 3, image_size, image_size] uint8.

        Raises:
            ValueError: ``num_images`` is below 1, or ``sampling_steps`` below 2 or beyond all steps.
        """
        if num_images < 1 or (sampling_steps is not None and sampling_steps < 2):
            raise ValueError(f"num_images={num_images} must be at least 1, sampling_steps={sampling_steps} at least 2")
        hparams = self.hparams
        steps = schedules.strided_steps(hparams.num_diffusion_steps, sampling_steps or hparams.num_diffusion_steps)
        steps = steps.to(self.device)
        signal = self.alphas_cumprod[steps]  # of the process that makes these steps only
        shape = (num_images, 3, hparams.image_size, hparams.image_size)
        was_training = self.average.training
        self.average.eval()
        noisy = torch.randn(shape, generator=generator, device=self.device)
        for place in reversed(range(len(steps))):
            step = torch.full((num_images,), place, device=self.device)
            predicted, fraction = self.average(noisy, steps[step]).float().chunk(2, dim=1)
            mean = gaussian.reverse_mean(noisy, predicted, signal, step, clip=True)
            if place == 0:
                noisy = mean
                break
            log_variance = gaussian.learned_log_variance(fraction, signal, step)
            noise = torch.randn(shape, generator=generator, device=self.device)
            noisy = mean + (log_variance / 2).exp() * noise
        self.average.train(was_training)
        return ((noisy + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def scaled(images: Tensor) -> Tensor:
    """[batch, 3, height, width] uint8 to float32 in [-1, 1], channels side by side in memory."""
    return images.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1
