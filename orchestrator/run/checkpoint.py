"""Checkpoints: one folder with every mutable state of a run, committed by one rename.

The roles' state and a manifest are written into `step-N.partial/`; once all of it is on the disk, the rename to
`step-N/` is the commit. The manifest has the size and the hash of each file. A folder without a readable manifest, or
with a file that is missing or is another one than the manifest says, is not whole and is skipped.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from cluster.estimate.memory import GIB
from cluster.role_table import ACTOR
from roles.durable import hash_of, seal, sync_folder, write_durably

MANIFEST = "manifest.json"
PARTIAL = ".partial"
HASH = "xxh3_128"
MANIFEST_FORMAT = 2
"""In each manifest; raise it when files of another kind are written."""
READERS = 16
"""Files that are read at the same time, to compare their hashes."""
MODELS = "models"
"""Key of the state in a checkpoint: the hashes of the files of the models and of the code that the run has started
with."""
BEST = "best"
"""Folder in `run_dir` with the models of the best evaluation so far, while the run goes on."""
HF = "hf"
"""Folder in `run_dir` for the models of `checkpoint.save_hf_every`: `hf/step-000010/actor`."""
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
    hashes: Mapping[str, str] = field(default_factory=dict)
    """Path in the folder → hash, of the roles' files."""


