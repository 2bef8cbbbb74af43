"""What of a working directory Ray uploads for a job: all but what its ignore files name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

QUIET = logging.getLogger("tetrarch.upload")
QUIET.setLevel(logging.WARNING)


def left_out_of(working_dir: Path) -> Callable[[Path], bool]:
    """Says of a path in `working_dir` whether `.gitignore` or `.rayignore`, there or in a folder inside it, names the
    path or a folder around it. Each folder's ignore files are read once."""
    root = working_dir.absolute()
    with_gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"

    @cache
    def rules(folder: Path) -> list[Callable[[Path], bool]]:
        """Of the folder and those around it."""
        own = get_excludes_from_ignore_files(folder, include_gitignore=with_gitignore, logger=QUIET)
        return own if folder == root else [*rules(folder.parent), *own]

    @cache
    def folder_left_out(folder: Path) -> bool:
        around = folder != root and folder_left_out(folder.parent)
        return around or any(names(folder) for names in rules(folder))

    def left_out(path: Path) -> bool:
        whole = path.absolute()
        if whole.is_dir():
            return folder_left_out(whole)
        return folder_left_out(whole.parent) or any(names(whole) for names in rules(whole.parent))

    return left_out
