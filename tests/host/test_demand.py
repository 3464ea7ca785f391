"""Prefixes that requests share."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moska.host.chunks import token_array
from moska.host.demand import Demand

ROOT = bytes(32)
CHECK = settings(deadline=None, derandomize=True, database=None)


def demand(max_chunks=1000):
    return Demand(ROOT, 4, max_chunks)


def nothing(address):
    return False


def text(*chunks):
    """Tokens of chunks of four equal tokens."""
    return token_array(np.repeat(np.array(chunks, dtype=int), 4))


def found(candidates):
    return [(c.tokens.tolist()[::4], c.requests, c.n_stored) for c in candidates]


def test_longest_shared_prefixes():
    counts = demand()
    for request in ((1, 2, 3), (1, 2, 4), (1, 2), (9,), (7, 1, 2), (7, 1, 3)):
        counts.observe(text(*request))
    assert found(counts.candidates(2, nothing)) == [([1, 2], 3, 0), ([7, 1], 2, 0)]
    assert found(counts.candidates(3, nothing)) == [([1, 2], 3, 0)]
    assert found(counts.candidates(4, nothing)) == []


def test_tokens_behind_the_last_whole_chunk_do_not_count():
    counts = demand()
    counts.observe(text(1, 2)[:7])
    counts.observe(text(1, 2)[:5])
    assert found(counts.candidates(2, nothing)) == [([1], 2, 0)]


def test_what_is_stored_is_no_candidate():
    counts, kept = demand(), set()
    for request in ((1, 2, 3), (1, 2, 3)):
        counts.observe(text(*request))
    addresses = list(counts._nodes)[::-1]  # the youngest is the first chunk
    kept.update(addresses[:2])
    assert found(counts.candidates(2, kept.__contains__)) == [([1, 2, 3], 2, 8)]
    kept.update(addresses)
    assert counts.candidates(2, kept.__contains__) == []


@CHECK
@given(st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=30), st.integers(1, 4))
def test_equals_a_count_of_all_prefixes(requests, least):
    counts = demand()
    prefixes = Counter()
    for request in requests:
        counts.observe(text(*request))
        prefixes.update(tuple(request[: n + 1]) for n in range(len(request)))
    shared = {p: n for p, n in prefixes.items() if n >= least}
    longest = {p: n for p, n in shared.items() if not any(q[:-1] == p for q in shared)}
    assert {
        tuple(tokens): n for tokens, n, _ in found(counts.candidates(least, nothing))
    } == longest


@CHECK
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=60))
def test_is_bounded_and_forgets_the_oldest(requests):
    counts = demand(max_chunks=8)
    for request in requests:
        counts.observe(text(*request))
        assert len(counts) <= 8
        # All prefixes of what is remembered are remembered.
        for node in counts._nodes.values():
            assert node.parent == ROOT or node.parent in counts._nodes
        # The last request is.
        kept = {tuple(tokens) for tokens, _, _ in found(counts.candidates(1, nothing))}
        assert any(tokens[: len(request)] == tuple(request) for tokens in kept)


def test_a_request_longer_than_the_bound_is_counted_up_to_it():
    counts = demand(max_chunks=3)
    for _ in range(2):
        counts.observe(text(*range(10)))
    assert found(counts.candidates(2, nothing)) == [([0, 1, 2], 2, 0)]
    with pytest.raises(ValueError, match="max_chunks must be positive, not 0"):
        demand(0)
