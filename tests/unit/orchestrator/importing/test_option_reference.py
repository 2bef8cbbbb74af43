"""The tables of other frameworks' options: the same in the README, and about keys that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.config.roots import AnyConfig
from orchestrator.config.schema import all_keys
from orchestrator.importing.option_reference import README_OF_OPTIONS, with_options
from orchestrator.importing.option_table import TABLES, option_table

ROOT = Path(__file__).resolve().parents[4]
KEYS = list(all_keys(AnyConfig))


def test_the_readme_has_the_options_of_the_tables() -> None:
    text = (ROOT / README_OF_OPTIONS).read_text(encoding="utf-8")
    assert text == with_options(text), "run: python -m orchestrator.importing.option_reference"


@pytest.mark.parametrize("framework", TABLES)
def test_an_option_has_one_fate_and_speaks_of_keys_that_exist(framework: str) -> None:
    table = option_table(framework)
    for option in table.options.values():
        fates = [option.keys, option.by, option.moot, option.missing]
        assert sum(map(bool, fates)) == 1, option
        named = [*option.keys, *re.findall(r"\b[a-z]+(?:\.[a-z_]+)+", option.by)]
        assert [key for key in named if not any(known.endswith(key) for known in KEYS)] == [], option
    olds = [old for option in table.options.values() for old in option.old]
    assert not set(olds) & set(table.options)
