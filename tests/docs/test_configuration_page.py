"""The pages on configurations agree with the parameters and the presets."""

import dataclasses
import pathlib
import re
import sys

from moska.gen.config import Config, preset_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).parents[2]
EXTRA = {"torch", "transformers"}  # of the extra llm, which these tests do without
PAGE = ROOT / "docs" / "configuration.md"
PARAMETERS = [field.name for field in dataclasses.fields(Config)]


def table(heading):
    """Rows of the first table below ``heading``, header first, cells without back quotes."""
    section = PAGE.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]] for line in lines]
    return [rows[0], *rows[2:]]


def test_every_parameter_is_listed():
    """The table has the parameters, in order, each with a meaning and a range."""
    rows = table("Parameters")[1:]
    assert [row[0] for row in rows] == PARAMETERS
    assert all(row[1] and row[2] for row in rows)


def test_presets_are_as_listed():
    """Every preset is a column, with its values."""
    header, *rows = table("Presets")
    assert sorted(header[1:]) == preset_names()
    for column, name in enumerate(header[1:], start=1):
        listed = {row[0]: row[column] for row in rows}
        values = Config.load(name).parameters()
        assert listed == {key: str(values[key]) for key in PARAMETERS if key != "name"}, name


def blocks(path, language):
    """Code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)


def test_example_configurations_are_legal():
    """The TOML examples of the pages load, but for those of a package's own file."""
    found = 0
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for text in blocks(path, "toml"):
            values = tomllib.loads(text)
            if "project" not in values:
                Config.from_dict(values)
                found += 1
    assert found >= 2


def test_example_programs_are_valid_python():
    """The Python examples compile, and what they import from the project exists."""
    found = 0
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for text in blocks(path, "python"):
            code = compile(text, str(path), "exec")
            assert code.co_names, path
            imports = [line for line in text.splitlines() if line.startswith("from moska.")]
            try:
                exec("\n".join(imports), {})
            except ModuleNotFoundError as error:
                if error.name not in EXTRA:
                    raise
            found += len(imports)
    assert found >= 5
