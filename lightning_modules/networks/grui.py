"""The recurrent cell of GRUI-GAN: a GRU whose state fades with the time since values were last observed.

Luo, Cai, Zhang, Xu, Yuan: Multivariate Time Series Imputation with Generative Adversarial Networks, NeurIPS 2018. All
series are time-major here, [time, batch, feature].
"""

import torch
from torch import Tensor, nn

from lightning_modules.networks.mlp import glorot_


def time_since_observed(observed_mask: Tensor, times: Tensor) -> Tensor:
    """Time at each step since the last step before it that was observed, or since the first step: the paper's delta.

    Args:
        observed_mask: [time, batch, feature] bool.
        times: [time, batch or 1] time stamps, ascending.

    Returns:
        [time, batch, feature] in the unit of ``times``; 0 at the first step.
    """
    times = times[..., None]
    last = torch.where(observed_mask, times, times[:1]).cummax(0).values
    return nn.functional.pad(times[1:] - last[:-1], (0, 0, 0, 0, 1, 0))


class GRUI(nn.Module):
    """Gated recurrent unit for imputation: before each step the state is multiplied by exp(-max(0, W delta + b)).

    Args:
        num_features: features of a time step.
        hidden_size: size of the state.
    """

    def __init__(self, num_features: int, hidden_size: int) -> None:
        super().__init__()
        self.decay = nn.Linear(num_features, hidden_size)
        self.input = nn.Linear(num_features, 3 * hidden_size)  # reset gate, update gate, candidate
        self.gates = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.candidate = nn.Linear(hidden_size, hidden_size, bias=False)
        glorot_(self)
        with torch.no_grad():
            self.input.bias[: 2 * hidden_size] = 1.0  # as TensorFlow's cell: neither reset nor update at first

    def decays(self, delta: Tensor) -> Tensor:
        """[time, batch, hidden] factors in (0, 1] for ``delta`` [time, batch, feature]."""
        raw = self.decay(delta.to(self.decay.weight.dtype))  # stamps, and so their differences, are float64
        return torch.exp(-raw.relu()).to(raw.dtype)  # autocast leaves exp in float32

    def step(self, projected: tuple[Tensor, Tensor], decay: Tensor, state: Tensor) -> Tensor:
        """The next state, [batch, hidden].

        Args:
            projected: what ``input`` makes of the step's input, [batch, 2 hidden] for the gates and [batch, hidden].
            decay: [batch or 1, hidden].
            state: [batch, hidden].
        """
        state = state * decay
        reset, update = torch.addmm(projected[0], state, self.gates.weight.T).sigmoid().chunk(2, dim=1)
        candidate = torch.addmm(projected[1], reset * state, self.candidate.weight.T).tanh()
        return torch.lerp(candidate, state, update)  # update * state + (1 - update) * candidate

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """The gates' and the candidate's part of what ``input`` gives."""
        size = self.candidate.in_features
        return projected.split([2 * size, size], dim=-1)

    def forward(self, inputs: Tensor, delta: Tensor) -> list[Tensor]:
        """States after each step, [batch, hidden] each, for ``inputs`` and ``delta`` [time, batch, feature]."""
        gates, candidates = self.split(self.input(inputs))
        state, states = torch.zeros_like(candidates[0]), []
        for *projected, decay in zip(gates.unbind(), candidates.unbind(), self.decays(delta).unbind(), strict=True):
            state = self.step(projected, decay, state)
            states.append(state)
        return states
