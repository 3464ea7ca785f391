"""Slow oracle of whole jobs in plain Python integers, written from ``docs/number-formats.md``.

It imports no other module of the golden model, so that an error has to be made twice to pass
unseen. Shifts and widths are not clamped here: an integer has as many bits as it needs.
"""

import math

Row = list[int]
Matrix = list[Row]

BLOCK = 32
SCORE_LOW, SCORE_HIGH = -(1 << 23), (1 << 23) - 1


def half_up(x: int, shift: int) -> int:
    """``floor(x / 2**shift + 1/2)``; a negative shift multiplies."""
    if shift <= 0:
        return x << -shift
    return (x + (1 << (shift - 1))) >> shift


def clip(x: int, low: int, high: int) -> int:
    """Clip x to low..high."""
    return max(low, min(high, x))


def mantissa_exponent(scale: int) -> tuple[int, int]:
    """(mantissa 128..255, biased exponent 0..255) of a bfloat16 pattern; the sign is ignored."""
    return 128 + scale % 128, scale // 128 % 256


def fp32(negative: bool, magnitude: int, exponent: int) -> int:
    """float32 bits of ``(-1)**negative * magnitude * 2**exponent``, rounded half away from zero."""
    if magnitude == 0:
        return 0
    top = magnitude.bit_length() - 1
    mantissa = half_up(magnitude, top - 23)
    if mantissa == 1 << 24:
        mantissa, top = 1 << 23, top + 1
    field = top + exponent + 127
    if field <= 0:
        return 0
    sign = int(negative) << 31
    if field >= 255:
        return sign | 0x7F800000
    return sign | field << 23 | (mantissa - (1 << 23))


# Tables ------------------------------------------------------------------------------------------


def exp2_segment(index: int) -> tuple[int, int]:
    """Return (base, slope) of segment ``index`` of 64 of ``2**x``, in units of 2**-23."""
    left, right = 2.0 ** (index / 64), 2.0 ** ((index + 1) / 64)
    slope = (right - left) * 64
    # The chord lies above the curve by `gap` where the tangent has the chord's slope.
    x = math.log2(slope / math.log(2.0))
    gap = left + slope * (x - index / 64) - 2.0**x
    return round((left - gap / 2) * 2**23), round(slope / 4096 * 2**23)


SEGMENTS = [exp2_segment(index) for index in range(64)]
LOG2_TERMS = [round(math.log2(1.0 + 2.0**-step) * 2**27) for step in range(1, 25)]


