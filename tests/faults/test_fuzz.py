"""Mutated files, a few hundred of each kind; the long version is ``python -m tests.faults.soak fuzz-model ...``."""

import pytest

from fastcnn.engine.ops import conv_geometry
from tests.faults import fuzz
from tests.faults.children import run_in_child


@pytest.mark.parametrize("reader", list(fuzz.READERS))
def test_mutated_files_are_read_or_refused(reader, tmp_path):
    if reader == "image folder":
        pytest.importorskip("PIL")
    tally = fuzz.fuzz(reader, 1, 0, 300, tmp_path)
    assert not tally.failures
    assert tally.tried == 300 and set(tally.outcomes) == {"read", "ValueError"}


def test_inputs_can_be_made_again():
    for reader in fuzz.READERS:
        first, again, other = (fuzz.make(reader, 1, number).files for number in (5, 5, 6))
        assert first == again != other


def test_what_should_not_happen_is_counted(tmp_path, monkeypatch):
    def read(folder):
        raise OverflowError("too large")

    monkeypatch.setitem(fuzz.READERS, "IDX file", lambda rng: fuzz.Input({"a": b""}, read))
    tally = fuzz.fuzz("IDX file", 0, 0, 3, tmp_path)
    assert tally.outcomes == {"failed": 3} and tally.failures[0] == "input 0: OverflowError: too large"


@pytest.mark.parametrize("name", ["kernel_size", "stride", "dilation", "padding"])
def test_sizes_that_no_integer_of_64_bits_holds(name):
    """Found so: a stride of 2^63 in a model file was an OverflowError when the model predicted."""
    with pytest.raises(ValueError, match=name):
        conv_geometry((6, 6, 1), 2, **{"kernel_size": 3} | {name: 2**63})


def test_a_child_that_dies_is_a_failure():
    """The tests of faults in processes of their own would notice."""
    tally = run_in_child("tests.faults.limits", "nothing", 1, 0)
    assert tally.outcomes["failed"] == 1 and "KeyError: 'nothing'" in tally.failures[0]
    assert run_in_child("tests.faults.limits", "memory", 1000, 0, seconds=0.2).outcomes["failed"] == 1
