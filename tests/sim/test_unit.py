"""The whole unit in cocotb and Verilator, bit for bit against the golden model.

Every job runs with and without random pauses on all channels of the memory port.
"""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from moska.gen.config import Config
from moska.golden.formats import FP32_NEG_INF
from moska.golden.layout import ErrorCode, Opcode
from moska.sim.job import Job, difference
from moska.sim.runner import Simulation
from moska.sim.workload import jobs, queries, store

SEED = 20_251_107


def config(head_dim, fold, query_tile, bus_width, **changes):
    """Return a configuration of this shape, small in everything else."""
    values = {
        "name": f"d{head_dim}f{fold}m{query_tile}",
        "head_dim": head_dim,
        "fold": fold,
        "query_tile": query_tile,
        "bus_width": bus_width,
        "max_rows": 64,
        "max_chunks": 32,
        "buffer_tokens": 32,
        "buffer_slots": 2,
        "contexts": 2,
        "select_width": 16,
        "q_bits": 16,
        "kv_format": "int8",
        "read_ports": 1,
        "max_in_flight": 2048,
        "memory_bytes_per_cycle": bus_width // 8,
        "clock_mhz": 50,
    }
    return Config.from_dict(values | changes)


CONFIGS = [
    Config.load("tiny"),
    config(16, 1, 8, 64, buffer_tokens=64),
    config(16, 8, 16, 64),
    config(64, 1, 2, 512, buffer_slots=4, contexts=4),
    config(64, 4, 16, 128, buffer_tokens=64, read_ports=2),
    config(64, 8, 8, 64, buffer_tokens=64),
    config(128, 8, 2, 256),
    config(128, 4, 8, 512, max_in_flight=8192, contexts=4, read_ports=2),
]
LARGE = [
    config(64, 1, 16, 512, buffer_slots=16, max_rows=128, contexts=4, max_in_flight=32768),
    config(128, 1, 16, 512, buffer_slots=8, max_rows=128, contexts=4, read_ports=2),
]


def check(outcomes, made):
    """Every job is done without error, bit for bit, and its cycles are all accounted for."""
    for index, (outcome, job) in enumerate(zip(outcomes, made, strict=True)):
        where = f"job {index} ({job.mode.name}, rows {len(job.q)}, seed {SEED})"
        assert not outcome.error, f"{where}: code {outcome.error_code}"
        assert outcome.sequence == index + 1, where
        assert outcome.tag == job.tag, where
        assert not outcome.overrun, where
        expected = job.expected()
        assert difference(outcome.result, expected) is None, (
            f"{where}: {difference(outcome.result, expected)}"
        )
        counters = outcome.counters
        causes = [name for name in counters if name.startswith("stall_")]
        assert counters["score_active"] + sum(counters[c] for c in causes) == counters["cycles"]
    # With jobs under way at once, a chunk may be read in the interval of the job before.
    for name, chunks in (("chunks_read", True), ("chunks_skipped", False)):
        due = sum(
            int((job.selected().any(axis=0) == chunks).sum()) for job in made if job.attends
        )
        assert sum(outcome.counters[name] for outcome in outcomes) == due, name


