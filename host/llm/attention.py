"""The attention named ``moska`` of transformers."""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "moska"


def register() -> str:
    """Make the attention known to transformers; return its name, for ``set_attn_implementation``.

    A model with this attention takes any cache. With a :class:`~moska.host.llm.cache.SharedCache`,
    its steps attend; with others, or none, torch's scaled dot product attention does.
    """
    AttentionInterface.register(NAME, attention)
    # Without a mask function of the same name, padding would be ignored silently.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of queries (B, H, T, D) after the rotary embedding; returns (B, T, H, D).

    Raises
    ------
    ValueError
        for dropout with a shared cache.
    TypeError
        for a mask that is not of booleans.
    """
    step = getattr(key, "moska_step", None)
    if step is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    if dropout:
        raise ValueError(f"dropout must be 0 with a shared cache, not {dropout}")
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        raise TypeError(f"attention mask must be bool, not {attention_mask.dtype}")
    if attention_mask is None and query.shape[2] > 1:
        attention_mask = causal(query.shape[2], key.shape[2], len(query), query.device)
    layer: Any = module.layer_idx
    o = step.attend(layer, query, key, value, attention_mask, scaling)
    return o.transpose(1, 2), None


def causal(
    n_queries: int, n_keys: int, batch: int, device: torch.device | None = None
) -> torch.Tensor:
    """Mask (B, 1, T, S) of the last T of S tokens: True where the key is not later."""
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return mask.tril(n_keys - n_queries).expand(batch, 1, n_queries, n_keys)
