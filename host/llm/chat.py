"""Several questions about one document at once: its attention on a unit, everything else here."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moska.host.device import Device
from moska.host.library import Library
from moska.host.llm.attention import register
from moska.host.llm.batch import Batch
from moska.host.llm.model import geometry
from moska.host.llm.prefill import prefill
from moska.host.orchestrator import Orchestrator, Report
from moska.host.policy import Policy
from moska.host.unique import Path

REQUEST = "\n\nUse the text above to answer the question: "
MARK = "\N{REPLACEMENT CHARACTER}"  # stands for the document until its place is known


@dataclass(frozen=True)
class Options:
    """How questions are answered."""

    document_tokens: int = 512  # at most, what the template puts before it included
    new_tokens: int = 20  # of each answer, at most
    min_tokens: int = 16  # of each answer
    keep: float = 0.5  # share of the chunks that a row keeps, but in dense layers
    router: str = "submean:4"
    chunk_tokens: int = 32
    where: str = "unit"  # the shared part is computed; "auto": where the policy says

    @property
    def k(self) -> float | None:
        """As the orchestrator has it."""
        return None if self.keep == 1 else self.keep


@dataclass(frozen=True)
class Conversation:
    """A document, computed once, and questions about it.

    Parameters
    ----------
    document
        token ids that all prompts begin with: whole chunks.
    k, v
        its keys and values, (n_layers, n_kv_heads, S, D).
    questions
        as asked.
    prompts
        token ids, from the document's first one on.
    left_out
        tokens at the document's end that were cut off.
    """

    document: list[int]
    k: NDArray[np.float32]
    v: NDArray[np.float32]
    questions: list[str]
    prompts: list[list[int]]
    left_out: int


@dataclass
class StepFigures:
    """One forward pass."""

    prefill: bool  # of the questions; else a token for each answer
    new_tokens: int  # of answers that had not ended
    seconds: float
    report: Report

    @property
    def model_seconds(self) -> float:
        """Outside of attention."""
        return self.seconds - sum(self.report.seconds.values())


@dataclass
class Outcome:
    """Answers and figures of a run."""

    description: str  # of the device
    clock_mhz: float | None
    path: str  # of the unique part
    answers: list[list[int]] = field(default_factory=list)  # token ids, without the end mark
    ended: list[bool] = field(default_factory=list)  # by the model itself
    steps: list[StepFigures] = field(default_factory=list)
    store_bytes: int = 0  # of device memory

    @property
    def decode(self) -> list[StepFigures]:
        """Steps that made a token for each answer."""
        return [step for step in self.steps if not step.prefill]

    def tokens_per_second(self, steps: Sequence[StepFigures]) -> float | None:
        """Rate that the unit's cycles allow at its clock; None without cycles or clock."""
        cycles = sum(step.report.cycles for step in steps)
        if not cycles or self.clock_mhz is None:
            return None
        return sum(step.new_tokens for step in steps) / (cycles / (self.clock_mhz * 1e6))


Observer = Callable[[Outcome], None]


def prepare(
    model: Any, tokenizer: Any, text: str, questions: Sequence[str], options: Options
) -> Conversation:
    """Put document and questions into the model's chat template, and compute the document.

    Raises
    ------
    ValueError
        when the document is shorter than a chunk.
    """
    before, after = _template(tokenizer)
    head = _tokens(tokenizer, before)
    whole = head + _tokens(tokenizer, text)
    kept = min(len(whole), options.document_tokens) // options.chunk_tokens
    kept *= options.chunk_tokens
    if kept <= len(head):
        raise ValueError(
            f"document must have at least a chunk of {options.chunk_tokens} tokens, "
            f"not {len(whole) - len(head)}"
        )
    document = whole[:kept]
    prompts = [
        document + _tokens(tokenizer, REQUEST + question + after) for question in questions
    ]
    k, v = prefill(model, document)
    return Conversation(document, k, v, list(questions), prompts, len(whole) - kept)


@contextmanager
def serving(
    model: Any, device: Device, path: Path, conversation: Conversation, options: Options
) -> Generator[Orchestrator, None, None]:
    """Orchestrator with the document in the device's memory."""
    with Library(
        device,
        geometry(model),
        chunk_tokens=options.chunk_tokens,
        router=options.router,
    ) as library:
        library.add(conversation.document, conversation.k, conversation.v, name="document")
        policy = Policy(always="unit" if options.where == "unit" else None)
        with Orchestrator(library, path, k=options.k, policy=policy) as orchestrator:
            yield orchestrator


