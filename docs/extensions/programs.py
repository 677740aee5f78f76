"""The programs in examples/: each runs as a process of its own, and what it printed and drew is kept."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from figures import Picture

_ROOT = Path(__file__).parents[2]
EXAMPLES = _ROOT / "examples"
KEPT = _ROOT / "build" / "gallery"
_SECONDS = 300
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


def kept_file(script: Path) -> Path:
    """Where its result is kept."""
    return KEPT / f"{script.stem}.json"


def kept_result(script: Path) -> Result | None:
    """What the program gave when it last ran, unless it or the package has changed since."""
    kept = kept_file(script)
    if not kept.is_file():
        return None
    found = json.loads(kept.read_text("utf-8"))
    if found["key"] != _key(script):
        return None
    return Result(found["printed"], [Picture(*picture) for picture in found["pictures"]])


def run(script: Path) -> Result:
    """Run the program and keep what it gives.

    Raises
    ------
    RuntimeError
        It failed or warned.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    runner = _RUNNER.format(
        extensions=str(Path(__file__).parent), script=str(script), folder=str(KEPT), stem=script.stem
    )
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    command = [sys.executable, "-W", "error", "-c", runner]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, cwd=KEPT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr}")
    pictures = json.loads((KEPT / f"{script.stem}.pictures").read_text("utf-8"))
    found = {"key": _key(script), "printed": done.stdout, "pictures": pictures}
    kept_file(script).write_text(json.dumps(found), "utf-8")
    return Result(done.stdout, [Picture(*picture) for picture in pictures])


def _key(script: Path) -> str:
    """Of the program and the package, on which the result depends."""
    sources = sorted(path for path in (_ROOT / "fastcnn").rglob("*.py*") if path.suffix in (".py", ".pyx"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, script])).hexdigest()
