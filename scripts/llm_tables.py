"""Put figures of `moska eval` and `moska chat --check` into the page docs/llm.md.

The tables between ``<!-- eval -->``, ``<!-- chat -->`` and the next ``<!-- end -->`` are written
anew, and docs/images/eval.svg is drawn.

    python scripts/llm_tables.py build/eval/eval.json build/llm/chat.json
"""

import json
import pathlib
import sys

from moska.host.llm import chart
from moska.host.llm.report import HEADER, SECTIONS, line
from moska.sim.page import put, table

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "llm.md"


def eval_section(figures: dict) -> str:
    """Lines of all cases, a heading before each section's."""
    empty = [""] * (len(HEADER) - 1)
    rows = [
        ["full attention, float32", *line(figures["full"])[1:]],
        ["no shared part", *line(figures["none"])[1:]],
    ]
    for section, title in SECTIONS.items():
        cases = [case for case in figures["cases"] if case["section"] == section]
        rows += [[f"**{title}**", *empty], *(line(case["sets"], case) for case in cases)]
    return "\n".join(table(HEADER, rows))


def chat_section(figures: dict) -> str:
    """Answers, speed and distance to full attention."""
    answers = [
        (question, *(device["answers"][index]["text"] for device in figures["devices"].values()))
        for index, question in enumerate(figures["questions"])
    ]
    header = ("question", *figures["devices"])
    lines = table(header, answers, left=len(header))
    rows = []
    for uri, device in figures["devices"].items():
        decode = [step for step in device["steps"] if not step["prefill"]]
        prefill = device["steps"][0]
        rows.append([
            uri,
            f"{prefill['cycles']:,}",
            f"{sum(step['cycles'] for step in decode) / len(decode):,.0f}",
            f"{device['tokens_per_second']:.1f}",
        ])
    header = ("device", "cycles, prefill", "cycles a step", "tokens/s of the unit alone")
    lines += table(header, rows)
    kept = [
        [f"{100 * float(keep):g} %", f"{found['kl']:.1e}", f"{100 * found['top1']:.1f} %"]
        for keep, found in figures["against_full_attention"].items()
    ]
    lines += table(("chunks kept", "KL, nats a token", "same most likely token"), kept)
    return "\n".join(lines)


def refresh(path: pathlib.Path) -> None:
    """Write the tables of one file."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    if "cases" in figures:
        put(PAGE, "eval", eval_section(figures))
        chart.plot(figures, DOCS / "images" / "eval.svg")
    else:
        put(PAGE, "chat", chat_section(figures))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        refresh(pathlib.Path(argument))
