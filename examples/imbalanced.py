"""A rare class.

One image in thirty is an eight. A network that never says "eight" is right 97 % of the time, so accuracy says little:
balanced accuracy, the mean of both classes' recall, is what to look at. `class_weight="balanced"` lets the eights count
as much as all others together, but for mini-batches in which there is none.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import balanced_accuracy_score, recall_score
from sklearn.model_selection import train_test_split

from fastcnn import CNNClassifier
from fastcnn.datasets import load_digits_images

X, digit = load_digits_images()
rng = np.random.default_rng(0)
eights, others = np.flatnonzero(digit == 8), np.flatnonzero(digit != 8)
kept = np.concatenate([others, rng.choice(eights, 55, replace=False)])
X, y = X[kept], np.where(digit[kept] == 8, "eight", "other")
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)

figure, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
for class_weight in (None, "balanced", {"eight": 10, "other": 1}):
    recalls, balanced = [], []
    for seed in range(3):
        clf = CNNClassifier(
            conv_channels=(16,),
            dense_units=(),
            max_iter=20,
            batch_size=32,
            class_weight=class_weight,
            random_state=seed,
        )
        predicted = clf.fit(X_train, y_train).predict(X_test)
        recalls.append(recall_score(y_test, predicted, pos_label="eight"))
        balanced.append(balanced_accuracy_score(y_test, predicted))
    print(f"{class_weight!s:<28} eights found {np.mean(recalls):.2f}, balanced accuracy {np.mean(balanced):.3f}")
    ax.bar(f"class_weight=\n{class_weight}", np.mean(recalls), yerr=np.std(recalls), capsize=4)
ax.set(ylim=(0, 1), ylabel="eights found", title="of the rare class, mean of three seeds")
plt.show()