class Checkpoints:
    """The checkpoints of one run: `<folder>/step-000010/`."""

    def __init__(self, folder: Path, keep: int, keep_every: int = 0) -> None:
        """`keep` newest checkpoints stay, and those whose step is a multiple of `keep_every` (0: of nothing)."""
        self.folder = folder
        self.keep = keep
        self.keep_every = keep_every

    def save(
        self,
        step: int,
        state: dict[str, Any],
        write: Callable[[Path], Mapping[str, str] | None],
        best: Collection[int] = (),
    ) -> Path:
        """Call `write(folder)` for the roles' files, and `commit`; `write` returns what `commit` may know."""
        return self.commit(step, state, write(self.begin(step)) or {}, best)

    def begin(self, step: int) -> Path:
        """An empty folder for the roles' files of a step, in the place of all that were begun before: on a disk that is
        full they would take the room."""
        for begun in self.folder.glob(f"step-*{PARTIAL}"):
            shutil.rmtree(begun, ignore_errors=True)
        partial = _partial(self._folder(step))
        partial.mkdir(parents=True)
        return partial

    def commit(self, step: int, state: dict[str, Any], known: Mapping[str, str], best: Collection[int] = ()) -> Path:
        """Add the manifest to the folder of `begin`, rename it, and remove the whole checkpoints that need not stay.

        Folders that are not whole do not count; each stays until its step is saved again.

        Args:
            known: path in the folder → hash of files that are on the disk; the others are read for it.
            best: steps of more checkpoints that stay.
        """
        final = self._folder(step)
        manifest = {"format": MANIFEST_FORMAT, "step": step, "state": state, "files": _sealed(_partial(final), known)}
        text = json.dumps(manifest, indent=1).encode()
        write_durably(_partial(final) / MANIFEST, lambda file: file.write(text))
        _settle(final)
        whole = [folder for folder in self._folders() if _read_manifest(folder) is not None]
        old = [folder for folder in whole[self.keep :] if not self._stays(step_of(folder) or 0, best)]
        for folder in old:
            shutil.rmtree(folder)
        return final

    def _stays(self, step: int, best: Collection[int]) -> bool:
        return step in best or (self.keep_every > 0 and step % self.keep_every == 0)

    def newest(self, *, content: bool = False) -> Checkpoint | None:
        """The newest whole checkpoint, or None. `content`: see `damage`."""
        return next(filter(None, (checkpoint_in(folder, content=content) for folder in self._folders())), None)

    def of_step(self, step: int, *, content: bool = False) -> Checkpoint | None:
        """The whole checkpoint of that step, or None. `content`: see `damage`."""
        return checkpoint_in(self._folder(step), content=content)

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints."""
        manifests = map(_read_manifest, self._folders())
        return sorted(manifest["step"] for manifest in manifests if manifest is not None)

    def damaged(self, after: int = -1) -> dict[Path, str]:
        """Folder → what is wrong with it or its content (see `damage`), for all later than step `after` that are not
        whole, newest first."""
        found = {folder: damage(folder, content=True) for folder in self._folders() if (step_of(folder) or 0) > after}
        return {folder: what for folder, what in found.items() if what is not None}

    def _folder(self, step: int) -> Path:
        return self.folder / step_name(step)

    def _folders(self) -> list[Path]:
        """Committed folders, newest first."""
        folders = (p for p in self.folder.glob("step-*") if p.is_dir() and p.suffix != PARTIAL)
        return sorted((p for p in folders if step_of(p) is not None), key=lambda p: step_of(p) or 0, reverse=True)


def step_name(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:06d}"


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
    return saved_step(run_dir / ACTOR)


def saved_step(folder: Path) -> int | None:
    """The step of the run that saved the policy in `folder`; None if no run did, or its file cannot be read."""
    try:
        step = json.loads((folder / TRAINED).read_text(encoding="utf-8"))["step"]
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
    partial = _partial(final)
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    _settle(final)


def _partial(final: Path) -> Path:
    return final.with_name(final.name + PARTIAL)


def _settle(final: Path) -> None:
    """Rename the partial folder of `final` to it, once all names in it are on the disk."""
    partial = _partial(final)
    for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        sync_folder(folder)
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def damage(folder: Path, *, content: bool = False) -> str | None:
    """Why the checkpoint in `folder` is not whole, such as `actor/x has 1000 bytes, not 20480`; None if it is
    whole. `content`: read all files, and compare their hashes too."""
    try:
        manifest = _manifest_of(folder)
        expected = {name: (facts["bytes"], facts[HASH]) for name, facts in manifest["files"].items()}
    except (OSError, ValueError, KeyError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    except TypeError:
        return f"{MANIFEST} has no hashes of the files; another version of Tetrarch has written it"
    if manifest.get("format") != MANIFEST_FORMAT:
        return f"{MANIFEST} is not of format {MANIFEST_FORMAT}; another version of Tetrarch has written it"
    for name, (size, _) in expected.items():
        try:
            found = (folder / name).stat().st_size
        except (OSError, ValueError):
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes, not {size}"
    if content:
        with ThreadPool(READERS) as pool:  # leaving it does not wait for files that are still read
            hashes = pool.imap(_known_hash, [folder / name for name in expected])
            for (name, (_, written)), read in zip(expected.items(), hashes, strict=True):
                if read != written:
                    return f"{name} holds other bytes than were written (hash {read}, not {written})"
    return None


def _sealed(folder: Path, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Path in `folder` → size and hash, of all files; those whose hash is not known are read."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        name: {"bytes": file.stat().st_size, HASH: known[name] if name in known else seal(file)}
        for name, file in files.items()
    }


def _known_hash(file: Path) -> str | None:
    """A file's hash, read once as long as the file stays as it is; None if it cannot be read."""
    try:
        facts = file.stat()
        return _hash(file, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    except OSError:
        return None


@cache
def _hash(file: Path, *facts: int) -> str:
    return hash_of(file)


def checkpoint_in(folder: Path, *, content: bool = False) -> Checkpoint | None:
    """The checkpoint in a folder, or None if it is not whole. `content`: see `damage`."""
    manifest = _read_manifest(folder, content=content)
    if manifest is None:
        return None
    hashes = {name: facts[HASH] for name, facts in manifest["files"].items()}
    return Checkpoint(folder, manifest["step"], manifest["state"], hashes)


def _read_manifest(folder: Path, *, content: bool = False) -> dict[str, Any] | None:
    return _manifest_of(folder) if damage(folder, content=content) is None else None


def _manifest_of(folder: Path) -> dict[str, Any]:
    """ValueError if it is not what `Checkpoints.save` wrote."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    match manifest:
        case {"step": int(step), "state": {}, "files": {}} if step >= 0:
            return manifest
    raise ValueError("step, state or files are missing")
