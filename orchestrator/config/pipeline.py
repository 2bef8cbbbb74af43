"""Several commands one after another: the section `pipeline`, and what `tetrarch pipeline` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from orchestrator.config.base import BaseConfig
from roles.config.section import PathText, Section

StageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)]


class StageConfig(Section):
    """One command with its configuration."""

    command: Literal["best-of-n", "dpo", "evaluate", "label", "reward", "sft", "train"]
    """What the stage starts: `tetrarch COMMAND`."""
    config: PathText | None = None
    """The command's configuration file; null: this file, of which the command reads its own sections."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Changes of single keys of that file: `key.path` → value. `${NAME.output}` in a text is what the earlier stage
    NAME leaves (its model, rows or measurements), `${NAME.run_dir}` its `run_dir`."""


class PipelineConfig(Section):
    """Stages that start from one another's results."""

    output: PathText
    """Folder of the pipeline's state and of its report. Each stage writes where its own configuration says."""
    stages: dict[StageName, StageConfig] = Field(min_length=1)
    """Name → stage, in the order in which they run. A stage runs again only if something that it depends on has
    changed, or its output."""
    compare: dict[str, str] = Field(default_factory=dict)
    """Heading → stage with the command `evaluate` or `best-of-n`: what the report compares, all with the first."""
    samples: int = Field(default=4, ge=0)
    """Prompts whose responses the report shows side by side, at most `evaluation.samples`."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """Price of the machines per hour, in any currency, for the report; null: it names no price."""


class PipelineRun(BaseConfig):
    """What `tetrarch pipeline` reads."""

    folder_key: ClassVar[str] = "pipeline.output"

    pipeline: PipelineConfig
    """Stages to run: at least the output and one stage."""

    @classmethod
    def own(cls, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The section alone: the others are those of the stages. `run_dir` is the output itself."""
        section = data.get("pipeline")
        output = section.get("output") if isinstance(section, dict) else None
        return {
            **({"pipeline": section} if "pipeline" in data else {}),
            **({"run_dir": output} if isinstance(output, str) else {}),
        }
