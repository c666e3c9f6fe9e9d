"""Gaussian process priors at fixed times, factorised once in float64."""

import math

import torch
from torch import Tensor, nn


class GaussianProcessPrior(nn.Module):
    """Zero-mean Gaussian process at T fixed times: everything a divergence from it needs, computed once.

    The covariance is factorised in float64 on the CPU and only the results are rounded to `dtype`: the inverse of a
    smooth kernel is ill-conditioned, and rounding before the inversion would cost several digits more.

    The buffers follow `.to(device)` and stay out of the state_dict, since the covariance determines them. No gradient
    flows into the covariance.

    Attributes:
        precision: [..., T, T], K^-1.
        whitening: [..., T, T], W = C^-1 with K = C C^T and C lower triangular, so that W K W^T = I.
        log_det_covariance: [...], log |K|.

    Args:
        covariance: K [..., T, T], symmetric and positive definite. One prior, or several along the leading dimensions.
        dtype: floating type of the buffers; None stands for torch.get_default_dtype().
        index: int64 vector, for each prior which of the covariances along their last leading dimension it has; that
            dimension gets the length of the index, and nothing is factorised twice. None: each its own.

    Raises:
        ValueError: if the covariance is not square, not finite, not symmetric or not positive definite.
        TypeError: if the covariance is not of a floating type.
    """

    precision: Tensor
    whitening: Tensor
    log_det_covariance: Tensor

    def __init__(self, covariance: Tensor, dtype: torch.dtype | None = None, index: Tensor | None = None) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        factor = _cholesky(covariance)
        log_det_covariance = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        identity = torch.eye(factor.shape[-1], dtype=torch.float64).expand_as(factor)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False)
        buffers = {
            "precision": whitening.mT @ whitening,
            "whitening": whitening,
            "log_det_covariance": log_det_covariance,
        }
        if index is not None:
            places = index.cpu()
            buffers = {
                name: value[..., places] if name == "log_det_covariance" else value[..., places, :, :]
                for name, value in buffers.items()
            }
        for name, value in buffers.items():
            buffer = value.to(device=covariance.device, dtype=dtype, memory_format=torch.contiguous_format)
            self.register_buffer(name, buffer, persistent=False)

    @property
    def num_steps(self) -> int:
        """Number of time steps T."""
        return self.precision.shape[-1]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats of `value` [..., T] under N(0, K); [...]."""
        whitened = (self.whitening @ value.unsqueeze(-1)).squeeze(-1)  # [..., T]
        return -0.5 * (whitened.square().sum(-1) + self.log_det_covariance + self.num_steps * math.log(2 * math.pi))


def _cholesky(covariance: Tensor) -> Tensor:
    """Lower Cholesky factor in float64 on the CPU, with errors that say what to change."""
    if not covariance.is_floating_point():
        raise TypeError(f"covariance has dtype {covariance.dtype}; convert it to a floating type, best torch.float64")
    if covariance.ndim < 2 or covariance.shape[-1] != covariance.shape[-2] or covariance.shape[-1] == 0:
        raise ValueError(f"covariance has shape {tuple(covariance.shape)}, expected [..., T, T] with T >= 1")
    matrix = covariance.detach().to(device="cpu", dtype=torch.float64)
    if not matrix.isfinite().all():
        raise ValueError("covariance has entries that are not finite; check the times and the kernel's arguments")
    scale = matrix.abs().amax((-2, -1))
    asymmetry = ((matrix - matrix.mT).abs().amax((-2, -1)) / scale).max().item()
    if asymmetry > 1e-5:
        raise ValueError(f"covariance is not symmetric: |K - K^T| reaches {asymmetry:.1e} of its largest entry")
    factor, info = torch.linalg.cholesky_ex((matrix + matrix.mT) / 2)
    if info.any():
        smallest = torch.linalg.eigvalsh(matrix).min().item()
        raise ValueError(
            f"covariance is not positive definite: its smallest eigenvalue is {smallest:.3g}; "
            "raise the kernel's jitter (1e-3 suits a variance near 1), or remove duplicate times"
        )
    return factor
