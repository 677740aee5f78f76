"""Filters in colour, and what they find.

Two photographs are cut into small pictures, and a network learns which of the two each is from: the left halves are
for training, the right halves for the test. Its first filters see colours, and so are shown in colour.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images

from fastcnn import CNNClassifier
from fastcnn.inspection import FeatureMapsDisplay, FiltersDisplay

SIDE = 24


def cut(photo, n, rng):
    """`n` squares of the photograph, at random places."""
    top, left = (rng.integers(0, size - SIDE, n) for size in photo.shape[:2])
    return np.stack([photo[i : i + SIDE, j : j + SIDE] for i, j in zip(top, left, strict=True)])


rng = np.random.default_rng(0)
photos = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
half = photos["temple"].shape[1] // 2
X_train = np.concatenate([cut(photo[:, :half], 600, rng) for photo in photos.values()])
X_test = np.concatenate([cut(photo[:, half:], 300, rng) for photo in photos.values()])
y_train, y_test = (np.repeat(list(photos), n) for n in (600, 300))

clf = CNNClassifier(conv_channels=(16, 16), kernel_size=5, batch_size=32, max_iter=8, random_state=0)
clf.fit(X_train, y_train)
print(f"{len(X_train):,} pictures of {SIDE}x{SIDE}, test accuracy {clf.score(X_test, y_test):.3f}")

FiltersDisplay.from_estimator(clf)
liveliest = X_test[X_test.std(axis=(1, 2, 3)).argmax()]
FeatureMapsDisplay.from_estimator(clf, liveliest, layers=[0, 1, 2, 3, 4, 5])
plt.show()
