"""The recurrence of BRITS: an LSTM that fills the gaps of what it reads by its own estimates, in both directions.

Cao, Wang, Li, Zhou, Li, Li: BRITS, Bidirectional Recurrent Imputation for Time Series, NeurIPS 2018, section 4.3. The
two directions are the first axis of every tensor and of every weight, so that a step of both is one batched product.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class DirectedLinear(nn.Module):
    """A dense layer of its own for each of the two directions, initialised uniformly in ±1 / sqrt(``fan``).

    Args:
        in_features: size of the last axis of the input.
        out_features: size of the last axis of the output.
        fan: sets the range of the initial values; None: ``in_features``.
    """

    def __init__(self, in_features: int, out_features: int, fan: int | None = None) -> None:
        super().__init__()
        bound = (fan or in_features) ** -0.5
        self.weight = nn.Parameter(torch.empty(2, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, 1, out_features).uniform_(-bound, bound))

    def forward(self, inputs: Tensor) -> Tensor:
        """From [2, ..., in_features] to [2, ..., out_features]."""
        return torch.baddbmm(self.bias, inputs.flatten(1, -2), self.weight).unflatten(1, inputs.shape[1:-1])


class ImputingLSTM(torch.autograd.Function):
    """All that depends on the hidden state, step by step, with its gradient by hand; differentiable once.

    Autograd would record some forty small operations a step and direction. Here a step is a dozen for both directions,
    written in place; the mask's part of the gates' inputs is ready before the loop, and the gradients of the weights
    wait until it is over: one product each instead of one a step.

    Gates stand in the order output, input, forget, candidate: the first three share a sigmoid, the last three act on
    the cell.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        observed: Tensor,
        started: Tensor,
        decay: Tensor,
        combination: Tensor,
        history_weight: Tensor,
        history_bias: Tensor,
        feature_weight: Tensor,
        feature_bias: Tensor,
        gate_weight: Tensor,
        gate_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run over all steps, from a hidden state and a cell of zeros.

        Args:
            ctx: for the backward pass.
            values: x, [2, time, batch, feature], 0 where missing.
            observed: m, [2, time, batch, feature], 0 or 1.
            started: [2, time, batch, 1] bool; before, the input gate is shut, so that state and cell stay 0.
            decay: gamma_h, [2, time, batch, hidden].
            combination: beta, [2, time, batch, feature].
            history_weight: W_x, [2, hidden, feature].
            history_bias: b_x, [2, 1, feature].
            feature_weight: W_z with zeros on its diagonal, [2, feature, feature].
            feature_bias: b_z, [2, 1, feature].
            gate_weight: from completed values, decayed state and mask, [2, feature + hidden + feature, 4 hidden].
            gate_bias: [2, 1, 4 hidden].

        Returns:
            The estimates x_hat, z_hat and c_hat, [3, 2, time, batch, feature], and the hidden state after each step,
            [2, time, batch, hidden].
        """
        num_features, (_, num_steps, batch, hidden_size) = values.shape[-1], decay.shape
        missing = 1 - observed
        estimates = values.new_empty(3, *values.shape)
        inputs = values.new_empty(2, num_steps, batch, gate_weight.shape[1])  # completed values, decayed state, mask
        recurrent, from_mask = inputs.tensor_split([num_features + hidden_size], -1)
        recurrent_weight, mask_weight = gate_weight.tensor_split([num_features + hidden_size], 1)
        from_mask.copy_(observed)
        gates = torch.baddbmm(gate_bias, observed.flatten(1, 2), mask_weight).unflatten(1, (num_steps, batch))
        sigmoids = gates[..., : 3 * hidden_size]
        gates[..., hidden_size : 2 * hidden_size].masked_fill_(~started, -torch.inf)
        hidden, cell = values.new_zeros(2, 2, num_steps + 1, batch, hidden_size)
        squashed = torch.empty_like(decay)  # tanh of the cell
        complement = torch.empty_like(values[:, 0])

        # Views of every step, once: slicing them out in the loop would take as long as computing.
        x, gap, gamma, beta = (each.unbind(1) for each in (values, missing, decay, combination))
        x_hat, z_hat, c_hat = (each.unbind(1) for each in estimates)
        completed, decayed = (each.unbind(1) for each in recurrent.split([num_features, hidden_size], -1))
        output, enter, forget, candidate = (each.unbind(1) for each in gates.chunk(4, -1))
        h, c, squash, lstm_input = (each.unbind(1) for each in (hidden, cell, squashed, recurrent))
        gate, sigmoid = gates.unbind(1), sigmoids.unbind(1)
        for t in range(num_steps):
            torch.mul(h[t], gamma[t], out=decayed[t])
            torch.baddbmm(history_bias, decayed[t], history_weight, out=x_hat[t])
            torch.addcmul(x[t], gap[t], x_hat[t], out=complement)
            torch.baddbmm(feature_bias, complement, feature_weight, out=z_hat[t])
            torch.lerp(x_hat[t], z_hat[t], beta[t], out=c_hat[t])
            torch.addcmul(x[t], gap[t], c_hat[t], out=completed[t])
            gate[t].baddbmm_(lstm_input[t], recurrent_weight)
            sigmoid[t].sigmoid_()
            candidate[t].tanh_()
            torch.mul(forget[t], c[t], out=c[t + 1]).addcmul_(enter[t], candidate[t])
            torch.tanh(c[t + 1], out=squash[t])
            torch.mul(output[t], squash[t], out=h[t + 1])
        weights = history_weight, feature_weight, recurrent_weight
        ctx.save_for_backward(
            values, missing, decay, combination, *weights, estimates, inputs, gates, hidden, cell, squashed
        )
        return estimates, hidden[:, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, estimates_gradient: Tensor, hidden_gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Back through time for the gates, the estimates and the decayed states; then all else at once."""
        values, missing, decay, combination, *saved = ctx.saved_tensors
        history_weight, feature_weight, recurrent_weight, estimates, inputs, gates, hidden, cell, squashed = saved
        num_features, hidden_size = values.shape[-1], decay.shape[-1]
        gate_gradient, parts = torch.empty_like(gates), torch.empty_like(estimates)  # parts: of the estimates
        decayed_gradient = torch.empty_like(decay)
        on_state, on_cell = torch.zeros_like(decay[:, 0]), torch.zeros_like(decay[:, 0])
        on_inputs = values.new_empty(2, values.shape[2], num_features + hidden_size)
        on_completed, on_decayed = on_inputs.split([num_features, hidden_size], -1)

        gap, gamma, beta, rest = (each.unbind(1) for each in (missing, decay, combination, 1 - combination))
        output, enter, forget, candidate = (each.unbind(1) for each in gates.chunk(4, -1))
        on_output, on_enter, on_forget, on_candidate = (each.unbind(1) for each in gate_gradient.chunk(4, -1))
        c, squash, from_hidden, gate = (each.unbind(1) for each in (cell, squashed, hidden_gradient, gate_gradient))
        from_x_hat, from_z_hat, from_c_hat = (each.unbind(1) for each in estimates_gradient)
        x_hat, z_hat, c_hat = (each.unbind(1) for each in parts)
        decayed = decayed_gradient.unbind(1)
        recurrent_weight, feature_weight, history_weight = recurrent_weight.mT, feature_weight.mT, history_weight.mT
        for t in reversed(range(len(gap))):
            # The gates, whose slopes are s (1 - s) of a sigmoid and 1 - s^2 of a tanh: y - y s is y (1 - s).
            on_state.add_(from_hidden[t])
            through = on_state * output[t]
            on_cell.add_(through)
            through.mul_(squash[t])
            on_cell.addcmul_(through, squash[t], value=-1)
            torch.addcmul(through, through, output[t], value=-1, out=on_output[t])
            torch.mul(on_cell, enter[t], out=through)
            entered = through * candidate[t]
            torch.addcmul(through, entered, candidate[t], value=-1, out=on_candidate[t])
            torch.addcmul(entered, entered, enter[t], value=-1, out=on_enter[t])
            on_cell.mul_(forget[t])
            torch.mul(on_cell, c[t], out=through)
            torch.addcmul(through, through, forget[t], value=-1, out=on_forget[t])
            # What the gates read, and the estimates in it.
            torch.bmm(gate[t], recurrent_weight, out=on_inputs)
            torch.addcmul(from_c_hat[t], gap[t], on_completed, out=c_hat[t])
            torch.addcmul(from_z_hat[t], beta[t], c_hat[t], out=z_hat[t])
            torch.addcmul(from_x_hat[t], rest[t], c_hat[t], out=x_hat[t])
            x_hat[t].addcmul_(gap[t], torch.bmm(z_hat[t], feature_weight))
            torch.baddbmm(on_decayed, x_hat[t], history_weight, out=decayed[t])
            torch.mul(decayed[t], gamma[t], out=on_state)

        def by_weight(left: Tensor, right: Tensor) -> Tensor:  # outer products, summed over time and batch
            return left.flatten(1, 2).mT @ right.flatten(1, 2)

        def by_bias(gradient: Tensor) -> Tensor:
            return gradient.sum((1, 2))[:, None]

        x_hat_gradient, z_hat_gradient, c_hat_gradient = parts
        return (
            None,
            None,
            None,
            decayed_gradient * hidden[:, :-1],
            c_hat_gradient * (estimates[1] - estimates[0]),
            by_weight(inputs[..., num_features : num_features + hidden_size], x_hat_gradient),
            by_bias(x_hat_gradient),
            by_weight(torch.addcmul(values, missing, estimates[0]), z_hat_gradient),
            by_bias(z_hat_gradient),
            by_weight(inputs, gate_gradient),
            by_bias(gate_gradient),
        )
