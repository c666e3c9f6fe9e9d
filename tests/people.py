"""A table of made-up people with a column of each kind, and gaps."""

import numpy as np
import pandas as pd


def people(num_rows=400, seed=0):
    """Numbers, integers with and without gaps, dates, text with gaps, few integers, truth values, and two classes."""
    random = np.random.default_rng(seed)
    income = random.choice([">50K", "<=50K"], num_rows, p=[0.3, 0.7])
    frame = pd.DataFrame(
        {
            "age": random.integers(18, 90, num_rows),
            "height": np.round(random.normal(1.7, 0.1, num_rows), 3),
            "hired": pd.Timestamp("2019-03-01") + pd.to_timedelta(random.integers(0, 900, num_rows), unit="D"),
            "city": random.choice(["Oslo", "Bergen", "Tromsø"], num_rows),
            "children": random.integers(0, 4, num_rows),
            "member": random.random(num_rows) < 0.5,
            "score": random.integers(100, 200, num_rows).astype(float),
            "income": income,
        }
    )
    frame["hired"] = frame["hired"].dt.strftime("%Y-%m-%d")
    frame.loc[::7, "height"] = np.nan
    frame.loc[::9, "city"] = None
    frame.loc[::11, "score"] = np.nan
    return frame
