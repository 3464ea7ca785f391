"""Commands `moska build` and `moska flash`: options, messages, exit status."""

import json

import pytest
from click.testing import CliRunner

from moska.fpga import cli
from moska.gen.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def loader(tmp_path, monkeypatch):
    """Stand-in for openFPGALoader: writes its arguments to a file and ends with a status."""
    seen = tmp_path / "seen.json"

    def make(status=0):
        program = tmp_path / "loader"
        program.write_text(
            "#!/usr/bin/env python3\nimport json, pathlib, sys\n"
            f"pathlib.Path({str(seen)!r}).write_text(json.dumps(sys.argv[1:]))\n"
            f"sys.exit({status})\n"
        )
        program.chmod(0o755)
        monkeypatch.setattr(cli, "LOADER", program)
        return lambda: json.loads(seen.read_text())

    return make


@pytest.fixture
def bitstream(tmp_path):
    file = tmp_path / "my.bit"
    file.write_bytes(b"bits")
    return file


def test_flash_loads_a_file(loader, bitstream):
    seen = loader()
    result = run("flash", "ulx3s", bitstream)
    assert result.exit_code == 0
    assert seen() == ["--board", "ulx3s", str(bitstream)]


def test_flash_keeps_it_on_request(loader, bitstream):
    seen = loader()
    assert run("flash", "ulx3s", bitstream, "--keep").exit_code == 0
    assert seen() == ["--board", "ulx3s", "--write-flash", str(bitstream)]


def test_flash_takes_what_build_has_made(loader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = loader()
    result = run("flash", "ulx3s")
    assert result.exit_code == 2
    assert "there is no build/ulx3s/ulx3s.bit, see `moska build ulx3s`" in result.stderr
    (tmp_path / "build" / "ulx3s").mkdir(parents=True)
    (tmp_path / "build" / "ulx3s" / "ulx3s.bit").write_bytes(b"bits")
    assert run("flash", "ulx3s").exit_code == 0
    assert seen() == ["--board", "ulx3s", "build/ulx3s/ulx3s.bit"]


def test_flash_tells_when_the_board_is_not_loaded(loader, bitstream, monkeypatch, tmp_path):
    loader(status=3)
    result = run("flash", "ulx3s", bitstream)
    assert result.exit_code == 1
    assert "openFPGALoader ended with status 3: the board has not been loaded" in result.stderr
    monkeypatch.setattr(cli, "LOADER", tmp_path / "nothing")
    result = run("flash", "ulx3s", bitstream)
    assert result.exit_code == 2
    assert "the extra fpga must be installed" in result.stderr


def test_unknown_boards_are_refused(bitstream):
    for command in ("build", "flash"):
        result = run(command, "ulx4s")
        assert result.exit_code == 2
        assert "'ulx4s' is not 'ulx3s'" in result.stderr


@pytest.mark.parametrize("arguments", [["--frequency", "10"], ["--seed", "-1"]])
def test_build_refuses_values(arguments):
    assert run("build", "ulx3s", *arguments).exit_code == 2


def test_build_refuses_an_unknown_configuration():
    result = run("build", "ulx3s", "--config", "nothing")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.fpga
def test_build_refuses_a_unit_that_does_not_fit_the_board(tmp_path):
    result = run("build", "ulx3s", "--config", "u55c", "-o", tmp_path)
    assert result.exit_code == 2
    assert "config must have 1 read port of 64 bits on this board" in result.stderr
