"""Errors on the simulated unit: what the host sees, what stays untouched, and that jobs go on.

Every case has good jobs before and behind the bad one in the same queue, and posts the bad one
once more when its cause is gone, without a reset.
"""

import dataclasses

import numpy as np
import pytest

from moska.gen.config import Config
from moska.golden.formats import ALIGN, MAX_TOKENS
from moska.golden.layout import (
    CHECKSUM_BYTES,
    COMPLETION_BYTES,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    ErrorCode,
    Opcode,
    padded_size,
)
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store
from moska.host import regmap
from moska.sim.device import Device
from moska.sim.driver import RingDriver
from moska.sim.job import Fence, Job, difference
from moska.sim.suite import READS

SEED = 20_251_124
TINY = Config.load("tiny")
WORD = TINY.bus_bytes
DIM = TINY.head_dim
MEMORY = 1 << 18
MAX_CYCLES = 60_000
MAX_BURST = 256 * WORD  # of a write
CALM = {"latency": 0, "stall": 0.0}
ROUGH = {"latency": 40, "stall": 0.3, "shuffle": True}

pytestmark = pytest.mark.xdist_group("device-tiny")


def store(rng, n_tokens=72, chunk_tokens=32):
    """Random store; its last chunk is short."""
    shape = (n_tokens, DIM)
    return Store.from_float(
        rng.normal(size=shape), rng.normal(size=shape), chunk_tokens=chunk_tokens
    )


def queries(rng, n_rows):
    return quantize_q(rng.normal(size=(n_rows, DIM)))


def make(rng, kind):
    """Job on a store of its own."""
    own = store(rng)
    q = queries(rng, 5)
    return {
        "dense": lambda: Job(own, *q),
        "checked": lambda: Job(own, *q, checksum=True),
        "routed": lambda: Job(own, *q, k=2),
        "route": lambda: Job(own, *q, k=2, opcode=Opcode.ROUTE),
        "explicit": lambda: Job(own, *q, explicit=np.ones((5, own.n_chunks), dtype=bool)),
    }[kind]()


@pytest.fixture(scope="module")
def shared_device():
    """Device of all tests here: each begins with a reset."""
    with Device(TINY, memory_bytes=MEMORY, seed=SEED) as device:
        yield device


@pytest.fixture
def bench(shared_device):
    """Fresh rings on the device; nothing breaches the protocol."""
    device = shared_device
    device.memory[:] = 0
    device.clear_injections()
    device.timing(**CALM)
    device.reset()
    before = len(device.violations)
    yield Bench(device)
    assert device.violations[before:] == []


class Bench:
    """Runs queues of jobs and looks at everything that they leave behind."""

    def __init__(self, device, ring_size=3):
        self.device = device
        self.driver = RingDriver(device, ring_size=ring_size, limit=MEMORY)

    def pair(self, name):
        low, high = (self.device.read32(getattr(regmap, f"{name}_{half}")) for half in ("LO", "HI"))
        return low | high << 32

    def window(self, direction, first, last):
        self.driver.write64(f"{direction}_BASE", first)
        self.driver.write64(f"{direction}_LIMIT", last)

    def descriptor_address(self, placed):
        """Where the descriptor of the next job to be posted, plus ``placed``, will lie."""
        entry = (self.driver.announced + placed) % self.driver.entries
        return self.driver.ring + entry * DESCRIPTOR_BYTES

    def record_address(self, placed):
        entry = (self.driver.announced + placed) % self.driver.entries
        return self.driver.completions + entry * COMPLETION_BYTES

    def error(self):
        """ERROR, ERROR_SEQUENCE, ERROR_ADDRESS."""
        code = self.device.read32(regmap.ERROR) & regmap.ERROR_CODE_MASK
        return (
            ErrorCode(code), self.device.read32(regmap.ERROR_SEQUENCE), self.pair("ERROR_ADDRESS")
        )  # fmt: skip

    def run(self, placed, written=None):
        """Post and wait; ``written``: whose results may change. Returns the outcomes."""
        written = placed if written is None else written
        before = self.device.memory.copy()
        ring = slice(self.driver.ring, self.driver.ring + self.driver.entries * DESCRIPTOR_BYTES)
        self.driver.post(placed)
        outcomes = self.driver.wait(len(placed), max_cycles=MAX_CYCLES)
        changed = self.device.memory != before
        changed[ring] = False  # written by the driver
        first = self.driver.completions
        changed[first : first + self.driver.entries * COMPLETION_BYTES] = False
        for one in written:
            for address, size in one.image.results.values():
                changed[address : address + size] = False
        assert not changed.any(), f"{np.flatnonzero(changed)[0]:#x} was written"
        self.check_idle()
        return outcomes

    def check_idle(self):
        assert self.device.read32(regmap.STATUS) == 0
        assert self.device.read32(regmap.HEAD) == self.driver.announced & 0xFFFF
        assert self.device.read32(regmap.COMPLETED) == self.driver.announced & 0xFFFF


