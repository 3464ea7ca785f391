"""KV library: recognition, leases, eviction, budget, memory to the byte."""

import threading
from collections import Counter

import numpy as np
import pytest

import moska.host
from moska.golden.reference import relative_error
from moska.golden.unit import Store
from moska.host import (
    BudgetExceeded,
    Geometry,
    InUse,
    Library,
    NotStored,
    OutOfMemory,
)
from moska.host.context import Context
from moska.host.merge import merge_states

CHUNK = 16
ARRAYS = ("k", "v", "k_scale", "v_scale", "rep", "rep_scale")


@pytest.fixture
def make(tiny, model):
    """Return a function that makes libraries, and see that they leave no memory behind."""
    made = []
    before = tiny.memory.used_bytes

    def make(**options):
        made.append(Library(tiny, model.geometry, chunk_tokens=CHUNK, **options))
        return made[-1]

    yield make
    for library in made:
        library.close()
    assert tiny.memory.used_bytes == before


@pytest.fixture
def library(make):
    """Library with segments of at most four chunks and no budget."""
    return make(segment_chunks=4)


def same(a, b):
    """Whether two stores have the same bits."""
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


def check(library):
    """Invariants: what is counted is what is there, in the library and in the device."""
    with library._lock:
        pool, segments = library._pool, library.segments
        handles = [h for s in segments for layer in s.handles for h in layer]
        assert all(handle.address is not None for handle in handles)
        assert library.nbytes == sum(handle.nbytes for handle in handles)
        assert library.nbytes == sum(pool.run_bytes(s.n_chunks) for s in segments)
        assert len(pool.chunks) == sum(s.n_chunks for s in segments)
        for segment in segments:
            for index, address in enumerate(segment.run.addresses):
                assert pool.chunks[address] == (segment, index)
            assert segment.children == sum(s.parent is segment for s in segments)
            assert segment.parent is None or segment.parent in segments
        held = Counter()
        for lease in pool.leases:
            for span in lease.context.spans:
                held.update(span.segment.run.addresses[: span.n_chunks])
        for address, (segment, index) in pool.chunks.items():
            assert segment.references[index] == held[address]
        if pool.budget_bytes is not None:
            assert library.nbytes <= pool.budget_bytes


def add(library, model, tokens, **options):
    return library.add(tokens, *model.kv(tokens), **options)


def text(model, seed, n_tokens):
    return model.tokens(np.random.default_rng(seed), n_tokens)


# What is stored ----------------------------------------------------------------------------------


def test_stores_whole_chunks_of_all_layers_and_heads(library, model, tiny):
    tokens = text(model, 1, 3 * CHUNK + 5)
    k, v = model.kv(tokens)
    context = add(library, model, tokens, name="a")
    (span,) = context.spans
    assert (context.n_tokens, context.n_chunks) == (3 * CHUNK, 3)
    assert (span.n_tokens, span.position, span.shift, span.segment.position) == (48, 0, 0, 0)
    np.testing.assert_array_equal(context.tokens, tokens[:48])
    for layer in range(2):
        for head in range(2):
            expected = Store.from_float(
                k[layer, head, :48], v[layer, head, :48], chunk_tokens=CHUNK, router="minmax"
            )
            assert same(span.segment.store(layer, head), expected)
            handle = span.segment.handle(layer, head)
            assert same(handle.store(), expected)
            assert handle.checksums
            assert (handle.n_tokens, handle.n_chunks, handle.chunk_tokens) == (48, 3, CHUNK)
    check(library)
    document = library.documents["a"]
    np.testing.assert_array_equal(document.tokens, tokens)
    assert len(document.addresses) == 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("router", ["minmax", "mean", "submean:4"])
@pytest.mark.parametrize("checksums", [True, False])
def test_types_routers_and_checksums(make, model, dtype, router, checksums):
    library = make(router=router, checksums=checksums)
    tokens = text(model, 2, 2 * CHUNK)
    k, v = (x.astype(dtype) for x in model.kv(tokens))
    segment = library.add(tokens, k, v).spans[0].segment
    expected = Store.from_float(k[1, 0], v[1, 0], chunk_tokens=CHUNK, router=router)
    assert same(segment.handle(1, 0).store(), expected)
    assert segment.handle(1, 0).checksums == checksums
    check(library)


def test_a_text_shorter_than_a_chunk_stores_nothing(library, model):
    assert add(library, model, text(model, 3, CHUNK - 1), name="short").n_tokens == 0
    assert library.nbytes == 0
    assert library.compose(["short"]).spans == ()


