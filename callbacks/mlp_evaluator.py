"""A multilayer perceptron as the predictor that measures machine-learning efficiency.

Procedure of TabDDPM (Kotelnikov et al., ICML 2023, and their code): tuned for each data set on real data, trained on a
synthetic table, stopped early by the real validation part.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import QuantileTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from callbacks.encoding import EncodedTables

MAX_EPOCHS, PATIENCE = 1000, 16
IMPROVEMENT = 1e-4  # of the validation loss, relative; a smaller one does not count
BLOCK = 4096  # rows at a time where no gradient is needed


@torch.inference_mode(False)  # the Trainer's test, in which this is called, forbids gradients
@torch.enable_grad()
def mlp_predictions(
    data: EncodedTables,
    seed: int,
    hidden: Sequence[int],
    learning_rate: float,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
    device: str = "cpu",
) -> dict[str, NDArray[np.float64]]:
    """Train a multilayer perceptron on a table and predict the target of the other two.

    Linear layers with ReLU and dropout; AdamW; mean squared error of z-scores, or cross-entropy; batches of 128 rows,
    256 from 10,000 rows on; at most 1,000 epochs; stopped when the validation loss has not fallen by a relative 1e-4
    for 16 epochs; the last weights are kept, not the best. Numericals by the quantiles of the training table to a
    normal, categories as indicators, unknown ones as zeros. Of the test part only the columns are read. On one CPU
    thread, so that no sum depends on the machine's cores.

    Args:
        data: tables "train", "val" and "test".
        seed: of weights, order of rows, and dropout; PyTorch's own random state is left as it was.
        hidden: width of each hidden layer.
        learning_rate: of AdamW.
        dropout: probability that a hidden unit is set to 0.
        weight_decay: of AdamW.
        device: where it is trained.

    Returns:
        For "val" and "test": probability of class 1 [row] if there are two classes, of each class [row, class] if more;
        in regression the target [row].

    Raises:
        ValueError: the training target is constant, or no hidden layer is given.
        FloatingPointError: the validation loss is not finite.
    """
    if not hidden:
        raise ValueError(f"hidden={hidden}: give the width of at least one hidden layer")
    targets, mean, deviation = (data.targets, 0.0, 1.0) if data.num_classes else data.z_scores()
    dtype = torch.int64 if data.num_classes > 2 else torch.float32
    target = {part: torch.tensor(targets[part], dtype=dtype, device=device) for part in ("train", "val")}
    inputs = {part: [each.to(device) for each in tensors] for part, tensors in _inputs(data).items()}
    with _seeded_single_thread(seed):
        num_numericals = data.numericals["train"].shape[1]
        network = _Network(num_numericals, int(data.counts.sum()), hidden, dropout, data.num_classes).to(device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
        _train(network, optimiser, inputs, target)
        outputs = {part: _in_blocks(network, inputs[part]).double() for part in ("val", "test")}
    if data.num_classes == 0:
        outputs = {part: each * deviation + mean for part, each in outputs.items()}
    elif data.num_classes == 2:
        outputs = {part: each.sigmoid() for part, each in outputs.items()}
    else:
        outputs = {part: each.softmax(dim=1) for part, each in outputs.items()}
    return {part: each.numpy(force=True) for part, each in outputs.items()}


class _Network(nn.Module):
    """Linear layers with ReLU and dropout, of numericals and indicators of categories.

    Indicators are made for the rows at hand, so that columns of many categories need no memory.
    """

    def __init__(
        self, num_numericals: int, num_indicators: int, hidden: Sequence[int], dropout: float, num_classes: int
    ) -> None:
        super().__init__()
        self.num_indicators = num_indicators
        self.criterion = {0: F.mse_loss, 2: F.binary_cross_entropy_with_logits}.get(num_classes, F.cross_entropy)
        layers: list[nn.Module] = []
        for width_before, width in zip([num_numericals + num_indicators, *hidden], hidden, strict=False):
            layers += [nn.Linear(width_before, width), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], num_classes if num_classes > 2 else 1))

    def forward(self, numericals: Tensor, indices: Tensor) -> Tensor:
        """Logits [row, class], for two classes the second one's log odds [row], in regression z-scores [row].

        Args:
            numericals: float32 [row, column].
            indices: int64 [row, column], the indicators that are 1; one past the last for an unknown category.
        """
        indicators = numericals.new_zeros(len(indices), self.num_indicators + 1).scatter_(1, indices, 1.0)
        output = self.layers(torch.cat([numericals, indicators[:, : self.num_indicators]], dim=1))
        return output if output.shape[1] > 1 else output[:, 0]


def _inputs(data: EncodedTables) -> dict[str, tuple[Tensor, Tensor]]:
    """Arguments of `_Network.forward` for each part."""
    train, scores = data.numericals["train"], data.numericals
    if train.shape[1]:  # scikit-learn refuses tables without columns
        quantiles = QuantileTransformer(
            n_quantiles=min(max(min(len(train) // 30, 1000), 10), len(train)),
            output_distribution="normal",
            subsample=None,
        ).fit(train)
        scores = {part: quantiles.transform(X) for part, X in scores.items()}
    ends = np.cumsum(data.counts)
    indices = {
        part: np.where(ranks < data.counts, ranks + ends - data.counts, data.counts.sum())
        for part, ranks in data.categories.items()
    }
    return {part: (torch.tensor(scores[part], dtype=torch.float32), torch.tensor(indices[part])) for part in scores}


def _train(
    network: _Network, optimiser: torch.optim.Optimizer, inputs: dict[str, list[Tensor]], target: dict[str, Tensor]
) -> None:
    """Train until the validation loss has not fallen for a while.

    Raises:
        FloatingPointError: the validation loss is not finite.
    """
    num_rows = len(target["train"])
    threshold, epochs_without = math.inf, 0
    for epoch in range(MAX_EPOCHS):
        network.train()
        for rows in torch.randperm(num_rows, device=target["train"].device).split(128 if num_rows < 10_000 else 256):
            loss = network.criterion(network(*(each[rows] for each in inputs["train"])), target["train"][rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        value = float(network.criterion(_in_blocks(network, inputs["val"]), target["val"]))
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the evaluating network's validation loss is {value} after {epoch + 1} epoch(s): lower its "
                f"learning_rate, now {optimiser.param_groups[0]['lr']}"
            )
        if value < threshold:
            threshold, epochs_without = value * (1 - IMPROVEMENT), 0
        else:
            epochs_without += 1
        if epochs_without == PATIENCE:
            break


@torch.no_grad()
def _in_blocks(network: _Network, inputs: list[Tensor]) -> Tensor:
    """Outputs of all rows, without dropout."""
    network.eval()
    return torch.cat([network(*block) for block in zip(*(each.split(BLOCK) for each in inputs), strict=True)])


@contextmanager
def _seeded_single_thread(seed: int) -> Iterator[None]:
    """PyTorch with this seed and on one CPU thread; afterwards its random state and threads are as before."""
    num_threads = torch.get_num_threads()
    # A process that has not used CUDA has no state there to be kept, and should not start to.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)
