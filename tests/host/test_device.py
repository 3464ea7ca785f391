"""The driver on the golden model and on the simulated Verilog: results, errors, threads, leaks."""

import concurrent.futures
import dataclasses
import gc
import os
import pathlib
import re
import signal
import threading
import time

import numpy as np
import pytest

import moska.host
from moska.gen.config import Config
from moska.golden.layout import (
    CHECKSUM_BYTES,
    COMPLETION_BYTES,
    COUNTERS,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    ErrorCode,
)
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store, attend, route
from moska.host import Device, regmap
from moska.host.ring import read64
from moska.sim.model import ModelDevice
from moska.sim.transport import GoldenTransport, SimTransport

SEED = 20_251_126
TINY = Config.load("tiny")
DIM, MAX_ROWS = TINY.head_dim, TINY.max_rows
MEMORY = 1 << 22
GOLDEN = f"golden:tiny?memory={MEMORY >> 20}M"
SIM = f"sim:tiny?memory={MEMORY >> 20}M&latency=20"
SECONDS = 120  # that a result may take
GROUP = pytest.mark.xdist_group("device-tiny")  # its library is built once


@pytest.fixture
def rng():
    return np.random.default_rng(SEED)


# Devices that a test may run on; a board's memory makes no errors, and filling it takes long.
MODELS = (pytest.param(GOLDEN, id="golden"), pytest.param(SIM, id="sim", marks=GROUP))
BOARD = pytest.param(
    "soc:tiny", id="soc", marks=[pytest.mark.fpga, pytest.mark.xdist_group("soc-tiny")]
)
MODELS_ONLY = pytest.mark.parametrize("device", MODELS, indirect=True)


@pytest.fixture(scope="module", params=[*MODELS, BOARD])
def device(request):
    """Open device, shared by the tests here: whatever one does to it, the next one can use it."""
    with moska.host.open(request.param) as device:
        yield device
        assert device.closed is False
        if isinstance(device.transport, SimTransport):
            assert device.transport.violations == []


@pytest.fixture
def golden():
    with moska.host.open(GOLDEN) as device:
        yield device


def store(rng, n_tokens=96, chunk_tokens=16, router="minmax"):
    k, v = rng.normal(size=(2, n_tokens, DIM))
    return Store.from_float(k, v, chunk_tokens=chunk_tokens, router=router)


def queries(rng, n_rows):
    return 2 * rng.normal(size=(n_rows, DIM))


def prefix(whole, n_tokens):
    """First tokens of a store."""
    if n_tokens is None or n_tokens == whole.n_tokens:
        return whole
    cut = {name: getattr(whole, name)[:n_tokens] for name in ("k", "v", "k_scale", "v_scale")}
    n_chunks = n_tokens // whole.chunk_tokens
    return dataclasses.replace(
        whole, **cut, rep=whole.rep[:n_chunks], rep_scale=whole.rep_scale[:n_chunks]
    )


def check(result, whole, q, *, k=None, explicit=None, n_tokens=None, route_only=False, **options):
    """Compare a result with the golden model, bit for bit."""
    part = prefix(whole, n_tokens)
    q_int, q_scale = q if isinstance(q, tuple) else quantize_q(q)
    group = options.get("group", 1)
    keep = {name: options[name] for name in ("keep_first", "keep_last") if name in options}
    selected = explicit
    if k is not None:
        selected = route(part, q_int, q_scale, k, group=group, **keep)
        np.testing.assert_array_equal(result.selected, selected)
    elif explicit is None:
        assert result.selected is None
    assert result.counters.keys() == set(COUNTERS)
    if route_only:
        assert result.o.shape == (0, DIM)
        assert result.lse.shape == (0,)
        return
    expected = attend(part, q_int, q_scale, selected)
    np.testing.assert_array_equal(result.o.view(np.uint32), expected.o)
    base2 = expected.lse.view(np.float32).astype(np.float64)
    np.testing.assert_array_equal(result.lse, (base2 * np.log(2)).astype(np.float32))


def works(device, rng):
    """Run a good job."""
    whole, q = store(rng), queries(rng, 3)
    with device.load(whole) as handle:
        check(device.submit(handle, q, k=2).result(SECONDS), whole, q, k=2)


# Results ---------------------------------------------------------------------------------------


