"""A document's keys and values, computed once by the model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from moska.host.context import Context
from moska.host.library import Library

STEP = 512  # tokens of a forward pass: bounds the memory that scores take


def prefill(model: Any, tokens: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keys after the rotary embedding, and values, of tokens at positions 0..S-1.

    Returns
    -------
    k, v
        (n_layers, n_kv_heads, S, D)

    Raises
    ------
    ValueError
        when there are no tokens, or more than the model's positions.
    """
    limit = model.config.max_position_embeddings
    if not 1 <= len(tokens) <= limit:
        raise ValueError(f"document must have 1..{limit} tokens, not {len(tokens)}")
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([list(tokens)], device=model.device)
    with torch.inference_mode():
        for part in ids.split(STEP, dim=1):
            # The decoder alone: logits of a document are of no use.
            model.base_model(part, past_key_values=cache, use_cache=True)
    k = np.stack([layer.keys[0].float().cpu().numpy() for layer in cache.layers])
    v = np.stack([layer.values[0].float().cpu().numpy() for layer in cache.layers])
    return k, v


def ingest(
    model: Any,
    tokenizer: Any,
    library: Library,
    text: str | Sequence[int],
    name: str | None = None,
    *,
    progress: bool = False,
) -> Context:
    """Compute a document's keys and values and store them, in whole chunks.

    Parameters
    ----------
    text
        the document, or its token ids.
    name
        under which contexts may be composed of it.
    progress
        show a bar while it is quantised.

    Returns
    -------
    Context
        of the stored chunks; the tokens behind the last whole chunk are left to each request.
    """
    tokens = tokenizer(text)["input_ids"] if isinstance(text, str) else list(text)
    k, v = prefill(model, tokens)
    return library.add(tokens, k, v, name=name, progress=progress)
