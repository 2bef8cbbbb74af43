"""The options of a framework, one row each, in the file beside this one that is named for it. YAML flows in, rows flow
out.

Example of a row: `actor.eps_clip`, default 0.2 there, carried by `ppo.policy.clip`; once called `eps_clip`. A row of a
name with `*` holds for all options that are called so and have no row of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.config.yaml_text import parse_yaml

TABLES = ("openrlhf", "verl", "trl")


@dataclass(frozen=True, slots=True)
class Option:
    """One option, and what becomes of it: exactly one of `keys`, `by`, `moot` and `missing` is said."""

    name: str
    default: Any
    """The framework's own; None: it has none, or finds it out."""
    text: bool
    """Its value is text, even if it looks like a number."""
    old: tuple[str, ...]
    """Other names of it."""
    keys: tuple[str, ...]
    """Keys of ours that take its value as it is."""
    by: str
    """The keys of ours that say it in another form."""
    moot: str
    """Why it means nothing here."""
    missing: str
    """What there is in its place."""


@dataclass(frozen=True, slots=True)
class OptionTable:
    """All options of a framework by name."""

    framework: str
    version: str
    options: dict[str, Option]

    def named(self, name: str) -> list[Option]:
        """The options that a name stands for: one, several of which it is the older name, none if nobody knows it."""
        if name in self.options:
            return [self.options[name]]
        found = [option for option in self.options.values() if name in option.old]
        patterns = (option for option in self.options.values() if "*" in option.name)
        return found or [option for option in patterns if fnmatchcase(name, option.name)][:1]


@cache
def option_table(framework: str) -> OptionTable:
    """The table in `FRAMEWORK.yaml`."""
    data = parse_yaml(Path(__file__).with_name(f"{framework}.yaml").read_text(encoding="utf-8"))
    return OptionTable(
        data["framework"], data["version"], {name: _option(name, row) for name, row in data["options"].items()}
    )


def _option(name: str, row: dict[str, Any]) -> Option:
    key, default = row.get("key", []), row["default"]
    return Option(
        name,
        default,
        text=row.get("text", isinstance(default, str)),
        old=tuple(row.get("old", ())),
        keys=(key,) if isinstance(key, str) else tuple(key),
        by=row.get("by", ""),
        moot=row.get("moot", ""),
        missing=row.get("missing", ""),
    )
