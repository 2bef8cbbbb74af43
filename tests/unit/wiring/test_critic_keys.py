"""Every key of `critic_cases`, from the YAML file to the weights that a run ends with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.wiring.base import check
from tests.unit.wiring.critic_cases import critic_cases

CASES = critic_cases(Path("FOLDER"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_key_of_the_critic_does_what_it_says(number: int, folder: Path) -> None:
    check(critic_cases(folder)[number], folder)
