"""A pipeline's stages with their references resolved: a checked `PipelineRun` flows in; each stage with its
configuration, what it reads and makes, and which others it needs flows out; or a ConfigError with all problems."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from operator import attrgetter
from pathlib import Path
from typing import Any

from cluster.role_table import ACTOR
from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import load_root
from orchestrator.config.pipeline import PipelineConfig, StageConfig
from orchestrator.config.roots import ROOTS
from orchestrator.config.schema import inputs_in
from orchestrator.errors import ConfigError
from orchestrator.report.run_files import BEST_OF_N, EVALUATED
from orchestrator.run.checkpoint import trained_step

REFERENCE = re.compile(r"\$\{([^}]*)\}")
STAGE_ROOTS = {**ROOTS, "best-of-n": ROOTS["serve"]}
"""Command of a stage → root of its configuration."""
MEASURES = ("evaluate", "best-of-n")
"""Commands that answer the held-out prompts, and read the policy in `run_dir` if one is there."""


@dataclass(frozen=True, slots=True)
class PipelineStage:
    """One stage, ready to start: `tetrarch sft configs/mine.yaml sft.data.path=runs/best/best-of-n.jsonl`."""

    name: str
    command: str
    file: Path
    overrides: tuple[str, ...]
    config: BaseConfig
    needs: tuple[str, ...]
    """Earlier stages whose results it reads."""
    made_by: tuple[str, ...]
    """Those that the policy which it measures comes from, and of best-of-N what picks, itself included."""

    @property
    def run_dir(self) -> Path:
        """Folder of the command's run."""
        return Path(self.config.run_dir)

    @property
    def output(self) -> Path:
        """What `${NAME.output}` stands for."""
        names = {"train": ACTOR, "evaluate": EVALUATED, "best-of-n": BEST_OF_N}
        if self.command in names:
            return self.run_dir / names[self.command]
        return Path(attrgetter(self.config.folder_key)(self.config))

    @property
    def made(self) -> tuple[Path, ...]:
        """All that the stage has done when it has ended, as files and folders."""
        return (self.output, self.output.with_suffix(".json")) if self.command == "best-of-n" else (self.output,)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders of this stage alone; none if it only adds files to one."""
        return () if self.command in MEASURES else tuple(dict.fromkeys((self.run_dir, self.output)))

    @property
    def trains(self) -> bool:
        """Whether the command leaves checkpoints, and wants its folders to be free."""
        return self.command not in (*MEASURES, "label")

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Key and value of every path that it reads."""
        yield from inputs_in(self.config, self.config.folder_key)
        if self.command in MEASURES and trained_step(self.run_dir) is not None:
            yield "run_dir", str(self.run_dir / ACTOR)


def resolved_stages(pipeline: PipelineConfig, file: Path, said: Sequence[str] = ()) -> list[PipelineStage]:
    """The stages in their order. `said`: overrides of the command line, for stages that read `file` itself."""
    found: dict[str, PipelineStage] = {}
    problems: list[str] = []
    for name, stage in pipeline.stages.items():
        try:
            found[name] = _resolved(name, stage, pipeline, found, file, said)
        except ConfigError as error:
            problems.append(f"stage {name}: {error}")
    problems += [*_conflicts(list(found.values()), Path(pipeline.output)), *_wrong_comparison(pipeline)]
    if problems:
        raise ConfigError("\n".join(problems))
    return list(found.values())


