"""From a call to descriptors, and from the unit's results back to arrays."""

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moska.golden.layout import (
    COUNTERS,
    SELECTION_LINE,
    Opcode,
    Selection,
    pack_array,
    pack_descriptor,
    pack_selection,
    padded_size,
    unpack_selection,
)
from moska.golden.quantize import quantize_q
from moska.golden.router import Bool
from moska.host.handle import StoreHandle
from moska.host.ring import Parameters

LN2 = float(np.log(2))
FP32_BYTES = 4
MAX_FIELD = 0xFFFF  # of 16-bit fields of a descriptor

Queries = NDArray[np.floating] | tuple[NDArray[np.int16], NDArray[np.uint16]]


@dataclass(frozen=True)
class Attention:
    """Result of a job."""

    o: NDArray[np.float32]  # (M, D); (0, D) of a job that only routes
    lse: NDArray[np.float32]  # (M,) natural logarithm; -inf where a row selected nothing
    selected: Bool | None  # (M, N) chunks of each row; None: all
    counters: dict[str, int]  # of the unit, of all pieces


@dataclass(eq=False)
class Call:
    """One call of the user: its future, and what its pieces have brought so far."""

    o: NDArray[np.float32]
    lse: NDArray[np.float32]
    selected: Bool | None
    left: int  # pieces that have not ended
    future: Future[Attention] = field(default_factory=Future)
    error: BaseException | None = None  # the first one
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    _wanted: bool | None = None  # whether it was cancelled in time; None before it begins

    def begin(self) -> bool:
        """Mark the future as running; return False when it was cancelled before."""
        if self._wanted is None:
            self._wanted = self.future.set_running_or_notify_cancel()
        return self._wanted

    def finish(self) -> None:
        """Complete the future."""
        if not self.begin():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(Attention(self.o, self.lse, self.selected, self.counters))


@dataclass(eq=False)
class Piece:
    """One job of the unit: those rows of a call that fit.

    Its memory holds the inputs, then the results, each array padded.
    """

    call: Call
    handle: StoreHandle
    rows: slice
    fields: dict[str, int]  # of the descriptor, without addresses of inputs and results
    inputs: bytes
    offsets: dict[str, int]  # of inputs and results in the piece's memory
    n_bytes: int  # of memory
    address: int = 0  # of its memory, once it is placed

    @property
    def n_rows(self) -> int:
        """Query rows."""
        return self.fields["n_rows"]

    @property
    def results(self) -> tuple[int, int]:
        """Address and bytes of the results."""
        return self.address + len(self.inputs), self.n_bytes - len(self.inputs)

    @property
    def descriptor(self) -> bytes:
        """Bytes for the ring."""
        places = {name: self.address + offset for name, offset in self.offsets.items()}
        return pack_descriptor(**self.fields | places)

    def take(self, raw: bytes) -> None:
        """Copy the results from the bytes of memory into those of the call."""
        call, rows, inputs = self.call, self.rows, len(self.inputs)
        if self.fields["opcode"] == Opcode.ATTEND:
            out = call.o[rows]
            at = self.offsets["o_addr"] - inputs
            out[:] = np.frombuffer(raw, "<f4", out.size, at).reshape(out.shape)
            lse = np.frombuffer(raw, "<f4", self.n_rows, self.offsets["lse_addr"] - inputs)
            # Rounded once: the product is float64.
            call.lse[rows] = lse.astype(np.float64) * LN2
        if self.fields["selection"] == Selection.TOP_K and call.selected is not None:
            at = self.offsets["selection_addr"] - inputs
            lines = raw[at : at + SELECTION_LINE * self.fields["n_chunks"]]
            call.selected[rows] = unpack_selection(lines, self.n_rows)


