"""The READMEs of the project, as the tests that keep them true read them: every file of that name, found on disk."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_WRITTEN_BY_RUNS = {"runs", "dist"}

_FOLDERS = [folder for folder in sorted(ROOT.glob("[a-z]*/")) if folder.name not in _WRITTEN_BY_RUNS]
READMES: dict[str, str] = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *(path for folder in _FOLDERS for path in sorted(folder.rglob("README.md"))))
}
"""Path from the repository's root → text."""

EVERYTHING = "\n".join(READMES.values())


def blocks(text: str) -> list[tuple[str, str]]:
    """Code blocks: language, text."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [(language, textwrap.dedent(block)) for language, block in found]


BLOCKS = blocks(EVERYTHING)


def commands() -> list[list[str]]:
    """Lines of the code blocks that start a program, each once, as words without comments (a Ray job: its command)."""
    lines = [
        line for language, text in BLOCKS if language in ("", "bash") for line in text.replace("\\\n", " ").splitlines()
    ]
    lines = [re.sub(r"^(\w+=\S+ )+|^ray job submit .* -- ", "", line) for line in lines]
    started = [line for line in lines if re.match(r"(\.venv/bin/|tetrarch |make )", line)]
    return [list(words) for words in dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in started)]


def sections() -> dict[str, str]:
    """Text by "FILE: HEADING", for the headings of the second level; what stands before the first is "FILE: top"."""
    found = {}
    for name, text in READMES.items():
        first, *rest = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
        found[f"{name}: top"] = first
        found.update((f"{name}: {heading}", part) for heading, part in zip(rest[::2], rest[1::2], strict=True))
    return found


def anchors(text: str) -> set[str]:
    """What a link can name behind `#`: the headings of a text as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