def options_of(rng, whole, n_rows):
    """Random arguments of a job."""
    options = {}
    if rng.random() < 0.3:
        options["n_tokens"] = int(rng.integers(1, whole.n_chunks + 1)) * whole.chunk_tokens
        options["n_tokens"] = min(options["n_tokens"], whole.n_tokens)
    n_chunks = -(-options.get("n_tokens", whole.n_tokens) // whole.chunk_tokens)
    kind = rng.choice(["all", "routed", "route", "explicit"])
    if kind == "explicit":
        options["explicit"] = rng.random((n_rows, n_chunks)) < 0.5
    elif kind != "all":
        options |= {
            "k": int(rng.integers(0, n_chunks + 2)),
            "keep_first": int(rng.integers(0, 3)),
            "keep_last": int(rng.integers(0, 3)),
            "group": int(rng.choice([d for d in (1, 2, 3, 5) if n_rows % d == 0])),
            "route_only": kind == "route",
        }
    if rng.random() < 0.3:
        options["checksum"] = False
    return options


def run_random_jobs(device, count, n_threads):
    """Run ``count`` random jobs from several threads, some waiting and some not; check them all."""
    rng = np.random.default_rng(SEED)
    wholes = [
        store(rng, 96, 16), store(rng, 90, 32), store(rng, 256, 16, "mean"),
        store(rng, 70, 16, "submean:4"), store(rng, 16, 16),
    ]  # fmt: skip
    handles = [device.load(whole) for whole in wholes]
    used = device.memory.used_bytes

    def work(number):
        own = np.random.default_rng([SEED, number])
        under_way = []
        for _ in range(count // n_threads):
            index = int(own.integers(len(wholes)))
            whole = wholes[index]
            q = queries(own, int(own.integers(1, 3 * MAX_ROWS if own.random() < 0.1 else 12)))
            options = options_of(own, whole, len(q))
            given = quantize_q(q) if own.random() < 0.5 else q
            under_way.append((device.submit(handles[index], given, **options), whole, q, options))
            while len(under_way) > int(own.integers(0, 20)):
                future, whole, q, options = under_way.pop(0)
                check(future.result(SECONDS), whole, q, **options)
        for future, whole, q, options in under_way:
            check(future.result(SECONDS), whole, q, **options)
        return True

    with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
        assert all(pool.map(work, range(n_threads)))
    settle(device, used)
    for handle in handles:
        handle.free()


def settle(device, used):
    """Wait until jobs have given their memory back: their futures are done before that."""
    deadline = time.monotonic() + 10
    while device.memory.used_bytes != used:
        assert time.monotonic() < deadline, f"{device.memory.used_bytes - used} bytes are lost"
        time.sleep(0.01)


def test_random_jobs_on_the_golden_model(golden):
    run_random_jobs(golden, 1000, 4)
    assert golden.statistics.errors == 0
    assert golden.statistics.jobs >= 1000


@GROUP
def test_random_jobs_on_the_simulated_unit():
    with moska.host.open(SIM) as device:
        run_random_jobs(device, 100, 4)
        assert device.statistics.errors == 0
        assert device.statistics.jobs >= 100
        assert device.transport.violations == []


def test_rows_beyond_a_job_become_several(device, rng):
    """Their results are joined, their counters added, and groups stay together."""
    whole = store(rng)
    n_rows = 3 * MAX_ROWS + 6
    q = queries(rng, n_rows)
    explicit = rng.random((n_rows, whole.n_chunks)) < 0.5
    with device.load(whole) as handle:
        before = device.statistics
        for options in ({}, {"k": 3, "group": 6}, {"explicit": explicit}):
            result = device.attend(handle, q, **options)
            check(result, whole, q, **options)
        done = device.statistics
    assert done.jobs - before.jobs == 4 + 5 + 4
    assert done.rows - before.rows == 3 * n_rows
    assert done.cycles > before.cycles
    assert done.bytes > before.bytes
    assert done.busy_seconds > before.busy_seconds
    assert result.counters["chunks_read"] <= 4 * whole.n_chunks
    read = sum(
        explicit[start : start + MAX_ROWS].any(axis=0).sum()
        for start in range(0, n_rows, MAX_ROWS)
    )
    assert result.counters["chunks_read"] == read


def test_scale_of_the_softmax(device, rng):
    whole, q = store(rng), queries(rng, 3)
    with device.load(whole) as handle:
        result = device.attend(handle, q, softmax_scale=0.05)
    check(result, whole, quantize_q(q, 0.05))


def test_rows_without_chunks(device, rng):
    """O is 0 and the LSE -infinity."""
    whole, q = store(rng), queries(rng, 3)
    with device.load(whole) as handle:
        result = device.attend(handle, q, k=0)
    check(result, whole, q, k=0)
    assert not result.o.any()
    assert np.isneginf(result.lse).all()


@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize("router", ["minmax", "submean:4"])
def test_stores_are_read_back(golden, rng, router, checksums):
    whole = store(rng, 70, 32, router)
    handle = golden.load(whole, checksums=checksums)
    assert (handle.n_tokens, handle.n_chunks, handle.chunk_tokens) == (70, 3, 32)
    assert handle.checksums is checksums
    back = handle.store()
    for field in dataclasses.fields(Store):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(whole, field.name))


def test_a_store_without_representatives(golden, rng):
    whole = dataclasses.replace(store(rng), rep=None, rep_scale=None)
    handle, q = golden.load(whole), queries(rng, 2)
    check(golden.attend(handle, q), whole, q)
    with pytest.raises(ValueError, match=r"^store must have representatives to route$"):
        golden.attend(handle, q, k=1)


# Arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "options", "message"),
    [
        ((4, 8), {}, r"q must have shape \(M, 16\), not \(4, 8\)"),
        ((16,), {}, r"q must have shape \(M, 16\), not \(16,\)"),
        ((0, 16), {}, "q must have at least one row"),
        ((4, 16), {"k": -1}, "k must not be negative, not -1"),
        ((4, 16), {"k": 1, "keep_last": -2}, "keep_last must not be negative, not -2"),
        ((4, 16), {"k": 1, "group": 3}, r"group must divide the rows \(4\) .* 16, not 3"),
        ((34, 16), {"k": 1, "group": 17}, r"group must divide the rows \(34\) .* 16, not 17"),
        ((4, 16), {"n_tokens": 24}, r"n_tokens must be a multiple .* \(96\), not 24"),
        ((4, 16), {"n_tokens": 0}, r"n_tokens must be a multiple .*, not 0"),
        ((4, 16), {"n_tokens": 112}, r"n_tokens must be a multiple .*, not 112"),
        ((4, 16), {"route_only": True}, "k must be given to route only"),
        ((4, 16), {"k": 1, "explicit": np.ones((4, 6), bool)}, "k must not be given with an .*"),
        ((4, 16), {"explicit": np.ones((4, 5), bool)}, r"explicit must be bool of .*\(4, 6\).*"),
        ((4, 16), {"explicit": np.ones((4, 6), int)}, r"explicit must be bool .* not int64.*"),
        ((4, 16), {"checksum": True}, "checksum must be off for a store without checksums"),
    ],
)  # fmt: skip
def test_bad_arguments(golden, rng, q, options, message):
    handle = golden.load(store(rng), checksums=False)
    used = golden.memory.used_bytes
    with pytest.raises(ValueError, match=rf"^{message}$"):
        golden.submit(handle, np.ones(q), **options)
    assert golden.memory.used_bytes == used
    works(golden, rng)


