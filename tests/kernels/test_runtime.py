"""Threads and the cache of compiled code: each risky case in a process of its own, with a time limit."""

import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numba
import numpy as np
import pytest
from threadpoolctl import threadpool_info

from fastcnn import Network
from fastcnn.kernels.cpu import crew, launch, objects, runtime
from fastcnn.layers import Dense

LIMIT = int(numba.config.NUMBA_NUM_THREADS)

TRAIN = """
import threading
import numpy as np
from fastcnn import Network
from fastcnn.layers import Conv2D, Dense, MaxPool2D

def train(seed, layers=(Conv2D(16, activation="relu"), MaxPool2D())):
    net = Network([*layers, Dense(3)], (16, 16, 4), random_state=seed, n_jobs=2)
    x = np.random.default_rng(seed).standard_normal((64, 16, 16, 4))
    return [net.train_step(x, np.arange(64) % 3) for _ in range(15)]
"""


def run(code, *arguments, **environment):
    """Run `code` in a new Python; its standard output."""
    command, env = [sys.executable, "-c", code, *arguments], os.environ | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.small
def test_thread_counts():
    assert runtime.max_threads() == runtime.max_threads(-1) == LIMIT
    assert runtime.max_threads(1) == 1 and runtime.max_threads(10_000) == LIMIT
    assert type(runtime.max_threads(np.int8(1))) is int  # sizes of scratch are its multiples
    with pytest.raises(ValueError, match="n_jobs must be a positive int, -1 or None, got 0"):
        runtime.max_threads(0)


@pytest.mark.small
def test_orthogonal_weights_are_those_of_one_blas_thread(monkeypatch):
    """Or else those of a search's workers, which have fewer, would be others."""
    counts, qr = [], np.linalg.qr

    def noted(a):
        counts.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return qr(a)

    monkeypatch.setattr(np.linalg, "qr", noted)
    Network([Dense(3)], (4,), weight_init="orthogonal")
    assert counts and set(counts) == {1}


