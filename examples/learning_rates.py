"""Learning rates over time.

The four schedules, each with some learning rates: how low the validation loss is after eight epochs, and how it got
there with the best of them.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from fastcnn import CNNClassifier
from fastcnn.datasets import load_digits_images

X, y = load_digits_images()
X_train, X_val, y_train, y_val = train_test_split(X, y, test_size=400, stratify=y, random_state=0)
rates = (3e-4, 1e-3, 3e-3, 1e-2)

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for schedule in ("constant", "cosine", "onecycle", "step"):
    fits = []
    for rate in rates:
        clf = CNNClassifier(
            learning_rate=schedule,
            learning_rate_init=rate,
            max_iter=8,
            n_iter_no_change=np.inf,
            batch_size=32,
            random_state=0,
        )
        fits.append(clf.fit(X_train, y_train, X_val=X_val, y_val=y_val))
    losses = [clf.validation_loss_curve_[-1] for clf in fits]
    best = int(np.argmin(losses))
    print(
        f"{schedule:<9} best at {rates[best]:g}: loss {losses[best]:.4f}, score {fits[best].validation_scores_[-1]:.3f}"
    )
    left.semilogx(rates, losses, marker="o", label=schedule)
    right.semilogy(range(1, 9), fits[best].validation_loss_curve_, marker=".", label=f"{schedule}, {rates[best]:g}")
left.set(xlabel="learning_rate_init", ylabel="validation loss", title="after eight epochs", yscale="log")
right.set(xlabel="epoch", title="the best of each")
left.legend()
right.legend()
plt.show()
