"""The ring driver on the functional stand-in of the device (``conftest.py``)."""

import itertools

import numpy as np
import pytest

from moska.gen.config import Config
from moska.golden.layout import (
    CHECKSUM_BYTES,
    COMPLETION_BYTES,
    COUNTERS,
    ErrorCode,
    Opcode,
)
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store
from moska.host import regmap
from moska.sim.causes import CAUSES, counter_error
from moska.sim.driver import RingDriver
from moska.sim.job import Fence, Job, difference

SEED = 20_251_123
CONFIG = Config.load("tiny")
MEMORY = 1 << 20


@pytest.fixture
def rng():
    return np.random.default_rng(SEED)


def store(rng, n_tokens=96, chunk_tokens=16):
    shape = (n_tokens, CONFIG.head_dim)
    return Store.from_float(
        rng.normal(size=shape), rng.normal(size=shape), chunk_tokens=chunk_tokens
    )


def queries(rng, n_rows):
    return quantize_q(2 * rng.normal(size=(n_rows, CONFIG.head_dim)))


def every_kind(rng):
    """Jobs of every kind, on two stores."""
    first, second = store(rng), store(rng, 90, 32)
    explicit = rng.random((4, first.n_chunks)) < 0.4
    return [
        Job(first, *queries(rng, 3), tag=7),
        Job(first, *queries(rng, 5), k=2, tag=0xFFFFFFFF),
        Job(second, *queries(rng, 2)),
        Job(first, *queries(rng, 4), k=3, opcode=Opcode.ROUTE),
        Fence(tag=9),
        Job(second, *queries(rng, 3), checksum=True),
        Job(first, *queries(rng, 4), explicit=explicit),
        Job(second, *queries(rng, 6), k=2, keep_first=0, group=3, checksum=True),
    ]


def check(outcomes, jobs):
    for index, (outcome, job) in enumerate(zip(outcomes, jobs, strict=True)):
        where = f"job {index}, seed {SEED}"
        assert outcome.error_code is ErrorCode.NONE, where
        assert not outcome.error, where
        assert not outcome.overrun, where
        assert outcome.record["sequence"] == index + 1, where
        assert outcome.record["tag"] == job.tag, where
        assert counter_error(outcome.record) is None, where
        assert outcome.counters["cycles"] == outcome.record["cycles"] > 0
        if isinstance(job, Fence):
            assert outcome.result is None
        else:
            found = difference(outcome.result, job.expected())
            assert found is None, f"{where}: {found}"


@pytest.mark.parametrize("ring_size", [0, 1, 3, 4])
def test_results_of_every_kind_of_job(model_device, rng, ring_size):
    # Rings of 1, 2, 8 and 16 entries: jobs are fed one by one, in part, and all at once.
    device = model_device(CONFIG, memory_bytes=MEMORY)
    driver = RingDriver(device, ring_size=ring_size, limit=MEMORY)
    jobs = every_kind(rng)
    check(driver.run(jobs), jobs)
    assert driver.collected == driver.announced == len(jobs)
    assert driver.room == 1 << ring_size
    # Everything is acknowledged.
    assert not device.interrupt


def test_rings_wrap(model_device, rng):
    device = model_device(CONFIG, memory_bytes=MEMORY)
    driver = RingDriver(device, ring_size=1, limit=MEMORY)
    job = Job(store(rng, 32), *queries(rng, 1))
    first = driver.run([job] * 5)
    second = driver.run([job] * 4)
    assert [o.record["sequence"] for o in first + second] == list(range(1, 10))
    assert {o.result.o.tobytes() for o in first + second} == {job.expected().o.tobytes()}


def test_jobs_are_announced_with_one_doorbell(model_device, rng):
    device = model_device(CONFIG, memory_bytes=MEMORY)
    driver = RingDriver(device, ring_size=2, limit=MEMORY)
    job = Job(store(rng, 32), *queries(rng, 1))
    driver.post([driver.place(job) for _ in range(3)])
    assert device.waiting == 3
    assert driver.room == 1
    assert driver.collect() == []
    outcomes = driver.wait(2, max_cycles=10_000)
    assert len(outcomes) >= 2
    with pytest.raises(ValueError, match=r"^jobs must be at most \d, not 6$"):
        driver.post([driver.place(job) for _ in range(6)])


def test_equal_stores_are_placed_once(model_device, rng):
    device = model_device(CONFIG, memory_bytes=MEMORY)
    driver = RingDriver(device, limit=MEMORY)
    shared = store(rng)
    placed = [driver.place(Job(shared, *queries(rng, 2), k=k)) for k in (None, 1)]
    assert placed[0].image.fields["k_addr"] == placed[1].image.fields["k_addr"]
    assert placed[0].image.fields["o_addr"] != placed[1].image.fields["o_addr"]
    # With checksums it is another image, and another store another one still.
    checked = driver.place(Job(shared, *queries(rng, 2), checksum=True))
    other = driver.place(Job(store(rng), *queries(rng, 2)))
    assert len({p.image.fields["k_addr"] for p in (*placed, checked, other)}) == 3


