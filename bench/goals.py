"""What was asked of fastcnn, and whether the measurements reach it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench import report_cluster, report_cuda, report_recipes
from bench.coldstart import EMPTY_ROUNDS
from bench.networks import NETWORKS
from bench.peers import BATCHES, NAMES, summary
from tests.cases import LAYERS

CELLS = len(NETWORKS) * len(BATCHES)
TORCH = {  # by kind of cell: what, the geometric mean asked, the least cell asked, how many cells there are
    "train": ("training", 3.0, 1.3, CELLS),
    "predict": ("predicting", 2.5, 1.2, CELLS),
    "predict one": ("predicting one image", 2.0, None, len(NETWORKS)),
}
OTHERS = 4.0  # times Keras and JAX, training
SHARES = {"conv forward": 0.90, "conv input gradient": 0.88, "conv weight gradient": 0.85}  # of peak, direct 3x3
WINOGRAD = 1.25  # of peak, counting the operations of the direct algorithm
TWO_THREADS, GRID_SEARCH, RESIDENT = 1.85, 10.0, 0.6
ONE_IMAGE = 150.0  # microseconds
FIRST_FIT, COMPILING = 0.5, 15.0  # times `import torch`; seconds
CHANNELS = 32  # in and out, from here on the shares are asked for

Results = dict[str, dict[str, Any]]


class Goal(NamedTuple):
    what: str
    asked: str
    measured: str
    verdict: str


def _goal(what: str, asked: str, measured: str, reached: bool, complete: bool = True) -> Goal:
    verdict = "**not reached**" if not reached else "reached" if complete else "reached so far; incomplete"
    return Goal(what, asked, measured, verdict)


def goals(results: Results) -> list[Goal]:
    """All of them, in order; results are those of bench/results by name."""
    return [
        *_peers(results),
        *_kernels(results),
        *_the_rest(results),
        *_recipes(results),
        *_cluster(results),
        *_cuda(results),
    ]


def _missing(what: str, asked: str) -> Goal:
    return Goal(what, asked, "-", "not measured")


def _peers(results: Results) -> Iterator[Goal]:
    found = summary(results["peers"]["cells"]) if "peers" in results else {}
    asked = [("torch", kind, *values) for kind, values in TORCH.items()]
    asked += [(peer, "train", "training", OTHERS, None, CELLS) for peer in ("keras", "jax")]
    for peer, kind, name, mean, least, cells in asked:
        mode = ", its best mode" if peer == "torch" else ""
        what, bound = f"{name}, times as fast as {NAMES[peer]}{mode}; geometric mean", f"{mean:.1f}"
        lowest = f"{name}, no cell of them below"
        s = found.get(peer, {}).get(kind)
        if s is None:
            yield _missing(what, bound)
            if least:
                yield _missing(lowest, f"{least:.1f}")
            continue
        complete, measured = s["cells"] >= cells, s["geometric mean"]
        yield _goal(what, bound, f"{measured:.2f} ({s['cells']} of {cells} cells)", measured >= mean, complete)
        if least:
            yield _goal(lowest, f"{least:.1f}", f"{s['least']:.2f} ({s['least cell']})", s["least"] >= least, complete)


def asked_layers() -> set[str]:
    """The layers whose share of the peak is asked for: 3x3 windows, enough channels."""
    names = set()
    for case in LAYERS:
        g = case.geometry
        if (g.r, g.s) == (3, 3) and g.groups == 1 and min(g.c, g.k) >= CHANNELS:
            names.add(case.name)
    return names


def _kernels(results: Results) -> Iterator[Goal]:
    layers = asked_layers()
    rows = [row for row in results.get("kernels", {}).get("rows", []) if row["layer"] in layers]
    asked = [(what, "direct", share) for what, share in SHARES.items()] + [
        (what, "Winograd", WINOGRAD) for what in SHARES
    ]
    for kernel, algorithm, share in asked:
        effective = "effective share" if algorithm == "Winograd" else "share"
        name = f"{algorithm} 3x3 {kernel}, {CHANNELS} channels or more: {effective} of the multiply-add peak"
        shares = [r["share"] for r in rows if r["what"] == kernel and (r["algorithm"] or "").startswith(algorithm)]
        if not shares:
            yield _missing(name, f"{share:.0%}")
            continue
        enough = sum(s >= share for s in shares)
        measured = f"median {statistics.median(shares):.0%}, least {min(shares):.0%}; {enough} of {len(shares)} layers"
        yield _goal(name, f"{share:.0%}", measured, enough == len(shares))


def _recipes(results: Results) -> Iterator[Goal]:
    for what, asked, measured, reached, complete in report_recipes.goals(results.get("recipes")):
        yield _missing(what, asked) if reached is None else _goal(what, asked, measured, reached, complete)


def _cluster(results: Results) -> Iterator[Goal]:
    for what, asked, measured, reached, complete in report_cluster.goals(results.get("cluster")):
        yield _missing(what, asked) if reached is None else _goal(what, asked, measured, reached, complete)


def _the_rest(results: Results) -> Iterator[Goal]:
    what, asked = "2 threads, times as fast as 1, training `seed` at batch 128", f"{TWO_THREADS}"
    threads = results.get("scaling", {}).get("threads", {})
    twice = {net: found["speed_up"]["2"]["median"] for net, found in threads.items() if "2" in found["speed_up"]}
    if twice:
        measured = ", ".join(f"{net} {value:.2f}" for net, value in twice.items())
        yield _goal(what, asked, measured, twice.get("seed", 0.0) >= TWO_THREADS)
    else:
        yield _missing(what, asked)

    what, asked = "`GridSearchCV`, times as fast as with skorch", f"{GRID_SEARCH:.0f}"
    search = results.get("estimators", {}).get("grid_search")
    if search:
        ratio = statistics.median(search["ratios"])
        yield _goal(what, asked, f"{ratio:.2f}", ratio >= GRID_SEARCH)
    else:
        yield _missing(what, asked)

    cold = results.get("coldstart", {})
    what, asked = "first `fit`, cache full, times the duration of `import torch`", f"below {FIRST_FIT}"
    if ratios := cold.get("ratio_first_fit_to_import_torch"):
        yield _goal(what, asked, f"{statistics.median(ratios):.2f}", statistics.median(ratios) < FIRST_FIT)
    else:
        yield _missing(what, asked)
    what, asked = "first `fit`, cache empty", f"below {COMPILING:.0f} s"
    if row := cold.get("rows", {}).get("first fit, empty cache"):
        seconds = statistics.median(row["wall"])
        yield _goal(what, asked, f"{seconds:.1f} s", seconds < COMPILING, len(row["wall"]) >= EMPTY_ROUNDS)
    else:
        yield _missing(what, asked)

    what, asked = "peak resident memory of `fit`, times PyTorch's", f"at most {RESIDENT}"
    if ratio := results.get("memory", {}).get("ratio"):
        yield _goal(what, asked, f"{ratio:.2f}", ratio <= RESIDENT)
    else:
        yield _missing(what, asked)

    what, asked = "what `predict` adds to the engine's time for one image", f"below {ONE_IMAGE:.0f} us"
    if rows := results.get("one_image", {}).get("rows"):
        added = {
            name: statistics.median(a - b for a, b in zip(found["estimator"], found["engine"], strict=True))
            for name, found in rows.items()
        }
        yield _goal(what, asked, f"{max(added.values()):.0f} us at most", max(added.values()) < ONE_IMAGE)
    else:
        yield _missing(what, asked)


def _cuda(results: Results) -> Iterator[Goal]:
    for what, bound, ratio, reached in report_cuda.asked(results.get("cuda", {})):
        yield _missing(what, bound) if ratio is None else _goal(what, bound, f"{ratio:.2f}", reached)
