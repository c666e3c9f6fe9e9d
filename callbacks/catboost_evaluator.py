"""CatBoost as the predictor that measures machine-learning efficiency.

Procedure of TabDDPM (Kotelnikov et al., ICML 2023, and their code): tuned for each data set on real data, trained on a
synthetic table, stopped early by the real validation part.
"""

import numpy as np
import pandas as pd
from catboost import CatBoostClassifier, CatBoostError, CatBoostRegressor, Pool
from numpy.typing import NDArray

from callbacks.encoding import EncodedTables

# On larger tables CatBoost 1.2 can grow other trees with another number of threads (on adult, 26,048 rows, it does; on
# california and buddy it does not). So the number is part of the published procedure, and does not follow the machine.
NUM_THREADS = 4


def catboost_predictions(
    data: EncodedTables,
    seed: int,
    learning_rate: float | None = None,
    depth: int | None = None,
    l2_leaf_reg: float | None = None,
    bagging_temperature: float | None = None,
    leaf_estimation_iterations: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Train CatBoost on a table and predict the target of the other two.

    At most 2,000 trees; overfitting detector IncToDec (p = 0.001, 50 iterations) on the validation part's F1
    ("TotalF1", weighted by the classes' size) or RMSE; trees after its best value are dropped. Numericals as they are,
    categories as categorical features, a real target as z-scores. Of the test part only the columns are read.

    Args:
        data: tables "train", "val" and "test".
        seed: of the training.
        learning_rate: step size; None, here and below: CatBoost's own choice.
        depth: of the trees.
        l2_leaf_reg: penalty on the leaves' values.
        bagging_temperature: spread of the rows' random weights.
        leaf_estimation_iterations: Newton steps for the leaves' values.

    Returns:
        For "val" and "test": probability of class 1 [row] if there are two classes, of each class [row, class] if more;
        in regression the target [row].

    Raises:
        ValueError: the training target is constant, an argument is out of range, or no column varies.
    """
    targets, mean, deviation = (data.targets, 0.0, 1.0) if data.num_classes else data.z_scores()
    num_numericals = data.numericals["train"].shape[1]
    categorical = list(range(num_numericals, num_numericals + len(data.counts)))

    def pool(part: str, target: NDArray | None = None) -> Pool:
        # CatBoost takes an integer for the same category as its string.
        columns = [*data.numericals[part].T.astype(np.float64), *data.categories[part].T]
        return Pool(pd.DataFrame(dict(enumerate(columns))), target, cat_features=categorical)

    arguments = {
        "iterations": 2000,
        "early_stopping_rounds": 50,
        "od_pval": 0.001,  # given too, it switches the detector from plain waiting to IncToDec
        "thread_count": NUM_THREADS,
        "random_seed": seed,
        "verbose": False,
        "allow_writing_files": False,
        "learning_rate": learning_rate,
        "depth": depth,
        "l2_leaf_reg": l2_leaf_reg,
        "bagging_temperature": bagging_temperature,
        "leaf_estimation_iterations": leaf_estimation_iterations,
    }
    if data.num_classes:
        model = CatBoostClassifier(
            loss_function="Logloss" if data.num_classes == 2 else "MultiClass",
            eval_metric="TotalF1",
            class_names=[str(i) for i in range(data.num_classes)],
            **arguments,
        )
    else:
        model = CatBoostRegressor(eval_metric="RMSE", **arguments)
    try:
        model.fit(pool("train", targets["train"]), eval_set=pool("val", targets["val"]))
    except CatBoostError as error:
        reason = str(error).partition("\n")[0].rpartition(": ")[2]
        raise ValueError(f"CatBoost cannot be trained on synthetic rows: {reason}") from error
    pools = {part: pool(part) for part in ("val", "test")}
    if not data.num_classes:
        return {part: model.predict(each, thread_count=NUM_THREADS) * deviation + mean for part, each in pools.items()}
    probabilities = {part: model.predict_proba(each, thread_count=NUM_THREADS) for part, each in pools.items()}
    return {part: each[:, 1] if data.num_classes == 2 else each for part, each in probabilities.items()}