@pytest.fixture(
    scope="module",
    params=[
        # One group, hence one worker, per configuration: its Verilog is built once.
        *(pytest.param(c, id=c.name, marks=pytest.mark.xdist_group(c.name)) for c in CONFIGS),
        *(
            pytest.param(c, id=c.name, marks=[pytest.mark.xdist_group(c.name), pytest.mark.slow])
            for c in LARGE
        ),
    ],
)
def simulation(request, tmp_path_factory):
    """Verilated unit of one configuration."""
    return Simulation(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_bit_exact(simulation, stall):
    """All kinds of jobs in one queue."""
    made = jobs(simulation.config, np.random.default_rng(SEED))
    check(simulation.run(made, stall=stall, seed=SEED), made)


def test_one_at_a_time(simulation):
    """Jobs that are announced when the one before is complete: each has its own counters."""
    rng = np.random.default_rng(SEED)
    made = jobs(simulation.config, rng)[::5]
    made = [dataclasses.replace(job, tag=index) for index, job in enumerate(made)]
    outcomes = simulation.run(made, queue=False, seed=SEED)
    check(outcomes, made)
    for outcome, job in zip(outcomes, made, strict=True):
        if job.attends:
            wanted = int(job.selected().any(axis=0).sum())
            assert outcome.counters["chunks_read"] == wanted
            assert outcome.counters["chunks_skipped"] == job.store.n_chunks - wanted


def test_last_round_of_representatives(simulation):
    """A slot with a few more chunks than the selector is wide, for several tiles of rows."""
    rng = np.random.default_rng(SEED)
    config = simulation.config
    made = [
        Job(
            store(rng, config, 16 * n_chunks, 16, router),
            *queries(rng, config.max_rows, config.head_dim),
            k=n_chunks // 2,
            opcode=Opcode.ROUTE,
        )
        for router in ("mean", "minmax")
        for n_chunks in (config.select_width + 1, config.select_width + 3)
        if n_chunks <= config.max_chunks
    ]
    check(simulation.run(made, seed=SEED), made)


def test_empty_selection(simulation):
    """A row that selects nothing gives O = 0 and LSE = -inf."""
    rng = np.random.default_rng(SEED)
    config = simulation.config
    explicit = np.ones((2, 2), dtype=bool)
    explicit[1] = False
    job = Job(store(rng, config, 40, 32), *queries(rng, 2, config.head_dim), explicit=explicit)
    (outcome,) = simulation.run([job], seed=SEED)
    assert not outcome.result.o[1].any()
    assert outcome.result.lse[1] == FP32_NEG_INF
    assert difference(outcome.result, job.expected()) is None


def test_reset_in_the_middle(simulation):
    """A reset at any point of a job leaves no trace in the next one."""
    rng = np.random.default_rng(SEED)
    config = simulation.config
    cut = Job(store(rng, config, 16 * 16, 16), *queries(rng, 5, config.head_dim), k=4)
    whole = Job(store(rng, config, 100, 48), *queries(rng, 3, config.head_dim))
    points = [20, 60, 150, 300, 450, 600]
    plan = [job for _ in points for job in (cut, whole)]
    outcomes = simulation.run(
        plan, seed=SEED, queue=False, reset_after={2 * i: point for i, point in enumerate(points)}
    )
    for outcome in outcomes[1::2]:
        assert not outcome.error
        assert difference(outcome.result, whole.expected()) is None


def test_bad_descriptor(simulation):
    """A descriptor out of range completes with an error and its address; the next job is fine."""
    rng = np.random.default_rng(SEED)
    config = simulation.config
    q = queries(rng, 2, config.head_dim)
    good = store(rng, config, 40, 32)
    bad = [
        Job(good, *q, overrides=overrides)
        for overrides in (
            {"opcode": 0},
            {"n_rows": 0},
            {"n_rows": config.max_rows + 1},
            {"n_tokens": 0},
            {"n_chunks": 3},
            {"chunk_tokens": 24},
            {"k_addr": 0x1008},
            {"selection": 3},
        )
    ]
    plan = [job for refused in bad for job in (refused, Job(good, *q))]
    outcomes = simulation.run(plan, seed=SEED)
    for outcome in outcomes[::2]:
        assert outcome.error_code == ErrorCode.DESCRIPTOR
        assert outcome.error_address != 0
        assert set(outcome.result.o.tobytes()) == {0xA5}, "a refused job must write nothing"
    for outcome in outcomes[1::2]:
        assert not outcome.error
        assert difference(outcome.result, Job(good, *q).expected()) is None


GROUPED = """
import pytest

@pytest.mark.parametrize("config", [
    pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in "ab"
])
@pytest.mark.parametrize("job", range(3))
def test(config, job, worker_id):
    with open(f"{config}.{worker_id}", "w"):
        pass
"""


def test_configuration_is_built_by_one_worker(tmp_path):
    """Groups of pytest-xdist hold with this pytest; when they do not, nothing else fails."""
    (tmp_path / "test_grouped.py").write_text(GROUPED, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup"]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert len(list(tmp_path.glob("[ab].gw*"))) == 2
