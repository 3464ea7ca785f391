"""Quality of a language model whose shared part is computed otherwise: against full attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from moska.host.llm.attention import register
from moska.host.llm.cache import SharedCache, Step

WARM_UP = 8  # first tokens of a passage, which are not scored: what they continue is not in view


@dataclass(frozen=True)
class Score:
    """Figures of each passage, (P,); lower is better but for ``top1``."""

    kl: NDArray[np.float64]  # nats a token, of full attention's distribution from this one
    top1: NDArray[np.float64]  # share of tokens with the same most likely token
    nll: NDArray[np.float64]  # nats a token of the text

    @property
    def perplexity(self) -> float:
        """Of all passages."""
        return float(np.exp(self.nll.mean()))

    def summary(self) -> dict[str, float]:
        """Mean over passages with its standard error."""
        return {
            "kl": float(self.kl.mean()),
            "kl_error": standard_error(self.kl),
            "top1": float(self.top1.mean()),
            "top1_error": standard_error(self.top1),
            "perplexity": self.perplexity,
        }


def standard_error(x: NDArray[np.float64]) -> float:
    """Of the mean."""
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")


def full_attention(
    model: Any, document: Sequence[int], passages: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Log-probabilities of passages behind a document by plain attention.

    Returns
    -------
    (P, L - WARM_UP, vocabulary), of the token behind each one from the last of the warm-up on;
    nothing is said of what stands behind the last one.
    """
    model.set_attn_implementation("sdpa")
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        if document:
            model.base_model(torch.tensor([list(document)]), past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(passages))
        ids = torch.tensor([list(passage) for passage in passages])
        logits = model(ids, past_key_values=cache, use_cache=True).logits
    return _scored(logits)


def shared_attention(
    model: Any, step: Step, n_shared: int, passages: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Log-probabilities of passages behind ``n_shared`` tokens that the step attends to."""
    model.set_attn_implementation(register())
    cache = SharedCache(model.config.num_hidden_layers, n_shared, lambda: step, len(passages))
    with torch.inference_mode():
        ids = torch.tensor([list(passage) for passage in passages])
        logits = model(ids, past_key_values=cache, use_cache=True).logits
    return _scored(logits)


def score(
    expected: torch.Tensor, measured: torch.Tensor, passages: Sequence[Sequence[int]]
) -> Score:
    """Compare log-probabilities with those of full attention."""
    target = torch.tensor([list(passage[WARM_UP:]) for passage in passages])
    kl = (expected.exp() * (expected - measured)).sum(dim=-1)
    top1 = expected.argmax(dim=-1) == measured.argmax(dim=-1)
    nll = -measured.gather(-1, target[..., None])[..., 0]
    return Score(
        kl=kl.double().mean(dim=1).numpy(),
        top1=top1.double().mean(dim=1).numpy(),
        nll=nll.double().mean(dim=1).numpy(),
    )


def _scored(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, WARM_UP - 1 : -1].float().log_softmax(dim=-1)