def run(
    model: Any,
    tokenizer: Any,
    device: Device,
    path: Path,
    conversation: Conversation,
    options: Options,
    observer: Observer = lambda _: None,
) -> Outcome:
    """Answer all questions at once, greedily.

    ``observer`` is called after each step.
    """
    outcome = Outcome(device.description, device.clock_mhz, path.detail)
    outcome.answers = [[] for _ in conversation.prompts]
    outcome.ended = [False for _ in conversation.prompts]
    end = _end_tokens(model, tokenizer)
    pad = min(end)
    model.set_attn_implementation(register())
    with serving(model, device, path, conversation, options) as orchestrator:
        outcome.store_bytes = orchestrator.library.nbytes
        with Batch(orchestrator, conversation.prompts, pad=pad, device=model.device) as batch:
            model.generate(
                **batch.inputs,
                max_new_tokens=options.new_tokens,
                min_new_tokens=min(options.min_tokens, options.new_tokens),
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=sorted(end),
                streamer=_Streamer(batch, outcome, end, observer),
            )
    return outcome


def divergence(
    model: Any,
    device: Device,
    path: Path,
    conversation: Conversation,
    answers: Sequence[Sequence[int]],
    keeps: Sequence[float],
    options: Options,
) -> dict[float, dict[str, float]]:
    """KL (nats a token) and top-1 agreement against full attention, over the answers' tokens.

    Full attention is that of the model in float32, on keys and values that were not quantised.
    """
    model.set_attn_implementation("sdpa")
    expected = []
    for prompt, answer in zip(conversation.prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
        with torch.inference_mode():
            expected.append(_log_probabilities(model(ids).logits[0, -len(answer) :]))
    model.set_attn_implementation(register())
    asked = [
        [*prompt, *answer[:-1]]
        for prompt, answer in zip(conversation.prompts, answers, strict=True)
    ]
    figures = {}
    with serving(model, device, path, conversation, options) as orchestrator:
        for keep in keeps:
            k = None if keep == 1 else keep
            with (
                Batch(orchestrator, asked, device=model.device, k=k) as batch,
                torch.inference_mode(),
            ):
                logits = batch.forward(model).logits
            kl, top1 = [], []
            for row, target in enumerate(expected):
                found = _log_probabilities(logits[row, -len(target) :])
                kl.append((target.exp() * (target - found)).sum(-1))
                top1.append(target.argmax(-1) == found.argmax(-1))
            figures[keep] = {
                "kl": float(torch.cat(kl).double().mean()),
                "top1": float(torch.cat(top1).double().mean()),
            }
    return figures


class _Streamer:
    """Takes each step's tokens from ``generate``."""

    def __init__(
        self, batch: Batch, outcome: Outcome, end: frozenset[int], observer: Observer
    ) -> None:
        self._batch = batch
        self._outcome = outcome
        self._end = end
        self._observer = observer
        self._start = time.perf_counter()

    def put(self, tokens: torch.Tensor) -> None:
        """Take the prompts, at first, and then a token of each answer."""
        outcome = self._outcome
        if not self._batch.reports:
            self._start = time.perf_counter()
            return
        open_rows = [row for row, ended in enumerate(outcome.ended) if not ended]
        for row in open_rows:
            token = int(tokens[row])
            if token in self._end:
                outcome.ended[row] = True
            else:
                outcome.answers[row].append(token)
        now = time.perf_counter()
        outcome.steps.append(
            StepFigures(
                not outcome.steps, len(open_rows), now - self._start, self._batch.reports[-1]
            )
        )
        self._start = now
        self._observer(outcome)

    def end(self) -> None:
        """Nothing is left to say."""


def _template(tokenizer: Any) -> tuple[str, str]:
    """Text before the document and behind the question."""
    if tokenizer.chat_template is None:
        return "", "\n\nAnswer:"
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": MARK}], tokenize=False, add_generation_prompt=True
    )
    before, _, after = text.partition(MARK)
    return before, after


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    named = model.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [named, tokenizer.eos_token_id]
    return frozenset(token for token in ids if token is not None)


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(dim=-1)