@pytest.mark.small
def test_blas_has_its_threads_back_whoever_leaves_first():
    def counts():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    def a():
        with runtime.one_blas_thread():
            inside.append(counts())
            entered.set()
            time.sleep(0.1)  # b asks for it meanwhile, and is there when a leaves

    def b():
        entered.wait(10)
        with runtime.one_blas_thread():
            time.sleep(0.3)
            inside.append(counts())

    before, inside, entered = counts(), [], threading.Event()
    together = [threading.Thread(target=work) for work in (a, b)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join(10)
    assert before and inside == [[1] * len(before)] * 2
    assert counts() == before


@pytest.mark.small
def test_code_is_kept_apart_where_settings_differ(monkeypatch):
    usual = runtime._sources_digest()
    for name, value in (("OPT", 0), ("CPU_NAME", "generic"), ("ENABLE_AVX", 7), ("USING_SVML", "other")):
        with monkeypatch.context() as patch:
            patch.setattr(numba.config, name, value)
            assert runtime._sources_digest() != usual
    assert runtime._sources_digest() == usual


@pytest.mark.small
def test_nothing_is_kept_where_there_are_no_sources(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", missing)
    assert runtime._find_cache_dir() is None


@pytest.mark.small
def test_threads_are_given_back():
    assert runtime.lanes() == 1
    with runtime.threads(None):
        assert runtime.lanes() == LIMIT
        with pytest.raises(KeyError), runtime.threads(1):
            assert runtime.lanes() == 1
            raise KeyError
        assert runtime.lanes() == LIMIT
    assert runtime.lanes() == 1


def test_callers_in_two_threads_share_the_crew():
    code = (
        TRAIN
        + """
alone = [train(0), train(1)]
found = [None, None]
def work(i):
    found[i] = train(i)
workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(found == alone, sum(t.name.startswith("fastcnn-") for t in threading.enumerate()))
"""
    )
    assert run(code, NUMBA_NUM_THREADS="2") == "True 1"


def test_numbers_of_programs_come_round_and_take_no_memory():
    code = (
        TRAIN
        + """
import tracemalloc
from fastcnn.kernels.cpu import crew
expected = train(0)
assert crew._crew._epoch > 0
crew._crew._epoch = crew.EPOCHS - 3
right = train(0) == expected
net = Network([Conv2D(8), Dense(10)], (28, 28, 1), random_state=0)
x = np.zeros((32, 28, 28, 1), np.float32)
net.forward(x)
tracemalloc.start()
before, first = tracemalloc.get_traced_memory()[0], crew._crew._epoch
for _ in range(2000): net.forward(x)
kept = tracemalloc.get_traced_memory()[0] - before
print(right, crew._crew._epoch - first >= 2000, kept < 20000)
"""
    )
    assert run(code, NUMBA_NUM_THREADS="2") == "True True True"


def test_callers_do_not_add_up(monkeypatch):
    """Three callers that may have four lanes each: the second and the third leave one to each other caller."""
    crew_ = crew.Crew()
    got = []

    def call(depth):
        def inside(address, count, lanes, small):
            got.append(lanes)
            if depth > 1:
                call(depth - 1)
            return 0

        monkeypatch.setattr(crew_, "_run", inside)
        crew_.run(0, 0, 4, 0)

    call(3)
    assert got == [4, 3, 2] and not crew_._inside


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_pool_worker_takes_one_thread(method, tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from fastcnn.kernels.cpu.runtime import max_threads\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:\n"
        "        print(pool.map(max_threads, [None, -1, 2]))\n"
    )
    root = str(Path(runtime.__file__).parents[3])
    done = subprocess.run(
        [sys.executable, script, method],
        env=os.environ | {"NUMBA_NUM_THREADS": "2", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[1, 2, 2]", done.stderr


def test_more_lanes_than_cores():
    code = "import os\nprint(os.cpu_count())\n" + TRAIN.replace("n_jobs=2", "n_jobs=None") + "print(train(0))"
    many, losses = run(code, NUMBA_NUM_THREADS=str(4 * (os.cpu_count() or 1))).splitlines()
    one = run(code, NUMBA_NUM_THREADS="1").splitlines()
    assert one == [many, losses]


def test_lanes_sleep_and_wake():
    code = (
        TRAIN
        + """
import time
from fastcnn.kernels.cpu import crew
first = train(0)
time.sleep(0.3)  # long enough to fall asleep
before = time.thread_time(), time.process_time()
time.sleep(0.5)
used = time.process_time() - before[1]
print(train(0) == first, used < 0.2)
"""
    )
    assert run(code, NUMBA_NUM_THREADS="2") == "True True"


def test_an_interrupt_while_lanes_are_hired():
    """Nobody knows whether it came before or after the thread began: others are hired."""
    code = (
        TRAIN
        + """
import threading
from fastcnn.kernels.cpu import crew
expected, start = train(0), threading.Thread.start
crew._crew = crew.Crew()
for begin in (lambda thread: None, start):
    def interrupted(thread):
        begin(thread)
        raise KeyboardInterrupt
    threading.Thread.start = interrupted
    try:
        train(0)
    except KeyboardInterrupt:
        print(len(crew._crew._alarms))
    threading.Thread.start = start
    assert train(0) == expected and len(crew._crew._alarms) == 2
    crew._crew = crew.Crew()
"""
    )
    assert run(code, NUMBA_NUM_THREADS="2") == "1\n1"


def test_lanes_that_no_program_came_for_sleep():
    """As after Ctrl-C between hiring them and the first program."""
    code = """
import time
from fastcnn.kernels.cpu import crew
crew._crew._hire(2)
time.sleep(0.3)
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before < 0.2)
"""
    assert run(code) == "True"


def test_without_a_home_to_write_to(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    code = TRAIN + "from fastcnn.kernels.cpu import runtime; print(runtime.cache_dir(), len(train(0, layers=())))"
    nowhere = {"FASTCNN_CACHE_DIR": str(blocked), "NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(blocked)}
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    where, steps = run(code, **nowhere, TMPDIR=str(temporary)).split()
    assert where.startswith(str(temporary)) and steps == "15"


COUNT = """
from fastcnn.kernels.cpu import objects, together
together.MOST = 1
compiled, compile_ = [], objects._compile
objects._compile = lambda function, *rest: compiled.append(function.__name__) or compile_(function, *rest)
"""


COUNTED = (
    COUNT
    + TRAIN
    + """
losses = train(0, (Dense(8, activation="relu"),))
print(losses[-1], len(compiled), "multiply_rows" in compiled)
"""
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache after a training, and its last loss."""
    folder = tmp_path_factory.mktemp("cache")
    loss, count, multiplied = run(COUNTED, FASTCNN_CACHE_DIR=str(folder)).split()
    assert multiplied == "True" and int(count) > 10
    return folder, loss


def test_the_cache_is_read_by_the_next_process(filled):
    folder, loss = filled
    files = sorted(path.name for path in folder.rglob("*"))
    assert run(COUNTED, FASTCNN_CACHE_DIR=str(folder)).split() == [loss, "0", "False"]
    assert sorted(path.name for path in folder.rglob("*")) == files
    assert runtime._sources_digest() in files


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_object_file_is_compiled_again(filled, tmp_path, damage):
    cache, loss = tmp_path / "cache", filled[1]
    shutil.copytree(filled[0], cache)
    (path,) = cache.rglob("multiply_rows-*.o")
    path.write_bytes(damage(path.read_bytes()))
    assert run(COUNTED, FASTCNN_CACHE_DIR=str(cache)).split() == [loss, "1", "True"]
    assert path.read_bytes()[:32] == hashlib.sha256(path.read_bytes()[32:]).digest()


def test_code_that_differs_is_another_object():
    def make(n):
        def function(x):
            return x + n

        return function

    def other(x):
        return x + 2

    digests = [objects._digest(make(1), "int64"), objects._digest(make(2), "int64"), objects._digest(make(1), "int32")]
    assert len({*digests, objects._digest(other, "int64")}) == 4
    assert objects._digest(make(1), "int64") == digests[0]


def test_code_is_told_by_the_names_of_what_it_reads():
    """A kernel that reads `size.h` is another one when h and w have changed places."""
    one, other = (namedtuple("Size", fields)(4, 5) for fields in ("h w", "w h"))
    assert launch._described((one, 1.0)) == "tuple(0: Size(h: int, w: int), 1: float)"
    assert launch._described((one, 1.0)) != launch._described((other, 1.0))


SUM = """
import sys
from fastcnn.kernels.cpu import objects

def make(n):
    def function(x):
        return x + n
    return objects.Entry(function)

print(*[make(int(n))(0) for n in sys.argv[1:]])
"""


def test_functions_of_two_processes_stay_apart(tmp_path):
    """Each is the first that its process compiles; Numba tells functions apart within a process only."""
    for numbers in (["1"], ["2"], ["1", "2"]):
        assert run(SUM, *numbers, PYTHONHASHSEED="0", FASTCNN_CACHE_DIR=str(tmp_path)).split() == numbers


@pytest.mark.small
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="about owners and modes")
def test_only_a_directory_that_nobody_else_can_change_holds_machine_code(tmp_path):
    directory = tmp_path / "cache" / "digest"
    directory.mkdir(parents=True, mode=0o700)
    directory.parent.chmod(0o755)
    assert runtime._is_private(directory)
    directory.chmod(0o770)
    assert not runtime._is_private(directory)
    directory.chmod(0o755)
    directory.parent.chmod(0o777)
    assert not runtime._is_private(directory)  # another one could be put in its place
    directory.parent.chmod(0o1777)
    assert runtime._is_private(directory)
    if os.getuid() == 0:
        os.chown(directory, 65534, 65534)
        assert not runtime._is_private(directory)
        os.chown(directory, 0, 0)
        os.chown(directory.parent, 65534, 65534)
        assert not runtime._is_private(directory)
