"""Examples of the page run, and its figures are those that the code has."""

import pathlib
import re

import pytest

from moska.host import unique
from moska.host.merge import FLASHINFER_EMPTY
from moska.host.orchestrator import Settings
from moska.host.policy import JOB_SECONDS, Policy

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def rows_of(heading):
    """First two cells of each row of the table whose header begins with ``heading``."""
    lines = PAGE.split(f"\n| {heading} |", 1)[1].splitlines()[2:]
    table = lines[: lines.index("")]
    return [[cell.strip() for cell in line.split("|")[1:3]] for line in table]


def test_examples_run(capsys):
    assert len(EXAMPLES) == 2
    for example in EXAMPLES:
        exec(compile(example, "serving.md", "exec"), {})
    assert capsys.readouterr().out == "6 9.0\n"
    assert "# 6 jobs of 9 rows" in EXAMPLES[0]


def test_tables_name_every_setting_and_path():
    listed = {name: default for names, default in rows_of("setting") for name in names.split(", ")}
    settings = Settings()
    assert listed.keys() == {f"`{name}`" for name in Settings.__dataclass_fields__}
    assert listed["`keep_first`"] == f"{settings.keep_first}, {settings.keep_last}"
    assert listed["`dense_layers`"] == ", ".join(map(str, settings.dense_layers))
    assert (settings.k, settings.group_decision, settings.policy.always) == (None, False, None)
    paths = [name.strip("`") for name, _ in rows_of("path")]
    assert paths == [path.name for path in unique.available()]


def test_figures():
    assert f"starts at {round(1e6 * JOB_SECONDS)} us" in PAGE
    assert Policy().cycles_ratio == pytest.approx(1)
    assert f"{FLASHINFER_EMPTY:.0f}, a finite" in PAGE
