"""Proofs: the burst splitter, the window guard and the masters of AXI4."""

import pytest
from amaranth.hdl import Cat, Const, Mux, Signal

from moska.hw.memory.axi import PAGE_BYTES, BurstSplitter, Response
from moska.hw.memory.reader import ReadMaster
from moska.hw.memory.window import WindowGuard
from moska.hw.memory.writer import WriteMaster
from moska.hw.stream import RegisterSlice
from moska.sim.formal import (
    Bug,
    Harness,
    Proof,
    check_fifo_inside,
    check_held,
    check_queue,
)

pytestmark = pytest.mark.formal

DATA_WIDTH = 32
WORD_BITS = 2
MAX_BURST = 16
MAX_BURSTS = 4
BEATS_BITS = 20
ENTRY_BITS = 64 + BEATS_BITS + 2  # of a command in a queue: address, last beat, tag
BEAT_BITS = DATA_WIDTH + 2  # of R inside the master: data, ID, bad
BURST_BEATS = 4


def same_block(addr, beats, size, bus_bytes):
    """Whether ``beats`` words from ``addr`` lie in one block of ``size`` bytes."""
    low = addr[: size.bit_length() - 1]
    return low + beats * bus_bytes <= size


def check_cover(h, *, taken, cmd, valid, sent, addr, beats, stages, stopped):
    """Check that bursts are the words of one command, which any run may pick, and of no other.

    ``stages``: (valid, address, beats) of the places between a command and ``valid``, ``addr``,
    ``beats`` of its bursts, for invariants, the last place first; nothing is looked at once
    ``stopped``. The words inside are numbered from the next one to be sent; the picked command has
    the ``own`` words from number ``before`` on.
    """
    m = h.m
    bits = 24
    own = Signal(20)
    before = Signal(bits)
    word = Signal(64 - WORD_BITS)
    picked = Signal()
    pick = h.free(1, "pick")
    inside = Signal(bits)  # words accepted and not sent
    m.d.sync += inside.eq(inside + Mux(taken, cmd.n_beats, 0) - Mux(sent, beats, 0))
    with m.If(picked & sent):
        with m.If(before != 0):
            m.d.sync += before.eq(before - beats)
        with m.Else():
            m.d.sync += [word.eq(word + beats), own.eq(own - beats), picked.eq(own != beats)]
    with m.Elif(~picked & taken & pick & (cmd.n_beats != 0)):
        m.d.sync += [
            picked.eq(1),
            before.eq(inside - Mux(sent, beats, 0)),
            word.eq(cmd.addr[WORD_BITS:]),
            own.eq(cmd.n_beats),
        ]
    first = valid & (before == 0) & picked & ~stopped
    h.check("bursts_not_made_up", ~valid | stopped | ((beats != 0) & (beats <= inside)))
    h.check("bursts_of_one_command", ~(picked & valid) | stopped | first | (beats <= before))
    h.check("bursts_within_command", ~first | (beats <= own))
    h.check("bursts_at_next_word", ~first | (addr[WORD_BITS:] == word))
    # With nothing inside, and not stopped, every word of every command has been sent.
    start = Const(0, 2)
    for index, (stage_valid, stage_addr, stage_beats) in enumerate(stages):
        begin = Signal(bits, name=f"begin_{index}")
        end = Signal(bits, name=f"end_{index}")
        at = Signal(64 - WORD_BITS, name=f"at_{index}")
        m.d.comb += [
            begin.eq(start),
            end.eq(begin + Mux(stage_valid, stage_beats, 0)),
            at.eq(word + (begin - before)),
        ]
        other = (end <= before) | (begin >= before + own)
        part = (begin >= before) & (end <= before + own) & (stage_addr[WORD_BITS:] == at)
        h.check(f"stage_{index}", ~picked | stopped | ~stage_valid | other | part)
        h.check(f"stage_{index}_not_empty", ~stage_valid | stopped | (stage_beats != 0))
        start = end
    h.check("all_words_inside", stopped | (inside == start))
    h.check("picked_inside", ~picked | stopped | ((own != 0) & (before + own <= inside)))
    h.cover("second_burst_of_picked", first & sent & (own != beats) & word[0])
    return inside


