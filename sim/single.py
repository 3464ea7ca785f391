"""One job, described by a few numbers, on the simulated unit."""

import pathlib
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from moska.gen.config import Config
from moska.golden.formats import MAX_TOKENS
from moska.golden.quantize import quantize_q
from moska.golden.unit import Result, Store
from moska.sim.causes import CAUSES, counter_error
from moska.sim.driver import Outcome, RingDriver
from moska.sim.job import Job, difference
from moska.sim.shapes import PART_TOKENS, head, real_store, repeated

MEMORY_BYTES = 1 << 28
CHUNK_TOKENS = 32  # or as many times 2 as long stores need


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to run. Sizes that are None follow from the data and the configuration."""

    rows: int | None = None
    tokens: int | None = None
    chunk_tokens: int | None = None
    keep: float | None = None  # share of the chunks that a row keeps; None: all, not routed
    router: str = "minmax"
    checksum: bool = False
    jobs: int = 1  # equal ones, announced at once
    latency: int = 0
    stall: float = 0.0
    seed: int = 1
    store: pathlib.Path | None = None  # .npz with k, v (S, D) and perhaps q (M, D)
    checked: bool = True  # compare results with the golden model


def stored(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays of a file, float64.

    Raises
    ------
    ValueError
        when it is not such a file.
    """
    try:
        with np.load(path) as file:
            names = [name for name in ("k", "v", "q") if name in file]
            arrays = {name: file[name].astype(np.float64) for name in names}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"store must be an .npz file of numbers: {path}: {error}") from error
    for name in ("k", "v"):
        if name not in arrays:
            raise ValueError(f"store must have an array {name!r}: {path}")
    return arrays


