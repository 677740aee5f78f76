"""A side of a comparison in a process of its own, which waits while the others have their turns."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, TextIO


class Process:
    """A command that says a line of JSON at its start, and one for each line it is asked."""

    def __init__(self, *command: str, **settings: Any) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], **settings
        )
        self.about: dict[str, Any] = self._answer()

    def ask(self, line: str = "") -> Any:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"ended: {' '.join(map(str, self._process.args))}")  # type: ignore[arg-type]
        return json.loads(line)

    def close(self) -> None:
        with self._process:  # ends it by closing its input, and waits
            pass


def answers() -> TextIO:
    """Where such a process answers; what it or a framework prints goes to standard error from now on."""
    found = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return found
