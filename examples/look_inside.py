"""Where a network looks.

A network that reads digits is asked which pixels its answers depend on, in three ways: the gradient, Grad-CAM, and
covering parts of the image. Then it shows the mistakes that it is most sure of.
"""

import matplotlib.pyplot as plt
from sklearn.model_selection import train_test_split

from fastcnn import CNNClassifier
from fastcnn.datasets import load_digits_images
from fastcnn.inspection import PredictionsDisplay, SaliencyDisplay

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=600, stratify=y, random_state=0)
clf = CNNClassifier(batch_size=32, random_state=0).fit(X_train, y_train)
wrong = clf.predict(X_test) != y_test
print(f"test accuracy {clf.score(X_test, y_test):.3f}, {wrong.sum()} mistakes in {len(y_test)} images")

SaliencyDisplay.from_estimator(clf, X_test[:4])
PredictionsDisplay.from_estimator(clf, X_test, y_test, mistakes=True, max_images=8)
plt.show()
