"""Learning-rate schedules that Lightning steps once a batch."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def halved_learning_rate(optimizer: Optimizer, half_life: int | None, floor: float) -> dict:
    """Optimiser and schedule as Lightning's ``configure_optimizers`` returns them.

    Args:
        optimizer: its groups' rates are the starting ones.
        half_life: the rate is halved after every so many steps; None: it stays.
        floor: the rate is not halved below this.
    """
    if half_life is None:
        return {"optimizer": optimizer}
    if half_life < 1:
        raise ValueError(f"learning_rate_half_life={half_life} must be at least 1 step, or null for a constant rate")
    start = optimizer.param_groups[0]["lr"]
    schedule = LambdaLR(optimizer, lambda step: max(0.5 ** (step // half_life), min(1.0, floor / start)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
