"""Nothing but the explicit fetch uses the network: every other part runs where addresses, connections and names are
refused, and would be noticed even if it hid the error.
"""

import os
import subprocess
import sys

GUARD = """
import sys
touched = []

def refuse(event, arguments):
    # Python itself says so, before it happens; sockets between processes of this machine (AF_UNIX) are none.
    if event in ("socket.connect", "socket.bind", "socket.sendto") and isinstance(arguments[1], tuple):
        touched.append(event)
        raise OSError("no network")
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect"):
        touched.append(event)
        raise OSError("no network")

sys.addaudithook(refuse)
"""

ALL_PARTS = """
import contextlib, io, pickle, tempfile, warnings
from pathlib import Path
import numpy as np
import fastcnn
from fastcnn import CNNClassifier, Network, recipes
from fastcnn.cli import main
from fastcnn.datasets import load_digits_images, load_idx_folder, load_image_folder
from PIL import Image

folder = Path(tempfile.mkdtemp())
X, y = load_digits_images()
X, y = X[:200], y[:200]
clf = CNNClassifier(conv_channels=(4,), dense_units=(8,), max_iter=1, checkpoint=folder / "run", n_jobs=2).fit(X, y)
clf.partial_fit(X, y)
clf.predict(X)
clf.save(folder / "m.safetensors")
CNNClassifier.load(folder / "m.safetensors").score(X, y)
pickle.loads(pickle.dumps(clf)).predict(X)
clf.to_onnx(folder / "m.onnx")
CNNClassifier.from_onnx(folder / "m.onnx").predict(X)
repr(clf), clf.summary(), clf._repr_html_inner()
for name in "ab":
    (folder / "set" / name).mkdir(parents=True)
    Image.fromarray(X[0]).save(folder / "set" / name / "1.png")
load_image_folder(folder / "set")
with contextlib.redirect_stdout(io.StringIO()):
    for arguments in (
        ["train", "digits", "--epochs", "1", "--save", str(folder / "c.safetensors")],
        ["info", str(folder / "c.safetensors")],
        ["doctor"],
    ):
        with contextlib.suppress(SystemExit):
            main(arguments)
assert (folder / "c.safetensors").exists()
print(touched)
"""

FETCH = """
import tempfile
from fastcnn import datasets
datasets._FASHION_DEBIAN = datasets.Path("/nonexistent")
try:
    datasets.fetch_fashion_mnist(data_home=tempfile.mkdtemp())
except OSError as error:
    print(touched[0], "Three ways to get it" in str(error))
"""


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", GUARD + code],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_no_part_uses_the_network():
    assert python(ALL_PARTS) == "[]"


def test_the_fetch_does_and_says_what_to_do_without():
    """So the guard above would see it."""
    assert python(FETCH) == "urllib.Request True"
