"""Addresses and headers of services over HTTP, as sections of the configuration hold them."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr
from pydantic_core import PydanticCustomError


def reachable(url: str) -> str:
    """The address, if it has a host; PydanticCustomError otherwise."""
    try:
        parts = urlsplit(url)
        sound = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port of letters, an IPv6 address without its end
        sound = False
    if not sound or any(character.isspace() for character in url):
        raise PydanticCustomError("url", "must be an address such as http://host:8000/score")
    return url


def _printable(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    stripped = {name: SecretStr(value.get_secret_value().strip()) for name, value in headers.items()}
    bad = [name for name, value in stripped.items() if not value.get_secret_value().isprintable()]
    if bad:
        raise ValueError(f"the value of {', '.join(bad)} has a line break or control character; write it in one line")
    return stripped


ServiceUrl = Annotated[str, Field(pattern=r"^https?://"), AfterValidator(reachable)]
"""Address of a service."""

Headers = Annotated[dict[str, SecretStr], AfterValidator(_printable)]
"""Name of a header → its value; space around a value is cut off."""
