"""Measure cycles of jobs back to back against their bound, and check every result."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moska.gen.bound import Bound
from moska.gen.config import Config
from moska.golden.layout import COUNTERS
from moska.golden.router import Bool
from moska.golden.unit import attend
from moska.sim.causes import CAUSES, counter_error
from moska.sim.driver import Outcome, RingDriver
from moska.sim.job import Job, difference
from moska.sim.shapes import Shape, estimate, make_job, same_work

MEMORY_BYTES = 1 << 28
RING_SIZE = 4  # log2; all jobs of a shape are announced at once
LONG_JOB = 16_384  # cycles from which on the stricter target holds
LONG_TARGET, SHORT_TARGET = 1.05, 1.15
CHECKED_TOKENS = 1 << 18  # rows times tokens that the golden model computes for a shape


class Mismatch(Exception):
    """The unit and the golden model differ, or the unit broke a rule."""


@dataclass(frozen=True)
class Measurement:
    """What one shape took."""

    shape: Shape
    bound: Bound
    jobs: int  # that count
    cycles: float  # a job in steady state: mean interval between completions
    spread: int  # longest less shortest of these intervals
    counters: dict[str, float]  # a job in steady state
    alone: int | None  # cycles from the doorbell to the interrupt of a single job
    rows_per_chunk: float  # mean over the chunks that are read
    chunks_read: int
    checked_rows: int  # by the golden model; the selection is checked whole
    gemv_gain: tuple[float, float] | None = None  # measured, ideal
    routing_gain: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        """Cycles over bound, in steady state."""
        return self.cycles / self.bound.bound

    @property
    def alone_ratio(self) -> float | None:
        """Cycles of a single job over its bound."""
        return None if self.alone is None else self.alone / self.bound.bound

    @property
    def target(self) -> float | None:
        """Largest ratio that is good enough; None for a reference."""
        if not self.shape.judged:
            return None
        return LONG_TARGET if self.cycles >= LONG_JOB else SHORT_TARGET

    @property
    def met(self) -> bool:
        """Whether the ratio is good enough."""
        return self.target is None or self.ratio <= self.target

    def as_dict(self) -> dict:
        """Plain values for JSON."""

        def gain(pair):
            if pair is None:
                return None
            measured, ideal = pair
            return {"measured": measured, "ideal": ideal, "share": measured / ideal}

        return {
            "name": self.shape.name,
            "rows": self.shape.rows,
            "chunk_tokens": self.shape.chunk_tokens,
            "tokens": self.shape.n_tokens,
            "chunks": self.shape.n_chunks,
            "pattern": self.shape.pattern.value,
            "k": self.shape.k,
            "latency": self.shape.latency,
            "checksum": self.shape.checksum,
            "reference": not self.shape.judged,
            "jobs": self.jobs,
            "cycles": self.cycles,
            "spread": self.spread,
            "alone_cycles": self.alone,
            "compute_bound": self.bound.compute,
            "memory_bound": self.bound.memory,
            "bound": self.bound.bound,
            "bytes": self.bound.bytes,
            "limit": self.bound.limit,
            "ratio": self.ratio,
            "alone_ratio": self.alone_ratio,
            "target": self.target,
            "met": self.met,
            "gemv_gain": gain(self.gemv_gain),
            "routing_gain": gain(self.routing_gain),
            "rows_per_chunk": self.rows_per_chunk,
            "chunks_read": self.chunks_read,
            "checked_rows": self.checked_rows,
            "counters": self.counters,
        }


def counted_jobs(limits: Bound, shape: Shape) -> int:
    """How many jobs count: fewer of long ones, one of a reference."""
    if not shape.judged:
        return 1
    return 4 if limits.bound < LONG_JOB else 3 if limits.bound < 4 * LONG_JOB else 2


def expected_cycles(config: Config, shape: Shape) -> int:
    """Cycles that measuring a shape simulates, about."""
    limits = estimate(config, shape)
    return limits.bound * (lead_jobs(config) + counted_jobs(limits, shape) + shape.judged)


def job_limit(limits: Bound) -> int:
    """Cycles after which a job counts as hung."""
    return 20 * limits.bound + 200_000


def steady(records: Sequence[dict[str, int]]) -> tuple[dict[str, float], int]:
    """Mean counters of jobs in steady state, and longest less shortest of their cycles.

    Raises
    ------
    Mismatch
        when the causes of a job do not add up to its cycles.
    """
    for record in records:
        if text := counter_error(record):
            raise Mismatch(f"job {record['sequence']}: {text}")
    cycles = [record["cycles"] for record in records]
    means = {name: sum(record[name] for record in records) / len(records) for name in COUNTERS}
    return means, max(cycles) - min(cycles)


def sampled_rows(n_rows: int, n_tokens: int, seed: int) -> np.ndarray:
    """Rows that the golden model computes: all of a small job, else first, last and random ones."""
    count = min(n_rows, max(2, CHECKED_TOKENS // n_tokens))
    if count == n_rows:
        return np.arange(n_rows)
    rng = np.random.default_rng(seed)
    inner = 1 + rng.permutation(n_rows - 2)[: count - 2]
    return np.sort(np.concatenate([[0], inner, [n_rows - 1]]))


def check(job: Job, selected: Bool, outcomes: Sequence[Outcome], rows: np.ndarray) -> None:
    """Compare results with the golden model bit for bit.

    All jobs with each other, the whole selection, and the outputs of ``rows`` (perhaps none): a
    row's bits do not depend on the other ones.

    Raises
    ------
    Mismatch
        at the first difference.
    """
    first = outcomes[0].result
    for outcome in outcomes:
        text = difference(outcome.result, replace(first, selected=selected))
        if text:
            raise Mismatch(f"job {outcome.record['sequence']}: {text}")
    if not len(rows):
        return
    golden = attend(job.store, job.q[rows], job.q_scale[rows], selected[rows])
    part = replace(first, o=first.o[rows], lse=first.lse[rows], selected=first.selected[rows])
    if text := difference(part, golden):
        raise Mismatch(f"rows {rows.tolist()}: {text}")


@dataclass(frozen=True)
class Queued:
    """What jobs back to back took."""

    counters: dict[str, float]  # a job in steady state: mean of those that count
    spread: int  # longest less shortest of their cycles
    alone: int | None  # cycles of the first job alone, from the doorbell to the interrupt
    runs: list[tuple[Job, Outcome]]  # all jobs that completed, the one alone first


def lead_jobs(config: Config) -> int:
    """Jobs that are completed before the first one that counts."""
    return config.contexts + 1


def queue(
    device,
    config: Config,
    jobs: Sequence[Job],
    *,
    latency: int,
    max_cycles: int,
    alone: bool = True,
) -> Queued:
    """Run the first job alone, then all jobs announced at once, between others of their kind.

    The first jobs of a queue find the unit idle. What it does ahead reaches as many jobs as are
    under way, and the next descriptor: so many do not count. Behind the last one that counts,
    enough others wait to keep all contexts busy, so that what is done ahead for later jobs is the
    same at both ends of the time that is measured. They are not completed.

    Parameters
    ----------
    device
        device of the configuration; it is reset
    config
        the unit
    jobs
        jobs that count; those in front of them and behind them are the same ones in turn
    latency
        of memory, in cycles
    max_cycles
        limit of a job
    alone
        run the first job alone before

    Raises
    ------
    Mismatch
        when a job fails, writes behind a result, breaks a rule of the memory port, or has causes
        that do not add up to its cycles. Results are not compared.
    RuntimeError
        when a job does not end.
    """
    lead = lead_jobs(config)
    n_done = lead + len(jobs)
    turn = [jobs[(index - lead) % len(jobs)] for index in range(n_done + config.contexts)]
    if alone:
        turn.insert(0, jobs[0])

    device.reset()
    device.timing(latency=latency, bytes_per_cycle=config.memory_bytes_per_cycle)
    device.allow(read=None, write=None)
    driver = RingDriver(device, ring_size=RING_SIZE, limit=MEMORY_BYTES)
    placed = [driver.place(job) for job in turn]
    device.allow(read=(driver.ring, driver.end), write=(driver.completions, driver.end))

    alone_cycles = None
    outcomes: list[Outcome] = []
    if alone:
        start = device.cycle
        driver.post(placed[:1])
        device.run(max_cycles)
        alone_cycles = device.cycle - start
        outcomes += driver.wait(1, max_cycles=max_cycles)
    driver.post(placed[len(outcomes) :])
    queued = driver.wait(n_done, max_cycles=max_cycles)
    outcomes += queued

    for outcome in outcomes:
        where = f"job {outcome.record['sequence']}"
        if outcome.error:
            raise Mismatch(f"{where}: {outcome.error_code.name} at {outcome.error_address:#x}")
        if outcome.overrun:
            raise Mismatch(f"{where}: bytes behind a result were written")
    if device.violations:
        raise Mismatch(f"memory port: {device.violations[0]}")
    counters, spread = steady([outcome.record for outcome in queued[lead:n_done]])
    # Jobs behind the last one that counts may be complete too.
    return Queued(counters, spread, alone_cycles, list(zip(turn, outcomes, strict=False)))


def measure(
    device, config: Config, shape: Shape, *, seed: int = 1, checked: bool = True
) -> Measurement:
    """Run one shape: a job alone, then several equal ones announced at once (:func:`queue`).

    Parameters
    ----------
    device
        device of the configuration; it is reset
    config
        the unit
    shape
        what to run
    seed
        of the data
    checked
        compare outputs with the golden model, not only with each other

    Raises
    ------
    Mismatch
        when a bit of a result, a counter or an access of the unit is wrong.
    RuntimeError
        when a job does not end.
    """
    job = make_job(config, shape, seed=seed)
    selected = job.selected()
    limits = job.bound(config, selected)
    n_counted = counted_jobs(limits, shape)
    queued = queue(
        device,
        config,
        [job] * n_counted,
        latency=shape.latency,
        max_cycles=job_limit(limits),
        alone=shape.judged,
    )
    outcomes = [outcome for _, outcome in queued.runs]
    read = selected.any(axis=0)
    if shape.judged:
        counted = outcomes[0].record["chunks_read"]
        if counted != read.sum():
            raise Mismatch(f"chunks_read must be {read.sum()}, not {counted}")
    rows = sampled_rows(shape.rows, shape.n_tokens, seed) if checked else np.arange(0)
    check(job, selected, outcomes, rows)

    return Measurement(
        shape=shape,
        bound=limits,
        jobs=n_counted,
        cycles=queued.counters["cycles"],
        spread=queued.spread,
        counters=queued.counters,
        alone=queued.alone,
        rows_per_chunk=float(selected.sum() / max(1, read.sum())),
        chunks_read=int(read.sum()),
        checked_rows=len(rows),
    )


def with_gains(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Add the gains whose references were measured too.

    GEMV-to-GEMM: all rows of a dense job one at a time, against the job. Routing: all chunks
    against the chosen ones. The ideal gain is that of the bounds.
    """

    def find(shape):
        return next((m for m in measurements if same_work(m.shape, shape)), None)

    found = []
    for one in measurements:
        shape = one.shape
        if shape.k is None and shape.rows > 1:
            if single := find(shape.single()):
                measured = shape.rows * single.cycles / one.cycles
                ideal = shape.rows * single.bound.bound / one.bound.bound
                one = replace(one, gemv_gain=(measured, ideal))
        elif shape.k is not None and (dense := find(shape.dense())):
            gain = (dense.cycles / one.cycles, dense.bound.bound / one.bound.bound)
            one = replace(one, routing_gain=gain)
        found.append(one)
    return found