def prepare(config: Config, request: Request) -> Job:
    """Make the job.

    Raises
    ------
    ValueError
        when the sizes do not fit the configuration or the data.
    """
    if request.store is None:
        q = repeated(
            head(config.head_dim)[2],
            min(64, config.max_rows) if request.rows is None else request.rows,
            np.random.default_rng(request.seed),
        )
        n_tokens = request.tokens
        if n_tokens is None:
            n_tokens = min(1024, config.max_chunks * (request.chunk_tokens or CHUNK_TOKENS))
    else:
        k, v, q = _checked_arrays(config, request)
        n_tokens = len(k)
    if n_tokens > MAX_TOKENS:
        raise ValueError(f"tokens must be at most {MAX_TOKENS}, not {n_tokens}")
    chunk_tokens = request.chunk_tokens
    if chunk_tokens is None:
        chunk_tokens = CHUNK_TOKENS
        while config.max_chunks * chunk_tokens < n_tokens:
            chunk_tokens *= 2
    most_tokens = config.max_chunks * chunk_tokens
    if n_tokens > most_tokens:
        raise ValueError(
            f"tokens must be at most {most_tokens} (max_chunks times the chunk's tokens), "
            f"not {n_tokens}"
        )
    if len(q) > config.max_rows:
        raise ValueError(f"rows must be at most max_rows ({config.max_rows}), not {len(q)}")
    if request.store is None:
        store = real_store(
            config.head_dim, n_tokens, chunk_tokens, router=request.router, seed=request.seed
        )
    else:
        size = chunk_tokens * max(1, PART_TOKENS // chunk_tokens)
        parts = (
            (k[start : start + size], v[start : start + size])
            for start in range(0, n_tokens, size)
        )
        store = Store.from_parts(parts, chunk_tokens=chunk_tokens, router=request.router)
    kept = None if request.keep is None else max(1, round(store.n_chunks * request.keep))
    return Job(store, *quantize_q(q), k=kept, checksum=request.checksum)


def _checked_arrays(config: Config, request: Request) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, values and queries of the request's file, as many as it asks for."""
    path = request.store
    arrays = stored(path)
    k, v = arrays["k"], arrays["v"]
    if k.ndim != 2 or v.shape != k.shape or k.shape[1] != config.head_dim:
        raise ValueError(
            f"k and v must have shape (tokens, {config.head_dim}), not {k.shape} and {v.shape}"
        )
    q = arrays.get("q")
    if q is None:
        q = head(config.head_dim)[2]
    if q.ndim != 2 or q.shape[1] != config.head_dim:
        raise ValueError(f"q must have shape (rows, {config.head_dim}), not {q.shape}")
    n_tokens = len(k) if request.tokens is None else request.tokens
    n_rows = min(len(q), config.max_rows) if request.rows is None else request.rows
    for name, wanted, there in (("tokens", n_tokens, len(k)), ("rows", n_rows, len(q))):
        if wanted > there:
            raise ValueError(f"{name} must be at most {there}, as in {path}, not {wanted}")
    return k[:n_tokens], v[:n_tokens], q[:n_rows]


def run(
    device,
    config: Config,
    request: Request,
    job: Job,
    progress: Callable[[str], None] = lambda text: None,
) -> dict:
    """Run the job on a device of the configuration; returns figures in plain values.

    ``progress`` is called with what is done, now and then.

    Raises
    ------
    RuntimeError
        when a job does not end.
    """
    selected = job.selected()
    limits = job.bound(config, selected)
    max_cycles = round((20 * limits.bound + 200_000) / (1 - request.stall) ** 2)
    max_cycles += 1000 * request.latency
    device.timing(
        latency=request.latency,
        bytes_per_cycle=config.memory_bytes_per_cycle,
        stall=request.stall,
    )
    ring_size = max(2, (request.jobs - 1).bit_length())
    driver = RingDriver(device, ring_size=ring_size, limit=MEMORY_BYTES)
    placed = [driver.place(job) for _ in range(request.jobs)]
    start = device.cycle
    began = time.process_time()
    driver.post(placed)
    outcomes = driver.wait(
        request.jobs,
        max_cycles=max_cycles,
        progress=lambda cycle: progress(
            f"simulate: {(cycle - start) / 1e6:.1f} M cycles of "
            f"{request.jobs * limits.bound / 1e6:.1f} M or a little more"
        ),
    )
    device_seconds = time.process_time() - began
    end = outcomes[-1].cycle
    began = time.process_time()
    expected = None
    if request.checked:
        progress("compute the golden model")
        expected = job.expected()
    golden_seconds = time.process_time() - began
    problems = [
        f"job {outcome.record['sequence']}: {text}"
        for outcome in outcomes
        for text in _problems(outcome, expected)
    ]
    problems += [f"memory port: {text}" for text in device.violations[:3]]
    return {
        "config": config.name,
        "seed": request.seed,
        "rows": len(job.q),
        "tokens": job.store.n_tokens,
        "chunk_tokens": job.store.chunk_tokens,
        "chunks": job.store.n_chunks,
        "k": job.k,
        "router": request.router if job.k is not None else None,
        "checksum": job.checksum,
        "latency": request.latency,
        "stall": request.stall,
        "checked": request.checked,
        "bit_exact": not problems if request.checked else None,
        "problems": problems,
        "compute_bound": limits.compute,
        "memory_bound": limits.memory,
        "bound": limits.bound,
        "limit": limits.limit,
        "cycles_in_all": end - start,
        "device_seconds": device_seconds,
        "golden_seconds": golden_seconds,
        "cycles_per_second": (end - start) / device_seconds,
        "jobs": [
            {"ratio": outcome.record["cycles"] / limits.bound, **outcome.record}
            for outcome in outcomes
        ],
    }


def _problems(outcome: Outcome, expected: Result | None) -> list[str]:
    """Say what is wrong with a job."""
    if outcome.error:
        return [f"{outcome.error_code.name} at {outcome.error_address:#x}"]
    found = [counter_error(outcome.record)]
    if expected is not None:
        found.insert(0, difference(outcome.result, expected))
    if outcome.overrun:
        found.append("bytes behind a result were written")
    return [text for text in found if text]


def table(figures: dict) -> Table:
    """Counters of all jobs, a column each."""
    shown = Table(
        title=f"{figures['config']}: {figures['rows']} rows, {figures['tokens']:,} tokens in "
        f"{figures['chunks']} chunks of {figures['chunk_tokens']}, "
        + ("all" if figures["k"] is None else f"{figures['k']} chunks a row"),
        title_justify="left",
    )
    shown.add_column("")
    for job in figures["jobs"]:
        shown.add_column(f"job {job['sequence']}", justify="right")

    def line(label, name):
        shown.add_row(label, *(f"{job[name]:,}" for job in figures["jobs"]))

    line("cycles", "cycles")
    bound = f"{figures['bound']:,}"
    shown.add_row(f"bound ({figures['limit']})", *(bound for _ in figures["jobs"]))
    shown.add_row("cycles / bound", *(f"{job['ratio']:.3f}" for job in figures["jobs"]))
    shown.add_section()
    for cause, (meaning, _) in CAUSES.items():
        line(meaning, cause)
    shown.add_section()
    for name in ("value_active", "read_beats", "write_beats", "chunks_read", "chunks_skipped"):
        line(name.replace("_", " "), name)
    shown.add_section()
    exact = {True: "yes", False: "NO", None: "not compared"}[figures["bit_exact"]]
    shown.add_row("every bit as the golden model", *(exact for _ in figures["jobs"]))
    shown.caption = (
        f"device: {figures['cycles_in_all']:,} cycles in {figures['device_seconds']:.1f} s of a "
        f"core, {figures['cycles_per_second']:,.0f} cycles/s; golden model: "
        f"{figures['golden_seconds']:.1f} s"
    )
    shown.caption_justify = "left"
    return shown
