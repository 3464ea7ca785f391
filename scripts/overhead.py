"""Time that the host adds to a step, against torch's attention over the same unique keys.

    python scripts/overhead.py                   # torch on the CPU; JSON in build/overhead.json
    python scripts/overhead.py --requests 64 --group 1 --tokens 128 512

A unit that completes every job at once, and a path that has its results ready, take the places of
the real ones: what is left of a step is what the host does for it, orchestrator, driver and merge.
It is compared, in the same run, with a call of scaled_dot_product_attention for each layer over the
keys and values that the requests have for themselves, on as many threads as are quickest.

Times are the best of several. Where other programs keep the machine busy, compare CPU times.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import threading
import time
from collections import defaultdict

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from moska.gen.config import Config
from moska.golden.formats import BLOCK_TOKENS, Q_BITS
from moska.golden.layout import COMPLETION_BYTES, DESCRIPTOR, DESCRIPTOR_BYTES
from moska.host import Device, Geometry, Library, Rope, Transport, regmap
from moska.host import orchestrator as steps
from moska.host.orchestrator import Orchestrator
from moska.host.policy import Policy
from moska.host.unique.torch_cpu import TorchCpuPath

MEMORY_BYTES = 1 << 28
SHARED_TOKENS = 64
CONFIG = Config.load("ulx3s")


class NullUnit(Transport):
    """A unit whose jobs are done when they are announced; their results are zeros.

    Attributes
    ----------
    seconds
        that it has taken itself: no part of what the host does
    """

    memory_base = 0
    memory_bytes = MEMORY_BYTES
    clock_mhz = float(CONFIG.clock_mhz)
    description = "unit that takes no time"

    def __init__(self):
        self.memory = np.zeros(MEMORY_BYTES, dtype=np.uint8)
        self.seconds = 0.0
        self._interrupt = threading.Event()
        self.reset()

    def read(self, address, size):
        """Read memory."""
        return self.memory[address : address + size].tobytes()

    def write(self, address, raw):
        """Write memory."""
        self.memory[address : address + len(raw)] = np.frombuffer(raw, dtype=np.uint8)

    def read32(self, offset):
        """Read a register."""
        return self._registers.get(offset, 0)

    def write32(self, offset, value):
        """Write a register; the doorbell does the jobs."""
        if offset == regmap.EVENT:
            self._interrupt.clear()
            return
        self._registers[offset] = value
        if offset == regmap.TAIL:
            start = time.thread_time()
            self._complete(value)
            self.seconds += time.thread_time() - start

    def wait(self, timeout):
        """Wait for the interrupt."""
        return self._interrupt.wait(timeout)

    def reset(self):
        """Forget everything but memory."""
        known = {name: getattr(CONFIG, name, 0) for name in regmap.PARAMETERS}
        known |= {"block_tokens": BLOCK_TOKENS, "q_bits": Q_BITS}
        self._registers = {offset: known[name] for name, offset in regmap.PARAMETERS.items()}
        self._registers |= {
            regmap.ID: regmap.ID_VALUE,
            regmap.VERSION: regmap.VERSION_MAP_VALUE,
            regmap.COMPLETED: 0,
        }
        self._interrupt.clear()

    def close(self):
        """Do nothing."""

    def _complete(self, tail):
        entries = 1 << self._registers[regmap.RING_SIZE]
        done = self._registers[regmap.COMPLETED]
        while done != tail:
            at = self._registers[regmap.RING_LO] + done % entries * DESCRIPTOR_BYTES
            record = self._registers[regmap.COMPLETION_LO] + done % entries * COMPLETION_BYTES
            done = (done + 1) & 0xFFFF
            for name, size in (("o_addr", 4 * CONFIG.head_dim), ("lse_addr", 4)):
                address = self._field(at, DESCRIPTOR[name])
                n_rows = self._field(at, DESCRIPTOR["n_rows"])
                self.memory[address : address + size * n_rows] = 0
            # Sequence numbers stay below 2**16 here.
            raw = done.to_bytes(4, "little") + bytes(COMPLETION_BYTES - 4)
            self.write(record, raw)
        self._registers[regmap.COMPLETED] = done
        self._interrupt.set()

    def _field(self, at, place):
        offset, size = place
        return int.from_bytes(self.memory[at + offset : at + offset + size].tobytes(), "little")


class ReadyPath(TorchCpuPath):
    """A path that has the results of the unique part ready."""

    def __init__(self, shape):
        super().__init__()
        self._results = torch.zeros(shape), torch.zeros(shape[:3])

    def attend(self, q, k, v, mask=None, scale=None):
        """Return zeros."""
        return self._results


class Profile:
    """CPU time of some functions, without that of others inside them; of all threads."""

    def __init__(self):
        self.seconds = defaultdict(float)
        self.calls = defaultdict(int)
        self._local = threading.local()

    def wrap(self, owner, name, label):
        """Count calls of ``owner.name`` under ``label``."""
        inner = getattr(owner, name)

        def timed(*arguments, **options):
            outside = getattr(self._local, "inside", 0.0)
            self._local.inside = 0.0
            start = time.thread_time()
            try:
                return inner(*arguments, **options)
            finally:
                total = time.thread_time() - start
                self.seconds[label] += total - self._local.inside
                self.calls[label] += 1
                self._local.inside = outside + total

        setattr(owner, name, timed)


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Shortest time of several calls, and least CPU time of all threads."""

    wall: float
    cpu: float

    def per(self, n):
        """Return the times divided by ``n``."""
        return Seconds(self.wall / n, self.cpu / n)


