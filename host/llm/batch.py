"""Prompts that run together: what each shares with the library, and how they are laid out."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch

from moska.host.context import Context
from moska.host.llm.cache import SharedCache
from moska.host.orchestrator import Orchestrator, Report, Step


class Batch(AbstractContextManager["Batch"]):
    """Joins an orchestrator with one request for each prompt; leaves it when closed.

    What a prompt shares is recognised: the longest prefix of its tokens that is in the library, in
    whole chunks. Shared parts and prompts of different lengths may be mixed.

    Parameters
    ----------
    orchestrator
        of the library, the unit and the path.
    prompts
        token ids of each prompt, from its first token on.
    contexts
        what stands before each prompt instead of what would be found in it: composed documents, for
        example. Prompts are the tokens behind them then.
    pad
        token id for columns that do not count.
    device
        of the model.
    settings
        fields of :class:`~moska.host.orchestrator.Settings` for this batch: ``k``, for example.

    Attributes
    ----------
    cache
        for ``past_key_values``.
    input_ids, attention_mask
        (B, S); see :class:`~moska.host.llm.cache.SharedCache` for the layout.
    reports
        of the forward passes so far.

    Raises
    ------
    ValueError
        when there is no prompt, or an empty one.
    """

    def __init__(
        self,
        orchestrator: Orchestrator,
        prompts: Sequence[Sequence[int]],
        *,
        contexts: Sequence[Context] | None = None,
        pad: int = 0,
        device: torch.device | str = "cpu",
        **settings: Any,
    ) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ValueError("there must be a prompt, and none may be empty")
        if contexts is None:
            # The last token stays: the model must be asked about something.
            contexts = [orchestrator.library.match(prompt[:-1]) for prompt in prompts]
            own = [
                list(prompt[context.n_tokens :])
                for prompt, context in zip(prompts, contexts, strict=True)
            ]
        elif len(contexts) != len(prompts):
            raise ValueError(f"contexts must be as many as prompts ({len(prompts)})")
        else:
            own = [list(prompt) for prompt in prompts]
        self.reports: list[Report] = []
        self.input_ids, self.attention_mask = layout(
            [context.tokens.tolist() for context in contexts], own, pad
        )
        self.input_ids = self.input_ids.to(device)
        self.attention_mask = self.attention_mask.to(device)
        self._orchestrator = orchestrator
        self._settings = settings
        self.requests = []
        try:
            for context in contexts:
                self.requests.append(orchestrator.join(context))
        except BaseException:
            self.close()
            raise
        self.cache = SharedCache(
            orchestrator.library.geometry.n_layers,
            max(context.n_tokens for context in contexts),
            self._begin,
            len(prompts),
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the requests leave."""
        for request in self.requests:
            self._orchestrator.leave(request)

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments for ``model.generate``."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "past_key_values": self.cache,
        }

    def forward(self, model: Any, **kwargs: Any) -> Any:
        """Run the prompts' own tokens through the model once, as ``generate`` begins."""
        n = self.cache.get_seq_length()
        position = (self.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        return model(
            self.input_ids[:, n:],
            attention_mask=self.attention_mask,
            position_ids=position[:, n:],
            past_key_values=self.cache,
            use_cache=True,
            **kwargs,
        )

    def _begin(self) -> Step:
        step = self._orchestrator.step(self.requests, **self._settings)
        self.reports.append(step.report)
        return step


def layout(
    shared: Sequence[Sequence[int]], own: Sequence[Sequence[int]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask (B, S): ``[pad, shared | pad, own]``.

    The bar is in the same column of all rows.
    """
    width = max(map(len, shared)), max(map(len, own))
    ids = torch.full((len(own), sum(width)), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, parts in enumerate(zip(shared, own, strict=True)):
        for end, tokens in zip((width[0], sum(width)), parts, strict=True):
            start = end - len(tokens)
            ids[row, start:end] = torch.tensor(tokens, dtype=torch.long)
            mask[row, start:end] = 1
    return ids, mask
