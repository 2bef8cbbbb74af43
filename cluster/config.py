"""What a user may say about where things run. Imports no engine; read by `orchestrator.config`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class GroupConfig(Section):
    """The ranks of one role."""

    ranks: int = Field(default=1, ge=1)
    """Processes; with ZeRO-3 the model is sharded over them."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of each (OMP_NUM_THREADS)."""


class LocalPlacement(Section):
    """Everything on this machine."""

    type: Literal["local"] = "local"
    actor: GroupConfig = GroupConfig()
    critic: GroupConfig = GroupConfig()
    reward: GroupConfig = GroupConfig()
    reference: GroupConfig = GroupConfig()
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
    score_s: float = Field(default=1800.0, gt=0)
    update_s: float = Field(default=3600.0, gt=0)
    push_s: float = Field(default=600.0, gt=0)
    """For the weights to reach every engine."""
    save_s: float = Field(default=1800.0, gt=0)
