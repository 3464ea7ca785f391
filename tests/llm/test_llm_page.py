"""The page docs/llm.md: its program, and the tables that a script puts into it."""

import json
import pathlib
import re
import runpy

import pytest

pytestmark = pytest.mark.llm

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "llm.md"


def test_program(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, "llm.md", "exec"), {})
    assert re.match(r"[1-9]\d* chunks were read for the last token\n\[", capsys.readouterr().out)


def scores(kl):
    one = {"kl": kl, "kl_error": kl / 5, "top1": 0.9, "top1_error": 0.01, "perplexity": 7.5}
    return {"recall": one, "continuation": one}


def case(section, **fields):
    known = {
        "section": section, "label": "", "documents": "one", "keep": 1.0, "router": "minmax",
        "chunk_tokens": 32, "group": False, "numbers": "int8", "dense_layers": [0, 1], "work": 1.0,
        "seconds": 1.0, "sets": scores(0.02),
    }  # fmt: skip
    return known | fields


def test_script_writes_the_tables(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    page = tmp_path / "llm.md"
    page.write_text("<!-- eval -->\nstale\n<!-- end -->\nkept\n<!-- chat -->\n<!-- end -->\n")
    (tmp_path / "eval.json").write_text(
        json.dumps({
            "full": scores(0.0),
            "none": scores(1.5),
            "cases": [
                case("numbers"),
                case("router", router="submean:4", keep=0.25, work=0.375),
                case("scope", router="mean", keep=0.5, label="one decision a group"),
            ],
        })
    )
    step = {"prefill": False, "cycles": 1000, "seconds": 2.0}
    device = {
        "steps": [step | {"prefill": True, "cycles": 5000}, step, step],
        "tokens_per_second": 12.34,
        "answers": [{"tokens": [1], "text": "so"}],
    }
    (tmp_path / "chat.json").write_text(
        json.dumps({
            "questions": ["why?"],
            "devices": {"sim:tiny": device, "golden:tiny": device},
            "against_full_attention": {"1.0": {"kl": 2e-4, "top1": 1.0}},
        })
    )
    script = runpy.run_path(str(ROOT / "scripts" / "llm_tables.py"))
    for name, value in (("PAGE", page), ("DOCS", tmp_path)):
        monkeypatch.setitem(script["refresh"].__globals__, name, value)
        monkeypatch.setitem(script["chat_section"].__globals__, name, value)
    for name in ("eval.json", "chat.json"):
        script["refresh"](tmp_path / name)
    text = page.read_text()
    assert "stale" not in text
    assert "kept" in text
    assert "| submean:4, 25 % | 0.38 | 0.020 ± 4.0e-03 | 0.900 | 7.50 |" in text
    assert "| mean, 50 %, one decision a group |" in text
    assert "| why? | so | so |" in text
    assert "| sim:tiny | 5,000 | 1,000 | 12.3 |" in text
    assert "| 100 % | 2.0e-04 | 100.0 % |" in text
    assert (tmp_path / "images" / "eval.svg").exists()
