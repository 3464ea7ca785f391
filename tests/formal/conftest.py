"""Run the proofs of this folder and list them, one a line, at the end."""

import pathlib

import pytest

from moska.sim.formal import run, seeded

FOLDER = pathlib.Path(__file__).parents[2] / "build" / "formal"


def pytest_generate_tests(metafunc):
    """Give the tests of a file its PROOFS, and their covers and bugs."""
    proofs = getattr(metafunc.module, "PROOFS", ())
    if "bug" in metafunc.fixturenames:
        cases = [(proof, bug) for proof in proofs for bug in proof.bugs]
        names = [f"{proof.name}-{bug.name}" for proof, bug in cases]
        metafunc.parametrize(("proof", "bug"), cases, ids=names)
    elif "proof" in metafunc.fixturenames:
        metafunc.parametrize("proof", proofs, ids=[proof.name for proof in proofs])


@pytest.fixture
def report(record_property):
    """Add a line to the list at the end."""
    return lambda line: record_property("formal", line)


@pytest.fixture
def check_holds(report):
    """Prove all checks of a proof."""

    def check(proof):
        harness = proof.build()
        result = run(
            harness, FOLDER / proof.name / "holds", engine=proof.engine, depth=proof.depth
        )
        assert result.passed, (
            f"{proof.name}: {', '.join(result.failed) or 'no counterexample, but not proven'}; "
            f"trace in {result.folder}"
        )
        report(
            f"{proof.name}: {len(harness.checks)} properties hold "
            f"({proof.claim}, {proof.engine}) in {result.seconds:.1f} s"
        )

    return check


@pytest.fixture
def check_reached(report):
    """Reach all covers of a proof: its assumptions leave room for what it is about."""

    def check(proof):
        harness = proof.build()
        if not harness.covers:
            harness.rtlil()  # a component that is not elaborated is an error
            pytest.skip("no covers")
        result = run(harness, FOLDER / proof.name / "covers", engine="cover", depth=proof.reach)
        assert result.passed, f"{proof.name}: not reached: {', '.join(result.failed)}"
        report(f"{proof.name}: {len(harness.covers)} situations reached in {result.seconds:.1f} s")

    return check


@pytest.fixture
def check_caught(report):
    """Find the counterexample that a seeded bug makes."""

    def check(proof, bug):
        with seeded(bug.owner, bug.old, bug.new, method=bug.method):
            harness = proof.build()
            result = run(
                harness,
                FOLDER / proof.name / bug.name,
                engine="bmc",
                depth=proof.reach,
                only=bug.caught_by,
            )
        assert result.failed == (bug.caught_by,), (
            f"{proof.name}: the bug {bug.name} is not caught by {bug.caught_by}"
        )
        report(
            f"{proof.name}: bug {bug.name} caught by {bug.caught_by} "
            f"in cycle {result.step}, {result.seconds:.1f} s"
        )

    return check


def pytest_terminal_summary(terminalreporter):
    """List what has been proven."""
    lines = [
        value
        for report in terminalreporter.stats.get("passed", ())
        for name, value in report.user_properties
        if name == "formal"
    ]
    if lines:
        terminalreporter.section("formal")
        for line in sorted(lines):
            terminalreporter.write_line(line)
