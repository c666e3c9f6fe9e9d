"""The metrics that tables and figures know: their titles, and what is best."""

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """A metric's title, and what is best: the least, the most, or what is nearest to a number; None: nothing is."""

    title: str
    best: Literal["min", "max"] | float | None

    @property
    def arrow(self) -> str:
        """The direction, for people."""
        return {"min": "↓", "max": "↑", None: ""}.get(self.best, f"≈ {self.best}")

    def loss(self, value: float) -> float:
        """The smaller, the better."""
        if isinstance(self.best, float):
            return abs(value - self.best)
        return -value if self.best == "max" else value


# In the order in which a run's table prints them.
METRICS = {
    "test/nll": Metric("NLL", "min"),
    "test/nll_mixture": Metric("mixture NLL", "min"),
    "test/mse": Metric("MSE", "min"),
    "test/mae": Metric("MAE", "min"),
    "test/rmse": Metric("RMSE", "min"),
    "test/mre": Metric("MRE", "min"),
    "test/crps": Metric("CRPS", "min"),
    "test/coverage_50": Metric("50 % coverage", 0.5),
    "test/coverage_90": Metric("90 % coverage", 0.9),
    "test/coverage_95": Metric("95 % coverage", 0.95),
    "test/width_50": Metric("50 % width", None),
    "test/width_90": Metric("90 % width", None),
    "test/width_95": Metric("95 % width", None),
    "test/auroc": Metric("AUROC", "max"),
    "test/auprc": Metric("AUPRC", "max"),
    "test/auroc_standardised": Metric("standardised AUROC", "max"),
    "test/auprc_standardised": Metric("standardised AUPRC", "max"),
    "test/auroc_std": Metric("bootstrap SD", None),
    "test/r2_catboost": Metric("R2, CatBoost", "max"),
    "test/f1_catboost": Metric("macro F1, CatBoost", "max"),
    "test/roc_auc_catboost": Metric("AUROC, CatBoost", "max"),
    "test/rmse_catboost": Metric("RMSE, CatBoost", "min"),
    "test/r2_mlp": Metric("R2, MLP", "max"),
    "test/f1_mlp": Metric("macro F1, MLP", "max"),
    "test/roc_auc_mlp": Metric("AUROC, MLP", "max"),
    "test/rmse_mlp": Metric("RMSE, MLP", "min"),
    "test/dcr": Metric("DCR, mean", None),
    "test/dcr_median": Metric("DCR, median", None),
    "test/closer_to_train": Metric("closer to train than to held-out rows", 0.5),
    "test/miou": Metric("mIoU", "max"),
    "test/miou_ignore": Metric("mIoU of annotated pixels", "max"),
    "test/pixel_accuracy": Metric("pixel accuracy", "max"),
    "test/bits_per_dim": Metric("bits per dimension", "min"),
    "val/nll": Metric("validation NLL", "min"),
    "val/mse": Metric("validation MSE", "min"),
    "val/mae": Metric("validation MAE", "min"),
    "val/r2_catboost": Metric("validation R2, CatBoost", "max"),
    "val/f1_catboost": Metric("validation macro F1, CatBoost", "max"),
    "val/r2_mlp": Metric("validation R2, MLP", "max"),
    "val/f1_mlp": Metric("validation macro F1, MLP", "max"),
    "quality/column_shapes": Metric("column shapes", "max"),
    "quality/pair_trends": Metric("pair trends", "max"),
    "quality/detection_logistic": Metric("detection, logistic", "max"),
    "quality/detection_trees": Metric("detection, trees", "max"),
    "quality/alpha_precision": Metric("alpha-precision", "max"),
    "quality/beta_recall": Metric("beta-recall", "max"),
    "quality/authenticity": Metric("authenticity", "max"),
}
