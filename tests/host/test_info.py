import json
from importlib import metadata

from click.testing import CliRunner

from moska.gen.cli import main
from moska.host import unique


def test_json_tells_links_and_paths():
    result = CliRunner().invoke(main, ["info", "--json"])
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert shown["version"] == metadata.version("moska")
    assert {"golden:", "sim:"} <= shown["transports"].keys()
    listed = unique.available()
    assert [path["name"] for path in shown["paths"]] == [path.name for path in listed]
    assert [path["usable"] for path in shown["paths"]] == [path.usable for path in listed]
    assert shown["chosen_path"] == unique.best().name


def test_table_tells_what_is_chosen_and_why_others_are_not(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(main, ["info"])
    assert result.exit_code == 0
    lines = [line.replace("│", "").split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines if line[1:2] == ["chosen"]] == [unique.best().name]
    for path in unique.available():
        (line,) = [line for line in lines if line[:1] == [path.name]]
        assert " ".join(line).endswith(path.detail)
        assert (line[1] == "no") != path.usable
