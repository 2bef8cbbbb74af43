"""Rules between the keys of a configuration that no single field can state. Pure; called by
`orchestrator.config.loading`.

A RunConfig flows in, one line for each broken rule flows out: key, value, mend.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.config import LocalPlacement
from cluster.errors import PlacementError
from cluster.placement.gpu_groups import group_of, problems
from cluster.placement.openrlhf_groups import as_groups, in_words_of
from cluster.placement.plan import RoleNeed, plan, ranks_of
from cluster.role_table import ACTOR, CRITIC, REFERENCE, REWARD, base_role, gpu_roles, openrlhf_names, trained_roles
from orchestrator.config.advantages import NEEDS_CRITIC
from orchestrator.config.device_rules import device_rules
from orchestrator.config.run import RunConfig
from roles.config.rewards import EnsembleReward, ModelReward, WeightedScore


def inconsistencies(config: RunConfig) -> list[str]:
    """Every broken rule; empty if the configuration is sound."""
    misplaced = list(_placement_rules(config))
    if misplaced:
        return misplaced  # the other rules ask how many ranks there are
    return [
        *_batch_rules(config),
        *_sampling_rules(config),
        *_environment_rules(config),
        *_step_rules(config),
        *_advantage_rules(config),
        *_adapter_rules(config),
        *_ensemble_rules(config),
        *_model_rules(config),
        *_evaluation_rules(config),
        *device_rules(config),
    ]


def without_idle_gpus(data: Any) -> Any:
    """Plain values in which OpenRLHF's placement has no nodes for a reward that is no model, for a reference that is
    the actor, nor for a critic that the advantages do not need, unless they name some."""
    match data:
        case {"placement": {"type": "openrlhf", **said}}:
            idle = {}
            match data:
                case {"reward": {"type": "function" | "remote" | "environment"}}:
                    idle["reward_num_nodes"] = 0
                case {"reward": {"type": "ensemble", "members": dict(members)}} if not _has_model(members):
                    idle["reward_num_nodes"] = 0
            match data:
                case {"reference": {"share_actor": True}}:
                    idle["ref_num_nodes"] = 0
            match data:
                case {"ppo": {"advantage": {"type": str(kind)}}} if kind not in NEEDS_CRITIC:
                    idle["critic_num_nodes"] = 0
            return {**data, "placement": {"type": "openrlhf", **idle, **said}}
    return data


def _has_model(members: dict[str, Any]) -> bool:
    return any(not isinstance(member, dict) or member.get("type", "model") == "model" for member in members.values())


def _placement_rules(config: RunConfig) -> Iterator[str]:
    """Of `type: groups` and `type: openrlhf`: every role has its GPUs, once, and the pools hold them."""
    if isinstance(config.placement, LocalPlacement):
        return
    try:
        placement = as_groups(config.placement)
        found = [in_words_of(config.placement, line) for line in problems(placement)]
        yield from found
        if found:
            return
        placed = {role for group in placement.groups.values() for role in group.roles}
        used = {role if role in placed else base_role(role) for role in config.model_roles}
        theirs = openrlhf_names() if config.placement.type == "openrlhf" else {}
        if theirs and (missing := sorted(used & set(gpu_roles()) - placed)):
            name = theirs.get(missing[0])
            key, fix = (f"{name}_num_nodes=0", "use 1 or more") if name else ("type=openrlhf", "use type: groups")
            yield f"placement.{key}, but {_says_so(config, missing[0])} needs GPUs; {fix}"
            return
        for role in config.model_roles:
            group_of(placement, role)
        for role in sorted(placed - used):
            name = theirs.get(role)
            fix = (
                f"use placement.{name}_num_nodes: 0, or leave it out"
                if name
                else f"take `{role}` out of placement.groups"
            )
            yield f"{_says_so(config, role)} needs no GPUs; {fix}"
        plan(config.placement, [RoleNeed(role, gpu=True) for role in config.model_roles])
    except PlacementError as error:
        yield str(error)


def _says_so(config: RunConfig, role: str) -> str:
    """The key that decides whether a role needs GPUs, with its value."""
    if role == REWARD or role in config.scorers:
        return f"reward.type={config.reward.type}"
    if base_role(role) == REWARD:
        return f"reward has no member {role.removeprefix('reward.')!r} that is a model, which"
    if role == CRITIC:
        return f"ppo.advantage.type={config.ppo.advantage.type}"
    if role == REFERENCE:
        return f"reference.share_actor={str(config.reference.share_actor).lower()}"
    return f"the section {role}" if config.section(role) else f"{role}=null"


def _batch_rules(config: RunConfig) -> Iterator[str]:
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


def _sampling_rules(config: RunConfig) -> Iterator[str]:
    rollout = config.rollout
    if rollout.min_response_tokens > rollout.max_response_tokens:
        yield (
            f"rollout.min_response_tokens={rollout.min_response_tokens} is more than rollout.max_response_tokens="
            f"{rollout.max_response_tokens}; lower it"
        )
    unweighted = config.ppo.policy.importance.type in ("none", "reject")  # neither weights single tokens
    if (rollout.top_p < 1 or rollout.top_k > 0) and unweighted:
        yield (
            f"rollout.top_p={rollout.top_p}, top_k={rollout.top_k} sample another distribution than the actor's; set "
            "ppo.policy.importance: {type: truncated}, or top_p: 1 and top_k: 0"
        )


def _step_rules(config: RunConfig) -> Iterator[str]:
    warmup = config.critic.warmup.max_steps
    if warmup >= config.steps:
        yield (
            f"critic.warmup.max_steps={warmup} leaves none of the run's steps={config.steps} to the actor; lower it, "
            "or raise steps"
        )
        return
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


def _environment_rules(config: RunConfig) -> Iterator[str]:
    environment = config.environment
    if environment is None:
        if config.reward.type == "environment":
            yield "reward.type=environment, but there is no section `environment` that pays; add one (path, max_tokens)"
        return
    first = config.prompts.max_tokens + config.rollout.max_response_tokens
    if environment.max_tokens < first:
        yield (
            f"environment.max_tokens={environment.max_tokens} does not hold the first messages (prompts.max_tokens="
            f"{config.prompts.max_tokens}) and one response (rollout.max_response_tokens="
            f"{config.rollout.max_response_tokens}); use {first} or more"
        )
    for role, scorer in config.scorers.items():
        if isinstance(scorer, ModelReward) and scorer.text_bridge:
            key = role.replace("reward.", "reward.members.")
            yield f"{key}.text_bridge writes one response, not a conversation; use a model with the actor's tokenizer"
    unread = {
        f"prompts.column={config.prompts.column}": config.prompts.column is not None,
        f"prompts.too_long={config.prompts.too_long}": config.prompts.too_long != "error",
    }
    for key in [key for key, given in unread.items() if given]:
        yield f"{key} is not read with an environment, which makes the prompts of the rows' columns; remove it"


LARGEST_GSPO_CLIP = 0.05
"""Means over responses hardly ever move so far; the paper has some 1e-4."""
BIASED_KL = {
    ("loss", "k1"): "its gradient is zero on average, so nothing holds the policy; use k2 (or k3, as GRPO does)",
    ("reward", "k2"): "it punishes tokens that became less likely as much as those that became more likely; use k1",
    ("reward", "k3"): "it punishes tokens that became less likely without bound; use k1",
}


def _advantage_rules(config: RunConfig) -> Iterator[str]:
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
    if ppo.compares_responses and config.rollout.responses_per_prompt == 1:
        yield (
            f"ppo.advantage.type={kind} compares the responses to one prompt, but rollout.responses_per_prompt=1; use "
            "4 or more"
        )
    if kind == "remax" and ppo.whiten_rewards:
        yield "ppo.whiten_rewards=true does not scale the baseline of ppo.advantage.type=remax as well; set it to false"
    if ppo.uses_critic:
        return
    unused = {
        "critic": config.critic != type(config.critic)(),
        "ppo.value": ppo.value != type(ppo.value)(),
        "ppo.truncated.type=bootstrap": ppo.truncated.type == "bootstrap",
    }
    for key in [key for key, given in unused.items() if given]:
        yield f"{key} needs a critic, and ppo.advantage.type={kind} has none; remove it, or use type: gae"


def _adapter_rules(config: RunConfig) -> Iterator[str]:
    reference = config.reference
    if reference.share_actor and config.actor.lora is None:
        yield (
            "reference.share_actor=true needs actor.lora, without which the actor's own weights move; set actor.lora: "
            "{rank: 16}, or share_actor: false"
        )
    if reference.share_actor and reference != type(reference)(share_actor=True):
        yield (
            "reference.share_actor=true takes the actor's model, ranks and micro-batches as they are; remove the other "
            "keys of reference, or set share_actor: false"
        )
    if config.actor.lora is not None and config.actor.ema_decay is not None:
        yield (
            f"actor.ema_decay={config.actor.ema_decay:g} averages whole weights, and actor.lora trains adapters, whose "
            "means do not multiply to the mean of what they add; remove one"
        )


def _ensemble_rules(config: RunConfig) -> Iterator[str]:
    if not isinstance(config.reward, EnsembleReward) or not isinstance(config.reward.combine, WeightedScore):
        return
    given, members = set(config.reward.combine.weights), set(config.reward.members)
    for name in sorted(given ^ members):
        mend = "give it one" if name in members else f"use {', '.join(sorted(members))}"
        missing = "has no weight for the member" if name in members else "has a weight for"
        yield f"reward.combine.weights {missing} {name!r}{'' if name in members else ', which is no member'}; {mend}"


def _model_rules(config: RunConfig) -> Iterator[str]:
    if not config.ppo.uses_critic:
        return
    critic = config.critic
    if config.critic_model is None:
        yield (
            f"critic.model is null, which means the reward model, but reward.type={config.reward.type} has "
            f"{'several' if config.reward.type == 'ensemble' else 'none'}; "
            "set critic.initialise_from: policy (its value head starts anew), or critic.model.path"
        )
    if critic.model is not None and critic.initialise_from == "policy":
        yield "critic.initialise_from=policy is for critic.model: null, but critic.model.path is set; remove one"
    if config.ppo.value.normalise and critic.model is None and critic.initialise_from == "reward":
        yield (
            "ppo.value.normalise=true reads the critic in units of the returns' deviation, but one that starts from "
            "the reward model speaks in scores; set critic.initialise_from: policy (a new head), or normalise: false"
        )
    gate = critic.warmup.until_explained_variance
    if gate is not None and not critic.warmup.max_steps:
        yield (
            f"critic.warmup.until_explained_variance={gate:g} has no steps to be reached in; set "
            "critic.warmup.max_steps (50, say)"
        )


def _evaluation_rules(config: RunConfig) -> Iterator[str]:
    if config.prompts.heldout is not None:
        return
    if config.evaluation.every:
        every = config.evaluation.every
        yield f"evaluation.every={every} needs held-out prompts; set prompts.heldout.path, or every: 0"
    if config.evaluation.judge is not None:
        yield "evaluation.judge needs held-out prompts; set prompts.heldout.path, or remove the judge"
