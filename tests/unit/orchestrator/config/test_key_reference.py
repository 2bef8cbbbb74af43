"""The tables of all keys: whole, and the same in configs/README.md."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from typer.testing import CliRunner

from orchestrator.commands import app as cli
from orchestrator.config.key_reference import README, SCHEMA, UNITS, reference, schema_text, updated
from orchestrator.config.roots import AnyConfig
from orchestrator.config.schema import all_keys

ROOT = Path(__file__).resolve().parents[4]
ROWS = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
LISTED = [re.findall(r"`([^`]*)`", row[0])[0] for row in ROWS]


def test_the_readme_has_the_keys_of_the_schema() -> None:
    text = (ROOT / README).read_text(encoding="utf-8")
    assert text == updated(text), "run: python -m orchestrator.config.key_reference"


def test_editors_have_the_schema_and_every_shipped_file_names_it() -> None:
    assert (ROOT / SCHEMA).read_text(encoding="utf-8") == schema_text(), (
        "run: python -m orchestrator.config.key_reference"
    )
    for file in (ROOT / "configs").rglob("*.yaml"):
        first = file.read_text(encoding="utf-8").splitlines()[0]
        named = first.removeprefix("# yaml-language-server: $schema=")
        assert (file.parent / named).resolve() == ROOT / SCHEMA, file


def test_every_key_is_listed_with_what_it_means() -> None:
    listed = {key.replace(".NAME", "") for key in LISTED}
    missing = [key for key in all_keys(AnyConfig) if key not in listed and not key.endswith(".type")]
    assert missing == []
    assert [row for row in ROWS if len(row) != 6 or not row[4].strip()] == []


def test_a_row_says_bounds_default_unit_and_source() -> None:
    text = reference()
    assert "| `rollout.top_p` | number > 0, ≤ 1 |  | `1.0` |" in text
    assert "| `canary.limit` | number > 0 or null | nats per token | `null` |" in text
    assert re.search(r"\| `ppo.policy.clip` .* \| arXiv", text) is None
    assert re.search(r"\| `ppo.policy.dual_clip` .*\| arXiv 1912.09729 \|", text)
    assert "| `placement` | section |  | `type: local` |" in text
    assert re.search(r"`reward.urls` \(remote\) \| list of texts \|  \| required", text)


def test_every_unit_belongs_to_a_key() -> None:
    assert [pattern for pattern in UNITS if not any(fnmatchcase(key, pattern) for key in LISTED)] == []


def test_the_command_prints_the_reference() -> None:
    result = CliRunner().invoke(cli.app, ["config", "--reference"])
    assert result.exit_code == 0 and result.stdout == reference()
