"""Checks all stages of a pipeline before the first starts, as far as what they read is there.

Resolved stages and the pipeline's state flow in; the stages that will run flow out, with the reasons; or a ConfigError
that lists the problems of every stage. What an earlier stage will make is taken as made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.loading import load_root
from orchestrator.data.dataset_rows import is_hub_name
from orchestrator.errors import ConfigError
from orchestrator.run.pipeline_stages import STAGE_ROOTS, PipelineStage
from orchestrator.run.pipeline_state import PipelineState

Check = Callable[[Any], object]


def check_pipeline(
    stages: Sequence[PipelineStage], state: PipelineState, checks: Mapping[str, Check] | None = None
) -> dict[str, list[str]]:
    """Name → why it runs, of each stage that will run.

    Args:
        checks: command → check of its configuration; None: those of the commands themselves.
    """
    will_run: dict[str, list[str]] = {}
    problems: list[str] = []
    for stage in stages:
        waits = [name for name in stage.needs if name in will_run]
        if not waits and not (why := state.reasons(stage)):
            continue
        will_run[stage.name] = [f"stage {name} runs before it" for name in waits] or why
        try:
            _check_free(stage, state)
            if waits:
                _check_there(stage, [other for other in stages if other.name in stage.needs])
            else:
                (checks or _checks())[stage.command](_with_free_folder(stage))
        except ConfigError as error:
            problems.append(f"stage {stage.name}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return will_run


def _checks() -> dict[str, Check]:
    """Those with which the commands begin. They import transformers."""
    from orchestrator.checks import label_inputs, policy_training, preparation

    return {
        "train": lambda config: preparation.prepare_train(config, None),
        "reward": lambda config: preparation.prepare_reward(config, None),
        "sft": lambda config: policy_training.prepare_sft(config, None),
        "dpo": lambda config: policy_training.prepare_dpo(config, None),
        "evaluate": preparation.prepare_evaluate,
        "best-of-n": preparation.prepare_best_of_n,
        "label": label_inputs.prepare_label,
    }


def _check_free(stage: PipelineStage, state: PipelineState) -> None:
    """What the stage is going to set aside or to replace is the pipeline's own."""
    for path in (*stage.folders, *stage.made):
        filled = any(path.iterdir()) if path.is_dir() else path.exists()
        if filled and not state.owns(path):
            raise ConfigError(
                f"{path} is there, and this pipeline has not made it; remove it, or choose another folder (key "
                f"{'run_dir' if path == stage.run_dir else stage.config.folder_key})"
            )


def _with_free_folder(stage: PipelineStage) -> Any:
    """The stage's configuration, with a folder that is still free: a stage that trains sets aside what is there."""
    if not stage.trains:
        return stage.config
    key = stage.config.folder_key
    free = stage.run_dir if stage.command == "train" else stage.output
    while os.path.lexists(free) or os.path.lexists(f"{free}-run"):
        free = Path(f"{free}-new")
    return load_root(STAGE_ROOTS[stage.command], stage.file, [*stage.overrides, f"{key}={str(free)!r}"])


def _check_there(stage: PipelineStage, needed: Sequence[PipelineStage]) -> None:
    """What no stage makes is there."""
    for key, path in stage.inputs():
        made = any(Path(path).is_relative_to(place) for other in needed for place in (*other.made, *other.folders))
        name = is_hub_name(path) and not path.endswith(".py")
        if not made and not name and not os.path.exists(path):
            raise ConfigError(f"{key}={path} does not exist; correct the path")
