"""The wheel holds every module and data file of the tree, and works on its own."""

import pathlib
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTS = ("hw", "gen", "sim", "golden", "host", "fpga")
SHIPPED = {".py", ".rdl", ".json", ".npz", ".html", ".vlt", ".toml", ".h", ".cpp", ".txt"}


def is_product(path):
    """Tell sources from what running them leaves behind."""
    left_behind = {"__pycache__", "sim_build", "build", ".hypothesis"}
    shipped = path.suffix in SHIPPED or path.parent.name == "templates"
    return path.is_file() and shipped and not left_behind & set(path.parts)


def tree_files():
    return {
        path.relative_to(ROOT).as_posix()
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if is_product(path)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that a stale build folder cannot add files to it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part)
    target = tmp_path_factory.mktemp("wheel")
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(target)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, timeout=120)
    (path,) = target.glob("*.whl")
    return path


def test_packages_equal_the_tree(monkeypatch):
    seen = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: seen.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    folders = {path.rsplit("/", 1)[0] for path in tree_files() if path.endswith(".py")}
    assert sorted(seen["packages"]) == sorted("moska." + path.replace("/", ".") for path in folders)


def test_wheel_holds_every_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if name.startswith("moska/")}
    assert packed == {f"moska/{path}" for path in tree_files()}
    assert "moska/gen/presets/ulx3s.toml" in packed
    assert "moska/hw/regs.rdl" in packed
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "moska = moska.gen.cli:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_wheel_works_outside_the_tree(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); "
        "import moska.gen.cli as cli; "
        # An editable install of the same package must not stand in for the wheel.
        f"assert cli.__file__.startswith({str(site)!r}), cli.__file__; "
        "cli.main(['info', 'u55c', '--json'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '"head_dim": 128' in result.stdout