def test_bad_quantised_queries(golden, rng):
    handle = golden.load(store(rng))
    q_int, q_scale = quantize_q(queries(rng, 2))
    with pytest.raises(TypeError, match=r"^quantised queries must be int16 and uint16, not int32"):
        golden.submit(handle, (q_int.astype(np.int32), q_scale))
    with pytest.raises(ValueError, match=r"^scales of q must have shape \(2,\), not \(1,\)$"):
        golden.submit(handle, (q_int, q_scale[:1]))
    with pytest.raises(ValueError, match=r"^softmax_scale must not be given with quantised"):
        golden.submit(handle, (q_int, q_scale), softmax_scale=1.0)


def test_stores_that_do_not_fit(golden, rng):
    k, v = rng.normal(size=(2, 32, 32))
    with pytest.raises(ValueError, match=r"^store must have head_dim 16 as the unit, not 32$"):
        golden.load(Store.from_float(k, v, chunk_tokens=16))
    long = golden.load(store(rng, 17 * 16))
    q = queries(rng, 1)
    check(golden.attend(long, q), long.store(), q)
    text = r"^chunks to select from must be at most 16, not 17$"
    with pytest.raises(ValueError, match=text):
        golden.submit(long, q, k=2)
    with pytest.raises(ValueError, match=text):
        golden.submit(long, q, explicit=np.ones((1, 17), bool))
    check(golden.attend(long, q, k=2, n_tokens=256), long.store(), q, k=2, n_tokens=256)
    many = golden.load(store(rng, 128, 64, "submean:1"))
    with pytest.raises(ValueError, match=r"^store must have at most 32 representatives a chunk"):
        golden.submit(many, q, k=1)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("tiny", "uri must begin with one of golden:, serial:, sim:, soc:, not 'tiny'"),
        ("udp:host", "uri must begin with one of golden:, serial:, sim:, soc:, not 'udp:host'"),
        ("golden:tinny", r"config must be a preset .* did you mean 'tiny'\?"),
        ("golden:tiny?speed=1", "option of golden: must be one of memory, not 'speed'"),
        ("sim:tiny?speed=1", "option of sim: must be one of bytes_per_cycle, latency, memory, .*"),
        ("golden:tiny?memory=1k1", "memory must be a multiple of 4096 bytes, as 64M or 1G, .*"),
        ("golden:tiny?memory=100", "memory must be a multiple of 4096 bytes, as 64M or 1G, .*"),
        ("golden:tiny?memory", r".*memory.*"),
        ("sim:tiny?latency=many", "latency must be a number of cycles, not 'many'"),
        ("sim:tiny?trace=waves.txt", r"trace must be a \.vcd or \.fst file, not 'waves\.txt'"),
    ],
)
def test_bad_uris(uri, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        moska.host.open(uri)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ring_size": 16}, "ring_size must be from 0 to 15, not 16"),
        ({"timeout_cycles": -1}, "timeout_cycles must have 32 bits, not -1"),
        ({"stall_timeout": 0}, "stall_timeout must be positive, not 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        moska.host.open(GOLDEN, **options)


# The unit --------------------------------------------------------------------------------------


class Odd(GoldenTransport):
    """A unit with other values in some registers."""

    def __init__(self, values):
        super().__init__(ModelDevice(TINY, memory_bytes=MEMORY))
        self.values = values

    def read32(self, offset):
        return self.values.get(offset, super().read32(offset))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({regmap.ID: 0xFFFFFFFF}, "unit must have ID 0x4b534f4d, not 0xffffffff"),
        ({regmap.VERSION: 3}, "unit must have version 2 of the register map, not 3"),
        ({regmap.BLOCK_TOKENS: 64}, "unit must have block_tokens 32 as the golden model, not 64"),
        ({regmap.Q_BITS: 8}, "unit must have q_bits 16 as the golden model, not 8"),
        ({regmap.CONTEXTS: 0}, "unit must have contexts of at least 1, not 0"),
        ({regmap.MAX_ROWS: 1024}, "unit must have max_rows of at most 512, not 1024"),
    ],
)
def test_unknown_units_are_refused(values, message):
    with pytest.raises(moska.host.IncompatibleUnit, match=rf"^{message}$"):
        Device(Odd(values))