def _resolved(
    name: str,
    stage: StageConfig,
    pipeline: PipelineConfig,
    earlier: Mapping[str, PipelineStage],
    file: Path,
    said: Sequence[str],
) -> PipelineStage:
    root, own = STAGE_ROOTS[stage.command], Path(stage.config or file)
    passed = [word for word in said if word.partition("=")[0].partition(".")[0].strip() in root.model_fields]
    needs: list[str] = []

    def value_of(match: re.Match[str]) -> str:
        needed, _, what = match[1].partition(".")
        if needed not in earlier:
            raise ConfigError(_no_stage(match[0], needed, name, pipeline, earlier))
        if what not in ("output", "run_dir"):
            raise ConfigError(f"{match[0]}: must be ${{{needed}.output}} or ${{{needed}.run_dir}}")
        needs.append(needed)
        return str(getattr(earlier[needed], what))

    texts = {key: json.dumps(_replaced(value, value_of), ensure_ascii=False) for key, value in stage.overrides.items()}
    overrides = [*(f"{key}={text}" for key, text in texts.items()), *(passed if stage.config is None else [])]
    resolved = PipelineStage(name, stage.command, own, tuple(overrides), load_root(root, own, overrides), (), ())
    makers = {
        key: [other.name for other in earlier.values() if _inside(path, other)] for key, path in resolved.inputs()
    }
    needs += chain.from_iterable(makers.values())
    measured = [key for key in makers if stage.command != "evaluate" or key.partition(".")[0] in ("actor", "run_dir")]
    direct = dict.fromkeys(chain.from_iterable(makers[key] for key in measured))
    made_by = [*chain.from_iterable((*earlier[other].made_by, other) for other in direct)]
    made_by += [] if stage.command == "evaluate" else [name]
    return replace(resolved, needs=tuple(dict.fromkeys(needs)), made_by=tuple(dict.fromkeys(made_by)))


def _replaced(value: Any, value_of: Callable[[re.Match[str]], str]) -> Any:
    """Plain values with the references in their texts replaced."""
    if isinstance(value, dict):
        return {key: _replaced(inner, value_of) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, value_of) for inner in value]
    return REFERENCE.sub(value_of, value) if isinstance(value, str) else value


def _no_stage(said: str, needed: str, name: str, pipeline: PipelineConfig, earlier: Mapping[str, PipelineStage]) -> str:
    names = list(pipeline.stages)
    if needed in names:
        runs_before = names.index(needed) < names.index(name)
        return f"{said}: " + ("has problems of its own" if runs_before else f"{needed} does not run before {name}")
    near = difflib.get_close_matches(needed, earlier, n=1)
    fix = f"did you mean {near[0]}?" if near else f"earlier stages: {', '.join(earlier) or 'none'}"
    return f"{said}: there is no stage {needed}; {fix}"


def _inside(path: str | Path, stage: PipelineStage) -> bool:
    """Whether a stage makes `path`, or the folder around it."""
    return any(_within(path, made) for made in (*stage.made, *stage.folders))


def _within(path: str | Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _conflicts(stages: Sequence[PipelineStage], output: Path) -> Iterator[str]:
    """One line for each two stages that write to one folder, or of which the earlier one reads what the later makes."""
    for stage in stages:
        if any(_within(output, folder) for folder in stage.folders):
            yield f"pipeline.output={output} lies in a folder of the stage {stage.name}; choose another one"
    for first, second in combinations(stages, 2):
        places = [(a, b) for a in first.folders for b in second.folders if _within(a, b) or _within(b, a)]
        places += [(a, b) for a in first.made for b in second.made if _within(a, b) and _within(b, a)]
        if places:
            a, b = places[0]
            fix = "give each a folder of its own (key run_dir, or output of its section)"
            yield f"the stages {first.name} and {second.name} both write to {a if _within(a, b) else b}; {fix}"
        late = next((f"{key}={path}" for key, path in first.inputs() if _inside(path, second)), None)
        if late and not places:
            yield f"stage {first.name}: {late} is made by the later stage {second.name}; put {second.name} first"


def _wrong_comparison(pipeline: PipelineConfig) -> Iterator[str]:
    for heading, name in pipeline.compare.items():
        stage = pipeline.stages.get(name)
        if stage is None or stage.command not in MEASURES:
            found = "there is no such stage" if stage is None else f"its command is {stage.command}"
            yield f"pipeline.compare.{heading}={name}: {found}; name stages with the command {' or '.join(MEASURES)}"