def splitter():
    """Bursts cover the command exactly, are as long as they may be, and stay in their block."""
    h = Harness()
    m = h.m
    m.submodules.dut = dut = BurstSplitter(data_width=DATA_WIDTH, max_burst=MAX_BURST)
    h.drive(dut.i.valid)
    h.drive(dut.i.payload)
    h.drive(dut.o.ready)
    taken = dut.i.valid & dut.i.ready
    sent = dut.o.valid & dut.o.ready

    word = Signal(64 - WORD_BITS)
    left = Signal(20)
    with m.If(taken):
        m.d.sync += [word.eq(dut.i.p.addr[WORD_BITS:]), left.eq(dut.i.p.n_beats)]
    with m.Elif(sent):
        m.d.sync += [word.eq(word + dut.o.p.n_beats), left.eq(left - dut.o.p.n_beats)]
    beats = dut.o.p.n_beats
    valid = dut.o.valid
    h.check("invariant", ~valid | (h.inside("dut.left", 20) == left))
    end = dut.o.p.addr[:4] + beats * 4
    h.check("valid_while_words_left", valid == (left != 0))
    h.check("next_when_covered", ~taken | (left == 0) | (sent & (beats == left)))
    h.check("taken_at_full_rate", dut.i.ready == ((left == 0) | (sent & (beats == left))))
    h.check("address", ~valid | (dut.o.p.addr == Cat(Const(0, WORD_BITS), word)))
    h.check("length", ~valid | ((beats != 0) & (beats <= left) & (beats <= BURST_BEATS)))
    h.check("in_block", ~valid | same_block(dut.o.p.addr, beats, MAX_BURST, 4))
    h.check("in_page", ~valid | same_block(dut.o.p.addr, beats, PAGE_BYTES, 4))
    h.check("longest", ~valid | (beats == left) | (end == MAX_BURST))
    check_held(h, "o", dut.o.valid, dut.o.ready, dut.o.payload)
    h.cover("three_bursts", sent & (left == beats) & (dut.o.p.addr[:12] == 0))
    h.cover("empty_then_burst", sent & h.past(taken & (left == 0), "after_empty"))
    return h


def inside(addr, length, base, limit):
    """Whether a burst of ``length`` + 1 beats lies in the window; sums have 65 bits."""
    return (addr >= base) & (addr + Cat(Const(3, 2), length) <= limit)


def guard():
    """Bursts that leave are inside the window; what enters leaves unchanged or stops all."""
    h = Harness()
    m = h.m
    m.submodules.dut = dut = WindowGuard(data_width=DATA_WIDTH, max_burst=MAX_BURST, n_ids=2)
    h.drive(dut.i.valid)
    h.drive(dut.i.payload)
    h.drive(dut.o.ready)
    base, limit = h.constant(64, "base"), h.constant(64, "limit")
    m.d.comb += [dut.window_base.eq(base), dut.window_limit.eq(limit)]
    h.assume(dut.i.p.addr[:2] == 0)
    h.assume(same_block(dut.i.p.addr, dut.i.p.length + 1, MAX_BURST, 4))
    taken = dut.i.valid & dut.i.ready
    sent = dut.o.valid & dut.o.ready

    entered = Signal()
    last = Signal.like(dut.i.payload)
    with m.If(taken):
        m.d.sync += [entered.eq(1), last.eq(dut.i.payload)]
    with m.Elif(sent):
        m.d.sync += entered.eq(0)
    fits = inside(last.addr, last.length, base, limit)
    h.check("inside", ~dut.o.valid | inside(dut.o.p.addr, dut.o.p.length, base, limit))
    h.check("unchanged", ~dut.o.valid | (dut.o.payload.as_value() == last.as_value()))
    h.check("passes", ~(entered & fits & ~dut.fault) | dut.o.valid)
    h.check("not_made_up", ~dut.o.valid | entered)
    h.check("none_lost", ~(taken & entered) | sent | ~fits)
    was_outside = h.past(entered & ~fits, "was_outside")
    h.check("fault_when_outside", ~was_outside | dut.fault)
    h.check("fault_stays", ~h.past(dut.fault, "past_fault") | dut.fault)
    h.check("fault_with_cause", ~dut.fault | h.past(dut.fault | (entered & ~fits), "cause"))
    h.check("stopped", ~dut.fault | ~dut.o.valid)
    h.check("busy", dut.busy | ~(entered & fits))
    check_held(h, "o", dut.o.valid, dut.o.ready, dut.o.payload)
    h.cover("passed_then_fault", dut.fault & h.past(h.past(sent, "s1"), "s2"))
    return h


