"""Time that the host adds to a step, against torch's attention over the same unique keys.

    python scripts/overhead.py                       # JSON in build/overhead.json
    python scripts/overhead.py --page docs/serving.md
    python scripts/overhead.py --shapes 32x2 --tokens 1024

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


class Profile(contextlib.ExitStack):
    """CPU time of some functions, without that of others inside them; of all threads.

    Leaving it as a context manager puts the functions back.
    """

    def __init__(self):
        super().__init__()
        self.seconds = defaultdict(float)
        self._local = threading.local()

    def wrap(self, owner, name, label):
        """Count the time of ``owner.name`` under ``label``."""
        inner = getattr(owner, name)
        own = name in vars(owner)

        def timed(*arguments, **options):
            outside = getattr(self._local, "inside", 0.0)
            self._local.inside = 0.0
            start = time.thread_time()
            try:
                return inner(*arguments, **options)
            finally:
                total = time.thread_time() - start
                self.seconds[label] += total - self._local.inside
                self._local.inside = outside + total

        setattr(owner, name, timed)
        self.callback(setattr if own else lambda *_: delattr(owner, name), owner, name, inner)


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


@dataclasses.dataclass(frozen=True)
class Shape:
    """A step in which every request decodes one token."""

    requests: int
    group: int  # query heads of a KV head
    layers: int
    kv_heads: int

    @property
    def rows(self):
        """Rows of a job."""
        return self.requests * self.group


def sdpa_seconds(shape, n_tokens, repeats):
    """Seconds of torch's attention over the unique keys of one layer."""
    b, g, r, d = shape.requests, shape.kv_heads, shape.group, CONFIG.head_dim
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
        results.append(best(run, repeats).per(len(layers)))
    return Seconds(min(x.wall for x in results), min(x.cpu for x in results))


def wrapped(device):
    """Profile of a step's functions on a device."""
    profile = Profile()
    for owner, name, label in (
        (steps.Step, "state", "step: rest"),
        (steps.Step, "_gather", "step: gather rows"),
        (steps.Step, "_decide", "step: decide"),
        (steps, "quantize_q", "step: quantise"),
        (steps.Step, "_result", "step: gather results"),
        (steps, "_merged", "step: scatter results"),
        (steps, "merge_states", "step: merge"),
        (device, "_cut", "submit: check and cut"),
        (device, "_place", "submit: place queries"),
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
    return profile


def host_figures(shape, repeats):
    """Measure what the host does for a step, and where its time goes."""
    dim = CONFIG.head_dim
    geometry = Geometry(
        "overhead",
        n_layers=shape.layers,
        n_heads=shape.kv_heads * shape.group,
        n_kv_heads=shape.kv_heads,
        head_dim=dim,
        rope=Rope(10000.0, dim),
    )
    rng = np.random.default_rng(0)
    q = torch.randn(shape.requests, geometry.n_heads, 1, dim)
    own = torch.zeros(shape.requests, geometry.n_kv_heads, 0, dim)
    unit = NullUnit()
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device(unit))
        library = stack.enter_context(Library(device, geometry))
        k, v = rng.normal(size=(2, shape.layers, shape.kv_heads, SHARED_TOKENS, dim))
        context = library.add(np.arange(SHARED_TOKENS), k, v)
        orchestrator = stack.enter_context(
            Orchestrator(library, ReadyPath(tuple(q.shape)), policy=Policy(always="unit"))
        )
        requests = [orchestrator.join(context) for _ in range(shape.requests)]

        def step():
            one = orchestrator.step(requests)
            for layer in range(shape.layers):
                one.attend(layer, q, own, own)
            return one.report

        step()
        unit.seconds = 0.0
        taken = best(step, repeats)
        null = unit.seconds / repeats
        least = {}
        with wrapped(device) as profile:
            reports = []
            for _ in range(repeats):
                profile.seconds.clear()
                reports.append(step())
                for label, seconds in profile.seconds.items():
                    least[label] = min(seconds, least.get(label, seconds))
    return {
        "jobs": reports[0].jobs,
        "host": dataclasses.asdict(Seconds(taken.wall - null, taken.cpu - null)),
        "null_unit_seconds": null,
        "caller_seconds": {
            part: float(np.median([report.seconds[part] for report in reports]))
            for part in reports[0].seconds
        },
        "cpu_seconds": least,
    }