def test_a_long_text_is_cut_into_segments(library, model):
    tokens = text(model, 4, 10 * CHUNK)
    context = add(library, model, tokens)
    assert [span.n_chunks for span in context.spans] == [4, 4, 2]
    assert [span.position for span in context.spans] == [0, 64, 128]
    assert all(span.shift == 0 for span in context.spans)
    assert [s.parent for s in library.segments] == [None, *library.segments[:2]]
    k, v = model.kv(tokens)
    whole = Store.from_float(k[1, 1], v[1, 1], chunk_tokens=CHUNK)
    for name, step in zip(ARRAYS, (16, 16, 16, 16, 1, 1), strict=True):
        for span, start in zip(context.spans, (0, 4, 8), strict=True):
            expected = getattr(whole, name)[start * step : (start + span.n_chunks) * step]
            np.testing.assert_array_equal(getattr(span.segment.store(1, 1), name), expected)
    check(library)


def test_the_units_limit_is_the_longest_segment(make, model, tiny):
    limit = tiny.parameters.max_chunks
    context = add(make(), model, text(model, 5, (limit + 1) * CHUNK))
    assert [span.n_chunks for span in context.spans] == [limit, 1]


def test_equal_texts_are_stored_once(library, model):
    tokens = text(model, 6, 6 * CHUNK + 3)
    first = add(library, model, tokens, name="a")
    size = library.nbytes
    assert add(library, model, tokens.tolist(), name="b") == first
    assert add(library, model, tokens[: 3 * CHUNK]).n_chunks == 3
    assert library.nbytes == size
    assert library.statistics.deduplicated_chunks == 6 + 3
    assert library.statistics.added_chunks == 6
    check(library)


def test_a_text_that_diverges_stores_its_tail(library, model):
    common, one, two = text(model, 7, 3 * CHUNK), text(model, 8, 20), text(model, 9, 40)
    first = np.concatenate([common, one])
    second = np.concatenate([common, two])
    add(library, model, first)
    before = library.nbytes
    context = add(library, model, second)
    head, tail = context.spans
    assert (head.n_chunks, head.segment.n_chunks) == (3, 4)
    assert (tail.n_chunks, tail.position, tail.shift) == (2, 48, 0)
    assert tail.segment.parent is head.segment
    assert library.nbytes - before == tail.segment.nbytes == library._pool.run_bytes(2)
    k, v = model.kv(second)
    expected = Store.from_float(k[0, 1, 48:80], v[0, 1, 48:80], chunk_tokens=CHUNK)
    assert same(tail.segment.handle(0, 1).store(), expected)
    np.testing.assert_array_equal(context.tokens, second[:80])
    # Equal tokens behind another prefix are other chunks.
    assert add(library, model, two).n_chunks == 2
    assert library.match(two).spans[0].segment is not tail.segment
    check(library)


def test_a_prefill_may_begin_behind_what_is_stored(library, model):
    tokens = text(model, 10, 5 * CHUNK + 2)
    add(library, model, tokens[: 2 * CHUNK])
    for start in (2 * CHUNK + 1, 3 * CHUNK):
        with pytest.raises(ValueError, match=r"start must not be behind the stored tokens \(32\)"):
            library.add(tokens, *model.kv(tokens, start), start=start)
    for start in (CHUNK + 3, 2 * CHUNK):
        context = library.add(tokens, *model.kv(tokens, start), start=start)
        k, v = model.kv(tokens)
        expected = Store.from_float(k[1, 0, 32:80], v[1, 0, 32:80], chunk_tokens=CHUNK)
        assert same(context.spans[1].segment.store(1, 0), expected)
    check(library)


def test_all_stores_of_a_language_model():
    geometry = Geometry("SmolLM2-135M", 30, 9, 3, 64)
    rng = np.random.default_rng(11)
    tokens = rng.integers(0, 49_152, 64)
    k, v = rng.normal(size=(2, 30, 3, 64, 64)).astype(np.float16)
    with (
        moska.host.open("golden:ulx3s?memory=16M") as device,
        Library(device, geometry, chunk_tokens=32) as library,
    ):
        used = device.memory.used_bytes
        (segment,) = {span.segment for span in library.add(tokens, k, v).spans}
        # Keys and values, scales, two representatives a chunk, and a checksum record.
        store = 2 * 64 * 64 + 64 * 4 + 2 * 2 * 64 + 64 + 64
        assert library.nbytes == 90 * store == device.memory.used_bytes - used
        for layer, head in ((0, 0), (17, 1), (29, 2)):
            expected = Store.from_float(k[layer, head], v[layer, head], chunk_tokens=32)
            assert same(segment.handle(layer, head).store(), expected)


