"""Rules of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.base import BaseConfig
from orchestrator.config.dpo import DpoRun
from orchestrator.config.run import RunConfig
from orchestrator.config.sft import SftRun


def checkpoint_rules(config: BaseConfig) -> Iterator[str]:
    """Checkpoints are compared by evaluations, which there must be."""
    lead = f"checkpoint.keep_best={config.checkpoint.keep_best} compares checkpoints by their evaluations, and"
    if not config.checkpoint.keep_best:
        return
    if isinstance(config, RunConfig) and not config.evaluation.every:
        yield (
            f"{lead} evaluation.every=0 makes none during training; set it to a number of steps (and "
            "prompts.heldout.path), or keep_best: 0"
        )
    if isinstance(config, RunConfig) and config.retraining and config.evaluation.judge is None:
        yield (
            f"{lead} `retraining` changes what their scores mean; set evaluation.judge, whose scores do not move, or "
            "keep_best: 0"
        )
    if isinstance(config, SftRun | DpoRun):
        section = config.sft if isinstance(config, SftRun) else config.dpo
        if section.heldout is None and not section.heldout_fraction:
            yield f"{lead} {section.key}.heldout_fraction=0 holds nothing out; raise it, or set keep_best: 0"
