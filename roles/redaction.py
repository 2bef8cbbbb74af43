"""Removes secrets from texts that are shown or written. Pure."""

from __future__ import annotations

import re

HIDDEN = "***"


def without_credentials(text: str) -> str:
    """Text in which every URL has lost its `user:password@` and the values of its query (tokens travel there)."""
    text = re.sub(r"(\w+://)[^/@\s]+@", rf"\1{HIDDEN}@", text)
    return re.sub(r"(\w+://[^\s?\"']+\?)([^\s\"']+)", lambda found: found[1] + _without_values(found[2]), text)


def _without_values(query: str) -> str:
    return re.sub(r"=[^&#]*", f"={HIDDEN}", query)
