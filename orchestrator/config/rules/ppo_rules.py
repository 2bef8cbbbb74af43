"""Rules of PPO: batches, steps, advantages, the KL penalty, evaluations; and what is allowed, but said."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config import LocalPlacement
from cluster.placement.plan import ranks_of
from cluster.role_table import ACTOR, trained_roles
from orchestrator.config.base import BaseConfig
from orchestrator.config.kl import FixedKl
from orchestrator.config.run import RunConfig

LARGEST_GSPO_CLIP = 0.05
"""Largest usual clip range for means over responses, which change little; the paper uses about 1e-4."""
BIASED_KL = {
    ("loss", "k1"): "its gradient is zero on average, so nothing holds the policy; use k2 (or k3, as GRPO does)",
    ("reward", "k2"): "it punishes tokens that became less likely as much as those that became more likely; use k1",
    ("reward", "k3"): "it punishes tokens that became less likely without bound; use k1",
}


def batch_rules(config: RunConfig) -> Iterator[str]:
    """Mini-batches are equal parts of a step, with a sample for every rank."""
    samples, mini_batches = config.samples_per_step, config.ppo.mini_batches
    if samples % mini_batches:
        near = [n for n in range(1, samples + 1) if samples % n == 0]
        near = sorted(sorted(near, key=lambda n: abs(n - mini_batches))[:2])
        rollout = config.rollout
        yield (
            f"ppo.mini_batches={mini_batches} does not divide the {samples} samples of a step (rollout.prompts_per_step"
            f"={rollout.prompts_per_step} x rollout.responses_per_prompt={rollout.responses_per_prompt}); "
            f"use {' or '.join(map(str, near))}"
        )
        return
    rows = samples // mini_batches
    for role in [role for role in trained_roles() if role in config.model_roles]:
        ranks = ranks_of(config.placement, role)
        if rows < ranks:
            local = isinstance(config.placement, LocalPlacement)
            said = f"placement.{role}.ranks={ranks} is" if local else f"the {ranks} ranks (GPUs) of the {role} are"
            yield (
                f"{said} more than the {rows} samples of a mini-batch ({samples} "
                f"samples of a step, ppo.mini_batches={mini_batches}); use fewer ranks or fewer mini-batches"
            )


def distribution_rules(config: RunConfig) -> Iterator[str]:
    """Samples from another distribution than the actor's need importance weights."""
    rollout = config.rollout
    unweighted = config.ppo.policy.importance.type in ("none", "reject")  # these types do not weight single tokens
    if (rollout.top_p < 1 or rollout.top_k > 0 or rollout.min_p > 0) and unweighted:
        yield (
            f"rollout.top_p={rollout.top_p}, top_k={rollout.top_k}, min_p={rollout.min_p} sample another distribution "
            "than the actor's; set ppo.policy.importance: {type: truncated}, or top_p: 1, top_k: 0 and min_p: 0"
        )


def old_logprobs_rules(config: RunConfig) -> Iterator[str]:
    """The engines' log-probabilities stand for the actor's only where both are of the same distribution."""
    how, rollout, ppo = config.actor.old_logprobs, config.rollout, config.ppo
    if how == "recompute":
        return
    if rollout.top_p < 1 or rollout.top_k > 0 or rollout.min_p > 0:
        yield (
            f"actor.old_logprobs={how} takes the engines' log-probabilities, which with rollout.top_p={rollout.top_p}, "
            f"top_k={rollout.top_k}, min_p={rollout.min_p} are of another distribution than the actor's; use "
            "recompute, or top_p: 1, top_k: 0 and min_p: 0"
        )
    if how == "first_pass" and ppo.optimizer_steps > 1:
        yield (
            f"actor.old_logprobs=first_pass needs an update of one optimizer step; ppo.epochs={ppo.epochs} x "
            f"ppo.mini_batches={ppo.mini_batches} are {ppo.optimizer_steps}; use recompute or rollout"
        )
    if how == "rollout" and ppo.policy.importance.type != "none":
        yield (
            f"actor.old_logprobs=rollout leaves nothing to correct to ppo.policy.importance.type="
            f"{ppo.policy.importance.type}; use type: none, or recompute"
        )


def step_rules(config: RunConfig) -> Iterator[str]:
    """Warm-ups end before the run does, and leave the engines with weights."""
    warmup = config.critic.warmup.max_steps
    if warmup >= config.steps:
        yield (
            f"critic.warmup.max_steps={warmup} leaves none of the run's steps={config.steps} to the actor; lower it, "
            "or raise steps"
        )
        return
    if config.rollout.engine.sleep == 2 and warmup:
        yield (
            f"rollout.engine.sleep=2 drops weights that no push renews while critic.warmup.max_steps={warmup}; use "
            "sleep: 1"
        )
    if config.rollout.engine.sleep == 2 and config.ppo.dynamic_sampling is not None:
        yield (
            "rollout.engine.sleep=2 drops weights that no push renews between the rounds of ppo.dynamic_sampling; use "
            "sleep: 1"
        )
    each = config.ppo.optimizer_steps
    for role in trained_roles():
        steps = config.steps - warmup if role == ACTOR else config.steps
        rising = config.section(role).optimizer.schedule.warmup_steps
        if rising >= steps * each:
            yield (
                f"{role}.optimizer.schedule.warmup_steps={rising} is not below the {steps * each} optimizer steps of "
                f"the run ({steps} steps x ppo.epochs={config.ppo.epochs} x "
                f"ppo.mini_batches={config.ppo.mini_batches}); lower it"
            )


