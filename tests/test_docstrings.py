"""Docstrings of all that `docs/api.md` names: complete, and as numpydoc defines the form."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import fastcnn

PAGE = Path(__file__).parents[1] / "docs/api.md"
MODULES = (
    "fastcnn",
    "fastcnn.datasets",
    "fastcnn.distributed",
    "fastcnn.inspection",
    "fastcnn.layers",
    "fastcnn.preprocessing",
    "fastcnn.recipes",
    "fastcnn.training",
)
# A type with its shape often says all, so that descriptions (PR07, RT03) are not asked for. A formula may be a summary
# (SS02, SS03), and "what there is" is said without a verb (SS05).
CHECKS = {
    "GL03": "no double blank lines",
    "GL06": "no unknown section",
    "GL07": "sections in their order",
    "GL08": "there is a docstring",
    "SS01": "there is a summary",
    "SS06": "the summary is one line",
    "PR01": "each parameter is documented",
    "PR02": "no unknown parameter is",
    "PR03": "in their order",
    "PR04": "with a type",
    "PR05": "which does not end in a full stop",
    "PR10": "with a space before the colon",
    "RT01": "what is returned is documented",
    "YD01": "what is yielded is documented",
}
# One names the class whose parameters it has; the other is made by training alone.
PARAMETERS_ELSEWHERE = {"fastcnn.distributed.DaskCNNClassifier", "fastcnn.training.loop.History"}
NOT_FOR_USERS = {"draw"}  # of an augmentation: the batch builder calls it


def page_names() -> list[str]:
    names = []
    for module, block in re.findall(r"currentmodule:: ([\w.]+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        names += [f"{module}.{name}" for name in re.findall(r"^   ([\w.]+)$", block, re.MULTILINE)]
    return names


def find(name: str) -> Any:
    found: Any = fastcnn
    for i, part in enumerate(parts := name.split(".")):
        if i:
            found = getattr(found, part, None) or import_module(".".join(parts[: i + 1]))
    return found


def documented() -> Iterator[str]:
    """The names on the page, and the methods and properties of their classes."""
    on_page = [find(name) for name in page_names()]
    for name in page_names():
        yield name
        if inspect.isclass(cls := find(name)):
            for member, value in inspect.getmembers(cls):
                home = getattr(value.fget if isinstance(value, property) else value, "__module__", None) or ""
                is_code = inspect.isroutine(value) or isinstance(value, property)
                if member.startswith("_") or member in NOT_FOR_USERS or not is_code or not home.startswith("fastcnn"):
                    continue
                told = [base for base in cls.__mro__ if getattr(vars(base).get(member), "__doc__", None)]
                if not told or told[0] is cls or told[0] not in on_page:  # else it is told of there
                    yield f"{name}.{member}"


@pytest.mark.parametrize("name", list(documented()))
def test_docstring_is_complete(name):
    validate = pytest.importorskip("numpydoc.validate").validate
    found = validate(name)
    checks = CHECKS.keys() - ({"PR01", "PR02"} if name in PARAMETERS_ELSEWHERE else set())
    assert not [f"{code}: {message}" for code, message in found["errors"] if code in checks]
    assert not found["docstring"].startswith("\n")


def test_every_public_name_is_on_the_page():
    on_page = {name.rpartition(".")[2] for name in page_names()}
    for module in MODULES:
        public = set(import_module(module).__all__)
        assert public - {"__version__", "RECIPES"} <= on_page, module