def test_what_a_device_tells(device):
    assert device.parameters.head_dim == DIM
    assert device.parameters.max_rows == MAX_ROWS
    assert device.clock_mhz == TINY.clock_mhz
    assert "tiny" in device.description
    assert device.uri in repr(device)


def test_windows_hold_the_memory_and_are_locked(rng):
    with moska.host.open(GOLDEN, lock_windows=True) as device:
        works(device, rng)
        model = device.transport.model
        for name in ("READ", "WRITE"):
            assert read64(model, f"{name}_BASE") == 0
            assert read64(model, f"{name}_LIMIT") == MEMORY - 1
        assert model.read32(regmap.LOCK) == 1


# Errors of jobs --------------------------------------------------------------------------------


def fails(device, kind, code, address, handle, q, **options):
    """Run a bad job between good ones."""
    errors = device.statistics.errors
    good = [device.submit(handle, q, k=2) for _ in range(2)]
    bad = device.submit(handle, q, **options)
    behind = device.submit(handle, q, k=2)
    with pytest.raises(kind) as caught:
        bad.result(SECONDS)
    assert (caught.value.code, hex(caught.value.address)) == (code, hex(address))
    assert isinstance(caught.value, moska.host.JobError)
    assert hex(address) in str(caught.value)
    assert device.statistics.errors == errors + 1
    return [*good, behind]


@MODELS_ONLY
@pytest.mark.parametrize("response", [2, 3])
def test_error_of_a_read(device, rng, response):
    whole, q = store(rng), queries(rng, 3)
    with device.load(whole) as handle:
        # In chunk 4, which only the bad job reads.
        address = handle.fields["k_addr"] + 4 * 16 * DIM + 24
        keep = np.ones((3, whole.n_chunks), dtype=bool)
        keep[:, 4] = False
        device.transport.inject(kind="read", address=address, size=8, response=response)
        with pytest.raises(moska.host.ReadError) as caught:
            device.attend(handle, q)
        assert caught.value.address == address
        assert caught.value.code is ErrorCode.READ
        check(device.attend(handle, q, explicit=keep), whole, q, explicit=keep)
        device.transport.clear_injections()
        check(device.attend(handle, q), whole, q)


