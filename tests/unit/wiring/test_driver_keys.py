"""Every key of `driver_cases`, from the YAML file to the weights that a run ends with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.wiring.base import check
from tests.unit.wiring.driver_cases import driver_cases

CASES = driver_cases(Path("FOLDER"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_key_of_the_driver_does_what_it_says(number: int, folder: Path) -> None:
    check(driver_cases(folder)[number], folder)