def check_good(outcomes, placed):
    for index, (outcome, one) in enumerate(zip(outcomes, placed, strict=True)):
        assert outcome.error_code is ErrorCode.NONE, f"job {index}, seed {SEED}"
        if isinstance(one.job, Job):
            wrong = difference(outcome.result, one.job.expected())
            assert wrong is None, f"job {index}, seed {SEED}: {wrong}"


def check_case(bench, bad, code, *, prepare, restore=None, writes=False, again=True, rng):
    """Run good, bad, good, good; then the bad job and a good one, with the cause gone.

    ``prepare`` brings about the error of the placed job that follows one good job, and returns
    the address that goes with it.
    """
    driver = bench.driver
    kinds = ("routed", "dense", "checked")
    good = [driver.place(make(rng, kind)) for kind in kinds]
    placed = [good[0], driver.place(bad), *good[1:]]
    address = prepare(placed[1])
    allowed = placed if writes else good
    first = driver.announced
    errors = bench.device.read32(regmap.ERRORS)
    outcomes = bench.run(placed, written=allowed)
    check_good([outcomes[0], *outcomes[2:]], good)
    outcome = outcomes[1]
    assert (outcome.error_code, hex(outcome.error_address)) == (code, hex(address))
    assert outcome.record["tag"] == bad.tag or code is ErrorCode.READ
    assert bench.error() == (code, first + 2, address)
    assert bench.device.read32(regmap.ERRORS) == errors + 1

    bench.device.clear_injections()
    if restore:
        restore(placed[1])
    if again:
        placed = [driver.place(dataclasses.replace(bad, overrides={})), driver.place(good[0].job)]
        check_good(bench.run(placed), placed)


def size_of(job, target):
    n_chunks, n_rows = job.store.n_chunks, len(job.q)
    n_reps = 0 if job.store.rep is None else n_chunks * job.store.rep.shape[1]
    return {
        "descriptor": DESCRIPTOR_BYTES,
        "selection": n_chunks * 64,
        "query_scales": 2 * n_rows,
        "queries": 2 * n_rows * DIM,
        "representatives": n_reps * DIM,
        "representative_scales": 4 * n_reps,
        "keys": job.store.n_tokens * DIM,
        "values": job.store.n_tokens * DIM,
        "scales": 4 * job.store.n_tokens,
        "checksums": 16 * n_chunks,
    }[target]


