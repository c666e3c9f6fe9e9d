"""Gaussian over time whose precision has a bidiagonal factor: the posterior of GP-VAE, in linear memory.

Fortuin et al., "GP-VAE: Deep Probabilistic Time Series Imputation", AISTATS 2020, section 3.3. The precision is U U^T
with U upper bidiagonal, so that y = z - mean is a Gaussian Markov chain

    y_0 = noise_0 / d_0,    y_t = decay_{t-1} y_{t-1} + noise_t / d_t,    decay_t = -e_t / d_{t+1},

with d the diagonal of U and e its super-diagonal. Sampling, densities, variances and log-determinants are recurrences
of length T, and a covariance at lag j is a variance times j decays, so no [T, T] matrix per series is ever formed.

Inside, tensors are time-major, [time, series]: a step of a recurrence is then one contiguous row.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lightning_modules.distributions.gaussian_process import GaussianProcessPrior

# Entries of a [time, series] tile in which the trace is computed. Its intermediate results take about
# 4 (1.5 log2(T) + 7) bytes an entry in float32, so this bounds them near 100 MB for any number of series.
_TILE = 1 << 20


class KLDivergence(NamedTuple):
    """The two parts, in nats, of KL(q || p) between Gaussians over T steps, each [...]; the divergence is their sum.

    Attributes:
        variance_part: 1/2 (log|K| - log|Sigma| - T + tr(K^-1 Sigma)), which the mean does not enter.
        mean_part: 1/2 mean^T K^-1 mean; near 0 when the latent variables carry nothing about the data.
    """

    variance_part: Tensor
    mean_part: Tensor


class BandedGaussian:
    """Gaussian N(mean, (U U^T)^-1) over T time steps, U upper bidiagonal, for any number of series.

    Everything is differentiable once (not twice) in the three arguments, in float32 and float64. Half precision is
    computed in float32, also under autocast. Signs and sizes of the entries are not checked, since that would stall an
    accelerator: keep `diagonal` positive.

    Args:
        mean: [..., T].
        diagonal: U_{t,t} > 0, [..., T].
        off_diagonal: U_{t,t+1} of either sign, [..., T - 1]; a negative one correlates neighbours positively.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the arguments differ in dtype or are not of a floating type.
    """

    def __init__(self, mean: Tensor, diagonal: Tensor, off_diagonal: Tensor) -> None:
        expected = (*mean.shape[:-1], mean.shape[-1] - 1) if mean.ndim else None
        if not expected or expected[-1] < 0 or diagonal.shape != mean.shape or tuple(off_diagonal.shape) != expected:
            raise ValueError(
                "expected mean [..., T], diagonal [..., T] and off_diagonal [..., T - 1] with T >= 1 and equal leading "
                f"dimensions, got {tuple(mean.shape)}, {tuple(diagonal.shape)} and {tuple(off_diagonal.shape)}"
            )
        if not (mean.is_floating_point() and mean.dtype == diagonal.dtype == off_diagonal.dtype):
            raise TypeError(
                "mean, diagonal and off_diagonal need one floating dtype, got "
                f"{mean.dtype}, {diagonal.dtype} and {off_diagonal.dtype}; convert them to the mean's"
            )
        if mean.dtype in (torch.float16, torch.bfloat16):
            mean, diagonal, off_diagonal = mean.float(), diagonal.float(), off_diagonal.float()
        self.mean, self.diagonal, self.off_diagonal = mean, diagonal, off_diagonal
        self._diagonal = _time_major(diagonal)  # [T, series]
        self._scale = self._diagonal.reciprocal()  # standard deviation of y_t given y_{t-1}
        self._decay = -_time_major(off_diagonal) * self._scale[1:]  # [T - 1, series]

    @property
    def _variance(self) -> Tensor:
        """Marginal variances [T, series]."""
        return _Recurrence.apply(self._decay.square(), self._scale.square())

    @property
    def _half_log_det_precision(self) -> Tensor:
        """Sum of the log diagonal, [series]."""
        return self._diagonal.log().sum(0)

    def _per_series(self, value: Tensor) -> Tensor:
        """From [series] to the leading dimensions [...]."""
        return value.reshape(self.mean.shape[:-1])

    def _per_step(self, value: Tensor) -> Tensor:
        """From [T, series] to [..., T]."""
        return value.reshape(value.shape[:1] + self.mean.shape[:-1]).movedim(0, -1)

    @property
    def variance(self) -> Tensor:
        """Marginal variances, the diagonal of the covariance, [..., T]."""
        return self._per_step(self._variance)

    @property
    def log_det_covariance(self) -> Tensor:
        """Logarithm of the covariance's determinant, -2 sum_t log d_t, [...]."""
        return self._per_series(-2 * self._half_log_det_precision)

    def covariance(self) -> Tensor:
        """Dense covariance [..., T, T]: quadratic in memory, for checks on short series only."""
        factor = torch.diag_embed(self.diagonal) + torch.diag_embed(self.off_diagonal, offset=1)
        inverse = torch.linalg.inv(factor)
        return inverse.mT @ inverse

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """One reparametrised sample per series, [..., T]; `generator` must live on the mean's device."""
        shape = (self.mean.shape[-1], *self.mean.shape[:-1])  # time-major in memory, so that nothing is transposed
        noise = torch.randn(shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.transform(noise.movedim(0, -1))

    def transform(self, noise: Tensor) -> Tensor:
        """The sample mean + U^-T noise that standard normal `noise` [..., T] stands for, [..., T].

        Raises:
            ValueError: if the noise has not the mean's shape.
        """
        if noise.shape != self.mean.shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, expected the mean's {tuple(self.mean.shape)}")
        deviation = _Recurrence.apply(self._decay, _time_major(noise.to(self.mean.dtype)) * self._scale)
        return self.mean + self._per_step(deviation)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of `value` [..., T] in nats, [...].

        Raises:
            ValueError: if the value has not the mean's shape.
        """
        if value.shape != self.mean.shape:
            raise ValueError(f"value has shape {tuple(value.shape)}, expected the mean's {tuple(self.mean.shape)}")
        deviation = value - self.mean
        whitened = self.diagonal * deviation  # U^T (value - mean), the noise behind the value
        coupling = self.off_diagonal * deviation[..., :-1]
        whitened = torch.cat([whitened[..., :1], whitened[..., 1:] + coupling], dim=-1)
        normaliser = self._per_series(self._half_log_det_precision) - 0.5 * value.shape[-1] * math.log(2 * math.pi)
        return normaliser - 0.5 * whitened.square().sum(-1)

    def kl_divergence(self, prior: GaussianProcessPrior | Tensor) -> KLDivergence:
        """Exact KL(self || N(0, K)) of every series, in two parts, each [...], in nats.

        Takes O(T^2) operations a series, nearly all of them in matrix products with the shared K^-1; all else is
        O(T log T), and so is the memory.

        Args:
            prior: K [..., T, T], whose leading dimensions broadcast against those of the mean, or the
                GaussianProcessPrior built from it. A tensor is factorised anew in float64 at every call; build the
                prior once where it stays the same. No gradient flows into the prior.

        Raises:
            ValueError: if shapes do not fit, or the covariance is not positive definite.
            TypeError: if the prior's dtype is not the mean's.
        """
        if isinstance(prior, Tensor):
            prior = GaussianProcessPrior(prior, dtype=self.mean.dtype)
        num_steps = self.mean.shape[-1]
        order, shape = _grouping(prior, self.mean)  # series that share a prior go side by side
        precision = prior.precision.reshape(-1, num_steps, num_steps)  # [group, T, T]
        whitening = prior.whitening.reshape(-1, num_steps, num_steps)
        log_det_prior = prior.log_det_covariance.reshape(-1, 1)

        def grouped(value: Tensor) -> Tensor:  # [T, series] -> [group, T, series of a group]
            value = value.reshape(len(value), *self.mean.shape[:-1]).permute(0, *(axis + 1 for axis in order))
            return value.reshape(len(value), len(precision), shape.numel() // len(precision)).transpose(0, 1)

        def ungrouped(value: Tensor) -> Tensor:  # [group, series of a group] -> [...]
            return value.reshape(shape).permute(sorted(range(len(order)), key=order.__getitem__))

        # Autocast would send the products to half precision, in which an ill-conditioned prior is lost.
        with torch.autocast(self.mean.device.type, enabled=False):
            # |W m|^2 keeps half of the digits that m^T P m would cancel for a smooth prior.
            squared_norm = (whitening @ grouped(_time_major(self.mean))).square().sum(1)  # [group, series of a group]
            trace = _Trace.apply(precision, grouped(self._decay), grouped(self._variance))
        variance_part = ungrouped(0.5 * (log_det_prior - num_steps + trace))
        variance_part = variance_part + self._per_series(self._half_log_det_precision)
        return KLDivergence(variance_part, ungrouped(0.5 * squared_norm))


def _time_major(value: Tensor) -> Tensor:
    """From [..., T] to contiguous [T, series]."""
    return value.movedim(-1, 0).reshape(value.shape[-1], value.shape[:-1].numel()).contiguous()


def _grouping(prior: GaussianProcessPrior, mean: Tensor) -> tuple[list[int], torch.Size]:
    """Order of the leading axes that puts those along which the prior varies first, and their sizes in that order."""
    lead, prior_lead = mean.shape[:-1], prior.log_det_covariance.shape
    padded = (1,) * (len(lead) - len(prior_lead)) + tuple(prior_lead)
    fits = len(padded) == len(lead) and all(size in (1, full) for size, full in zip(padded, lead, strict=True))
    if prior.num_steps != mean.shape[-1] or not fits:
        raise ValueError(
            f"the prior's covariance {tuple(prior.precision.shape)} does not broadcast to [..., T, T] "
            f"for a mean [..., T] of shape {tuple(mean.shape)}"
        )
    if prior.precision.dtype != mean.dtype:
        raise TypeError(
            f"the prior is {prior.precision.dtype} and the distribution {mean.dtype}; "
            f"build it as GaussianProcessPrior(covariance, dtype={mean.dtype})"
        )
    order = sorted(range(len(lead)), key=lambda axis: padded[axis] == 1)
    return order, torch.Size(lead[axis] for axis in order)


def _refuse_second_derivatives() -> None:
    """Called in a backward pass, where gradients are enabled only if the pass is to be differentiated in turn."""
    if torch.is_grad_enabled():
        raise RuntimeError("BandedGaussian is differentiable once only; take its gradient without create_graph=True")


class _Recurrence(torch.autograd.Function):
    """y_0 = drive_0, y_t = decay_{t-1} y_{t-1} + drive_t, with decay [T - 1, series] and drive [T, series]."""

    @staticmethod
    def forward(ctx: FunctionCtx, decay: Tensor, drive: Tensor) -> Tensor:
        state = torch.empty_like(drive)
        rows = state.unbind(0)
        rows[0].copy_(drive[0])
        for step, (decay_row, drive_row) in enumerate(zip(decay.unbind(0), drive.unbind(0)[1:], strict=True)):
            torch.addcmul(drive_row, decay_row, rows[step], out=rows[step + 1])
        ctx.save_for_backward(decay, state)
        return state

    @staticmethod
    def backward(ctx: FunctionCtx, grad_state: Tensor) -> tuple[Tensor, Tensor]:
        _refuse_second_derivatives()
        decay, state = ctx.saved_tensors
        grad_drive = torch.empty_like(state)  # the same recurrence, run backwards
        rows, grad_rows, decay_rows = grad_drive.unbind(0), grad_state.unbind(0), decay.unbind(0)
        rows[-1].copy_(grad_rows[-1])
        for step in range(len(rows) - 2, -1, -1):
            torch.addcmul(grad_rows[step], decay_rows[step], rows[step + 1], out=rows[step])
        return grad_drive[1:] * state[:-1], grad_drive


class _Trace(torch.autograd.Function):
    """tr(P Sigma) [group, series] of Markov chains.

    From precision [group, T, T], decay [group, T - 1, series] and variance [group, T, series]. Each trace depends on
    its own series alone, so its gradient is computed in the forward pass, tile by tile: that bounds the memory, and
    the backward pass is left with a product.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, precision: Tensor, decay: Tensor, variance: Tensor) -> Tensor:
        num_steps, num_series = variance.shape[1:]
        tile = max(1, _TILE // num_steps)
        if tile >= num_series:
            trace, *gradients = _trace_and_gradients(precision, decay, variance)
        else:
            trace = variance.new_empty(len(variance), num_series)
            gradients = [torch.empty_like(decay), torch.empty_like(variance)]
            for start in range(0, num_series, tile):
                part = slice(start, start + tile)
                trace[:, part], gradients[0][..., part], gradients[1][..., part] = _trace_and_gradients(
                    precision, decay[..., part].contiguous(), variance[..., part].contiguous()
                )
        ctx.save_for_backward(*gradients)
        return trace

    @staticmethod
    def backward(ctx: FunctionCtx, grad_trace: Tensor) -> tuple[None, Tensor, Tensor]:
        _refuse_second_derivatives()
        decay_gradient, variance_gradient = ctx.saved_tensors
        return None, grad_trace[:, None] * decay_gradient, grad_trace[:, None] * variance_gradient


@functools.lru_cache(maxsize=64)
def _merges(num_steps: int) -> tuple[tuple[int, int, int, int], ...]:
    """Bottom-up merges of neighbouring blocks of time, from single steps to the whole: (start, pairs, left, right).

    Each entry merges `pairs` adjoining pairs of blocks of lengths `left` and `right`, the first of which begins at
    `start`. Only the last block of all may be shorter than its fellows, and then has an entry of its own.
    """
    merges = []
    size = 1
    while size < num_steps:
        pairs = num_steps // (2 * size)
        start = 2 * size * pairs
        if pairs:
            merges.append((0, pairs, size, size))
        if num_steps - start > size:
            merges.append((start, 1, size, num_steps - start - size))
        size *= 2
    return tuple(merges)


def _trace_and_gradients(precision: Tensor, decay: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tr(P Sigma) [group, series] with its derivatives by decay and variance, each taken with the other fixed.

    With Sigma_{t,u} = variance_t decay_t ... decay_{u-1} for t < u, the pairs (t, u) that meet when a block of time is
    merged with its right neighbour contribute 2 leave_t P_{t,u} enter_u, where
        enter_u = product of decay from u's block's first step to u,
        leave_t = variance_t times the product of decay from t through the edge behind t's block.
    That is one matrix product per merge, as P is shared by the series; a merge then multiplies `enter` of its right
    half by the decay across the left half, and `leave` of its left half by the decay across the right half. log2(T)
    rounds of merges meet every pair once. The second loop is the first one's adjoint.
    """
    num_groups, num_steps, _ = variance.shape
    edge = torch.nn.functional.pad(decay, (0, 0, 0, 1))  # [group, T, series]; no edge leaves the last step
    enter, leave = torch.ones_like(variance), variance * edge
    doubled = 2 * precision.contiguous()
    merges = _merges(num_steps)

    def paired(value: Tensor, start: int, pairs: int, length: int) -> Tensor:  # a view [group, pairs, length, series]
        return value[:, start : start + pairs * length].unflatten(1, (pairs, length))

    tape = []
    for start, pairs, left, right in merges:
        where = (start, pairs, left + right)
        block = doubled.as_strided(
            (num_groups, pairs, left, right),
            (num_steps * num_steps, (left + right) * (num_steps + 1), num_steps, 1),
            start * (num_steps + 1) + left,
        )
        enters, leaves, edges = (paired(value, *where) for value in (enter, leave, edge))
        enter_right, leave_left = enters[:, :, left:].clone(), leaves[:, :, :left].clone()
        enter_left_end = enters[:, :, left - 1].clone()
        across_left = (enter_left_end * edges[:, :, left - 1])[:, :, None]  # [group, pairs, 1, series]
        across_right = (enter_right[:, :, -1] * edges[:, :, -1])[:, :, None]
        enters[:, :, left:].mul_(across_left)
        leaves[:, :, :left].mul_(across_right)
        tape.append((where, left, block, enter_right, leave_left, enter_left_end, across_left, across_right))

    enter_bar, leave_bar, edge_bar = torch.zeros_like(edge), torch.zeros_like(edge), torch.zeros_like(edge)
    for where, left, block, enter_right, leave_left, enter_left_end, across_left, across_right in reversed(tape):
        enters_bar, leaves_bar, edges_bar, edges = (
            paired(value, *where) for value in (enter_bar, leave_bar, edge_bar, edge)
        )
        enter_right_bar, leave_left_bar = enters_bar[:, :, left:], leaves_bar[:, :, :left]
        across_left_bar = (enter_right_bar * enter_right).sum(2)  # [group, pairs, series]
        across_right_bar = (leave_left_bar * leave_left).sum(2)
        torch.addcmul(block @ enter_right, leave_left_bar, across_right, out=leave_left_bar)
        torch.addcmul(block.mT @ leave_left, enter_right_bar, across_left, out=enter_right_bar)
        enters_bar[:, :, left - 1].addcmul_(across_left_bar, edges[:, :, left - 1])
        edges_bar[:, :, left - 1].addcmul_(across_left_bar, enter_left_end)
        enters_bar[:, :, -1].addcmul_(across_right_bar, edges[:, :, -1])
        edges_bar[:, :, -1].addcmul_(across_right_bar, enter_right[:, :, -1])
    edge_bar.addcmul_(leave_bar, variance)
    variance_bar = torch.addcmul(precision.diagonal(dim1=-2, dim2=-1)[..., None], leave_bar, edge)
    trace = (variance * variance_bar).sum(1)  # which is linear in the variances
    return trace, edge_bar[:, :-1], variance_bar
