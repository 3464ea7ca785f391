"""torch on the CPU: the fused kernel behind scaled_dot_product_attention, which returns the LSE."""

import math
from typing import Any, ClassVar

from moska.host.unique.path import Array, TorchPath, fold, unimportable

# The operator is private: what it takes and returns is checked before it is used.
OPERATOR = "_scaled_dot_product_flash_attention_for_cpu"
ARGUMENTS = ("query", "key", "value", "dropout_p", "is_causal", "attn_mask", "scale")
RESULTS = ("output", "logsumexp")


class TorchCpuPath(TorchPath):
    """Fused CPU kernel of torch, or explicit softmax where torch has another operator."""

    name: ClassVar[str] = "torch-cpu"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16", "float64")

    def __init__(self) -> None:
        super().__init__()
        self._operator = find_operator(self._torch, OPERATOR, ARGUMENTS, RESULTS)
        kernel = "fused CPU kernel" if self._operator else "explicit softmax"
        self.detail = f"torch {self._torch.__version__}, {kernel}"

    @classmethod
    def unusable(cls) -> str | None:
        """Tell that torch is not installed."""
        return unimportable("torch")

    def _attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, scale: float
    ) -> tuple[Array, Array]:
        b, h, t, _ = q.shape
        g = k.shape[1]
        rows = fold(q, g)
        bias = None
        if mask is not None:
            key = (h // g, q.dtype)
            bias = self._once(key, mask, lambda: make_bias(self._torch, mask, h // g, q.dtype))
        if self._operator is None:
            o, lse = explicit(self._torch, rows, k, v, bias, scale)
        else:
            o, lse = self._operator(rows, k, v, attn_mask=bias, scale=scale)
        return o.reshape(q.shape), lse.float().reshape(b, h, t)


def find_operator(
    torch: Any, name: str, arguments: tuple[str, ...], results: tuple[str, ...]
) -> Any:
    """Return torch's operator ``name``, or None when it does not have these names in its schema.

    ``results`` are the first ones; more may follow.
    """
    try:
        schema = getattr(torch.ops.aten, name).default._schema
    except AttributeError:
        return None
    if tuple(argument.name for argument in schema.arguments) != arguments:
        return None
    if tuple(result.name for result in schema.returns[: len(results)]) != results:
        return None
    return getattr(torch.ops.aten, name)


def make_bias(torch: Any, mask: Array, repeats: int, dtype: Any) -> Array:
    """(B, 1, T, S) mask to what is added to the scores of ``repeats * T`` rows: 0 or -inf."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    bias = bias.masked_fill_(~mask, -math.inf)
    b, _, t, s = mask.shape
    # Of one query token, all rows have the same mask, which broadcasts.
    return bias if t == 1 else bias.expand(b, repeats, t, s).reshape(b, 1, repeats * t, s)


def explicit(
    torch: Any, q: Array, k: Array, v: Array, bias: Array | None, scale: float
) -> tuple[Array, Array]:
    """Softmax step by step, in float32 (float64 for such queries)."""
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(exact) @ k.to(exact).transpose(2, 3)) * scale
    if bias is not None:
        scores = scores + bias.to(exact)
    lse = torch.logsumexp(scores, dim=-1)
    # A row without a token has lse = -inf; -inf - -inf is not a number.
    p = torch.exp(scores - lse.masked_fill(torch.isneginf(lse), 0.0)[..., None])
    return (p @ v.to(exact)).to(q.dtype), lse