# What a request finds ----------------------------------------------------------------------------


def test_match_is_the_longest_stored_prefix(library, model):
    tokens = text(model, 12, 6 * CHUNK)
    add(library, model, tokens)
    other = (tokens + 1) % model.vocabulary
    for n_same in range(0, 6 * CHUNK + 1, 5):
        request = np.concatenate([tokens[:n_same], other[n_same:], other])
        context = library.match(request)
        assert context.n_tokens == n_same // CHUNK * CHUNK
        np.testing.assert_array_equal(context.tokens, tokens[: context.n_tokens])
    assert library.match(tokens[:CHUNK]).n_tokens == CHUNK
    assert library.match([]).spans == ()
    assert library.match(other).n_tokens == 0


def test_statistics(library, model):
    tokens = text(model, 13, 6 * CHUNK)
    add(library, model, tokens, name="a")
    library.match(np.concatenate([tokens[: 4 * CHUNK], tokens]))  # 4 of 10 chunks
    leases = [library.lease(tokens), library.lease(tokens[: 2 * CHUNK])]
    now = library.statistics
    assert (now.documents, now.segments, now.chunks, now.tokens) == (1, 2, 6, 96)
    assert (now.requests, now.hits, now.misses) == (3, 4 + 6 + 2, 6)
    assert now.hit_rate == pytest.approx(12 / 18)
    assert (now.leases, now.leased_chunks) == (2, 6)
    assert now.saved_bytes == library._pool.run_bytes(4) * 2 // 4
    assert (now.bytes, now.budget_bytes) == (library.nbytes, None)
    for lease in leases:
        lease.release()
    assert library.evict(1) == library._pool.run_bytes(2)
    now = library.statistics
    assert (now.leases, now.leased_chunks, now.saved_bytes) == (0, 0, 0)
    assert (now.evicted_segments, now.evicted_chunks) == (1, 2)
    assert now.evicted_bytes == library._pool.run_bytes(2)


def test_composed_documents_attend_like_one(library, model, tiny):
    """Two documents behind each other: merged jobs equal float64 attention to the moved keys."""
    rope, rng = model.geometry.rope, np.random.default_rng(14)
    texts = {name: text(model, seed, n) for name, seed, n in (("a", 15, 100), ("b", 16, 60))}
    for name, tokens in texts.items():
        add(library, model, tokens, name=name)
    context = library.compose(["a", "b"])
    assert context.n_tokens == 96 + 48
    assert [(s.position, s.n_tokens, s.shift) for s in context.spans] == [
        (0, 64, 0), (64, 32, 0), (96, 48, 96),
    ]  # fmt: skip
    q = rope.rotate(rng.normal(size=(6, 16)), 150)
    for layer, head in ((0, 1), (1, 0)):
        o, lse = np.zeros((6, 16), np.float32), np.full(6, -np.inf, np.float32)
        for span in context.spans:
            own = rope.shift(q, -span.shift)
            part = tiny.attend(span.segment.handle(layer, head), own, n_tokens=span.n_tokens)
            o, lse = merge_states(o, lse, part.o, part.lse)
        parts = [[x[layer, head] for x in model.kv(tokens)] for tokens in texts.values()]
        k, v = (np.concatenate([a[:96], b[:48]]) for a, b in zip(*parts, strict=True))
        k[96:] = rope.shift(k[96:], 96)
        s = q @ k.T / 4
        p = np.exp(s - s.max(axis=1, keepdims=True))
        assert relative_error(o, p @ v / p.sum(axis=1, keepdims=True)) < 0.02
        expected = np.log(p.sum(axis=1)) + s.max(axis=1)
        np.testing.assert_allclose(lse, expected, atol=0.02)
        # Without the rotation it is something else.
        k[96:] = rope.shift(k[96:], -96)
        s = q @ k.T / 4
        p = np.exp(s - s.max(axis=1, keepdims=True))
        assert relative_error(o, p @ v / p.sum(axis=1, keepdims=True)) > 0.05


