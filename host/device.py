"""One open unit: stores in its memory, and jobs that any thread may submit."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import ALIGN
from moska.golden.layout import (
    COUNTERS,
    SELECTION_LINE,
    Opcode,
    Selection,
    pack_array,
    pack_checksums,
    pack_descriptor,
    pack_scales,
    pack_selection,
    unpack_selection,
)
from moska.golden.quantize import quantize_q
from moska.golden.router import Bool, Router
from moska.golden.unit import Store
from moska.host import regmap
from moska.host.errors import (
    DeviceClosed,
    DeviceTimeout,
    MoskaError,
    OutOfMemory,
    TransportError,
    job_error,
)
from moska.host.memory import Allocator
from moska.host.ring import Parameters, Ring, identify, write64
from moska.host.transport import Transport, connect

LN2 = float(np.log(2))
WAIT_SECONDS = 0.05  # of one wait; between two of them the unit's progress is looked at
FP32_BYTES = 4
MAX_FIELD = 0xFFFF  # of 16-bit fields of a descriptor

Queries = NDArray[np.floating] | tuple[NDArray[np.int16], NDArray[np.uint16]]


@dataclass(frozen=True)
class Attention:
    """Result of a job."""

    o: NDArray[np.float32]  # (M, D); (0, D) of a job that only routes
    lse: NDArray[np.float32]  # (M,) natural logarithm; -inf where a row selected nothing
    selected: Bool | None  # (M, N) chunks of each row; None: all
    counters: dict[str, int]  # of the unit, of all pieces


@dataclass(frozen=True)
class Statistics:
    """What a device has done since it was opened."""

    jobs: int = 0  # that ended, well or not; a call of `submit` may make several
    rows: int = 0
    errors: int = 0  # jobs that failed
    bytes: int = 0  # that crossed the unit's memory ports
    cycles: int = 0
    busy_seconds: float = 0.0  # with jobs under way


class StoreHandle(contextlib.AbstractContextManager["StoreHandle"]):
    """A store in device memory; leaving it as a context manager frees it."""

    def __init__(self, device: "Device", store: Store, *, checksums: bool):
        self.device = device
        self.chunk_tokens = store.chunk_tokens
        self.n_tokens = store.n_tokens
        self.n_chunks = store.n_chunks
        self.router = store.router
        self.rep_rows = 0 if store.rep is None else store.rep.shape[1]
        self.checksums = checksums
        self._jobs = 0  # pieces that use it
        arrays: dict[str, bytes] = {
            "k_addr": pack_array(store.k),
            "v_addr": pack_array(store.v),
            "scale_addr": pack_scales(store.k_scale, store.v_scale),
        }
        if store.rep is not None and store.rep_scale is not None:
            arrays["rep_addr"] = pack_array(store.rep)
            arrays["rep_scale_addr"] = pack_scales(store.rep_scale)
        if checksums:
            arrays["checksum_addr"] = pack_checksums(
                store.k, store.v, store.k_scale, store.v_scale, store.chunk_tokens
            )
        raw = b"".join(arrays.values())
        self.nbytes = len(raw)
        self.address: int | None = device.memory.allocate(len(raw))
        self._offsets: dict[str, int] = {}
        end = 0
        for name, part in arrays.items():
            self._offsets[name] = end
            end += len(part)
        try:
            device.transport.write(self.address, raw)
        except BaseException:
            device.memory.free(self.address)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free the store."""
        self.free()

    def free(self) -> None:
        """Give the memory back, once no job uses it; may be called again.

        Raises
        ------
        MoskaError
            from a future's callback while jobs use the store: they would never end.
        """
        self.device._free(self)

    @property
    def fields(self) -> dict[str, int]:
        """Fields of a descriptor that name the store.

        Raises
        ------
        MoskaError
            when the store was freed.
        """
        if self.address is None:
            raise MoskaError("store must not be freed before it is used")
        places = {name: self.address + offset for name, offset in self._offsets.items()}
        return places | {
            "router": self.router,
            "chunk_tokens": self.chunk_tokens,
            "rep_rows": self.rep_rows,
        }

    def store(self) -> Store:
        """Read the store back from device memory."""
        at = self.fields
        dim = self.device.parameters.head_dim
        tokens, reps = self.n_tokens, (self.n_chunks, self.rep_rows)

        def array(name: str, shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
            count = int(np.prod(shape))
            raw = self.device.transport.read(at[name], count * np.dtype(dtype).itemsize)
            return np.frombuffer(raw, dtype=dtype).reshape(shape)

        scales = array("scale_addr", (tokens, 2), "<u2").astype(np.uint16)
        rep = rep_scale = None
        if self.rep_rows:
            rep = array("rep_addr", (*reps, dim), "i1").astype(np.int8)
            rep_scale = array("rep_scale_addr", (*reps, 2), "<u2").astype(np.uint16)[:, :, 0]
        return Store(
            array("k_addr", (tokens, dim), "i1").astype(np.int8),
            array("v_addr", (tokens, dim), "i1").astype(np.int8),
            scales[:, 0].copy(),
            scales[:, 1].copy(),
            self.chunk_tokens,
            Router(self.router),
            rep,
            rep_scale,
        )


@dataclass(eq=False)
class _Call:
    """One call of :meth:`Device.submit`: its future, and what its pieces have brought so far."""

    o: NDArray[np.float32]
    lse: NDArray[np.float32]
    selected: Bool | None
    future: Future[Attention] = field(default_factory=Future)
    left: int = 0  # pieces that have not ended
    started: bool = False
    dropped: bool = False  # was cancelled before its first piece was announced
    error: BaseException | None = None  # the first one
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))


