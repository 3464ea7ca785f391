"""Shapes that `moska bench` measures, and the jobs that have them.

Keys, values and queries are those of a real model (:mod:`moska.golden.data`), two heads of 64
elements. Head sizes below 64 project one head onto the leading singular vectors of its keys, 128
puts both heads side by side, 256 embeds that by an orthonormal map, which leaves scores as they
are. Stores longer than 2,048 tokens repeat the text with noise, and so do more than 192 rows.
"""

import enum
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moska.gen.bound import Bound, bound
from moska.gen.config import Config
from moska.golden.data.loader import NAMES, load
from moska.golden.formats import MAX_TOKENS
from moska.golden.quantize import quantize_kv, quantize_q
from moska.golden.router import Router
from moska.golden.unit import Store
from moska.sim.job import Job

Float = NDArray[np.float64]

NATIVE_DIM = 64
REPEAT_NOISE = 0.5  # of the deviation of an element
PEAK_SCORE = 500.0  # of the best chunk of a forced pattern; selection keys saturate at 1,024

ROWS = (8, 16, 32, 64, 128, 256, 512)
CHUNKS = (32, 64, 128, 256, 512, 1024, 2048)  # tokens
LATENCIES = (0, 100, 300)  # cycles
LATENCY = 100
SHORT, MEDIUM, LARGE = 2_000, 18_000, 110_000  # cycles of a job's bound, about
MIDDLE_ROWS = 64
PART_TOKENS = 1 << 16  # of a long store that are floating-point numbers at a time


