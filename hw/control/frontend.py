"""Frontend: reads descriptors from the ring, checks them, hands on jobs."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import ALIGN
from moska.golden.layout import COMPLETION_BYTES, DESCRIPTOR_BYTES, Opcode
from moska.hw.control.check import DescriptorCheck, WindowCheck
from moska.hw.control.descriptor import ErrorCode, frontend_job_layout
from moska.hw.control.ring import Ring


class Frontend(wiring.Component):
    """Turn the entries of the ring into jobs, in order.

    For each entry: test that both rings lie in their windows, read the descriptor, check it, hold
    the job until it is taken. So one descriptor is read and checked ahead. After a fence, the next
    entry is read when all jobs are complete. When there is nothing else to do, ``cmd`` is valid
    ``latency`` cycles after a doorbell, and ``job`` at most ``job_latency`` cycles after
    ``loaded``.

    A descriptor that memory answers with an error becomes a job with the code READ; it is not
    looked at. Bits of the rings' addresses below ALIGN bytes are taken as 0.

    Parameters
    ----------
    head_dim, max_rows, max_chunks, buffer_tokens, bus_bytes, n_contexts : int

    Members
    -------
    enable : :py:`In(1)`
    ring_addr, completion_addr : :py:`In(64)`, ring_size : :py:`In(4)`
        constant while ``enable`` is 1 or a job is under way
    tail : :py:`In(16)`, tail_written : :py:`In(1)`
        doorbell: see :class:`moska.hw.control.ring.Ring`
    head, completed : :py:`Out(16)`
        descriptors read, completions written
    read_base, read_limit, write_base, write_limit : :py:`In(64)`
        windows: first and last byte
    cmd : :py:`Out(stream.Signature(StructLayout({"addr": 64, "n_beats": 20})))`
        read of a descriptor
    beat : In
        valid and data: its beats in order
    loaded : :py:`In(1)`
        pulse with its last beat or later
    bad : In
        valid and addr: pulse for a beat that came with an error, no later than ``loaded``
    job : :py:`Out(stream.Signature(frontend_job_layout()))`
    idle_jobs : :py:`In(1)`
        all jobs taken are complete
    completed_pulse : :py:`In(1)`
        a completion is written
    ring_error : Out
        valid, code and addr, a pulse: RING for a bad doorbell, with ``tail``; WINDOW for a ring
        outside its window, with the ring's address
    busy : :py:`Out(1)`
        a descriptor is to be read, being read, or checked, or its job waits to be taken

    """

    latency = 2 + 3 * (WindowCheck.latency + 1)
    job_latency = max(DescriptorCheck.max_latency, WindowCheck.latency) + 2

    def __init__(self, *, head_dim, max_rows, max_chunks, buffer_tokens, bus_bytes, n_contexts):
        self.head_dim = head_dim
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.buffer_tokens = buffer_tokens
        self.bus_bytes = bus_bytes
        self.n_contexts = n_contexts
        command = data.StructLayout({"addr": 64, "n_beats": 20})
        error = data.StructLayout({"valid": 1, "code": ErrorCode, "addr": 64})
        super().__init__(
            {
                "enable": In(1),
                "ring_addr": In(64),
                "completion_addr": In(64),
                "ring_size": In(4),
                "tail": In(16),
                "tail_written": In(1),
                "head": Out(16),
                "completed": Out(16),
                "read_base": In(64),
                "read_limit": In(64),
                "write_base": In(64),
                "write_limit": In(64),
                "cmd": Out(stream.Signature(command)),
                "beat": In(data.StructLayout({"valid": 1, "data": 8 * bus_bytes})),
                "loaded": In(1),
                "bad": In(data.StructLayout({"valid": 1, "addr": 64})),
                "job": Out(stream.Signature(frontend_job_layout())),
                "idle_jobs": In(1),
                "completed_pulse": In(1),
                "ring_error": Out(error),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        m.submodules.ring = ring = Ring()
        m.submodules.window = window = WindowCheck()
        m.submodules.check = check = DescriptorCheck(
            head_dim=self.head_dim,
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            buffer_tokens=self.buffer_tokens,
            bus_bytes=self.bus_bytes,
        )

        idle = Signal()
        m.d.comb += [
            ring.enable.eq(self.enable),
            ring.ring_size.eq(self.ring_size),
            ring.tail.eq(self.tail),
            ring.tail_written.eq(self.tail_written),
            ring.idle.eq(idle & self.idle_jobs),
            ring.completed_pulse.eq(self.completed_pulse),
            self.head.eq(ring.head),
            self.completed.eq(ring.completed),
            window.read_base.eq(self.read_base),
            window.read_limit.eq(self.read_limit),
            window.write_base.eq(self.write_base),
            window.write_limit.eq(self.write_limit),
            check.beat.eq(self.beat),
            check.request.ready.eq(window.request.ready),
            check.inside.eq(window.inside),
            check.last.eq(window.last),
        ]

        # Entries of both rings have the same size; the last one's last byte is `span` behind.
        entry_bits = exact_log2(DESCRIPTOR_BYTES)
        assert COMPLETION_BYTES == DESCRIPTOR_BYTES
        span, entry = Signal(22), Signal(22)
        align_bits = exact_log2(ALIGN)
        ring_addr, completion_addr = Signal(64), Signal(64)
        m.d.comb += [
            span.eq((DESCRIPTOR_BYTES << self.ring_size) - 1),
            entry.eq(ring.index << entry_bits),
            ring_addr.eq(Cat(Const(0, align_bits), self.ring_addr[align_bits:])),
            completion_addr.eq(Cat(Const(0, align_bits), self.completion_addr[align_bits:])),
        ]

        address = Signal(64)  # of the descriptor
        record = Signal(64)  # of its job's completion
        failed = Signal()  # memory answered with an error
        failed_addr = Signal(64)
        arrived = Signal()
        with m.If(self.bad.valid & ~failed):
            m.d.sync += [failed.eq(1), failed_addr.eq(self.bad.addr)]
        with m.If(self.loaded):
            m.d.sync += arrived.eq(1)
        m.d.comb += [
            check.address.eq(address),
            self.cmd.payload.addr.eq(address),
            self.cmd.payload.n_beats.eq(DESCRIPTOR_BYTES // self.bus_bytes),
            self.job.payload.descriptor.eq(check.descriptor),
            self.job.payload.rep_shift.eq(check.rep_shift),
            self.job.payload.sequence.eq(ring.sequence),
            self.job.payload.completion_addr.eq(record),
            self.job.payload.code.eq(Mux(failed, ErrorCode.READ, check.code)),
            self.job.payload.error_addr.eq(check.error_addr),
        ]

        # Without an error, the address is that of one that is known later: a time-out.
        with m.If(failed):
            m.d.comb += self.job.payload.error_addr.eq(failed_addr)
        with m.Elif(check.code == ErrorCode.NONE):
            m.d.comb += self.job.payload.error_addr.eq(address)

        # A doorbell that comes during the tests of the rings has them repeated.
        rung = Signal()
        outside = Signal()
        refused_addr = Signal(64)
        with m.If(ring.good):
            m.d.sync += rung.eq(1)
        m.d.comb += self.ring_error.valid.eq(ring.bad | outside)
        with m.If(ring.bad):
            m.d.comb += [
                self.ring_error.code.eq(ErrorCode.RING),
                self.ring_error.addr.eq(self.tail),
            ]
        with m.Else():
            m.d.comb += [
                self.ring_error.code.eq(ErrorCode.WINDOW),
                self.ring_error.addr.eq(refused_addr),
            ]

        request = window.request
        m.d.comb += [
            self.busy.eq(~idle | ring.wanted),
            request.valid.eq(check.request.valid),
            request.payload.eq(check.request.payload),
        ]

        def ask(addr, extent, *, written=0):
            m.d.comb += [
                request.valid.eq(1),
                request.payload.addr.eq(addr),
                request.payload.extent.eq(extent),
                request.payload.written.eq(written),
            ]

        with m.FSM(name="frontend"):
            with m.State("IDLE"):
                m.d.comb += idle.eq(1)
                m.d.sync += rung.eq(0)
                with m.If(ring.wanted):
                    m.next = "RING"
            with m.State("RING"):
                ask(ring_addr, span)
                m.d.sync += refused_addr.eq(ring_addr)
                with m.If(request.ready):
                    m.next = "REFUSE"
                    with m.If(window.inside):
                        m.next = "COMPLETIONS"
            with m.State("COMPLETIONS"):
                ask(completion_addr, span, written=1)
                m.d.sync += refused_addr.eq(completion_addr)
                with m.If(request.ready):
                    m.next = "REFUSE"
                    with m.If(window.inside):
                        m.next = "ENTRY"
            with m.State("REFUSE"):
                # A bad doorbell has its pulse first.
                with m.If(rung | ring.good):
                    m.next = "IDLE"
                with m.Elif(~ring.bad):
                    m.d.comb += [outside.eq(1), ring.refused.eq(1)]
                    m.next = "IDLE"
            with m.State("ENTRY"):
                ask(ring_addr, entry)
                m.d.sync += [failed.eq(0), arrived.eq(0)]
                with m.If(request.ready):
                    m.d.sync += address.eq(window.last)
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += self.cmd.valid.eq(1)
                with m.If(self.cmd.ready):
                    m.next = "RECORD"
            with m.State("RECORD"):
                ask(completion_addr, entry)
                with m.If(request.ready):
                    m.d.sync += record.eq(window.last)
                    m.next = "LOAD"
            with m.State("LOAD"):
                with m.If(arrived):
                    m.d.comb += [ring.fetched.eq(1), check.start.eq(~failed)]
                    m.next = "CHECK"
                    with m.If(failed):
                        m.next = "HAND_ON"
            with m.State("CHECK"):
                with m.If(check.done):
                    m.next = "HAND_ON"
            with m.State("HAND_ON"):
                m.d.comb += self.job.valid.eq(1)
                with m.If(self.job.ready):
                    m.next = "IDLE"
                    with m.If(
                        (check.descriptor.opcode == Opcode.FENCE)
                        & (self.job.payload.code == ErrorCode.NONE)
                    ):
                        m.next = "FENCE"
            with m.State("FENCE"):
                m.d.comb += self.busy.eq(0)
                with m.If(ring.drained & self.idle_jobs):
                    m.next = "IDLE"

        return m
