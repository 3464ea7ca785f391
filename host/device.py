"""One open unit: stores in its memory, and jobs that any thread may submit."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from moska.golden.layout import COUNTERS
from moska.golden.router import Bool
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
from moska.host.handle import StoreHandle
from moska.host.job import Attention, Piece, Queries, cut
from moska.host.memory import Allocator
from moska.host.ring import Parameters, Ring, identify, write64
from moska.host.transport import Transport, connect

WAIT_SECONDS = 0.05  # of one wait; between two of them the unit's progress is looked at


@dataclass
class Statistics:
    """What a device has done since it was opened."""

    jobs: int = 0  # that ended, well or not; a call of `submit` may make several
    rows: int = 0
    errors: int = 0  # jobs that failed
    bytes: int = 0  # that crossed the unit's memory ports
    cycles: int = 0
    busy_seconds: float = 0.0  # with jobs under way


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
        self._waiting: deque[Piece] = deque()  # not announced
        self._under_way: deque[Piece] = deque()  # announced; the service thread's
        self._live = 0  # pieces that hold memory
        self._in_wait = False  # the service thread waits for the unit
        self._closing = False
        self._broken = False  # the link failed; the service thread's
        self._totals = Statistics()
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
            return replace(self._totals)

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

    def free(self, handle: StoreHandle) -> None:
        """Give a store's memory back; see :meth:`StoreHandle.free`."""
        with self._changed:
            if handle.users and threading.current_thread() is self._thread:
                raise MoskaError("store must not be freed from a callback while jobs use it")
            self._changed.wait_for(lambda: not handle.users)
            if handle.address is not None:
                self.memory.free(handle.address)
                handle.address = None

    # Jobs --------------------------------------------------------------------------------------

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
        pieces = self._cut(
            handle, q, k=k, keep_first=keep_first, keep_last=keep_last, group=group,
            explicit=explicit, n_tokens=n_tokens, route_only=route_only,
            softmax_scale=softmax_scale, checksum=checksum,
        )  # fmt: skip
        self._enqueue(pieces)
        return pieces[0].call.future

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
        calls = [self._cut(handle, q, **options) for handle, q in jobs]
        self._enqueue([piece for pieces in calls for piece in pieces])
        return [pieces[0].call.future for pieces in calls]

    def attend(self, handle: StoreHandle, q: Queries, **options: Any) -> Attention:
        """Submit a job and wait for its result; see :meth:`submit`."""
        return self.submit(handle, q, **options).result()

    def _cut(self, handle: StoreHandle, q: Queries, **options: Any) -> list[Piece]:
        if handle.device is not self:
            raise ValueError("handle must be of this device")
        return cut(handle, q, self.parameters, **options)

    def _enqueue(self, pieces: Sequence[Piece]) -> None:
        """Place pieces in memory and hand them to the service thread."""
        placed: list[Piece] = []  # and not handed over
        n_placed = 0
        try:
            for piece in pieces:
                self._place(piece, placed)
                placed.append(piece)
                n_placed += 1
            self._hand_over(placed)
        except BaseException as error:
            with self._changed:
                for piece in placed:
                    self._give_back(piece)
                # Pieces that are on their way end their calls; here these never got a future.
                for piece in pieces[n_placed - len(placed) :]:
                    piece.call.error = error
                    piece.call.left -= 1
            raise

    def _place(self, piece: Piece, placed: list[Piece]) -> None:
        """Write a piece's inputs; when memory is full, hand over what was ``placed`` before."""
        in_callback = threading.current_thread() is self._thread
        while True:
            with self._changed:
                self._check_open()
                try:
                    piece.address = self.memory.allocate(piece.n_bytes)
                except OutOfMemory:
                    if not self._live or in_callback:
                        raise
                    if not placed:
                        self._changed.wait()
                else:
                    self._live += 1
                    break
            self._hand_over(placed)
        try:
            self.transport.write(piece.address, piece.inputs)
        except BaseException:
            with self._changed:
                self._give_back(piece)
            raise

    def _hand_over(self, placed: list[Piece]) -> None:
        """Let the service thread announce pieces, and take them off the list."""
        in_callback = threading.current_thread() is self._thread
        with self._changed:
            while placed:
                if not in_callback:
                    self._changed.wait_for(
                        lambda: self._closing or len(self._waiting) < self._ring.entries
                    )
                self._check_open()
                piece = placed[0]
                if piece.handle.address is None:
                    raise MoskaError("store must not be freed before it is used")
                piece.handle.users += 1
                self._waiting.append(placed.pop(0))
                self._changed.notify_all()
            wake = self._in_wait
        if wake:
            self.transport.wake()

    def _give_back(self, piece: Piece) -> None:
        """Free a piece's memory, with the lock held."""
        self.memory.free(piece.address)
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
                self._totals.busy_seconds += now - started
        self._end(DeviceClosed("device was closed before the job was done"))

    def _next_batch(self) -> list[Piece]:
        """Take as many waiting pieces as the ring has room for."""
        batch: list[Piece] = []
        while self._waiting and len(batch) < self._ring.entries - len(self._under_way):
            batch.append(self._waiting.popleft())
        if batch:
            self._changed.notify_all()
        return batch

    def _announce(self, batch: list[Piece]) -> None:
        """Put pieces that are still wanted into the ring."""
        for piece in batch:
            if piece.call.begin() and piece.call.error is None:
                self._under_way.append(piece)
            else:
                self._end_piece(piece, None)
        if self._broken and self._under_way:
            self._restart()
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

    def _count(self, piece: Piece, record: dict[str, int], *, failed: bool) -> None:
        for name in COUNTERS:
            piece.call.counters[name] += record[name]
        beats = record["read_beats"] + record["write_beats"]
        with self._changed:
            totals = self._totals
            totals.jobs += 1
            totals.rows += piece.n_rows
            totals.errors += failed
            totals.bytes += beats * self.parameters.bus_bytes
            totals.cycles += record["cycles"]

    def _read_results(self, piece: Piece) -> None:
        """Copy results out of device memory."""
        piece.take(self.transport.read(*piece.results))

    def _end_piece(self, piece: Piece, error: BaseException | None) -> None:
        """Give a piece's memory back; with the last piece, complete the future."""
        call = piece.call
        with self._changed:
            self._give_back(piece)
            piece.handle.users -= 1
            call.error = call.error or error
            call.left -= 1
            last = call.left == 0
        if last:
            call.finish()

    def _restart(self, *, link: bool = True) -> None:
        """Set the unit up again, after mending the link if it is broken."""
        if link:
            self.transport.restart()
            identify(self.transport)
        else:
            self.transport.reset()
        self._start_unit()
        self._broken = False

    def _fail(self, error: BaseException) -> None:
        """End the jobs under way with an error, and get ready for the next ones."""
        if not self._broken:
            self._broken = True
            # Before their memory is given back, so that the unit does not write there any more.
            with contextlib.suppress(MoskaError):
                self._restart(link=not isinstance(error, DeviceTimeout))
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
