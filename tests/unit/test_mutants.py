"""The planted faults of `make mutants` are still about code that exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.fault import Fault
from tests.mutants.faults import FAULTS
from tests.mutants.run import noticed_by
from tests.mutants.wiring import WIRING
from tests.readmes import EVERYTHING

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_a_fault_replaces_stands_once(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    for test in fault.tests.split():
        assert (ROOT / test).is_file()


def test_a_planted_fault_is_noticed_and_taken_back(tmp_path: Path) -> None:
    """What `make mutants` does, on a project of two files."""
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b + 0\n")
    (tmp_path / "test_sums.py").write_text("from sums import add\n\ndef test_add():\n    assert add(1, 2) == 3\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    seen = Fault("wrong sign", "sums.py", "a + b", "a - b", "test_sums.py")
    unseen = Fault("another zero", "sums.py", "+ 0", "- 0", "test_sums.py")
    assert noticed_by(seen, tmp_path) == "test_add"
    assert noticed_by(unseen, tmp_path) is None
    assert (tmp_path / "sums.py").read_text() == "def add(a, b):\n    return a + b + 0\n"
    with pytest.raises(SystemExit, match="0 times, not once"):
        noticed_by(Fault("gone", "sums.py", "a * b", "", "test_sums.py"), tmp_path)


def test_a_readme_counts_the_wiring_faults() -> None:
    assert f"{len(WIRING)} wiring faults" in EVERYTHING
