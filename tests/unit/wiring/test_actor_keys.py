"""Every key of `actor_cases`, from the YAML file to the weights that a run ends with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.wiring.actor_cases import actor_cases
from tests.unit.wiring.base import check

CASES = actor_cases(Path("FOLDER"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_key_of_the_actor_does_what_it_says(number: int, folder: Path) -> None:
    check(actor_cases(folder)[number], folder)
