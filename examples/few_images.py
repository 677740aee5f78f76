"""More out of few images.

How much do random changes to the training images help? Networks learn from 100 to 800 digits, as they are and shifted
by up to a pixel. The fewer images, the more it helps; with many it may harm, as a pixel is much in an image of 8x8.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from fastcnn import CNNClassifier
from fastcnn.datasets import load_digits_images
from fastcnn.training.augment import RandomShift

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=900, stratify=y, random_state=0)
sizes, seeds = (100, 200, 400, 800), range(3)

figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for name, augment in (("as they are", None), ("shifted", [RandomShift(1)])):
    scores = np.zeros((len(seeds), len(sizes)))
    for place in np.ndindex(scores.shape):
        seed, n = seeds[place[0]], sizes[place[1]]
        epochs = 30_000 // n  # few images are seen as often as many, all together
        clf = CNNClassifier(batch_size=32, max_iter=epochs, n_iter_no_change=np.inf, augment=augment, random_state=seed)
        scores[place] = clf.fit(X_train[:n], y_train[:n]).score(X_test, y_test)
    print(f"{name:<12}", *(f"{n}: {score:.3f}" for n, score in zip(sizes, scores.mean(axis=0), strict=True)))
    ax.errorbar(sizes, scores.mean(axis=0), scores.std(axis=0), marker="o", capsize=3, label=name)
ax.set(xscale="log", xlabel="training images", ylabel="test accuracy", title="digits, mean of three seeds")
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
ax.legend()
plt.show()
