#!/usr/bin/env python3
"""Prints what scikit-learn makes of the data in the test of src/probe/logistic.rs.

    python logistic_reference.py     (needs numpy and scikit-learn)
"""

import numpy as np
from sklearn.linear_model import LogisticRegression

ROWS, COLUMNS, CLASSES = 90, 4, 3
i, j = np.arange(ROWS)[:, None], np.arange(COLUMNS)[None, :]
x = np.sin(0.7 * i + 1.3 * j * i + j) + 0.05 * (i % 11)
labels = ((2 * x[:, 0] - x[:, 1] + 3 * np.cos(i[:, 0])) > 0).astype(int) + ((x[:, 2] + np.sin(3.0 * i[:, 0])) > 0.4)
for c in (0.05, 1.0):
    fit = LogisticRegression(C=c, tol=1e-12, max_iter=100000).fit(x, labels)
    weights = np.hstack([fit.coef_, fit.intercept_[:, None]])
    print(f"C {c}:", np.array2string(weights, separator=", ", precision=6))
print("labels:", np.bincount(labels))