def reader_parts(h):
    """Add a small read master with free commands and a memory that answers what was asked."""
    m = h.m
    m.submodules.dut = dut = ReadMaster(
        data_width=DATA_WIDTH,
        tag_shape=2,
        n_ids=2,
        max_in_flight=2 * MAX_BURST,
        max_burst=MAX_BURST,
        max_commands=2,
    )
    axi = dut.axi
    h.hold(dut.cmd, "cmd")
    for port in (dut.o.ready, axi.arready, axi.rid, axi.rdata, axi.rresp, axi.rlast, axi.rvalid):
        h.drive(port)
    base, limit = h.constant(64, "base"), h.constant(64, "limit")
    m.d.comb += [dut.window_base.eq(base), dut.window_limit.eq(limit)]
    asked = axi.arvalid & axi.arready
    came = axi.rvalid & axi.rready
    due = []
    for index in range(2):
        count = Signal(6, name=f"due_{index}")
        m.d.sync += count.eq(
            count + Mux(asked & (axi.arid == index), axi.arlen + 1, 0) - (came & (axi.rid == index))
        )
        h.assume(~(axi.rvalid & (axi.rid == index)) | (count != 0))
        due.append(count)
    return dut, asked, came, due, base, limit


def check_requests(h, dut, valid, ready, addr, length, base, limit, burst_bits):
    """Check AR or AW, and invariants of the splitter and the guard before it."""
    h.check("inside", ~valid | inside(addr, length, base, limit))
    h.check("in_block", ~valid | same_block(addr, length + 1, MAX_BURST, 4))
    h.check("in_page", ~valid | same_block(addr, length + 1, PAGE_BYTES, 4))
    h.check("aligned", ~valid | (addr[:WORD_BITS] == 0))
    rising = valid & h.past(~valid | ready, "past_free")
    h.check("none_after_fault", ~h.past(dut.fault, "past_fault") | ~rising)
    h.check("fault_stays", ~h.past(dut.fault, "past_fault_1") | dut.fault)
    burst_valid = h.inside("dut.guard.valid", 1)
    burst = h.inside("dut.guard.burst", burst_bits)
    splitter_valid = h.inside("dut.splitter.active", 1)
    splitter_word = h.inside("dut.splitter.word", 64 - WORD_BITS)
    splitter_left = h.inside("dut.splitter.left", 20)
    h.check("split_not_empty", ~splitter_valid | (splitter_left != 0))
    guard_in_block = same_block(burst[:64], burst[64:72] + 1, MAX_BURST, 4)
    h.check("guard_in_block", ~burst_valid | ((burst[:WORD_BITS] == 0) & guard_in_block))
    guard_inside = inside(burst[:64], burst[64:72], base, limit)
    stopped = dut.fault | (burst_valid & ~guard_inside)
    return stopped, [
        (valid, addr, length + 1),
        (burst_valid, burst[:64], burst[64:72] + 1),
        (splitter_valid, Cat(Const(0, WORD_BITS), splitter_word), splitter_left),
    ]


def slice_inside(h, path, width):
    """Return (valid, payload) of the places of the register slice at ``path``, the older first."""
    return [
        (h.inside(f"{path}.o__valid", 1), h.inside(f"{path}.head", width)),
        (h.inside(f"{path}.spare_valid", 1), h.inside(f"{path}.spare", width)),
    ]


