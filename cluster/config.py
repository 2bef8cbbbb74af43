"""What a user may say about where things run. Imports no engine; read by `orchestrator.config`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class GroupConfig(Section):
    """The ranks of one role."""

    ranks: int = Field(default=1, ge=1)
    """Processes; with ZeRO-3 the model is sharded over them."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of each (OMP_NUM_THREADS)."""


class LocalPlacement(Section):
    """Everything on this machine."""

    type: Literal["local"] = "local"
    """One machine."""
    actor: GroupConfig = GroupConfig()
    """Ranks that train the policy."""
    critic: GroupConfig = GroupConfig()
    """Ranks of the value model."""
    reward: GroupConfig = GroupConfig()
    """Ranks of the reward model (of `reward.type: model`)."""
    reference: GroupConfig = GroupConfig()
    """Ranks of the frozen policy."""
    judge: GroupConfig = GroupConfig()
    """The gold scorer of `evaluation` and `reward_training`."""
    rollout: GroupConfig = GroupConfig()
    """vLLM engines: `ranks` is their number; each has `rollout.engine.tensor_parallel_size` processes."""


PlacementConfig = Annotated[LocalPlacement, Field()]


class Deadlines(Section):
    """Seconds after which a wait is given up with a report of who was doing what."""

    resources_s: float = Field(default=300.0, gt=0)
    """For Ray to grant the placement."""
    start_s: float = Field(default=900.0, gt=0)
    """For every rank to load its model."""
    generate_s: float = Field(default=1800.0, gt=0)
    """For the engines to answer the prompts of a step."""
    score_s: float = Field(default=1800.0, gt=0)
    """For the scoring passes of a step."""
    update_s: float = Field(default=3600.0, gt=0)
    """For all epochs of a step on actor and critic."""
    push_s: float = Field(default=600.0, gt=0)
    """For the weights to reach every engine."""
    save_s: float = Field(default=1800.0, gt=0)
    """For a checkpoint, or the final model, to be written."""
