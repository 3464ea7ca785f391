"""The committed outputs of the register map are fresh, and agree with it."""

import pathlib
import re
import shutil
import subprocess

import pytest

from moska.gen.registers import OUTPUTS, c_header, markdown, python, write_all
from moska.hw.registers import Kind, field_path, load_map

ROOT = pathlib.Path(__file__).parents[2]
MAP = load_map()


def expected_constants():
    """Return all constants by name, derived from the map alone."""
    constants = {}
    for register in MAP.registers:
        name = register.name.upper()
        constants[name] = register.offset
        for field in register.fields:
            full = name if field.name == "value" else f"{name}_{field.name.upper()}"
            if full != name:
                constants[f"{full}_SHIFT"] = field.lsb
                constants[f"{full}_MASK"] = (2**field.width - 1) << field.lsb
            if field.kind is Kind.CONSTANT:
                constants[f"{full}_VALUE"] = field.reset
    return constants


@pytest.mark.parametrize("name", OUTPUTS)
def test_committed_file_is_fresh(name):
    committed = (ROOT / name).read_text(encoding="utf-8")
    assert committed == OUTPUTS[name](MAP), f"run moska.gen.registers.write_all to renew {name}"


def test_write_all(tmp_path):
    paths = write_all(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in paths] == list(OUTPUTS)
    for name, text in OUTPUTS.items():
        assert (tmp_path / name).read_text(encoding="utf-8") == text(MAP)


def test_python_constants():
    scope = {}
    exec(python(MAP), scope)
    groups = {name.upper() for name, _ in MAP.groups}
    constants = {
        name: value for name, value in scope.items() if name.isupper() and name not in groups
    }
    assert constants == expected_constants()
    for group, _ in MAP.groups:
        members = {reg.name: reg.offset for reg in MAP.registers if reg.group == group}
        assert scope[group.upper()] == members
    assert len(scope["WINDOW"]) == 9
    assert len(scope["PARAMETERS"]) == 12
    assert len(scope["COUNTERS"]) == 16


def test_c_constants():
    defines = re.findall(r"^#define MOSKA_(\w+) (\w+)$", c_header(MAP), flags=re.MULTILINE)
    assert len(defines) == len(dict(defines))
    values = {name: int(value.rstrip("u"), 0) for name, value in defines}
    assert values == expected_constants()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_c_header_compiles(tmp_path):
    source = tmp_path / "t.c"
    checks = "\n".join(
        f'_Static_assert(MOSKA_{name} == {value}u, "{name}");'
        for name, value in expected_constants().items()
    )
    source.write_text(f'#include "moska_regs.h"\n#include "moska_regs.h"\n{checks}\n')
    (tmp_path / "moska_regs.h").write_text(c_header(MAP))
    subprocess.run(
        ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(source)],
        check=True,
        timeout=60,
    )


def test_markdown_names_every_register_and_field():
    rows = [line for line in markdown(MAP).splitlines() if line.startswith("|")]
    assert all(row.count("|") == 7 for row in rows)
    text = "\n".join(rows)
    for register in MAP.registers:
        assert f"| `0x{register.offset:02X}` | **{register.name.upper()}** |" in text
        assert register.desc in text
        for field in register.fields:
            assert field.desc in text
            if field.name != "value":
                assert f"| `{field_path(register, field)}` |" in text


def test_markdown_tells_how_fields_are_written():
    rows = {}
    for line in markdown(MAP).splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 8:
            rows[cells[2].strip("*`")] = cells[4]
    assert rows["READ_BASE_LO"] == "read, write while `lock` is 0"
    assert rows["LOCK"] == "read, write 1 to set"
    assert rows["TAIL"] == "read, write"
    assert rows["event.done"] == "read, write 1 to clear"
    assert rows["HEAD"] == "read only"
