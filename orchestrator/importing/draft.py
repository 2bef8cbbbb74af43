"""A configuration in the making: keys with the reason for each, and all that a user must know about the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, Literal

from orchestrator.config.loading import validate
from orchestrator.config.run import RunConfig
from orchestrator.config.yaml_text import to_yaml
from orchestrator.display_text import printable
from orchestrator.errors import ConfigError
from orchestrator.importing.given_options import GivenOptions

RemarkKind = Literal["to be set", "missing here", "different here", "means nothing here"]
REMARK_KINDS: tuple[RemarkKind, ...] = ("to be set", "missing here", "different here", "means nothing here")
UNSAID = "TO-BE-SET"
"""What stands for a name that a run needs and that the options do not say."""
COMMENT_WIDTH = 116


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that no key says."""

    kind: RemarkKind
    about: str
    """An option of theirs; of `to be set`, a key of ours."""
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.about} ({self.why})"


class Draft:
    """Keys and remarks, collected by the tables and rules of a framework."""

    def __init__(self, options: GivenOptions) -> None:
        self.options = options
        self.data: dict[str, Any] = {}
        self.remarks: list[Remark] = []
        self._reasons: dict[str, str] = {}
        self._used: set[str] = set()

    def put(self, key: str, value: Any, *sources: str) -> None:
        """Set a key path; sections on the way are made. `sources`: the options that say it."""
        *sections, last = key.split(".")
        data = self.data
        for section in sections:
            data = data.setdefault(section, {})
        if isinstance(value, str) and "$" in value:
            self.to_set(key, f"the script gives {_one_line(value)}, which is only known when it runs")
        data[last] = value
        self._used.update(sources)
        said = [self.options.said(name) for name in sources if name in self.options]
        if said:
            self._reasons[key] = ", ".join(dict.fromkeys(said))
        elif sources:
            self._reasons[key] = f"{self.options.table.framework}'s default"

    def because(self, key: str, reason: str) -> None:
        """Why a key has its value, in place of the options' names."""
        self._reasons[key] = reason

    def has(self, key: str) -> bool:
        """Whether a key path was set."""
        inner: Any = self.data
        for part in key.split("."):
            if not isinstance(inner, dict) or part not in inner:
                return False
            inner = inner[part]
        return True

    def to_set(self, key: str, why: str) -> None:
        """A key that the user has to set."""
        self._remark("to be set", key, why)

    def missing(self, option: str, why: str) -> None:
        """An option, if it was given, that has nothing like it here."""
        if option in self.options:
            self._remark("missing here", self.options.said(option), why)

    def differs(self, option: str, why: str) -> None:
        """An option that was carried over and does something else here, whether it was given or not."""
        self._remark("different here", self.options.said(option), why)

    def moot(self, option: str, why: str) -> None:
        """An option, if it was given, that means nothing here."""
        if option in self.options:
            self._remark("means nothing here", self.options.said(option), why)

    def without(self, section: str, why: str) -> None:
        """Take a section of ours out again: the run has no such role, and their options for it mean nothing."""
        self.data.pop(section, None)
        for name in list(self.options.names()):
            option = self.options.table.options[name]
            if option.keys and all(key.startswith(f"{section}.") for key in option.keys):
                self.moot(name, why)

    def take_table(self) -> None:
        """All that the table says of the options without calculating; unknown ones are named."""
        for option in self.options.table.options.values():
            value = self.options.value(option.name) if option.name in self.options else option.default
            for key in option.keys if value is not None else ():
                self.put(key, value, option.name)
            if option.name in self.options and not self.options.is_default(option.name):
                if option.missing:
                    self.missing(option.name, option.missing)
                elif option.moot:
                    self.moot(option.name, option.moot)
        for name, option in self.options.of_pattern.items():
            kind: RemarkKind = "missing here" if option.missing else "means nothing here"
            self._remark(kind, name, option.missing or option.moot)
        table = self.options.table
        for name in self.options.unknown:
            self._remark("missing here", name, f"no option of {table.framework} {table.version}")

    def say_unused(self) -> None:
        """Options that were given and that neither a key nor a remark speaks of: none is dropped in silence."""
        spoken = {remark.about for remark in self.remarks}
        for name in self.options.names():
            said = self.options.said(name)
            if name not in self._used and said not in spoken and not self.options.is_default(name):
                self._remark("means nothing here", said, "without effect beside the other options")

    def text(self, title: str) -> str:
        """YAML that a run can be planned from, with the remarks at its head. ConfigError if the values allow none."""
        try:
            validate(self.data, "these options")
        except ConfigError as error:
            raise ConfigError(f"no run can be made of {error}") from None
        head = [printable(title)]
        for kind in REMARK_KINDS:
            found = [remark for remark in self.remarks if remark.kind == kind]
            head += [f"{kind}:"] * bool(found) + [f"  {remark.about}: {remark.why}" for remark in found]
        comments = [f"# {part}" for line in head for part in wrap(line, COMMENT_WIDTH, subsequent_indent="    ")]
        ordered = {section: self.data[section] for section in RunConfig.model_fields if section in self.data}
        return "\n".join([*comments, *self._lines(ordered, "", "")]) + "\n"

    def _lines(self, data: dict[str, Any], path: str, indent: str) -> Iterator[str]:
        for key, value in sorted(data.items(), key=lambda item: item[0] != "type") if path else data.items():
            inner = f"{path}.{key}" if path else key
            reason = f"  # {self._reasons[inner]}" if inner in self._reasons else ""
            if isinstance(value, dict) and value:
                yield f"{indent}{key}:{reason}"
                yield from self._lines(value, inner, indent + "  ")
                continue
            written = _leaf(key, value)
            yield from (f"{indent}{line}{reason * (len(written) == 1)}" for line in written)

    def _remark(self, kind: RemarkKind, about: str, why: str) -> None:
        remark = Remark(kind, re.sub(r"[^\w.+*-]", "?", about), printable(why))
        if remark not in self.remarks:
            self.remarks.append(remark)


def _leaf(key: str, value: Any) -> list[str]:
    """The lines of a value: one, but for long text and lists of other than plain words and numbers."""
    if isinstance(value, list) and all(re.fullmatch(r"[\w./:@~+-]+", str(item)) for item in value):
        return [f"{key}: [{', '.join(to_yaml([item]).strip().removeprefix('- ') for item in value)}]"]
    return to_yaml({key: value}).rstrip("\n").split("\n")


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) < 60 else f"{flat[:57]}..."
