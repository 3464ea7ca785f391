"""Measure how long a KV library takes for one document of a model of SmolLM2-135M's shape.

The unit is the golden model: its memory is the host's, so what a board's link takes comes on top.

Usage: python scripts/library_times.py [TOKENS]
"""

import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

import moska.host
from moska.host import Geometry, Library, Rope

GEOMETRY = Geometry("SmolLM2-135M", 30, 9, 3, 64, Rope(100_000, 64))


def best(work: Callable[[], object], n: int = 5) -> float:
    """Seconds of the fastest of ``n`` calls."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main(n_tokens: int) -> None:
    """Print a Markdown table."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 49_152, n_tokens)
    k, v = rng.normal(size=(2, 30, 3, n_tokens, 64)).astype(np.float16)
    with (
        moska.host.open("golden:ulx3s") as device,
        Library(device, GEOMETRY) as library,
        tempfile.TemporaryDirectory() as folder,
    ):

        def add() -> None:
            library.close()
            library.add(tokens, k, v)

        add()
        context = library.match(tokens)
        rows = {
            "`match` of all chunks": best(lambda: library.match(tokens), 50),
            "`lease` of its context, and release": best(
                lambda: library.lease(context).release(), 50
            ),
            "`save`": best(lambda: library.save(folder), 3),
            "`Library.load`": best(lambda: Library.load(device, folder).close(), 3),
            "`add`: quantise and copy to the device": best(add, 3),
        }
        per_token = library.nbytes / (n_tokens // library.chunk_tokens * library.chunk_tokens)
        print(f"{n_tokens:,} tokens: {library.nbytes:,} bytes, {per_token:,.1f} a token\n")
    print("| what | ms |\n|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {float(f'{1000 * seconds:.2g}'):g} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2048)
