"""What `verbose` prints."""

import io
import itertools
import os
import sys
import threading
import types

import pytest

from fastcnn.training import callbacks
from fastcnn.training.callbacks import BatchInfo, EpochInfo, FitInfo, progress
from fastcnn.training.loop import History

pytestmark = pytest.mark.small

EPOCH = EpochInfo(
    epoch=3,
    max_iter=20,
    n_samples=60_000,
    loss=0.27114,
    training_score=0.90126,
    validation_score=0.9123,
    validation_loss=0.25,
    learning_rate=0.001,
    seconds=4.1096,
    images_per_second=14_599.7,
)


def show(callback, *infos):
    callback.on_fit_begin(FitInfo(None, start_epoch=0, max_iter=20, n_batches=10))
    for info in infos:
        hook = callback.on_batch_end if isinstance(info, BatchInfo) else callback.on_epoch_end
        assert not hook(info)
    callback.on_fit_end(History())


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by 7 seconds each time someone looks at it, from 7 on."""
    ticks = itertools.count(7, 7)
    monkeypatch.setattr(callbacks, "perf_counter", lambda: float(next(ticks)))


def test_plain_lines(capsys, clock):
    show(
        progress(True),
        EPOCH,
        BatchInfo(4, 1, 0.3, 100.0),
        EPOCH._replace(
            epoch=12, validation_score=None, validation_loss=None, learning_rate=0.000123456, images_per_second=31.26
        ),
        EPOCH._replace(epoch=20),
    )
    validated = "val loss 0.2500  val 0.9123  lr 0.001  4.1 s  14,600 images/s"
    assert capsys.readouterr() == (
        # 7 s for 3 of 20, 14 s for 12 of 20
        f"epoch  3/20  loss 0.2711  acc 0.9013  {validated}  0:40 left\n"
        "epoch 12/20  loss 0.2711  acc 0.9013  lr 0.000123  4.1 s  31 images/s  0:09 left\n"
        f"epoch 20/20  loss 0.2711  acc 0.9013  {validated}\n",
        "",
    )


def test_lines_within_the_epochs(capsys, clock, monkeypatch):
    monkeypatch.setattr(callbacks, "_SECONDS_BETWEEN_LINES", 30.0)
    show(progress(2), *(BatchInfo(1, batch, 0.5, 1234.0) for batch in range(1, 8)))
    lines = capsys.readouterr().out.splitlines()
    # Looked at: 7 at the start; 14, written, due again at 51; 28 for what is left; 35, 42, 49; 56, written
    assert len(lines) == 2 and "  batch  1/10  " in lines[0] and "  batch  5/10  " in lines[1]
    assert lines[0].startswith("epoch  1/20  batch  1/10  loss 0.5000  1,230 images/s  ") and "left" in lines[0]


def test_hours_are_left(monkeypatch):
    monkeypatch.setattr(callbacks, "perf_counter", iter([0.0, 3725.0, 9999.0]).__next__)
    assert callbacks._Clock(FitInfo(None, 4, 6, 10)).left(5, 10) == "1:02:05 left"


class Notebook(io.StringIO):
    pass


def test_notebook(monkeypatch, clock):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stdout", Notebook())
    show(progress(1), BatchInfo(1, 5, 0.5, 100.0), BatchInfo(1, 9, 0.4, 100.0), EPOCH, BatchInfo(4, 1, 0.3, 100.0))
    text = sys.stdout.getvalue()
    # What stays: each carriage return begins its line anew.
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    assert len(lines) == 2 and lines[0].startswith("epoch  3/20  loss 0.2711") and lines[1] == ""
    first, second, *_ = text.split("\r")[1:]
    assert first.startswith("epoch  1/20  batch  5/10  loss 0.5000") and second.startswith("epoch  1/20  batch  9/10")
    assert len(second) >= len(first)  # nothing of the longer one is left to see


def test_workers_print_plain_lines(monkeypatch, clock):
    terminal = on_terminal(monkeypatch)
    thread = threading.Thread(target=lambda: show(progress(1), EPOCH, EPOCH), name="searcher")
    thread.start()
    thread.join()
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 2 and all(line.startswith("[searcher] epoch  3/20  loss 0.2711") for line in lines)
    monkeypatch.setattr(callbacks, "current_process", lambda: types.SimpleNamespace(name="LokyProcess-3"))
    show(progress(1), EPOCH)
    assert terminal.getvalue().splitlines()[2].startswith(f"[LokyProcess-3 {os.getpid()}] epoch  3/20")


def test_each_line_is_written_in_one_piece(monkeypatch, clock):
    written = []
    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(write=written.append, flush=bool, isatty=lambda: False))
    show(progress(1), EPOCH, EPOCH)
    assert len(written) == 2 and all(line.endswith(" left\n") for line in written)


@pytest.mark.parametrize("verbose", [0, False])
def test_silence(verbose, capsys):
    show(progress(verbose), EPOCH, BatchInfo(4, 1, 0.3, 100.0))
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(monkeypatch):
    """Not a fixture: pytest puts its own standard output in place after those."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    return terminal


def test_a_live_bar_on_a_terminal(monkeypatch):
    terminal = on_terminal(monkeypatch)
    callback = progress(1)
    show(callback, BatchInfo(3, 5, 0.3456, 14_599.7), EPOCH)
    shown = terminal.getvalue()
    assert "epoch  3/20  loss 0.2711  acc 0.9013  val loss 0.2500  val 0.9123  lr 0.001  4.1 s  14,600 image" in shown
    assert "batch  5/10  loss 0.3456  14,600 images/s" in shown
    assert "12 %" in shown  # batch 5 of epoch 3: 25 of 200
    assert callback._bar is None


def test_the_bar_can_start_again(monkeypatch):
    terminal = on_terminal(monkeypatch)
    callback = progress(1)
    show(callback, EPOCH)
    show(callback, EPOCH)
    assert terminal.getvalue().count("val 0.9123") == 2


def test_ending_before_the_beginning(monkeypatch):
    on_terminal(monkeypatch)
    progress(1).on_fit_end(History())
