"""Student's t distribution with four degrees of freedom: noise with heavy tails that is as easy to draw as a normal."""

import math

import torch
from torch import Tensor


class StudentT4:
    """Entries loc + scale * t, independent, t being Student's with four degrees of freedom.

    Its density falls as |t|^-5 where a normal's falls exponentially, so that a wild value costs little and moves
    nothing else. Of all numbers of degrees of freedom with a finite variance, which here is 2 scale^2, four is the one
    for which the quantiles have a closed form (Shaw, Sampling Student's T distribution, Journal of Computational
    Finance 2006, section 4.2).

    Args:
        loc: any shape; mean, median and mode.
        scale: positive, of a shape that broadcasts to that of ``loc``.
    """

    def __init__(self, loc: Tensor, scale: Tensor | float) -> None:
        self.loc, self.scale = loc, torch.as_tensor(scale, dtype=loc.dtype, device=loc.device)

    @property
    def mean(self) -> Tensor:
        """The location."""
        return self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each entry, in nats; the shape of ``loc``."""
        standard = (value - self.loc) / self.scale
        return math.log(3 / 8) - 2.5 * torch.log1p(standard.square() / 4) - self.scale.log()

    def transform(self, noise: Tensor) -> Tensor:
        """The value whose probability of not being exceeded is that of standard normal noise; the shape of ``loc``."""
        exact = noise.double()  # 1 - tail and ratio - 1 cancel
        tail = 0.5 * torch.erfc(exact.abs() / math.sqrt(2))  # torch's ndtr has no digits left at 8 deviations
        root = (4 * tail * (1 - tail)).clamp(torch.finfo(torch.float64).tiny, 1).sqrt()
        ratio = torch.cos(torch.arccos(root) / 3) / root
        return self.loc + self.scale * (exact.sign() * 2 * (ratio - 1).clamp(min=0).sqrt()).to(noise.dtype)