@dataclass(eq=False)
class _Piece:
    """One job of a call: the rows that fit a job."""

    call: _Call
    handle: StoreHandle
    rows: slice
    address: int  # of its memory: inputs, then results
    results: int  # address of the results
    sizes: dict[str, int]  # bytes of each result, padded, in order of address
    descriptor: bytes


@dataclass(eq=False)
class _Part:
    """Rows of a call that fit a job, and all that its descriptor needs but addresses."""

    call: _Call
    handle: StoreHandle
    fields: dict[str, int]
    rows: slice
    q: NDArray[np.int16]
    q_scale: NDArray[np.uint16]
    explicit: Bool | None


class Device(contextlib.AbstractContextManager["Device"]):
    """A unit, its memory, and a thread that feeds its rings.

    Threads may share a device. Futures are completed by the device's own thread, which also runs
    their callbacks: these must be short, must not wait for other futures of the device and must not
    close it.

    Parameters
    ----------
    transport
        link to the unit; the device closes it
    uri
        what it was opened by
    ring_size
        log2 of the entries of the rings
    timeout_cycles
        cycles that a job may take; 0: no limit
    stall_timeout
        seconds without a completion after which the unit is reset; the transport's when not given
    lock_windows
        freeze the unit's windows until the next reset

    Raises
    ------
    IncompatibleUnit
        when the unit is not one that the golden model stands for.
    TransportError
        when the link fails.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        uri: str = "",
        ring_size: int = 6,
        timeout_cycles: int = 0,
        stall_timeout: float | None = None,
        lock_windows: bool = False,
    ):
        if not 0 <= timeout_cycles < 1 << 32:
            raise ValueError(f"timeout_cycles must have 32 bits, not {timeout_cycles}")
        self.transport = transport
        self.uri = uri
        self.timeout_cycles = timeout_cycles
        self.stall_timeout = transport.stall_timeout if stall_timeout is None else stall_timeout
        self.lock_windows = lock_windows
        if not self.stall_timeout > 0:
            raise ValueError(f"stall_timeout must be positive, not {self.stall_timeout}")
        self.memory = Allocator(transport.memory_base, transport.memory_bytes)
        self._ring = Ring(transport, self.memory.allocate(Ring.n_bytes(ring_size)), ring_size)
        transport.reset()
        self.parameters: Parameters = identify(transport)
        self._start_unit()

        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[_Piece] = deque()  # not announced
        self._under_way: deque[_Piece] = deque()  # announced; the service thread's
        self._live = 0  # pieces that hold memory
        self._in_wait = False  # the service thread waits for the unit
        self._closing = False
        self._broken = False  # the link failed; the service thread's
        self._statistics = Statistics()
        self._thread = threading.Thread(target=self._serve, name="moska-device", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        """Name the device by its URI."""
        return f"<Device {self.uri or self.description}>"

    # Opening and closing -----------------------------------------------------------------------

    @property
    def description(self) -> str:
        """What the unit is, for people."""
        return self.transport.description

    @property
    def clock_mhz(self) -> float | None:
        """Clock of the unit; None when unknown."""
        return self.transport.clock_mhz

    @property
    def statistics(self) -> Statistics:
        """What the device has done so far."""
        with self._changed:
            return self._statistics

    @property
    def closed(self) -> bool:
        """Whether the device was closed."""
        return self._closing

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the device."""
        self.close()

    def close(self) -> None:
        """End the link; jobs that are not done fail with DeviceClosed. May be called again."""
        if threading.current_thread() is self._thread:
            raise MoskaError("device must not be closed from a future's callback")
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.transport.wake()
        self._thread.join()
        self.transport.close()

    def _start_unit(self) -> None:
        """Set up a unit that was reset."""
        first = self.transport.memory_base
        last = first + self.transport.memory_bytes - 1
        for direction in ("READ", "WRITE"):
            write64(self.transport, f"{direction}_BASE", first)
            write64(self.transport, f"{direction}_LIMIT", last)
        if self.lock_windows:
            self.transport.write32(regmap.LOCK, 1)
        self.transport.write32(regmap.TIMEOUT, self.timeout_cycles)
        self._ring.start()

    # Stores ------------------------------------------------------------------------------------

    def load(self, store: Store, *, checksums: bool = True) -> StoreHandle:
        """Copy a store into device memory.

        Parameters
        ----------
        store
            keys and values of one layer and KV head
        checksums
            add a checksum for every chunk, which jobs compare by default

        Raises
        ------
        OutOfMemory
            when there is no room.
        ValueError
            when the store does not fit the unit.
        DeviceClosed
            when the device was closed.
        """
        dim = store.k.shape[1]
        if dim != self.parameters.head_dim:
            raise ValueError(
                f"store must have head_dim {self.parameters.head_dim} as the unit, not {dim}"
            )
        self._check_open()
        return StoreHandle(self, store, checksums=checksums)

    def _free(self, handle: StoreHandle) -> None:
        with self._changed:
            if handle._jobs and threading.current_thread() is self._thread:
                raise MoskaError("store must not be freed from a callback while jobs use it")
            self._changed.wait_for(lambda: not handle._jobs)
            if handle.address is not None:
                self.memory.free(handle.address)
                handle.address = None

    # Jobs --------------------------------------------------------------------------------------

    def attend(
        self,
        handle: StoreHandle,
        q: Queries,
        *,
        k: int | None = None,
        keep_first: int = 1,
        keep_last: int = 1,
        group: int = 1,
        explicit: Bool | None = None,
        n_tokens: int | None = None,
        route_only: bool = False,
        softmax_scale: float | None = None,
        checksum: bool | None = None,
    ) -> Attention:
        """Submit a job and wait for its result; see :meth:`submit`."""
        return self.submit(
            handle, q, k=k, keep_first=keep_first, keep_last=keep_last, group=group,
            explicit=explicit, n_tokens=n_tokens, route_only=route_only,
            softmax_scale=softmax_scale, checksum=checksum,
        ).result()  # fmt: skip

    def submit(
        self,
        handle: StoreHandle,
        q: Queries,
        *,
        k: int | None = None,
        keep_first: int = 1,
        keep_last: int = 1,
        group: int = 1,
        explicit: Bool | None = None,
        n_tokens: int | None = None,
        route_only: bool = False,
        softmax_scale: float | None = None,
        checksum: bool | None = None,
    ) -> Future[Attention]:
        """Attention of query rows over a store, as a future.

        Waits while the rings are full or jobs under way hold the memory that this one needs,
        except in a future's callback.

        Parameters
        ----------
        handle
            store in this device's memory
        q
            queries (M, D), or their integers (M, D) and scales (M,) as
            :func:`moska.golden.quantize.quantize_q` makes them; more rows than the unit takes
            become several jobs
        k
            chunks that a row keeps by the router, forced ones included; all when not given
        keep_first, keep_last
            chunks at either end that are always kept; only with ``k``
        group
            consecutive rows that share one decision; only with ``k``
        explicit
            chunks of each row (M, N) instead of routing
        n_tokens
            attend to the first tokens only: whole chunks, or all
        route_only
            select chunks, compute no attention; needs ``k``
        softmax_scale
            factor of the scores of float queries; 1/sqrt(D) when not given
        checksum
            compare chunks with their checksums; when the store has them, if not given

        Raises
        ------
        ValueError
            for arguments that contradict each other, the store or the unit.
        OutOfMemory
            when queries and results can never be placed.
        DeviceClosed
            when the device was closed.
        """
        parts = self._parts(
            handle, q, k=k, keep_first=keep_first, keep_last=keep_last, group=group,
            explicit=explicit, n_tokens=n_tokens, route_only=route_only,
            softmax_scale=softmax_scale, checksum=checksum,
        )  # fmt: skip
        self._enqueue(parts)
        return parts[0].call.future

    def submit_many(
        self, jobs: Iterable[tuple[StoreHandle, Queries]], **options: Any
    ) -> list[Future[Attention]]:
        """Submit several jobs at once, which takes the host less than one by one.

        Parameters
        ----------
        jobs
            store and queries of each
        options
            those of :meth:`submit`, the same for all

        Raises
        ------
        ValueError, OutOfMemory, DeviceClosed
            as :meth:`submit`; some jobs may be under way then, whose results are lost.
        """
        calls = [self._parts(handle, q, **options) for handle, q in jobs]
        self._enqueue([part for parts in calls for part in parts])
        return [parts[0].call.future for parts in calls]

    def _parts(
        self,
        handle: StoreHandle,
        q: Queries,
        *,
        k: int | None = None,
        keep_first: int = 1,
        keep_last: int = 1,
        group: int = 1,
        explicit: Bool | None = None,
        n_tokens: int | None = None,
        route_only: bool = False,
        softmax_scale: float | None = None,
        checksum: bool | None = None,
    ) -> list[_Part]:
        """Check a call and cut it into parts that fit a job."""
        if handle.device is not self:
            raise ValueError("handle must be of this device")
        fields = handle.fields | self._span(handle, n_tokens)
        q_int, q_scale = self._quantised(q, softmax_scale)
        n_rows, n_chunks = len(q_int), fields["n_chunks"]
        fields |= self._choice(
            handle, fields, n_rows,
            k=k, keep_first=keep_first, keep_last=keep_last, group=group, explicit=explicit,
            route_only=route_only,
        )  # fmt: skip
        if checksum and not handle.checksums:
            raise ValueError("checksum must be off for a store without checksums")
        fields["checksum"] = int(handle.checksums if checksum is None else checksum)

        step = self.parameters.max_rows
        if k is not None:
            step -= step % group
        cuts = [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
        out_rows = 0 if route_only else n_rows
        call = _Call(
            o=np.zeros((out_rows, self.parameters.head_dim), dtype=np.float32),
            lse=np.zeros(out_rows, dtype=np.float32),
            selected=explicit if k is None else np.zeros((n_rows, n_chunks), dtype=bool),
            left=len(cuts),
        )
        return [
            _Part(
                call, handle, fields, rows, q_int[rows], q_scale[rows],
                None if explicit is None else explicit[rows],
            )
            for rows in cuts
        ]  # fmt: skip

    def _span(self, handle: StoreHandle, n_tokens: int | None) -> dict[str, int]:
        if n_tokens is None:
            n_tokens = handle.n_tokens
        size = handle.chunk_tokens
        whole = n_tokens % size == 0 or n_tokens == handle.n_tokens
        if not whole or not 1 <= n_tokens <= handle.n_tokens:
            raise ValueError(
                f"n_tokens must be a multiple of chunk_tokens ({size}) or all of the store "
                f"({handle.n_tokens}), not {n_tokens}"
            )
        return {"n_tokens": n_tokens, "n_chunks": -(-n_tokens // size)}

    def _quantised(
        self, q: Queries, softmax_scale: float | None
    ) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        if isinstance(q, tuple):
            q_int, q_scale = q
            if softmax_scale is not None:
                raise ValueError("softmax_scale must not be given with quantised queries")
            if q_int.dtype != np.int16 or q_scale.dtype != np.uint16:
                raise TypeError(
                    f"quantised queries must be int16 and uint16, not {q_int.dtype} and "
                    f"{q_scale.dtype}"
                )
        else:
            q_int, q_scale = quantize_q(np.asarray(q), softmax_scale)
        dim = self.parameters.head_dim
        if q_int.ndim != 2 or q_int.shape[1] != dim or q_scale.shape != q_int.shape[:1]:
            raise ValueError(f"q must have shape (M, {dim}), not {q_int.shape}")
        if not len(q_int):
            raise ValueError("q must have at least one row")
        return q_int, q_scale

    def _choice(
        self,
        handle: StoreHandle,
        fields: dict[str, int],
        n_rows: int,
        *,
        k: int | None,
        keep_first: int,
        keep_last: int,
        group: int,
        explicit: Bool | None,
        route_only: bool,
    ) -> dict[str, int]:
        """Fields that say how chunks are selected."""
        n_chunks, limit = fields["n_chunks"], self.parameters.max_chunks
        if route_only and k is None:
            raise ValueError("k must be given to route only")
        if k is None and explicit is None:
            return {"opcode": Opcode.ATTEND, "selection": Selection.ALL, "group": 1}
        if n_chunks > limit:
            raise ValueError(f"chunks to select from must be at most {limit}, not {n_chunks}")
        if explicit is not None:
            if k is not None:
                raise ValueError("k must not be given with an explicit selection")
            if explicit.dtype != np.bool_ or explicit.shape != (n_rows, n_chunks):
                raise ValueError(
                    f"explicit must be bool of shape ({n_rows}, {n_chunks}), not {explicit.dtype} "
                    f"of {explicit.shape}"
                )
            return {"opcode": Opcode.ATTEND, "selection": Selection.EXPLICIT, "group": 1}
        if not handle.rep_rows:
            raise ValueError("store must have representatives to route")
        if handle.rep_rows > self.parameters.buffer_tokens:
            raise ValueError(
                f"store must have at most {self.parameters.buffer_tokens} representatives a chunk, "
                f"not {handle.rep_rows}"
            )
        if not 1 <= group <= self.parameters.max_rows or n_rows % group:
            raise ValueError(
                f"group must divide the rows ({n_rows}) and be at most "
                f"{self.parameters.max_rows}, not {group}"
            )
        numbers = {"k": k, "keep_first": keep_first, "keep_last": keep_last}
        for name, value in numbers.items():
            if value is None or value < 0:
                raise ValueError(f"{name} must not be negative, not {value}")
        return {
            "opcode": Opcode.ROUTE if route_only else Opcode.ATTEND,
            "selection": Selection.TOP_K,
            "write_selection": 1,
            "group": group,
            # More than there are chunks means all of them.
            **{name: min(value or 0, MAX_FIELD) for name, value in numbers.items()},
        }

    def _enqueue(self, parts: Sequence[_Part]) -> None:
        """Place parts in memory and hand them to the service thread."""
        placed: list[_Piece] = []  # and not handed over
        n_placed = 0
        try:
            for part in parts:
                placed.append(self._place(part, placed))
                n_placed += 1
            self._hand_over(placed)
        except BaseException as error:
            with self._changed:
                for piece in placed:
                    self.memory.free(piece.address)
                    self._live -= 1
                # Pieces that are on their way end their calls; here these never got a future.
                for part in parts[n_placed - len(placed) :]:
                    part.call.error = error
                    part.call.left -= 1
                self._changed.notify_all()
            raise

    def _place(self, part: _Part, placed: list[_Piece]) -> _Piece:
        """Place one part in memory; when it is full, hand over what was ``placed`` before."""
        q, fields = part.q, part.fields
        inputs = {"q_addr": pack_array(q), "q_scale_addr": pack_array(part.q_scale)}
        if part.explicit is not None:
            inputs["selection_addr"] = pack_selection(part.explicit)
        sizes = {}
        if fields["opcode"] == Opcode.ATTEND:
            sizes["o_addr"] = FP32_BYTES * q.size
            sizes["lse_addr"] = FP32_BYTES * len(q)
        if fields["selection"] == Selection.TOP_K:
            sizes["selection_addr"] = SELECTION_LINE * fields["n_chunks"]
        sizes = {name: _padded(size) for name, size in sizes.items()}
        raw = b"".join(inputs.values())
        address = self._allocate(len(raw) + sum(sizes.values()), placed)
        try:
            places, end = {}, address
            for name, size in (*((n, len(x)) for n, x in inputs.items()), *sizes.items()):
                places[name] = end
                end += size
            self.transport.write(address, raw)
            descriptor = pack_descriptor(**fields | places, n_rows=len(q), tag=0)
        except BaseException:
            self._release(address)
            raise
        return _Piece(
            part.call, part.handle, part.rows, address, address + len(raw), sizes, descriptor
        )

    def _hand_over(self, placed: list[_Piece]) -> None:
        """Let the service thread announce pieces, and take them off the list."""
        in_callback = threading.current_thread() is self._thread
        with self._changed:
            while placed:
                if not in_callback:
                    self._changed.wait_for(
                        lambda: self._closing or len(self._waiting) < self._ring.entries
                    )
                if self._closing:
                    raise DeviceClosed("device must be open to submit jobs")
                if placed[0].handle.address is None:
                    raise MoskaError("store must not be freed before it is used")
                placed[0].handle._jobs += 1
                self._waiting.append(placed.pop(0))
                self._changed.notify_all()
            wake = self._in_wait
        if wake:
            self.transport.wake()

    def _allocate(self, size: int, placed: list[_Piece]) -> int:
        """Memory for a piece; waits for jobs under way to give theirs back."""
        in_callback = threading.current_thread() is self._thread
        while True:
            with self._changed:
                self._check_open()
                try:
                    address = self.memory.allocate(size)
                except OutOfMemory:
                    if not self._live or in_callback:
                        raise
                    if not placed:
                        self._changed.wait()
                else:
                    self._live += 1
                    return address
            self._hand_over(placed)

    def _release(self, address: int) -> None:
        with self._changed:
            self.memory.free(address)
            self._live -= 1
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closing:
            raise DeviceClosed("device must be open, not closed")

    # Service thread ----------------------------------------------------------------------------

    def _serve(self) -> None:
        """Announce jobs, wait for the unit, complete futures; until the device is closed."""
        progress = time.monotonic()
        while True:
            with self._changed:
                if not self._under_way:
                    self._changed.wait_for(lambda: self._waiting or self._closing)
                    progress = time.monotonic()
                if self._closing:
                    break
                batch = self._next_batch()
                self._in_wait = True
            started = time.monotonic()
            try:
                self._announce(batch)
                done = self._collect(progress)
            except Exception as error:  # whatever it is, no future may hang
                self._fail(error)
                done = True
            with self._changed:
                self._in_wait = False
                now = time.monotonic()
                if done:
                    progress = now
                busy = self._statistics.busy_seconds + now - started
                self._statistics = replace(self._statistics, busy_seconds=busy)
        self._end(DeviceClosed("device was closed before the job was done"))

    def _next_batch(self) -> list[_Piece]:
        """Take as many waiting pieces as the ring has room for."""
        batch: list[_Piece] = []
        while self._waiting and len(batch) < self._ring.entries - len(self._under_way):
            batch.append(self._waiting.popleft())
        if batch:
            self._changed.notify_all()
        return batch

    def _announce(self, batch: list[_Piece]) -> None:
        for piece in batch:
            if _begin(piece.call) and piece.call.error is None:
                self._under_way.append(piece)
            else:
                self._end_piece(piece, None)
        if self._broken and self._under_way:
            self.transport.restart()
            identify(self.transport)
            self._start_unit()
            self._broken = False
        wanted = len(self._under_way) - (self._ring.announced - self._ring.collected)
        if wanted:
            self._ring.post([piece.descriptor for piece in list(self._under_way)[-wanted:]])

    def _collect(self, progress: float) -> bool:
        """Complete the jobs that have ended; return whether there were any, or none is due."""
        if not self._under_way:
            return True
        records = self._ring.collect() if self.transport.wait(WAIT_SECONDS) else []
        for record in records:
            piece = self._under_way[0]
            error = job_error(record)
            self._count(piece, record, failed=error is not None)
            if error is None:
                self._read_results(piece)
            self._under_way.popleft()
            self._end_piece(piece, error)
        if not records and time.monotonic() - progress > self.stall_timeout:
            raise DeviceTimeout(
                f"unit made no progress for {self.stall_timeout:g} seconds with "
                f"{len(self._under_way)} jobs under way, and was reset"
            )
        return bool(records)

    def _count(self, piece: _Piece, record: dict[str, int], *, failed: bool) -> None:
        for name in COUNTERS:
            piece.call.counters[name] += record[name]
        beats = record["read_beats"] + record["write_beats"]
        with self._changed:
            before = self._statistics
            self._statistics = replace(
                before,
                jobs=before.jobs + 1,
                rows=before.rows + piece.rows.stop - piece.rows.start,
                errors=before.errors + failed,
                bytes=before.bytes + beats * self.parameters.bus_bytes,
                cycles=before.cycles + record["cycles"],
            )

    def _read_results(self, piece: _Piece) -> None:
        """Copy a piece's results out of device memory, into those of its call."""
        call, rows = piece.call, piece.rows
        raw = self.transport.read(piece.results, sum(piece.sizes.values()))
        n_rows = rows.stop - rows.start
        at = 0
        for name, size in piece.sizes.items():
            if name == "selection_addr":
                assert call.selected is not None
                call.selected[rows] = unpack_selection(raw[at : at + size], n_rows)
            elif name == "o_addr":
                o = np.frombuffer(raw, "<f4", call.o[rows].size, at)
                call.o[rows] = o.reshape(n_rows, -1)
            else:
                # Rounded once: the product is float64.
                call.lse[rows] = np.frombuffer(raw, "<f4", n_rows, at).astype(np.float64) * LN2
            at += size

    def _end_piece(self, piece: _Piece, error: BaseException | None) -> None:
        """Give a piece's memory back; with the last piece, complete the future."""
        call = piece.call
        with self._changed:
            self.memory.free(piece.address)
            self._live -= 1
            piece.handle._jobs -= 1
            call.error = call.error or error
            call.left -= 1
            last = call.left == 0
            self._changed.notify_all()
        if not last or not _begin(call):
            return
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(Attention(call.o, call.lse, call.selected, call.counters))

    def _fail(self, error: BaseException) -> None:
        """End the jobs under way with an error, and get ready for the next ones."""
        self._broken = True
        if isinstance(error, DeviceTimeout):
            with contextlib.suppress(TransportError):
                self.transport.reset()
                self._start_unit()
                self._broken = False
        while self._under_way:
            self._end_piece(self._under_way.popleft(), error)

    def _end(self, error: BaseException) -> None:
        """End all jobs with an error; the unit touches memory no more."""
        with contextlib.suppress(TransportError):
            self.transport.reset()
        with self._changed:
            pieces = [*self._under_way, *self._waiting]
            self._under_way.clear()
            self._waiting.clear()
        for piece in pieces:
            self._end_piece(piece, error)


def _begin(call: _Call) -> bool:
    """Mark a call's future as running; return False when it was cancelled before that."""
    if not call.started:
        call.started = True
        call.dropped = not call.future.set_running_or_notify_cancel()
    return not call.dropped


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def open(
    uri: str,
    *,
    ring_size: int = 6,
    timeout_cycles: int = 0,
    stall_timeout: float | None = None,
    lock_windows: bool = False,
) -> Device:
    """Open the unit that a URI names.

    ``golden:ulx3s`` is the golden model of a configuration, ``sim:ulx3s?latency=100`` its simulated
    Verilog; packages may add schemes (:func:`moska.host.transport.connect`). The other parameters
    are those of :class:`Device`.

    Raises
    ------
    ValueError
        for an unknown scheme, name or option.
    IncompatibleUnit, TransportError
        when the unit is another one, or does not answer.
    """
    transport = connect(uri)
    try:
        return Device(
            transport, uri=uri, ring_size=ring_size, timeout_cycles=timeout_cycles,
            stall_timeout=stall_timeout, lock_windows=lock_windows,
        )  # fmt: skip
    except BaseException:
        transport.close()
        raise
