"""Checksum check: CRCs of chunks against the records that memory holds."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from moska.hw.control.load import crc_layout, expected_layout
from moska.hw.memory.crc import CRC_BITS


class ChecksumCheck(wiring.Component):
    """Compare the CRCs of each chunk with its record, in the order of the chunks.

    The four inputs bring one pulse for each checked chunk, all in the same order, but each at its
    own time. ``error`` is a pulse for each chunk of which one CRC or more differs; it comes
    ``latency`` cycles after the last of the chunk's four pulses when the chunks before are
    compared, one chunk a cycle.

    Storage: 4 queues of ``depth`` entries, 3 of 32 bits and one of 160 and a context, read without
    a clock. Nothing holds an input back: it may have pulses of ``depth`` chunks inside, where a
    chunk counts until the second cycle after its last pulse.

    Parameters
    ----------
    depth : int
        chunks
    n_contexts : int

    Members
    -------
    keys_crc, values_crc, scales_crc : :py:`In(crc_layout(n_contexts))`
        pulses; the context is taken from the record
    expected : :py:`In(expected_layout(n_contexts))`
        pulse
    error : :py:`Out(StructLayout({"valid": 1, "context": range(n_contexts), "addr": 64}))`
        pulse; ``addr`` is that of the chunk's record

    """

    latency = 2

    def __init__(self, *, depth, n_contexts):
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth!r}")
        self.depth = depth
        self.n_contexts = n_contexts
        super().__init__(
            {
                "keys_crc": In(crc_layout(n_contexts)),
                "values_crc": In(crc_layout(n_contexts)),
                "scales_crc": In(crc_layout(n_contexts)),
                "expected": In(expected_layout(n_contexts)),
                "error": Out(
                    data.StructLayout({"valid": 1, "context": range(n_contexts), "addr": 64})
                ),
            }
        )

    def elaborate(self, platform):
        m = Module()

        entry = data.StructLayout(
            {
                "keys": CRC_BITS,
                "values": CRC_BITS,
                "scales": CRC_BITS,
                "addr": 64,
                "context": range(self.n_contexts),
            }
        )
        m.submodules.records = records = SyncFIFO(width=entry.size, depth=self.depth)
        written = Signal(entry)
        record = data.View(entry, records.r_data)
        m.d.comb += [
            *(written[name].eq(self.expected[name]) for name in entry.members),
            records.w_data.eq(written),
            records.w_en.eq(self.expected.valid),
        ]

        ready = [records.r_rdy]
        different = []
        compare = Signal()
        for name in ("keys", "values", "scales"):
            crc = getattr(self, f"{name}_crc")
            queue = SyncFIFO(width=CRC_BITS, depth=self.depth)
            m.submodules[name] = queue
            m.d.comb += [
                queue.w_data.eq(crc.crc),
                queue.w_en.eq(crc.valid),
                queue.r_en.eq(compare),
            ]
            ready.append(queue.r_rdy)
            different.append(queue.r_data != record[name])
        m.d.comb += [compare.eq(Cat(ready).all()), records.r_en.eq(compare)]

        valid = Signal()
        failed = Signal(data.StructLayout({"context": range(self.n_contexts), "addr": 64}))
        m.d.sync += [
            valid.eq(compare & Cat(different).any()),
            failed.context.eq(record.context),
            failed.addr.eq(record.addr),
        ]
        m.d.comb += [
            self.error.valid.eq(valid),
            self.error.context.eq(failed.context),
            self.error.addr.eq(failed.addr),
        ]

        return m
