"""The demonstration: real work on the generated unit, every bit compared, and a report."""

import pathlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from moska.gen.config import Config
from moska.golden.data.loader import load
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store
from moska.sim import report
from moska.sim.device import Device
from moska.sim.job import Job
from moska.sim.measure import MEMORY_BYTES, Mismatch, Queued, job_limit, queue
from moska.sim.shapes import LATENCY, latencies

DATA = "layer14_kvhead1"
CHUNK_TOKENS = 32
MAX_ROWS = 64
KEEP_FRACTION = 4  # one chunk in so many is kept per row
SAMPLED_REQUESTS = 3
COUNTED_JOBS = 2  # of the dense and of the routed job, in a queue


@dataclass(frozen=True)
class Work:
    """Jobs of the demonstration and the queries behind them."""

    q: NDArray[np.float64]  # (M, D)
    heads: int  # rows of a request
    dense: Job
    routed: Job
    gemv: list[Job]
    requests: list[int]  # requests in ``gemv``

    @property
    def jobs(self) -> list[Job]:
        """All jobs: dense, routed, single requests."""
        return [self.dense, self.routed, *self.gemv]


def prepare(config: Config, seed: int) -> Work:
    """Make the jobs for a configuration; ``seed`` picks the requests that run one at a time.

    Raises
    ------
    ValueError
        when the data or the jobs do not fit the configuration.
    """
    k, v, q = load(DATA)
    if config.head_dim != q.shape[2]:
        raise ValueError(
            f"head_dim must be {q.shape[2]}, the head size of the demo's data, "
            f"not {config.head_dim}"
        )
    store = Store.from_float(k, v, chunk_tokens=CHUNK_TOKENS, router="minmax")
    if config.max_chunks < store.n_chunks:
        raise ValueError(
            f"max_chunks must be at least {store.n_chunks} for the demo's data, "
            f"not {config.max_chunks}"
        )
    heads = q.shape[1]
    if config.max_rows < heads:
        raise ValueError(f"max_rows must be at least {heads} for the demo, not {config.max_rows}")
    rows = q.reshape(-1, q.shape[2]).astype(np.float64)[: min(MAX_ROWS, config.max_rows)]
    q_int, q_scale = quantize_q(rows)

    # A request whose rows were cut off is no sample of a request.
    whole = len(rows) // heads
    rng = np.random.default_rng(seed)
    requests = sorted(rng.choice(whole, min(SAMPLED_REQUESTS, whole), replace=False).tolist())
    parts = [slice(heads * request, heads * (request + 1)) for request in requests]
    return Work(
        q=rows,
        heads=heads,
        dense=Job(store, q_int, q_scale),
        routed=Job(
            store, q_int, q_scale, k=store.n_chunks // KEEP_FRACTION, keep_first=1, keep_last=1
        ),
        gemv=[Job(store, q_int[part], q_scale[part]) for part in parts],
        requests=requests,
    )


def memory_latency(config: Config) -> int:
    """Cycles until the simulated memory answers: as in `moska bench`, if reads can hide it."""
    return min(LATENCY, max(latencies(config)))


def simulate(device: Device, config: Config, jobs: list[Job], *, alone: bool) -> Queued:
    """Run jobs in a queue: each counts once, between others of its kind.

    Raises
    ------
    Mismatch, RuntimeError
        as :func:`moska.sim.measure.queue`.
    """
    limits = jobs[0].bound(config, jobs[0].selected())
    return queue(
        device,
        config,
        jobs,
        latency=memory_latency(config),
        max_cycles=job_limit(limits),
        alone=alone,
    )


def run(config: Config, output: pathlib.Path, seed: int) -> dict:
    """Simulate the demonstration's jobs, write ``report.json`` and ``report.html``.

    Returns the report.

    Raises
    ------
    ValueError
        when the demonstration does not fit the configuration.
    Mismatch
        when a bit differs from the golden model: the report is written nevertheless; when a job
        fails or breaks a rule: there is nothing to report.
    RuntimeError
        when the build fails or a job does not end.
    """
    console = Console()
    work = prepare(config, seed)
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    shape = work.dense.q.shape
    console.print(
        f"[bold]moska demo[/bold]: {config.name}, {shape[0]} query rows, "
        f"{work.dense.store.n_tokens:,} tokens in {work.dense.store.n_chunks} chunks of "
        f"{CHUNK_TOKENS}, data of a real model ({DATA})"
    )
    columns = (SpinnerColumn(finished_text="+"), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:

        def step(text, action):
            task = progress.add_task(text, total=1)
            result = action()
            progress.update(task, completed=1)
            return result

        device = step(
            "generate the Verilog and build its simulator (minutes, once)",
            lambda: Device(config, memory_bytes=MEMORY_BYTES, seed=seed),
        )
        with device:
            queues = [
                step(
                    f"simulate {text}",
                    lambda jobs=jobs, alone=alone: simulate(device, config, jobs, alone=alone),
                )
                for text, jobs, alone in (
                    ("the dense job, alone and in a queue", [work.dense] * COUNTED_JOBS, True),
                    ("the routed job, alone and in a queue", [work.routed] * COUNTED_JOBS, True),
                    (f"{len(work.gemv)} requests one at a time, in a queue", work.gemv, False),
                )
            ]
        expected = step(
            "compute the golden model", lambda: [job.expected() for job in work.jobs]
        )
        built = step(
            "compare every bit, measure",
            lambda: report.build(
                config, work, queues, expected, latency=memory_latency(config), seed=seed
            ),
        )
        page = step("write the report", lambda: report.write(built, output))

    console.print(summary(built))
    console.print(f"Report: {page}", soft_wrap=True)
    if built.differences:
        raise Mismatch("the unit and the golden model differ: " + "; ".join(built.differences))
    return built.figures


def summary(built: report.Report) -> Table:
    """Headline figures as a table for the terminal."""
    figures = built.figures
    table = Table(title=f"moska demo: {figures['config']}", title_justify="left")
    table.add_column("")
    for name in figures["jobs"]:
        table.add_column(name, justify="right")
    for label, key, shown in report.ROWS:
        table.add_row(label, *(shown(job[key]) for job in figures["jobs"].values()))
    gemv = figures["gemv"]
    table.add_section()
    table.add_row("batched against one by one", f"{gemv['gain']:.1f} x fewer cycles", "")
    routing = f"{figures['routing']['gain']:.2f} x fewer cycles"
    table.add_row("routed against dense", "", routing)
    return table
