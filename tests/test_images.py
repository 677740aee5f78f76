"""Images in their forms, as rows; most of it is tested where estimators take them."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.datasets import load_digits

from fastcnn import CNNClassifier
from fastcnn.images import as_rows


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_data_frames_keep_the_names_of_their_columns(frame):
    X, y = load_digits(n_class=2, return_X_y=True)
    names = [f"pixel {i}" for i in range(64)]
    table = frame(dict(zip(names, X.astype(np.uint8).T, strict=True)))
    rows, shape = as_rows(table)
    assert rows is table and shape is None
    clf = CNNClassifier(
        conv_channels=4, dense_units=(), max_iter=2, batch_size=32, random_state=0, n_iter_no_change=np.inf
    )
    clf.set_params(scale="unit").fit(table, y)
    assert clf.feature_names_in_.tolist() == names and clf.image_shape_ == (8, 8, 1)
    same = CNNClassifier(**clf.get_params()).fit(X.astype(np.uint8), y)
    np.testing.assert_array_equal(clf.predict_proba(table), same.predict_proba(X.astype(np.uint8)))
    assert clf.channel_scale_ == [255]  # they stay bytes
    X[3, 5] = np.nan
    spoilt = frame(dict(zip(names, X.T, strict=True)))
    for use in (clf.predict, lambda rows: clf.fit(rows, y)):
        with pytest.raises(ValueError, match="Input X contains NaN"):
            use(spoilt)
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(table[names[::-1]])