def test_compose_takes_contexts_and_knows_its_documents(library, model):
    tokens = text(model, 17, 2 * CHUNK)
    context = add(library, model, tokens, name="a")
    assert library.compose(["a"]) == library.compose([context]) == context
    twice = library.compose(["a", context])
    assert [span.shift for span in twice.spans] == [0, 32]
    assert twice == context + context
    assert library.compose([]).n_tokens == 0
    with pytest.raises(NotStored, match=r"document must be one of the library's \(a\), not 'b'"):
        library.compose(["a", "b"])
    library.evict(1)
    with pytest.raises(
        NotStored, match="'a' must be added again: of its 2 chunks, only the first 0"
    ):
        library.compose(["a"])
    add(library, model, tokens)
    assert library.compose(["a"]).n_chunks == 2


def test_what_requests_share_is_seen_before_it_is_stored(library, model):
    shared = text(model, 18, 3 * CHUNK)
    for seed in range(4):
        library.observe(np.concatenate([shared, text(model, 100 + seed, 50)]))
    (candidate,) = library.candidates()
    assert (candidate.requests, candidate.n_stored) == (4, 0)
    np.testing.assert_array_equal(candidate.tokens, shared)
    assert library.candidates(min_requests=5) == []
    add(library, model, candidate.tokens[:CHUNK])
    assert library.candidates()[0].n_stored == CHUNK
    add(library, model, candidate.tokens)
    assert library.candidates() == []


def test_the_unit_notices_a_chunk_that_changed_in_its_memory(library, model, tiny):
    tokens = text(model, 69, 3 * CHUNK)
    handle = add(library, model, tokens).spans[0].segment.handle(1, 1)
    q = np.random.default_rng(70).normal(size=(2, 16))
    tiny.attend(handle, q)
    at = handle.fields["v_addr"] + 2 * CHUNK * 16  # the third chunk
    (byte,) = tiny.transport.read(at, 1)
    tiny.transport.write(at, bytes([byte ^ 1]))
    tiny.attend(handle, q, n_tokens=2 * CHUNK)
    with pytest.raises(moska.host.ChecksumError):
        tiny.attend(handle, q)


# Leases and eviction -----------------------------------------------------------------------------


def test_leases_count_per_chunk(library, model):
    tokens = text(model, 19, 6 * CHUNK)
    addresses = library.format.addresses(add(library, model, tokens).tokens)
    with library.lease(tokens) as whole, library.lease(tokens[: 3 * CHUNK]) as some:
        assert (whole.context.n_chunks, some.context.n_chunks) == (6, 3)
        assert [library.references(a) for a in addresses] == [2, 2, 2, 1, 1, 1]
        some.release()
        some.release()
        assert [library.references(a) for a in addresses] == [1] * 6
        assert library.evict(1 << 30) == 0
        check(library)
    assert [library.references(a) for a in addresses] == [0] * 6
    library.evict(1 << 30)
    with pytest.raises(NotStored, match="must be stored"):
        library.references(addresses[0])


def test_a_lease_of_the_beginning_keeps_its_segment_only(library, model):
    tokens = text(model, 20, 10 * CHUNK)
    add(library, model, tokens)
    with library.lease(tokens[:CHUNK]):
        assert library.evict(1 << 30) == library._pool.run_bytes(4) + library._pool.run_bytes(2)
        assert library.match(tokens).n_chunks == 4
    check(library)


def test_the_least_recently_used_goes_first_children_before_parents(library, model):
    texts = {name: text(model, seed, 2 * CHUNK) for name, seed in (("a", 21), ("b", 22), ("c", 23))}
    for tokens in texts.values():
        add(library, model, tokens)
    long = np.concatenate([texts["a"], text(model, 24, 2 * CHUNK)])
    add(library, model, long)  # a's segment has a child now
    library.match(texts["b"])
    library.lease(texts["c"]).release()
    library.match(long)

    def stored():
        left = {name for name, tokens in texts.items() if library.match(tokens).n_chunks}
        return left | ({"child"} if library.match(long).n_chunks == 4 else set())

    # Looking refreshes in the order a, b, c, then a with its child.
    assert stored() == {"a", "b", "c", "child"}
    library.evict(1)
    assert stored() == {"a", "c", "child"}
    library.match(texts["c"])
    library.evict(1)
    assert stored() == {"a", "c"}
    check(library)


