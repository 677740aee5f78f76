"""Early stopping in a pipeline.

The network is the last step of a pipeline, and its validation images must be scaled as its training images are:
`transform_input=["X_val"]` sends them through the steps before it. Metadata routing takes them there, also through a
grid search, whose folds then all stop by the same images.
"""

import matplotlib.pyplot as plt
import sklearn
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline

from fastcnn import CNNClassifier
from fastcnn.datasets import load_digits_images
from fastcnn.inspection import LearningCurvesDisplay
from fastcnn.preprocessing import ImageScaler

sklearn.set_config(enable_metadata_routing=True)

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=300, stratify=y, random_state=0)
X_train, X_val, y_train, y_val = train_test_split(X_train, y_train, test_size=200, stratify=y_train, random_state=0)

network = CNNClassifier(
    scale=None,
    batch_size=32,
    learning_rate="constant",
    learning_rate_init=2e-3,
    max_iter=200,
    early_stopping=True,
    n_iter_no_change=5,
    scoring="neg_log_loss",
    random_state=0,
).set_fit_request(X_val=True, y_val=True)
pipeline = Pipeline([("scale", ImageScaler()), ("network", network)], transform_input=["X_val"])

pipeline.fit(X_train, y_train, X_val=X_val, y_val=y_val)
fitted = pipeline["network"]
print(f"stopped after {fitted.n_iter_} epochs, the best was epoch {fitted.best_iter_}")
print(f"validation score: first {fitted.validation_scores_[0]:.3f}, best {max(fitted.validation_scores_):.3f}")
print(f"test accuracy {pipeline.score(X_test, y_test):.3f}")

search = GridSearchCV(pipeline, {"network__conv_channels": [(8,), (16, 32)]}, cv=3)
search.fit(X_train, y_train, X_val=X_val, y_val=y_val)
print(f"grid search: {search.best_params_}, test accuracy {search.score(X_test, y_test):.3f}")

LearningCurvesDisplay.from_estimator(fitted)
plt.show()
