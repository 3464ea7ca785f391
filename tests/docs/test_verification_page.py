"""The page on verification lists every proof with its kind, and the bugs that it catches."""

import pathlib
import runpy

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "verification.md"
HEAD = "| proof | properties | kind | seeded bug | caught by |"


def rows(proof):
    """Rows of the page's table: a proof in the first one, each of its bugs in one."""
    harness = proof.build()
    harness.rtlil()  # a component that is not elaborated is an error
    cells = f"`{proof.name}` | {len(harness.checks)} | {proof.claim}"
    for bug in proof.bugs:
        yield f"| {cells} | `{bug.name}` | `{bug.caught_by}` |"
        cells = " | | "
    if not proof.bugs:
        yield f"| {cells} | | |"


def written(page):
    """Rows of the table with HEAD."""
    table = page.split(HEAD)[1].split("\n\n")[0]
    return table.splitlines()[2:]


def test_every_proof_and_bug():
    """A changed proof must change the page: what is listed is what `make formal` runs."""
    expected = []
    for path in sorted((ROOT / "tests" / "formal").glob("test_*.py")):
        for proof in runpy.run_path(str(path))["PROOFS"]:
            expected += rows(proof)
    assert written(PAGE.read_text(encoding="utf-8")) == expected, "\n".join(expected)