@pytest.mark.parametrize("use", ["match", "lease", "compose", "add"])
def test_looking_up_is_use(library, model, use):
    old, new = text(model, 67, 2 * CHUNK), text(model, 68, 2 * CHUNK)
    context = add(library, model, old, name="old")
    add(library, model, new, name="new")
    if use == "add":
        add(library, model, old)
    elif use == "lease":
        library.lease(context).release()
    else:
        {"match": library.match, "compose": library.compose}[use](
            old if use == "match" else ["old"]
        )
    library.evict(1)
    assert library.match(old).n_chunks == 2
    assert library.match(new).n_chunks == 0


def test_evict_tells_what_it_freed(library, model, tiny):
    for seed in (25, 26, 27):
        add(library, model, text(model, seed, 3 * CHUNK))
    each, used = library._pool.run_bytes(3), tiny.memory.used_bytes
    assert library.evict(0) == 0
    assert library.evict(each + 1) == 2 * each
    assert tiny.memory.used_bytes == used - 2 * each
    assert library.evict(1 << 40) == each
    assert library.evict(1) == 0
    assert library.nbytes == 0


def test_a_context_that_was_evicted_cannot_be_leased(library, model):
    tokens = text(model, 28, 5 * CHUNK)
    context = add(library, model, tokens)
    library.evict(1)
    with pytest.raises(NotStored, match=r"tokens 64\.\.79> must be stored, but was evicted"):
        library.lease(context)
    add(library, model, tokens)
    with pytest.raises(NotStored, match="match again"):
        library.lease(context)
    library.lease(library.match(tokens)).release()
    check(library)


def test_remove(library, model):
    common = text(model, 29, 3 * CHUNK)
    a = np.concatenate([common, text(model, 30, 2 * CHUNK)])
    b = np.concatenate([common, text(model, 31, CHUNK)])
    add(library, model, a, name="a")
    add(library, model, b, name="b")
    with library.lease(a), pytest.raises(InUse, match="document 'a' must not be in use"):
        library.remove("a")
    library.remove("a")
    assert library.match(a).n_chunks == 4  # the segment that b has a part in
    assert library.match(b).n_chunks == 4
    check(library)
    library.remove("b")
    assert library.nbytes == 0
    with pytest.raises(NotStored, match=r"document must be one of the library's \(none\), not 'a'"):
        library.remove("a")
    add(library, model, b, name="a")  # the name is free again


def test_remove_spares_what_others_have_a_part_in_or_follow(library, model):
    tokens = text(model, 71, 4 * CHUNK)
    add(library, model, tokens, name="whole")
    add(library, model, tokens[: 2 * CHUNK], name="beginning")
    library.remove("whole")
    assert library.compose(["beginning"]).n_chunks == 2
    assert library.match(tokens).n_chunks == 4  # one segment
    longer = np.concatenate([tokens, text(model, 72, CHUNK)])
    add(library, model, longer)
    library.remove("beginning")
    assert library.match(longer).n_chunks == 5
    check(library)


def test_a_name_stands_for_one_text(library, model):
    tokens = text(model, 32, 2 * CHUNK)
    add(library, model, tokens, name="a")
    add(library, model, tokens, name="a")
    with pytest.raises(ValueError, match="name must be new, but 'a' is another document"):
        add(library, model, tokens[:-1], name="a")


# Memory ------------------------------------------------------------------------------------------


def test_the_budget_is_kept_to_the_byte(make, model):
    probe = make(segment_chunks=4)
    need = probe._pool.run_bytes(4)
    library = make(segment_chunks=4, budget_bytes=3 * need)
    for seed in range(40, 50):
        add(library, model, text(model, seed, 4 * CHUNK))
        check(library)
    assert library.nbytes == 3 * need
    assert library.statistics.evicted_segments == 7
    almost = make(segment_chunks=4, budget_bytes=3 * need - 1)
    for seed in range(40, 43):
        add(almost, model, text(model, seed, 4 * CHUNK))
    assert almost.nbytes == 2 * need
    add(make(segment_chunks=4, budget_bytes=need), model, text(model, 50, 4 * CHUNK))
    with pytest.raises(BudgetExceeded):
        add(make(segment_chunks=4, budget_bytes=need - 1), model, text(model, 50, 4 * CHUNK))


