"""What the commands `moska chat` and `moska eval` do, between their options and their figures."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from moska import host
from moska.host import unique
from moska.host.llm import evaluate as evaluation
from moska.host.llm import text
from moska.host.llm.chat import Conversation, Options, Outcome, divergence, prepare, run
from moska.host.llm.view import ChatView, divergence_table, quality_table

KEEPS = (1.0, 0.5, 0.25)  # whose distance to full attention is measured
QUICK = evaluation.Sizes(document=512, passages=2)


def default_questions() -> list[str]:
    """Questions that are asked when the user has none."""
    return text.questions()[:4]


def chat(
    tools: tuple[Any, Any],
    uri: str,
    other: str | None,
    document: str,
    questions: Sequence[str],
    given: Mapping[str, Any],
    max_kl: float,
) -> tuple[dict[str, Any], list[str]]:
    """Answer questions and show it; returns figures for JSON, and what is not as it must be.

    Parameters
    ----------
    tools
        model and tokenizer.
    uri
        device that answers.
    other
        device that must answer the same, and where the distance to full attention is measured;
        None: neither.
    given
        fields of :class:`~moska.host.llm.chat.Options`.
    max_kl
        from full attention, of all chunks.

    Raises
    ------
    ValueError
        for a device that is not known, or options that do not fit.
    MoskaError
        when a device fails.
    """
    model, tokenizer = tools
    console = _console()
    options = Options(**given)
    path = unique.best(device=model.device.type, dtype="float32")
    with console.status("prefill of the document"):
        conversation = prepare(model, tokenizer, document, questions, options)
    console.print(
        f"document: {len(conversation.document)} tokens, {conversation.left_out} left out; "
        f"{len(questions)} questions",
        highlight=False,
    )
    outcomes = {
        address: _answer(console, tools, address, path, conversation, options)
        for address in dict.fromkeys((uri, *([other] if other else [])))
    }
    figures: dict[str, Any] = {
        "options": dataclasses.asdict(options),
        "document_tokens": len(conversation.document),
        "questions": list(questions),
        "devices": {
            address: _figures(outcome, tokenizer) for address, outcome in outcomes.items()
        },
    }
    problems: list[str] = []
    if other:
        problems = _compare(outcomes)
        if not problems and other != uri:
            counts = ", ".join(str(len(answer)) for answer in outcomes[uri].answers)
            console.print(f"{uri} and {other}: the same tokens ({counts})", highlight=False)
        with console.status("distance to full attention"), host.open(other) as device:
            found = divergence(
                model, device, path, conversation, outcomes[other].answers, KEEPS, options
            )
        console.print(divergence_table(found))
        figures["against_full_attention"] = {str(keep): one for keep, one in found.items()}
        if not found[1.0]["kl"] <= max_kl:
            problems.append(f"KL of all chunks must be at most {max_kl}, not {found[1.0]['kl']}")
    return figures, problems


def evaluate(
    tools: tuple[Any, Any],
    document: str,
    *,
    quick: bool = False,
    document_tokens: int | None = None,
    passages: int | None = None,
) -> dict[str, Any]:
    """Measure quality and show it; returns figures for JSON."""
    model, tokenizer = tools
    console = _console()
    sizes = QUICK if quick else evaluation.Sizes()
    given = {"document": document_tokens, "passages": passages}
    sizes = dataclasses.replace(sizes, **{key: n for key, n in given.items() if n})
    listed = evaluation.cases(quick=quick)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(listed) + 2)

        def step(words: str) -> None:
            progress.update(task, advance=1 if progress.tasks[0].description else 0)
            progress.update(task, description=words)
            if not console.is_terminal:
                console.print(f"{time.perf_counter() - start:6.0f} s  {words}", highlight=False)

        figures = evaluation.evaluate(
            model, tokenizer(document)["input_ids"], listed, sizes, progress=step
        )
    figures["seconds"] = round(time.perf_counter() - start)
    console.print(quality_table(figures))
    return figures


def _console() -> Console:
    """Console for tables, wide enough for them when the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)
    return console


def _answer(
    console: Console,
    tools: tuple[Any, Any],
    uri: str,
    path: unique.Path,
    conversation: Conversation,
    options: Options,
) -> Outcome:
    with console.status(f"open {uri}; a simulator that is not cached is built for minutes"):
        device = host.open(uri)
    with device, ChatView(console, tools[1], conversation, uri) as view:
        outcome = run(*tools, device, path, conversation, options, view.step)
        view.finish(outcome)
    return outcome


def _compare(outcomes: Mapping[str, Outcome]) -> list[str]:
    problems = []
    (first, one), *others = outcomes.items()
    for address, outcome in others:
        for index, pair in enumerate(zip(one.answers, outcome.answers, strict=True)):
            if pair[0] != pair[1]:
                problems.append(f"answer {index + 1} of {address} must be that of {first}")
    return problems


def _figures(outcome: Outcome, tokenizer: Any) -> dict[str, Any]:
    return {
        "description": outcome.description,
        "clock_mhz": outcome.clock_mhz,
        "path": outcome.path,
        "store_bytes": outcome.store_bytes,
        "tokens_per_second": outcome.tokens_per_second(outcome.decode),
        "answers": [
            {"tokens": answer, "text": tokenizer.decode(answer)} for answer in outcome.answers
        ],
        "steps": [
            {
                "prefill": step.prefill,
                "new_tokens": step.new_tokens,
                "seconds": step.seconds,
                "rows": step.report.rows,
                "jobs": step.report.jobs,
                "chunks_read": step.report.chunks_read,
                "chunks_skipped": step.report.chunks_skipped,
                "cycles": step.report.cycles,
                "seconds_by_part": step.report.seconds,
                "on_unit": [decision.unit for decision in step.report.decisions],
            }
            for step in outcome.steps
        ],
    }
