"""Links: from files beside docs/ to the pages they are shown on, and from names in the text to their reference.

A line `page?` in a table of contents is that page, if there is one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode

_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "bench/RESULTS.md": "benchmarks.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "gallery/index.md",
}


def _of_page(app: Any, page: str, source: list[str]) -> None:
    """Paths as seen from docs/, and only pages that exist."""
    for file, shown_on in _PAGES.items():
        link = rf"\[([^]]*)\]\((?:\.\./)+{re.escape(file)}(#[^)]*)?\)"
        shown = rf"[\1]({_up(page)}{shown_on}\2)" if Path(app.srcdir, shown_on).is_file() else r"\1"
        source[0] = re.sub(link, shown, source[0])

    here = Path(app.env.doc2path(page)).parent

    def existing(line: re.Match[str]) -> str:
        return line[1] + "\n" if (here / f"{line[1]}.md").is_file() else ""

    source[0] = re.sub(r"^([\w/-]+)\?\n", existing, source[0], flags=re.MULTILINE)


def _of_included(app: Any, path: Any, page: str, source: list[str]) -> None:
    """Paths as seen from the root, or from the folder of the file that a page includes."""
    for file, shown_on in _PAGES.items():
        source[0] = source[0].replace(f"]({file})", f"]({_up(page)}{shown_on})")
    source[0] = source[0].replace("](docs/", f"]({_up(page)}").replace("](plots/", f"]({_up(page)}../bench/plots/")


def _up(page: str) -> str:
    return "../" * page.count("/")


def _names(app: Any, doctree: nodes.document, page: str) -> None:
    """`Conv2D` or `fastcnn.recipes.fast` in a page's text leads to the reference."""
    if page.startswith("generated/"):
        return
    objects = app.env.get_domain("py").objects
    places = defaultdict(set)
    for full, entry in objects.items():
        if not entry.aliased and entry.objtype in ("class", "function", "exception", "module"):
            places[full].add(full)
            places[full.rpartition(".")[2]].add(full)
    for literal in list(doctree.findall(nodes.literal)):
        found = places.get(literal.astext().removesuffix("()"), set())
        if len(found) != 1 or isinstance(literal.parent, nodes.reference):
            continue
        entry = objects[next(iter(found))]
        link = make_refnode(app.builder, page, entry.docname, entry.node_id, literal.deepcopy())
        literal.replace_self(link)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("source-read", _of_page)
    app.connect("include-read", _of_included)
    app.connect("doctree-resolved", _names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
