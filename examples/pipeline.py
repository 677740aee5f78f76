"""Images through a pipeline.

scikit-learn's scalers take tables only. `ImageScaler` takes images, so a convolutional network and a linear model
can be compared over the same images, each with what it needs before it.
"""

import matplotlib.pyplot as plt
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from fastcnn import CNNClassifier
from fastcnn.datasets import load_digits_images
from fastcnn.preprocessing import ImageFlattener, ImageScaler

X, y = load_digits_images()  # uint8 (1797, 8, 8)

linear = make_pipeline(ImageScaler(), ImageFlattener(), RidgeClassifier())
network = make_pipeline(ImageScaler(), CNNClassifier(scale=None, batch_size=32, random_state=0))

figure, ax = plt.subplots(figsize=(6, 2), layout="constrained")
for name, model in (("linear model", linear), ("convolutional network", network)):
    scores = cross_val_score(model, X, y, cv=3)
    print(f"{name:<22} accuracy {scores.mean():.3f} +- {scores.std():.3f}")
    ax.plot(scores, [name] * len(scores), "o")
ax.set(xlabel="accuracy, each of three folds")
ax.margins(y=0.5)
plt.show()