def test_placed_segments_are_aligned_and_disjoint(model_device, rng):
    device = model_device(CONFIG, memory_bytes=MEMORY)
    driver = RingDriver(device, limit=MEMORY)
    placed = [driver.place(job) for job in every_kind(rng)]
    spans = [(driver.ring, driver.completions + driver.entries * COMPLETION_BYTES)]
    stores = {id(image): image for _, image in driver._stores.values()}
    for image in (*stores.values(), *(p.image for p in placed)):
        spans += [(address, address + len(raw)) for address, raw in image.segments]
    spans.sort()
    assert all(start % 64 == 0 for start, _ in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1][1] <= driver.end <= MEMORY


def test_memory_that_is_too_small_is_refused(model_device, rng):
    device = model_device(CONFIG, memory_bytes=MEMORY)
    driver = RingDriver(device, limit=0x4000)
    with pytest.raises(ValueError, match=r"^memory must hold 0x[0-9a-f]+ bytes, not 0x4000$"):
        driver.place(Job(store(rng, 256, 32), *queries(rng, 16)))
    for options, message in (
        ({"ring_size": 16}, "ring_size must be from 0 to 15, not 16"),
        ({"base": 32}, "base must be a multiple of 64, not 32"),
        ({"ring_size": 15}, "memory must hold 0x801000 bytes, not 0x100000"),
    ):
        with pytest.raises(ValueError, match=rf"^{message}$"):
            RingDriver(device, limit=MEMORY, **options)


def test_bad_descriptor_fails_alone(model_device, rng):
    device = model_device(CONFIG, memory_bytes=MEMORY)
    driver = RingDriver(device, limit=MEMORY)
    good = Job(store(rng), *queries(rng, 2))
    bad = Job(good.store, good.q, good.q_scale, tag=3, overrides={"opcode": 200})
    outcomes = driver.run([good, bad, good])
    check([outcomes[0]], [good])
    assert outcomes[1].error
    assert outcomes[1].error_code is ErrorCode.DESCRIPTOR
    assert outcomes[1].error_address == driver.ring + 128
    assert outcomes[1].record["tag"] == 3
    assert set(outcomes[1].result.o.tobytes()) == {0xA5}
    assert difference(outcomes[2].result, good.expected()) is None


@pytest.mark.parametrize("array", ["k_addr", "v_addr", "scale_addr"])
def test_corrupted_chunk_fails_its_checksum(model_device, rng, array):
    device = model_device(CONFIG, memory_bytes=MEMORY)
    driver = RingDriver(device, limit=MEMORY)
    job = Job(store(rng), *queries(rng, 2), checksum=True)
    placed = driver.place(job)
    fields = placed.image.fields
    # A byte of chunk 3, of 16 tokens of 16 bytes, or 4 bytes of scales.
    address = fields[array] + (3 * 16 + 5) * (4 if array == "scale_addr" else 16) + 1
    byte = device.read(address, 1)[0]
    device.write(address, bytes([byte ^ 0x10]))
    driver.post([placed])
    (outcome,) = driver.wait(1, max_cycles=10_000)
    assert outcome.error_code is ErrorCode.CHECKSUM
    assert outcome.error_address == fields["checksum_addr"] + 3 * CHECKSUM_BYTES


def test_faults_are_noticed(model_device, rng):
    job = Job(store(rng), *queries(rng, 2))

    def run(fault, count=3):
        device = model_device(CONFIG, memory_bytes=MEMORY, fault=fault)
        return RingDriver(device, limit=MEMORY).run([job] * count, max_cycles=50_000)

    with pytest.raises(RuntimeError, match=r"^no completion within 50000 cycles, after 0 jobs$"):
        run("silent")
    with pytest.raises(RuntimeError, match=r"^completion must have sequence 1, not 2$"):
        run("sequence")
    assert all(outcome.overrun for outcome in run("overrun"))
    wrong = [difference(outcome.result, job.expected()) for outcome in run("bit")]
    assert wrong[:2] == [None, None]
    assert wrong[2].startswith("o: 1 of 32 differ, first at (0, 0): ")
    cycles = run(None)[0].record["cycles"]
    assert counter_error(run("counters")[0].record) == (
        f"causes must add up to cycles ({cycles}), not {cycles - 1}"
    )


def test_error_of_the_ring_is_reported(model_device, rng):
    device = model_device(CONFIG, memory_bytes=MEMORY)
    driver = RingDriver(device, ring_size=1, limit=MEMORY)
    device.write32(regmap.TAIL, 3)
    with pytest.raises(RuntimeError, match=r"^the unit reports RING at 0x3$"):
        driver.wait(1, max_cycles=1000)


def test_causes_are_active_and_all_the_stalls():
    stalls = {name for name in COUNTERS if name.startswith("stall_")}
    assert CAUSES.keys() == {"score_active"} | stalls
