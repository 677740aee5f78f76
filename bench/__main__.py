"""`python -m bench`: every benchmark, then the report."""

import subprocess
import sys

for module in ("bench.accuracy", "bench.peers", "bench.report"):
    print(f"== python -m {module}", flush=True)
    subprocess.run([sys.executable, "-m", module], check=True)
