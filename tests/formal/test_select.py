"""Proofs: top-k selection, of jobs of a small size, from every state in which a job may start."""

import pytest
from amaranth.hdl import (
    Array,
    Cat,
    ClockDomain,
    Const,
    DomainRenamer,
    EnableInserter,
    Mux,
    Signal,
    Value,
)

from moska.hw.router.select import Selector
from moska.sim.formal import Bug, Harness, Proof, check_held

pytestmark = pytest.mark.formal

KEY_WIDTH = 4  # two digits
WIDTH = 2


def selector(*, max_rows, max_chunks, n_lanes=1):
    return Selector(
        max_rows=max_rows,
        max_chunks=max_chunks,
        width=WIDTH,
        n_lanes=n_lanes,
        key_width=KEY_WIDTH,
    )


def idle_state(h, dut, store_s1):
    """Whether a job may start, and whether the state is then one of those that jobs leave behind.

    The last word of the job before may wait on `o`. What is not named here, such as the contents
    of memories, does not matter to the next job.
    """
    n_slots = dut.n_slots

    def flag(name, width=1):
        return h.inside(f"dut.{name}", width)

    feed_slot = flag("feed_slot", 2)
    return flag("ctrl_state", 4) == 0, (
        (flag("sender_state", 3) == 0)
        & ~flag("searching", n_slots).any()
        & ~flag("done", n_slots).any()
        & (feed_slot < n_slots)
        & (flag("out_slot", 2) == feed_slot)
        & (flag("pass_slot", 2) < n_slots)
        & ~flag("valid_s2")
        & ~flag("counted")
        & ~store_s1
        & ~flag("send_s1")
        & ~flag("all_sent")
        & (flag("out_word", 1) == 0)
    )


