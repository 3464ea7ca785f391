"""Steps of many requests at once: shared parts on the unit, unique parts on the path, merged."""

import dataclasses
import math
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import scale_value
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store, route
from moska.host.context import Context, Segment
from moska.host.job import Attention
from moska.host.library import Library
from moska.host.merge import merge_states
from moska.host.policy import Decision, Policy, Work, itemsize, measure
from moska.host.pool import Lease
from moska.host.unique.path import Array, Path

PARTS = ("prepare", "quantise", "submit", "unique", "wait", "path", "merge")


@dataclass(frozen=True)
class Settings:
    """How the shared part of a step is computed."""

    k: int | float | None = None  # chunks of its context that a row keeps, or their share; all
    keep_first: int = 1  # chunks at the begin of every span that are always kept
    keep_last: int = 1  # and at its end
    group_decision: bool = False  # the heads of a group keep the same chunks
    dense_layers: Collection[int] = (0, 1)  # that keep all chunks whatever k is
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        if self.k is not None and not isinstance(self.k, int) and not 0 < self.k <= 1:
            raise ValueError(f"k must be whole, or a share above 0 and up to 1, not {self.k}")
        if isinstance(self.k, int) and self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")

    def chunks(self, n_chunks: int, of: int) -> int | None:
        """Chunks that a row keeps of a span of ``n_chunks`` in a context ``of`` so many.

        A number of chunks is divided among the spans by their length, and rounded up.
        """
        if self.k is None:
            return None
        if isinstance(self.k, int):
            return min(n_chunks, -(-self.k * n_chunks // of))
        # Without the last digits: 7 % of 100 are 7.000000000000001.
        return math.ceil(round(self.k * n_chunks, 9))


@dataclass(eq=False)
class Request:
    """One request that takes part in steps, and what it attends to beside its own tokens."""

    context: Context
    lease: Lease = field(repr=False)


@dataclass
class Report:
    """What a step has done so far, over the layers it has seen."""

    requests: int
    layers: int = 0
    rows: int = 0  # of all jobs
    jobs: int = 0
    chunks_read: int = 0
    chunks_skipped: int = 0
    cycles: int = 0  # of the unit
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    decisions: list[Decision] = field(default_factory=list)

    @property
    def host_seconds(self) -> float:
        """What the host did for the shared part; it waited for nobody meanwhile."""
        return sum(self.seconds[part] for part in ("prepare", "quantise", "submit", "merge"))

    @property
    def rows_per_job(self) -> float:
        """Rows that shared a read of the chunks."""
        return self.rows / self.jobs if self.jobs else 0.0


@dataclass(frozen=True, eq=False)
class _Batch:
    """Everybody in a step who attends to the same tokens of a segment in the same way."""

    segment: Segment
    n_tokens: int
    k: int | None
    members: NDArray[np.intp]  # (P,) index of the request in the step
    orders: NDArray[np.intp]  # (P,) which of its spans it is
    shifts: NDArray[np.int64]  # (P,) of that span


@dataclass(eq=False)
class _Pending:
    """A batch in one layer: its rows, and what will bring their results."""

    batch: _Batch
    rows: NDArray[np.intp]  # (P,) row of `orders` and `members`
    tokens: NDArray[np.intp]  # (P,) query token
    q: NDArray[np.floating]  # (G, P, R, D) rotated to where the keys are stored
    quantised: tuple[NDArray[np.int16], NDArray[np.uint16]] | None = None  # (G, M, D), (G, M)
    futures: list["Future[Attention]"] = field(default_factory=list)  # of each KV head


class Orchestrator:
    """Runs the attention of a model's requests; made once, used from one thread.

    Requests may join and leave at any time between two steps, from any thread.

    Parameters
    ----------
    library
        of what requests share; its device computes.
    path
        that computes the unique parts.
    settings
        fields of :class:`Settings`, which :meth:`step` can override.
    """

    def __init__(self, library: Library, path: Path, **settings: Any) -> None:
        self.library = library
        self.path = path
        self.settings = Settings(**settings)
        self._requests: dict[Request, None] = {}  # in the order of joining
        self._lock = threading.Lock()
        # Float keys and values of segments that the policy has sent to the path, by layer.
        self._floats: WeakKeyDictionary[Segment, dict[int, tuple[Array, Array]]] = (
            WeakKeyDictionary()
        )

    def __enter__(self) -> "Orchestrator":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let all requests leave."""
        for request in self.requests:
            self.leave(request)

    @property
    def requests(self) -> tuple[Request, ...]:
        """Requests that have joined and not left, in the order of joining."""
        with self._lock:
            return tuple(self._requests)

    def join(self, context: Context) -> Request:
        """Take a request in; its context stays in the library until it leaves.

        Raises
        ------
        NotStored
            when a part of the context was evicted since it was made.
        """
        request = Request(context, self.library.lease(context))
        with self._lock:
            self._requests[request] = None
        return request

    def leave(self, request: Request) -> None:
        """Let a request go; may be called again."""
        with self._lock:
            self._requests.pop(request, None)
        request.lease.release()

    def step(self, requests: Sequence[Request], **settings: Any) -> "Step":
        """Begin a forward pass of a batch.

        Parameters
        ----------
        requests
            in the order of the batch; all must have joined, each at most once.
        settings
            fields of :class:`Settings` that differ in this step.

        Raises
        ------
        ValueError
            for a request that has not joined or comes twice.
        """
        joined = set(self.requests)
        if not joined.issuperset(requests):
            raise ValueError("requests must have joined and not left")
        if len(set(requests)) != len(requests):
            raise ValueError("requests must not come twice")
        return Step(self, requests, dataclasses.replace(self.settings, **settings))

    def floats(self, segment: Segment, layer: int, like: Array) -> tuple[Array, Array]:
        """Keys and values (G, 1, S, D) of a segment as numbers of the path, like ``like``.

        They are kept as long as the segment is in the library.
        """
        layers = self._floats.setdefault(segment, {})
        if layer not in layers:
            n_heads = self.library.geometry.n_kv_heads
            stores = [segment.store(layer, head) for head in range(n_heads)]
            layers[layer] = tuple(
                self.path.cast(self.path.from_numpy(np.stack(parts)[:, None], like), like)
                for parts in zip(*map(_dequantised, stores), strict=True)
            )
        return layers[layer]


class Step:
    """One forward pass of a batch, layer by layer.

    Attributes
    ----------
    report
        what it has done so far.
    """

    def __init__(
        self, orchestrator: Orchestrator, requests: Sequence[Request], settings: Settings
    ) -> None:
        self.requests = tuple(requests)
        self.settings = settings
        self.report = Report(len(self.requests))
        self._orchestrator = orchestrator
        self._path = orchestrator.path
        self._library = orchestrator.library
        self._batches = {dense: self._grouped(dense) for dense in (False, True)}
        self._decisions: dict[tuple[bool, int], Decision] = {}

    def attend(
        self,
        layer: int,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        scale: float | None = None,
    ) -> Array:
        """Attention of the step's queries to the contexts and to the requests' own tokens.

        :meth:`state` without the LSE, of the type of ``q``.
        """
        return self._path.cast(self.state(layer, q, k, v, mask, scale)[0], q)

    def state(
        self,
        layer: int,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        scale: float | None = None,
    ) -> tuple[Array, Array]:
        """Attention of the step's queries to the contexts and to the requests' own tokens.

        Parameters
        ----------
        layer
            which one.
        q
            (B, H, T, D) queries at their positions: after the rotary embedding, with the context's
            tokens counted.
        k, v
            (B, G, S, D) keys and values of the requests' own tokens.
        mask
            (B, 1, T, S) booleans, True: may attend. It concerns the requests' own tokens; all
            tokens of a context lie before them. A query that may attend to none of them is padding,
            its output is 0.
        scale
            of the scores, 1/sqrt(D) when not given.

        Returns
        -------
        o
            (B, H, T, D), float32 where a context took part, else of the type of ``q``.
        lse
            (B, H, T) float32, natural logarithm.

        Raises
        ------
        ValueError
            for a layer or shapes that are not the model's.
        MoskaError
            when a job fails; the step can be repeated.
        """
        self._check(layer, q)
        dense = self.settings.k is None or layer in self.settings.dense_layers
        batches = self._batches[dense]
        pending: list[_Pending] = []
        aside: list[_Pending] = []  # not for the unit
        estimated = 0
        host_seconds, cycles = self.report.host_seconds, self.report.cycles
        try:
            if batches:
                with self._time("prepare"):
                    counted = self._counted(q, mask)
                    grouped = self._by_kv_head(q)
                for index, batch in enumerate(batches):
                    one = self._gather(batch, grouped, counted)
                    if not len(one.rows):
                        continue
                    decision = self._decide(dense, index, one, q, k)
                    if decision.unit:
                        self._submit(layer, one, scale)
                        pending.append(one)
                        estimated += decision.estimates.cycles
                    else:
                        aside.append(one)
            with self._time("unique"):
                o, lse = self._path.attend(q, k, v, mask, scale)
        except BaseException:
            _cancel(pending)
            raise
        state = self._join(layer, q, (o, lse), pending, aside, scale)
        self.report.layers += 1
        if pending and not aside:
            self.settings.policy.learn(
                n_jobs=sum(len(one.futures) for one in pending),
                host_seconds=self.report.host_seconds - host_seconds,
                cycles=self.report.cycles - cycles,
                estimated_cycles=estimated,
            )
        return state

    # Before the jobs.

    def _grouped(self, dense: bool) -> list[_Batch]:
        """Batches of the step, in the order in which their spans come."""
        found: dict[tuple[Segment, int, int | None], list[tuple[int, int, int]]]
        found = defaultdict(list)
        for index, request in enumerate(self.requests):
            for order, span in enumerate(request.context.spans):
                chunks = self.settings.chunks(span.n_chunks, request.context.n_chunks)
                key = (span.segment, span.n_tokens, None if dense else chunks)
                found[key].append((index, order, span.shift))
        return [
            _Batch(*key, *(np.array(column) for column in zip(*members, strict=True)))
            for key, members in found.items()
        ]

    def _check(self, layer: int, q: Array) -> None:
        own = self._library.geometry
        if not 0 <= layer < own.n_layers:
            raise ValueError(f"layer must be 0..{own.n_layers - 1}, not {layer}")
        shape = tuple(q.shape)
        if len(shape) != 4 or (shape[0], shape[1], shape[3]) != (
            len(self.requests), own.n_heads, own.head_dim
        ):  # fmt: skip
            raise ValueError(
                f"q must have shape ({len(self.requests)}, {own.n_heads}, T, {own.head_dim}), "
                f"not {shape}"
            )

    def _counted(self, q: Array, mask: Array | None) -> NDArray[np.bool_]:
        """Which queries are none of padding, (B, T)."""
        if mask is None or mask.shape[-1] == 0:
            return np.ones((q.shape[0], q.shape[2]), dtype=bool)
        return self._path.to_numpy(mask.any(-1)[:, 0])

    def _by_kv_head(self, q: Array) -> NDArray[np.floating]:
        """(B, H, T, D) to (G, B, T, R, D): rows of a KV head, the heads of a group in a run."""
        x = self._path.to_numpy(q)
        b, h, t, d = x.shape
        g = self._library.geometry.n_kv_heads
        return x.reshape(b, g, h // g, t, d).transpose(1, 0, 3, 2, 4)

    def _gather(
        self, batch: _Batch, grouped: NDArray[np.floating], counted: NDArray[np.bool_]
    ) -> _Pending:
        with self._time("prepare"):
            rows, tokens = np.nonzero(counted[batch.members])
            q = grouped[:, batch.members[rows], tokens]  # (G, P, R, D)
            shifts = batch.shifts[rows]
            moved = np.flatnonzero(shifts)
            rope = self._library.geometry.rope
            # Without a rotary embedding, keys do not know where they stand.
            if len(moved) and rope is not None:
                q[:, moved] = rope.shift(q[:, moved], -shifts[moved][:, None])
            return _Pending(batch, rows, tokens, q)

    def _decide(self, dense: bool, index: int, one: _Pending, q: Array, k: Array) -> Decision:
        if (dense, index) not in self._decisions:
            policy = self.settings.policy
            if policy.always is None and policy.rates is None:
                policy.rates = measure(self._path, q)
            device = self._library.device
            handle = one.batch.segment.handle(0, 0)
            b, g, s, d = k.shape
            decision = policy.decide(
                Work(
                    n_rows=one.q.shape[1] * one.q.shape[2],
                    n_tokens=one.batch.n_tokens,
                    chunk_tokens=handle.chunk_tokens,
                    head_dim=d,
                    n_kv_heads=g,
                    k=one.batch.k,
                    group=self._group,
                    rep_rows=handle.rep_rows,
                    checksums=handle.checksums,
                ),
                device.parameters,
                clock_mhz=device.clock_mhz,
                kv_bytes=itemsize(q),
                unique_bytes=2 * b * g * s * d * itemsize(q),
                unique_macs=2 * b * q.shape[1] * q.shape[2] * s * d,
            )
            self._decisions[dense, index] = decision
            self.report.decisions.append(decision)
        return self._decisions[dense, index]

    @property
    def _group(self) -> int:
        return self._library.geometry.group if self.settings.group_decision else 1

    def _quantised(
        self, one: _Pending, scale: float | None
    ) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        """Integers (G, M, D) and scales (G, M) of a batch's rows."""
        if one.quantised is None:
            with self._time("quantise"):
                g, p, r, d = one.q.shape
                one.quantised = quantize_q(one.q.reshape(g, p * r, d), scale)
        return one.quantised

    def _submit(self, layer: int, one: _Pending, scale: float | None) -> None:
        integers, scales = self._quantised(one, scale)
        batch, settings = one.batch, self.settings
        routing: dict[str, Any] = {}
        if batch.k is not None:
            routing = {
                "k": batch.k,
                "keep_first": settings.keep_first,
                "keep_last": settings.keep_last,
                "group": self._group,
            }
        with self._time("submit"):
            handles = [batch.segment.handle(layer, head) for head in range(len(integers))]
            one.futures = self._library.device.submit_many(
                zip(handles, zip(integers, scales, strict=True), strict=True),
                n_tokens=batch.n_tokens,
                **routing,
            )
        self.report.rows += integers.shape[0] * integers.shape[1]
        self.report.jobs += len(integers)

    # Behind the jobs.

    def _join(
        self,
        layer: int,
        q: Array,
        unique: tuple[Array, Array],
        pending: list[_Pending],
        aside: list[_Pending],
        scale: float | None,
    ) -> tuple[Array, Array]:
        """Merge the states of all spans, in the order of each request's spans, then the unique."""
        states = [(one, *self._on_path(layer, one, q, scale)) for one in aside]
        try:
            states += [(one, *self._result(one)) for one in pending]
        except BaseException:
            _cancel(pending)
            raise
        if not states:
            return unique
        with self._time("merge"):
            shared = _merged(states, tuple(q.shape))
            path = self._path
            if path.device == "cpu":  # NumPy is quicker on small arrays, and memory is one
                o, lse = merge_states(*shared, *map(path.to_numpy, unique))
                return path.from_numpy(o, q), path.from_numpy(lse, q)
            o, lse = (path.from_numpy(x, q) for x in shared)
            return merge_states(o, lse, *unique)

    def _result(self, one: _Pending) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Wait for the jobs of a batch: o (G, P, R, D), lse (G, P, R)."""
        shape = one.q.shape
        with self._time("wait"):
            results = [future.result() for future in one.futures]
        for result in results:
            self.report.cycles += result.counters["cycles"]
            self.report.chunks_read += result.counters["chunks_read"]
            self.report.chunks_skipped += result.counters["chunks_skipped"]
        o = np.stack([result.o for result in results]).reshape(shape)
        return o, np.stack([result.lse for result in results]).reshape(shape[:3])

    def _on_path(
        self, layer: int, one: _Pending, q: Array, scale: float | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute what the unit would, on the path, from the stored numbers."""
        g, p, r, d = one.q.shape
        if one.batch.k is not None:
            self._quantised(one, scale)
        with self._time("path"):
            keys, values = self._orchestrator.floats(one.batch.segment, layer, q)
            mask = None
            if one.batch.k is not None:
                mask = self._path.from_numpy(self._chosen(layer, one, scale)[:, None], q)
            rows = self._path.from_numpy(one.q.reshape(g, 1, p * r, d), q)
            n = one.batch.n_tokens
            o, lse = self._path.attend(
                self._path.cast(rows, q), keys[:, :, :n], values[:, :, :n], mask, scale
            )
            o = self._path.to_numpy(o).astype(np.float32, copy=False).reshape(g, p, r, d)
            return o, self._path.to_numpy(lse).reshape(g, p, r)

    def _chosen(self, layer: int, one: _Pending, scale: float | None) -> NDArray[np.bool_]:
        """Tokens of the chunks that the unit would choose, (G, M, n)."""
        batch, settings = one.batch, self.settings
        assert batch.k is not None
        chunks = []
        for head, (q, q_scale) in enumerate(zip(*self._quantised(one, scale), strict=True)):
            store = batch.segment.store(layer, head)
            store = _first(store, batch.n_tokens)
            chunks.append(
                route(
                    store,
                    q,
                    q_scale,
                    batch.k,
                    keep_first=settings.keep_first,
                    keep_last=settings.keep_last,
                    group=self._group,
                )
            )
        return np.repeat(np.stack(chunks), store.chunk_tokens, axis=2)[:, :, : batch.n_tokens]

    def _time(self, part: str) -> "_Timer":
        return _Timer(self.report.seconds, part)


class _Timer:
    """Adds the time in its context to one of the seconds; quicker than a generator."""

    __slots__ = ("_part", "_seconds", "_start")

    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self._seconds = seconds
        self._part = part

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._seconds[self._part] += time.perf_counter() - self._start


def _merged(
    states: list[tuple[_Pending, NDArray[np.float32], NDArray[np.float32]]],
    shape: tuple[int, ...],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Merge o (G, P, R, D) and lse (G, P, R) of all batches: o (B, H, T, D) and lse (B, H, T).

    The n-th spans of all requests are one state, whose other rows are empty: merging with an empty
    state changes no bit, so that a request's result does not depend on its company.
    """
    b, h, t, d = shape
    g, r = states[0][0].q.shape[0], states[0][0].q.shape[2]
    n_orders = 1 + max(int(one.batch.orders.max()) for one, _, _ in states)
    total: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    for order in range(n_orders):
        o = np.zeros((b, g, r, t, d), dtype=np.float32)
        lse = np.full((b, g, r, t), -np.inf, dtype=np.float32)
        for one, o_part, lse_part in states:
            mine = np.flatnonzero(one.batch.orders[one.rows] == order)
            members, tokens = one.batch.members[one.rows[mine]], one.tokens[mine]
            o[members, :, :, tokens] = o_part[:, mine].swapaxes(0, 1)
            lse[members, :, :, tokens] = lse_part[:, mine].swapaxes(0, 1)
        total = (o, lse) if total is None else merge_states(*total, o, lse)
    assert total is not None
    return total[0].reshape(shape), total[1].reshape(b, h, t)


def _dequantised(store: Store) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keys and values as the unit sees them; float32 holds an int8 times a bfloat16 exactly."""
    parts = ((store.k, store.k_scale), (store.v, store.v_scale))
    k, v = ((x * scale_value(scale)[:, None]).astype(np.float32) for x, scale in parts)
    return k, v


def _first(store: Store, n_tokens: int) -> Store:
    """First tokens of a store, whole chunks."""
    if n_tokens == store.n_tokens:
        return store
    assert store.rep is not None
    assert store.rep_scale is not None
    n_chunks = -(-n_tokens // store.chunk_tokens)
    return dataclasses.replace(
        store,
        k=store.k[:n_tokens],
        v=store.v[:n_tokens],
        k_scale=store.k_scale[:n_tokens],
        v_scale=store.v_scale[:n_tokens],
        rep=store.rep[:n_chunks],
        rep_scale=store.rep_scale[:n_chunks],
    )


def _cancel(pending: list[_Pending]) -> None:
    for one in pending:
        for future in one.futures:
            future.cancel()
