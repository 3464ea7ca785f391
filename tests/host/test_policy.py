"""Estimates against the bound of the generator, and the rule on figures that are given."""

import numpy as np
import pytest

from moska.gen.bound import bound
from moska.gen.config import Config, preset_names
from moska.host import unique
from moska.host.policy import (
    JOB_SECONDS,
    Policy,
    Rates,
    Work,
    expected_rows,
    job_cycles,
    measure,
    work_cycles,
)
from moska.host.ring import Parameters

RATES = Rates(bytes_per_second=1e9, macs_per_second=1e10)


def unit_of(config):
    names = Parameters.__dataclass_fields__
    return Parameters(**{
        name: 32 if name == "block_tokens" else 16 if name == "q_bits" else getattr(config, name)
        for name in names
    })


def work_of(config, **changes):
    values = {
        "n_rows": 24, "n_tokens": 512, "chunk_tokens": 32, "head_dim": config.head_dim,
        "n_kv_heads": 3,
    } | changes  # fmt: skip
    return Work(**values)


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("checksums", [False, True])
def test_cycles_of_a_job_are_the_bound_of_the_generator(name, checksums):
    config = Config.load(name)
    unit, rate = unit_of(config), config.memory_bytes_per_cycle
    rng = np.random.default_rng(1)
    for index in range(60):
        chunk = int(rng.choice([16, 32, 64]))
        n_chunks = int(rng.integers(1, min(30, config.max_chunks + 1)))
        rows = int(rng.integers(1, config.max_rows + 1))
        short = int(rng.integers(0, chunk)) if index % 3 == 0 else 0
        k = None if index % 2 else int(rng.integers(1, n_chunks + 1))
        work = work_of(
            config, n_rows=rows, n_tokens=n_chunks * chunk - short, chunk_tokens=chunk, k=k,
            rep_rows=2, checksums=checksums,
        )  # fmt: skip
        n_read, per_chunk = expected_rows(work, rows)
        if n_read < n_chunks and short:
            continue  # which chunk is short is not known ahead
        wanted = np.zeros(n_chunks, dtype=int)
        wanted[:n_read] = per_chunk
        expected = bound(
            config, n_rows=rows, chunk_tokens=chunk, n_tokens=work.n_tokens,
            rows_per_chunk=wanted, rep_rows=2 if k else 0, write_selection=k is not None,
            checksums=checksums,
        )  # fmt: skip
        cycles = job_cycles(unit, work, rows, rate)
        assert (cycles.compute, cycles.memory) == (expected.compute, expected.memory), (index, work)
        assert cycles.bound == expected.bound


