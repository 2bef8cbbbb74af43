"""The model folders that roles are started from: one that is started again must find there what it has loaded before.

Folders flow in when a role starts, and an error flows out if another command has written to one since.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from orchestrator.errors import TetrarchError
from roles.model_files.folders import files_of_model

FileLooks = tuple[int, int, int]
"""Size in bytes, time of the last change in ns, number. Not the time of the entry: a hard link changes that."""
FILES_TOLD = 3
"""Files that are told."""


class LoadedFolders:
    """Role → its model folder, and what the files in it looked like when the role was started."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Path, dict[str, FileLooks]]] = {}

    def note(self, role: str, folder: Path) -> None:
        """The role loads `folder` from now on, as it is now."""
        self._known[role] = folder, _looks_in(folder)

    def check(self, *roles: str) -> None:
        """TetrarchError if the folder of one of the roles (without any: of all) is not what it was."""
        for role in roles or tuple(self._known):
            folder, before = self._known.get(role, (None, {}))
            now = _looks_in(folder) if folder else {}
            if now != before:
                files = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
                told = ", ".join(files[:FILES_TOLD]) + (" …" if len(files) > FILES_TOLD else "")
                raise TetrarchError(
                    f"{folder} has changed since {role} was started from it ({told}): what is started again loads "
                    "another model than the one that has answered so far; run the command again, and let nothing write "
                    "there meanwhile"
                )


def _looks_in(folder: Path) -> dict[str, FileLooks]:
    """Nothing if the folder cannot be read."""
    found = dict[str, FileLooks]()
    with suppress(OSError):
        for file in files_of_model(folder):
            facts = file.stat()
            found[file.name] = facts.st_size, facts.st_mtime_ns, facts.st_ino
    return found