@MODELS_ONLY
def test_error_of_a_write(device, rng):
    """A region of memory that cannot be written: the jobs whose results lie there."""
    whole, q = store(rng), queries(rng, 3)
    with device.load(whole) as handle:
        ends = [start + size for start, size in device.memory.blocks.items()]
        device.transport.inject(kind="write", address=max(ends), size=MEMORY - max(ends))
        with pytest.raises(moska.host.WriteError) as caught:
            device.attend(handle, q)
        assert caught.value.address >= max(ends)
        device.transport.clear_injections()
        check(device.attend(handle, q), whole, q)


@MODELS_ONLY
def test_a_completion_that_is_lost(device, rng):
    """The registers tell what happened to it."""
    whole, q = store(rng), queries(rng, 3)
    with device.load(whole) as handle:
        ring = device._ring
        address = ring.completions + ring.collected % ring.entries * COMPLETION_BYTES
        device.transport.inject(kind="write", address=address, size=COMPLETION_BYTES)
        with pytest.raises(moska.host.WriteError) as caught:
            device.attend(handle, q)
        assert caught.value.address == address
        device.transport.clear_injections()
        check(device.attend(handle, q), whole, q)


@pytest.mark.parametrize("name", ["k_addr", "v_addr", "scale_addr"])
def test_chunk_that_does_not_match_its_checksum(device, rng, name):
    whole, q = store(rng), queries(rng, 3)
    with device.load(whole) as handle:
        place = handle.fields[name] + (3 * 16 + 5) * (4 if name == "scale_addr" else DIM)
        raw = device.transport.read(place, 1)
        device.transport.write(place, bytes([raw[0] ^ 4]))
        record = handle.fields["checksum_addr"] + 3 * CHECKSUM_BYTES
        fails(device, moska.host.ChecksumError, ErrorCode.CHECKSUM, record, handle, q)
        # Wrong numbers, but no error, for who asks for it.
        assert not np.array_equal(
            device.attend(handle, q, checksum=False).o, attend(whole, *quantize_q(q)).o
        )
        device.transport.write(place, raw)
        check(device.attend(handle, q), whole, q)


def spoil(device, monkeypatch, **changes):
    """Change fields of the next descriptor with ``n_rows`` 5 on its way; return its address."""
    seen = []
    write = device.transport.write

    def spoilt(address, raw):
        ring = device._ring
        at, size = DESCRIPTOR["n_rows"]
        if ring.descriptors <= address < ring.completions and raw[at : at + size] == b"\5\0":
            seen.append(address)
            raw = bytearray(raw)
            for name, value in changes.items():
                offset, size = DESCRIPTOR[name]
                raw[offset : offset + size] = value.to_bytes(size, "little")
            raw = bytes(raw)
        write(address, raw)

    monkeypatch.setattr(device.transport, "write", spoilt)
    return seen


def test_descriptor_that_is_refused(device, rng, monkeypatch):
    whole, q = store(rng), queries(rng, 5)
    with device.load(whole) as handle:
        seen = spoil(device, monkeypatch, kv_format=9)
        with pytest.raises(moska.host.DescriptorError) as caught:
            device.attend(handle, q)
        assert caught.value.address == seen[0] + DESCRIPTOR["kv_format"][0]
        assert seen[0] % DESCRIPTOR_BYTES == device._ring.descriptors % DESCRIPTOR_BYTES
        monkeypatch.undo()
        check(device.attend(handle, q), whole, q)


def test_array_outside_the_window(device, rng, monkeypatch):
    whole, q = store(rng), queries(rng, 5)
    with device.load(whole) as handle:
        spoil(device, monkeypatch, v_addr=MEMORY)
        with pytest.raises(moska.host.WindowError) as caught:
            device.attend(handle, q)
        assert caught.value.address == MEMORY
        monkeypatch.undo()
        check(device.attend(handle, q), whole, q)


