"""Time of the GP's marginal likelihood and its gradient, beside GPyTorch; needs the extra `bench`.

Run: python -m experiments.benchmarks.gp_likelihood [--repeats 10] [--threads 1]

One and the same batch of random data of PhysioNet's shape, 80 % missing, each series at places of its own; the two take
turns in one process, and a likelihood or gradient that is off is not timed. GPyTorch's own exact likelihood takes one
set of stamps for a whole batch (its policy "mask" drops a stamp that any series lacks, and "fill" is not for it). So it
is given the padded covariance that ours has, and computes it with its kernel, and the density with its distribution.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from datamodules.imputation.batch import SeriesBatch
from experiments.benchmarks.measure import alternate, largest_error, timing_options
from experiments.benchmarks.whole_step import print_times, random_series
from experiments.build import build_module
from experiments.config import compose
from lightning_modules.imputation.gp import GP, MINIMUM_NOISE_VARIANCE

INSTALL = "GPyTorch is not installed, so it was not run. To compare with it: pip install -e '.[bench]'"
TOLERANCE = 1e-6

Form = Callable[[], list[Tensor]]  # to the loss and its gradients by mean, log length scale, log variance, log noise


def ours(module: GP, batch: SeriesBatch) -> Form:
    """The module's loss and its gradients."""

    def run() -> list[Tensor]:
        module.zero_grad()
        loss = module.loss(batch)
        return [loss.detach(), *torch.autograd.grad(loss, list(module.parameters()))]

    return run


class GPyTorchProcesses:
    """GPyTorch's parts with the module's hyper-parameters: one process for each feature."""

    def __init__(self, module: GP) -> None:
        import gpytorch

        num_features = module.hparams.num_features
        shape = torch.Size([num_features])
        smoothness = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}[module.hparams.kernel]
        kernel = gpytorch.kernels.MaternKernel(nu=smoothness, batch_shape=shape)
        self.kernel = gpytorch.kernels.ScaleKernel(kernel, batch_shape=shape).double()
        self.kernel.base_kernel.lengthscale = module.log_length_scale.detach().double().exp()[:, None, None]
        self.kernel.outputscale = module.log_variance.detach().double().exp()
        self.mean = module.prior_mean.detach().double().requires_grad_()
        self.log_excess_noise = module.log_excess_noise.detach().double().requires_grad_()
        self.distribution = gpytorch.distributions.MultivariateNormal

    def noise_variance(self) -> Tensor:
        """[feature]."""
        return MINIMUM_NOISE_VARIANCE + self.log_excess_noise.exp()

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """The loss, and its gradients by our parameters from those by GPyTorch's, which are inverse softplus."""
        base = self.kernel.base_kernel
        raw = [base.raw_lengthscale, self.kernel.raw_outputscale]
        by_mean, *by_raw, by_noise = torch.autograd.grad(loss, [self.mean, *raw, self.log_excess_noise])
        by_log = [
            (gradient * positive / each.sigmoid()).detach().flatten()
            for gradient, positive, each in zip(by_raw, (base.lengthscale, self.kernel.outputscale), raw, strict=True)
        ]
        return [loss.detach(), by_mean, *by_log, by_noise]


def gpytorch_form(module: GP, batch: SeriesBatch) -> Form:
    """GPyTorch, with rows of the identity where nothing is observed."""
    processes = GPyTorchProcesses(module)
    from linear_operator import to_linear_operator  # comes with GPyTorch

    observed = batch.observed_mask.mT  # [batch, feature, time]
    missing = (~observed).sum(-1)
    times = torch.arange(batch.values.shape[1], dtype=torch.float64)[:, None]
    constant = torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64)) / 2

    def run() -> list[Tensor]:
        process = processes.kernel(times).to_dense()  # [feature, time, time]
        residual = torch.where(observed, batch.values.mT.double() - processes.mean[:, None], 0.0)
        covariance = torch.where(observed[..., :, None] & observed[..., None, :], process, 0.0)
        noise = torch.where(observed, processes.noise_variance()[:, None], 1.0)
        covariance = covariance + noise.diag_embed()
        log_density = processes.distribution(torch.zeros_like(residual), to_linear_operator(covariance)).log_prob(
            residual
        )
        log_density = log_density + constant * missing  # a stamp that is not there counts as N(0; 0, 1)
        return processes.gradients(-log_density.sum(1).mean())

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table.

    Raises:
        RuntimeError: the likelihood or a gradient of GPyTorch is another than ours.
    """
    parser = argparse.ArgumentParser(description="Time of the GP's marginal likelihood and its gradient.")
    options = timing_options(parser, arguments, repeats=10)
    module = build_module(compose("gp_physionet"))
    batch = random_series(num_steps=48, num_features=module.hparams.num_features)
    print(f"\ngp_physionet, marginal likelihood and gradient, batch {list(batch.values.shape)}")
    forms = {"genpred": ours(module, batch)}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # of torch.jit, which GPyTorch uses
            forms["GPyTorch"] = gpytorch_form(module, batch)
    except ModuleNotFoundError as error:
        if error.name != "gpytorch":
            raise
        print(INSTALL)
    else:
        error = largest_error(forms["GPyTorch"](), [each.double() for each in forms["genpred"]()])
        if not error < TOLERANCE:
            raise RuntimeError(f"likelihood or gradients differ by {error:.1e}, more than {TOLERANCE:.0e}")
    print_times(alternate(forms, options.repeats), "GPyTorch", "genpred", "no slower than GPyTorch")


if __name__ == "__main__":
    main()
