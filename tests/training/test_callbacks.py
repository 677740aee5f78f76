"""What `verbose` prints."""

import io
import sys

import pytest

from fastcnn.training.callbacks import BatchInfo, EpochInfo, FitInfo, progress
from fastcnn.training.loop import History

pytestmark = pytest.mark.small

EPOCH = EpochInfo(
    epoch=3,
    max_iter=20,
    n_samples=60_000,
    loss=0.27114,
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


def test_plain_lines(capsys):
    show(
        progress(True),
        EPOCH,
        BatchInfo(4, 1, 0.3, 100.0),
        EPOCH._replace(epoch=12, validation_score=None, learning_rate=0.000123456, images_per_second=31.26),
    )
    assert capsys.readouterr() == (
        "epoch  3/20  loss 0.2711  val 0.9123  lr 0.001  4.1 s  14,600 images/s\n"
        "epoch 12/20  loss 0.2711  lr 0.000123  4.1 s  31 images/s\n",
        "",
    )


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
    assert "epoch  3/20  loss 0.2711  val 0.9123  lr 0.001  4.1 s  14,600 images/s\n" in shown
    assert "loss 0.3456  14,600 images/s" in shown
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
