"""The report as one HTML file that needs nothing else: styles, script, images and numbers are in it."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from fastcnn import __version__
from fastcnn.image_estimator import nameless
from fastcnn.inspection.report import sections
from fastcnn.inspection.report.evidence import Evidence, choose_images, look_at, walk
from fastcnn.persistence.files import replacing

__all__ = ["write_report"]

_MAX_MAPS = 32  # of a layer
_FEWEST_MAPS = 4


def write_report(
    path: str | os.PathLike[str],
    clf: Any,
    X: Any,
    y: Any,
    *,
    title: str = "What the network sees",
    data: str = "",
    model: str = "",
    n_images: int = 24,
    max_bytes: int = 3_000_000,
) -> int:
    """Write a page about a fitted classifier and what it makes of test images.

    The page is one file. It loads nothing from a network, and needs no other program than a browser.

    Parameters
    ----------
    path : path-like
    clf : fitted CNNClassifier
    X, y : test images, as `predict` takes them, and their labels
    title, data, model : str
        The page's title, and what the data and the model are called in it.
    n_images : int, default=24
        Images to walk through the network with, the most confident mistakes among them.
    max_bytes : int, default=3_000_000
        Where the page would be larger, it has fewer images, and then fewer maps of each layer.

    Returns
    -------
    int
        How many images it has.

    Raises
    ------
    ValueError
        If X and y do not fit the classifier or each other, or not even a page with one image is so small.
    OSError
        If the file cannot be written; an old one stays as it was.
    """
    if n_images < 1:
        raise ValueError(f"n_images must be 1 or more, got {n_images}")
    clf = nameless(clf)
    evidence = look_at(clf, np.asarray(X), y)
    names = {"title": title, "data": data, "model": model}
    n, max_maps = min(n_images, len(evidence.y)), _MAX_MAPS
    while True:
        chosen = [int(place) for of in choose_images(evidence, n) for place in of]
        page = _page(clf, evidence, chosen, max_maps, names)
        if len(page) <= max_bytes:
            break
        if n > 1:
            n = max(1, min(n - 1, n * max_bytes // len(page)))
        elif max_maps > _FEWEST_MAPS:
            max_maps //= 2
        else:
            raise ValueError(f"the report would have {len(page):,} bytes with one image, more than {max_bytes:,}")
    with replacing(path) as file:
        file.write(page)
    return len(chosen)


def _page(clf: Any, evidence: Evidence, chosen: list[int], max_maps: int, names: dict[str, str]) -> bytes:
    walked = walk(clf, evidence, chosen, max_maps)
    summary, pictures = clf.summary(), walked.pictures
    here = files(__package__)
    script = here.joinpath("report.js").read_text("utf-8")
    # No other script can run, and nothing can be loaded, whatever a class is called.
    digest = b64encode(sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    values = {
        "policy": policy,
        "style": here.joinpath("report.css").read_text("utf-8"),
        "script": script,
        "values": _json(walked.values),
        "title": escape(names["title"]),
        "version": escape(__version__),
        "lede": escape(sections.lede(clf, evidence)),
        "facts": sections.facts(clf, evidence, summary),
        "picker": sections.picker(evidence, chosen, pictures),
        "network": sections.network(summary),
        "learning": sections.learning(clf),
        "confusion": sections.confusion(evidence),
        "classes": sections.classes(evidence),
        "mistakes": sections.mistakes(evidence, chosen, pictures),
        "filters": sections.filters(clf),
        "run": sections.run(clf, evidence, names["data"], names["model"]),
    }
    template = Template(here.joinpath("report.html").read_text("utf-8"))
    return template.substitute(values).encode("utf-8", "replace")


def _json(values: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends that or begins a tag."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