def figures_of(shape, own_tokens, repeats):
    """Figures of a shape, with its ratios to torch's attention."""
    figures = dataclasses.asdict(shape) | host_figures(shape, repeats)
    host = Seconds(**figures["host"])
    layer = host.per(shape.layers)
    figures["sdpa"] = []
    for n_tokens in own_tokens:
        sdpa = sdpa_seconds(shape, n_tokens, repeats)
        figures["sdpa"].append({
            "tokens": n_tokens,
            "per_layer": dataclasses.asdict(sdpa),
            "ratio": layer.wall / sdpa.wall,
            "cpu_ratio": layer.cpu / sdpa.cpu,
            "step_to_one_call": host.wall / sdpa.wall,
            "cpu_step_to_one_call": host.cpu / sdpa.cpu,
        })
    return figures


def tables(measured):
    """Header and rows of the tables: ratios, and where the CPU time of the first shape goes."""
    ratios = [(
        "requests x heads of a group", "own tokens of a request", "host, ms a layer",
        "SDPA, ms a layer", "host / SDPA", "step / one SDPA call",
    )]  # fmt: skip
    for one in measured:
        for sdpa in one["sdpa"]:
            host, call = one["host"], sdpa["per_layer"]
            ratios.append((
                f"{one['requests']} x {one['group']}",
                f"{sdpa['tokens']:,}",
                *(
                    f"{1e3 * cpu:.2f} ({1e3 * wall:.2f})"
                    for wall, cpu in (
                        (host["wall"] / one["layers"], host["cpu"] / one["layers"]),
                        (call["wall"], call["cpu"]),
                    )
                ),
                f"{sdpa['cpu_ratio']:.2f} ({sdpa['ratio']:.2f})",
                f"{sdpa['cpu_step_to_one_call']:.1f} ({sdpa['step_to_one_call']:.1f})",
            ))
    seconds = measured[0]["cpu_seconds"]
    total = sum(value for name, value in seconds.items() if name != "null unit")
    parts = [("where", "CPU, ms a step", "share")]
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        if name != "null unit":
            parts.append((name, f"{1e3 * value:.2f}", f"{value / total:.0%}"))
    return ratios, parts


def write_page(path, found):
    """Put tables between the marks of a page."""
    text = path.read_text(encoding="utf-8")
    begin, end = "<!-- overhead -->\n", "<!-- end -->"
    before, rest = text.split(begin, 1)
    behind = rest.split(end, 1)[1]
    lines = []
    for header, *rows in found:
        marks = ["---", *["---:"] * (len(header) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in (header, marks, *rows)] + [""]
    path.write_text(before + begin + "\n".join(["", *lines, end]) + behind, encoding="utf-8")


def main():
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes", nargs="+", default=["16x4", "64x1"], metavar="REQUESTSxGROUP",
        help="requests, and query heads of a KV head",
    )  # fmt: skip
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/overhead.json"))
    parser.add_argument("--page", type=pathlib.Path, help="page to write the tables into")
    arguments = parser.parse_args()
    measured = []
    for text in arguments.shapes:
        requests, group = map(int, text.split("x"))
        shape = Shape(requests, group, arguments.layers, arguments.kv_heads)
        measured.append(figures_of(shape, arguments.tokens, arguments.repeats))
    found = tables(measured)
    console = Console()
    console.print("CPU time, and wall-clock time in brackets.")
    for header, *rows in found:
        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    if arguments.page:
        write_page(arguments.page, found)


if __name__ == "__main__":
    main()
