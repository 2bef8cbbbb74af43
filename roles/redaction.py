"""Removes secrets from texts that are shown or written. Pure, in time linear in the text."""

from __future__ import annotations

import re

HIDDEN = "***"

# Both begin at `://`, which has no second `://` in what follows up to where the match ends, or is passed over as a part
# of it: no character is looked at more than a few times, however long the text.
_USER = re.compile(r"(?<=\w)://[^/@\s]+@(?:[^/@\s\"',]+@)*")
_URL = re.compile(r"(?<=\w)://[^\s\"']+")

_KEYS_FOLLOW = {"services", "webhook", "webhooks", "webhookb2", "hook", "hooks", "token", "tokens", "secret", "key"}
"""Parts of a path behind which services have keys: `hooks.slack.com/services/T…/B…/…`."""
_COMMIT_FOLLOWS = {"blob", "commit", "raw", "resolve", "tree"}
_KEY = re.compile(r"[A-Za-z0-9]{20}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-|bot[0-9]+:", re.IGNORECASE)
"""In a part of a path that is a key by itself, if it has letters and digits: no word is so long; a UUID; Telegram's."""


def without_credentials(text: str) -> str:
    """Text in which every URL has lost its `user:password@`, the values of its query, and the parts of its path that
    look like keys (webhooks have them there)."""
    return _URL.sub(_without_values, _USER.sub(f"://{HIDDEN}@", text))


def _without_values(url: re.Match[str]) -> str:
    address, question, query = url[0].partition("?")
    if url.string[max(url.start() - 5, 0) : url.start()].endswith(("http", "https")):
        address = _without_keys(address)
    return address + question + re.sub(r"=[^&#]*", f"={HIDDEN}", query)


def _without_keys(address: str) -> str:
    """Of `://host/a/b`, with keys hidden."""
    parts, follow = address.split("/"), False
    for place, part in enumerate(parts[3:], 3):
        mixed = not part.isalpha() and not part.isdigit()
        commit = parts[place - 1] in _COMMIT_FOLLOWS
        if mixed and not commit and (_KEY.search(part) or (follow and len(part) >= 8)):
            parts[place] = HIDDEN
        follow = follow or part in _KEYS_FOLLOW
    return "/".join(parts)
