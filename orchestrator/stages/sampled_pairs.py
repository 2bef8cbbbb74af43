"""Comparisons for a reward model: the policy's own responses, ranked by a judge.

A configuration and prompts flow in; Preferences flow out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cluster.counts import counted
from cluster.role_table import ENGINES, JUDGE
from orchestrator.config.reward_training import SampledPairs
from orchestrator.config.sampling import SamplingConfig
from orchestrator.data.prompts import PromptSource, Questions
from orchestrator.errors import TetrarchError
from orchestrator.groups.build import builder
from orchestrator.groups.policy import Policy
from orchestrator.groups.resolved_models import Models
from orchestrator.groups.spread import wait_for
from orchestrator.report.reporter import Reporter
from roles.batch import Preferences, Rollouts


def sampled(
    config: SamplingConfig, pairs: SampledPairs, questions: Questions, models: Models, report: Reporter
) -> Preferences:
    """`responses_per_prompt` responses of the policy to each training prompt, ranked by the judge's score."""
    source = PromptSource(questions, config.seed)
    prompts = source.next(min(pairs.prompts or len(source), len(source)), pairs.responses_per_prompt)
    report.status("starting an engine and the judge")
    with builder(config, {ENGINES: None, JUDGE: pairs.judge}, starting=report.starting) as build:
        policy, judge = (
            Policy(build.engines(models), config.deadlines, environment=False),
            build.scorer("judge", pairs.judge, build.policy_text(models)),
        )
        build.ready()
        asked = counted(len(prompts) // pairs.responses_per_prompt, "prompt")
        report.status(f"sampling {counted(len(prompts), 'response')} to {asked}")
        rollouts = policy.generate(prompts, version=0)
        judged = judge.start(rollouts)
        wait_for([judged], config.deadlines.score_s, build.recovery)
        scores = judged.result(config.deadlines.score_s)
    return by_score(rollouts, scores, pairs.responses_per_prompt)


def by_score(rollouts: Rollouts, scores: Tensor, each: int) -> Preferences:
    """Responses that a judge has scored, float `[batch]`; `each` consecutive ones answer the same prompt. TetrarchError
    for a score that is not finite, which would be better or worse than no other."""
    if not bool(scores.isfinite().all()):
        bad = (~scores.isfinite()).nonzero().flatten().tolist()
        raise TetrarchError(
            f"the judge's scores are not finite for {len(bad)} of {len(scores)} responses (the first has the prompt "
            f"{rollouts.prompts[bad[0]][:60]!r}); look at them, or use another judge"
        )
    groups = torch.arange(len(rollouts)) // each
    return Preferences(rollouts.token_ids, rollouts.lengths, groups, scores, torch.ones(len(rollouts)))