def measure_all(
    device,
    config: Config,
    shapes: Sequence[Shape],
    *,
    seed: int = 1,
    checked: bool = True,
    progress: Callable[[Shape], None] = lambda shape: None,
) -> list[Measurement]:
    """Measure all shapes; ``progress`` is called before each.

    Raises
    ------
    Mismatch, RuntimeError
        as :func:`measure`, naming the shape.
    """
    found = []
    for shape in shapes:
        progress(shape)
        try:
            found.append(measure(device, config, shape, seed=seed, checked=checked))
        except (Mismatch, RuntimeError) as error:
            raise type(error)(f"{shape.name}, seed {seed}: {error}") from error
    return with_gains(found)


def summary(measurements: Sequence[Measurement]) -> dict:
    """Count targets and name the worst ratios."""
    judged = [m for m in measurements if m.shape.judged]
    result: dict = {"judged": len(judged), "met": sum(m.met for m in judged)}
    for name, long in (("long", True), ("short", False)):
        group = [m for m in judged if (m.cycles >= LONG_JOB) == long]
        worst = max(group, key=lambda m: m.ratio, default=None)
        result[name] = {
            "target": LONG_TARGET if long else SHORT_TARGET,
            "judged": len(group),
            "met": sum(m.met for m in group),
            "worst": worst and {"name": worst.shape.name, "ratio": worst.ratio},
            "mean_ratio": math.fsum(m.ratio for m in group) / len(group) if group else None,
        }
    return result


def shares(measurement: Measurement) -> dict[str, float]:
    """Share of each cause in the cycles of a job."""
    return {name: measurement.counters[name] / measurement.cycles for name in CAUSES}
