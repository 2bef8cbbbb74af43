"""The options that a user gave, by the table's names and with its defaults. Words or a mapping flow in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.config.yaml_text import YamlError, parse_yaml
from orchestrator.errors import ConfigError
from orchestrator.importing.option_table import OptionTable

YES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class GivenOptions:
    """Values by option. What was not given has the framework's default."""

    def __init__(self, table: OptionTable, given: Mapping[str, Any]) -> None:
        self.table = table
        named = {name: table.named(name) for name in given}
        self.unknown = [name for name, options in named.items() if not options]
        self.of_pattern = {name: options[0] for name, options in named.items() if options and "*" in options[0].name}
        self._said = {option.name: name for name in given for option in named[name] if name not in self.of_pattern}
        self._values = {option: given[name] for option, name in self._said.items()}

    def __contains__(self, name: str) -> bool:
        """Whether it was given."""
        return name in self._values

    def names(self) -> Iterable[str]:
        """Those that were given."""
        return self._values

    def is_default(self, name: str) -> bool:
        """Whether its value is the framework's own."""
        return bool(self.value(name) == self.table.options[name].default)

    def said(self, name: str) -> str:
        """The name that the user wrote."""
        return self._said.get(name, name)

    def value(self, name: str) -> Any:
        """Text, number, flag, list or None, as the table has it; words of a script become what they look like."""
        option = self.table.options[name]
        value = self._values.get(name, option.default)
        if isinstance(option.default, bool):
            return self._flag(name, value)
        if isinstance(value, list):
            many = isinstance(option.default, list) or len(value) > 1
            read = [item if option.text else _scalar(item) for item in value]
            return read if many else next(iter(read), None)
        if option.text:
            return value if value is None else str(value)
        return _scalar(value)

    def text(self, name: str) -> str | None:
        """Text that is not empty."""
        value = self.value(name)
        return str(value) if value not in (None, "", []) else None

    def flag(self, name: str) -> bool:
        """True or false."""
        return bool(self.value(name))

    def number(self, name: str) -> float:
        """A number that we calculate with."""
        return self._checked(name, "a number")

    def whole(self, name: str, least: int = 1, most: int = 10**9) -> int:
        """A count that we calculate with."""
        kind = "a positive whole number" if least else "a whole number"
        value = self._checked(name, kind)
        if value != value // 1 or not least <= value <= most:
            raise ConfigError(f"{self.said(name)}={value} is not {kind} up to {most}; correct it")
        return int(value)

    def optional(self, name: str) -> float | None:
        """A number, or None."""
        return None if self.value(name) is None else self.number(name)

    def numbers(self, name: str, least: int = 1) -> list[float]:
        """Numbers of a list, so many at least."""
        values = self.value(name)
        values = values if isinstance(values, list) else [values]
        for value in values:
            if not _is_finite_number(value):
                raise ConfigError(f"{self.said(name)} has {value!r}, which is not a number; write the number there")
        if len(values) < least:
            raise ConfigError(f"{self.said(name)}={values}: {len(values)} of {least} numbers; write all of them")
        return values

    def choice(self, name: str, ours: Mapping[str, Any]) -> Any:
        """What one of theirs is called here."""
        value = str(self.value(name))
        if value not in ours:
            known = ", ".join(ours)
            raise ConfigError(f"{self.said(name)}={value} is none of {self.table.framework}'s: {known}")
        return ours[value]

    def _checked(self, name: str, kind: str) -> Any:
        value = self.value(name)
        if not _is_finite_number(value):
            raise ConfigError(f"{self.said(name)}={value} is not {kind}; write the number in place of a variable")
        return value

    def _flag(self, name: str, value: Any) -> bool:
        if isinstance(value, list):  # of a script: the flag alone, or a word after it
            value = value[0] if value else True
        found = value if isinstance(value, bool) else YES.get(str(value).lower())
        if found is None:
            raise ConfigError(f"{self.said(name)}={value} is neither true nor false; correct it")
        return found


def after_dashes(words: list[str]) -> dict[str, list[str]]:
    """`--name a b --flag --other=c` → {"name": ["a", "b"], "flag": [], "other": ["c"]}; the last of a name counts."""
    found: dict[str, list[str]] = {}
    name = None
    for word in words:
        if re.match(r"--[A-Za-z]", word):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = [value] if equals else []
        elif name is not None:
            found[name].append(word)
    return found


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _scalar(value: Any) -> Any:
    """What a word looks like: a number, true, null; else it stays text."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w.+-]+", value):
        return value
    try:
        read = parse_yaml(value)
    except YamlError:
        return value
    return {"None": None, "none": None}.get(value, read if not isinstance(read, (dict, list)) else value)