def best(function, repeats):
    """Return the shortest times of several calls."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        function()
        taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    walls, cpus = zip(*taken, strict=True)
    return Seconds(min(walls), min(cpus))


def sdpa_seconds(arguments, n_tokens):
    """Seconds of torch's attention over the unique keys of one layer."""
    b, g, r, d = arguments.requests, arguments.kv_heads, arguments.group, CONFIG.head_dim
    q = torch.randn(b, g * r, 1, d)
    # Several layers, so that no cache holds what the next one reads.
    layers = [torch.randn(2, b, g, n_tokens, d) for _ in range(8)]

    def run():
        for k, v in layers:
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=r > 1)

    results = []
    threads = torch.get_num_threads()
    for n in (1, threads):
        torch.set_num_threads(n)
        results.append(best(run, arguments.repeats).per(len(layers)))
    return Seconds(min(x.wall for x in results), min(x.cpu for x in results))


def main():
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--group", type=int, default=4, help="query heads of a KV head")
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/overhead.json"))
    arguments = parser.parse_args()
    rows = arguments.requests * arguments.group
    dim = CONFIG.head_dim
    geometry = Geometry(
        "overhead",
        n_layers=arguments.layers,
        n_heads=arguments.kv_heads * arguments.group,
        n_kv_heads=arguments.kv_heads,
        head_dim=dim,
        rope=Rope(10000.0, dim),
    )
    rng = np.random.default_rng(0)
    unit = NullUnit()
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device(unit))
        library = stack.enter_context(Library(device, geometry))
        shape = (arguments.layers, arguments.kv_heads, SHARED_TOKENS, dim)
        tokens = np.arange(SHARED_TOKENS)
        library.add(tokens, rng.normal(size=shape), rng.normal(size=shape), name="shared")
        q = torch.randn(arguments.requests, geometry.n_heads, 1, dim)
        orchestrator = stack.enter_context(
            Orchestrator(library, ReadyPath(tuple(q.shape)), policy=Policy(always="unit"))
        )
        requests = [
            orchestrator.join(library.compose(["shared"])) for _ in range(arguments.requests)
        ]
        k = torch.zeros(arguments.requests, geometry.n_kv_heads, 0, dim)

        def step():
            one = orchestrator.step(requests)
            for layer in range(arguments.layers):
                one.attend(layer, q, k, k)
            return one.report

        step()
        unit.seconds = 0.0
        taken = best(step, arguments.repeats)
        null = unit.seconds / arguments.repeats

        profile = Profile()
        for owner, name, label in (
            (steps.Step, "state", "step: rest"),
            (steps.Step, "_gather", "step: gather rows"),
            (steps.Step, "_decide", "step: decide"),
            (steps, "quantize_q", "step: quantise"),
            (steps.Step, "_result", "step: gather results"),
            (steps, "_merged", "step: scatter results"),
            (steps, "merge_states", "step: merge"),
            (device, "_parts", "submit: check and cut"),
            (device, "_place", "submit: pack queries and descriptor"),
            (device, "_hand_over", "submit: hand over"),
            (device.memory, "allocate", "allocate, free"),
            (device.memory, "free", "allocate, free"),
            (device.transport, "write", "write memory"),
            (device.transport, "read", "read memory"),
            (device._ring, "post", "doorbell"),
            (device.transport, "_complete", "null unit"),
            (device._ring, "collect", "completions"),
            (device, "_count", "counters"),
            (device, "_read_results", "read results"),
            (device, "_end_piece", "futures"),
        ):
            profile.wrap(owner, name, label)
        reports = [step() for _ in range(arguments.repeats)]

    jobs = reports[0].jobs
    parts = {
        part: float(np.median([report.seconds[part] for report in reports]))
        for part in reports[0].seconds
    }
    host = Seconds(taken.wall - null, taken.cpu - null)
    figures = {
        "requests": arguments.requests,
        "rows": rows,
        "layers": arguments.layers,
        "kv_heads": arguments.kv_heads,
        "jobs": jobs,
        "host": dataclasses.asdict(host),
        "null_unit_seconds": null,
        "caller_seconds": parts,
        "cpu_seconds": {
            label: seconds / arguments.repeats for label, seconds in profile.seconds.items()
        },
        "sdpa": [],
    }
    console = Console()
    console.print(
        f"{rows} rows, {arguments.layers} layers, {arguments.kv_heads} KV heads: {jobs} jobs a "
        f"step; {1e3 * host.wall:.1f} ms a step ({1e3 * host.cpu:.1f} ms of CPU), "
        f"{1e6 * host.wall / jobs:.0f} us a job"
    )
    table = Table("own tokens", "SDPA, ms a layer", "CPU ms", "host / SDPA", "of CPU",
                  "step / one call")  # fmt: skip
    layer = host.per(arguments.layers)
    for n_tokens in arguments.tokens:
        sdpa = sdpa_seconds(arguments, n_tokens)
        entry = {
            "tokens": n_tokens,
            "sdpa_per_layer": dataclasses.asdict(sdpa),
            "ratio": layer.wall / sdpa.wall,
            "cpu_ratio": layer.cpu / sdpa.cpu,
            "ratio_of_step_to_one_call": host.wall / sdpa.wall,
        }
        figures["sdpa"].append(entry)
        table.add_row(
            f"{n_tokens:,}", f"{1e3 * sdpa.wall:.2f}", f"{1e3 * sdpa.cpu:.2f}",
            f"{entry['ratio']:.2f}", f"{entry['cpu_ratio']:.2f}",
            f"{entry['ratio_of_step_to_one_call']:.1f}",
        )  # fmt: skip
    console.print(table)
    for title, seconds in (
        ("caller's thread, ms a step", parts),
        ("CPU, ms a step (under the profiler)", figures["cpu_seconds"]),
    ):
        table = Table(title, "")
        for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
            table.add_row(name, f"{1e3 * value:.2f}")
        console.print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
