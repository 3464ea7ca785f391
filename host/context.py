"""What a request attends to: spans of stored segments, one behind the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moska.golden.unit import Store
from moska.host.chunks import Tokens, short
from moska.host.handle import StoreHandle
from moska.host.run import Run


@dataclass(eq=False, repr=False)
class Segment:
    """Run of chunks that lies in device memory, a store per (layer, KV head). The library's.

    Parameters
    ----------
    run
        the chunks and their numbers in host memory.
    parent
        segment that holds the chunk before the first one; None when there is none.
    handles
        the stores in device memory, of each layer, of each KV head.
    """

    run: Run
    parent: "Segment | None"
    handles: Sequence[Sequence[StoreHandle]]
    children: int = 0  # segments whose parent this is
    last_use: int = 0  # time of the library's clock
    references: NDArray[np.int64] = field(init=False)  # leases that hold each chunk

    def __post_init__(self) -> None:
        self.references = np.zeros(self.n_chunks, np.int64)

    def __repr__(self) -> str:
        return f"<Segment {self.name}: tokens {self.position}..{self.position + self.n_tokens - 1}>"

    @property
    def name(self) -> str:
        """First digits of the last chunk's address."""
        return short(self.run.addresses[-1])

    @property
    def position(self) -> int:
        """Position of the first token when its keys were computed."""
        return self.run.position

    @property
    def tokens(self) -> Tokens:
        """Token ids (S,)."""
        return self.run.tokens

    @property
    def n_tokens(self) -> int:
        """S."""
        return len(self.run.tokens)

    @property
    def n_chunks(self) -> int:
        """N."""
        return self.run.n_chunks

    @cached_property
    def nbytes(self) -> int:
        """Device memory of all stores."""
        return sum(handle.nbytes for layer in self.handles for handle in layer)

    @property
    def leased(self) -> bool:
        """Whether a lease holds a chunk of it."""
        return bool(self.references.any())

    def handle(self, layer: int, kv_head: int) -> StoreHandle:
        """Store in device memory, for jobs."""
        return self.handles[layer][kv_head]

    def store(self, layer: int, kv_head: int) -> Store:
        """Return the same numbers in host memory."""
        return self.run.stores[layer][kv_head]


@dataclass(frozen=True)
class Span:
    """First ``n_tokens`` of a segment, placed at ``position`` of a context; whole chunks."""

    segment: Segment
    n_tokens: int
    position: int

    @property
    def n_chunks(self) -> int:
        """Chunks of the span."""
        return self.n_tokens // self.segment.run.chunk_tokens

    @property
    def shift(self) -> int:
        """How far behind its stored position the span stands: rotate queries back by this."""
        return self.position - self.segment.position


@dataclass(frozen=True)
class Context:
    """Spans without gaps from position 0 on."""

    spans: tuple[Span, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens of all spans: the position of the first token behind the context."""
        return sum(span.n_tokens for span in self.spans)

    @property
    def n_chunks(self) -> int:
        """Chunks of all spans."""
        return sum(span.n_chunks for span in self.spans)

    @property
    def tokens(self) -> Tokens:
        """Token ids (n_tokens,)."""
        parts = [span.segment.tokens[: span.n_tokens] for span in self.spans]
        return np.concatenate([np.zeros(0, np.uint32), *parts])

    def __add__(self, other: "Context") -> "Context":
        """Place ``other`` behind this context; its stored keys stay as they are."""
        offset = self.n_tokens
        moved = (Span(s.segment, s.n_tokens, s.position + offset) for s in other.spans)
        return Context((*self.spans, *moved))
