"""What `moska chat` and `moska eval` show."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from moska.host.llm.chat import Conversation, Outcome, StepFigures
from moska.host.llm.report import HEADER, SECTIONS, line

SHOWN_STEPS = 6


class ChatView:
    """Answers as they come, and figures of the steps.

    On a terminal, a panel for each question is filled in place; elsewhere, each step is a line. The
    rows of a step are those that meet at a chunk, of one layer and KV head.
    """

    def __init__(
        self, console: Console, tokenizer: Any, conversation: Conversation, title: str
    ) -> None:
        self._console = console
        self._tokenizer = tokenizer
        self._conversation = conversation
        self._title = title
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "ChatView":
        self._console.rule(self._title)
        if self._live:
            self._live.start()
            self._live.update(Text("prefill of the questions ..."), refresh=True)
        else:
            self._console.print("prefill of the questions ...")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def step(self, outcome: Outcome) -> None:
        """Show the latest step."""
        if self._live:
            self._live.update(self._picture(outcome), refresh=True)
        else:
            self._console.print(self._line(outcome), highlight=False)

    def finish(self, outcome: Outcome) -> None:
        """Show the answers, where they have not been seen yet, and totals."""
        if self._live:
            self._live.stop()
        else:
            self._console.print(self._answers(outcome))
        self._console.print(totals(outcome))

    def texts(self, outcome: Outcome) -> list[str]:
        """Return the answers."""
        return [
            str(self._tokenizer.decode(answer, skip_special_tokens=True))
            for answer in outcome.answers
        ]

    def _picture(self, outcome: Outcome) -> RenderableType:
        return Group(self._answers(outcome), steps_table(outcome))

    def _answers(self, outcome: Outcome) -> RenderableType:
        width = max(24, self._console.width // min(2, len(outcome.answers)) - 1)
        texts = self.texts(outcome)
        panels = [
            Panel(Text(text), title=Text(question), title_align="left", width=width)
            for question, text in zip(self._conversation.questions, texts, strict=True)
        ]
        return Columns(panels)

    def _line(self, outcome: Outcome) -> str:
        step = outcome.steps[-1]
        cells = dict(zip(COLUMNS, step_cells(outcome, len(outcome.steps) - 1), strict=True))
        what = "prefill" if step.prefill else f"token {cells['step']:>3}"
        rate = "" if step.prefill else f" ({cells['tokens/s']} tokens/s)"
        return (
            f"{what}: {cells['rows']} rows, chunks: {cells['chunks read']} read, "
            f"{cells['skipped']} skipped, {cells['cycles']} cycles{rate}, {cells['seconds']} s: "
            f"unit {cells['unit']}, unique {cells['unique']}, host {cells['host']}, "
            f"model {cells['model']}"
        )


COLUMNS = (
    "step", "rows", "jobs", "chunks read", "skipped", "cycles", "tokens/s", "seconds", "unit",
    "unique", "host", "model",
)  # fmt: skip


def step_cells(outcome: Outcome, index: int) -> list[str]:
    """Texts of a step, in the order of COLUMNS."""
    step = outcome.steps[index]
    report = step.report
    rate = outcome.tokens_per_second([step])
    return [
        "prefill" if step.prefill else str(index + 1),
        f"{report.rows_per_job:.0f}",
        f"{report.jobs}",
        f"{report.chunks_read:,}",
        f"{report.chunks_skipped:,}",
        f"{report.cycles:,}",
        "-" if rate is None or step.prefill else f"{rate:.1f}",
        f"{step.seconds:.2f}",
        *(f"{seconds:.2f}" for seconds in spent(step).values()),
    ]


def spent(step: StepFigures) -> dict[str, float]:
    """Seconds of a step, by what they were spent on.

    The unit works beside the unique part: its time is what was waited for it.
    """
    seconds = step.report.seconds
    return {
        "unit": seconds["wait"],
        "unique": seconds["unique"] + seconds["path"],
        "host": step.report.host_seconds,
        "model": step.model_seconds,
    }


def steps_table(outcome: Outcome) -> Table:
    """Latest steps; times in seconds."""
    table = Table(box=None, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for index in range(max(0, len(outcome.steps) - SHOWN_STEPS), len(outcome.steps)):
        table.add_row(*step_cells(outcome, index))
    return table


def totals(outcome: Outcome) -> Table:
    """Where the work was done, and what it took."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()

    def where(steps: Sequence[StepFigures]) -> str:
        taken = [decision for step in steps for decision in step.report.decisions]
        on_unit = sum(decision.unit for decision in taken)
        if not taken:
            return "nothing is shared"
        if on_unit == len(taken):
            return "on the unit"
        return "on the path" if not on_unit else f"{on_unit} of {len(taken)} batches on the unit"

    first = outcome.steps[:1]
    decode = outcome.decode
    table.add_row("unit", outcome.description)
    table.add_row("path", outcome.path)
    table.add_row("document", f"{outcome.store_bytes:,} bytes in the unit's memory")
    table.add_row("shared part", f"questions' prefill {where(first)}, answers {where(decode)}")
    for step in (*first, *decode[:1]):
        for decision in step.report.decisions[-1:]:
            table.add_row("", f"{decision.work.n_rows} rows together: {decision.reason}")
    rate = outcome.tokens_per_second(decode)
    if rate is not None:
        cycles = sum(step.report.cycles for step in decode) / len(decode)
        table.add_row(
            "unit's speed",
            f"{cycles:,.0f} cycles a step, {rate:.1f} tokens/s at {outcome.clock_mhz:g} MHz, "
            "the unit's work alone",
        )
    seconds = sum(step.seconds for step in outcome.steps)
    parts = [spent(step) for step in outcome.steps]
    shares = ", ".join(
        f"{name} {100 * sum(part[name] for part in parts) / seconds:.0f} %" for name in parts[0]
    )
    table.add_row("time", f"{seconds:.1f} s: {shares}")
    return table


def divergence_table(figures: Mapping[float, Mapping[str, float]]) -> Table:
    """KL and agreement by the share of chunks."""
    table = Table(title="Against full attention, over the answers", title_justify="left")
    for column in ("chunks kept", "KL, nats a token", "same most likely token"):
        table.add_column(column, justify="right")
    for keep, found in figures.items():
        kept = "all" if keep == 1 else f"{100 * keep:g} %"
        table.add_row(kept, f"{found['kl']:.2e}", f"{100 * found['top1']:.1f} %")
    return table


def quality_table(figures: Mapping[str, Any]) -> Table:
    """All lines of `moska eval`."""
    sizes = figures["sizes"]
    title = (
        f"{figures['model']}, {sizes['document']} shared tokens, {sizes['passages']} passages of "
        f"{sizes['length']} tokens a set"
    )
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for index, column in enumerate(HEADER):
        table.add_column(column, justify="left" if index == 0 else "right")
    table.add_row("full attention", *line(figures["full"])[1:])
    table.add_row("no shared part", *line(figures["none"])[1:])
    for section, title in SECTIONS.items():
        cases = [case for case in figures["cases"] if case["section"] == section]
        if cases:
            table.add_section()
            table.add_row(f"[bold]{title}")
        for case in cases:
            table.add_row(*line(case["sets"], case))
    return table