def reader_requests():
    """AR: held, in the window, in one block, of whole commands in order, bounded; any command."""
    h = Harness()
    dut, asked, _, due, base, limit = reader_parts(h)
    axi = dut.axi
    check_held(h, "ar", axi.arvalid, axi.arready, Cat(axi.araddr, axi.arlen, axi.arid))
    stopped, stages = check_requests(
        h, dut, axi.arvalid, axi.arready, axi.araddr, axi.arlen, base, limit, 73
    )
    (head_burst_valid, _), (spare_burst_valid, _) = places = slice_inside(h, "dut.bursts", 73)
    h.check("slice_in_order", head_burst_valid | ~spare_burst_valid)
    for index, (valid, burst) in enumerate(places):
        addr, beats = burst[:64], burst[64:72] + 1
        in_block = same_block(addr, beats, MAX_BURST, 4)
        h.check(f"slice_in_block_{index}", ~valid | ((addr[:WORD_BITS] == 0) & in_block))
        stages.insert(2 + index, (valid, addr, beats))
    check_cover(
        h,
        taken=dut.cmd.valid & dut.cmd.ready,
        cmd=dut.cmd.p,
        valid=axi.arvalid,
        sent=asked,
        addr=axi.araddr,
        beats=axi.arlen + 1,
        stages=stages,
        stopped=stopped,
    )
    requested = [Mux(valid, beats, 0) for valid, _, beats in stages[:2]]
    held = sum(valid for valid, _ in slice_inside(h, "dut.beats", BEAT_BITS))
    room = h.inside("dut.room", 4)
    h.check("in_flight", due[0] + due[1] <= 8)
    h.check("room", room + sum(requested) + due[0] + due[1] + held <= 8)
    h.cover("fault", dut.fault & (due[0] != 0))
    return h


def reader_beats():
    """Beats of R leave as they came; each belongs to a command; memory answers what was asked."""
    h = Harness()
    m = h.m
    dut, _, came, due, _, _ = reader_parts(h)
    axi, o = dut.axi, dut.o
    sent = o.valid & o.ready

    (head_valid, head), (spare_valid, spare) = slice_inside(h, "dut.beats", BEAT_BITS)
    beats = check_queue(
        h,
        "beats",
        written=came,
        w_data=Cat(axi.rdata, axi.rid, axi.rresp != Response.OKAY),
        read=sent,
        r_data=Cat(o.p.data, o.p.id, o.p.bad),
        capacity=2,
        words=(head, spare),
    )
    h.check("beats_offered", o.valid == (beats != 0))
    h.check("beats_places", (beats == head_valid + spare_valid) & (head_valid | ~spare_valid))

    # Invariant: words of an ID that are still to be delivered are at least those on their way: in
    # the splitter, its slice, the guard, on AR, in the memory, in the beats' slice.
    places = slice_inside(h, "dut.bursts", 73)
    burst_valid, burst = h.inside("dut.guard.valid", 1), h.inside("dut.guard.burst", 73)
    splitter_valid, split_id = h.inside("dut.splitter.active", 1), h.inside("dut.split_id", 1)
    splitter_left = h.inside("dut.splitter.left", 20)
    for index in range(2):
        level, words = check_fifo_inside(
            h, f"queue_{index}", f"dut.queue_{index}", width=ENTRY_BITS, depth=2
        )
        done = h.inside(f"dut.number_{index}", BEATS_BITS)
        last_beats = [word[64 : 64 + BEATS_BITS] for word in words]
        h.check(f"none_done_{index}", (level != 0) | (done == 0))
        h.check(f"done_below_{index}", (level == 0) | (done <= last_beats[0]))
        left, way = Signal(22, name=f"left_{index}"), Signal(22, name=f"way_{index}")
        first = (last_beats[0] - done)[:BEATS_BITS] + 1
        m.d.comb += left.eq(Mux(level > 0, first, 0) + Mux(level > 1, last_beats[1] + 1, 0))
        requested = (
            Mux(burst_valid & (burst[72] == index), burst[64:72] + 1, 0)
            + Mux(axi.arvalid & (axi.arid == index), axi.arlen + 1, 0)
            + due[index]
        )
        arrived = (head_valid & (head[32] == index)) + (spare_valid & (spare[32] == index))
        split = Mux(splitter_valid & (split_id == index), splitter_left, 0)
        for valid, waiting in places:
            split += Mux(valid & (waiting[72] == index), waiting[64:72] + 1, 0)
        m.d.comb += way.eq(split + (requested + arrived))
        h.check(f"words_left_{index}", left >= way)
    h.check("split_not_empty", ~splitter_valid | (splitter_left != 0))
    h.check("slice_in_order", places[0][0] | ~places[1][0])
    room = h.inside("dut.room", 4)
    asked = Mux(burst_valid, burst[64:72] + 1, 0) + Mux(axi.arvalid, axi.arlen + 1, 0)
    h.check("room", room + asked + due[0] + due[1] + beats <= 8)
    h.cover("both_places", (beats == 2) & (head[32] != spare[32]))
    return h


