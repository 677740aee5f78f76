"""Programs: what is launched again and again does the same as what is launched once, in branches too."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.gpu import unavailable

pytestmark = [pytest.mark.cuda, pytest.mark.small]

if unavailable():
    pytest.skip(f"no GPU and no simulator: {unavailable()}", allow_module_level=True)

from fastcnn.kernels.cuda import arrays, program
from fastcnn.kernels.cuda.driver import SIMULATED, branch, captures, fork, linear, recording
from fastcnn.kernels.cuda.optimizers import muon_kernels

PARTS = 20  # more than there are streams for branches


def launch_sums(a, b, out):
    """out = 3 a + b, 5 a + b, ..., in branches of two launches each; then out[0] += 2 a and out[1] =
    out[0] + 2 a, after all of them.
    """
    _, _, weighted, _ = muon_kernels(a.dtype)
    with fork():
        for i in range(PARTS):
            with branch():
                linear(weighted, a.size, a, b, out[i], a.size, 2.0 * i, 1.0)
                linear(weighted, a.size, a, out[i], out[i], a.size, 3.0, 1.0)
    for source, target in ((0, 0), (0, 1)):  # a fork right after a fork waits for it
        with fork(), branch():
            linear(weighted, a.size, a, out[source], out[target], a.size, 2.0, 1.0)


def test_branches_do_what_one_launch_after_the_other_does():
    a, b = (arrays.place(np.linspace(start, 1, 10, dtype=np.float32)) for start in (-1, 0))
    out = arrays.place(np.zeros((PARTS, 10), np.float32))
    right = np.asarray(b) + np.arange(3, 3 + 2 * PARTS, 2)[:, np.newaxis] * np.asarray(a)
    right[0] += 2 * np.asarray(a)
    right[1] = right[0] + 2 * np.asarray(a)
    with recording() as calls:
        launch_sums(a, b, out)
    assert len({call.branch for call in calls}) == PARTS + 2 and len({call.fork for call in calls}) == 3
    run = program.Program(calls)
    for _ in range(3):  # launches, the capture of a graph, the graph
        out[...] = np.zeros((PARTS, 10), np.float32)
        run()
        np.testing.assert_allclose(out, right, rtol=1e-6)
    assert (run.graph is not None) == program.graphs_wanted()


def test_replayed_launches_take_new_numbers():
    def add(x, numbers):
        _, _, weighted, _ = muon_kernels(x.dtype)
        linear(weighted, x.size, numbers, x, x, x.size, 1.0, 1.0)

    x = arrays.place(np.zeros(2))
    for i in range(4):
        program.replay(add, (x,), (), (float(i), 10.0 * i))
    np.testing.assert_array_equal(x, [6, 60])
    kept = next(reversed(program._replayed.values()))
    assert kept.runs == 4 and (kept.graph is not None) == program.graphs_wanted()


@pytest.mark.parametrize("spoiled", [0, 1, 2])
def test_a_graph_that_was_spoiled_is_tried_once_more(spoiled, monkeypatch):
    """Another thread may do what no stream that is captured allows."""
    tried, done = [], []

    def captured(calls):
        tried.append(len(tried) < spoiled)
        return None if tried[-1] else SimpleNamespace(launch=lambda: done.append("graph"), close=lambda: None)

    monkeypatch.setattr(program, "graphs_wanted", lambda: True)
    monkeypatch.setattr(program, "captured", captured)
    monkeypatch.setattr(program, "run", lambda calls: done.append("launches"))
    by_hand = 1 + spoiled if spoiled < 2 else 5
    expected = ["launches"] * by_hand + ["graph"] * (5 - by_hand)
    recorded = program.Program(())
    for _ in range(5):
        recorded()
    assert done == expected and tried == [True] * spoiled + [False] * (spoiled < 2)

    def launches(x):
        """It is called to be recorded, too."""

    tried.clear()
    done.clear()
    x = arrays.place(np.zeros(2))
    for _ in range(5):
        program.replay(launches, (x,))
    assert done == ["graph"] * (5 - by_hand) and tried == [True] * spoiled + [False] * (spoiled < 2)


@pytest.mark.skipif(SIMULATED, reason="the simulator has no streams")
def test_graphs_are_captured_where_the_default_stream_does_not_wait():
    from cuda.bindings import driver as api

    assert [api.cuStreamGetFlags(int(stream))[1] for stream in captures()] == [1] * len(captures())
