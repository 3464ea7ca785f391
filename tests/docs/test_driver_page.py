"""The page about the driver: its examples run, its tables list what there is."""

import inspect
import pathlib
import re

import numpy as np

from moska import host
from moska.host import Device, Transport, errors, regmap
from moska.sim.transport import GOLDEN_OPTIONS, SIM_OPTIONS

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "driver.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def names(heading, column=0):
    """Names in code font in a column of the first table behind some text."""
    table = PAGE[PAGE.index(heading) :].split("\n\n|", 1)[1].split("\n\n", 1)[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [re.findall(r"`(\w+)[(`]", cells[column]) for cells in rows]


def flat(rows):
    return {name for row in rows for name in row}


def test_the_example_runs_and_prints_what_it_says(capsys):
    exec(compile(EXAMPLES[0], "driver.md", "exec"), {})
    out = capsys.readouterr().out
    assert out.startswith("(40, 16) (40,) None\n[3 3 3 3]\n")
    assert out.endswith("6 jobs\n")


def test_options():
    assert flat(names("Options follow")) == SIM_OPTIONS.keys()
    for name in SIM_OPTIONS:
        assert f"| `{name}` | {'both' if name in GOLDEN_OPTIONS else '`sim:`'} |" in PAGE
    arguments = inspect.signature(host.open).parameters
    assert flat(names("An unknown scheme")) == arguments.keys() - {"uri"}


def test_arguments_of_a_job():
    arguments = inspect.signature(Device.submit).parameters.keys() - {"self", "handle"}
    assert flat(names("## Jobs")) == arguments


def test_errors():
    classes = {
        name for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    }  # fmt: skip
    library = {"BudgetExceeded", "CorruptLibrary", "InUse", "NotStored"}  # on its own page
    listed = [row[0] for row in names("## Errors")]
    assert set(listed) == classes - library - {"MoskaError", "JobError"}
    assert {errors.BY_CODE[code].__name__ for code in errors.BY_CODE} == set(listed[:6])


def test_members_of_a_transport():
    listed = flat(names("## A transport for a board"))
    members = {name for name in vars(Transport) if not name.startswith("_")}
    assert listed == members | {"memory_base", "memory_bytes"}


def test_transport_of_a_card(tmp_path):
    """Registers and memory of the example are those of the files."""
    (tmp_path / "resource0").write_bytes(bytes(0x2000))
    (tmp_path / "resource2").write_bytes(bytes(1 << 16))
    space = {}
    exec(compile(EXAMPLES[1], "driver.md", "exec"), space)
    card = space["MappedTransport"](tmp_path)
    card.write32(regmap.SCRATCH, 0x89ABCDEF)
    assert card.read32(regmap.SCRATCH) == 0x89ABCDEF
    card.write(64, b"abc")
    assert card.read(63, 5) == b"\0abc\0"
    assert card.wait(0.001) is False
    card.write32(regmap.EVENT, 1)
    assert card.wait(0.001) is True
    card.reset()
    assert isinstance(card._registers, np.memmap)
    card.close()
    card.close()
