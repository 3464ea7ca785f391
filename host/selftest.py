"""A ladder of tests of a unit, each rung on top of the one before: what works, and what does not.

The expected bits are the golden model's.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moska.golden.data import NAMES, load
from moska.golden.formats import CHUNK_MULTIPLE
from moska.golden.layout import Opcode, pack_descriptor
from moska.golden.quantize import quantize_q
from moska.golden.router import Bool
from moska.golden.unit import Store, attend, route
from moska.host import regmap
from moska.host.device import Device
from moska.host.errors import DeviceTimeout, MoskaError
from moska.host.handle import StoreHandle
from moska.host.job import LN2, Attention
from moska.host.ring import Parameters, Ring, identify
from moska.host.transport import Transport, connect

WORD = 4  # bytes
MASK = (1 << 8 * WORD) - 1
BLOCK_BYTES = 1024  # of the memory walk
RING_SIZE = 2  # log2, of the loop-back
FENCES = 6  # more than the ring holds
KEEP = 4  # a routed row keeps a chunk of so many
UNDER_WAY = 4  # jobs of the soak at once
SOAK_TOKENS = 256  # of a store of the soak, at most
SOAK_ROWS = 24

Kind = Mapping[str, Any]  # options of a job


class Mismatch(MoskaError):
    """Something has another value than it must have."""


@dataclass(frozen=True)
class Extent:
    """How much is tested."""

    rows: int = 64  # of the golden vectors
    tokens: int = 2048
    memory_bytes: int = 1 << 18  # that the memory walk writes in blocks
    jobs: int = 20  # of the soak, at least
    seconds: float = 0.0  # of the soak, at least
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "tokens", "memory_bytes", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Rung:
    """What became of one test."""

    name: str
    passed: bool
    seconds: float
    detail: str  # what was tested, or what is wrong


@dataclass
class Report:
    """What became of the ladder."""

    uri: str
    description: str = ""
    clock_mhz: float | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    rungs: list[Rung] = field(default_factory=list)
    link_retries: int | None = None  # of the transport, when it counts them

    @property
    def passed(self) -> bool:
        """Whether every rung holds."""
        return all(rung.passed for rung in self.rungs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"passed": self.passed} | asdict(self)


def climb(
    uri: str, extent: Extent | None = None, *, say: Callable[[Rung], None] = lambda rung: None
) -> Report:
    """Test the unit that a URI names, rung by rung, until one breaks.

    Parameters
    ----------
    uri
        as :func:`moska.host.open` takes it
    extent
        how much is tested
    say
        called with each rung

    Raises
    ------
    ValueError
        for an unknown scheme, name or option.
    """
    ladder = _Ladder(uri, extent or Extent())
    report = Report(uri)
    try:
        for name, test in ladder.tests():
            started = time.monotonic()
            try:
                detail, passed = test(), True
            except MoskaError as error:
                detail, passed = f"{type(error).__name__}: {error}", False
            rung = Rung(name, passed, time.monotonic() - started, detail)
            report.rungs.append(rung)
            say(rung)
            if not passed:
                break
    finally:
        ladder.close()
    if ladder.transport is not None:
        report.description = ladder.transport.description
        report.clock_mhz = ladder.transport.clock_mhz
        report.link_retries = getattr(ladder.transport, "retries", None)
    if ladder.parameters is not None:
        report.parameters = asdict(ladder.parameters)
    return report


class _Ladder:
    """The tests, and what they share."""

    transport: Transport | None = None
    parameters: Parameters | None = None
    device: Device | None = None

    def __init__(self, uri: str, extent: Extent):
        self.uri = uri
        self.extent = extent
        self.rng = np.random.default_rng(extent.seed)

    def tests(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Names and tests, in order; a test returns what it has tested."""
        yield "identity", self.identity
        assert self.transport is not None
        assert self.parameters is not None
        link, unit = self.transport, self.parameters
        yield "scratch", lambda: self.scratch(link)
        yield "data lines", lambda: self.data_lines(link)
        yield "address lines", lambda: self.address_lines(link)
        yield "memory walk", lambda: self.memory_walk(link)
        yield "loop-back", lambda: self.loop_back(link)
        yield "dense", lambda: self.vectors(link, unit, NAMES[0], k=None)
        yield "routed", lambda: self.vectors(link, unit, NAMES[1], k=KEEP)
        yield "soak", lambda: self.soak(link, unit)

    def close(self) -> None:
        """Let go of the unit."""
        if self.device is not None:
            self.device.close()
        elif self.transport is not None:
            self.transport.close()

    # Registers ---------------------------------------------------------------------------------

    def identity(self) -> str:
        """Open the link, reset the unit, read who it is."""
        self.transport = link = connect(self.uri)
        link.reset()
        self.parameters = unit = identify(link)
        clock = "" if link.clock_mhz is None else f", {link.clock_mhz:g} MHz"
        return (
            f"{link.description}{clock}: head size {unit.head_dim}, {unit.max_rows} rows, "
            f"{unit.max_chunks} chunks, {link.memory_bytes / 2**20:g} MiB"
        )

    def scratch(self, link: Transport) -> str:
        """Write and read a register that has no effect."""
        values = [*_patterns(), *self.rng.integers(0, 1 << 32, 16).tolist()]
        for value in values:
            link.write32(regmap.SCRATCH, value)
            _same("scratch register", link.read32(regmap.SCRATCH), value)
        found = link.read32(regmap.ID)
        _same("ID after all that", found, regmap.ID_VALUE)
        return f"{len(values)} values"

    # Memory ------------------------------------------------------------------------------------

    def data_lines(self, link: Transport) -> str:
        """Write words with one bit that differs from all others, and their complements."""
        for value in _patterns():
            raw = value.to_bytes(WORD, "little") + (value ^ MASK).to_bytes(WORD, "little")
            link.write(link.memory_base, raw)
            _same_bytes(link.memory_base, link.read(link.memory_base, len(raw)), raw)
        return f"{len(_patterns())} pairs of words"

    def address_lines(self, link: Transport) -> str:
        """Write a word of its own to each address that is a power of two, then read them all."""
        offsets = [0]
        while (step := WORD << (len(offsets) - 1)) < link.memory_bytes:
            offsets.append(step)
        words = self.rng.permutation(1 << 16)[: len(offsets)] * 0x10001
        raws = {
            link.memory_base + offset: int(word).to_bytes(WORD, "little")
            for offset, word in zip(offsets, words, strict=True)
        }
        for address, raw in raws.items():
            link.write(address, raw)
        for address, raw in raws.items():
            _same_bytes(address, link.read(address, WORD), raw)
        return f"{len(raws)} addresses over {link.memory_bytes / 2**20:g} MiB"

    def memory_walk(self, link: Transport) -> str:
        """Write random blocks all over memory, the first and the last one too, and read them."""
        n_all = link.memory_bytes // BLOCK_BYTES
        n_blocks = min(max(2, self.extent.memory_bytes // BLOCK_BYTES), n_all)
        # One block of each part of memory: where is drawn, not which part.
        edges = np.linspace(0, n_all, n_blocks + 1).astype(int)
        places = self.rng.integers(edges[:-1], edges[1:])
        places[0], places[-1] = 0, n_all - 1
        blocks = {
            link.memory_base + int(place) * BLOCK_BYTES: self.rng.bytes(BLOCK_BYTES)
            for place in places
        }
        started = time.monotonic()
        for address, raw in blocks.items():
            link.write(address, raw)
        written = time.monotonic()
        for address, raw in blocks.items():
            _same_bytes(address, link.read(address, BLOCK_BYTES), raw)
        read = time.monotonic()
        size = len(blocks) * BLOCK_BYTES
        return (
            f"{len(blocks)} blocks of {BLOCK_BYTES} bytes; write {_rate(size, written - started)}, "
            f"read {_rate(size, read - written)}"
        )

    # Jobs --------------------------------------------------------------------------------------

    def loop_back(self, link: Transport) -> str:
        """Send fences, which do nothing, through the rings."""
        base = link.memory_base
        ring = Ring(link, base, RING_SIZE)
        ring.start()
        tags = [int(tag) for tag in self.rng.integers(0, 1 << 32, FENCES)]
        left = list(tags)
        collected: list[int] = []
        end = time.monotonic() + link.stall_timeout
        while len(collected) < FENCES:
            batch, left = left[: ring.room], left[ring.room :]
            if batch:
                ring.post([pack_descriptor(opcode=Opcode.FENCE, tag=tag) for tag in batch])
            if not link.wait(min(1.0, link.stall_timeout)):
                if time.monotonic() > end:
                    raise DeviceTimeout(
                        f"unit must complete {FENCES} fences within {link.stall_timeout:g} "
                        f"seconds, not {len(collected)}"
                    )
                continue
            for record in ring.collect():
                _same("code of a fence", record["code"], 0)
                collected.append(record["tag"])
        for found, tag in zip(collected, tags, strict=True):
            _same("tag of a completion", found, tag)
        link.reset()
        return f"{FENCES} fences through a ring of {ring.entries}"

    def vectors(self, link: Transport, unit: Parameters, name: str, *, k: int | None) -> str:
        """Attend to the keys and values of a real model, all of them or a share."""
        extent = self.extent
        keys, values, queries = _arrays(name, unit.head_dim)
        tokens = min(extent.tokens, len(keys))
        chunk = max(2 * CHUNK_MULTIPLE, -(-tokens // unit.max_chunks))
        store = Store.from_float(
            keys[:tokens],
            values[:tokens],
            chunk_tokens=-(-chunk // CHUNK_MULTIPLE) * CHUNK_MULTIPLE,
        )
        rows = quantize_q(queries[: extent.rows])
        options: Kind = {} if k is None else {"k": max(2, store.n_chunks // k)}
        device = self._open(link)
        with device.load(store) as handle:
            started = time.monotonic()
            result = device.submit(handle, rows, **options).result()
            seconds = time.monotonic() - started
        _compare(result, store, rows, options)
        kept = "all" if k is None else f"{options['k']} of {store.n_chunks}"
        return (
            f"{len(rows[0])} rows x {tokens} tokens, {kept} chunks, every bit; "
            f"{result.counters['cycles']:,} cycles, {seconds:.2f} s with the link"
        )

    def soak(self, link: Transport, unit: Parameters) -> str:
        """Run random jobs, several at a time."""
        device = self._open(link)
        end = time.monotonic() + self.extent.seconds
        done = 0
        while done < self.extent.jobs or time.monotonic() < end:
            store = self._random_store(unit)
            with device.load(store) as handle:
                done += self._batch(device, handle, store, unit)
        return f"{done} jobs, every bit"

    def _batch(self, device: Device, handle: StoreHandle, store: Store, unit: Parameters) -> int:
        """Run jobs on one store at once; return how many."""
        jobs: list[tuple[tuple[NDArray[np.int16], NDArray[np.uint16]], Kind, Future[Attention]]]
        jobs = []
        for _ in range(UNDER_WAY):
            n_rows = int(self.rng.integers(1, min(SOAK_ROWS, unit.max_rows) + 1))
            rows = quantize_q(2 * self.rng.normal(size=(n_rows, unit.head_dim)))
            options = self._random_options(store, n_rows)
            jobs.append((rows, options, device.submit(handle, rows, **options)))
        for rows, options, future in jobs:
            _compare(future.result(), store, rows, options)
        return len(jobs)

    def _random_store(self, unit: Parameters) -> Store:
        chunk = int(self.rng.integers(1, 4)) * CHUNK_MULTIPLE
        most = min(SOAK_TOKENS, unit.max_chunks * chunk)
        shape = int(self.rng.integers(1, most + 1)), unit.head_dim
        return Store.from_float(
            self.rng.normal(size=shape), self.rng.normal(size=shape),
            chunk_tokens=chunk, router=str(self.rng.choice(["minmax", "mean"])),
        )  # fmt: skip

    def _random_options(self, store: Store, n_rows: int) -> Kind:
        kind = self.rng.choice(["all", "routed", "route only", "explicit"])
        if kind == "all":
            return {}
        if kind == "explicit":
            return {"explicit": self.rng.random((n_rows, store.n_chunks)) < 0.5}
        k = int(self.rng.integers(0, store.n_chunks + 1))
        return {"k": k, "route_only": bool(kind == "route only")}

    def _open(self, link: Transport) -> Device:
        if self.device is None:
            self.device = Device(link, uri=self.uri)
        return self.device


def _patterns() -> Sequence[int]:
    """Words with one bit that is 1, or 0; alternating bits; none and all."""
    ones = [1 << bit for bit in range(8 * WORD)]
    return [0, MASK, 0x5555_5555, 0xAAAA_AAAA, *ones, *(MASK ^ one for one in ones)]


def _arrays(name: str, head_dim: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Keys, values, queries (n, head_dim) of a real model: elements cut off, or taken again."""
    place = np.arange(head_dim)
    k, v, q = (
        array.reshape(-1, array.shape[-1])[:, place % array.shape[-1]].astype(np.float32)
        for array in load(name)
    )
    return k, v, q


def _compare(
    result: Attention,
    store: Store,
    rows: tuple[NDArray[np.int16], NDArray[np.uint16]],
    options: Kind,
) -> None:
    """Raise Mismatch when a result has another bit than the golden model's."""
    selected: Bool | None = options.get("explicit")
    if "k" in options:
        selected = route(store, *rows, options["k"])
        _same_array("selection", result.selected, selected)
        if options.get("route_only"):
            return
    expected = attend(store, *rows, selected)
    _same_array("o", result.o.view(np.uint32), expected.o)
    lse = expected.lse.view(np.float32).astype(np.float64) * LN2
    _same_array("lse", result.lse.view(np.uint32), lse.astype(np.float32).view(np.uint32))


def _same(what: str, found: int, due: int) -> None:
    if found != due:
        raise Mismatch(f"{what} must be {due:#010x}, not {found:#010x}")


def _same_bytes(address: int, found: bytes, due: bytes) -> None:
    if found == due:
        return
    wrong = [at for at, (one, other) in enumerate(zip(found, due, strict=True)) if one != other]
    at = wrong[0]
    bits = 0
    for place in wrong:
        bits |= found[place] ^ due[place]
    raise Mismatch(
        f"memory at {address + at:#010x} must hold {due[at]:#04x}, not {found[at]:#04x}; "
        f"{len(wrong)} of {len(due)} bytes differ, in bits {bits:#04x}"
    )


def _same_array(what: str, found: Any, due: NDArray[Any]) -> None:
    if found is None or found.shape != due.shape:
        raise Mismatch(f"{what} must have shape {due.shape}")
    wrong = np.argwhere(found != due)
    if len(wrong):
        place = tuple(int(index) for index in wrong[0])
        raise Mismatch(
            f"{what}{list(place)} must be {int(due[place]):#x}, not {int(found[place]):#x}; "
            f"{len(wrong)} of {due.size} differ"
        )


def _rate(size: int, seconds: float) -> str:
    return f"{size / max(seconds, 1e-9) / 1e3:,.0f} kB/s"
