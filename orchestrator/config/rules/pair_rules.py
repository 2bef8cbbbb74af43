"""Rules of training a reward model."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.reward_training import RewardTrainingRun, SampledPairs
from orchestrator.config.rules.sampling_rules import engine_rules, response_rules

POLICY = ("actor", "prompts", "rollout")


def pair_rules(config: RewardTrainingRun) -> Iterator[str]:
    """Sampled pairs need the sections of a policy."""
    if not isinstance(config.reward_training.pairs, SampledPairs):
        return
    missing = [key for key in POLICY if getattr(config, key) is None]
    if missing:
        yield (
            f"reward_training.pairs.type=sampled samples responses from the policy, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; add the sections {', '.join(POLICY)}, or use "
            "reward_training.pairs.type: dataset"
        )
        return
    if config.environment is not None:
        yield "reward_training.pairs.type=sampled compares responses, not conversations; set environment=null"
    policy = config.policy
    assert policy is not None
    yield from response_rules(policy)
    yield from engine_rules(policy)
