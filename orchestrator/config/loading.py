"""Loads a configuration: a YAML file and `key.path=value` overrides flow in, the configuration of one command flows
out; or a ConfigError that lists every problem.

Relative paths inside the file stay relative to the current directory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.config.base import BaseConfig
from orchestrator.config.problems import problem_lines, show, unknown_keys
from orchestrator.config.roots import ROOTS, AnyConfig, required, served
from orchestrator.config.rules.placement_rules import without_idle_gpus
from orchestrator.config.rules.rule_table import broken_rules
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import key_of, locate, sections_in, tag_of
from orchestrator.config.yaml_text import YamlError, parse_yaml, to_yaml
from orchestrator.display_text import not_utf8
from orchestrator.errors import ConfigError
from roles.redaction import without_credentials

C = TypeVar("C", bound=BaseConfig)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a PPO run in `path`, changed by overrides such as `ppo.epochs=2` (their values are YAML)."""
    return load_root(RunConfig, path, overrides)


def load_root(root: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """The configuration of one command in the file `path`, changed by overrides. Other commands' sections may be
    there."""
    _check_overrides([root], overrides)
    return validate_root(root, _with_overrides(path, overrides), _source(path, overrides))


def load_all(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, BaseConfig]:
    """The configuration of each command that the file serves, by command; of `train` if there is none."""
    data = _with_overrides(path, overrides)
    roots = {command: ROOTS[command] for command in served(data) or ["train"]}
    _check_overrides(list(roots.values()), overrides)
    return {command: validate_root(root, data, _source(path, overrides)) for command, root in roots.items()}


def served_by(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """The commands that the file `path` is for, changed by overrides."""
    return served(_with_overrides(path, overrides))


def lacks(path: str | Path, command: str, overrides: Sequence[str] = ()) -> list[str]:
    """The top-level keys without which the file `path` is not for that command."""
    data = _with_overrides(path, overrides)
    return [key for key in required(ROOTS[command]) if data.get(key) is None]


def validate(data: dict[str, Any], source: str = "the configuration") -> RunConfig:
    """The configuration of a PPO run from plain values. ConfigError with one line for each problem."""
    return validate_root(RunConfig, data, source)


def validate_root(root: type[C], data: dict[str, Any], source: str = "the configuration") -> C:
    """The configuration of one command from plain values. ConfigError with one line for each problem.

    Keys that only other commands read may be present, and need not be complete; but no command reads `ppo.epoch`.
    """
    data = without_idle_gpus(_with_default_types(_without_empty_sections(data, root), AnyConfig))
    own = root.own(data)
    problems = _foreign_problems({key: value for key, value in data.items() if key not in own})
    try:
        config = root.model_validate(own)
    except ValidationError as error:
        said = [details for details in error.errors() if not root.derived() & set(details["loc"][:1])]
        missing = set(required(root)) - data.keys()
        # What reads a part of this command's keys is not what the file was meant for.
        others = [name for name in served(data) if missing and not issubclass(root, ROOTS[name])]
        source += f", a file for `tetrarch {others[0]}`" if others else ""
        raise _wrong(source, problem_lines(said, AnyConfig) + problems) from None
    problems = problems or _booleans_for_numbers(own, config.model_dump(by_alias=True)) or broken_rules(config)
    if problems:
        raise _wrong(source, problems)
    return config


def dump_config(*configs: BaseConfig, minimal: bool = False) -> str:
    """The resolved configuration as YAML, secrets redacted; or several commands' configurations in one.

    `load_config` reads it back to an equal configuration, except for the secrets. `minimal`: without the keys that have
    their defaults.
    """
    whole: dict[str, Any] = {}
    for config in configs:
        values = config.model_dump(mode="json", by_alias=True)
        whole = {**(_without_defaults(config, values) if minimal else values), **whole}
    return to_yaml(_without_credentials(whole))


def _without_defaults(config: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    """Of `values`, the dumped `config`, what must be said to get it again: also inside its sections."""
    kept = {}
    for name, field in type(config).model_fields.items():
        key, value = key_of(name, field), getattr(config, name)
        if name == "type" or field.is_required() or value != field.get_default(call_default_factory=True):
            kept[key] = _said(value, values[key])
    return kept


def _said(value: Any, dumped: Any) -> Any:
    """What must be said of a key's `value`: also of the sections in a list, or under names of the user's."""
    if isinstance(value, BaseModel):
        return _without_defaults(value, dumped)
    if isinstance(value, dict):
        return dict(zip(dumped, map(_said, value.values(), dumped.values()), strict=True))
    return list(map(_said, value, dumped)) if isinstance(dumped, list) else dumped


def _with_overrides(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    data = _read(Path(os.path.expanduser(path)))
    for override in overrides:
        apply_override(data, override)
    return data


def _check_overrides(roots: Sequence[type[BaseConfig]], overrides: Sequence[str]) -> None:
    """ConfigError for an override of a key that follows from another one in all these roots."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if all(key in root.derived() for root in roots):
            raise ConfigError(f"override {override}: {key} follows from {roots[0].folder_key}; set that instead")


def unread_overrides(config: BaseConfig, overrides: Sequence[str]) -> list[str]:
    """For the user: one line for each override of a key that the command of `config` does not read."""
    lines = []
    for override in overrides:
        path = override.partition("=")[0].strip()
        key = path.partition(".")[0]
        if key not in config.model_fields_set:
            others = " and ".join(f"tetrarch {command}" for command, root in ROOTS.items() if key in root.model_fields)
            lines.append(f"the override of {path} is not used: {key} is for {others}")
    return lines


def _source(path: str | Path, overrides: Sequence[str]) -> str:
    return f"{path} and the command line" if overrides else str(path)


def _foreign_problems(data: dict[str, Any]) -> list[str]:
    """Problems of keys that the command does not read: unknown keys, and values that the commands that read them
    would refuse. Missing keys are no problem there."""
    given = {key: value for key, value in data.items() if value is not None or key not in AnyConfig.model_fields}
    try:
        AnyConfig.model_validate(given)
    except ValidationError as error:
        problems = []
        for details in error.errors():
            if details["type"] == "union_tag_not_found":
                problems += unknown_keys(details["input"], locate(details["loc"], AnyConfig), AnyConfig)
            elif details["type"] != "missing":
                problems += problem_lines([details], AnyConfig)
        return problems
    return []


def _without_empty_sections(data: dict[str, Any], root: type[BaseModel]) -> dict[str, Any]:
    """The data without required sections that are `null`, which count as missing."""
    needed = {
        name for name, field in root.model_fields.items() if field.is_required() and sections_in(field.annotation)
    }
    return {key: value for key, value in data.items() if value is not None or key not in needed}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist; examples are in configs/") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; name a YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {not_utf8(error)}") from None
    except (OSError, ValueError) as error:  # a path that no file can have
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from None
    try:
        data = parse_yaml(text)
    except YamlError as error:
        raise ConfigError(f"{path} is not a configuration: {error}") from None
    if not isinstance(data, dict):
        held = "is empty" if data is None else f"holds {show(data)}"
        raise ConfigError(f"{path} {held}; it must be a mapping of keys (`steps: 10` and so on)")
    return data


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one key path in place; sections on the way that are missing or `null` are created."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override `{path}` is not of the form key.path=value; write it like ppo.epochs=2")
    try:
        value = parse_yaml(text)
    except YamlError as error:
        raise ConfigError(f"override of {path}: the value is not YAML ({error}); quote it if it is text") from None
    section = data
    for depth, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
        if not isinstance(section[key], dict):
            outer = ".".join(keys[:depth])
            raise ConfigError(f"override {path}: {outer} is not a mapping of keys; give {outer} as a whole")
        section = section[key]
    section[keys[-1]] = value


def _with_default_types(data: Any, section: type[BaseModel]) -> Any:
    """A copy in which a union's mapping without `type` has the type of the field's default, if the field has one.

    So `ppo.kl.controller.coefficient=0.1` changes the default controller, as it would change any other default.
    """
    if not isinstance(data, dict):
        return data
    filled = dict(data)
    for name, field in section.model_fields.items():
        key = key_of(name, field)
        value, variants = filled.get(key), sections_in(field.annotation)
        if not isinstance(value, dict) or not variants:
            continue
        if field.discriminator is not None:
            if "type" not in value and isinstance(field.default, BaseModel):
                value = {"type": tag_of(type(field.default)), **value}
            variants = tuple(variant for variant in variants if "type" in value and tag_of(variant) == value["type"])
        filled[key] = _with_default_types(value, variants[0]) if variants else value
    return filled


def _booleans_for_numbers(given: Any, validated: Any, path: str = "") -> list[str]:
    """Problems where `true` or `false` was given for a number: pydantic takes them for 1 and 0."""
    if isinstance(given, bool) and not isinstance(validated, bool):
        return [f"{path}={show(given)}: must be a number"]
    if isinstance(given, dict) and isinstance(validated, dict):
        inner = ((f"{path}.{key}" if path else str(key), given[key], validated[key]) for key in given)
    elif isinstance(given, list) and isinstance(validated, (list, tuple)):
        inner = ((f"{path}[{i}]", g, v) for i, (g, v) in enumerate(zip(given, validated, strict=True)))
    else:
        return []
    return [problem for deeper, g, v in inner for problem in _booleans_for_numbers(g, v, deeper)]


def _without_credentials(value: Any) -> Any:
    """Plain values with the passwords in URLs redacted (SecretStr fields redact themselves)."""
    if isinstance(value, dict):
        return {key: _without_credentials(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_credentials(inner) for inner in value]
    return without_credentials(value) if isinstance(value, str) else value


def _wrong(source: str, found: list[str]) -> ConfigError:
    problems = [line for text in found for line in text.splitlines()]
    if len(problems) == 1:
        return ConfigError(f"{source}: {problems[0]}")
    return ConfigError("\n".join([f"{source}: {len(problems)} problems", *(f"  {problem}" for problem in problems)]))