class Pattern(enum.Enum):
    """Which chunks the rows of a job choose."""

    DENSE = "dense"  # all
    DATA = "data"  # what the router chooses on real keys and queries
    SAME = "same"  # all rows the same ones
    APART = "apart"  # each row others, as far as they go


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One line of the benchmark."""

    rows: int
    chunk_tokens: int
    n_tokens: int
    pattern: Pattern = Pattern.DENSE
    keep: float = 1.0  # share of the chunks that a row keeps
    latency: int = LATENCY  # of memory, in cycles
    checksum: bool = False
    judged: bool = True  # False: measured only as the reference of a gain

    @property
    def n_chunks(self) -> int:
        """Chunks of the store."""
        return -(-self.n_tokens // self.chunk_tokens)

    @property
    def k(self) -> int | None:
        """Chunks that a row keeps; None: all."""
        return None if self.pattern is Pattern.DENSE else max(1, round(self.n_chunks * self.keep))

    @property
    def selection(self) -> str:
        """How chunks are selected, in a word or two."""
        if self.pattern is Pattern.DENSE:
            return "dense"
        forced = "" if self.pattern is Pattern.DATA else f" {self.pattern.value}"
        return f"{self.keep:.0%}{forced}"

    @property
    def name(self) -> str:
        """One word per property."""
        checksum = " crc" if self.checksum else ""
        return (
            f"m{self.rows} c{self.chunk_tokens} s{self.n_tokens} {self.selection} "
            f"l{self.latency}{checksum}"
        )

    def dense(self) -> "Shape":
        """Return the same job without routing, as a reference."""
        return replace(self, pattern=Pattern.DENSE, keep=1.0, judged=False)

    def single(self) -> "Shape":
        """Return one row of the same job, as a reference."""
        return replace(self, rows=1, judged=False)


def same_work(a: Shape, b: Shape) -> bool:
    """Whether two shapes differ at most in being judged."""
    return replace(a, judged=True) == replace(b, judged=True)


def estimate(config: Config, shape: Shape) -> Bound:
    """Bound of a shape without its data: SAME reads k chunks, APART all, DATA half the others."""
    rows = np.full(shape.n_chunks, shape.rows)
    if shape.k is not None:
        read = {Pattern.SAME: shape.k, Pattern.APART: shape.n_chunks}.get(
            shape.pattern, (shape.k + shape.n_chunks) // 2
        )
        rows[:] = -(-shape.rows * shape.k // read)
        rows[read:] = 0
    rep_rows = {Pattern.DENSE: 0, Pattern.DATA: 2}.get(shape.pattern, 1)
    return bound(
        config,
        n_rows=shape.rows,
        chunk_tokens=shape.chunk_tokens,
        n_tokens=shape.n_tokens,
        rows_per_chunk=rows,
        rep_rows=rep_rows,
        write_selection=shape.k is not None,
        checksums=shape.checksum,
    )


def sized(config: Config, cycles: int, **properties) -> Shape | None:
    """Shape whose bound is about ``cycles``, or None when the unit holds no such store.

    A store has at least one chunk, and at least two chunks a row to choose.
    """

    def shape(n_chunks: int) -> Shape:
        tokens = n_chunks * properties["chunk_tokens"]
        return Shape(n_tokens=tokens, **properties)

    low = round(2 / properties["keep"]) if "keep" in properties else 1
    high = min(config.max_chunks, MAX_TOKENS // properties["chunk_tokens"])
    if low > high:
        return None
    if estimate(config, shape(high)).bound < cycles:
        # Almost as large will do.
        return shape(high) if estimate(config, shape(high)).bound >= 0.9 * cycles else None
    while low < high:
        middle = (low + high) // 2
        if estimate(config, shape(middle)).bound < cycles:
            low = middle + 1
        else:
            high = middle
    return shape(low)


def latencies(config: Config) -> list[int]:
    """Latencies that the reads in flight can hide: longer ones bound the bytes per cycle."""
    return [
        latency
        for latency in LATENCIES
        if latency * config.memory_bytes_per_cycle <= config.max_in_flight
    ]


def shapes(config: Config, *, quick: bool = False) -> list[Shape]:
    """Shapes to measure: sweeps of one property at a time, from short to large jobs.

    References for gains come behind all others.
    """
    middle = min(MIDDLE_ROWS, config.max_rows)
    all_rows = [rows for rows in ROWS if rows <= config.max_rows]
    few, most = all_rows[0], all_rows[-1]
    data = {"pattern": Pattern.DATA}
    found: list[Shape] = []
    references: list[Shape] = []

    def add(cycles: int, rows: int, chunk_tokens: int, *, gains: bool = False, **properties):
        if properties.get("pattern") is Pattern.DATA:
            # The estimate is a rough one: with room, a medium job is still a long one.
            cycles += cycles // 3
        shape = sized(config, cycles, rows=rows, chunk_tokens=chunk_tokens, **properties)
        if shape is None or shape.latency not in latencies(config):
            return
        found.append(shape)
        if gains:
            references.append(shape.single() if shape.k is None else shape.dense())

    add(SHORT, middle, 64)
    add(MEDIUM, middle, 64, gains=True)
    add(MEDIUM, few, 64, gains=True)
    add(SHORT, middle, 32, keep=0.25, **data)
    add(MEDIUM, middle, 32, keep=0.25, gains=True, **data)
    add(MEDIUM, middle, 64, keep=0.5, gains=True, **data)
    for pattern in (Pattern.SAME, Pattern.APART):
        add(MEDIUM, middle, 32, keep=0.25, pattern=pattern)
    add(MEDIUM, middle, 64, latency=300)
    if not quick:
        for rows in all_rows:
            gains = rows in (few, most)
            add(MEDIUM, rows, 64, gains=True)
            add(MEDIUM, rows, 32, keep=0.25, gains=gains, **data)
        for tokens in CHUNKS:
            add(MEDIUM, middle, tokens)
            add(MEDIUM, middle, tokens, keep=0.5, gains=tokens in (64, 512), **data)
        for latency in LATENCIES:
            for cycles in (SHORT, MEDIUM):
                for rows in (few, middle):
                    add(cycles, rows, 64, latency=latency)
                    add(cycles, rows, 32, keep=0.25, latency=latency, **data)
                add(cycles, middle, 64, keep=0.5, latency=latency, **data)
                for pattern in (Pattern.SAME, Pattern.APART):
                    add(cycles, middle, 32, keep=0.25, pattern=pattern, latency=latency)
        for cycles in (2 * SHORT, 4 * SHORT, LARGE):
            for rows in (few, middle, most):
                add(cycles, rows, 64)
                add(cycles, rows, 32, keep=0.25, **data)
            add(cycles, middle, 64, keep=0.5, **data)
        add(LARGE, most, 1024)
        for pattern in (Pattern.SAME, Pattern.APART):
            for rows in (few, most):
                add(MEDIUM, rows, 32, keep=0.25, pattern=pattern)
            add(SHORT, few, 32, keep=0.25, pattern=pattern)
            add(LARGE, middle, 64, keep=0.5, pattern=pattern)
        for rows in (few, middle):
            add(MEDIUM, rows, 32, checksum=True)
            add(MEDIUM, rows, 32, keep=0.25, checksum=True, **data)
    unique = list(dict.fromkeys(found))
    return unique + [
        reference
        for reference in dict.fromkeys(references)
        if not any(same_work(reference, shape) for shape in unique)
    ]


# Data -------------------------------------------------------------------------------------------


@functools.cache
def head(head_dim: int) -> tuple[Float, Float, Float]:
    """Keys and values (2048, D) and queries (192, D) of the real model, for any head size."""
    loaded = [[np.asarray(array, np.float64) for array in load(name)] for name in NAMES]
    heads = [(k, v, q.reshape(-1, NATIVE_DIM)) for k, v, q in loaded]
    k, v, q = heads[0]
    if head_dim < NATIVE_DIM:
        basis = np.linalg.eigh(k.T @ k)[1][:, : -head_dim - 1 : -1]
        # The scale of the softmax follows the head size: scores stay what they were.
        return k @ basis, v[:, :head_dim], q @ basis * np.sqrt(head_dim / NATIVE_DIM)
    if head_dim > NATIVE_DIM:
        k, v, q = (np.concatenate(pair, axis=1) for pair in zip(*heads, strict=True))
    if head_dim > 2 * NATIVE_DIM:
        rng = np.random.default_rng(head_dim)
        basis = np.linalg.qr(rng.normal(size=(head_dim, 2 * NATIVE_DIM)))[0].T
        return k @ basis, v @ basis, q @ basis * np.sqrt(head_dim / (2 * NATIVE_DIM))
    return k, v, q


def repeated(x: Float, rows: int, rng: np.random.Generator) -> Float:
    """First ``rows`` rows of x, x again with noise, and so on."""
    return np.concatenate(list(repeated_parts(x, rows, rng, size=rows)))


def repeated_parts(
    x: Float, rows: int, rng: np.random.Generator, *, size: int
) -> Iterator[Float]:
    """Rows as those of :func:`repeated`, in parts of ``size`` rows."""
    noise = REPEAT_NOISE * x.std(axis=0)
    for start in range(0, rows, size):
        index = np.arange(start, min(start + size, rows))
        part = x[index % len(x)]
        again = index >= len(x)
        part[again] += rng.normal(size=part[again].shape) * noise
        yield part


def real_store(
    head_dim: int, n_tokens: int, chunk_tokens: int, *, router: str = "minmax", seed: int
) -> Store:
    """Store of the real model's keys and values, of any length."""
    k, v, _ = head(head_dim)
    size = chunk_tokens * max(1, PART_TOKENS // chunk_tokens)
    parts = (
        repeated_parts(x, n_tokens, rng, size=size)
        for x, rng in zip((k, v), np.random.default_rng(seed).spawn(2), strict=True)
    )
    return Store.from_parts(
        zip(*parts, strict=True), chunk_tokens=chunk_tokens, router=router
    )


def forced(head_dim: int, shape: Shape, rng: np.random.Generator) -> tuple[Float, Float]:
    """Make representatives (N, D) and queries (M, D) for a forced pattern.

    Both are points on a circle, drawn D / 2 times at different phases, so that a score is the
    cosine of the angle between them. SAME: all rows stand at one angle, and a random set of k
    chunks near it. APART: rows and chunks are spread evenly, rows in random order; a row's
    chunks are the k nearest ones.
    """
    n_rows, n_chunks = shape.rows, shape.n_chunks
    if shape.pattern is Pattern.SAME:
        rows = np.zeros(n_rows)
        chunks = np.full(n_chunks, np.pi)
        chunks[rng.permutation(n_chunks)[: shape.k]] = 0.0
    else:
        rows = 2 * np.pi * (rng.permutation(n_rows) + 0.5) / n_rows
        chunks = 2 * np.pi * np.arange(n_chunks) / n_chunks
    phases = rng.uniform(0, 2 * np.pi, head_dim // 2)

    def points(angles: Float) -> Float:
        turned = angles[:, None] + phases
        return np.concatenate([np.cos(turned), np.sin(turned)], axis=1)

    # The score of a row and a chunk at one angle, in the log2 domain, is PEAK_SCORE.
    size = PEAK_SCORE / (head_dim / 2 * head_dim**-0.5 * np.log2(np.e))
    return points(chunks), size * points(rows)


def make_job(config: Config, shape: Shape, *, seed: int) -> Job:
    """Job of a shape."""
    store = real_store(config.head_dim, shape.n_tokens, shape.chunk_tokens, seed=seed)
    rng = np.random.default_rng(seed)
    keep = 1
    if shape.pattern in (Pattern.SAME, Pattern.APART):
        rep, q = forced(config.head_dim, shape, rng)
        rep_int, rep_scale = quantize_kv(rep[:, None, :])
        store = replace(store, router=Router.ROWS, rep=rep_int, rep_scale=rep_scale)
        keep = 0
    else:
        q = repeated(head(config.head_dim)[2], shape.rows, rng)
    q_int, q_scale = quantize_q(q)
    return Job(
        store,
        q_int,
        q_scale,
        k=shape.k,
        keep_first=keep,
        keep_last=keep,
        checksum=shape.checksum,
    )
