"""A page for each program in examples/: what it says it is, what it draws and prints, and its code.

Each runs as a process of its own when the pages are built; once more only after it or the package has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from ast import get_docstring, parse
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from figures import Picture
from running import results_of
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

_logger = logging.getLogger(__name__)
_ROOT = Path(__file__).parents[2]
_EXAMPLES = _ROOT / "examples"
_RUNNER = """
import json, runpy, sys
sys.path.insert(0, {extensions!r})
from pathlib import Path
from figures import save_figures, use_style
use_style()
runpy.run_path({script!r}, run_name="__main__")
pictures = save_figures(Path({folder!r}), {stem!r}) if "matplotlib.pyplot" in sys.modules else []
Path({folder!r}, {stem!r} + ".pictures").write_text(json.dumps(pictures))
"""


class Result(NamedTuple):
    """What an example printed and drew."""

    printed: str
    pictures: list[Picture]


def _docstring(script: Path) -> tuple[str, str]:
    """Title and text."""
    title, _, text = (get_docstring(parse(script.read_text("utf-8"))) or script.stem).partition("\n")
    return title.rstrip("."), text.strip()


def _package_hash() -> bytes:
    sources = sorted(path for path in (_ROOT / "fastcnn").rglob("*.py*") if path.suffix in (".py", ".pyx"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).digest()


def _result(script: Path, folder: Path, package: bytes) -> Result:
    """The result that is kept in `folder`, or a new one."""
    key = hashlib.sha256(package + script.read_bytes()).hexdigest()
    kept = folder / f"{script.stem}.json"
    if kept.is_file():
        result = json.loads(kept.read_text("utf-8"))
        if result["key"] == key:
            return Result(result["printed"], [Picture(*picture) for picture in result["pictures"]])
    _logger.info("running %s", script.name)
    folder.mkdir(parents=True, exist_ok=True)
    runner = _RUNNER.format(
        extensions=str(Path(__file__).parent), script=str(script), folder=str(folder), stem=script.stem
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", runner], capture_output=True, text=True, timeout=300, cwd=folder
    )
    if done.returncode:
        raise ExtensionError(f"{script.name} failed:\n{done.stderr}")
    pictures = json.loads((folder / f"{script.stem}.pictures").read_text("utf-8"))
    kept.write_text(json.dumps({"key": key, "printed": done.stdout, "pictures": pictures}), "utf-8")
    return Result(done.stdout, [Picture(*picture) for picture in pictures])


def _write_pages(app: Any) -> None:
    pages, folder = Path(app.srcdir, "gallery"), Path(app.outdir).parent / "gallery"
    app.examples = {}
    for old in pages.glob("*.md"):
        if old.stem != "index" and not (_EXAMPLES / f"{old.stem}.py").is_file():
            old.unlink()
    package, scripts = _package_hash(), sorted(_EXAMPLES.glob("*.py"))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda script: _result(script, folder, package), scripts))
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
        script = _EXAMPLES / f"{name}.py"
        self.env.note_dependency(str(script))
        self.env.note_dependency(str(Path(self.env.app.outdir).parent / "gallery" / f"{name}.json"))
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
            title, _ = _docstring(_EXAMPLES / f"{name}.py")
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