def cut(
    handle: StoreHandle,
    q: Queries,
    unit: Parameters,
    *,
    k: int | None = None,
    keep_first: int = 1,
    keep_last: int = 1,
    group: int = 1,
    explicit: Bool | None = None,
    n_tokens: int | None = None,
    route_only: bool = False,
    softmax_scale: float | None = None,
    checksum: bool | None = None,
) -> list[Piece]:
    """Check a call and cut it into pieces; parameters as of :meth:`moska.host.Device.submit`.

    Raises
    ------
    ValueError, TypeError
        for arguments that contradict each other, the store or the unit.
    """
    q_int, q_scale = _quantised(q, unit.head_dim, softmax_scale)
    n_rows = len(q_int)
    fields = handle.fields | _prefix(handle, n_tokens)
    if k is not None:
        if explicit is not None:
            raise ValueError("k must not be given with an explicit selection")
        _check_routing(handle, fields["n_chunks"], n_rows, group, unit)
        fields |= {
            "opcode": Opcode.ROUTE if route_only else Opcode.ATTEND,
            "selection": Selection.TOP_K,
            "write_selection": 1,
            "group": group,
            "k": _count("k", k),
            "keep_first": _count("keep_first", keep_first),
            "keep_last": _count("keep_last", keep_last),
        }
    else:
        if route_only:
            raise ValueError("k must be given to route only")
        selection = Selection.ALL
        if explicit is not None:
            _check_explicit(explicit, n_rows, fields["n_chunks"], unit)
            selection = Selection.EXPLICIT
        fields |= {"opcode": Opcode.ATTEND, "selection": selection, "group": 1}
    if checksum and not handle.checksums:
        raise ValueError("checksum must be off for a store without checksums")
    fields["checksum"] = int(handle.checksums if checksum is None else checksum)

    # Rows that share a decision stay together.
    step = unit.max_rows - unit.max_rows % fields["group"]
    cuts = [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    out_rows = 0 if route_only else n_rows
    call = Call(
        o=np.zeros((out_rows, unit.head_dim), dtype=np.float32),
        lse=np.zeros(out_rows, dtype=np.float32),
        selected=explicit if k is None else np.zeros((n_rows, fields["n_chunks"]), dtype=bool),
        left=len(cuts),
    )
    return [
        _piece(
            call, handle, rows, fields, q_int[rows], q_scale[rows],
            None if explicit is None else explicit[rows],
        )
        for rows in cuts
    ]  # fmt: skip


def _piece(
    call: Call,
    handle: StoreHandle,
    rows: slice,
    fields: dict[str, int],
    q: NDArray[np.int16],
    q_scale: NDArray[np.uint16],
    explicit: Bool | None,
) -> Piece:
    inputs = {"q_addr": pack_array(q), "q_scale_addr": pack_array(q_scale)}
    if explicit is not None:
        inputs["selection_addr"] = pack_selection(explicit)
    results = {}
    if fields["opcode"] == Opcode.ATTEND:
        results["o_addr"] = FP32_BYTES * q.size
        results["lse_addr"] = FP32_BYTES * len(q)
    if fields["selection"] == Selection.TOP_K:
        results["selection_addr"] = SELECTION_LINE * fields["n_chunks"]
    offsets, end = {}, 0
    for name, size in (*((name, len(raw)) for name, raw in inputs.items()), *results.items()):
        offsets[name] = end
        end += padded_size(size)
    own = fields | {"n_rows": len(q)}
    return Piece(call, handle, rows, own, b"".join(inputs.values()), offsets, end)


def _prefix(handle: StoreHandle, n_tokens: int | None) -> dict[str, int]:
    """Fields of the part of a store that is attended to."""
    if n_tokens is None:
        n_tokens = handle.n_tokens
    size = handle.chunk_tokens
    whole = n_tokens % size == 0 or n_tokens == handle.n_tokens
    if not whole or not 1 <= n_tokens <= handle.n_tokens:
        raise ValueError(
            f"n_tokens must be a multiple of chunk_tokens ({size}) or all of the store "
            f"({handle.n_tokens}), not {n_tokens}"
        )
    return {"n_tokens": n_tokens, "n_chunks": -(-n_tokens // size)}


def _quantised(
    q: Queries, head_dim: int, softmax_scale: float | None
) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    if isinstance(q, tuple):
        q_int, q_scale = q
        if softmax_scale is not None:
            raise ValueError("softmax_scale must not be given with quantised queries")
        if q_int.dtype != np.int16 or q_scale.dtype != np.uint16:
            raise TypeError(
                f"quantised queries must be int16 and uint16, not {q_int.dtype} and "
                f"{q_scale.dtype}"
            )
        shape = q_int.shape
    else:
        shape = np.shape(q)
    if len(shape) != 2 or shape[1] != head_dim:
        raise ValueError(f"q must have shape (M, {head_dim}), not {shape}")
    if not shape[0]:
        raise ValueError("q must have at least one row")
    if not isinstance(q, tuple):
        return quantize_q(q, softmax_scale)
    if q_scale.shape != shape[:1]:
        raise ValueError(f"scales of q must have shape {shape[:1]}, not {q_scale.shape}")
    return q_int, q_scale


def _count(name: str, value: int) -> int:
    """Return a number of chunks as a field holds it: more than there are means all of them."""
    if value < 0:
        raise ValueError(f"{name} must not be negative, not {value}")
    return min(value, MAX_FIELD)


def _check_routing(
    handle: StoreHandle, n_chunks: int, n_rows: int, group: int, unit: Parameters
) -> None:
    if not handle.rep_rows:
        raise ValueError("store must have representatives to route")
    if handle.rep_rows > unit.buffer_tokens:
        raise ValueError(
            f"store must have at most {unit.buffer_tokens} representatives a chunk, "
            f"not {handle.rep_rows}"
        )
    _check_chunks(n_chunks, unit)
    if not 1 <= group <= unit.max_rows or n_rows % group:
        raise ValueError(
            f"group must divide the rows ({n_rows}) and be at most {unit.max_rows}, not {group}"
        )


def _check_explicit(explicit: Bool, n_rows: int, n_chunks: int, unit: Parameters) -> None:
    _check_chunks(n_chunks, unit)
    if explicit.dtype != np.bool_ or explicit.shape != (n_rows, n_chunks):
        raise ValueError(
            f"explicit must be bool of shape ({n_rows}, {n_chunks}), not {explicit.dtype} of "
            f"shape {explicit.shape}"
        )


def _check_chunks(n_chunks: int, unit: Parameters) -> None:
    if n_chunks > unit.max_chunks:
        raise ValueError(
            f"chunks to select from must be at most {unit.max_chunks}, not {n_chunks}"
        )
