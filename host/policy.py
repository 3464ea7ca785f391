"""Does batching over the unit pay? Estimates of both ways, and the rule that chooses.

The formulas and their parameters are explained in docs/serving.md.
"""

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moska.golden.formats import KV_BITS, SCALE_BITS
from moska.golden.layout import CHECKSUM_BYTES, COMPLETION_BYTES, DESCRIPTOR_BYTES, SELECTION_LINE
from moska.host.ring import Parameters
from moska.host.unique.path import Array, Path

FP32_BYTES = 4
REP_SCALE_BYTES = 4  # slot of a representative's scale
JOB_SECONDS = 150e-6  # of the host for a job, before any was measured
SMOOTHING = 0.2  # share of the latest step in what is learned


@dataclass(frozen=True)
class Work:
    """Attention of a batch of rows to one span in one layer, as a job for each KV head."""

    n_rows: int  # of each KV head
    n_tokens: int
    chunk_tokens: int
    head_dim: int
    n_kv_heads: int
    k: int | None = None  # chunks that a row keeps; None: all, not routed
    group: int = 1  # rows that share a decision
    rep_rows: int = 0  # representatives of a chunk
    checksums: bool = False


@dataclass(frozen=True)
class Cycles:
    """Fewest cycles of a job, by what could bind."""

    compute: int
    memory: int

    @property
    def bound(self) -> int:
        """The longer of the two."""
        return max(self.compute, self.memory)