@pytest.mark.parametrize("timing", [CALM, ROUGH], ids=["calm", "rough"])
@pytest.mark.parametrize("response", [2, 3], ids=["slverr", "decerr"])
@pytest.mark.parametrize("target", READS)
def test_read(bench, target, response, timing):
    """An error on the first, a middle, the last, or every beat of an array."""
    rng = np.random.default_rng(SEED)
    kind, field = READS[target]
    bench.device.timing(**timing)
    for where in ("first", "middle", "last", "all"):
        bad = dataclasses.replace(make(rng, kind), tag=77)
        size = -(-size_of(bad, target) // WORD) * WORD
        offset = {"middle": size // WORD // 2 * WORD, "last": size - WORD}.get(where, 0)

        def prepare(placed, field=field, where=where, size=size, offset=offset):
            if field is None:
                address = bench.descriptor_address(1)
            else:
                address = placed.image.fields[field]
            bench.device.inject(
                kind="read",
                address=address + offset,
                size=size if where == "all" else WORD,
                response=response,
            )
            return address + offset

        check_case(bench, bad, ErrorCode.READ, prepare=prepare, rng=rng)


@pytest.mark.parametrize("timing", [CALM, ROUGH], ids=["calm", "rough"])
@pytest.mark.parametrize("response", [2, 3], ids=["slverr", "decerr"])
@pytest.mark.parametrize("target", ["o", "lse", "selection"])
def test_write(bench, target, response, timing):
    """An error on a write of results; its address is that of the burst."""
    rng = np.random.default_rng(SEED)
    bench.device.timing(**timing)
    for where in ("first", "last"):
        bad = dataclasses.replace(make(rng, "routed"), tag=77)

        def prepare(placed, where=where):
            start, size = placed.image.results[target]
            address = start if where == "first" else start + (size - 1) // WORD * WORD
            bench.device.inject(kind="write", address=address, size=4, response=response)
            # A burst ends at a multiple of its largest size.
            return max(start, address // MAX_BURST * MAX_BURST)

        check_case(bench, bad, ErrorCode.WRITE, prepare=prepare, writes=True, rng=rng)


@pytest.mark.parametrize("timing", [CALM, ROUGH], ids=["calm", "rough"])
@pytest.mark.parametrize("response", [2, 3], ids=["slverr", "decerr"])
def test_record_write(bench, response, timing):
    """A completion that cannot be written: the registers tell, and the next jobs go on."""
    rng = np.random.default_rng(SEED)
    bench.device.timing(**timing)
    driver = bench.driver
    made = [make(rng, kind) for kind in ("routed", "dense", "checked")]
    placed = [driver.place(job) for job in made]
    record = bench.record_address(1)
    bench.device.inject(kind="write", address=record, size=COMPLETION_BYTES, response=response)
    driver.post(placed)
    for _ in range(len(placed)):
        bench.device.run(MAX_CYCLES)
        bench.device.write32(regmap.EVENT, regmap.EVENT_DONE_MASK)
        bench.device.run(MAX_CYCLES, until_interrupt=False)
    bench.check_idle()
    assert bench.error() == (ErrorCode.WRITE, 2, record)
    assert bench.device.read32(regmap.ERRORS) == 1
    assert bench.device.read(record, COMPLETION_BYTES) == bytes(COMPLETION_BYTES)
    bench.device.clear_injections()
    # The results of all three are there; records of the others too.
    for index, one in enumerate(placed):
        raw = {
            name: bench.device.read(address, size)
            for name, (address, size) in one.image.results.items()
        }
        assert difference(one.job.decode(raw), one.job.expected()) is None
        address = driver.completions + index * COMPLETION_BYTES
        sequence = int.from_bytes(bench.device.read(address, 4), "little")
        assert sequence == (0 if index == 1 else index + 1)
    # Go on with a driver that knows nothing of the lost record.
    driver._under_way.clear()
    driver.collected = driver.announced
    bench.device.write32(regmap.EVENT, 3)
    placed = [driver.place(job) for job in made]
    check_good(bench.run(placed), placed)


FIELDS = [
    ("opcode", "dense", {"opcode": 0}),
    ("opcode", "dense", {"opcode": 4}),
    ("selection", "dense", {"selection": 3}),
    ("selection", "route", {"selection": 0}),
    ("router", "routed", {"router": 2}),
    ("write_selection", "dense", {"write_selection": 1}),
    ("write_selection", "routed", {"write_selection": 2}),
    ("write_selection", "route", {"write_selection": 0}),
    ("n_rows", "dense", {"n_rows": 0}),
    ("n_rows", "dense", {"n_rows": TINY.max_rows + 1}),
    ("group", "routed", {"group": 0}),
    ("group", "routed", {"group": 3}),
    ("n_tokens", "dense", {"n_tokens": 0}),
    ("n_tokens", "dense", {"n_tokens": MAX_TOKENS + 1}),
    ("n_chunks", "dense", {"n_chunks": 0}),
    ("n_chunks", "dense", {"n_chunks": 4}),
    ("n_chunks", "routed", {"n_chunks": TINY.max_chunks + 1}),
    ("chunk_tokens", "dense", {"chunk_tokens": 0}),
    ("chunk_tokens", "dense", {"chunk_tokens": 24}),
    ("rep_rows", "routed", {"rep_rows": 0}),
    ("rep_rows", "routed", {"rep_rows": 3}),
    ("rep_rows", "routed", {"rep_rows": 2 * TINY.buffer_tokens}),
    ("checksum", "dense", {"checksum": 2}),
    ("kv_format", "dense", {"kv_format": 1}),
    ("reserved", "dense", {"reserved": 1 << 47}),
    ("opcode", "routed", {"opcode": 9, "n_rows": 0, "reserved": 1}),
]
ARRAYS = {  # fields of addresses: a job that uses the array, direction
    "q_addr": ("dense", "READ"),
    "q_scale_addr": ("dense", "READ"),
    "k_addr": ("dense", "READ"),
    "v_addr": ("dense", "READ"),
    "scale_addr": ("dense", "READ"),
    "rep_addr": ("routed", "READ"),
    "rep_scale_addr": ("routed", "READ"),
    "selection_addr": ("explicit", "READ"),
    "o_addr": ("dense", "WRITE"),
    "lse_addr": ("dense", "WRITE"),
    "checksum_addr": ("checked", "READ"),
}


def refused(bench, rng, kind, overrides, code, address):
    bad = dataclasses.replace(make(rng, kind), tag=77, overrides=overrides)
    check_case(
        bench,
        bad,
        code,
        prepare=lambda placed: address(bench.descriptor_address(1)),
        again=False,
        rng=rng,
    )


@pytest.mark.parametrize(
    ("field", "kind", "overrides"), FIELDS, ids=[f"{f}-{i}" for i, (f, _, _) in enumerate(FIELDS)]
)
def test_descriptor(bench, field, kind, overrides):
    """A field that is not allowed; nothing is written."""
    rng = np.random.default_rng(SEED)
    offset, _ = DESCRIPTOR[field]
    refused(bench, rng, kind, overrides, ErrorCode.DESCRIPTOR, lambda at: at + offset)


@pytest.mark.parametrize("field", ARRAYS)
def test_misaligned(bench, field):
    rng = np.random.default_rng(SEED)
    kind, _ = ARRAYS[field]
    offset, _ = DESCRIPTOR[field]
    for address in (0x8001, 0x8020):
        refused(
            bench, rng, kind, {field: address}, ErrorCode.DESCRIPTOR, lambda at: at + offset
        )


@pytest.mark.parametrize("field", [*ARRAYS, "selection_addr written"])
def test_outside_window(bench, field):
    """An array below its window, past its end by one line, or past the end of addresses."""
    rng = np.random.default_rng(SEED)
    kind, direction = ARRAYS.get(field, ("routed", "WRITE"))
    field = field.split()[0]
    base, end = 0x1000, MEMORY
    job = make(rng, kind)
    sizes = {  # without padding
        "o_addr": 4 * len(job.q) * DIM,
        "lse_addr": 4 * len(job.q),
        "k_addr": size_of(job, "keys"),
        "v_addr": size_of(job, "values"),
        "q_addr": size_of(job, "queries"),
        "q_scale_addr": size_of(job, "query_scales"),
        "scale_addr": size_of(job, "scales"),
        "rep_addr": size_of(job, "representatives"),
        "rep_scale_addr": size_of(job, "representative_scales"),
        "selection_addr": size_of(job, "selection"),
        "checksum_addr": size_of(job, "checksums"),
    }
    lines = -(-sizes[field] // ALIGN)
    bench.window("READ", base, end - 1)
    bench.window("WRITE", base, end - 1)
    bench.device.allow(read=(base, end), write=(base, end))
    addresses = [base - ALIGN, end - (lines - 1) * ALIGN, (1 << 64) - ALIGN]
    for address in addresses:
        code = ErrorCode.WINDOW
        refused(bench, rng, kind, {field: address}, code, lambda at, a=address: a)
    if lines > 1:  # with a window up to the last address, an array that wraps
        bench.device.allow(read=None, write=None)
        bench.window(direction, base, (1 << 64) - 1)
        address = (1 << 64) - (lines - 1) * ALIGN
        refused(
            bench, rng, kind, {field: address}, ErrorCode.WINDOW, lambda at, a=address: a
        )
    bench.device.allow(read=None, write=None)


def test_tight_windows(bench):
    """Windows that hold the rings and arrays and no byte more; one byte less is refused."""
    rng = np.random.default_rng(SEED)
    driver = bench.driver
    placed = driver.place(make(rng, "routed"))
    fields = placed.image.fields
    reads = [
        (fields["q_addr"], 2 * 5 * DIM),
        (fields["q_scale_addr"], 10),
        (driver.ring, driver.entries * DESCRIPTOR_BYTES),
    ]
    last = max(address + padded_size(size) for address, size in reads) - 1
    writes = [
        (driver.completions, driver.entries * COMPLETION_BYTES), *placed.image.results.values()
    ]  # fmt: skip
    first = min(address for address, _ in writes)
    top = max(address + padded_size(size) for address, size in writes) - 1
    bench.window("READ", driver.ring, last)
    bench.window("WRITE", first, top)
    bench.device.allow(read=(driver.ring, last + 1), write=(first, top + 1))
    check_good(bench.run([placed]), [placed])
    for direction, limit, blamed in (
        ("READ", last, fields["q_scale_addr"]), ("WRITE", top, fields["selection_addr"]),
    ):  # fmt: skip
        low = driver.ring if direction == "READ" else first
        bench.window(direction, low, limit - 1)
        (outcome,) = bench.run([placed])
        assert (outcome.error_code, outcome.error_address) == (ErrorCode.WINDOW, blamed)
        bench.window(direction, low, limit)
        check_good(bench.run([placed]), [placed])
    bench.device.allow(read=None, write=None)


def test_lock(bench):
    """LOCK freezes the windows, on what they hold, until reset."""
    rng = np.random.default_rng(SEED)
    device = bench.device
    names = [f"{d}_{e}" for d in ("READ", "WRITE") for e in ("BASE", "LIMIT")]
    reset_values = [0, (1 << 64) - 1] * 2
    assert [bench.pair(name) for name in names] == reset_values
    end = MEMORY // 2
    bench.window("READ", 0x1000, end - 1)
    bench.window("WRITE", 0x1000, end - 1)
    device.allow(read=(0x1000, end), write=(0x1000, end))
    locked = [bench.pair(name) for name in names]
    device.write32(regmap.LOCK, 1)
    assert device.read32(regmap.LOCK) == 1
    device.write32(regmap.LOCK, 0)
    assert device.read32(regmap.LOCK) == 1
    for name in names:
        bench.driver.write64(name, 0x1234_5678_9ABC_DEF0)
    assert [bench.pair(name) for name in names] == locked
    refused(bench, rng, "dense", {"k_addr": end}, ErrorCode.WINDOW, lambda at: end)
    refused(bench, rng, "dense", {"o_addr": end}, ErrorCode.WINDOW, lambda at: end)

    device.reset()
    device.allow(read=None, write=None)
    assert device.read32(regmap.LOCK) == 0
    assert [bench.pair(name) for name in names] == reset_values
    fresh = Bench(device)
    fresh.window("WRITE", 0x1000, MEMORY - 1)
    assert fresh.pair("WRITE_BASE") == 0x1000
    placed = [fresh.driver.place(make(rng, kind)) for kind in ("dense", "routed")]
    check_good(fresh.run(placed), placed)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_ring_overrun(bench, busy):
    """A doorbell too far ahead is an error of no job; a good one goes on."""
    rng = np.random.default_rng(SEED)
    driver, device = bench.driver, bench.device
    placed = [driver.place(make(rng, kind)) for kind in ("dense", "routed", "explicit")]
    if busy:
        driver.post(placed[:1])
    tail = driver.entries + 2
    device.write32(regmap.TAIL, tail)
    assert device.read32(regmap.EVENT) & regmap.EVENT_ERROR_MASK
    assert bench.error() == (ErrorCode.RING, 0, tail)
    device.run(3000, until_interrupt=False)
    assert device.read32(regmap.COMPLETED) <= int(busy)
    device.write32(regmap.EVENT, regmap.EVENT_ERROR_MASK)
    rest = placed[1:] if busy else placed
    driver.post(rest)
    check_good(driver.wait(len(placed), max_cycles=MAX_CYCLES), placed)
    bench.check_idle()
    again = [driver.place(one.job) for one in placed]
    check_good(bench.run(again), again)


@pytest.mark.parametrize("direction", ["READ", "WRITE"])
def test_ring_outside_window(bench, direction):
    """Nothing is fetched; a doorbell after the windows are mended starts the same jobs."""
    rng = np.random.default_rng(SEED)
    driver, device = bench.driver, bench.device
    blamed = driver.ring if direction == "READ" else driver.completions
    for first, last in ((blamed + ALIGN, MEMORY - 1), (0, blamed + 8 * 128 - 2)):
        bench.window(direction, first, last)
        device.allow(
            read=(first, last + 1) if direction == "READ" else None,
            write=(first, last + 1) if direction == "WRITE" else None,
        )
        placed = [driver.place(make(rng, kind)) for kind in ("dense", "routed")]
        start = driver.announced
        driver.post(placed)
        device.run(2000)
        assert device.interrupt
        assert bench.error() == (ErrorCode.WINDOW, 0, blamed)
        device.write32(regmap.EVENT, regmap.EVENT_ERROR_MASK)
        device.run(2000, until_interrupt=False)
        assert device.read32(regmap.HEAD) == start
        assert device.read32(regmap.EVENT) == 0
        device.allow(read=None, write=None)
        bench.window(direction, 0, MEMORY - 1)
        device.write32(regmap.TAIL, driver.announced)
        check_good(driver.wait(2, max_cycles=MAX_CYCLES), placed)
        bench.check_idle()


@pytest.mark.parametrize("timing", [CALM, ROUGH], ids=["calm", "rough"])
@pytest.mark.parametrize("field", ["k_addr", "v_addr", "scale_addr", "checksum_addr"])
def test_checksum(bench, field, timing):
    """One wrong bit in a chunk, at its first, middle or last byte, or in its record."""
    rng = np.random.default_rng(SEED)
    bench.device.timing(**timing)
    token = {"k_addr": DIM, "v_addr": DIM, "scale_addr": 4}.get(field, 0)
    for chunk in (0, 1, 2):
        bad = dataclasses.replace(make(rng, "checked"), tag=77)
        if token:
            tokens = bad.store.chunk(chunk)
            offset = tokens.start * token
            size = len(tokens) * token
            places = (offset, offset + size // 2, offset + size - 1)
        else:
            places = tuple(CHECKSUM_BYTES * chunk + 4 * i for i in range(3))
        place = places[chunk]

        def prepare(placed, place=place, chunk=chunk):
            address = placed.image.fields[field] + place
            raw = bench.device.read(address, 1)
            bench.device.write(address, bytes([raw[0] ^ 1 << int(rng.integers(8))]))
            prepare.byte = (address, raw)
            return placed.image.fields["checksum_addr"] + CHECKSUM_BYTES * chunk

        def restore(placed, prepare=prepare):
            bench.device.write(*prepare.byte)

        check_case(
            bench, bad, ErrorCode.CHECKSUM, prepare=prepare, restore=restore, rng=rng
        )


def test_checksum_not_read(bench):
    """A chunk that nobody selects is not compared."""
    rng = np.random.default_rng(SEED)
    wanted = np.ones((5, 3), dtype=bool)
    wanted[:, 1] = False
    job = dataclasses.replace(make(rng, "explicit"), explicit=wanted, checksum=True)
    placed = [bench.driver.place(job)]
    address = placed[0].image.fields["k_addr"] + 32 * DIM
    bench.device.write(address, bytes([bench.device.read(address, 1)[0] ^ 1]))
    check_good(bench.run(placed), placed)


def test_timeout(bench):
    """A job that memory keeps waiting: too slow for a small limit, fine for a large one."""
    rng = np.random.default_rng(SEED)
    device, driver = bench.device, bench.driver
    device.timing(latency=100)
    long = dataclasses.replace(
        Job(store(rng, 512, 32), *queries(rng, TINY.max_rows)), tag=77
    )
    made = [make(rng, "dense"), long, make(rng, "routed"), make(rng, "dense")]
    placed = [driver.place(job) for job in made]
    outcomes = bench.run(placed)
    check_good(outcomes, placed)
    cycles = [outcome.counters["cycles"] for outcome in outcomes]
    others = max(c for index, c in enumerate(cycles) if index != 1)
    assert cycles[1] > 1.2 * others, cycles

    device.write32(regmap.TIMEOUT, cycles[1] + 500)
    placed = [driver.place(job) for job in made]
    check_good(bench.run(placed), placed)

    limit = others + 200
    device.write32(regmap.TIMEOUT, limit)
    placed = [driver.place(job) for job in made]
    address = bench.descriptor_address(1)
    outcomes = bench.run(placed, written=[one for one in placed if one.job is not long])
    outcome = outcomes.pop(1)
    assert outcome.error_code is ErrorCode.TIMEOUT
    assert limit <= outcome.counters["cycles"] < cycles[1]
    assert bench.error() == (ErrorCode.TIMEOUT, 4 + 4 + 2, address)
    assert outcome.error_address == address
    check_good(outcomes, [one for one in placed if one.job is not long])
    device.write32(regmap.TIMEOUT, 0)
    placed = [driver.place(job) for job in made]
    check_good(bench.run(placed), placed)


def test_timeout_is_of_one_job(bench):
    """The next job's time begins with the completion, however late that is."""
    rng = np.random.default_rng(SEED)
    device, driver = bench.device, bench.driver
    device.timing(latency=10)
    placed = [driver.place(make(rng, "dense")) for _ in range(3)]
    outcomes = bench.run(placed)
    check_good(outcomes, placed)
    longest = max(outcome.counters["cycles"] for outcome in outcomes)
    # Jobs are done in time, but their completions come much later than that.
    device.timing(latency=10, stall={"b": 0.99})
    late = False
    for limit in range(longest + 50, longest + 400, 25):
        device.write32(regmap.TIMEOUT, limit)
        outcomes = bench.run(placed)
        check_good(outcomes, placed)
        late |= any(outcome.counters["cycles"] > limit for outcome in outcomes)
    assert late


def test_fence_behind_error(bench):
    """A fence waits for a bad job as for a good one."""
    rng = np.random.default_rng(SEED)
    driver = bench.driver
    bad = dataclasses.replace(make(rng, "dense"), overrides={"n_rows": 0})
    placed = [driver.place(job) for job in (bad, Fence(tag=3), make(rng, "routed"))]
    outcomes = bench.run(placed, written=placed[2:])
    assert outcomes[0].error_code is ErrorCode.DESCRIPTOR
    assert outcomes[1].record["tag"] == 3
    check_good(outcomes[1:], placed[1:])
    fence = Fence(overrides={"reserved": 1})
    placed = [driver.place(job) for job in (fence, make(rng, "routed"))]
    outcomes = bench.run(placed)
    assert outcomes[0].error_code is ErrorCode.DESCRIPTOR
    check_good(outcomes[1:], placed[1:])
