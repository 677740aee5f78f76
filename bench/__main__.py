"""`python -m bench`: every benchmark that takes minutes on a CPU, then the report.

What a peer needs is passed on; a peer that is not installed is left out by the benchmark.
`python -m bench [--torch-python PATH] [--keras-python PATH] [--jax-python PATH] [--only NAME ...]`
"""

import argparse
import subprocess
import sys

PYTHONS = ("torch", "keras", "jax")
BENCHMARKS = {  # with the peers that each knows, and its other arguments
    "accuracy": ((), ()),
    "peers": (PYTHONS, ()),
    "estimators": (("torch",), ()),
    "kernels": ((), ("--save",)),
    "memory": (("torch",), ()),
    "coldstart": (("torch",), ()),
    "compiling": ((), ()),
    "scaling": ((), ()),
    "one_image": ((), ()),
    "cluster": ((), ()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in PYTHONS:
        parser.add_argument(f"--{name}-python", metavar="PATH", help=f"a Python that has {name}")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    args = parser.parse_args()
    failed = []
    for name in args.only:
        known, words = BENCHMARKS[name]
        chosen = {peer: getattr(args, f"{peer}_python") for peer in known}
        pythons = [word for peer, path in chosen.items() if path for word in (f"--{peer}-python", path)]
        command = ["-m", f"bench.{name}", *words, *pythons]
        print("== python", *command, flush=True)
        if subprocess.run([sys.executable, *command], check=False).returncode:
            failed.append(name)
    print("== python -m bench.report", flush=True)
    subprocess.run([sys.executable, "-m", "bench.report"], check=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
