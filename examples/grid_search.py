"""Tuning a network as one tunes any classifier.

Numbers and whole lists of layers are searched alike. With `n_jobs=2` the fits run in two processes, each with its
share of the cores; the scores are the same bits as with one.
"""

from operator import itemgetter

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
    for score, parameters in sorted(results, key=itemgetter(0), reverse=True):
        print(f"{score:.3f}  {parameters}")
    print(f"test accuracy of the best {search.score(X_test, y_test):.3f}")
