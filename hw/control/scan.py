"""Chunk scan: finds the chunks of a job that are read, ahead of their reads."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from moska.golden.formats import MAX_TOKENS
from moska.hw.delay import delay_line

AHEAD = 8  # found chunks that wait for their reads


def scan_job_layout():
    """Struct of a job's chunks; ``every``: all of them are read, whatever rows selected."""
    return data.StructLayout(
        {
            "n_chunks": range(MAX_TOKENS + 1),
            "chunk_tokens": range(MAX_TOKENS + 1),
            "every": 1,
        }
    )


def scan_layout():
    """Struct of a chunk to read and its first token; ``none``: the job has no chunk to read."""
    return data.StructLayout(
        {"chunk": range(MAX_TOKENS), "token": range(MAX_TOKENS), "last": 1, "none": 1}
    )


class ChunkScan(wiring.Component):
    """List the wanted chunks of a job in ascending order; mark the last one.

    One chunk is examined a cycle, while fewer than AHEAD are found and not taken. A chunk is given
    out when the next one is found or the scan is at its end, so that ``last`` is known. The first
    one comes ``latency`` cycles after ``start`` when it and the next one are wanted, or when the
    job has but one. A job without wanted chunks gives one item with ``none`` and ``last``.

    Parameters
    ----------
    max_chunks : int
        chunks that ``wanted_chunk`` can name

    Members
    -------
    start : :py:`In(stream.Signature(scan_job_layout()))`
        ``n_chunks`` at least 1; ready when the last item of the job before is in the queue
    wanted_chunk : :py:`Out(range(max_chunks))`
    wanted : :py:`In(1)`
        whether the chunk that ``wanted_chunk`` named ``wanted_latency`` cycles before is wanted
    stop : :py:`In(1)`
        examine no further chunk: the chunk found last becomes the last one
    o : :py:`Out(stream.Signature(scan_layout()))`
    read, skipped : :py:`Out(1)`
        pulses: a chunk was found, passed over

    """

    latency = 5
    wanted_latency = 2

    def __init__(self, *, max_chunks):
        if max_chunks < 2:
            raise ValueError(f"max_chunks must be at least 2, not {max_chunks!r}")
        self.max_chunks = max_chunks
        super().__init__(
            {
                "start": In(stream.Signature(scan_job_layout())),
                "wanted_chunk": Out(range(max_chunks)),
                "wanted": In(1),
                "stop": In(1),
                "o": Out(stream.Signature(scan_layout())),
                "read": Out(1),
                "skipped": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        shape = self.o.payload.shape()
        m.submodules.queue = queue = SyncFIFO(width=shape.size, depth=AHEAD)

        # Examining: the chunk that is named in this cycle.
        job = Signal(self.start.payload.shape(), reset_less=True)
        scanning = Signal()  # a job's last item is not in the queue
        naming = Signal()  # chunks are left to name
        left = Signal(range(MAX_TOKENS + 1), reset_less=True)  # chunks to name, with this one
        chunk = Signal(range(MAX_TOKENS), reset_less=True)
        token = Signal(range(MAX_TOKENS), reset_less=True)
        named = Signal()
        # Every chunk that is named, in this cycle and the two before, may add an item.
        m.d.comb += [
            named.eq(naming & ~self.stop & (queue.level <= AHEAD - self.wanted_latency - 1)),
            self.wanted_chunk.eq(chunk[: len(self.wanted_chunk)]),
            self.start.ready.eq(~scanning),
        ]
        with m.If(named):
            m.d.sync += [
                left.eq(left - 1),
                chunk.eq(chunk + 1),
                token.eq(token + job.chunk_tokens),
            ]
        with m.If(self.stop | (named & (left == 1))):
            m.d.sync += naming.eq(0)

        _, named_s1, named_s2 = delay_line(m, named, 2, name="named", reset_less=False)
        chunk_s2 = delay_line(m, chunk, 2, name="chunk")[-1]
        token_s2 = delay_line(m, token, 2, name="token")[-1]

        # Found, and held until it is known whether another one follows.
        held = Signal()
        item = Signal(shape)
        ending = Signal()
        m.d.comb += [
            self.read.eq(named_s2 & (job.every | self.wanted)),
            self.skipped.eq(named_s2 & ~self.read),
            ending.eq(scanning & ~naming & ~named_s1 & ~named_s2),
            item.last.eq(ending),
            item.none.eq(~held),
            queue.w_data.eq(item),
            queue.w_en.eq(Mux(ending, 1, self.read & held)),
            self.o.valid.eq(queue.r_rdy),
            self.o.payload.eq(queue.r_data),
            queue.r_en.eq(self.o.ready),
        ]
        held_chunk = Signal(chunk.shape(), reset_less=True)
        held_token = Signal(token.shape(), reset_less=True)
        m.d.comb += [item.chunk.eq(held_chunk), item.token.eq(held_token)]
        with m.If(self.read):
            m.d.sync += [held.eq(1), held_chunk.eq(chunk_s2), held_token.eq(token_s2)]
        with m.If(ending & queue.w_rdy):
            m.d.sync += [scanning.eq(0), held.eq(0)]
        with m.If(self.start.valid & self.start.ready):
            m.d.sync += [
                job.eq(self.start.payload),
                scanning.eq(1),
                naming.eq(1),
                left.eq(self.start.payload.n_chunks),
                chunk.eq(0),
                token.eq(0),
            ]

        return m
