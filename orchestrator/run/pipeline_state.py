"""What a pipeline has done: which stages have ended, and the hashes of all that they depended on.

One JSON file, replaced as a whole. Hashes of files are kept with what tells that a file has changed, so that large
models are read once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from orchestrator.config.loading import dump_config
from orchestrator.config.yaml_text import parse_yaml
from orchestrator.errors import ConfigError
from orchestrator.run.model_contents import file_facts
from orchestrator.run.modules_beside import with_imported
from orchestrator.run.pipeline_stages import PipelineStage
from orchestrator.run.resuming import differing, show_value
from roles.durable import hash_of, replace_durably
from roles.errors import ModelError
from roles.model_files.folders import base_of, folder_of, is_adapter

PIPELINE_STATE = "pipeline.json"
"""File in `pipeline.output`."""
MISSING = "missing"
"""In place of the hash of what is not there."""


@dataclass(frozen=True, slots=True)
class Depends:
    """All that the result of a stage follows from."""

    command: str
    config: str
    """The resolved configuration as YAML, secrets redacted."""
    inputs: dict[str, str]
    """Path of a file or folder that it reads → hash of its content; a name on a hub → the name."""
    needs: dict[str, str]
    """Earlier stage → digest of what that one depended on."""

    @property
    def digest(self) -> str:
        """Hash of everything."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def changes(self, before: Depends) -> Iterator[str]:
        """What is different from `before`, in words."""
        if self.command != before.command:
            yield f"command: {before.command} → {self.command}"
        for key, old, new in differing(parse_yaml(before.config), parse_yaml(self.config)):
            yield f"{key}: {show_value(old)} → {show_value(new)}"
        yield from (f"{path} has changed" for path in self.inputs if self.inputs[path] != before.inputs.get(path))
        yield from (f"stage {name} has run again" for name in self.needs if self.needs[name] != before.needs.get(name))


@dataclass(slots=True)
class StageRecord:
    """What is known of a stage that has begun."""

    depends: Depends
    made: list[str]
    """Files and folders that belong to it."""
    seconds: float = 0.0
    """Of the work so far, over all starts."""
    done: bool = False
    output: str = MISSING
    """Hash of what it has made, once it is done."""


@dataclass(slots=True)
class PipelineState:
    """The state of a pipeline in memory; `write` puts it on the disk."""

    stages: dict[str, StageRecord] = field(default_factory=dict)
    hashes: dict[str, list[int | str]] = field(default_factory=dict)
    """Path of a file → its `file_facts` and the hash of its content. (Earlier versions have fewer facts.)"""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The state in `folder`; a new one if there is none."""
        file = folder / PIPELINE_STATE
        try:
            return TypeAdapter(cls).validate_json(file.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise ConfigError(
                f"{file} is not as a pipeline has written it ({first}); restore it, or remove it together with what "
                "the stages have made"
            ) from None

    def write(self, folder: Path) -> None:
        """Replace the file in `folder`."""
        replace_durably(folder / PIPELINE_STATE, json.dumps(asdict(self), indent=1).encode())

    def depends(self, stage: PipelineStage) -> Depends:
        """What the result of `stage` would follow from now."""
        paths = dict.fromkeys(path for _, path in stage.inputs())
        needs = {name: self.stages[name].depends.digest for name in stage.needs if name in self.stages}
        return Depends(stage.command, dump_config(stage.config), {path: self._content(path) for path in paths}, needs)

    def output_of(self, stage: PipelineStage) -> str:
        """Hash of what `stage` has made; `MISSING` if a part of it is not there."""
        found = [self._content(str(path)) for path in stage.made if path.exists()]
        return _combined(dict(enumerate(found))) if len(found) == len(stage.made) else MISSING

    def reasons(self, stage: PipelineStage) -> list[str]:
        """Why `stage` has to run; none if its output is there and nothing that it depends on has changed."""
        record = self.stages.get(stage.name)
        if record is None:
            return ["it has not run yet"]
        if changed := list(self.depends(stage).changes(record.depends)):
            return changed
        if not record.done:
            return ["it was interrupted"]
        output = self.output_of(stage)
        if output != record.output:
            return [f"its output {stage.output} {'is not there' if output == MISSING else 'has changed'}"]
        return []

    def owns(self, path: Path) -> bool:
        """Whether a stage of this pipeline has made `path`."""
        return any(str(path) in record.made for record in self.stages.values())

    def _content(self, text: str) -> str:
        """Hash of a file (of Python with what it imports from beside it), or of all files in a folder (of an adapter
        with its base); `text` itself if nothing is there, as for a name on a hub."""
        path = Path(text)
        if path.is_file():
            beside = with_imported(path) if path.suffix == ".py" else [path]
            return self._file(path) if len(beside) == 1 else self._files(beside, path.parent)
        if not path.is_dir():
            return text
        found = self._files(sorted(file for file in path.rglob("*") if file.is_file()), path)
        with suppress(ModelError):  # what is wrong with an adapter is told when it is loaded
            if is_adapter(path) and not is_adapter(base := folder_of(base_of(path))):
                return _combined({"adapter": found, "base": self._content(str(base))})
        return found

    def _files(self, files: Sequence[Path], folder: Path) -> str:
        return _combined({str(file.relative_to(folder)): self._file(file) for file in files})

    def _file(self, path: Path) -> str:
        facts, key = file_facts(path), os.path.abspath(path)
        *before, known = self.hashes.get(key, [MISSING])
        if before != facts:
            known = hash_of(path)
        self.hashes[key] = [*facts, known]
        return str(known)


def _combined(hashes: Mapping[Any, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
