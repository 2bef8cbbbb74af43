"""Rules of what scores the responses."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.schema import section_key
from roles.config.rewards import EnsembleReward, WeightedScore


def conversation_rules(config: EvaluationRun) -> Iterator[str]:
    """Rules for the rewards of conversations."""
    if config.environment is None:
        if config.reward.type == "environment":
            yield "reward.type=environment, but there is no section `environment` that pays; add one (path, max_tokens)"
        return
    for role, scorer in config.reward_models.items():
        if scorer.text_bridge:
            yield (
                f"{section_key(role)}.text_bridge=true rewrites single responses, not conversations; use a reward "
                "model with the actor's tokenizer"
            )


def ensemble_rules(config: EvaluationRun) -> Iterator[str]:
    """Each member of a weighted ensemble has a weight, and each weight a member."""
    if not isinstance(config.reward, EnsembleReward) or not isinstance(config.reward.combine, WeightedScore):
        return
    weighted, members = set(config.reward.combine.weights), set(config.reward.members)
    for name in sorted(members - weighted):
        yield f"reward.combine.weights has no weight for the member {name!r}; give it one"
    for name in sorted(weighted - members):
        known = ", ".join(sorted(members))
        yield f"reward.combine.weights has a weight for {name!r}, which is no member; use {known}"