def reader_commands():
    """Beats of each command are numbered in order, with its tag, its addresses and its last.

    A command of 0 beats has none: it leaves no trace in those of others.
    """
    h = Harness()
    m = h.m
    dut, _, _, _, _, _ = reader_parts(h)
    o = dut.o
    taken = dut.cmd.valid & dut.cmd.ready
    sent = o.valid & o.ready
    check_held(h, "o", o.valid, o.ready, o.payload)

    # One command of either ID: `ahead` commands of its ID have beats to be delivered before it.
    pick, chosen = h.free(1, "pick"), h.constant(1, "chosen")
    picked = Signal()
    count = Signal(2)  # commands of the chosen ID
    ahead = Signal(2)
    number = Signal(BEATS_BITS)
    kept = Signal.like(dut.cmd.payload)
    enters = taken & (dut.cmd.p.id == chosen) & (dut.cmd.p.n_beats != 0)
    of_chosen = sent & (o.p.id == chosen)
    leaves = of_chosen & o.p.last
    m.d.sync += count.eq(count + enters - leaves)
    with m.If(picked):
        with m.If(ahead == 0):
            m.d.sync += [number.eq(number + of_chosen), picked.eq(~leaves)]
        with m.Else():
            m.d.sync += ahead.eq(ahead - leaves)
    with m.Elif(enters & pick):
        m.d.sync += [
            picked.eq(1),
            ahead.eq(count - leaves),
            number.eq(0),
            kept.eq(dut.cmd.payload),
        ]
    own = picked & (ahead == 0) & o.valid & (o.p.id == chosen)
    word = Signal(64 - WORD_BITS)
    m.d.comb += word.eq(kept.addr[WORD_BITS:] + number)
    h.check("own_last", ~own | (o.p.last == (number == kept.n_beats - 1)))
    h.check("own_number", ~own | (o.p.beat == number))
    h.check("own_tag", ~own | (o.p.tag == kept.tag))
    h.check("own_address", ~own | (o.p.addr == Cat(kept.addr[:WORD_BITS], word)))
    h.check("commands_bounded", count <= 2)
    h.check("busy", dut.busy | (count == 0))

    # Invariants: where the picked command is, and how far its ID has come.
    h.check("own_inside", ~picked | (ahead < count))
    h.check("own_not_empty", ~picked | (kept.n_beats != 0))
    h.check("own_not_begun", ~picked | (ahead == 0) | (number == 0))
    entry = Cat(kept.addr, (kept.n_beats - 1)[:BEATS_BITS], kept.tag)
    for index in range(2):
        level, words = check_fifo_inside(
            h, f"queue_{index}", f"dut.queue_{index}", width=ENTRY_BITS, depth=2
        )
        done = h.inside(f"dut.number_{index}", BEATS_BITS)
        ours = chosen == index
        h.check(f"count_{index}", ~ours | (count == level))
        for place, stored in enumerate(words):
            at = picked & ours & (ahead == place)
            h.check(f"entry_{index}_{place}", ~at | (stored == entry))
        h.check(f"done_{index}", ~(picked & ours & (ahead == 0)) | (done == number))
        h.check(f"none_done_{index}", (level != 0) | (done == 0))
    h.cover("second_beat", own & (number == 1))
    return h


