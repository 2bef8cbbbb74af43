"""Removes secrets from texts that are shown or written. Pure, in time linear in the text."""

from __future__ import annotations

import re

HIDDEN = "***"

# Both begin at `://`, which has no second `://` in what follows up to where the match ends, or is passed over as a part
# of it: no character is looked at more than a few times, however long the text.
_USER = re.compile(r"(?<=\w)://[^/@\s]+@(?:[^/@\s\"',]+@)*")
_URL = re.compile(r"(?<=\w)://[^\s\"']+")


def without_credentials(text: str) -> str:
    """Text in which every URL has lost its `user:password@` and the values of its query (tokens travel there)."""
    return _URL.sub(_without_values, _USER.sub(f"://{HIDDEN}@", text))


def _without_values(url: re.Match[str]) -> str:
    address, question, query = url[0].partition("?")
    return address + question + re.sub(r"=[^&#]*", f"={HIDDEN}", query)
