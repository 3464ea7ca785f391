"""What requests share although nobody stored it: a bounded count of the prefixes they bring."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moska.host.chunks import Tokens, chain


@dataclass(frozen=True)
class Candidate:
    """Prefix that several requests share and that is not stored to its end."""

    tokens: Tokens  # from the first one on
    requests: int
    n_stored: int  # tokens at its beginning that are stored already


@dataclass
class _Node:
    parent: bytes
    tokens: Tokens  # of the chunk
    requests: int = 0


class Demand:
    """Counts, for every prefix of whole chunks, the requests that began with it.

    Parameters
    ----------
    root
        address that first chunks follow.
    chunk_tokens
        tokens of a chunk.
    max_chunks
        chunks that are remembered; those that were not seen for longest are forgotten first.
    """

    def __init__(self, root: bytes, chunk_tokens: int, max_chunks: int) -> None:
        if max_chunks < 1:
            raise ValueError(f"max_chunks must be positive, not {max_chunks}")
        self.root = root
        self.chunk_tokens = chunk_tokens
        self.max_chunks = max_chunks
        # Oldest first. Chunks are younger than the ones behind them: the oldest is a leaf.
        self._nodes: OrderedDict[bytes, _Node] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def observe(self, tokens: Tokens) -> None:
        """Count a request's tokens."""
        size = self.chunk_tokens
        tokens = tokens[: self.max_chunks * size]
        seen = [self.root]
        for index, address in enumerate(chain(self.root, tokens, size)):
            if address not in self._nodes:
                own = tokens[index * size : (index + 1) * size].copy()
                self._nodes[address] = _Node(seen[-1], own)
            self._nodes[address].requests += 1
            seen.append(address)
        for address in reversed(seen[1:]):
            self._nodes.move_to_end(address)
        while len(self._nodes) > self.max_chunks:
            self._nodes.popitem(last=False)

    def candidates(self, min_requests: int, stored: Callable[[bytes], bool]) -> list[Candidate]:
        """Longest prefixes that ``min_requests`` requests share and that are not ``stored``.

        The one that would have saved most comes first: tokens not stored, times requests.
        """
        wanted = {a: n for a, n in self._nodes.items() if n.requests >= min_requests}
        inner = {node.parent for node in wanted.values()}
        found = [
            self._candidate(address, stored)
            for address in wanted.keys() - inner
            if not stored(address)
        ]
        return sorted(found, key=lambda c: -c.requests * (len(c.tokens) - c.n_stored))

    def _candidate(self, address: bytes, stored: Callable[[bytes], bool]) -> Candidate:
        requests = self._nodes[address].requests
        parts, n_stored = [], 0
        while address != self.root:
            node = self._nodes[address]
            parts.append(node.tokens)
            n_stored += len(node.tokens) if stored(address) else 0
            address = node.parent
        return Candidate(np.concatenate(parts[::-1]), requests, n_stored)
