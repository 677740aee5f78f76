"""How the documentation is built: `make docs`. Nothing is fetched from a network."""

import sys
from pathlib import Path
from typing import Any

import fastcnn

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "fastcnn"
author = copyright = "the fastcnn developers"
release = version = fastcnn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "running",
    "gallery",
    "linking",
    "cards",
]
exclude_patterns = ["extensions", "templates"]
templates_path = ["templates"]
default_role = "py:obj"
pages_not_run = ["cluster"]  # starts a cluster of processes: a test of its own runs it

# The classifier's part for files is a class of its own. Inherited from a tuple is what all tuples have.
autodoc_default_options = {"members": True, "inherited-members": "tuple", "member-order": "bysource"}
autodoc_typehints = "none"  # the docstrings say it, with shapes
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence"]
myst_heading_anchors = 4
copybutton_prompt_text = ">>> |... |$ "
copybutton_prompt_is_regexp = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"fastcnn {release}"
html_static_path = ["_static"]
html_css_files = ["fastcnn.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options: dict[str, Any] = {
    "light_css_variables": {"color-brand-primary": "#0b5fa5", "color-brand-content": "#0b5fa5"},
    "dark_css_variables": {"color-brand-primary": "#6cb6ff", "color-brand-content": "#6cb6ff"},
    "navigation_with_keys": True,
}
pygments_style, pygments_dark_style = "friendly", "monokai"


def _is_not_for_users(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what comes from scikit-learn or dataclasses, and what the package alone calls."""
    module = getattr(obj, "__module__", None)
    foreign = isinstance(module, str) and not module.startswith("fastcnn")
    return True if foreign or (name == "draw" and module == "fastcnn.training.augment") else None


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-skip-member", _is_not_for_users)