@pytest.mark.parametrize("uri", [GOLDEN, pytest.param(SIM, marks=GROUP)])
def test_job_that_takes_too_long(rng, uri):
    """Its error is of its own; the jobs around it are good."""
    short, long = store(rng, 32), store(rng, 512, 32)
    q = queries(rng, MAX_ROWS)
    with moska.host.open(uri, timeout_cycles=6000) as device:
        handles = [device.load(whole) for whole in (short, long)]
        futures = [device.submit(handles[i], q) for i in (0, 1, 0, 0)]
        with pytest.raises(moska.host.JobTimeout) as caught:
            futures[1].result(SECONDS)
        assert caught.value.address == device._ring.descriptors + DESCRIPTOR_BYTES
        assert caught.value.sequence == 2
        for index in (0, 2, 3):
            check(futures[index].result(SECONDS), short, q)
        check(device.attend(handles[0], q), short, q)


# Broken links and units ------------------------------------------------------------------------


class Hanging(GoldenTransport):
    """A unit that stops when told to, until it is reset."""

    hangs = False

    def wait(self, timeout):
        if self.hangs:
            time.sleep(timeout)
            return False
        return super().wait(timeout)

    def reset(self):
        self.hangs = False
        super().reset()


def test_unit_that_makes_no_progress(rng):
    whole, q = store(rng), queries(rng, 3)
    with Device(Hanging(ModelDevice(TINY, memory_bytes=MEMORY)), stall_timeout=0.3) as device:
        handle = device.load(whole)
        check(device.attend(handle, q), whole, q)
        used = device.memory.used_bytes
        device.transport.hangs = True
        futures = [device.submit(handle, q) for _ in range(3)]
        for future in futures:
            with pytest.raises(moska.host.DeviceTimeout, match=r"no progress for 0\.3 seconds"):
                future.result(SECONDS)
        settle(device, used)
        check(device.attend(handle, q), whole, q)


@GROUP
def test_memory_that_does_not_answer(rng):
    """The unit hangs for want of data; a reset frees it."""
    whole, q = store(rng), queries(rng, 3)
    with moska.host.open(SIM, stall_timeout=1.0) as device:
        handle = device.load(whole)
        device.transport.timing(stall={"r": 0.9999999})
        with pytest.raises(moska.host.DeviceTimeout):
            device.submit(handle, q).result(SECONDS)
        device.transport.timing()
        check(device.attend(handle, q), whole, q)


@GROUP
def test_killed_simulator(rng):
    """Jobs under way fail; the next one finds the stores where they were."""
    whole = store(rng, 512, 32)
    q = queries(rng, MAX_ROWS)
    with moska.host.open(SIM) as device:
        handle = device.load(whole)
        check(device.attend(handle, q), whole, q)
        used = device.memory.used_bytes
        device.transport.timing(latency=20, stall=0.9)  # slow, so that jobs are under way
        futures = [device.submit(handle, q) for _ in range(4)]
        while not device.transport._call_lock.locked():
            time.sleep(0.001)
        first = device.transport.process
        os.kill(first.pid, signal.SIGKILL)
        error = futures[0].exception(SECONDS)
        assert isinstance(error, moska.host.TransportError)
        assert str(error) == "simulator ended by SIGKILL"
        for future in futures[1:]:  # under way too, or announced after the restart
            assert future.exception(SECONDS) in (error, None)
        settle(device, used)
        device.transport.timing(latency=20)
        check(device.attend(handle, q), whole, q)
        assert device.transport.process.pid != first.pid


@GROUP
def test_simulator_that_cannot_be_started_again(rng, monkeypatch):
    whole, q = store(rng), queries(rng, 3)
    with moska.host.open(SIM) as device:
        handle = device.load(whole)

        def start():
            raise moska.host.TransportError("no simulator today")

        monkeypatch.setattr(device.transport, "_start", start)
        os.kill(device.transport.process.pid, signal.SIGKILL)
        with pytest.raises(moska.host.TransportError, match="SIGKILL"):
            device.submit(handle, q).result(SECONDS)
        for _ in range(2):
            with pytest.raises(moska.host.TransportError, match=r"^no simulator today$"):
                device.submit(handle, q).result(SECONDS)
        monkeypatch.undo()
        check(device.attend(handle, q), whole, q)


@GROUP
def test_simulator_that_dies_at_its_start(monkeypatch):
    """Its last words are in the error."""
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr("sys.executable", "/bin/sh")
    with pytest.raises(moska.host.TransportError, match=r"^simulator ended with status \d+: .*sh"):
        SimTransport(TINY, memory_bytes=MEMORY)