def exp2(fraction: int) -> int:
    """``2**(fraction / 4096) * 2**15``. fraction: 0..4095."""
    base, slope = SEGMENTS[fraction // 64]
    return half_up(base + slope * (fraction % 64), 8)


# Attention ---------------------------------------------------------------------------------------


def score(q: Row, q_scale: int, k: Row, k_scale: int) -> int:
    """Score of one query and one key row, in units of 2**-12, signed 24 bits."""
    q_mantissa, q_exponent = mantissa_exponent(q_scale)
    k_mantissa, k_exponent = mantissa_exponent(k_scale)
    dot = sum(a * b for a, b in zip(q, k, strict=True))
    product = dot * q_mantissa * k_mantissa
    return clip(half_up(product, 256 - q_exponent - k_exponent), SCORE_LOW, SCORE_HIGH)


def add_aligned(a: int, a_ref: int, b: int, b_ref: int) -> int:
    """Return ``a * 2**a_ref + b * 2**b_ref`` in units of ``2**max(a_ref, b_ref)``."""
    if a_ref >= b_ref:
        return a + half_up(b, a_ref - b_ref)
    return half_up(a, b_ref - a_ref) + b


class State:
    """(m, l, e, o) of one row; ``l == 0`` before its first block."""

    def __init__(self, head_dim: int) -> None:
        self.m, self.l, self.e = 0, 0, 0
        self.o = [0] * head_dim

    def merge_block(self, s: Row, v: Matrix, v_scale: Row) -> None:
        """Merge 1..32 tokens with scores ``s``."""
        m = max(x // 4096 for x in s) + 1
        total = 0
        for x in s:
            # 2**(x - m) * 2**16, and exp2 has 15 fraction bits
            total += half_up(exp2(x % 4096), m - x // 4096 - 1)

        scales = [mantissa_exponent(scale) for scale in v_scale]
        exponents = [x // 4096 + 1 + scale[1] for x, scale in zip(s, scales, strict=True)]
        e = max(exponents)
        o = [0] * len(self.o)
        for x, scale, exponent, row in zip(s, scales, exponents, v, strict=True):
            pv = half_up(exp2(x % 4096) * scale[0], e - exponent + 7)
            o = [sum_ + pv * element for sum_, element in zip(o, row, strict=True)]

        # Three guard bits below a block's last bit.
        total *= 8
        o = [8 * element for element in o]
        if self.l == 0:
            self.m, self.l, self.e, self.o = m, total, e, o
            return
        self.l = add_aligned(self.l, self.m, total, m)
        self.m = max(self.m, m)
        self.o = [add_aligned(a, self.e, b, e) for a, b in zip(self.o, o, strict=True)]
        self.e = max(self.e, e)

    def finish(self) -> tuple[Row, int]:
        """O and base-2 LSE in float32 bits."""
        if self.l == 0:
            return [0] * len(self.o), 0xFF800000
        top = self.l.bit_length() - 1
        normal = self.l << (38 - top)
        reciprocal = (2**65 - 1) // normal
        o = []
        for element in self.o:
            magnitude = abs(element)
            o_top = max(magnitude.bit_length() - 1, 0)
            operand = (magnitude << 47 - o_top) >> 21
            exponent = o_top - top + self.e - self.m - 127 - 53
            o.append(fp32(element < 0, operand * reciprocal, exponent))

        z, y = normal >> 11, 0
        for step in range(1, 25):
            product = z + (z >> step)
            if product < 1 << 28:
                z, y = product, y + LOG2_TERMS[step - 1]
        fraction = half_up(max(2**27 - y, 0), 3)
        lse = ((self.m - 19 + top) << 24) + fraction
        return o, fp32(lse < 0, abs(lse), -24)


def attend(
    q: Matrix,
    q_scale: Row,
    k: Matrix,
    k_scale: Row,
    v: Matrix,
    v_scale: Row,
    *,
    chunk_tokens: int,
    selected: list[list[bool]] | None = None,
) -> tuple[Matrix, Row]:
    """O (M, D) and LSE (M,) as float32 bits, over the chunks each row selected (default: all).

    q: (M, D), k and v: (S, D) integers; scales: bfloat16 patterns; selected: (M, N).
    """
    outputs, lses = [], []
    for row, (query, scale) in enumerate(zip(q, q_scale, strict=True)):
        state = State(len(query))
        for chunk, start in enumerate(range(0, len(k), chunk_tokens)):
            if selected is not None and not selected[row][chunk]:
                continue
            stop = min(start + chunk_tokens, len(k))
            for first in range(start, stop, BLOCK):
                tokens = range(first, min(first + BLOCK, stop))
                s = [score(query, scale, k[token], k_scale[token]) for token in tokens]
                state.merge_block(s, [v[t] for t in tokens], [v_scale[t] for t in tokens])
        o, lse = state.finish()
        outputs.append(o)
        lses.append(lse)
    return outputs, lses


# Router ------------------------------------------------------------------------------------------


def chunk_key(q: Row, q_scale: int, rep: Matrix, rep_scale: Row, *, pairs: bool) -> int:
    """Key of one chunk for one row, signed 16 bits. rep: (r, D); pairs: of kmax and kmin."""
    if pairs:
        best = max(
            score([max(x, 0) for x in q], q_scale, rep[i], rep_scale[i])
            + score([min(x, 0) for x in q], q_scale, rep[i + 1], rep_scale[i + 1])
            for i in range(0, len(rep), 2)
        )
    else:
        best = max(score(q, q_scale, r, scale) for r, scale in zip(rep, rep_scale, strict=True))
    return clip(best // 128, -(1 << 15), (1 << 15) - 1)


def route(
    q: Matrix,
    q_scale: Row,
    rep: list[Matrix],
    rep_scale: Matrix,
    *,
    pairs: bool,
    k: int,
    keep_first: int = 0,
    keep_last: int = 0,
    group: int = 1,
) -> list[list[bool]]:
    """Chunks that each row selects, (M, N). rep: (N, r, D), rep_scale: (N, r)."""
    n_chunks = len(rep)
    selected: list[list[bool]] = []
    for start in range(0, len(q), group):
        ranks = []
        for chunk in range(n_chunks):
            key = max(
                chunk_key(q[row], q_scale[row], rep[chunk], rep_scale[chunk], pairs=pairs)
                for row in range(start, start + group)
            )
            forced = chunk < keep_first or chunk >= n_chunks - keep_last
            ranks.append((not forced, -key, chunk))
        kept = {chunk for _, _, chunk in sorted(ranks)[:k]}
        selected += [[chunk in kept for chunk in range(n_chunks)] for _ in range(group)]
    return selected


# Stored formats: the only part with floating point ----------------------------------------------


def scale_up(x: float) -> int:
    """Pattern of the smallest positive normal bfloat16 number that is at least x >= 0."""
    if x <= 2.0**-126:
        return 0x0080
    fraction, exponent = math.frexp(x)  # fraction in [1/2, 1)
    mantissa = math.ceil(fraction * 256)
    if mantissa == 256:
        mantissa, exponent = 128, exponent + 1
    return (exponent + 126) << 7 | (mantissa - 128)


def quantize_row(x: list[float], limit: int) -> tuple[Row, int]:
    """Quantise one row to integers in -limit..limit, rounded half to even, and a scale."""
    scale = scale_up(max(abs(value) for value in x) / limit)
    mantissa, exponent = mantissa_exponent(scale)
    step = math.ldexp(mantissa, exponent - 134)
    return [clip(round(value / step), -limit, limit) for value in x], scale


def representatives(
    k: Matrix, k_scale: Row, *, chunk_tokens: int, router: str
) -> tuple[list[Matrix], Matrix]:
    """Build the representative rows (N, r, D) int8 and scales (N, r) of stored keys k."""
    keys = []
    for row, scale in zip(k, k_scale, strict=True):
        mantissa, exponent = mantissa_exponent(scale)
        step = math.ldexp(mantissa, exponent - 134)
        keys.append([element * step for element in row])

    def mean(rows: list[list[float]]) -> list[float]:
        total = rows[0]
        for row in rows[1:]:
            total = [a + b for a, b in zip(total, row, strict=True)]
        return [value / len(rows) for value in total]

    rep, rep_scale = [], []
    for start in range(0, len(keys), chunk_tokens):
        chunk = keys[start : start + chunk_tokens]
        if router == "minmax":
            rows = [[f(column) for column in zip(*chunk, strict=True)] for f in (max, min)]
        elif router == "mean":
            rows = [mean(chunk)]
        else:
            n = int(router.removeprefix("submean:"))
            rows = [mean(chunk[i : i + n]) for i in range(0, len(chunk), n)]
            rows += [rows[-1]] * (chunk_tokens // n - len(rows))
        pairs = [quantize_row(row, 127) for row in rows]
        rep.append([integers for integers, _ in pairs])
        rep_scale.append([scale for _, scale in pairs])
    return rep, rep_scale