def test_expected_rows_against_random_choices():
    rng = np.random.default_rng(2)
    for rows, n_chunks, k, group in ((24, 64, 16, 1), (6, 64, 4, 3), (200, 40, 3, 1)):
        work = Work(rows, n_chunks * 32, 32, 64, 1, k=k, group=group)
        read = []
        for _ in range(200):
            choices = [rng.choice(n_chunks, k, replace=False) for _ in range(rows // group)]
            read.append(len(np.unique(choices)))
        n_read, per_chunk = expected_rows(work, rows)
        assert abs(n_read - np.mean(read)) < 1
        assert per_chunk == -(-rows * k // n_read)


def test_long_work_is_cut_into_jobs():
    config = Config.load("ulx3s")
    unit = unit_of(config)
    work = work_of(config, n_rows=150, k=4, group=3, rep_rows=2)
    jobs = [job_cycles(unit, work, rows).bound for rows in (63, 63, 24)]
    assert work_cycles(unit, work) == 3 * sum(jobs)


def decide(policy, n_rows=24, **changes):
    config = Config.load("ulx3s")
    changes = {"clock_mhz": 50.0} | changes
    return policy.decide(work_of(config, n_rows=n_rows), unit_of(config), **changes)


def test_rule():
    """On ulx3s, 24 rows by 512 tokens are 3 * 512 tokens * 8 beats * 3 jobs: 737 us."""
    policy = Policy(rates=RATES, job_seconds=100e-6)
    decision = decide(policy, unique_bytes=0)
    assert decision.estimates.unit == pytest.approx(3 * 8 * 3 * 512 / 50e6)
    assert decision.estimates.host == pytest.approx(300e-6)
    assert decision.estimates.path == pytest.approx(2 * 3 * 512 * 64 * 4 / 1e9)
    assert decision.estimates.unique == 0
    # 737 + 300 us against 786 us; with 700 us to hide behind, 737 + 300 against 1486.
    assert not decision.unit
    assert decision.reason == "1037 us a layer with the unit, 786 us without"
    assert decide(policy, unique_bytes=700_000).unit
    # Without that, a slower path or a faster unit turns it.
    assert decide(Policy(rates=Rates(5e8, 1e10), job_seconds=100e-6)).unit
    assert decide(Policy(rates=RATES, job_seconds=100e-6, clock_mhz=100.0)).unit
    # Memory that moves less than the bus makes the unit slower.
    slow = decide(Policy(rates=RATES, job_seconds=0, bytes_per_cycle=0.5))
    assert slow.estimates.unit > decision.estimates.unit


def test_more_rows_share_a_read():
    """On u55c, 64 rows take little longer than 2; on the path, arithmetic grows with them."""
    config = Config.load("u55c")
    policy = Policy(rates=Rates(1e12, 1e11), job_seconds=5e-6)
    work = {rows: work_of(config, n_rows=rows, n_tokens=8192) for rows in (2, 64)}
    chosen = {rows: policy.decide(w, unit_of(config), clock_mhz=250.0) for rows, w in work.items()}
    assert chosen[64].estimates.unit < 4 * chosen[2].estimates.unit
    assert not chosen[2].unit
    assert chosen[64].unit


@pytest.mark.parametrize("always", ["unit", "path"])
def test_override(always):
    decision = decide(Policy(always=always, rates=RATES))
    assert (decision.unit, decision.reason) == (always == "unit", f"always {always}")
    assert decision.estimates.unit > 0
    assert decide(Policy(always=always)).estimates.path is None


def test_what_is_not_known():
    decision = decide(Policy(rates=RATES), clock_mhz=None)
    assert (decision.unit, decision.reason) == (True, "the clock must be known to compare")
    decision = decide(Policy())
    assert (decision.unit, decision.reason) == (True, "the path's rates must be known to compare")
    with pytest.raises(ValueError, match="always must be unit, path or None, not 'gpu'"):
        Policy(always="gpu")


def test_learning():
    policy = Policy(rates=RATES)
    assert policy.seconds_per_job == JOB_SECONDS
    for _ in range(60):
        policy.learn(n_jobs=3, host_seconds=90e-6, cycles=3000, estimated_cycles=2000)
    assert policy.seconds_per_job == pytest.approx(30e-6, rel=1e-3)
    assert policy.cycles_ratio == pytest.approx(1.5, rel=1e-3)
    before = decide(Policy(rates=RATES)).estimates
    after = decide(policy).estimates
    assert after.unit == pytest.approx(1.5 * before.unit, rel=1e-3)
    policy.learn(n_jobs=0, host_seconds=1.0, cycles=0, estimated_cycles=0)
    assert policy.seconds_per_job == pytest.approx(30e-6, rel=1e-3)
    fixed = Policy(job_seconds=1e-3)
    fixed.learn(n_jobs=1, host_seconds=1.0, cycles=1, estimated_cycles=1)
    assert fixed.seconds_per_job == pytest.approx(1e-3)


@pytest.mark.parametrize("name", ["numpy", "torch-cpu"])
def test_measured_rates_are_those_of_this_machine(name):
    path = unique.get(name) if name == "numpy" else None
    like = np.zeros(1, dtype=np.float32)
    if path is None:
        like = pytest.importorskip("torch").zeros(1)
        path = unique.get(name)
    rates = measure(path, like, repeats=1)
    # Any machine reads between 0.1 and 10,000 GB/s and does between 0.1 and 100,000 GMAC/s.
    assert 1e8 < rates.bytes_per_second < 1e13
    assert 1e8 < rates.macs_per_second < 1e14
    assert rates.seconds(rates.bytes_per_second, 0) == pytest.approx(1)
    assert rates.seconds(0, 2 * rates.macs_per_second) == pytest.approx(2)
