"""What every command reads: the keys that all roots of the configuration share.

Imports neither torch, ray, vllm nor deepspeed, so that a file can be checked on a laptop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from cluster.config import Deadlines, LocalPlacement, PlacementConfig
from orchestrator.config.checkpoint import CheckpointConfig
from orchestrator.config.profile import ProfileConfig
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.config.report import ReportConfig
from orchestrator.config.schema import section_key
from roles.config.models import FrozenRole, TrainedRole
from roles.config.section import Dtype, PathText, Section

RUN = "-run"
"""Suffix of the folder of a run, after its output."""


class BaseConfig(Section):
    """Where and how a command runs."""

    folder_key: ClassVar[str] = "run_dir"
    """The key to change so that a run uses another folder. If it is that of an output, `run_dir` follows from it:
    `runs/reward/model-run` beside `runs/reward/model`."""

    run_dir: PathText
    """Folder of everything that the run leaves behind. Of `tetrarch reward`, `sft`, `dpo` and `label` it follows from
    the key `output` of their section: `OUTPUT-run`."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    """Seed of the prompts' order, of sampling, of the mini-batches and of new heads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of all models."""
    dtype: Dtype = "float32"
    """Type of the models' weights and activations; losses, values and log-probabilities are always float32."""
    model_cache: PathText = "runs/models"
    """Folder of converted models (from GGUF files, or with fewer layers), of what the reference of `tetrarch dpo` has
    said of its data, and of hashes of models' files."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """State that a run resumes from."""
    report: ReportConfig = ReportConfig()
    """What a run writes beside its metrics."""
    profile: ProfileConfig | None = None
    """Which ranks are profiled in which steps; null: none."""
    placement: PlacementConfig = LocalPlacement()
    """Which role sits on which machines and GPUs."""
    deadlines: Deadlines = Deadlines()
    """How long the driver waits before it gives up."""
    recovery: RecoveryConfig = RecoveryConfig()
    """Which failures a run survives."""

    @classmethod
    def own(cls, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The keys of a file that this command reads, and what follows from them."""
        own = {key: value for key, value in data.items() if key in cls.model_fields}
        section, _, key = cls.folder_key.rpartition(".")
        output = own[section].get(key) if isinstance(own.get(section), dict) else None
        return own | ({"run_dir": f"{Path(output)}{RUN}"} if isinstance(output, str) else {})

    @classmethod
    def derived(cls) -> set[str]:
        """Keys that a file may leave out because they follow from others."""
        return {"run_dir"} - {cls.folder_key}

    @property
    def runs(self) -> Sequence[BaseConfig]:
        """The runs that the command makes, each with a `run_dir` of its own."""
        return [self]

    @property
    def model_roles(self) -> tuple[str, ...]:
        """The roles of the command that hold a model."""
        return ()

    @property
    def sharded(self) -> dict[str, FrozenRole]:
        """Key path → section of every model of the command that its ranks hold under ZeRO."""
        sections = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: section for name, section in sections.items() if isinstance(section, FrozenRole)}

    def sharded_section(self, role: str) -> FrozenRole:
        """The section of a role in `sharded`. A command that trains one model has one section."""
        sections = self.sharded
        return sections.get(section_key(role)) or next(iter(sections.values()))

    @property
    def trained(self) -> dict[str, TrainedRole]:
        """Key path → section of every model that the command trains."""
        return {key: section for key, section in self.sharded.items() if isinstance(section, TrainedRole)}