def test_a_budget_that_is_in_use_is_an_error_and_changes_nothing(make, model):
    need = make(segment_chunks=4)._pool.run_bytes(4)
    library = make(segment_chunks=4, budget_bytes=3 * need)
    held, idle = text(model, 51, 8 * CHUNK), text(model, 52, 4 * CHUNK)
    add(library, model, held)
    add(library, model, idle)
    with library.lease(held):
        message = (
            f"budget of {3 * need:,} bytes must have room for {2 * need:,}, "
            f"but {2 * need:,} of the {3 * need:,} bytes that are stored are in use"
        )
        with pytest.raises(BudgetExceeded, match=message):
            add(library, model, text(model, 53, 8 * CHUNK), name="new")
        assert library.match(idle).n_chunks == 4
        assert "new" not in library.documents
        check(library)
        add(library, model, text(model, 54, 4 * CHUNK))
        assert library.match(idle).n_chunks == 0
        assert library.match(held).n_chunks == 8
    add(library, model, text(model, 53, 8 * CHUNK))
    check(library)


def test_what_a_new_tail_follows_is_not_evicted_for_it(make, model):
    need = make(segment_chunks=2)._pool.run_bytes(2)
    library = make(segment_chunks=2, budget_bytes=2 * need)
    tokens = text(model, 55, 6 * CHUNK)
    add(library, model, tokens[: 2 * CHUNK])
    add(library, model, text(model, 56, 2 * CHUNK))
    assert add(library, model, tokens[: 4 * CHUNK]).n_chunks == 4
    with pytest.raises(BudgetExceeded):
        add(library, model, tokens)
    assert library.match(tokens).n_chunks == 4
    check(library)


def test_what_a_leased_tail_follows_is_in_use(make, model):
    need = make(segment_chunks=2)._pool.run_bytes(2)
    library = make(segment_chunks=2, budget_bytes=2 * need)
    context = add(library, model, text(model, 73, 4 * CHUNK))
    with library.lease(Context(context.spans[1:])):
        assert library.evict(1) == 0
        message = f"but {2 * need:,} of the {2 * need:,} bytes that are stored are in use"
        with pytest.raises(BudgetExceeded, match=message):
            add(library, model, text(model, 74, 2 * CHUNK))


def test_full_device_memory_evicts_then_is_an_error(model):
    with (
        moska.host.open("golden:tiny?memory=64K") as device,
        Library(device, model.geometry, chunk_tokens=CHUNK) as library,
    ):
        empty = device.memory.used_bytes
        need = library._pool.run_bytes(8)
        room = device.memory.free_bytes // need
        assert room >= 2
        for seed in range(60, 60 + 3 * room):
            add(library, model, text(model, seed, 8 * CHUNK))
            check(library)
            assert device.memory.used_bytes == empty + library.nbytes
        assert library.statistics.evicted_segments >= 2 * room
        leases = [library.lease(segment.tokens) for segment in library.segments]
        before = library.segments
        with pytest.raises(OutOfMemory, match="device memory must have room for"):
            add(library, model, text(model, 99, 8 * CHUNK))
        assert library.segments == before
        assert device.memory.used_bytes == empty + library.nbytes
        leases[0].release()
        idle = before[0].tokens
        with pytest.raises(OutOfMemory, match=r"bytes, but [\d,]+ are free or idle"):
            add(library, model, text(model, 99, 16 * CHUNK))
        assert library.match(idle).n_chunks == 8
        add(library, model, text(model, 99, 8 * CHUNK))
        assert library.match(idle).n_chunks == 0
        check(library)


@pytest.mark.parametrize("n_good", [0, 1, 5])
def test_a_failure_while_uploading_leaves_nothing(library, model, tiny, monkeypatch, n_good):
    tokens = text(model, 57, 6 * CHUNK)
    load, calls = tiny.load, []

    def fail(store, **options):
        calls.append(store)
        if len(calls) > n_good:
            raise moska.host.TransportError("cable")
        return load(store, **options)

    used = tiny.memory.used_bytes
    monkeypatch.setattr(tiny, "load", fail)
    with pytest.raises(moska.host.TransportError):
        add(library, model, tokens, name="a")
    assert tiny.memory.used_bytes == used
    assert library.segments == ()
    assert not library.documents
    monkeypatch.undo()
    assert add(library, model, tokens, name="a").n_chunks == 6


def test_close_frees_what_is_leased_too(library, model, tiny):
    used = tiny.memory.used_bytes
    lease = library.lease(add(library, model, text(model, 58, 5 * CHUNK), name="a"))
    library.close()
    library.close()
    assert tiny.memory.used_bytes == used
    assert (library.nbytes, dict(library.documents), library.segments) == (0, {}, ())
    lease.release()
    check(library)


