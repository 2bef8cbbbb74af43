"""What a page or a drawing would load from elsewhere, or lead to."""

from __future__ import annotations

import re
from html.parser import HTMLParser

WITH_ADDRESS = {"action", "background", "data", "formaction", "href", "poster", "src", "srcset", "xlink:href"}


class _Addresses(HTMLParser):
    """Collects the addresses in attributes and styles; scripts are not read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        for name, value in attrs:
            if name in WITH_ADDRESS:
                self.found.append(value or "")
            else:  # style, fill, clip-path, …
                self.found += _in_style(value or "")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.found += _in_style(data)


def _in_style(text: str) -> list[str]:
    named = re.findall(r"url\(\s*[\"']?([^)\"']*)", text)
    return [*named, *re.findall(r"@import[^;]*", text)]


def outside(text: str) -> list[str]:
    """The addresses in HTML or SVG that are not of a place in the same file."""
    return [address for address in _Addresses(text).found if not address.startswith(("#", "data:"))]