def writer():
    """AW as AR of the reader; W and B agree with AW in order, length and number."""
    h = Harness()
    m = h.m
    m.submodules.dut = dut = WriteMaster(
        data_width=DATA_WIDTH, max_burst=MAX_BURST, max_bursts=MAX_BURSTS
    )
    axi = dut.axi
    h.hold(dut.cmd, "cmd")
    h.hold(dut.i, "i")
    for port in (axi.awready, axi.wready, axi.bid, axi.bresp, axi.bvalid, dut.clear):
        h.drive(port)
    base, limit = h.constant(64, "base"), h.constant(64, "limit")
    m.d.comb += [dut.window_base.eq(base), dut.window_limit.eq(limit)]
    asked = axi.awvalid & axi.awready
    sent = axi.wvalid & axi.wready
    ended = sent & axi.wlast
    answered = axi.bvalid & axi.bready

    # A response comes when the burst's address and its last beat have been taken.
    asked_count, ended_count = Signal(4), Signal(4)
    m.d.sync += [
        asked_count.eq(asked_count + asked - answered),
        ended_count.eq(ended_count + ended - answered),
    ]
    h.assume(~axi.bvalid | ((asked_count != 0) & (ended_count != 0)))

    check_held(h, "aw", axi.awvalid, axi.awready, Cat(axi.awaddr, axi.awlen))
    check_held(h, "w", axi.wvalid, axi.wready, Cat(axi.wdata, axi.wstrb, axi.wlast))
    stopped, stages = check_requests(
        h, dut, axi.awvalid, axi.awready, axi.awaddr, axi.awlen, base, limit, 72
    )
    words_inside = check_cover(
        h,
        taken=dut.cmd.valid & dut.cmd.ready,
        cmd=dut.cmd.p,
        valid=axi.awvalid,
        sent=asked,
        addr=axi.awaddr,
        beats=axi.awlen + 1,
        stages=stages,
        stopped=stopped,
    )
    taken = dut.i.valid & dut.i.ready
    h.check("beat_is_sent", taken == sent)
    h.check("beat_unchanged", ~sent | (Cat(axi.wdata, axi.wstrb) == dut.i.payload.as_value()))
    h.check("response_taken", ~axi.bvalid | axi.bready)

    # Bursts from the cycle in which AWVALID rises, to their last beat and to their response.
    starts = axi.awvalid & h.past(~axi.awvalid | axi.awready, "aw_free")
    to_send, to_answer = Signal(4), Signal(4)
    m.d.sync += [
        to_send.eq(to_send + starts - ended),
        to_answer.eq(to_answer + starts - answered),
    ]
    h.check("bursts_bounded", to_answer + starts <= MAX_BURSTS)
    h.check("beat_of_burst", ~axi.wvalid | (to_send != 0) | starts)
    h.check("busy", dut.busy | ((to_answer + starts == 0) & (words_inside == 0)))

    pick = h.free(1, "pick_burst")
    kept_len, kept_addr = Signal(8), Signal(64)
    send, sends_ahead, number = Signal(), Signal(4), Signal(9)
    answer, answers_ahead = Signal(), Signal(4)
    with m.If(send):
        with m.If(sends_ahead == 0):
            m.d.sync += [number.eq(number + sent), send.eq(~ended)]
        with m.Else():
            m.d.sync += sends_ahead.eq(sends_ahead - ended)
    with m.If(answer):
        with m.If(answers_ahead == 0):
            m.d.sync += answer.eq(~answered)
        with m.Else():
            m.d.sync += answers_ahead.eq(answers_ahead - answered)
    with m.Elif(starts & pick):
        m.d.sync += [
            send.eq(1),
            sends_ahead.eq(to_send - ended),
            number.eq(0),
            answer.eq(1),
            answers_ahead.eq(to_answer - answered),
            kept_len.eq(axi.awlen),
            kept_addr.eq(axi.awaddr),
        ]
    own = send & (sends_ahead == 0) & axi.wvalid
    h.check("last_agrees_with_length", ~own | (axi.wlast == (number == kept_len)))
    h.check("sent_before_answered", ~send | answer)
    own_bad = answer & (answers_ahead == 0) & answered & (axi.bresp != Response.OKAY)
    first_bad = own_bad & (~dut.error | dut.clear)
    was_first = h.past(first_bad, "was_first")
    h.check("error_address", ~was_first | (dut.error_addr == h.past(kept_addr, "past_addr")))
    bad = answered & (axi.bresp != Response.OKAY)
    expected = bad | (dut.error & ~dut.clear)
    was_expected = Signal()
    m.d.sync += was_expected.eq(expected)
    h.check("error", dut.error == was_expected)

    # Invariants: the two queues and the burst whose beats are being sent.
    length_level, lengths = check_fifo_inside(
        h, "lengths", "dut.lengths", width=8, depth=MAX_BURSTS
    )
    addr_level, addrs = check_fifo_inside(
        h, "addrs", "dut.words", width=64 - WORD_BITS, depth=MAX_BURSTS
    )
    is_open, left = h.inside("dut.open_burst", 1), h.inside("dut.left", 8)
    h.check("to_send", to_send + starts == length_level + is_open)
    h.check("to_answer", to_answer + starts == addr_level)
    h.check("asked", addr_level == asked_count + axi.awvalid)
    h.check("ended", addr_level == ended_count + length_level + is_open)
    opened = send & (sends_ahead == 0) & is_open
    h.check("open_length", ~opened | (left == (kept_len - number)[:8]))
    h.check("number_in_burst", ~send | (number <= kept_len))
    h.check("not_begun", ~send | opened | (number == 0))
    h.check("own_to_send", ~send | (sends_ahead < to_send))
    h.check("own_to_answer", ~answer | (answers_ahead < to_answer))
    h.check("sent_behind_answered", ~send | (answers_ahead == sends_ahead + ended_count))
    h.check("own_addr_aligned", ~answer | (kept_addr[:WORD_BITS] == 0))
    h.check("last_started", ~starts | (length_level != 0))
    for index, (length, addr) in enumerate(zip(lengths, addrs, strict=True)):
        place = send & (sends_ahead == index + is_open)
        h.check(f"length_{index}", ~place | (length == kept_len))
        newest = starts & (length_level == index + 1)
        h.check(f"new_length_{index}", ~newest | (length == axi.awlen))
        place = answer & (answers_ahead == index)
        h.check(f"addr_{index}", ~place | (addr == kept_addr[WORD_BITS:]))
        newest = starts & (addr_level == index + 1)
        h.check(f"new_addr_{index}", ~newest | (addr == axi.awaddr[WORD_BITS:]))
    h.cover("second_burst_ends", own & axi.wlast & (kept_len == 1) & (sends_ahead == 0))
    h.cover("error_of_picked", dut.error & ~dut.fault)
    return h


