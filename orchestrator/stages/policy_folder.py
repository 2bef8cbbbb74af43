"""What the trainings that make a policy of a data set do alike: when they test it, and the folder that they leave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.ranks.role_group import RoleGroup
from orchestrator.config.policy_training import PolicyTrainingConfig
from orchestrator.run.checkpoint import whole_folder
from roles.zero.trained_rank import TrainedPolicy


def evaluation_due(step: int, steps: int, section: PolicyTrainingConfig) -> bool:
    """Whether what is held out is evaluated after step `step` of `steps`."""
    return step == steps or step % (section.evaluate_every or steps // section.epochs) == 0


def save_policy(
    trainer: RoleGroup[Any], section: PolicyTrainingConfig, facts: Mapping[str, Any], deadline_s: float
) -> None:
    """Write the model to the section's `output`, whole or not at all, with the chat template and what is known of it.

    Args:
        facts: file in the folder → plain values.
    """
    with whole_folder(Path(section.output)) as partial:
        trainer.call(TrainedPolicy.save_model, str(partial)).result(deadline_s)
        if section.chat_template is not None:
            template = Path(section.chat_template).read_text(encoding="utf-8")
            (partial / "chat_template.jinja").write_text(template, encoding="utf-8")
        for name, values in facts.items():
            (partial / name).write_text(json.dumps(values, indent=1) + "\n")