def contents(h, dut, store_s1):
    """Keys as stored, by row and chunk; a write that is under way counts."""
    words = dut.max_chunks // WIDTH
    address_bits = (dut.max_rows * words - 1).bit_length()
    banks = []
    place = None
    for b in range(WIDTH):
        if place is None or dut.n_lanes > 1:
            place = h.inside(f"dut.write_place_{b}", address_bits + KEY_WIDTH)
        merged = h.inside(f"dut.merged_{b}", KEY_WIDTH)
        write_en = h.inside(f"dut.write_en_{b}", 1)
        value = Mux(store_s1, merged, place[address_bits:])
        banks.append([
            Mux(
                write_en & (place[:address_bits] == address),
                value,
                h.inside(f"dut.bank_{b}[{address}]", KEY_WIDTH),
            )
            for address in range(dut.max_rows * words)
        ])
    return [
        [banks[c % WIDTH][row * words + c // WIDTH] for c in range(dut.max_chunks)]
        for row in range(dut.max_rows)
    ]


def offset(key):
    """Signed ``key`` as stored: offset binary."""
    return (key.as_unsigned() ^ (1 << (KEY_WIDTH - 1)))[:KEY_WIDTH]


def keys(n_lanes):
    """Every key is stored in its place, in any state; other places change by maxima only."""

    def build():
        h = Harness()
        m = h.m
        dut = selector(max_rows=2, max_chunks=4, n_lanes=n_lanes)
        m.submodules.dut = dut
        for port in (dut.keys, dut.start.valid, dut.start.payload, dut.o.ready):
            h.drive(port)
        lanes = [dut.keys[index] for index in range(n_lanes)]
        for index, lane in enumerate(lanes):
            for other in lanes[:index]:
                h.assume(~(lane.valid & other.valid) | (lane.chunk[0] != other.chunk[0]))
        arrives = Cat(lane.valid for lane in lanes).any()
        stores = h.inside("dut.store", 1)
        was_store = h.past(stores & ~arrives, "was_store")
        store_s1 = h.inside("dut.store_s1", 1)
        for row, stored in enumerate(contents(h, dut, store_s1)):
            for chunk, value in enumerate(stored):
                name = f"{row}_{chunk}"
                expected = Signal(KEY_WIDTH, name=f"expected_{name}")
                hit = Signal(name=f"hit_{name}")
                m.d.comb += expected.eq(value)
                for lane in lanes:
                    with m.If(lane.valid & (lane.row == row) & (lane.chunk == chunk)):
                        m.d.comb += [expected.eq(offset(lane.key)), hit.eq(1)]
                was_hit = h.past(hit, f"was_hit_{name}")
                same = value == h.past(expected, f"past_{name}")
                running = h.past(Const(1, 1), f"past_running_{name}")
                h.check(f"key_stored_{name}", ~was_hit | same)
                h.check(f"key_stays_{name}", ~running | was_hit | was_store | same)
        h.cover("key_delays_maximum", stores & arrives)
        return h

    return build


def idle():
    """Reset leads to the idle state, which stays until a job starts, with keys arriving."""
    h = Harness()
    m = h.m
    m.submodules.dut = dut = selector(max_rows=2, max_chunks=4)
    for port in (dut.keys, dut.start.payload, dut.o.ready):
        h.drive(port)
    ready, state = idle_state(h, dut, h.inside("dut.store_s1", 1))
    h.check("idle", ready & state)
    h.check("ready", dut.start.ready)
    h.check("busy_with_word", dut.busy == dut.o.valid)
    check_held(h, "o", dut.o.valid, dut.o.ready, dut.o.payload)
    h.cover("key_arrives", h.past(dut.keys[0].valid, "past_key"))
    return h


def job(*, max_rows, max_chunks, longest, rows=None, waits=2, writes=1):
    """Prove that a job that starts in any idle state, with any keys, selects the right chunks.

    Its last word is taken ``longest`` cycles, at most, after its first cycle. It leaves an idle
    state behind: with `idle`, what is proven holds for any number of jobs, one after the other,
    also when one starts while the last word of the other waits.

    ``rows``: of a job, at most. ``waits``: cycles of a job, at most, in which a word waits on `o`.
    ``writes``: keys, at most, that arrive during a job.
    """

    def build():
        h = Harness()
        m = h.m
        # No reset: the registers have any value when time starts, and keep it in that cycle.
        domain = ClockDomain("job", reset_less=True)
        m.domains += domain
        m.d.comb += domain.clk.eq(h.clk)
        dut = selector(max_rows=max_rows, max_chunks=max_chunks)
        m.submodules.dut = EnableInserter({"job": h.running})(DomainRenamer("job")(dut))
        o, lane = dut.o, dut.keys[0]
        for port in (lane, o.ready):
            h.drive(port)
        job = h.constant(dut.start.payload.shape(), "job")
        h.assume((job.n_rows <= (rows or max_rows)) & (job.n_chunks <= max_chunks))
        h.assume(job.n_chunks != 0)
        whole = Const(0, 1)
        for group in range(1, max_rows + 1):
            for n_rows in range(0, max_rows + 1, group):
                whole |= (job.group == group) & (job.n_rows == n_rows)
        h.assume(whole)

        # The job starts in the first cycle.
        cycle = Signal(range(longest + 2))
        began = cycle != 0
        m.d.sync += cycle.eq(Mux(cycle == longest + 1, cycle, cycle + 1))
        store_s1 = h.inside("dut.store_s1", 1)
        ready, state = idle_state(h, dut, store_s1)
        m.d.comb += [
            dut.start.valid.eq(~began),
            Value.cast(dut.start.payload).eq(
                Mux(began, h.free(len(Value.cast(job)), "other_job"), Value.cast(job))
            ),
        ]
        h.assume(began | (ready & state))
        h.check("taken", began | dut.start.ready)
        h.check("idle_again", ~began | ~ready | state)

        # Its words: rows from 0, and the words of each from 0.
        before = Signal()  # a word of the job before is on `o`
        older = Signal()
        m.d.comb += older.eq(o.valid & (~began | before))
        m.d.sync += before.eq(older & ~o.ready)
        offered = o.valid & ~older
        n_words = max_chunks // WIDTH
        row = Signal(range(max_rows + 1))
        word = Signal(range(max(n_words, 2)))
        last_word = ((job.n_chunks - 1) >> (WIDTH - 1))[: len(word)]
        bits = [Signal(max_chunks, name=f"bits_{r}") for r in range(max_rows)]
        with m.If(offered & o.ready):
            m.d.sync += word.eq(word + 1)
            with m.If(word == last_word):
                m.d.sync += [word.eq(0), row.eq(row + 1)]
            for r in range(max_rows):
                for w in range(n_words):
                    with m.If((row == r) & (word == w)):
                        m.d.sync += bits[r].word_select(w, WIDTH).eq(o.p.bits)
        over = Signal()
        m.d.comb += over.eq(began & (row == job.n_rows))
        h.check("rows_and_words_in_order", ~offered | ((o.p.row == row) & (o.p.word == word)))
        last = (row == job.n_rows - 1) & (word == last_word)
        h.check("last_of_job", ~offered | (o.p.last == last))
        h.check("none_after_last", ~offered | ~over)
        h.check("over_in_time", (cycle < longest) | over)
        check_held(h, "o", o.valid, o.ready, o.payload)
        h.check("busy", ~began | (job.n_rows == 0) | (dut.busy == ~over))

        # `o` waits, and keys arrive, a few times; no keys of rows whose words are to come. The
        # rows of a group share the keys of its first, which must stay until the last word of all.
        waited, written = Signal(range(waits + 2)), Signal(range(writes + 2))
        waiting, writing = o.valid & ~o.ready, began & lane.valid
        m.d.sync += [waited.eq(waited + waiting), written.eq(written + writing)]
        h.assume((waited + waiting <= waits) & (written + writing <= writes))
        free_row = (lane.row >= job.n_rows) | over | ((job.group == 1) & (lane.row < row))
        h.assume(~writing | free_row)

        # The keys at the end of the first cycle, and what they are to lead to.
        stored = contents(h, dut, store_s1)
        kept = [
            [Signal(KEY_WIDTH, name=f"kept_{r}_{c}") for c in range(max_chunks)]
            for r in range(max_rows)
        ]
        with m.If(~began):
            for r in range(max_rows):
                for c in range(max_chunks):
                    hit = lane.valid & (lane.row == r) & (lane.chunk == c)
                    m.d.sync += kept[r][c].eq(Mux(hit, offset(lane.key), stored[r][c]))
        # Any row, any chunk, and any other one.
        some_row = h.constant(range(max_rows), "some_row")
        some, other = h.constant(range(max_chunks), "some"), h.constant(range(max_chunks), "other")

        def largest(chunk):
            """Largest key of ``chunk`` in the group of the row."""
            key = Signal(KEY_WIDTH, name=f"largest_{chunk.name}")
            value = Const(0, KEY_WIDTH)
            for r in range(max_rows):
                in_group = Const(0, 1)
                for group in range(1, max_rows + 1):
                    first = Const(0, 1)
                    for q in range(max_rows):
                        first |= (some_row == q) & (q // group == r // group)
                    in_group |= (job.group == group) & first
                own = Array(kept[r])[chunk]
                value = Mux(in_group & (own > value), own, value)
            m.d.comb += key.eq(value)
            return key

        selected = Signal(max_chunks)
        m.d.comb += selected.eq(Array(bits)[some_row])

        def is_selected(chunk):
            return selected.bit_select(chunk, 1)

        def forced(chunk):
            return (chunk < job.keep_first) | (chunk + job.keep_last >= job.n_chunks)

        seen = over & ~h.past(over, "was_over") & (some_row < job.n_rows)
        exists = (some < job.n_chunks) & (other < job.n_chunks)
        prefers = seen & exists & is_selected(some) & ~is_selected(other)
        number = sum((selected[c] for c in range(max_chunks)), Const(0, 1))
        wanted = Mux(job.k < job.n_chunks, job.k, job.n_chunks)
        h.check("as_many_as_wanted", ~seen | (number == wanted))
        h.check("none_that_is_not_there", ~seen | (some < job.n_chunks) | ~is_selected(some))
        h.check("forced_first", ~prefers | forced(some) | ~forced(other))
        equal = forced(some) == forced(other)
        key, other_key = largest(some), largest(other)
        h.check("larger_keys_first", ~(prefers & equal) | (key >= other_key))
        h.check("lower_ids_first", ~(prefers & equal & (key == other_key)) | (some < other))
        if waits:
            h.cover("tie_broken", prefers & equal & (key == other_key))
        return h

    return build


PROOFS = [
    Proof(
        name="selector_keys",
        build=keys(1),
        engine="induction",
        depth=2,
        reach=12,
        bugs=(
            Bug(
                name="maximum_over_key",
                owner=Selector,
                old="store_s1.eq(store & no_key)",
                new="store_s1.eq(store)",
                caught_by="key_stored_0_0",
            ),
        ),
    ),
    Proof(
        name="selector_keys_of_2_lanes",
        build=keys(2),
        engine="induction",
        depth=2,
        reach=12,
        bugs=(
            Bug(
                name="keys_of_both_lanes",
                owner=Selector,
                old="Mux(hits[i], place, 0)",
                new="place",
                caught_by="key_stored_0_1",
            ),
        ),
    ),
    Proof(name="selector_idle", build=idle, engine="induction", depth=2),
    # Two rows of one word; one row of two words; then, while `o` never waits, two rows of two
    # words, and four rows, which share three slots.
    Proof(
        name="selector_job_2_rows",
        build=job(max_rows=2, max_chunks=2, longest=32),
        engine="bmc",
        depth=34,
        reach=30,
        bugs=(
            Bug(
                name="tie_rule_reversed",
                owner=Selector,
                old="(_total(pool[:j]) if j else 0) < left",
                new="_total(pool) <= left",
                caught_by="lower_ids_first",
            ),
            Bug(
                name="threshold_not_reached_by_equal",
                owner=Selector,
                old="(Cat(Const(0, 1), stored[b]) >= bound)",
                new="(Cat(Const(0, 1), stored[b]) > bound)",
                caught_by="as_many_as_wanted",
            ),
            Bug(
                name="first_chunks_not_kept",
                owner=Selector,
                old="Mux(job.keep_first < job.n_chunks, job.keep_first, job.n_chunks)",
                new="0",
                caught_by="forced_first",
            ),
            Bug(
                name="last_chunks_not_kept",
                owner=Selector,
                old="Mux(job.keep_last < job.n_chunks, job.keep_last, job.n_chunks)",
                new="0",
                caught_by="forced_first",
            ),
            Bug(
                name="smallest_of_group",
                owner=Selector,
                old="stored[b] > merged[b]",
                new="stored[b] < merged[b]",
                caught_by="larger_keys_first",
            ),
            Bug(
                name="chunks_beyond_the_last",
                owner=Selector,
                old="sure_s1.eq(Mux(among_forced, 0, exists & forced))",
                new="sure_s1.eq(Mux(among_forced, 0, forced))",
                caught_by="none_that_is_not_there",
            ),
            Bug(
                name="last_of_every_row",
                owner=Selector,
                old="o.p.last.eq(last_s1 & last_row)",
                new="o.p.last.eq(last_s1)",
                caught_by="last_of_job",
            ),
            Bug(
                name="word_moves",
                owner=Selector,
                old="room.eq(~o.valid | o.ready)",
                new="room.eq(1)",
                caught_by="o_held",
            ),
        ),
    ),
    Proof(
        name="selector_job_4_chunks",
        build=job(max_rows=2, max_chunks=4, longest=36, rows=1),
        engine="bmc",
        depth=38,
        reach=30,
        bugs=(
            Bug(
                name="words_swapped",
                owner=Selector,
                old="word_s1.eq(issue_word)",
                new="word_s1.eq(last_word - issue_word)",
                caught_by="rows_and_words_in_order",
            ),
        ),
    ),
    Proof(
        name="selector_job_2_rows_4_chunks",
        build=job(max_rows=2, max_chunks=4, longest=50, waits=0, writes=0),
        engine="bmc",
        depth=52,
        reach=40,
        bugs=(
            Bug(
                name="smallest_of_group",
                owner=Selector,
                old="stored[b] > merged[b]",
                new="stored[b] < merged[b]",
                caught_by="larger_keys_first",
            ),
        ),
    ),
    Proof(
        name="selector_job_4_rows",
        build=job(max_rows=4, max_chunks=2, longest=60, waits=0, writes=0),
        engine="bmc",
        depth=62,
        reach=62,
        bugs=(
            Bug(
                name="slot_taken_while_in_use",
                owner=Selector,
                old="free.eq(~(searching | done).bit_select(feed_slot, 1))",
                new="free.eq(1)",
                caught_by="over_in_time",
            ),
        ),
    ),
]


def test_holds(proof, check_holds):
    check_holds(proof)


def test_reached(proof, check_reached):
    check_reached(proof)


def test_bug_is_caught(proof, bug, check_caught):
    check_caught(proof, bug)