def advantage_rules(config: RunConfig) -> Iterator[str]:
    """Combinations of losses, penalties and advantages that are refused."""
    ppo, kind = config.ppo, config.ppo.advantage.type
    why = BIASED_KL.get((ppo.kl.where, ppo.kl.estimator))
    if why and not ppo.kl.allow_biased:
        yield f"ppo.kl: {{where: {ppo.kl.where}, estimator: {ppo.kl.estimator}}}: {why}, or say allow_biased: true"
    if ppo.policy.type == "gspo" and ppo.policy.clip > LARGEST_GSPO_CLIP:
        yield (
            f"ppo.policy.clip={ppo.policy.clip:g} clips nothing with type: gspo, whose ratio is a mean over a "
            "response; use clip: 3.0e-4 and clip_high: 4.0e-4 (arXiv 2507.18071), and mean: sequence"
        )
    length = ppo.score.length
    if length.type == "soft_overlong" and not length.buffer <= length.longest <= config.longest_response:
        yield (
            f"ppo.score.length: buffer={length.buffer}, longest={length.longest} must rise up to "
            f"the longest response, {config.longest_response} tokens (rollout.max_response_tokens="
            f"{config.rollout.max_response_tokens}); use longest: {config.longest_response} and a smaller buffer"
        )
    if ppo.policy.dual_clip is not None and ppo.policy.type != "clipped":
        yield f"ppo.policy.dual_clip={ppo.policy.dual_clip:g} is not for type: {ppo.policy.type}; remove one of the two"
    if ppo.advantage.compares_responses and config.rollout.responses_per_prompt == 1:
        yield (
            f"ppo.advantage.type={kind} compares the responses to one prompt, but rollout.responses_per_prompt=1; use "
            "4 or more"
        )
    if ppo.dynamic_sampling is not None and (ppo.advantage.needs_greedy or config.rollout.responses_per_prompt == 1):
        yield (
            "ppo.dynamic_sampling looks for a spread among the responses to a prompt: it needs rollout."
            f"responses_per_prompt of 2 or more (it is {config.rollout.responses_per_prompt}), and another "
            f"ppo.advantage.type than remax (it is {kind}); set it to null"
        )
    if ppo.advantage.needs_greedy and ppo.whiten_rewards:
        yield f"ppo.whiten_rewards=true does not scale the baseline of ppo.advantage.type={kind}; set it to false"
    if ppo.uses_critic:
        return
    unused = {
        "critic": config.critic != type(config.critic)(),
        "ppo.value": ppo.value != type(ppo.value)(),
        "ppo.truncated.type=bootstrap": ppo.truncated.type == "bootstrap",
    }
    for key in [key for key, given in unused.items() if given]:
        yield f"{key} needs a critic, and ppo.advantage.type={kind} has none; remove it, or use type: gae"


def penalty_warnings(config: BaseConfig) -> Iterator[str]:
    """For the user: a line if a KL penalty of any size becomes advantages of full size."""
    if not isinstance(config, RunConfig) or not config.ppo.advantage.divides_by_spread:
        return
    kl = config.ppo.kl
    if kl.where == "reward" and not (isinstance(kl.controller, FixedKl) and kl.controller.coefficient == 0):
        yield (
            f"ppo.advantage.type={config.ppo.advantage.type} divides the rewards of a prompt's responses by their "
            "standard deviation, and ppo.kl.where=reward has the KL penalty in them: where all scores are equal, the "
            "policy learns from the penalty's differences alone, however small, as much as from scores elsewhere; "
            "ppo.kl: {where: loss, estimator: k3} is GRPO's own form, in which such a prompt teaches nothing"
        )


def watch_rules(config: RunConfig) -> Iterator[str]:
    """The alert `kl` has its bound from the KL budget."""
    kl = config.alerts.kl if config.alerts else None
    if kl is not None and kl.on_alert != "warn" and config.ppo.kl.budget.warn is None:
        yield (
            f"alerts.kl.on_alert={kl.on_alert} has its bound from ppo.kl.budget.warn, which is null, so it would never "
            "fire; set that bound, or alerts.kl=null"
        )


def stop_rules(config: RunConfig) -> Iterator[str]:
    """Evaluations need prompts; a stop by the gold score needs a judge and evaluations during training."""
    every, stop = config.evaluation.every, config.evaluation.stop
    if stop is not None and config.evaluation.judge is None:
        yield (
            "evaluation.stop watches the gold score, and there is no evaluation.judge that gives one; name a judge, or "
            "remove evaluation.stop"
        )
    if stop is not None and not every:
        yield (
            "evaluation.stop needs evaluations during training, and evaluation.every=0 makes none; set it to a number "
            "of steps, or remove evaluation.stop"
        )
    if config.prompts.evaluable:
        return
    if stop is not None:
        yield "evaluation.stop needs held-out prompts; set prompts.heldout.path, or remove evaluation.stop"
    if every:
        yield f"evaluation.every={every} needs held-out prompts; set prompts.heldout.path, or every: 0"
    if config.evaluation.judge is not None:
        yield "evaluation.judge needs held-out prompts; set prompts.heldout.path, or remove the judge"
