"""What a descriptor must satisfy, and where the arrays lie that its job uses."""

from collections.abc import Mapping
from typing import NamedTuple

from moska.golden.formats import ALIGN, CHUNK_MULTIPLE, MAX_TOKENS, Q_BITS, SCALE_BITS
from moska.golden.layout import (
    CHECKSUM_BYTES,
    DESCRIPTOR,
    SELECTION_LINE,
    ErrorCode,
    KVFormat,
    Opcode,
    Selection,
    padded_size,
)
from moska.golden.router import Router

MAX_ALL_CHUNKS = MAX_TOKENS // CHUNK_MULTIPLE  # of a job that selects all of them
FP32_BYTES = 4

Window = tuple[int, int]  # first and last byte that a master may touch


class Array(NamedTuple):
    """An array that a job uses."""

    field: str  # of the descriptor: holds its address
    n_bytes: int
    written: bool


def arrays(fields: Mapping[str, int], head_dim: int) -> list[Array]:
    """Return the arrays that a job uses, in the order of their fields; sizes without padding."""
    rows, tokens, chunks = fields["n_rows"], fields["n_tokens"], fields["n_chunks"]
    if fields["opcode"] == Opcode.FENCE:
        return []
    attends = fields["opcode"] == Opcode.ATTEND
    routed = fields["selection"] == Selection.TOP_K
    explicit = fields["selection"] == Selection.EXPLICIT
    writes_selection = fields["write_selection"] != 0
    checked = attends and fields["checksum"] != 0
    rep_rows = chunks * fields["rep_rows"]
    scale = SCALE_BITS // 8
    q_bytes = Q_BITS // 8
    candidates = (
        (True, Array("q_addr", rows * head_dim * q_bytes, False)),
        (True, Array("q_scale_addr", rows * scale, False)),
        (attends, Array("k_addr", tokens * head_dim, False)),
        (attends, Array("v_addr", tokens * head_dim, False)),
        (attends, Array("scale_addr", tokens * 2 * scale, False)),
        (routed, Array("rep_addr", rep_rows * head_dim, False)),
        (routed, Array("rep_scale_addr", rep_rows * 2 * scale, False)),
        (
            explicit or writes_selection,
            Array("selection_addr", chunks * SELECTION_LINE, writes_selection),
        ),
        (attends, Array("o_addr", rows * head_dim * FP32_BYTES, True)),
        (attends, Array("lse_addr", rows * FP32_BYTES, True)),
        (checked, Array("checksum_addr", chunks * CHECKSUM_BYTES, False)),
    )
    return [array for used, array in candidates if used]


def inside(address: int, n_bytes: int, window: Window) -> bool:
    """Whether ``n_bytes`` bytes, at least one, lie in the window and do not pass 2**64."""
    base, limit = window
    last = address + n_bytes - 1
    return base <= address and last <= limit and last < 1 << 64


def check(
    fields: Mapping[str, int],
    *,
    address: int,
    head_dim: int,
    max_rows: int,
    max_chunks: int,
    buffer_tokens: int,
    read_window: Window,
    write_window: Window,
) -> tuple[ErrorCode, int]:
    """Return the error of a descriptor that was read from ``address``, and the error's address.

    The first error counts: each field in the order of the descriptor, then relations between
    fields in the order of the field that is blamed, then windows in the order of the arrays.
    DESCRIPTOR comes with the address of the field, WINDOW with the array's; NONE with 0. An array
    is padded to a multiple of ALIGN bytes. Arrays that the job does not use are not tested.
    """
    used = arrays(fields, head_dim)
    fence = fields["opcode"] == Opcode.FENCE
    routes = fields["opcode"] == Opcode.ROUTE
    routed = fields["selection"] == Selection.TOP_K
    rep_rows, chunk_tokens = fields["rep_rows"], fields["chunk_tokens"]
    most_chunks = (
        max(max_chunks, MAX_ALL_CHUNKS) if fields["selection"] == Selection.ALL else max_chunks
    )
    allowed = {
        "selection": fields["selection"] <= max(Selection) and (routed or not routes),
        "router": fields["router"] <= max(Router),
        "write_selection": fields["write_selection"] <= int(routed)
        and (fields["write_selection"] == 1 or not routes),
        "n_rows": 1 <= fields["n_rows"] <= max_rows,
        "group": fields["group"] >= 1 or not routed,
        "n_tokens": 1 <= fields["n_tokens"] <= MAX_TOKENS,
        "n_chunks": 1 <= fields["n_chunks"] <= most_chunks,
        "chunk_tokens": 1 <= chunk_tokens <= MAX_TOKENS and chunk_tokens % CHUNK_MULTIPLE == 0,
        "rep_rows": not routed
        or (
            1 <= rep_rows <= buffer_tokens
            and rep_rows & (rep_rows - 1) == 0
            and (rep_rows > 1 or fields["router"] == Router.ROWS)
        ),
        **{array.field: fields[array.field] % ALIGN == 0 for array in used},
        "checksum": fields["checksum"] <= 1,
        "kv_format": fields["kv_format"] <= max(KVFormat),
    }
    if fence:
        allowed = {}
    allowed["opcode"] = fields["opcode"] in tuple(Opcode)
    allowed["reserved"] = fields["reserved"] == 0
    for name, (offset, _) in DESCRIPTOR.items():
        if not allowed.get(name, True):
            return ErrorCode.DESCRIPTOR, address + offset
    if fence:
        return ErrorCode.NONE, 0

    if routed and fields["n_rows"] % fields["group"]:
        return ErrorCode.DESCRIPTOR, address + DESCRIPTOR["group"][0]
    if fields["n_chunks"] != -(-fields["n_tokens"] // chunk_tokens):
        return ErrorCode.DESCRIPTOR, address + DESCRIPTOR["n_chunks"][0]

    for array in used:
        window = write_window if array.written else read_window
        if not inside(fields[array.field], padded_size(array.n_bytes), window):
            return ErrorCode.WINDOW, fields[array.field]
    return ErrorCode.NONE, 0
