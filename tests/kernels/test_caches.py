"""What goes past the caches."""

import numpy as np
import pytest

from fastcnn.kernels.cpu import caches

pytestmark = pytest.mark.small


@pytest.fixture(autouse=True)
def _ask_again():
    caches.last_cache.cache_clear()
    yield
    caches.last_cache.cache_clear()


def described(folder, sizes):
    for i, size in enumerate(sizes):
        (folder / f"index{i}").mkdir()
        (folder / f"index{i}" / "size").write_text(f"{size}\n")
    return folder


@pytest.mark.parametrize(
    ("machine", "sizes", "expected"),
    [
        ("x86_64", ["32K", "64K", "512K", "8192K"], 8 << 20),
        ("AMD64", ["48K", "2048K"], 2 << 20),
        ("x86_64", [], 0),
        ("x86_64", ["large"], 0),
        ("aarch64", ["32K", "8192K"], 0),
    ],
)
def test_the_last_cache(monkeypatch, tmp_path, machine, sizes, expected):
    monkeypatch.setattr(caches.platform, "machine", lambda: machine)
    monkeypatch.setattr(caches, "_DESCRIPTIONS", described(tmp_path, sizes))
    assert caches.last_cache() == expected


def test_no_description(monkeypatch, tmp_path):
    monkeypatch.setattr(caches, "_DESCRIPTIONS", tmp_path / "none")
    assert caches.last_cache() == 0


def test_only_large_arrays_of_whole_lines(monkeypatch):
    memory = np.empty(1 << 12, np.float32)
    first = -memory.ctypes.data % caches.LINE // 4
    lines = memory[first : first + 1024]
    for size, expected in ((0, False), (1 << 14, False), ((1 << 14) - 1, True), (1, True)):
        monkeypatch.setattr(caches, "last_cache", lambda size=size: size)
        assert caches.goes_past(lines, 16) is expected
    assert not caches.goes_past(lines, 24)
    assert not caches.goes_past(memory[first + 1 : first + 1025], 16)
    assert not caches.goes_past(lines[:0], 16)
