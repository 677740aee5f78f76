"""Tuning with a grid search.

Numbers and whole lists of layers are searched alike. With `n_jobs=2` the fits run in two processes, each with its
share of the cores; the scores are the same bits as with one.
"""

from operator import itemgetter

import matplotlib.pyplot as plt
from sklearn.model_selection import GridSearchCV, train_test_split

from fastcnn import CNNClassifier
from fastcnn.datasets import load_digits_images
from fastcnn.layers import BatchNorm, Conv2D, MaxPool2D, ReLU

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

strided = [Conv2D(32, 3, stride=2, activation="relu"), Conv2D(64, activation="relu"), MaxPool2D(2)]
normalised = [
    Conv2D(32, use_bias=False),
    BatchNorm(momentum=0.9),
    ReLU(),
    MaxPool2D(2),
    Conv2D(64, activation="relu"),
]
grid = [
    {"conv_channels": [(16,), (16, 32)], "dropout": [0.0, 0.3]},
    {"layers": [strided, normalised]},
]
model = CNNClassifier(batch_size=32, max_iter=6, random_state=0)

if __name__ == "__main__":
    search = GridSearchCV(model, grid, cv=3, n_jobs=2).fit(X_train, y_train)
    results = zip(search.cv_results_["mean_test_score"], search.cv_results_["params"], strict=True)
    results = sorted(results, key=itemgetter(0), reverse=True)
    names = [
        ", ".join(type(layer).__name__ for layer in parameters["layers"])
        if "layers" in parameters
        else ", ".join(f"{name}={value}" for name, value in parameters.items())
        for _, parameters in results
    ]
    for (score, _), name in zip(results, names, strict=True):
        print(f"{score:.3f}  {name}")
    print(f"test accuracy of the best {search.score(X_test, y_test):.3f}")

    figure, ax = plt.subplots(figsize=(7, 2.5), layout="constrained")
    ax.barh(names, [score for score, _ in results])
    ax.invert_yaxis()
    ax.set(xlim=(0.9, 1), xlabel="mean accuracy of three folds")
    plt.show()