def test_a_library_may_outlive_its_device(model):
    with moska.host.open("golden:tiny?memory=1M") as device:
        library = Library(device, model.geometry, chunk_tokens=CHUNK)
        add(library, model, text(model, 59, 2 * CHUNK))
    with pytest.raises(moska.host.DeviceClosed):
        add(library, model, text(model, 60, 2 * CHUNK))
    library.close()


# Arguments ---------------------------------------------------------------------------------------


def test_refuses_arrays(library, model):
    tokens = text(model, 61, 2 * CHUNK)
    k, v = model.kv(tokens)
    with pytest.raises(
        ValueError, match=r"k must have shape \(2, 2, 32, 16\), not \(2, 2, 31, 16\)"
    ):
        library.add(tokens, k[:, :, :-1], v)
    with pytest.raises(
        ValueError, match=r"v must have shape \(2, 2, 32, 16\), not \(1, 2, 32, 16\)"
    ):
        library.add(tokens, k, v[:1])
    with pytest.raises(ValueError, match="k must be float16, float32 or float64, not int64"):
        library.add(tokens, k.astype(np.int64), v)
    with pytest.raises(ValueError, match=r"start must be 0\.\.32, not 33"):
        library.add(tokens, k, v, start=33)
    with pytest.raises(TypeError, match="tokens must be integers"):
        library.add(tokens + 0.5, k, v)
    assert library.nbytes == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["k", "v"])
def test_names_the_place_of_a_number_that_is_not_finite(library, model, name, value):
    tokens = text(model, 62, 4 * CHUNK)
    add(library, model, tokens[:CHUNK])
    arrays = dict(zip("kv", model.kv(tokens), strict=True))
    arrays[name][1, 0, 37, 3] = value
    message = f"{name} must be finite, not {value} in layer 1, KV head 0, token 37"
    with pytest.raises(ValueError, match=message):
        library.add(tokens, **arrays)
    check(library)
    # Behind the last whole chunk it does not matter.
    assert library.add(tokens[:40], **{n: x[:, :, :40] for n, x in arrays.items()}).n_chunks == 2


def test_refuses_what_does_not_fit_the_unit(tiny, model):
    with pytest.raises(
        ValueError, match=r"head_dim of the model must be the unit's \(16\), not 64"
    ):
        Library(tiny, Geometry("m", 1, 1, 1, 64))
    with pytest.raises(ValueError, match=r"segment_chunks must be 1\.\.16, not 17"):
        Library(tiny, model.geometry, segment_chunks=17)
    with pytest.raises(
        ValueError, match="router must make at most 32 representatives a chunk, not 64"
    ):
        Library(tiny, model.geometry, chunk_tokens=64, router="submean:1")
    with pytest.raises(ValueError, match="budget_bytes must not be negative, not -1"):
        Library(tiny, model.geometry, budget_bytes=-1)


def test_progress_bars(library, model, capsys):
    add(library, model, text(model, 63, 5 * CHUNK), progress=True)
    shown = capsys.readouterr().out
    assert "quantising" in shown
    assert "uploading" in shown
    add(library, model, text(model, 64, 5 * CHUNK))
    assert capsys.readouterr().out == ""


# Traffic -----------------------------------------------------------------------------------------


