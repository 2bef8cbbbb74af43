"""A file of another framework → our configuration as text, and the remarks on all that it does not carry."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.yaml_text import YamlError, parse_yaml
from orchestrator.display_text import not_utf8
from orchestrator.errors import ConfigError
from orchestrator.importing.draft import Draft, Remark
from orchestrator.importing.given_options import GivenOptions
from orchestrator.importing.option_table import OptionTable, option_table
from orchestrator.importing.shell_variables import ScriptError
from orchestrator.importing.shell_words import commands

PROGRAMS = {
    "openrlhf": r"^openrlhf\.cli\.train_ppo\w*$|train_ppo_ray\.py$",
    "verl": r"^verl\.trainer\.main_ppo$|main_ppo\.py$",
    "trl": r"(^|/)ppo\w*\.py$",
}
"""Framework → the word of a script that starts its PPO."""
LARGEST_SCRIPT = 1_000_000
"""Characters of a script or file of options."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A configuration and what to know about it."""

    text: str
    """YAML, headed by the remarks."""
    remarks: tuple[Remark, ...]

    def about(self, kind: str) -> list[str]:
        """What the remarks of one kind are about."""
        return [remark.about for remark in self.remarks if remark.kind == kind]


def file_text(path: Path) -> str:
    """The whole file. ConfigError if it is none, or too large for a script."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: {not_utf8(error)}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}; name a script or a file of options") from None
    if len(text) > LARGEST_SCRIPT:
        raise ConfigError(f"{path} has {len(text)} characters, more than any script; name the script itself")
    return text


def check_framework(text: str, framework: str, path: Path) -> None:
    """ConfigError if the script starts only another framework's PPO, or if more of the file's keys are another's."""
    words, data = {word.strip("\"'") for word in text.split()}, mapping_in(text)
    starts = [name for name, program in PROGRAMS.items() if any(re.search(program, word) for word in words)]
    known = {}
    for name in PROGRAMS:
        keys = {key.replace("-", "_"): value for key, value in flat(data or {}).items()}
        known[name] = len(list(GivenOptions(option_table(name), keys).names()))
    most = max(known, key=lambda name: (known[name], name == framework))
    other = most if known[most] > known[framework] else starts[0] if starts and framework not in starts else framework
    if other != framework:
        theirs, ours = option_table(other).framework, option_table(framework).framework
        raise ConfigError(f"{path} is for {theirs}, not for {ours}; use: tetrarch import-{other} {path}")


def mapping_in(text: str) -> dict[str, Any] | None:
    """A YAML or JSON mapping; None if the text is something else, such as a script."""
    try:
        data = parse_yaml(text)
    except YamlError:
        return None
    return {str(name): value for name, value in data.items()} if isinstance(data, dict) else None


def flat(data: dict[str, Any], before: str = "") -> dict[str, Any]:
    """{"actor": {"num_nodes": 2}} → {"actor.num_nodes": 2}."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        inner = flat(value, f"{before}{name}.") if isinstance(value, dict) and value else {f"{before}{name}": value}
        found |= inner
    return found


def around(text: str, programs: str, path: Path) -> tuple[list[str], list[str]]:
    """The words before and behind one of `programs`, in the last command of a script that starts one; if none does, all
    words are behind."""
    try:
        found = commands(text)
    except ScriptError as error:
        raise ConfigError(f"{path} cannot be split into words: {error}") from None
    starts = [(words, n) for words in found for n, word in enumerate(words) if re.search(programs, word)]
    if starts:
        words, n = starts[-1]
        return words[:n], words[n + 1 :]
    return [], [word for words in found for word in words]


def words_after(text: str, programs: str, path: Path) -> list[str]:
    """The words behind one of `programs`."""
    return around(text, programs, path)[1]


def imported(
    path: Path, framework: str, given: dict[str, Any], draft_of: Callable[[GivenOptions], Draft], hint: str
) -> Imported:
    """The configuration that the given options stand for. ConfigError with `hint` if none of them is known."""
    table: OptionTable = option_table(framework)
    options = GivenOptions(table, given)
    if not list(options.names()):
        raise ConfigError(f"{path} holds no option of {table.framework}{hint}")
    draft = draft_of(options)
    draft.say_unused()
    title = f"{path.name}: options of {table.framework} {table.version}, by `tetrarch import-{framework}`"
    return Imported(draft.text(title), tuple(draft.remarks))
