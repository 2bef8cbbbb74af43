"""What of a working directory Ray uploads for a job: all but what its ignore files name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

QUIET = logging.getLogger("tetrarch.upload")
QUIET.setLevel(logging.WARNING)


def stays_here(path: Path, working_dir: Path) -> bool:
    """Whether `.gitignore` or `.rayignore`, in the working directory or a folder inside it, names `path`, which lies
    in there, or a folder around it."""
    whole = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    inside, excludes = path.absolute().relative_to(working_dir.absolute()), list[Callable[[Path], bool]]()
    for depth in range(len(inside.parts) + 1):
        part = working_dir.absolute().joinpath(*inside.parts[:depth])
        if part.is_dir():
            excludes += get_excludes_from_ignore_files(part, include_gitignore=whole, logger=QUIET)
        if any(exclude(part) for exclude in excludes):
            return True
    return False
