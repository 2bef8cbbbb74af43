"""A YAML file and `key.path=value` overrides flow in, a RunConfig flows out; or a ConfigError that lists every problem.

Called by `orchestrator.commands.app` and by tests. Relative paths inside the file stay relative to the current
directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.config.problems import problem_lines, show
from orchestrator.config.rules import inconsistencies, without_idle_gpus
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import key_of, sections_in, tag_of
from orchestrator.config.yaml_text import YamlError, parse_yaml, to_yaml
from orchestrator.errors import ConfigError
from roles.redaction import without_credentials


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in `path`, changed by overrides such as `ppo.epochs=2` (their values are YAML)."""
    data = _read(Path(path))
    for override in overrides:
        apply_override(data, override)
    return validate(data, source=f"{path} and the command line" if overrides else str(path))


def validate(data: dict[str, Any], source: str = "the configuration") -> RunConfig:
    """The configuration that plain values stand for. Raises ConfigError with one line for each problem."""
    data = without_idle_gpus(_with_default_types(data, RunConfig))
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        problems = [line for text in problem_lines(error, RunConfig) for line in text.splitlines()]
        raise _wrong(source, problems) from None
    booleans = _booleans_for_numbers(data, config.model_dump(by_alias=True))
    if booleans:
        raise _wrong(source, booleans)
    broken = inconsistencies(config)
    if broken:
        raise _wrong(source, [line for text in broken for line in text.splitlines()])
    return config


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, every default written out, secrets redacted.

    `load_config` reads it back to an equal RunConfig, but for the secrets.
    """
    return to_yaml(_without_credentials(config.model_dump(mode="json", by_alias=True)))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist; examples are in configs/") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; name a YAML file in it") from None
    except (OSError, UnicodeDecodeError) as error:
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
    """Set one key path in place; sections that are missing or null on the way are made."""
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
    """Plain values without the passwords in their URLs (SecretStr fields have hidden themselves)."""
    if isinstance(value, dict):
        return {key: _without_credentials(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_credentials(inner) for inner in value]
    return without_credentials(value) if isinstance(value, str) else value


def _wrong(source: str, problems: list[str]) -> ConfigError:
    if len(problems) == 1:
        return ConfigError(f"{source}: {problems[0]}")
    return ConfigError("\n".join([f"{source}: {len(problems)} problems", *(f"  {problem}" for problem in problems)]))
