"""Keys and values that requests share: stored once in device memory, recognised by content."""

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType, TracebackType

import numpy as np
from numpy.typing import NDArray

from moska.host import archive
from moska.host.chunks import ChunkFormat, TokenIds, Tokens, token_array
from moska.host.context import Context, Segment
from moska.host.demand import Candidate, Demand
from moska.host.device import Device
from moska.host.errors import BudgetExceeded, InUse, NotStored
from moska.host.geometry import Geometry
from moska.host.pool import Lease, Pool
from moska.host.progress import track
from moska.host.run import Run, quantise

Float = NDArray[np.floating]
FLOATS = (np.float16, np.float32, np.float64)
DEMAND_CHUNKS = 1 << 16  # that are remembered for candidates


@dataclass(frozen=True, eq=False)
class Document:
    """Text with a name."""

    name: str
    tokens: Tokens  # all of it; those behind the last whole chunk are not stored
    addresses: tuple[bytes, ...]  # of its whole chunks


@dataclass(frozen=True)
class Statistics:
    """State of a library, and counts since it was made."""

    documents: int
    segments: int
    chunks: int
    tokens: int
    bytes: int  # of device memory
    budget_bytes: int | None
    leases: int
    leased_chunks: int  # that at least one lease holds
    saved_bytes: int  # device memory that the leases would take in addition without sharing
    requests: int  # that were matched
    hits: int  # chunks of these requests that were stored
    misses: int  # and that were not
    added_chunks: int
    deduplicated_chunks: int  # that were added again, and found stored
    evicted_segments: int
    evicted_chunks: int
    evicted_bytes: int

    @property
    def hit_rate(self) -> float:
        """Share of the requests' whole chunks that were stored."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class Library:
    """Stores of what requests share, for all layers and KV heads of a model.

    Safe from several threads: adding takes turns, and holds up nobody else.

    Parameters
    ----------
    device
        where the stores lie.
    geometry
        the model's attention.
    chunk_tokens
        tokens of a chunk, a multiple of 16.
    router
        ``mean``, ``minmax`` or ``submean:n``.
    budget_bytes
        device memory that the stores may take together; None: what the device has.
    checksums
        the unit compares what it reads of a chunk with its checksum.
    segment_chunks
        chunks of the longest segment: what is evicted in one piece, and the most that a job can
        choose from. Default and upper limit: the unit's ``max_chunks``.

    Raises
    ------
    ValueError
        when the parameters do not fit each other or the unit.
    """

    def __init__(
        self,
        device: Device,
        geometry: Geometry,
        *,
        chunk_tokens: int = 32,
        router: str = "minmax",
        budget_bytes: int | None = None,
        checksums: bool = True,
        segment_chunks: int | None = None,
    ) -> None:
        unit = device.parameters
        if geometry.head_dim != unit.head_dim:
            raise ValueError(
                f"head_dim of the model must be the unit's ({unit.head_dim}), "
                f"not {geometry.head_dim}"
            )
        if segment_chunks is None:
            segment_chunks = unit.max_chunks
        if not 1 <= segment_chunks <= unit.max_chunks:
            raise ValueError(f"segment_chunks must be 1..{unit.max_chunks}, not {segment_chunks}")
        self.device = device
        self.format = ChunkFormat(geometry, chunk_tokens, router)
        if self.format.rep_rows > unit.buffer_tokens:
            raise ValueError(
                f"router must make at most {unit.buffer_tokens} representatives a chunk, "
                f"not {self.format.rep_rows}"
            )
        self._pool = Pool(
            device,
            self.format,
            budget_bytes=budget_bytes,
            checksums=checksums,
            segment_chunks=segment_chunks,
        )
        self._adding = threading.Lock()  # taken before the other one
        self._lock = self._pool.lock
        self._documents: dict[str, Document] = {}
        self._demand = Demand(self.format.root, chunk_tokens, DEMAND_CHUNKS)
        self._counts = dict.fromkeys(
            ("requests", "hits", "misses", "added_chunks", "deduplicated_chunks"), 0
        )

    def __enter__(self) -> "Library":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free all device memory, leased or not, once no job uses it; the library is empty then."""
        with self._adding:
            with self._lock:
                self._documents.clear()
            self._pool.clear()

    @property
    def geometry(self) -> Geometry:
        """The model's attention."""
        return self.format.geometry

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        return self.format.chunk_tokens

    @property
    def nbytes(self) -> int:
        """Device memory of all stores."""
        return self._pool.nbytes

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Segments as they are now, parents before children."""
        with self._lock:
            return tuple(self._pool.segments)

    @property
    def documents(self) -> Mapping[str, Document]:
        """Documents by name, as they are now; parts of them may be evicted."""
        with self._lock:
            return MappingProxyType(dict(self._documents))

    @property
    def statistics(self) -> Statistics:
        """State and counts."""
        with self._lock:
            pool = self._pool
            return Statistics(
                documents=len(self._documents),
                segments=len(pool.segments),
                chunks=len(pool.chunks),
                tokens=len(pool.chunks) * self.chunk_tokens,
                bytes=pool.nbytes,
                budget_bytes=pool.budget_bytes,
                leases=len(pool.leases),
                leased_chunks=pool.leased_chunks,
                saved_bytes=pool.saved_bytes,
                evicted_segments=pool.evictions.segments,
                evicted_chunks=pool.evictions.chunks,
                evicted_bytes=pool.evictions.bytes,
                **self._counts,
            )

    # Adding and removing -----------------------------------------------------------------------

    def add(
        self,
        tokens: TokenIds,
        k: Float,
        v: Float,
        *,
        name: str | None = None,
        start: int = 0,
        progress: bool = False,
    ) -> Context:
        """Store the whole chunks of a text that are not stored yet, and return them all.

        Tokens behind the last whole chunk are not stored.

        Parameters
        ----------
        tokens
            token ids (S,) from position 0 on.
        k, v
            (n_layers, n_kv_heads, S - start, D) float16, float32 or float64: keys after the rotary
            embedding at positions ``start``..S - 1, and values.
        name
            makes a document that :meth:`compose` finds.
        start
            position of the first token of ``k`` and ``v``, for a prefill that began behind what
            :meth:`match` had found.
        progress
            show bars.

        Raises
        ------
        ValueError
            for wrong shapes or types, a number that is not finite, a name that is taken by another
            text, or a ``start`` behind what is stored.
        BudgetExceeded
            when it does not fit the budget beside what is in use. Nothing is stored then.
        OutOfMemory
            when it does not fit device memory. Nothing is stored then.
        """
        ids = token_array(tokens)
        self._check_arrays(ids, start, k, v)
        addresses = self.format.addresses(ids)
        with self._adding:
            self._check_name(name, ids)
            with self._pool.lease(self._pool.find(addresses)) as old:
                stored, n_stored = old.context.n_tokens, old.context.n_chunks
                if start > stored:
                    raise ValueError(
                        f"start must not be behind the stored tokens ({stored}), not {start}"
                    )
                new = addresses[n_stored:]
                if new:
                    end = len(addresses) * self.chunk_tokens
                    part = np.s_[:, :, stored - start : end - start]
                    stores = quantise(
                        k[part], v[part], self.format, first_token=stored, progress=progress
                    )
                    parent = addresses[n_stored - 1] if n_stored else self.format.root
                    run = Run(parent, stored, ids[stored:end], new, stores)
                    self._pool.insert(run, progress=progress).release()
                with self._lock:
                    self._count(added_chunks=len(new), deduplicated_chunks=n_stored)
                    if name is not None:
                        self._documents[name] = Document(name, ids, addresses)
                    return self._pool.find(addresses)

    def remove(self, name: str) -> None:
        """Forget a document, and free its segments that nothing else is built on or holds.

        Raises
        ------
        NotStored
            when there is no such document.
        InUse
            when a lease holds a segment that no other document has a part in.
        """
        with self._lock:
            document = self._document(name)
            others = {a for d in self._documents.values() if d is not document for a in d.addresses}
            own = [
                segment
                for segment in self._pool.segments_of(document.addresses)
                if others.isdisjoint(segment.run.addresses)
            ]
            if any(segment.leased for segment in own):
                raise InUse(f"document {name!r} must not be in use to be removed")
            del self._documents[name]
        self._pool.drop(reversed(own))

    def evict(self, nbytes: int) -> int:
        """Free at least ``nbytes`` of device memory, or all that can be; return how much it was.

        The segment that was not used for longest goes first, children before their parents. Leased
        segments stay.
        """
        return self._pool.evict(nbytes)

    # Finding -----------------------------------------------------------------------------------

    def match(self, tokens: TokenIds) -> Context:
        """Longest stored prefix of a request's tokens, in whole chunks; may be empty."""
        addresses = self.format.addresses(token_array(tokens))
        with self._lock:
            context = self._pool.find(addresses)
            hits = context.n_chunks
            self._count(requests=1, hits=hits, misses=len(addresses) - hits)
            return context

    def compose(self, parts: Iterable[str | Context]) -> Context:
        """Place documents, given by name, and contexts one behind the other.

        Each keeps the keys and values that it was stored with, as if the others were not there.

        Raises
        ------
        NotStored
            for a name that is not known, or whose document is not stored to its last whole chunk.
        """
        with self._lock:
            context = Context()
            for part in parts:
                context += part if isinstance(part, Context) else self._whole(part)
            return context

    def lease(self, what: Context | TokenIds) -> Lease:
        """Hold the chunks of a context so that they are not evicted.

        Token ids are matched first; nothing can be evicted between the match and the lease.

        Raises
        ------
        NotStored
            when a part of the context was evicted since it was made.
        """
        with self._lock:
            return self._pool.lease(what if isinstance(what, Context) else self.match(what))

    def references(self, address: bytes) -> int:
        """Leases that hold the chunk at ``address``.

        Raises
        ------
        NotStored
            when it is not stored.
        """
        with self._lock:
            if address not in self._pool.chunks:
                raise NotStored(f"chunk {address.hex()} must be stored")
            segment, index = self._pool.chunks[address]
            return int(segment.references[index])

    def observe(self, tokens: TokenIds) -> None:
        """Count a request's prefixes, stored or not, for :meth:`candidates`."""
        ids = token_array(tokens)
        with self._lock:
            self._demand.observe(ids)

    def candidates(self, min_requests: int = 2) -> list[Candidate]:
        """Prefixes that at least ``min_requests`` observed requests share and that are not stored.

        Longest prefixes only, the one first that would have saved most.
        """
        with self._lock:
            return self._demand.candidates(min_requests, self._pool.chunks.__contains__)

    # On disk -----------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, progress: bool = False) -> None:
        """Write the library to the folder ``path``, in place of a library that is there.

        :mod:`moska.host.archive` describes the files.
        """
        with self._lock:
            runs = [segment.run for segment in self._pool.segments]
            documents = {name: document.tokens for name, document in self._documents.items()}
        archive.write(path, self.format, runs, documents, progress=progress)

    @classmethod
    def load(
        cls,
        device: Device,
        path: str | os.PathLike[str],
        *,
        budget_bytes: int | None = None,
        checksums: bool = True,
        segment_chunks: int | None = None,
        progress: bool = False,
    ) -> "Library":
        """Make a library from a folder that :meth:`save` wrote, with the same bits.

        Raises
        ------
        FileNotFoundError
            when there is no library.
        CorruptLibrary
            naming the chunk that is not what was saved.
        BudgetExceeded, OutOfMemory
            when it does not fit. Nothing stays in device memory then.
        """
        index = archive.read_index(path)
        library = cls(
            device,
            index.format.geometry,
            chunk_tokens=index.format.chunk_tokens,
            router=index.format.router,
            budget_bytes=budget_bytes,
            checksums=checksums,
            segment_chunks=segment_chunks,
        )
        need = sum(library._pool.run_bytes(entry.n_chunks) for entry in index.entries)
        if budget_bytes is not None and need > budget_bytes:
            raise BudgetExceeded(
                f"budget must be at least the {need:,} bytes of {path}, not {budget_bytes:,}"
            )
        try:
            # Held until all are there: device memory that runs out is an error, no cause to evict.
            with ExitStack() as held:
                for entry in track(index.entries, "loading", disable=not progress):
                    held.enter_context(library._pool.insert(archive.read_run(path, index, entry)))
        except BaseException:
            library.close()
            raise
        for name, tokens in index.documents.items():
            library._documents[name] = Document(name, tokens, library.format.addresses(tokens))
        return library

    # Inside ------------------------------------------------------------------------------------

    def _check_arrays(self, ids: Tokens, start: int, k: Float, v: Float) -> None:
        if not 0 <= start <= len(ids):
            raise ValueError(f"start must be 0..{len(ids)}, not {start}")
        own = self.geometry
        shape = (own.n_layers, own.n_kv_heads, len(ids) - start, own.head_dim)
        for name, x in (("k", k), ("v", v)):
            if x.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, not {x.shape}")
            if x.dtype not in FLOATS:
                raise ValueError(f"{name} must be float16, float32 or float64, not {x.dtype}")

    def _check_name(self, name: str | None, ids: Tokens) -> None:
        with self._lock:
            taken = self._documents.get(name) if name is not None else None
            if taken is not None and not np.array_equal(taken.tokens, ids):
                raise ValueError(f"name must be new, but {name!r} is another document")

    def _count(self, **counts: int) -> None:
        for name, count in counts.items():
            self._counts[name] += count

    def _document(self, name: str) -> Document:
        if name not in self._documents:
            known = ", ".join(sorted(self._documents)) or "none"
            raise NotStored(f"document must be one of the library's ({known}), not {name!r}")
        return self._documents[name]

    def _whole(self, name: str) -> Context:
        document = self._document(name)
        context = self._pool.find(document.addresses)
        if context.n_chunks < len(document.addresses):
            raise NotStored(
                f"document {name!r} must be added again: of its {len(document.addresses)} chunks, "
                f"only the first {context.n_chunks} are stored"
            )
        return context