class Traffic:
    """Requests over documents that share beginnings; joins and leaves at random."""

    def __init__(self, library, model, seed, n_documents=20):
        self.library = library
        self.model = model
        self.rng = np.random.default_rng(seed)
        # Five families: the documents of one begin alike.
        heads = [text(model, 1000 + i, 2 * CHUNK) for i in range(5)]
        self.documents = [
            np.concatenate([heads[i % 5], text(model, 2000 + i, CHUNK * (2 + i % 4) + i)])
            for i in range(n_documents)
        ]
        self.full = 0  # times that everything was in use

    def join(self):
        """Lease one or two documents for a request; store what is missing. None when full."""
        wanted = self.rng.choice(len(self.documents), size=self.rng.integers(1, 3), replace=False)
        leases = []
        for index in wanted:
            tokens = self.documents[index]
            whole = len(tokens) // CHUNK
            for _ in range(100):  # another thread may evict between adding and leasing
                lease = self.library.lease(tokens)
                if lease.context.n_chunks == whole:
                    leases.append(lease)
                    break
                start = int(lease.context.n_tokens)
                try:
                    self.library.add(tokens, *self.model.kv(tokens, start), start=start)
                except BudgetExceeded:
                    self.full += 1
                    for held in leases:
                        held.release()
                    return None
                finally:
                    lease.release()
            else:
                pytest.fail("a request never got its document")
        return leases

    def verify(self, leases):
        """Bits in device memory of one random chunk run that the request holds."""
        lease = leases[self.rng.integers(len(leases))]
        tokens = lease.context.tokens
        layer, head = self.rng.integers(2, size=2)
        k, v = (x[layer, head] for x in self.model.kv(tokens))
        for span in lease.context.spans:
            own = slice(span.position, span.position + span.n_tokens)
            expected = Store.from_float(k[own], v[own], chunk_tokens=CHUNK)
            found = span.segment.handle(layer, head).store()
            assert np.array_equal(found.k[: span.n_tokens], expected.k)
            assert np.array_equal(found.v_scale[: span.n_tokens], expected.v_scale)
            assert np.array_equal(found.rep[: span.n_chunks], expected.rep)

    def run(self, n_requests, each=lambda: None):
        running, served = [], 0
        while served < n_requests or running:
            if running and (served == n_requests or self.rng.random() < 0.45):
                leases = running.pop(self.rng.integers(len(running)))
                self.verify(leases)
                for lease in leases:
                    lease.release()
            elif (leases := self.join()) is not None:
                running.append(leases)
                served += 1
                self.verify(leases)
            elif running:  # full: somebody must leave first
                for lease in running.pop(0):
                    lease.release()
            each()


@pytest.mark.parametrize("seed", range(3))
def test_200_requests_over_20_documents(make, model, tiny, seed):
    empty = tiny.memory.used_bytes
    budget = make(segment_chunks=3)._pool.run_bytes(3) * 14  # less than half of all documents
    library = make(segment_chunks=3, budget_bytes=budget)
    traffic = Traffic(library, model, seed)
    evicted = []
    forget = library._pool._forget

    def watch(segment):
        assert not segment.references.any(), "evicted in use"
        assert not segment.children
        evicted.append(segment)
        forget(segment)

    library._pool._forget = watch

    def each():
        check(library)
        assert tiny.memory.used_bytes == empty + library.nbytes

    traffic.run(200, each)
    now = library.statistics
    assert len(evicted) == now.evicted_segments > 50
    assert sum(segment.n_chunks for segment in evicted) == now.evicted_chunks
    assert now.added_chunks == now.chunks + now.evicted_chunks
    assert (now.leases, now.leased_chunks) == (0, 0)
    assert traffic.full > 0  # the budget was met
    assert now.hits > 0
    library.evict(1 << 40)
    assert tiny.memory.used_bytes == empty


def test_requests_from_four_threads(make, model, tiny):
    empty = tiny.memory.used_bytes
    budget = make(segment_chunks=3)._pool.run_bytes(3) * 20
    library = make(segment_chunks=3, budget_bytes=budget)
    errors, stop = [], threading.Event()

    def serve(seed):
        try:
            Traffic(library, model, seed).run(50, lambda: check(library))
        except BaseException as error:
            errors.append(error)

    def disturb():
        rng = np.random.default_rng(9)
        try:
            while not stop.wait(0.002):
                library.evict(int(rng.integers(1, 30_000)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(4)]
    janitor = threading.Thread(target=disturb)
    for thread in (*threads, janitor):
        thread.start()
    for thread in threads:
        thread.join(300)
    stop.set()
    janitor.join(60)
    assert not errors, errors
    assert not any(thread.is_alive() for thread in (*threads, janitor))
    assert library.statistics.leases == 0
    check(library)
    assert tiny.memory.used_bytes == empty + library.nbytes


def test_finding_does_not_wait_for_an_upload(library, model, tiny, monkeypatch):
    tokens, other = text(model, 65, 2 * CHUNK), text(model, 66, 2 * CHUNK)
    add(library, model, tokens)
    load, begun, go_on = tiny.load, threading.Event(), threading.Event()

    def slow(store, **options):
        begun.set()
        assert go_on.wait(60)
        return load(store, **options)

    monkeypatch.setattr(tiny, "load", slow)
    adder = threading.Thread(target=add, args=(library, model, other))
    adder.start()
    assert begun.wait(60)
    with library.lease(tokens) as lease:
        assert lease.context.n_chunks == 2
        assert library.match(other).n_chunks == 0
    go_on.set()
    adder.join(60)
    assert library.match(other).n_chunks == 2
