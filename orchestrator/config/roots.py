"""The roots of the configuration, one per kind of command; together they are all keys that a file may hold.

One file may serve several commands: each reads the keys of its own root.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import create_model

from orchestrator.config.base import BaseConfig
from orchestrator.config.dpo import DpoRun
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.labelling import LabellingRun
from orchestrator.config.pipeline import PipelineRun
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.run import RunConfig
from orchestrator.config.serving import ServingRun
from orchestrator.config.sft import SftRun
from roles.config.section import Section

ROOTS: dict[str, type[BaseConfig]] = {
    "train": RunConfig,
    "evaluate": EvaluationRun,
    "reward": RewardTrainingRun,
    "sft": SftRun,
    "dpo": DpoRun,
    "label": LabellingRun,
    "serve": ServingRun,
    "pipeline": PipelineRun,
}
"""Command → root of its configuration; `plan` and `submit` read what `train` reads."""

_FIELDS: dict[str, Any] = {}
for _root in ROOTS.values():
    _FIELDS |= {key: (field.annotation, field) for key, field in _root.model_fields.items() if key not in _FIELDS}

AnyConfig = create_model("AnyConfig", __base__=Section, __doc__="Every key of every command.", **_FIELDS)
"""All top-level keys in one section. Never loaded: it says which keys exist, and what they may hold."""


def served(data: Mapping[str, Any]) -> list[str]:
    """The commands whose required top-level keys the file has."""
    said = {key for key, value in data.items() if value is not None}
    return [command for command, root in ROOTS.items() if set(required(root)) <= said]


def required(root: type[BaseConfig]) -> list[str]:
    """The top-level keys without which the root does not load."""
    return [name for name, field in root.model_fields.items() if field.is_required() and name not in root.derived()]


def json_schema() -> dict[str, object]:
    """JSON Schema of a configuration file, whichever command it is for."""
    schema = AnyConfig.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Tetrarch configuration",
        "required": [],
        "anyOf": [{"required": required(root)} for root in ROOTS.values()],
    }
