"""Checkpoints: one folder with every mutable state of a run, committed by one rename.

The driver writes the roles' state and a manifest into `step-N.partial/`; the rename to `step-N/` is the commit. A
folder without a readable manifest, or with a file that is missing or has another size than the manifest says, is not
whole and is skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.estimate.memory import GIB
from cluster.role_table import ACTOR

MANIFEST = "manifest.json"
PARTIAL = ".partial"
TRAINED = "tetrarch.json"
"""File in the folder of a trained policy, with the step of its weights."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    step: int
    """Number of steps done."""
    state: dict[str, Any]
    """The driver's state, from `orchestrator.stages.stage.Stage.state_dict`, and the configuration."""


class Checkpoints:
    """The checkpoints of one run: `<folder>/step-000010/`, the newest `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: dict[str, Any], write: Callable[[Path], None]) -> Path:
        """Call `write(folder)` for the roles' files, add the manifest, commit, and keep the newest `keep` whole
        checkpoints.

        Folders that are not whole do not count; each stays until its step is saved again.
        """
        final = self._folder(step)
        with whole_folder(final) as partial:
            partial.mkdir(parents=True)
            write(partial)
            files = {str(f.relative_to(partial)): f.stat().st_size for f in sorted(partial.rglob("*")) if f.is_file()}
            _write_durably(partial / MANIFEST, json.dumps({"step": step, "state": state, "files": files}, indent=1))
        _sync_folder(self.folder)
        whole = [folder for folder in self._folders() if _read_manifest(folder) is not None]
        for old in [*whole[self.keep :], *self.folder.glob(f"step-*{PARTIAL}")]:
            shutil.rmtree(old)
        return final

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None."""
        for folder in self._folders():
            manifest = _read_manifest(folder)
            if manifest is not None:
                return Checkpoint(folder, manifest["step"], manifest["state"])
        return None

    def of_step(self, step: int) -> Checkpoint | None:
        """The whole checkpoint of that step, or None."""
        folder = self._folder(step)
        manifest = _read_manifest(folder)
        return Checkpoint(folder, manifest["step"], manifest["state"]) if manifest is not None else None

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints."""
        manifests = map(_read_manifest, self._folders())
        return sorted(manifest["step"] for manifest in manifests if manifest is not None)

    def damaged(self) -> dict[Path, str]:
        """Folder → what is wrong with it (see `damage`), for all that are not whole, newest first."""
        found = {folder: damage(folder) for folder in self._folders()}
        return {folder: what for folder, what in found.items() if what is not None}

    def _folder(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _folders(self) -> list[Path]:
        """Committed folders, newest first."""
        folders = (p for p in self.folder.glob("step-*") if p.is_dir() and p.suffix != PARTIAL)
        return sorted((p for p in folders if step_of(p) is not None), key=lambda p: step_of(p) or 0, reverse=True)


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint's folder, whole or not; None for a folder of another name, such as a copy made by the
    user."""
    found = re.fullmatch(r"step-(\d+)", folder.name.removesuffix(PARTIAL))
    return int(found[1]) if found else None


def size_gib(folder: Path) -> float:
    """Size of all files in a folder, in GiB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / GIB


def trained_step(run_dir: Path) -> int | None:
    """The step of the policy in `run_dir/actor`; None if none has been saved there, or its file cannot be read."""
    try:
        step = json.loads((run_dir / ACTOR / TRAINED).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def progress_of(run_dir: Path) -> str:
    """A sentence for the user of a stopped run: where it can continue."""
    newest = Checkpoints(run_dir / "checkpoints", keep=1).newest()
    return f"{newest.path} stands; go on from there with --resume" if newest else f"{run_dir} has no checkpoint yet"


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Context with a path to write to (nothing is there); if no error is raised, it replaces `final` by a rename."""
    partial = final.with_name(final.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def damage(folder: Path) -> str | None:
    """Why the checkpoint in `folder` is not whole, such as `actor/state.pt has 1000 bytes, not 20480`; None: it is."""
    try:
        files = _manifest_of(folder)["files"]
    except (OSError, ValueError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    for name, size in files.items():
        try:
            found = (folder / name).stat().st_size
        except (OSError, ValueError):
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes, not {size}"
    return None


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    return _manifest_of(folder) if damage(folder) is None else None


def _manifest_of(folder: Path) -> dict[str, Any]:
    """ValueError if it is not what `Checkpoints.save` wrote."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    match manifest:
        case {"step": int(step), "state": {}, "files": {}} if step >= 0:
            return manifest
    raise ValueError("step, state or files are missing")


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
