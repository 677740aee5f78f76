"""Python blocks of the pages run when the pages are built; what they print and draw is shown below them.

A fence ```` ```python ```` is such a block; ```` ```python folded ```` shows its results and hides the code behind a
click. The blocks of a page run one after the other, in one namespace and in a folder of their own; a warning is an
error. A name alone on the last line shows that object as a notebook would. ```` ```py ```` is code that does not run.

The commands of a fence ```` ```sh run ```` run in that folder too. HTML files that are written there are kept, as
`made/` beside the pages.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from figures import Picture, save_figures, use_style
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

_logger = logging.getLogger(__name__)
_ROOT = Path(__file__).parents[2]


class Run(SphinxDirective):
    """The directive that fences become."""

    has_content = True
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Run the block; its code and its results as nodes."""
        page = page_of(self.env)
        page["blocks"] += 1
        source = "\n".join(self.content)
        code = nodes.literal_block(source, source, language="python")
        stem = f"{self.env.docname.replace('/', '-')}-{page['blocks']}"
        try:
            printed, html = _execute(source, page["names"], page["folder"].name)
            pictures = save_figures(Path(self.env.app.outdir).parent / "pictures", stem)
        except Exception:
            _logger.error("this block failed:\n%s", traceback.format_exc(), location=self.get_location())
            return [code]
        results = results_of(self.env, printed, pictures)
        if html:
            results.append(nodes.raw("", f'<div class="notebook-output">{html}</div>', format="html"))
        return [*results, *_fold(code)] if self.arguments == ["folded"] else [code, *results]


class RunShell(SphinxDirective):
    """The commands of a block, each with what it printed."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Run them; a failure is an error of the page."""
        folder = page_of(self.env)["folder"].name
        shown = []
        for command in self.content:
            done = run_command(command, folder)
            if done.returncode:
                _logger.error("%s\n%s%s", command, done.stdout, done.stderr, location=self.get_location())
            shown.append(f"$ {command}\n{done.stdout.rstrip()}".rstrip())
        text = "\n\n".join(shown)
        return [nodes.literal_block(text, text, language="console")]


def page_of(env: Any) -> Any:
    """What the blocks of a page share: names, a folder, how many there were."""
    page = env.current_document
    if "names" not in page:
        page["names"], page["folder"], page["blocks"] = {"__name__": "page"}, tempfile.TemporaryDirectory(), 0
        for name in ("docs", "examples"):  # as in a clone
            Path(page["folder"].name, name).symlink_to(_ROOT / name)
    return page


def _end_page(app: Any, doctree: nodes.document) -> None:
    if "folder" in app.env.current_document:
        folder = app.env.current_document["folder"]
        for file in Path(folder.name).glob("*.html"):
            made = Path(app.outdir, "made")
            made.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, made)
        folder.cleanup()


def run_command(command: str, folder: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment as a shell would."""
    path = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
    environment = {**os.environ, "PATH": path, "COLUMNS": "100"}
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def _execute(source: str, names: dict[str, Any], folder: str) -> tuple[str, str]:
    """Run `source` with `names`; what it prints, and the HTML of the name on its last line."""
    last = ast.parse(source).body[-1]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(source, "page", "exec"), names)
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Name):
        shown = names[last.value.id]
        bundle = shown._repr_mimebundle_() if hasattr(shown, "_repr_mimebundle_") else {}
        return out.getvalue(), bundle.get("text/html") or shown._repr_html_()
    return out.getvalue(), ""


def results_of(env: Any, printed: str, pictures: Sequence[Picture]) -> list[nodes.Node]:
    """What a program printed and drew, as nodes."""
    shown: list[nodes.Node] = []
    if printed.strip():
        text = printed.rstrip()
        shown.append(nodes.literal_block(text, text, language="text", classes=["output"]))
    for picture in pictures:
        for path, theme in ((picture.light, "only-light"), (picture.dark, "only-dark")):
            uri = os.path.relpath(path, Path(env.doc2path(env.docname)).parent)
            shown.append(nodes.image("", uri=uri, alt=picture.alt, classes=["drawn", theme]))
    return shown


def _fold(code: nodes.Node) -> list[nodes.Node]:
    start = "<details class='code'><summary>the code of this picture</summary>"
    return [nodes.raw("", start, format="html"), code, nodes.raw("", "</details>", format="html")]


def _fences(app: Any, page: str, source: list[str]) -> None:
    if app.env.doc2path(page).suffix == ".md" and page not in app.config.pages_not_run:
        source[0] = re.sub(r"^```python( folded)?$", r"```{run}\1", source[0], flags=re.MULTILINE)
        source[0] = re.sub(r"^```sh run$", "```{run-shell}", source[0], flags=re.MULTILINE)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    use_style()
    app.add_config_value("pages_not_run", [], "env", list)
    app.add_directive("run", Run)
    app.add_directive("run-shell", RunShell)
    app.connect("source-read", _fences)
    app.connect("doctree-read", _end_page)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