class Lying(GoldenTransport):
    """A unit whose completions are not what they should be, once."""

    offset, value = 0, 0
    armed = False

    def read(self, address, size):
        raw = super().read(address, size)
        if self.armed and size == COMPLETION_BYTES:
            self.armed = False
            raw = raw[: self.offset] + bytes([self.value]) + raw[self.offset + 1 :]
        return raw


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 99, "completion must have sequence 1, not 99"),
        (8, 200, "completion must have a known error code, not 200"),
        (8, 7, "completion must have a known error code, not 7"),
    ],
)
def test_completions_that_cannot_be_right(rng, offset, value, message):
    whole, q = store(rng), queries(rng, 3)
    transport = Lying(ModelDevice(TINY, memory_bytes=MEMORY))
    transport.offset, transport.value = offset, value
    with Device(transport) as device:
        handle = device.load(whole)
        transport.armed = True
        with pytest.raises(moska.host.TransportError, match=rf"^{message}$"):
            device.attend(handle, q)
        check(device.attend(handle, q), whole, q)


def test_errors_of_the_rings_are_told(rng):
    """Registers that somebody else has changed."""
    whole, q = store(rng), queries(rng, 3)
    with moska.host.open(GOLDEN) as device:
        handle = device.load(whole)
        device.transport.model.write32(regmap.WRITE_LIMIT_LO, 0)
        with pytest.raises(moska.host.TransportError, match=r"^the unit reports WINDOW at 0x"):
            device.submit(handle, q).result(SECONDS)
        check(device.attend(handle, q), whole, q)


# Memory ----------------------------------------------------------------------------------------


@MODELS_ONLY
def test_full_memory(device, rng):
    """Stores and jobs that have no room are refused; smaller ones go on."""
    used = device.memory.used_bytes
    whole = store(rng)
    handles = []
    text = None
    while text is None:
        try:
            handles.append(device.load(whole))
        except moska.host.OutOfMemory as error:
            text = str(error)
    assert re.match(r"device memory must have room for [\d,]+ bytes: of 4,194,304, ", text)
    size = handles[0].nbytes
    assert device.memory.free_bytes < size
    assert device.memory.used_bytes == used + size * len(handles)
    q = queries(rng, MAX_ROWS)
    filler = []
    while device.memory.largest_hole >= 64:
        filler.append(device.memory.allocate(device.memory.largest_hole))
    with pytest.raises(moska.host.OutOfMemory):
        device.submit(handles[0], q)
    for address in filler:
        device.memory.free(address)
    handles.pop().free()
    check(device.attend(handles[0], q), whole, q)
    for handle in handles:
        handle.free()
    settle(device, used)


def test_jobs_wait_for_memory_and_for_the_ring(rng):
    """More jobs than both hold are submitted from one thread, and all are good."""
    whole = store(rng, 32)
    with moska.host.open("golden:tiny?memory=16K", ring_size=1) as device:
        handle = device.load(whole)
        q = [queries(rng, MAX_ROWS) for _ in range(40)]
        # Of one job, some 1,700 bytes.
        futures = [device.submit(handle, rows) for rows in q]
        for future, rows in zip(futures, q, strict=True):
            check(future.result(SECONDS), whole, rows)
        # More pieces than memory holds, in one call.
        rows = queries(rng, 20 * MAX_ROWS)
        check(device.submit(handle, rows, k=1).result(SECONDS), whole, rows, k=1)


def test_freed_stores(device, rng):
    whole, q = store(rng), queries(rng, 3)
    used = device.memory.used_bytes
    with device.load(whole) as handle:
        assert device.memory.used_bytes == used + handle.nbytes
        futures = [device.submit(handle, q) for _ in range(5)]
    # Leaving the block has waited for the jobs.
    assert all(future.done() for future in futures[:4])
    assert device.memory.used_bytes == used
    check(futures[4].result(SECONDS), whole, q)
    handle.free()
    for use in (lambda: device.submit(handle, q), handle.store):
        with pytest.raises(moska.host.MoskaError, match=r"^store must not be freed before"):
            use()
    works(device, rng)


def test_store_of_another_device(golden, rng):
    with moska.host.open(GOLDEN) as other:
        handle = other.load(store(rng))
        with pytest.raises(ValueError, match=r"^handle must be of this device$"):
            golden.submit(handle, queries(rng, 1))


# Futures ---------------------------------------------------------------------------------------


