"""Measure what the driver takes for a job, and how many jobs a second its transports do.

The unit is `ulx3s`, a job 64 rows over 1,024 tokens in chunks of 32, all of them or a quarter. Jobs
are submitted one by one while others are under way. What the driver takes is CPU time of the whole
process with a unit that does nothing (`scripts/overhead.py`).

Usage: python scripts/driver_times.py [JOBS]
"""

import sys
import time

import numpy as np
from overhead import NullUnit

import moska.host
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store
from moska.host import Device

ROWS, TOKENS, CHUNK_TOKENS, DIM = 64, 1024, 32, 64
REPEATS = 5


def measure(device: Device, n_jobs: int, k: int | None) -> tuple[float, float]:
    """Seconds of wall and of CPU for a job, at their best."""
    rng = np.random.default_rng(1)
    store = Store.from_float(*rng.normal(size=(2, TOKENS, DIM)), chunk_tokens=CHUNK_TOKENS)
    q = quantize_q(rng.normal(size=(ROWS, DIM)))
    walls, cpus = [], []
    with device.load(store) as handle:
        for _ in range(REPEATS):
            wall, cpu = time.perf_counter(), time.process_time()
            for future in [device.submit(handle, q, k=k) for _ in range(n_jobs)]:
                future.result()
            walls.append((time.perf_counter() - wall) / n_jobs)
            cpus.append((time.process_time() - cpu) / n_jobs)
    return min(walls), min(cpus)


def main(n_jobs: int) -> None:
    """Print a Markdown table."""
    rows = []
    quarter = TOKENS // CHUNK_TOKENS // 4
    for k, name in ((None, "all chunks"), (quarter, "a quarter, routed")):
        with Device(NullUnit()) as device:
            _, cpu = measure(device, n_jobs, k)
        cells = [name, f"{cpu * 1e6:.0f}"]
        for uri, count in (("golden:ulx3s", n_jobs // 8), ("sim:ulx3s?latency=100", 4)):
            with moska.host.open(uri) as device:
                wall, _ = measure(device, count, k)
            cells.append(f"{1 / wall:.3g}")
        rows.append(cells)
    print("| job | driver, us of CPU | `golden:`, jobs/s | `sim:`, jobs/s |\n|---|---|---|---|")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
