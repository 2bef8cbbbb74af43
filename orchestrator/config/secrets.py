"""Secrets where they do not belong: on command lines, and in requests that are not encrypted. Configurations and
overrides flow in, errors and warnings flow out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

from orchestrator.config.loading import apply_override
from orchestrator.config.roots import AnyConfig
from orchestrator.config.schema import key_of, secret_keys
from orchestrator.errors import ConfigError
from roles.redaction import without_credentials

SECRET_KEYS = secret_keys(AnyConfig)
SEEN_HERE = "every user of this machine can read the command line of a process"
"""Who could read a secret in an override."""


def check_overrides(overrides: Sequence[str], who: str = SEEN_HERE) -> None:
    """Raise ConfigError for an override that holds a secret. `who`: who could read it there."""
    for override in overrides:
        data: dict[str, Any] = {}
        apply_override(data, override)
        if any(SECRET_KEYS & set(path) or text != without_credentials(text) for path, text in _texts(data)):
            raise ConfigError(
                f"the override of {override.partition('=')[0]} holds a secret, and {who}; write it into the "
                "configuration file"
            )


def unencrypted_tokens(config: BaseModel, key: str = "") -> Iterator[str]:
    """For the user: a line for each service that is sent a secret over http to another machine."""
    fields = {key_of(name, field): getattr(config, name) for name, field in type(config).model_fields.items()}
    said = bool(fields.get("headers")) or fields.get("api_key_env") is not None
    urls = [url for url in (*fields.get("urls", ()), fields.get("url")) if isinstance(url, str)]
    asked = [(url, without_credentials(url), said) for url in urls]
    if isinstance(hidden := fields.get("secret_url"), SecretStr):
        asked.append((hidden.get_secret_value(), "secret_url", True))
    for url, shown, secret in asked:
        if (secret or shown != url) and url.startswith("http://") and not _is_loopback(url):
            yield (
                f"{key}: a secret goes to {shown} unencrypted, and whoever carries the request can read it; use https, "
                "or a tunnel from 127.0.0.1"
            )
    for name, value in fields.items():
        yield from _unencrypted_in(value, f"{key}.{name}" if key else name)


def _unencrypted_in(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from unencrypted_tokens(value, key)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _unencrypted_in(inner, f"{key}.{name}")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every plain value of parsed YAML: the keys around it, the value as text."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, (*path, str(key)))
    elif value is not None:
        yield path, str(value)