def test_callbacks_may_submit(device, rng):
    """Even with a full ring, a callback does not wait."""
    whole, q = store(rng), queries(rng, 3)
    with device.load(whole) as handle:
        chained = []
        done = threading.Event()

        def again(_):
            chained.extend(device.submit(handle, q, k=1) for _ in range(100))
            done.set()

        # Long enough that the callback is there before the end.
        long = device.submit(handle, queries(rng, 30 * MAX_ROWS))
        long.add_done_callback(again)
        assert done.wait(SECONDS)
        for future in chained:
            check(future.result(SECONDS), whole, q, k=1)


def test_what_callbacks_must_not_do(rng):
    transport = Hanging(ModelDevice(TINY, memory_bytes=MEMORY))
    with Device(transport) as device:
        handle, q = device.load(store(rng)), queries(rng, 3)
        errors = []

        def misuse(_):
            for use in (device.close, handle.free):
                with pytest.raises(moska.host.MoskaError) as caught:
                    use()
                errors.append(str(caught.value))

        transport.hangs = True
        first, second = device.submit(handle, q), device.submit(handle, q)
        first.add_done_callback(misuse)
        transport.hangs = False
        second.result(SECONDS)
        assert errors == [
            "device must not be closed from a future's callback",
            "store must not be freed from a callback while jobs use it",
        ]
        check(device.attend(handle, q), handle.store(), q)


def test_cancelled_jobs_are_not_run(rng):
    whole, q = store(rng), queries(rng, 3)
    transport = Hanging(ModelDevice(TINY, memory_bytes=MEMORY))
    with Device(transport, ring_size=0) as device:
        handle = device.load(whole)
        used = device.memory.used_bytes
        transport.hangs = True
        futures = [device.submit(handle, q) for _ in range(2)]
        while not futures[0].running():
            time.sleep(0.001)
        assert futures[1].cancel()
        assert not futures[0].cancel()
        transport.hangs = False
        check(futures[0].result(SECONDS), whole, q)
        check(device.attend(handle, q), whole, q)
        settle(device, used)
        assert device.statistics.jobs == 2


# Closing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["golden", pytest.param("sim", marks=GROUP)])
def test_closing_ends_what_is_pending(rng, kind):
    whole, q = store(rng), queries(rng, MAX_ROWS)
    if kind == "golden":
        device = Device(Hanging(ModelDevice(TINY, memory_bytes=MEMORY)))
        device.transport.hangs = True
    else:
        device = moska.host.open(SIM)
        device.transport.timing(stall={"r": 0.9999999})
    handle = device.load(whole)
    futures = [device.submit(handle, q) for _ in range(70)]  # more than the rings hold
    device.close()
    for future in futures:
        assert future.done()
        with pytest.raises(moska.host.DeviceClosed):
            future.result()
    for use in (lambda: device.submit(handle, q), lambda: device.load(whole)):
        with pytest.raises(moska.host.DeviceClosed):
            use()
    device.close()
    handle.free()


def test_a_thread_that_waits_for_the_ring_is_freed_by_closing(rng):
    transport = Hanging(ModelDevice(TINY, memory_bytes=MEMORY))
    device = Device(transport, ring_size=0)
    handle, q = device.load(store(rng)), queries(rng, 1)
    transport.hangs = True
    caught = []

    def work():
        try:
            for _ in range(5):
                device.submit(handle, q)
        except moska.host.DeviceClosed as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    device.close()
    thread.join(SECONDS)
    assert caught


@pytest.mark.parametrize("uri", [GOLDEN, pytest.param(SIM, marks=GROUP)])
def test_nothing_is_left_behind(rng, uri):
    """Threads, open files (memory and sockets among them) and children; also after errors."""
    process = pathlib.Path("/proc/self")
    if not process.is_dir():
        pytest.skip("needs /proc")

    def held():
        gc.collect()
        threads = [t for t in threading.enumerate() if t.name == "moska-device"]
        children = [path.read_text() for path in process.glob("task/*/children")]
        return len(list((process / "fd").iterdir())), len(threads), "".join(children)

    with moska.host.open(uri) as device:  # what is made once and kept is there now
        works(device, rng)
    before = held()
    with moska.host.open(uri) as device:
        handle, q = device.load(store(rng)), queries(rng, 3)
        device.submit(handle, q)
        if isinstance(device.transport, SimTransport):
            os.kill(device.transport.process.pid, signal.SIGKILL)
            device.submit(handle, q).exception(SECONDS)
    with pytest.raises(ValueError, match="ring_size"):
        moska.host.open(uri, ring_size=99)
    assert held() == before
