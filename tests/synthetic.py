"""What a DataModule hands to a method of synthesis, made of arrays."""

from types import SimpleNamespace

import numpy as np

from datamodules.synthesis.codec import NamedColumns, TableCodec
from datamodules.synthesis.preprocessing import Table


def source(X_num, X_cat, y, task, normalisation="standard"):
    """What a DataModule hands to a method, of arrays."""
    X_num, X_cat = (None if each is None else np.asarray(each) for each in (X_num, X_cat))
    numerical = tuple(f"n{j}" for j in range(0 if X_num is None else X_num.shape[1]))
    categorical = tuple(f"c{j}" for j in range(0 if X_cat is None else X_cat.shape[1]))
    table = Table(X_num, X_cat, np.asarray(y))
    codec = TableCodec.fit(table, NamedColumns(numerical, categorical, "y"), task, normalisation)
    return SimpleNamespace(codec=codec, encoded=codec.encode(table), frame=codec.frame(table))
