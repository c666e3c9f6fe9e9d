"""The gradient by hand of BRITS' recurrence against finite differences; its values are tested with the method."""

import pytest
import torch

from lightning_modules.networks.imputing_lstm import DirectedLinear, ImputingLSTM


def arguments(num_steps, batch=2, features=2, hidden=1):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    observed = (normal(2, num_steps, batch, features) > 0).double()
    started = torch.ones(2, num_steps, batch, 1, dtype=torch.bool)
    started[0, 0, 0] = started[1, :2, 1] = False
    wide = num_steps, batch
    parts = normal(2, *wide, hidden).sigmoid(), normal(2, *wide, features).sigmoid()
    layers = [(hidden, features), (features, features), (2 * features + hidden, 4 * hidden)]
    weights = [part for rows, columns in layers for part in (normal(2, rows, columns), normal(2, 1, columns))]
    differentiable = [each.requires_grad_() for each in (*parts, *weights)]
    return normal(2, *wide, features) * observed, observed, started, *differentiable


@pytest.mark.parametrize("num_steps", [1, 3])
def test_gradients_equal_finite_differences(num_steps):
    assert torch.autograd.gradcheck(ImputingLSTM.apply, arguments(num_steps))


def test_gradients_where_one_result_only_is_used():
    inputs = arguments(2)
    for result in (0, 1):
        assert torch.autograd.gradcheck(lambda *each, result=result: ImputingLSTM.apply(*each)[result], inputs)


def test_state_stays_zero_until_a_series_starts():
    inputs = arguments(4, hidden=3)
    hidden = ImputingLSTM.apply(*inputs)[1]
    zero = (hidden == 0).all(-1, keepdim=True)
    assert torch.equal(zero, ~inputs[2])


def test_directions_have_their_own_layer():
    layer = DirectedLinear(3, 5).double()
    inputs = torch.randn(2, 4, 6, 3, dtype=torch.float64)
    expected = [inputs[k] @ layer.weight[k] + layer.bias[k] for k in range(2)]
    torch.testing.assert_close(layer(inputs), torch.stack(expected))
    assert layer.weight.abs().max() <= 3**-0.5
