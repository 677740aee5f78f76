"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fastcnn.persistence.files import _hidden, remove_partial, replacing

pytestmark = pytest.mark.small

KILLED = """
import os, random, signal, sys, time
from fastcnn.persistence.files import replacing

def write(path, content):
    with replacing(path) as file:
        for start in range(0, len(content), 50_000):
            file.write(content[start : start + 50_000])

path, moments = sys.argv[1], random.Random(0)
contents = [bytes([i]) * (200_000 + 10_000 * i) for i in range(16)]
write(path, contents[0])
seen = set()
for number in range(60):
    child = os.fork()
    if not child:
        while True:
            number += 1
            write(path, contents[number % 16])
    time.sleep(moments.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(path, "rb") as file:
        seen.add(contents.index(file.read()))
print(len(seen))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "file"
    run = [sys.executable, "-c", KILLED, path]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 4
    assert len(os.listdir(tmp_path)) > 2  # some were killed while they wrote
    remove_partial(path)
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_left_behind_is_removed_and_nothing_else(tmp_path):
    hidden = ["." + "file." + "0" * 32, ".file.backup", ".other." + "0" * 32, "file." + "0" * 32]
    for name in hidden:
        (tmp_path / name).touch()
    remove_partial(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == sorted(hidden[1:])
    remove_partial(tmp_path / "no" / "folder")


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error), replacing(path) as file:
            file.write(b"new")
            raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["n" * 255, "\u98a8" * 85])
def test_names_as_long_as_they_may_be(name, tmp_path):
    path = tmp_path / name
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    (tmp_path / f"{_hidden(path)}{'0' * 32}").touch()
    remove_partial(path)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_pipes_and_devices_stay(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="pipe: a device or a pipe"), replacing(path):
        raise AssertionError
    assert stat.S_ISFIFO(path.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_who_may_read_it_stays(tmp_path):
    path = tmp_path / "file"
    path.touch(0o600)
    with replacing(path) as file:
        file.write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_name_of_a_folder_does_not_become_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"runs/: no such folder"), replacing(f"{tmp_path}/runs/"):
        pass
    assert not list(tmp_path.iterdir())
