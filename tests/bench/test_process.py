"""A process that answers line by line."""

import sys

import pytest

from bench.process import Process

ECHO = """
import json, os, sys
print(json.dumps({"shown": os.environ.get("SHOWN")}), flush=True)
for line in sys.stdin:
    if line == "end\\n":
        break
    print(json.dumps([line.strip()]), flush=True)
"""


def test_asking():
    process = Process(sys.executable, "-c", ECHO, env={"SHOWN": "yes"})
    assert process.about == {"shown": "yes"}
    assert process.ask("one") == ["one"] and process.ask() == [""]
    process.close()


def test_a_process_that_ends():
    process = Process(sys.executable, "-c", ECHO)
    with pytest.raises(SystemExit, match=r"^ended: .* -c"):
        process.ask("end")
    process.close()
