"""Proofs: the AXI4-Lite register file, with one register of each kind."""

import pytest
from amaranth.hdl import Cat, Mux, Signal, Value

from moska.hw.memory.axi import Response
from moska.hw.registers import Field, Kind, Register, RegisterFile, RegisterMap
from moska.sim.formal import Bug, Harness, Proof, check_held

pytestmark = pytest.mark.formal

ID = 0x5EED1234
WAIT = 3  # cycles from a complete request to its response, at most


def field(name, lsb, width, kind, reset=0, **options):
    return Field(name=name, desc=name, lsb=lsb, width=width, reset=reset, kind=kind, **options)


MAP = RegisterMap(
    name="small",
    desc="One field of each kind.",
    registers=(
        Register("id", "id", 0x0, "", (field("value", 0, 32, Kind.CONSTANT, reset=ID),)),
        Register("state", "state", 0x4, "", (field("value", 4, 8, Kind.INPUT),)),
        Register(
            "setting",
            "setting",
            0x8,
            "",
            (
                field("value", 4, 12, Kind.STORAGE, notifies=True),
                field("locked", 20, 4, Kind.STORAGE, lock="control.lock"),
            ),
        ),
        Register(
            "control",
            "control",
            0x10,
            "",
            (
                field("start", 0, 1, Kind.PULSE),
                field("done", 1, 1, Kind.STICKY),
                field("lock", 9, 1, Kind.SET_ONCE),
            ),
        ),
    ),
    groups=(),
)


