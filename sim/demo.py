"""The demonstration: real work on the generated unit, every bit compared, and a report."""

import pathlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from moska.gen.config import Config
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store
from moska.sim import report
from moska.sim.data.loader import load
from moska.sim.job import Job
from moska.sim.runner import Simulation

DATA = "layer14_kvhead1"
CHUNK_TOKENS = 32
MAX_ROWS = 64
KEEP_FRACTION = 4  # one chunk in so many is kept per row
SAMPLED_REQUESTS = 3


class Mismatch(Exception):
    """The simulated unit and the golden model differ."""


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
        """All jobs in the order of simulation."""
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


def beat_interval(config: Config) -> int:
    """Cycles per beat that make the memory of the simulation as slow as the board's."""
    return -(-config.bus_bytes // config.memory_bytes_per_cycle)


def run(config: Config, output: pathlib.Path, seed: int) -> dict:
    """Simulate the demonstration's jobs, write ``report.json`` and ``report.html``.

    The Verilog and the simulator are left in ``output`` too. Returns the report.

    Raises
    ------
    ValueError
        when the demonstration does not fit the configuration.
    Mismatch
        when a bit differs from the golden model; the report is written nevertheless.
    RuntimeError
        when the build or a simulation fails.
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

        simulation = step(
            "generate the Verilog and build its simulator", lambda: Simulation(config, output)
        )
        outcomes = step(
            f"simulate dense, routed and {len(work.gemv)} single requests",
            lambda: simulation.run(work.jobs, beat_interval=beat_interval(config), seed=seed),
        )
        expected = step(
            "compute the golden model", lambda: [job.expected() for job in work.jobs]
        )
        built = step(
            "compare every bit, measure",
            lambda: report.build(config, work, outcomes, expected, seed=seed),
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
    return table
