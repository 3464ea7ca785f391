import json
import subprocess
import sys
from importlib import metadata

import pytest
from click.testing import CliRunner

from moska.gen import bound
from moska.gen.cli import main
from moska.gen.config import Config, preset_names


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"moska, version {metadata.version('moska')}\n"


@pytest.mark.parametrize("command", ["info", "generate", "demo"])
def test_help_names_the_command_and_gives_examples(command):
    assert f"  {command}  " in run("--help").stdout
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"moska {command}" in result.stdout.split("Examples:")[1]


@pytest.mark.parametrize("name", preset_names())
def test_json(name):
    result = run("info", name, "--json")
    assert result.exit_code == 0
    config = Config.load(name)
    shown = json.loads(result.stdout)
    assert shown["parameters"] == config.parameters()
    for section in ("shapes", "widths", "memories"):
        assert shown[section] == {key: getattr(config, key) for key in shown[section]}
    assert shown["memories"]["memory_bits"] == config.memory_bits
    assert shown["bound"]["token_bytes"] == bound.token_bytes(config)
    assert shown["bound"]["balance_rows"] == bound.balance_rows(config)


def test_table_shows_every_value(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = run("info", "ulx3s")
    assert result.exit_code == 0
    shown = json.loads(run("info", "ulx3s", "--json").stdout)
    lines = [line.replace("│", "").split() for line in result.stdout.splitlines()]
    for section in shown.values():
        for name, value in section.items():
            text = value if isinstance(value, str) else f"{value:,}"
            assert any(line[:2] == [name, text] for line in lines), (name, text)


@pytest.mark.parametrize("command", [("info",), ("generate", "-o", "unused"), ("demo",)])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("head_dim = 60\n", "name, fold, "),
        ("heads = 60\n", "parameters must be known ones, not 'heads'; did you mean 'head_dim'?"),
        ("fold = \n", "config must be valid TOML: "),
    ],
)
def test_refused_file_is_one_line_and_exit_2(tmp_path, command, content, message):
    path = tmp_path / "unit.toml"
    path.write_text(content)
    result = run(*command, path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"moska: error: {message}")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")


def test_installed_command_refuses_without_a_traceback():
    result = subprocess.run(
        [sys.executable, "-c", "from moska.gen.cli import main; main()", "info", "ulx3"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "moska: error: config must be a preset (sim64, tiny, u55c, ulx3s) or a .toml file, "
        "not 'ulx3'; did you mean 'ulx3s'?\n"
    )


def test_start_is_fast_because_amaranth_is_not_imported():
    code = (
        "import sys, moska.gen.cli; "
        "print([m for m in ('amaranth', 'cocotb', 'matplotlib', 'rich') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "[]\n"