def expected_rows(work: Work, n_rows: int) -> tuple[int, int]:
    """Return how many chunks a job reads, and how many rows want each of them.

    When it is routed, decisions are taken to be independent of each other, which reads most: of N
    chunks, ``N * (1 - (1 - k/N)**decisions)`` are wanted.
    """
    n_chunks = -(-work.n_tokens // work.chunk_tokens)
    if work.k is None or work.k >= n_chunks:
        return n_chunks, n_rows
    decisions = -(-n_rows // work.group)
    read = n_chunks * (1 - (1 - work.k / n_chunks) ** decisions)
    n_read = min(n_chunks, max(work.k, round(read)))
    return n_read, -(-n_rows * work.k // n_read) if n_read else 0


def job_cycles(
    unit: Parameters, work: Work, n_rows: int, bytes_per_cycle: float | None = None
) -> Cycles:
    """Fewest cycles of a job of ``n_rows`` rows: array beats, and bytes of the slower port.

    This is the bound of docs/performance.md. Memory moves ``bytes_per_cycle``, a beat of the bus
    when not given.
    """
    dim = work.head_dim
    n_chunks = -(-work.n_tokens // work.chunk_tokens)
    n_read, rows = expected_rows(work, n_rows)
    tokens = min(n_read * work.chunk_tokens, work.n_tokens)
    reps = 0 if work.k is None else work.rep_rows
    value = -(-rows // unit.query_tile) * tokens
    score = -(-n_rows // unit.query_tile) * n_chunks * reps + value

    kv_bytes = tokens * 2 * (dim * KV_BITS + SCALE_BITS) // 8
    row_bytes = (dim * unit.q_bits + SCALE_BITS) // 8 + FP32_BYTES * (dim + 1)
    moved = DESCRIPTOR_BYTES + COMPLETION_BYTES + n_rows * row_bytes + kv_bytes
    moved += n_chunks * reps * (dim * KV_BITS // 8 + REP_SCALE_BYTES)
    if work.checksums:
        moved += n_read * max(CHECKSUM_BYTES, unit.bus_bytes)
    if work.k is not None:
        moved += n_chunks * SELECTION_LINE  # the driver asks for the selection of routed jobs
    if unit.read_ports == 2:
        values = tokens * dim * KV_BITS // 8
        moved = max(moved - values, values)
    rate = unit.bus_bytes if bytes_per_cycle is None else bytes_per_cycle
    return Cycles(unit.fold * max(score, value), int(np.ceil(moved / rate)))


def work_cycles(unit: Parameters, work: Work, bytes_per_cycle: float | None = None) -> int:
    """Fewest cycles of all jobs of ``work``, one after the other; long ones are cut as needed."""
    step = unit.max_rows if work.k is None else unit.max_rows - unit.max_rows % work.group
    whole, rest = divmod(work.n_rows, step)
    total = whole * job_cycles(unit, work, step, bytes_per_cycle).bound if whole else 0
    if rest:
        total += job_cycles(unit, work, rest, bytes_per_cycle).bound
    return work.n_kv_heads * total


@dataclass(frozen=True)
class Rates:
    """How fast a path computes attention."""

    bytes_per_second: float  # of keys and values, when few rows attend to them
    macs_per_second: float  # when many rows do

    def seconds(self, n_bytes: float, n_macs: float) -> float:
        """Time to read so many bytes of keys and values and do so many multiplications."""
        return max(n_bytes / self.bytes_per_second, n_macs / self.macs_per_second)


def measure(path: Path, like: Array, *, repeats: int = 3) -> Rates:
    """Time a path on arrays of the type and the place of ``like``; takes some tenths of a second.

    Keys and values of 32 MiB and one row for the first rate, of 512 tokens and 256 rows for the
    second; the best of ``repeats``.
    """
    rng = np.random.default_rng(0)
    heads, dim = 4, 64

    def best(n_rows: int, n_tokens: int) -> float:
        shapes = ((1, heads, n_rows, dim), (1, heads, n_tokens, dim), (1, heads, n_tokens, dim))
        arrays = [
            path.cast(path.from_numpy(rng.random(shape, dtype=np.float32), like), like)
            for shape in shapes
        ]
        seconds = []
        for _ in range(repeats + 1):  # the first one warms up
            start = time.perf_counter()
            path.to_numpy(path.attend(*arrays)[1])  # waits for the GPU
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    item = itemsize(like)
    tokens = (32 << 20) // (2 * heads * dim * item)
    rows, short = 256, 512
    return Rates(
        2 * heads * tokens * dim * item / best(1, tokens),
        2 * heads * rows * short * dim / best(rows, short),
    )


def itemsize(x: Array) -> int:
    """Bytes of an element."""
    return int(x.dtype.itemsize)


@dataclass(frozen=True)
class Estimates:
    """What a layer is expected to take, in seconds; None: not known."""

    cycles: int  # of the unit at its bound
    unit: float | None  # these cycles, times what jobs took more so far
    host: float  # the host's work for the unit's jobs
    path: float | None  # the span's attention on the path
    unique: float | None  # the unique part on the path, which the unit's time hides behind


@dataclass(frozen=True)
class Decision:
    """Where the attention to one span is computed in a step, and why."""

    unit: bool  # else on the path
    reason: str
    estimates: Estimates
    work: Work


@dataclass
class Policy:
    """Decides for every span of a step whether its rows go to the unit.

    They do when, per layer, ``max(unit, unique) + host < unique + path``: the unit works while the
    path computes the unique part, and the host's work for its jobs is not hidden.

    Parameters
    ----------
    always
        "unit" or "path" instead of the rule.
    rates
        of the path; measured when the rule is used first, if not given.
    clock_mhz
        of the unit; the device's, if not given.
    bytes_per_cycle
        that the unit's memory moves; a beat of its bus, if not given.
    job_seconds
        of the host for a job; learned from the steps, if not given.

    Attributes
    ----------
    cycles_ratio
        cycles that jobs took, as a multiple of what was estimated; learned from the steps.
    """

    always: Literal["unit", "path"] | None = None
    rates: Rates | None = None
    clock_mhz: float | None = None
    bytes_per_cycle: float | None = None
    job_seconds: float | None = None
    cycles_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.always not in (None, "unit", "path"):
            raise ValueError(f"always must be unit, path or None, not {self.always!r}")
        self._learned_job_seconds = JOB_SECONDS

    @property
    def seconds_per_job(self) -> float:
        """What the host is taken to need for a job."""
        return self._learned_job_seconds if self.job_seconds is None else self.job_seconds

    def decide(
        self,
        work: Work,
        unit: Parameters,
        *,
        clock_mhz: float | None = None,
        kv_bytes: int = FP32_BYTES,
        unique_bytes: int = 0,
        unique_macs: int = 0,
    ) -> Decision:
        """Apply the rule.

        Parameters
        ----------
        work
            of one layer.
        unit
            its parameters.
        clock_mhz
            of the device; the policy's own goes first.
        kv_bytes
            of an element of keys and values on the path.
        unique_bytes, unique_macs
            of the unique part of the same layer.
        """
        clock = self.clock_mhz or clock_mhz
        cycles = work_cycles(unit, work, self.bytes_per_cycle)
        host = work.n_kv_heads * self.seconds_per_job
        on_unit = None if clock is None else cycles * self.cycles_ratio / (clock * 1e6)
        on_path = unique = None
        if self.rates is not None:
            elements = work.n_kv_heads * work.n_tokens * work.head_dim
            macs = 2 * elements * work.n_rows
            on_path = self.rates.seconds(2 * elements * kv_bytes, macs)
            unique = self.rates.seconds(unique_bytes, unique_macs)
        estimates = Estimates(cycles, on_unit, host, on_path, unique)
        if self.always is not None:
            return Decision(self.always == "unit", f"always {self.always}", estimates, work)
        if on_unit is None or on_path is None or unique is None:
            what = "the clock" if on_unit is None else "the path's rates"
            return Decision(True, f"{what} must be known to compare", estimates, work)
        with_unit, without = max(on_unit, unique) + host, unique + on_path
        reason = f"{1e6 * with_unit:.0f} us a layer with the unit, {1e6 * without:.0f} us without"
        return Decision(with_unit < without, reason, estimates, work)

    def learn(
        self, *, n_jobs: int, host_seconds: float, cycles: int, estimated_cycles: int
    ) -> None:
        """Take in what a step's jobs took: of the host, and of the unit against the estimate."""
        if not n_jobs or not estimated_cycles:
            return
        latest = host_seconds / n_jobs
        self._learned_job_seconds += SMOOTHING * (latest - self._learned_job_seconds)
        self.cycles_ratio += SMOOTHING * (cycles / estimated_cycles - self.cycles_ratio)
