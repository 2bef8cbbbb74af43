"""What the models of a run consist of, file by file, so that a run goes on with the same models alone; and the user's
code in it, so that it is said if that has changed.

A configuration flows in, hashes of files flow out. Those of models are kept in `model_cache` with size, times and
number of each file, so that a large file is read once. Checkpoints hold them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.config.base import BaseConfig
from orchestrator.config.schema import inputs_in
from orchestrator.run.modules_beside import with_imported
from roles.config.models import ModelConfig
from roles.durable import hash_of, replace_durably
from roles.errors import ModelError

CONTENT_HASHES = "content-hashes.json"
"""File in `model_cache`."""
SETTLED_S = 2.0
"""Seconds since the last change of a file after which another change has another time."""

Contents = Mapping[str, Mapping[str, str]]
"""Key path of a section with a model, or of a path to a Python file → name of a file → hash of its content."""


def model_contents(config: BaseConfig) -> dict[str, dict[str, str]]:
    """The files of every model that the roles of a run load. A model that cannot be read is left out."""
    return dict(_read_models(config))


def _read_models(config: BaseConfig) -> Iterator[tuple[str, dict[str, str]]]:
    from roles.model_files.source_files import source_files  # loads torch

    models: dict[ModelConfig, dict[str, str]] = {}
    hashes = FileHashes(Path(config.model_cache) / CONTENT_HASHES)
    for key, section in config.sharded.items():
        if section.model is None:
            continue
        with suppress(OSError, ModelError):  # what is missing is told when it is loaded
            if section.model not in models:
                files = source_files(section.model)
                models[section.model] = {name: hashes.of(file) for name, file in files.items()}
                hashes.keep()
            yield key, models[section.model]


def code_contents(config: BaseConfig) -> dict[str, dict[str, str]]:
    """Every Python file that a run is given (a reward, a judge, an environment), with what it imports from beside it.
    What cannot be read is left out."""
    found: dict[str, dict[str, str]] = {}
    for key, path in inputs_in(config, config.folder_key):
        if path.endswith(".py"):
            with suppress(OSError):  # what is missing is told when it is loaded
                file = Path(path)
                found[key] = {str(one.relative_to(file.parent)): hash_of(one) for one in with_imported(file)}
    return found


class FileHashes:
    """Hashes of files; those of files that have not changed since are not computed again."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known: dict[str, list[Any]] = {}
        """Path → the facts by which a change is noticed, and the hash."""
        self._new = False
        with suppress(OSError, ValueError, RecursionError):
            known = json.loads(cache.read_text(encoding="utf-8"))
            self._known = known if isinstance(known, dict) else {}

    def of(self, file: Path) -> str:
        """The hash of a file's content. OSError if it cannot be read."""
        path, facts = str(file.resolve()), file_facts(file)
        match self._known.get(path):
            case [list(before), str(known)] if before == facts:
                return known
        began = time.time()
        found = hash_of(file)
        if max(facts[1:3]) < (began - SETTLED_S) * 1e9 and facts == file_facts(file):
            self._known[path], self._new = [facts, found], True
        return found

    def keep(self) -> None:
        """Write the new ones to the disk, if it can be written to."""
        if self._new:
            with suppress(OSError):
                self._cache.parent.mkdir(parents=True, exist_ok=True)
                replace_durably(self._cache, json.dumps(self._known, indent=1).encode())


def file_facts(file: Path) -> list[int]:
    """Size, times of the last change of content and of the entry in ns, number: a change of content changes one."""
    facts = file.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]


class ContentsMeanwhile:
    """The contents of a run's models and code, read while its roles start."""

    def __init__(self, config: BaseConfig) -> None:
        self._config = config
        self._found: dict[str, dict[str, str]] = {}
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="model-contents", daemon=True)
        self._thread.start()

    def wait(self, within_s: float) -> bool:
        """Wait for them, at most so long. Whether all are known."""
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def known(self) -> Contents:
        """Those that are known by now. Raises what has kept them from being read."""
        if self._failure is not None:
            raise self._failure
        return dict(self._found)

    def _read(self) -> None:
        try:
            self._found = code_contents(self._config)
            for key, files in _read_models(self._config):
                self._found[key] = files
        except Exception as error:  # raised in the thread that asks
            self._failure = error