def registers():
    """Every request has one response, and every write one effect, in the cycle of its response."""
    h = Harness()
    m = h.m
    m.submodules.dut = dut = RegisterFile(MAP)
    axil, f = dut.axil, dut.f
    for channel, payload in (
        ("aw", axil.awaddr),
        ("w", Cat(axil.wdata, axil.wstrb)),
        ("ar", axil.araddr),
    ):
        valid, ready = getattr(axil, f"{channel}valid"), getattr(axil, f"{channel}ready")
        h.drive(valid)
        waited = h.past(valid & ~ready, f"{channel}_waited")
        same = payload == h.past(payload, f"{channel}_past")
        h.assume(~waited | (valid & same))
    for port in (
        axil.awaddr,
        axil.awprot,
        axil.wdata,
        axil.wstrb,
        axil.araddr,
        axil.arprot,
        axil.bready,
        axil.rready,
        f["state"],
        f["control.done.set"],
    ):
        h.drive(port)

    aw = axil.awvalid & axil.awready
    w = axil.wvalid & axil.wready
    b = axil.bvalid & axil.bready
    ar = axil.arvalid & axil.arready
    r = axil.rvalid & axil.rready
    check_held(h, "b", axil.bvalid, axil.bready, axil.bresp)
    check_held(h, "r", axil.rvalid, axil.rready, Cat(axil.rdata, axil.rresp))

    # Requests without a response, of each channel; a response may not come in their cycle.
    aw_count, w_count, ar_count = Signal(3), Signal(3), Signal(3)
    m.d.sync += [
        aw_count.eq(aw_count + aw - b),
        w_count.eq(w_count + w - b),
        ar_count.eq(ar_count + ar - r),
    ]
    h.check("b_has_request", ~axil.bvalid | ((aw_count != 0) & (w_count != 0)))
    h.check("r_has_request", ~axil.rvalid | (ar_count != 0))
    h.check("requests_bounded", (aw_count <= 2) & (w_count <= 2) & (ar_count <= 1))
    b_wait, r_wait = Signal(3), Signal(3)
    b_due = (aw_count != 0) & (w_count != 0) & ~axil.bvalid
    m.d.sync += [
        b_wait.eq(Mux(b_due, b_wait + 1, 0)),
        r_wait.eq(Mux((ar_count != 0) & ~axil.rvalid, r_wait + 1, 0)),
    ]
    h.check("b_in_time", b_wait < WAIT)
    h.check("r_in_time", r_wait < WAIT)
    # A request is taken in time, unless as many as fit wait for a response.
    h.check("aw_taken", axil.awready | (aw_count != 0))
    h.check("w_taken", axil.wready | (w_count != 0))
    h.check("ar_taken", axil.arready | axil.rvalid)

    # The last address and data taken before a response rises are those of its request: another
    # address is taken only when the response to this one is there.
    addr, value, strb = Signal(10), Signal(32), Signal(4)
    with m.If(aw):
        m.d.sync += addr.eq(axil.awaddr[2:])
    with m.If(w):
        m.d.sync += [value.eq(axil.wdata), strb.eq(axil.wstrb)]
    rises = axil.bvalid & h.past(~axil.bvalid | axil.bready, "b_free")
    h.check("one_ahead", (aw_count + w_count <= 2) | axil.bvalid | b_due)
    known = Mux(addr < 5, (0b10111 >> addr[:3]) & 1, 0)
    h.check("b_response", ~rises | ((axil.bresp == Response.OKAY) == known))
    h.check("b_code", ~axil.bvalid | Value.cast(axil.bresp).matches(0, 3))

    def byte(index):
        return strb.bit_select(index, 1)

    setting = rises & (addr == 2)
    control = rises & (addr == 4)
    for name, lsb, port, locked in (
        ("value", 4, f["setting"], 0),
        ("locked", 20, f["setting.locked"], f["control.lock"]),
    ):
        before = h.past(port, f"{name}_before")
        for bit in range(len(port)):
            written = setting & byte((lsb + bit) // 8) & ~h.past(locked, f"lock_{name}_{bit}")
            expected = Mux(written, value[lsb + bit], before[bit])
            h.check(f"stored_{name}_{bit}", port[bit] == expected)
    told = setting & (byte(0) | byte(1))
    h.check("told_once", f["setting.swmod"] == told)
    h.check("pulse_once", f["control.start"] == (control & byte(0) & value[0]))
    cleared = control & byte(0) & value[1]
    was_done = h.past(f["control.done"], "done_before")
    was_set = h.past(f["control.done.set"], "set_before")
    h.check("sticky", f["control.done"] == (was_set | (was_done & ~cleared)))
    locks = control & byte(1) & value[9]
    h.check("lock_stays", f["control.lock"] == (h.past(f["control.lock"], "l") | locks))

    # Reads: what the ports showed when the address was taken.
    data = Signal(32)
    found = Signal()
    with m.If(ar):
        m.d.sync += [data.eq(0), found.eq(1)]
        with m.Switch(axil.araddr[2:]):
            with m.Case(0):
                m.d.sync += data.eq(ID)
            with m.Case(1):
                m.d.sync += data[4:12].eq(f["state"])
            with m.Case(2):
                m.d.sync += [data[4:16].eq(f["setting"]), data[20:24].eq(f["setting.locked"])]
            with m.Case(4):
                m.d.sync += [data[1].eq(f["control.done"]), data[9].eq(f["control.lock"])]
            with m.Default():
                m.d.sync += found.eq(0)
    h.check("read_data", ~axil.rvalid | (axil.rdata == data))
    h.check("read_response", ~axil.rvalid | (Value.cast(axil.rresp) == Mux(found, 0, 3)))
    h.cover("two_writes", rises & (aw_count == 1) & h.past(h.past(rises, "p1"), "p2"))
    h.cover("kept_by_lock", setting & byte(2) & f["control.lock"])
    return h


PROOFS = [
    Proof(
        name="register_file",
        build=registers,
        engine="pdr",
        reach=10,
        bugs=(
            Bug(
                name="write_twice",
                owner=RegisterFile,
                old="            has_data.eq(0),\n",
                new="",
                caught_by="requests_bounded",
            ),
            Bug(
                name="response_not_held",
                owner=RegisterFile,
                old="with m.If(axil.bready):",
                new="with m.If(axil.bready | axil.awvalid):",
                caught_by="b_held",
            ),
            Bug(
                name="clear_wins",
                owner=RegisterFile,
                old='port.eq((port & ~ones) | self.f[f"{path}.set"])',
                new='port.eq((port | self.f[f"{path}.set"]) & ~ones)',
                caught_by="sticky",
            ),
            Bug(
                name="lock_is_open",
                owner=RegisterFile,
                old="selected & ~self.f[field.lock] if field.lock else selected",
                new="selected",
                caught_by="stored_locked_0",
            ),
            Bug(
                name="read_taken_over_response",
                owner=RegisterFile,
                old="axil.arready.eq(~axil.rvalid)",
                new="axil.arready.eq(1)",
                caught_by="r_held",
            ),
            Bug(
                name="write_waits_for_no_response",
                owner=RegisterFile,
                old="write.eq(has_addr & has_data & ~axil.bvalid)",
                new="write.eq(has_addr & has_data)",
                caught_by="requests_bounded",
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