PROOFS = [
    Proof(
        name="burst_splitter",
        build=splitter,
        engine="induction",
        depth=2,
        bugs=(
            Bug(
                name="boundary_of_double_size",
                owner=BurstSplitter,
                old="to_boundary.eq(burst_beats - word[:low_bits])",
                new="to_boundary.eq(burst_beats - word[1:low_bits])",
                caught_by="in_block",
            ),
            Bug(
                name="command_over_one_word_early",
                owner=BurstSplitter,
                old="final.eq(left <= to_boundary)",
                new="final.eq(left <= to_boundary + 1)",
                caught_by="length",
            ),
            Bug(
                name="next_block_keeps_low_bits",
                owner=BurstSplitter,
                old="word.eq(Cat(Const(0, low_bits), word[low_bits:] + 1))",
                new="word.eq(Cat(word[:low_bits], word[low_bits:] + 1))",
                caught_by="address",
            ),
            Bug(
                name="empty_command_kept",
                owner=BurstSplitter,
                old="self.i.valid & (self.i.p.n_beats != 0)",
                new="self.i.valid",
                caught_by="length",
            ),
            Bug(
                name="moves_without_ready",
                owner=BurstSplitter,
                old="with m.Elif(self.o.ready):",
                new="with m.Else():",
                caught_by="o_held",
            ),
        ),
    ),
    Proof(
        name="window_guard",
        build=guard,
        engine="induction",
        depth=2,
        bugs=(
            Bug(
                name="last_byte_one_word_low",
                owner=WindowGuard,
                old="Cat(~Const(0, word_bits)",
                new="Cat(Const(0, word_bits)",
                caught_by="inside",
            ),
            Bug(
                name="goes_on_after_fault",
                owner=WindowGuard,
                old="valid & inside & ~self.fault",
                new="valid & inside",
                caught_by="stopped",
            ),
            Bug(
                name="base_not_compared",
                owner=WindowGuard,
                old="(burst.addr >= self.window_base) & (last_byte",
                new="(last_byte",
                caught_by="inside",
            ),
        ),
    ),
    Proof(
        name="read_requests",
        build=reader_requests,
        engine="induction",
        depth=2,
        bugs=(
            Bug(
                name="more_in_flight",
                owner=ReadMaster,
                old="enough.eq(bursts.o.p.length < room)",
                new="enough.eq(1)",
                caught_by="in_flight",
            ),
            Bug(
                name="room_back_too_early",
                owner=ReadMaster,
                old="room + delivered - taken",
                new="room + (axi.arvalid & axi.arready) - taken",
                caught_by="in_flight",
            ),
            Bug(
                name="ar_moves",
                owner=ReadMaster,
                old="guard.o.ready.eq(~axi.arvalid | axi.arready)",
                new="guard.o.ready.eq(1)",
                caught_by="ar_held",
            ),
            Bug(
                name="window_limit_ignored",
                owner=WindowGuard,
                old=" & (last_byte <= self.window_limit)",
                new="",
                caught_by="inside",
            ),
            Bug(
                name="empty_command_is_split",
                owner=BurstSplitter,
                old="self.i.valid & (self.i.p.n_beats != 0)",
                new="self.i.valid",
                caught_by="split_not_empty",
            ),
            Bug(
                name="burst_left_out",
                owner=ReadMaster,
                old="guard.i.valid.eq(bursts.o.valid & enough)",
                new="guard.i.valid.eq(bursts.o.valid & enough & ~bursts.o.p.addr[4])",
                caught_by="bursts_at_next_word",
            ),
        ),
    ),
    Proof(
        name="read_beats",
        build=reader_beats,
        engine="induction",
        depth=1,
        bugs=(
            Bug(
                name="beat_lost_when_held",
                owner=ReadMaster,
                old="axi.rready.eq(beats.i.ready)",
                new="axi.rready.eq(1)",
                caught_by="beats_within_capacity",
            ),
            Bug(
                name="ids_mixed",
                owner=ReadMaster,
                old="beats.i.p.id.eq(axi.rid)",
                new="beats.i.p.id.eq(axi.rid & ~beats.o.valid)",
                caught_by="beats_in_order",
            ),
            Bug(
                name="spare_forgotten",
                owner=RegisterSlice,
                old="self.o.valid.eq(spare_valid | self.i.valid)",
                new="self.o.valid.eq(self.i.valid)",
                caught_by="beats_offered",
            ),
        ),
    ),
    Proof(
        name="read_commands",
        build=reader_commands,
        engine="induction",
        depth=1,
        bugs=(
            Bug(
                name="last_one_early",
                owner=ReadMaster,
                old="queued.last_beat.eq(cmd.n_beats - 1)",
                new="queued.last_beat.eq(Mux(cmd.n_beats == 2, 0, cmd.n_beats - 1))",
                caught_by="own_last",
            ),
            Bug(
                name="number_not_restarted",
                owner=ReadMaster,
                old="numbers[index].eq(Mux(last, 0, number + 1))",
                new="numbers[index].eq(number + 1)",
                caught_by="own_number",
            ),
            Bug(
                name="empty_command_queued",
                owner=ReadMaster,
                old="splitter.i.ready & some & is_id",
                new="splitter.i.ready & is_id",
                caught_by="own_tag",
            ),
            Bug(
                name="queue_left_with_every_beat",
                owner=ReadMaster,
                old="queue.r_en.eq(of_queue & last)",
                new="queue.r_en.eq(of_queue)",
                caught_by="own_address",
            ),
        ),
    ),
    Proof(
        name="write_master",
        build=writer,
        engine="induction",
        depth=2,
        bugs=(
            Bug(
                name="last_one_late",
                owner=WriteMaster,
                old="left.eq(lengths.r_data)]",
                new="left.eq(lengths.r_data + 1)]",
                caught_by="last_agrees_with_length",
            ),
            Bug(
                name="aw_moves",
                owner=WriteMaster,
                old="(~axi.awvalid | axi.awready) & words.w_rdy",
                new="words.w_rdy",
                caught_by="aw_held",
            ),
            Bug(
                name="unbounded",
                owner=WriteMaster,
                old="(~axi.awvalid | axi.awready) & words.w_rdy",
                new="(~axi.awvalid | axi.awready)",
                caught_by="bursts_bounded",
            ),
            Bug(
                name="empty_command_crosses_page",
                owner=BurstSplitter,
                old="self.i.valid & (self.i.p.n_beats != 0)",
                new="self.i.valid",
                caught_by="in_page",
            ),
            Bug(
                name="error_of_last",
                owner=WriteMaster,
                old="with m.If(bad & (~self.error | self.clear)):",
                new="with m.If(bad & ~self.error):",
                caught_by="error",
            ),
            Bug(
                name="error_address_of_newest",
                owner=WriteMaster,
                old="Cat(Const(0, word_bits), words.r_data)",
                new="axi.awaddr",
                caught_by="error_address",
            ),
            Bug(
                name="idle_before_response",
                owner=WriteMaster,
                old="splitter.o.valid | guard.busy | words.r_rdy",
                new="splitter.o.valid | guard.busy",
                caught_by="busy",
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
