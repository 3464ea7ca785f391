"""Proofs: the queues between components."""

import pytest
from amaranth.hdl import Mux, Signal
from amaranth.lib.fifo import SyncFIFO

from moska.hw.stream import Packer, RegisterSlice
from moska.sim.formal import (
    Bug,
    Harness,
    Proof,
    check_fifo_inside,
    check_held,
    check_queue,
)

pytestmark = pytest.mark.formal


def sync_fifo(depth):
    """Amaranth's SyncFIFO, which all queues of the unit are."""

    def build():
        h = Harness()
        h.m.submodules.dut = dut = SyncFIFO(width=4, depth=depth)
        h.drive(dut.w_en)
        h.drive(dut.w_data)
        h.drive(dut.r_en)
        _, words = check_fifo_inside(h, "inside", "dut", width=4, depth=depth)
        count = check_queue(
            h,
            "fifo",
            written=dut.w_en & dut.w_rdy,
            w_data=dut.w_data,
            read=dut.r_en & dut.r_rdy,
            r_data=dut.r_data,
            capacity=depth,
            words=words,
        )
        h.check("room", dut.w_rdy == (count != depth))
        h.check("words", dut.r_rdy == (count != 0))
        h.check("level", dut.level == count)
        h.cover("full", count == depth)
        return h

    return build


WIDTH = 3


def register_slice():
    """Payloads leave as they came and are held; what was offered or refused is of a register."""
    h = Harness()
    h.m.submodules.dut = dut = RegisterSlice(4)
    h.drive(dut.i.valid)
    h.drive(dut.i.payload)
    h.drive(dut.o.ready)
    count = check_queue(
        h,
        "slice",
        written=dut.i.valid & dut.i.ready,
        w_data=dut.i.payload,
        read=dut.o.valid & dut.o.ready,
        r_data=dut.o.payload,
        capacity=2,
        words=(h.inside("dut.head", 4), h.inside("dut.spare", 4)),
    )
    h.check("offered", dut.o.valid == (count != 0))
    h.check("room", dut.i.ready == (count != 2))
    check_held(h, "o", dut.o.valid, dut.o.ready, dut.o.payload)
    h.cover("full", count == 2)
    return h


def packer(ratio):
    """Follow a payload that any run may pick to its place in its word; the rest is zero."""

    def build():
        h = Harness()
        m = h.m
        m.submodules.dut = dut = Packer(width=WIDTH, ratio=ratio)
        h.drive(dut.i.valid)
        h.drive(dut.i.payload)
        h.drive(dut.o.ready)
        taken = dut.i.valid & dut.i.ready
        sent = dut.o.valid & dut.o.ready

        place = Signal(range(max(ratio, 2)))
        complete = dut.i.p.last | (place == ratio - 1)
        with m.If(taken):
            m.d.sync += place.eq(Mux(complete, 0, place + 1))
        waiting = Signal()
        with m.If(taken & complete):
            m.d.sync += waiting.eq(1)
        with m.Elif(sent):
            m.d.sync += waiting.eq(0)
        h.check("word_when_complete", dut.o.valid == waiting)
        h.check("no_word_lost", ~(taken & complete) | ~waiting | sent)
        h.check("taken_when_free", dut.i.ready | waiting)
        check_held(h, "o", dut.o.valid, dut.o.ready, dut.o.payload)

        # The picked payload: its word is open, then on `o`.
        pick = h.free(1, "pick")
        picked = Signal()
        closed = Signal()
        kept = Signal(WIDTH)
        kept_place = Signal(range(max(ratio, 2)))
        end = Signal(range(max(ratio, 2)))
        with m.If(taken & pick & ~picked):
            m.d.sync += [picked.eq(1), kept.eq(dut.i.p.data), kept_place.eq(place)]
        with m.If(taken & complete & ((pick & ~picked) | (picked & ~closed))):
            m.d.sync += [closed.eq(1), end.eq(place)]
        with m.If(closed & sent):
            m.d.sync += [picked.eq(0), closed.eq(0)]
        word = dut.o.payload
        h.check("picked_in_place", ~closed | (word.word_select(kept_place, WIDTH) == kept))
        for index in range(ratio):
            h.check(
                f"rest_is_zero_{index}",
                ~closed | (index <= end) | (word.word_select(index, WIDTH) == 0),
            )
        h.cover("early_last", closed & (end < ratio - 1) if ratio > 1 else closed)
        return h

    return build


PROOFS = [
    Proof(
        name="sync_fifo_4",
        build=sync_fifo(4),
        engine="induction",
        depth=2,
        bugs=(
            Bug(
                name="read_and_write_lose_a_level",
                owner=SyncFIFO,
                old="with m.If(do_read & ~do_write):",
                new="with m.If(do_read):",
                caught_by="level",
            ),
        ),
    ),
    Proof(name="sync_fifo_3", build=sync_fifo(3), engine="induction", depth=2),
    Proof(name="sync_fifo_16", build=sync_fifo(16), engine="induction", depth=2, reach=18),
    Proof(
        name="packer_4",
        build=packer(4),
        engine="pdr",
        bugs=(
            Bug(
                name="ready_while_word_waits",
                owner=Packer,
                old="self.i.ready.eq(~self.o.valid | self.o.ready)",
                new="self.i.ready.eq(1)",
                caught_by="no_word_lost",
            ),
            Bug(
                name="rest_not_cleared",
                owner=Packer,
                old="kept.eq(0), count.eq(0)",
                new="count.eq(0)",
                caught_by="rest_is_zero_2",
            ),
            Bug(
                name="old_bits_after_reset",
                owner=Packer,
                old="kept = Signal(self.width * self.ratio)",
                new="kept = Signal(self.width * self.ratio, reset_less=True)",
                caught_by="rest_is_zero_2",
            ),
            Bug(
                name="last_ignored",
                owner=Packer,
                old="complete.eq((count == self.ratio - 1) | self.i.payload.last)",
                new="complete.eq(count == self.ratio - 1)",
                caught_by="word_when_complete",
            ),
        ),
    ),
    Proof(name="packer_1", build=packer(1), engine="pdr"),
    Proof(
        name="register_slice",
        build=register_slice,
        engine="induction",
        depth=2,
        bugs=(
            Bug(
                name="spare_forgotten",
                owner=RegisterSlice,
                old="head.eq(Mux(spare_valid, spare, self.i.payload))",
                new="head.eq(self.i.payload)",
                caught_by="slice_in_order",
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
