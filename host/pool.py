"""Which chunks are in device memory, who holds them, and which go first when room is needed."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from moska.golden.unit import Store
from moska.host.chunks import ChunkFormat
from moska.host.context import Context, Segment, Span
from moska.host.device import Device
from moska.host.errors import BudgetExceeded, NotStored, OutOfMemory
from moska.host.handle import StoreHandle
from moska.host.progress import track
from moska.host.run import Run

Handles = list[list[StoreHandle]]  # of each layer, of each KV head


class Lease:
    """Holds a context's chunks until :meth:`release`; a context manager that does so at its end."""

    def __init__(self, pool: "Pool", context: Context) -> None:
        self.context = context
        self._pool = pool

    def release(self) -> None:
        """Let go of the chunks; may be called again."""
        self._pool.release(self)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


@dataclass
class Evictions:
    """What was evicted since the pool was made."""

    segments: int = 0
    chunks: int = 0
    bytes: int = 0


class Pool:
    """Segments in device memory.

    Safe from several threads, but :meth:`insert` by one at a time. No lock is held while device
    memory is written or freed.

    Parameters
    ----------
    device
        where the stores lie.
    chunk_format
        of all chunks.
    budget_bytes
        device memory that the stores may take together; None: what the device has.
    checksums
        whether stores get checksums that the unit compares.
    segment_chunks
        chunks of the longest segment.
    """

    def __init__(
        self,
        device: Device,
        chunk_format: ChunkFormat,
        *,
        budget_bytes: int | None,
        checksums: bool,
        segment_chunks: int,
    ) -> None:
        if budget_bytes is not None and budget_bytes < 0:
            raise ValueError(f"budget_bytes must not be negative, not {budget_bytes}")
        self.device = device
        self.chunk_format = chunk_format
        self.budget_bytes = budget_bytes
        self.checksums = checksums
        self.segment_chunks = segment_chunks
        self.lock = threading.RLock()
        self.segments: list[Segment] = []  # parents first
        self.chunks: dict[bytes, tuple[Segment, int]] = {}  # address: segment, index in it
        self.leases: set[Lease] = set()
        self.evictions = Evictions()
        self._clock = 0

    @property
    def nbytes(self) -> int:
        """Device memory of all stores."""
        with self.lock:
            return sum(segment.nbytes for segment in self.segments)

    @property
    def leased_chunks(self) -> int:
        """Chunks that at least one lease holds."""
        with self.lock:
            return sum(int((s.references > 0).sum()) for s in self.segments)

    @property
    def saved_bytes(self) -> int:
        """Device memory that the leases would take in addition if each had chunks of its own."""
        with self.lock:
            return sum(
                int(np.maximum(s.references - 1, 0).sum()) * s.nbytes // s.n_chunks
                for s in self.segments
            )

    def run_bytes(self, n_chunks: int) -> int:
        """Device memory of a run, cut into segments."""
        whole, rest = divmod(n_chunks, self.segment_chunks)
        pieces = [self.segment_chunks] * whole + [rest] * (rest > 0)
        return sum(self.chunk_format.nbytes(n, checksums=self.checksums) for n in pieces)

    def find(self, addresses: Sequence[bytes]) -> Context:
        """Context of the chunks up to the first that is not stored; they count as used now."""
        with self.lock:
            lengths: dict[Segment, int] = {}
            for address in addresses:
                if address not in self.chunks:
                    break
                segment, index = self.chunks[address]
                lengths[segment] = index + 1
            self._touch(lengths)
            size = self.chunk_format.chunk_tokens
            return Context(tuple(Span(s, n * size, s.position) for s, n in lengths.items()))

    def segments_of(self, addresses: Sequence[bytes]) -> list[Segment]:
        """Segments that hold any of the chunks, parents first."""
        with self.lock:
            found = (self.chunks[a][0] for a in addresses if a in self.chunks)
            return list(dict.fromkeys(found))

    def lease(self, context: Context) -> Lease:
        """Hold a context's chunks.

        Raises
        ------
        NotStored
            when a part of the context was evicted since it was made.
        """
        with self.lock:
            for span in context.spans:
                segment, _ = self.chunks.get(span.segment.run.addresses[0], (None, 0))
                if segment is not span.segment:
                    raise NotStored(f"{span.segment} must be stored, but was evicted: match again")
            for span in context.spans:
                span.segment.references[: span.n_chunks] += 1
            self._touch(span.segment for span in context.spans)
            lease = Lease(self, context)
            self.leases.add(lease)
            return lease

    def release(self, lease: Lease) -> None:
        """Let go of a lease's chunks, unless it has done so before."""
        with self.lock:
            if lease in self.leases:
                self.leases.remove(lease)
                for span in lease.context.spans:
                    span.segment.references[: span.n_chunks] -= 1

    def insert(self, run: Run, *, progress: bool = False) -> Lease:
        """Put a run into device memory; its parent must be leased, or there must be none.

        The chunks are leased from the start.

        Raises
        ------
        BudgetExceeded, OutOfMemory
            when there is no room beside what is leased; nothing of the run is stored then.
        """
        self._make_room(self.run_bytes(run.n_chunks))
        pieces = list(run.cut(self.segment_chunks))
        made: list[Handles] = []
        try:
            for piece in pieces:
                made.append([])
                for layer in track(piece.stores, "uploading", disable=not progress):
                    made[-1].append([])
                    for store in layer:
                        made[-1][-1].append(self._upload(store))
        except BaseException:
            for handles in made:
                free(handles)
            raise
        with self.lock:
            spans = []
            for piece, handles in zip(pieces, made, strict=True):
                parent, _ = self.chunks.get(piece.parent, (None, 0))
                segment = Segment(piece, parent, handles)
                if parent is not None:
                    parent.children += 1
                self.segments.append(segment)
                self.chunks |= {a: (segment, i) for i, a in enumerate(piece.addresses)}
                spans.append(Span(segment, segment.n_tokens, segment.position))
            return self.lease(Context(tuple(spans)))

    def evict(self, nbytes: int) -> int:
        """Free at least ``nbytes``, or all that can be; return how much it was.

        The segment that was not used for longest goes first, children before their parents. Leased
        segments stay.
        """
        dropped: list[Segment] = []
        freed = 0
        with self.lock:
            while freed < nbytes:
                idle = [s for s in self.segments if not s.children and not s.leased]
                if not idle:
                    break
                oldest = min(idle, key=lambda segment: segment.last_use)
                self._forget(oldest)
                dropped.append(oldest)
                freed += oldest.nbytes
            self.evictions.segments += len(dropped)
            self.evictions.chunks += sum(segment.n_chunks for segment in dropped)
            self.evictions.bytes += freed
        for segment in dropped:
            free(segment.handles)
        return freed

    def drop(self, segments: Iterable[Segment]) -> None:
        """Free those of the segments, children first, that are not leased and have no children."""
        dropped = []
        with self.lock:
            for segment in segments:
                if not segment.children and not segment.leased:
                    self._forget(segment)
                    dropped.append(segment)
        for segment in dropped:
            free(segment.handles)

    def clear(self) -> None:
        """Free everything, leased or not."""
        with self.lock:
            dropped = self.segments.copy()
            self.segments.clear()
            self.chunks.clear()
        for segment in dropped:
            free(segment.handles)

    def _touch(self, segments: Iterable[Segment]) -> None:
        self._clock += 1
        for segment in segments:
            segment.last_use = self._clock

    def _forget(self, segment: Segment) -> None:
        self.segments.remove(segment)
        for address in segment.run.addresses:
            del self.chunks[address]
        if segment.parent is not None:
            segment.parent.children -= 1

    def _upload(self, store: Store) -> StoreHandle:
        while True:
            try:
                return self.device.load(store, checksums=self.checksums)
            except OutOfMemory:
                if not self.evict(1):
                    raise

    def _make_room(self, need: int) -> None:
        """Evict until ``need`` more bytes are within the budget; nothing if that cannot be."""
        budget = self.budget_bytes
        while True:
            with self.lock:
                total, kept = self.nbytes, sum(segment.nbytes for segment in self._pinned())
            if budget is not None and kept + need > budget:
                raise BudgetExceeded(
                    f"budget of {budget:,} bytes must have room for {need:,}, "
                    f"but {kept:,} of the {total:,} bytes that are stored are in use"
                )
            room = self.device.memory.free_bytes + total - kept
            if need > room:
                raise OutOfMemory(
                    f"device memory must have room for {need:,} bytes, "
                    f"but {room:,} are free or idle"
                )
            if budget is None or total + need <= budget:
                return
            self.evict(total + need - budget)

    def _pinned(self) -> set[Segment]:
        """Leased segments and those that they follow."""
        pinned: set[Segment] = set()
        for segment in self.segments:
            above: Segment | None = segment if segment.leased else None
            while above is not None and above not in pinned:
                pinned.add(above)
                above = above.parent
        return pinned


def free(handles: Iterable[Iterable[StoreHandle]]) -> None:
    """Free the device memory of stores."""
    for layer in handles:
        for handle in layer:
            handle.free()
