"""A page for each program in examples/: what it says it is, what it draws and prints, and its code.

Each runs when the pages are built, unless it has run (here or in the suite) since it and the package were changed.
"""

from __future__ import annotations

import os
from ast import get_docstring, parse
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from programs import EXAMPLES, Result, kept_file, kept_result, run
from running import results_of
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

_logger = logging.getLogger(__name__)


def _docstring(script: Path) -> tuple[str, str]:
    """Title and text."""
    title, _, text = (get_docstring(parse(script.read_text("utf-8"))) or script.stem).partition("\n")
    return title.rstrip("."), text.strip()


def _result(script: Path) -> Result:
    kept = kept_result(script)
    if kept is not None:
        return kept
    _logger.info("running %s", script.name)
    try:
        return run(script)
    except RuntimeError as error:
        raise ExtensionError(str(error)) from error


def _write_pages(app: Any) -> None:
    pages = Path(app.srcdir, "gallery")
    app.examples = {}
    for old in pages.glob("*.md"):
        if old.stem != "index" and not (EXAMPLES / f"{old.stem}.py").is_file():
            old.unlink()
    scripts = sorted(EXAMPLES.glob("*.py"))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = list(pool.map(_result, scripts))
    for script, result in zip(scripts, results, strict=True):
        app.examples[script.stem] = result
        title, text = _docstring(script)
        page = pages / f"{script.stem}.md"
        content = f"# {title}\n\n{text}\n\n```{{example}} {script.stem}\n```\n"
        if not page.is_file() or page.read_text("utf-8") != content:
            page.write_text(content, "utf-8")


class Example(SphinxDirective):
    """What an example prints and draws, then its code."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The results and the code as nodes."""
        (name,) = self.arguments
        script = EXAMPLES / f"{name}.py"
        self.env.note_dependency(str(script))
        self.env.note_dependency(str(kept_file(script)))
        result = self.env.app.examples[name]
        code = script.read_text("utf-8").partition('"""\n\n')[2].strip()  # what follows the docstring
        return [
            *results_of(self.env, result.printed, result.pictures),
            nodes.rubric("", "The program"),
            nodes.paragraph("", "", nodes.literal("", f"python examples/{name}.py")),
            nodes.literal_block(code, code, language="python"),
        ]


class Examples(SphinxDirective):
    """All examples as cards: a picture or the first lines of output, the title."""

    def run(self) -> list[nodes.Node]:
        """The cards as nodes."""
        self.env.note_reread()
        here = Path(self.env.doc2path(self.env.docname)).parent
        cards: list[nodes.Node] = [nodes.raw("", '<div class="cards">', format="html")]
        for name, result in self.env.app.examples.items():
            title, _ = _docstring(EXAMPLES / f"{name}.py")
            cards.append(nodes.raw("", f'<a class="card" href="{name}.html">', format="html"))
            for picture in result.pictures[:1]:
                for path, theme in ((picture.light, "only-light"), (picture.dark, "only-dark")):
                    cards.append(nodes.image("", uri=os.path.relpath(path, here), alt="", classes=[theme]))
            if not result.pictures:
                lines = "\n".join(result.printed.splitlines()[:6])
                cards.append(nodes.raw("", f"<pre>{escape(lines)}</pre>", format="html"))
            cards.append(nodes.raw("", f"<span>{escape(title)}</span></a>", format="html"))
        return [*cards, nodes.raw("", "</div>", format="html")]


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("example", Example)
    app.add_directive("examples", Examples)
    app.connect("builder-inited", _write_pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
