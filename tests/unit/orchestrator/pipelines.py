"""A pipeline of small files: what stages read and make are texts, so that nothing has to start."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.loading import load_root
from orchestrator.config.pipeline import PipelineConfig, PipelineRun
from orchestrator.run.pipeline_stages import PipelineStage, resolved_stages
from orchestrator.run.pipeline_state import PipelineState


@dataclass
class SmallPipeline:
    """SFT on rows, DPO from it, and a measurement, in a folder that is the current one."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "base").mkdir()
        (self.folder / "base/config.json").write_text("{}")
        for name in ("rows.jsonl", "pairs.jsonl", "prompts.jsonl", "judge.py"):
            (self.folder / name).write_text("1\n")
        self.data: dict[str, Any] = {
            "pipeline": {
                "output": "out",
                "stages": {
                    "sft": {"command": "sft"},
                    "dpo": {"command": "dpo", "overrides": {"dpo.model.path": "${sft.output}"}},
                    "measured": {
                        "command": "evaluate",
                        "overrides": {"run_dir": "measured", "actor.model": {"path": "${dpo.output}"}},
                    },
                },
                "compare": {"DPO": "measured"},
            },
            "sft": {"output": "sft/model", "model": {"path": "base"}, "data": {"path": "rows.jsonl"}},
            "dpo": {"output": "dpo/model", "model": {"path": "base"}, "data": {"path": "pairs.jsonl"}},
            "run_dir": "run",
            "prompts": {"train": {"path": "prompts.jsonl"}, "heldout": {"path": "prompts.jsonl"}, "max_tokens": 8},
            "actor": {"model": {"path": "base"}},
            "reward": {"type": "function", "path": "judge.py"},
            "rollout": {"prompts_per_step": 2, "max_response_tokens": 4},
        }

    @property
    def file(self) -> Path:
        """The configuration as it is now."""
        path = self.folder / "pipeline.yaml"
        path.write_text(json.dumps(self.data))
        return path

    @property
    def loaded(self) -> PipelineConfig:
        """The section `pipeline`."""
        return load_root(PipelineRun, self.file).pipeline

    def stages(self, *said: str) -> list[PipelineStage]:
        return resolved_stages(load_root(PipelineRun, self.file, said).pipeline, self.file, said)

    def stage(self, name: str, *said: str) -> PipelineStage:
        return next(stage for stage in self.stages(*said) if stage.name == name)

    def override(self, name: str, **values: Any) -> None:
        overrides = self.data["pipeline"]["stages"][name].setdefault("overrides", {})
        overrides.update({key.replace("__", "."): value for key, value in values.items()})


def make(stage: PipelineStage, text: str = "made") -> None:
    """Leave what a command would leave."""
    for path in stage.made:
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "model.safetensors").write_text(text)


def why(state: PipelineState, pipeline: SmallPipeline) -> dict[str, list[str]]:
    """Name of each stage that has to run → why."""
    return {stage.name: found for stage in pipeline.stages() if (found := state.reasons(stage))}
