"""Jobs that between them meet every class of job: for tests of the whole unit."""

import dataclasses

import numpy as np

from moska.golden.layout import Opcode
from moska.golden.quantize import quantize_q
from moska.golden.router import Router
from moska.golden.unit import Store
from moska.sim.job import Job

KINDS = ("dense", "checked", "routed", "route", "explicit")  # of simple jobs


def queries(rng, n_rows, head_dim, scale=2.0):
    """Random queries."""
    return quantize_q(rng.normal(size=(n_rows, head_dim)) * scale)


def store(rng, config, n_tokens, chunk_tokens, router="minmax"):
    """Random store whose tokens differ in size, as attention sinks do."""
    shape = (n_tokens, config.head_dim)
    size = np.exp(rng.normal(size=(n_tokens, 1)))
    return Store.from_float(
        rng.normal(size=shape) * size,
        rng.normal(size=shape) / size,
        chunk_tokens=chunk_tokens,
        router=router,
    )


def raw_store(rng, config, n_tokens, chunk_tokens, router):
    """Store of arbitrary bit patterns, scales included."""
    dim = config.head_dim
    n_chunks = -(-n_tokens // chunk_tokens)
    n_rep = 2 if router is Router.MINMAX else 1

    def integers(*shape):
        return rng.integers(-128, 128, shape).astype(np.int8)

    def scales(*shape):
        return rng.integers(0, 1 << 16, shape).astype(np.uint16)

    return Store(
        integers(n_tokens, dim),
        integers(n_tokens, dim),
        scales(n_tokens),
        scales(n_tokens),
        chunk_tokens,
        router,
        integers(n_chunks, n_rep, dim),
        scales(n_chunks, n_rep),
    )


def jobs(config, rng):
    """Jobs that between them meet every class: rows, chunk sizes, selections, extremes."""
    tile, dim = config.query_tile, config.head_dim
    rows = sorted({1, tile - 1, tile, min(3 * tile + 1, config.max_rows)} - {0})
    small = store(rng, config, 100, 48)  # short last block in each chunk, short last chunk
    made = [Job(small, *queries(rng, n_rows, dim)) for n_rows in rows]

    routed = store(rng, config, 16 * 16, 16)
    n_rows = rows[-1]
    for k in (1, 4, 16):
        made.append(Job(routed, *queries(rng, n_rows, dim), k=k))
    made.append(Job(routed, *queries(rng, n_rows, dim), k=4, keep_first=0, keep_last=0))
    mean = store(rng, config, 9 * 16 + 5, 16, "mean")
    made.append(Job(mean, *queries(rng, rows[-2], dim), k=3))
    means = store(rng, config, 5 * 32, 32, "submean:8")
    made.append(Job(means, *queries(rng, n_rows, dim), k=2, keep_first=0))
    # One decision for groups of three rows.
    made.append(Job(routed, *queries(rng, 6, dim), k=3, group=3))

    # One chunk, longer than a buffer slot; one token.
    made.append(Job(store(rng, config, 80, 96), *queries(rng, tile, dim)))
    made.append(Job(store(rng, config, 1, 16), *queries(rng, 2, dim)))

    # Explicit lists: rows with an empty selection, chunks that nobody wants.
    explicit = rng.random((n_rows, 16)) < 0.2
    explicit[0] = False
    explicit[:, 5] = False
    made.append(Job(routed, *queries(rng, n_rows, dim), explicit=explicit))
    made.append(Job(routed, *queries(rng, 2, dim), explicit=np.zeros((2, 16), dtype=bool)))
    made.append(Job(routed, *queries(rng, 2, dim), k=0))

    # Ties: all keys equal, so that lower chunk ids win and all scores of a row are equal.
    key = rng.normal(size=(1, dim))
    tied = Store.from_float(
        np.repeat(key, 8 * 16, axis=0), rng.normal(size=(8 * 16, dim)), chunk_tokens=16
    )
    made.append(Job(tied, *queries(rng, tile, dim), k=3, keep_first=0))
    # Zero queries.
    made.append(Job(small, *quantize_q(np.zeros((2, dim)))))
    # Arbitrary bits: saturated scores, scales over the whole range of exponents.
    q = rng.integers(-32768, 32768, (tile + 1, dim)).astype(np.int16)
    q_scale = rng.integers(0, 1 << 16, tile + 1).astype(np.uint16)
    for router in Router:
        made.append(Job(raw_store(rng, config, 7 * 16, 16, router), q, q_scale, k=4))
    # Scores of middle size with wild value scales.
    wild = raw_store(rng, config, 64, 32, Router.ROWS)
    made.append(Job(wild, q, (q_scale & 0x7F) | (64 << 7)))

    # Checksums of every kind of chunk; selections alone.
    made.append(Job(small, *queries(rng, rows[-1], dim), checksum=True))
    made.append(Job(routed, *queries(rng, n_rows, dim), k=3, checksum=True))
    made.append(Job(routed, *queries(rng, n_rows, dim), k=5, opcode=Opcode.ROUTE))
    return [dataclasses.replace(job, tag=1000 + index) for index, job in enumerate(made)]


def extremes(config, rng):
    """Jobs at the limits of the configuration and of the numbers."""
    dim, most = config.head_dim, config.max_rows
    n_chunks = config.max_chunks
    made = []
    # All rows, all chunks.
    full = store(rng, config, n_chunks * 16, 16)
    made.append(Job(full, *queries(rng, most, dim), k=n_chunks // 2, keep_first=3, keep_last=2))
    made.append(Job(full, *queries(rng, most, dim), k=2, keep_first=0, keep_last=1, group=most))
    made.append(Job(full, *queries(rng, most, dim), explicit=rng.random((most, n_chunks)) < 0.5))
    # More chunks than the unit has list entries for, all of them.
    long = store(rng, config, (n_chunks + 3) * 16 - 7, 16, "mean")
    made.append(Job(long, *queries(rng, 3, dim)))
    # As many representatives a chunk as there can be, over many buffer slots; few chunks read.
    for n_rep in (1, 2, 4, 8, 16, 32):
        if n_rep > config.buffer_tokens:
            continue
        own = store(rng, config, 12 * 48 - 5, 48)
        rep = rng.integers(-128, 128, (12, n_rep, dim)).astype(np.int8)
        rep_scale = (rng.integers(118, 122, (12, n_rep)) << 7).astype(np.uint16)
        own = dataclasses.replace(own, router=Router.ROWS, rep=rep, rep_scale=rep_scale)
        opcode = Opcode.ROUTE if n_rep == 8 else Opcode.ATTEND
        made.append(Job(own, *queries(rng, 5, dim), k=3, keep_last=0, opcode=opcode))
    # Selection keys that grow to their limit and past it, each row at another scale.
    for sign in (1, -1):
        own = store(rng, config, 12 * 16, 16)
        level = (sign * np.linspace(60, 127, 12)).round().astype(np.int8)
        rep = np.repeat(level[:, None, None], dim, axis=2)
        own = dataclasses.replace(
            own, router=Router.ROWS, rep=rep, rep_scale=np.full((12, 1), 0x3F80, np.uint16)
        )
        q = np.full((most, dim), 32767, np.int16)
        # Keys saturate at about this scale, from float to float a step of the mantissa or more.
        unit = 1024 / (127 * 32767 * dim)
        exponent = (np.float32(unit).view(np.uint32) >> 16) - 128
        q_scale = (exponent + 16 * np.arange(most)).astype(np.uint16)
        made.append(Job(own, q, q_scale, k=3, keep_first=0, keep_last=0))
    # One query tile against scores that grow, then shrink: the reference moves, then stays.
    for order in (1, -1):
        size = np.linspace(0.1, 12, 96)[::order, None]
        tokens = Store.from_float(
            np.ones((96, dim)) * size, rng.normal(size=(96, dim)), chunk_tokens=32
        )
        made.append(Job(tokens, *quantize_q(np.ones((2, dim))), checksum=True))
        made.append(Job(tokens, *quantize_q(-np.ones((3, dim)))))
    # Largest magnitudes of every factor.
    for sign in (1, -1):
        big = Store(
            np.full((32, dim), 127, np.int8), np.full((32, dim), sign * 127, np.int8),
            np.full(32, 0x3F80, np.uint16), np.full(32, 0x4000, np.uint16), 32,
        )  # fmt: skip
        q = np.full((2, dim), sign * 32767, np.int16)
        made.append(Job(big, q, np.array([0x3C00, 0x3800], np.uint16)))
    # Value scales from the smallest to the largest float.
    for exponent in (1, 60, 127, 200, 254):
        own = store(rng, config, 32, 32)
        own = dataclasses.replace(
            own, v_scale=np.full(32, exponent << 7 | rng.integers(128), np.uint16)
        )
        made.append(Job(own, *queries(rng, 2, dim)))
    # Score scales likewise: nearly uniform, sharp.
    for exponent in (90, 112, 118, 121, 124, 127, 134):
        q, _ = queries(rng, 3, dim)
        q_scale = (exponent << 7 | rng.integers(0, 128, 3)).astype(np.uint16)
        made.append(Job(store(rng, config, 64, 16), q, q_scale, k=3))
    for n_tokens, chunk in ((16, 16), (31, 32), (33, 32), (64, 64), (65, 16), (127, 128)):
        own = store(rng, config, n_tokens, chunk, "mean")
        made.append(Job(own, *queries(rng, 1 + n_tokens % 5, dim), checksum=True))
    # Groups whose rows disagree about chunks of about the same weight.
    even = dataclasses.replace(
        full,
        router=Router.ROWS,
        rep=rng.integers(-128, 128, (n_chunks, 1, dim)).astype(np.int8),
        rep_scale=np.full((n_chunks, 1), 120 << 7, np.uint16),
    )
    for group in sorted({2, 3, most}):
        q = queries(rng, most - most % group, dim)
        made.append(Job(even, *q, k=n_chunks // 2 - 1, keep_first=0, keep_last=0, group=group))
    # Ties to break, then rows without a search.
    equal = np.repeat(even.rep[:1], n_chunks, axis=0)
    for k in (3, n_chunks):
        q = queries(rng, most, dim)
        made.append(Job(dataclasses.replace(even, rep=equal), *q, k=k, keep_first=0, keep_last=0))
    # Pairs whose halves have any sign.
    for n_rep in (2, 4):
        pairs = dataclasses.replace(
            even,
            router=Router.MINMAX,
            rep=rng.integers(-128, 128, (n_chunks, n_rep, dim)).astype(np.int8),
            rep_scale=np.full((n_chunks, n_rep), 120 << 7, np.uint16),
        )
        q = queries(rng, most, dim)
        made.append(Job(pairs, *q, k=n_chunks // 2 - 1, keep_first=0, keep_last=0))
    # LSE just above 0: 64 tokens of weight 1 / 64 and one of weight 2**-21.
    one = np.full(65, 0x3F80, np.uint16)
    keys = np.zeros((65, dim), np.int8)
    keys[:, 0] = 1
    keys[64, 1] = 1
    q = np.zeros((1, dim), np.int16)
    q[0, :2] = -6, -15
    made.append(Job(Store(keys, keys, one, one, 80), q, one[:1]))
    # LSE all over -1 to 1, with all its bits.
    q = np.zeros((most, dim), np.int16)
    q[:, 0] = np.linspace(-4095, 4095, most)
    scale = np.full(most, 115 << 7, np.uint16)  # 1 / 4096
    made.append(Job(Store(keys[:1], keys[:1], one[:1], one[:1], 16), q, scale))
    # Half of the smallest floats: less than the least that is not 0, or just that.
    powers = np.resize(np.array([1, -2, 4, -8, 16, -32, 64, -128, 0, 127], np.int8), (1, dim))
    halves = np.concatenate((powers, np.zeros_like(powers)))
    zero = quantize_q(np.zeros((most, dim)))
    made.append(Job(Store(halves, halves, one[:2], np.full(2, 0x00C0, np.uint16), 16), *zero))
    # A token of weight 1: LSE is 0, and quotients just below a power of two round up to it. Its
    # queries take longer than its products.
    made.append(Job(Store(powers, powers, one[:1], one[:1], 16), *zero))
    return [dataclasses.replace(job, tag=0xE0000000 + 77 * i) for i, job in enumerate(made)]


def simple(rng, config, kind):
    """Small job on a store of its own, for scenes about something else."""
    own = store(rng, config, 72, 32)
    rows = min(5, config.max_rows)
    q = queries(rng, rows, config.head_dim)
    return {
        "dense": lambda: Job(own, *q),
        "checked": lambda: Job(own, *q, checksum=True),
        "routed": lambda: Job(own, *q, k=2),
        "route": lambda: Job(own, *q, k=2, opcode=Opcode.ROUTE),
        "explicit": lambda: Job(own, *q, explicit=np.ones((rows, own.n_chunks), dtype=bool)),
    }[kind]()
