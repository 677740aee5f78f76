"""Cards that lead to pages: a `{card} page` within a `{div} cards`."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Card(SphinxDirective):
    """A link that is a box; its first line is its name."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The card as nodes."""
        (page,) = self.arguments
        if page not in self.env.found_docs:
            raise self.error(f"{page}: no such page")
        box = nodes.container("", classes=["card-text"])
        self.state.nested_parse(self.content, self.content_offset, box)
        up = "../" * self.env.docname.count("/")
        open_tag = nodes.raw("", f'<a class="card" href="{up}{page}.html">', format="html")
        return [open_tag, box, nodes.raw("", "</a>", format="html")]


class Div(SphinxDirective):
    """A container with a class."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The container as a node."""
        box = nodes.container("", classes=list(self.arguments))
        self.state.nested_parse(self.content, self.content_offset, box)
        return [box]


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("card", Card)
    app.add_directive("div", Div)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
