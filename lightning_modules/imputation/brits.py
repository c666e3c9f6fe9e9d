"""BRITS: two recurrent networks, one in each direction of time, that complete a series while they read it.

Cao, Wang, Li, Zhou, Li, Li: BRITS, Bidirectional Recurrent Imputation for Time Series, NeurIPS 2018, section 4.3. At
each step the decayed hidden state estimates the values, a regression on the other features refines the estimate, and
the two combined fill the gaps of what the LSTM reads, so that an imputed value is trained by the errors it causes later
on. The imputation is the mean of both directions.

Weights of the loss and its normalisation (each step's errors by their number in the batch) are those of the authors'
published code, whose faults are not: gaps of time follow the paper's recursion, also backwards, and the combination
weight has its sigmoid. Departures: no label enters the training unless asked for (``label_weight``), and a direction
starts at its first step with an observation, one unit of time after an imagined one, so that padding leaves no trace.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_modules.distributions.predictive import Likelihood, PointPrediction
from lightning_modules.imputation.base import Imputer, SeriesBatch
from lightning_modules.networks.imputing_lstm import DirectedLinear, ImputingLSTM
from lightning_modules.networks.learning_rate import halved_learning_rate


def time_gaps(observed_mask: Tensor, started: Tensor, times: Tensor) -> Tensor:
    """Time since a feature was last observed before each step: delta of section 2, without its recursion.

    On the grid 0, 1, ... that is delta_t = 1 + (1 - m_{t-1}) delta_{t-1}, counted from 1 at the first step with an
    observation; with stamps, delta_t = s_t - s_{t-1} + (1 - m_{t-1}) delta_{t-1}. (The paper has 0 at the first step.)

    Args:
        observed_mask: [..., time, batch, feature] bool.
        started: [..., time, batch, 1] bool, True from the first step on at which any feature is observed.
        times: [..., time, batch, 1], ascending.

    Returns:
        [..., time, batch, feature]; 0 where a step is more than a unit of time before the first observation.
    """
    origin = torch.where(started, times, times[..., -1:, :, :]).amin(-3, keepdim=True) - 1
    last = torch.where(observed_mask, times, origin).cummax(-3).values  # stamp of the last observation
    before = torch.cat([origin.expand_as(last[..., :1, :, :]), last[..., :-1, :, :]], -3)
    return (times - before).clamp_(min=0)


def both_directions(series: Tensor) -> Tensor:
    """[batch, time, ...] forwards and, second, backwards: [2, time, batch, ...]."""
    return torch.stack([series, series.flip(1)]).transpose(1, 2).contiguous()


class Passes(NamedTuple):
    """What the two passes over a batch give; time runs backwards in the second.

    Attributes:
        values: [2, time, batch, feature], 0 where missing.
        observed_mask: [2, time, batch, feature] bool.
        started: [2, time, batch, 1] bool, True from the first step with an observation on.
        estimates: [3, 2, time, batch, feature], by the history, by the other features, and combined.
        hidden: [2, time, batch, hidden], after each step.
    """

    values: Tensor
    observed_mask: Tensor
    started: Tensor
    estimates: Tensor
    hidden: Tensor

    @property
    def imputations(self) -> tuple[Tensor, Tensor]:
        """Forwards and backwards, both [time, batch, feature] in the order of time."""
        forwards, backwards = torch.where(self.observed_mask, self.values, self.estimates[2])
        return forwards, backwards.flip(0)


class BRITS(Imputer):
    """Bidirectional recurrent imputation.

    Args:
        num_features: features of a time step.
        likelihood: "bernoulli" for binary data, whose imputations are kept in [0, 1]; "gaussian" otherwise.
        hidden_size: of each direction's LSTM.
        impute_weight: of the absolute errors in the loss: a sum over steps and three estimates in each direction.
        consistency_weight: of the mean absolute difference between the directions in the loss.
        label_weight: of the cross-entropy of the series' class, predicted from each direction's last state, in the
            loss. 0: no label is looked at.
        num_classes: classes of the series; only with ``label_weight``.
        learning_rate: of Adam.
        learning_rate_half_life: steps after which the rate is halved, again and again; None: constant.
        learning_rate_floor: the rate is not halved below this.

    Raises:
        ValueError: ``label_weight`` without ``num_classes``.
    """

    def __init__(
        self,
        num_features: int,
        likelihood: Likelihood = "gaussian",
        hidden_size: int = 64,
        impute_weight: float = 0.3,
        consistency_weight: float = 0.1,
        label_weight: float = 0.0,
        num_classes: int | None = None,
        learning_rate: float = 1e-3,
        learning_rate_half_life: int | None = None,
        learning_rate_floor: float = 1e-4,
    ) -> None:
        super().__init__()
        if label_weight and num_classes is None:
            raise ValueError(f"label_weight={label_weight} needs the number of classes: set num_classes, e.g. 2")
        self.save_hyperparameters()
        self.state_decay = DirectedLinear(num_features, hidden_size)
        self.value_decay = DirectedLinear(1, num_features, fan=num_features)  # a diagonal: each feature's own gap
        self.combination = DirectedLinear(2 * num_features, num_features)
        self.history = DirectedLinear(hidden_size, num_features)
        self.features = DirectedLinear(num_features, num_features)
        self.gates = DirectedLinear(2 * num_features + hidden_size, 4 * hidden_size, fan=hidden_size)
        self.register_buffer("others", 1 - torch.eye(num_features), persistent=False)
        self.classifier = DirectedLinear(hidden_size, num_classes) if label_weight else None

    def passes(self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> Passes:
        """Run over the series in both directions; arguments as in ``forward``."""
        if times is None:
            times = torch.arange(values.shape[1], dtype=values.dtype, device=values.device).expand(values.shape[:2])
        stamps = torch.stack([times, -times.flip(1)]).mT[..., None]  # [2, time, batch, 1], both ascending
        mask = both_directions(observed_mask)
        values = both_directions(torch.where(observed_mask, values, 0))
        started = mask.any(-1, keepdim=True).cumsum(1) > 0
        gaps = time_gaps(mask, started, stamps).to(values.dtype)
        seen = mask.to(values.dtype)
        with torch.autocast(values.device.type, enabled=False):  # sums over many steps gain nothing from a narrow type
            state_decay = (-self.state_decay(gaps).relu_()).exp_()
            weight, bias = (parameter[:, None] for parameter in self.value_decay.parameters())
            value_decay = (-(weight * gaps + bias).relu_()).exp_()
            combination = self.combination(torch.cat([value_decay, seen], -1)).sigmoid_()
            estimates, hidden = ImputingLSTM.apply(
                values,
                seen,
                started,
                state_decay,
                combination,
                self.history.weight,
                self.history.bias,
                self.features.weight * self.others,
                self.features.bias,
                self.gates.weight,
                self.gates.bias,
            )
        return Passes(values, mask, started, estimates, hidden)

    def forward(self, values: Tensor, observed_mask: Tensor, times: Tensor | None = None) -> PointPrediction:
        """The mean of both directions' imputations; observed values are kept."""
        forwards, backwards = self.passes(values, observed_mask, times).imputations
        mean = ((forwards + backwards) / 2).transpose(0, 1)
        return PointPrediction(mean.clamp(0, 1) if self.hparams.likelihood == "bernoulli" else mean)

    def loss(self, batch: SeriesBatch) -> dict[str, Tensor]:
        """Absolute errors of all estimates, and disagreement of the directions; with labels their cross-entropy."""
        passes = self.passes(batch.values, batch.observed_mask, batch.times)
        seen = passes.observed_mask.to(passes.values.dtype)
        weight = seen / seen.sum((2, 3), keepdim=True).clamp(min=1)  # a mean over each step's observed entries
        reconstruction = ((passes.estimates - passes.values).mul_(weight)).abs_().sum()
        forwards, backwards = passes.imputations
        between = passes.started[0] & passes.started[1].flip(0)  # [time, batch, 1]: from first to last observation
        entries = (between.sum() * forwards.shape[-1]).clamp(min=1)
        consistency = ((forwards - backwards).abs() * between).sum() / entries
        hparams = self.hparams
        loss = hparams.impute_weight * reconstruction + hparams.consistency_weight * consistency
        terms = {"reconstruction": reconstruction, "consistency": consistency}
        if self.classifier is not None:
            terms["label"] = self.label_loss(passes, batch.label)
            loss = loss + hparams.label_weight * terms["label"]
        return {"loss": loss} | terms

    def label_loss(self, passes: Passes, label: Tensor) -> Tensor:
        """Cross-entropy of the class [batch] by each direction's state after its last observation, summed over both."""
        num_steps, batch = passes.values.shape[1:3]
        device = label.device
        steps = torch.arange(num_steps, device=device)[:, None]
        last = (passes.observed_mask.any(-1) * steps).amax(1)  # [2, batch]
        state = passes.hidden[torch.arange(2, device=device)[:, None], last, torch.arange(batch, device=device)]
        logits = self.classifier(state)  # [2, batch, class]
        return sum(cross_entropy(each, label) for each in logits)

    def training_step(self, batch: SeriesBatch, batch_index: int) -> Tensor:
        """One step of the loss."""
        terms = self.loss(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        return terms["loss"]

    def configure_optimizers(self) -> dict:
        """Adam, its rate halved at fixed steps where asked for."""
        hparams = self.hparams
        optimizer = torch.optim.Adam(self.parameters(), lr=hparams.learning_rate, fused=True)
        return halved_learning_rate(optimizer, hparams.learning_rate_half_life, hparams.learning_rate_floor)
