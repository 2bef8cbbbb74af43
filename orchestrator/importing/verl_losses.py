"""verl's algorithm: advantages, losses, KL and corrections → the section `ppo`."""

from __future__ import annotations

from orchestrator.config.ppo import DynamicSampling
from orchestrator.importing.common_rules import put_clip, put_dynamic_sampling, put_kl_form
from orchestrator.importing.draft import Draft

ACTOR = "actor_rollout_ref.actor"
VERL_ADVANTAGES = {
    "gae": "gae",
    "grpo": "grpo",
    "grpo_vectorized": "grpo",
    "reinforce_plus_plus": "reinforce++",
    "reinforce_plus_plus_baseline": "reinforce++-baseline",
    "rloo": "rloo",
    "rloo_vectorized": "rloo",
    "remax": "remax",
}
VERL_LOSSES = {"vanilla": "clipped", "gspo": "gspo", "cispo": "cispo"}
VERL_MEANS = {
    "token-mean": "token",
    "seq-mean-token-mean": "sequence",
    "seq-mean-token-sum": "constant",
    "seq-mean-token-sum-norm": "constant",
}
VERL_ESTIMATORS = {"kl": "k1", "k1": "k1", "mse": "k2", "k2": "k2", "low_var_kl": "k3", "k3": "k3"}


def put_algorithm(draft: Draft) -> None:
    """The estimator with what it knows of γ and λ."""
    options, estimator = draft.options, "algorithm.adv_estimator"
    theirs = str(options.value(estimator))
    several = options.whole("actor_rollout_ref.rollout.n") > 1
    kind = VERL_ADVANTAGES.get(theirs, "grpo" if several else "reinforce++")
    if theirs not in VERL_ADVANTAGES:
        draft.differs(estimator, f"{theirs} is {kind} here")
    if kind == "grpo" and not options.flag("algorithm.norm_adv_by_std_in_grpo"):
        kind = "dr_grpo"
    draft.put("ppo.advantage.type", kind, estimator, "algorithm.norm_adv_by_std_in_grpo")
    if kind in ("gae", "reinforce++"):
        draft.put("ppo.advantage.gamma", options.number("algorithm.gamma"), "algorithm.gamma")
    if kind == "gae":
        draft.put("ppo.advantage.lambda", options.number("algorithm.lam"), "algorithm.lam")
    limit = "algorithm.filter_groups.max_num_gen_batches"
    rounds = options.whole(limit, least=0) or DynamicSampling().rounds  # 0 is no limit there
    put_dynamic_sampling(draft, "algorithm.filter_groups.enable", rounds, limit)


def put_losses(draft: Draft, critic: bool) -> None:
    """Losses of actor and critic, KL and corrections."""
    options = draft.options
    mode = f"{ACTOR}.policy_loss.loss_mode"
    theirs = str(options.value(mode))
    kind = VERL_LOSSES.get(theirs, "clipped")
    if theirs not in VERL_LOSSES:
        draft.differs(mode, f"{theirs} is PPO's clipped loss here")
    draft.put("ppo.policy.type", kind, mode)
    _put_clips(draft, kind)
    if kind == "gspo":
        draft.put("ppo.policy.mean", "sequence", mode)
    else:
        draft.put("ppo.policy.mean", _mean(draft, f"{ACTOR}.loss_agg_mode"), f"{ACTOR}.loss_agg_mode")
    if critic:
        draft.put("ppo.value.clip", options.number("critic.cliprange_value"), "critic.cliprange_value")
        draft.put("ppo.value.coefficient", 1.0)
        draft.because("ppo.value.coefficient", "verl has no factor")
        name = "critic.loss_agg_mode" if "critic.loss_agg_mode" in options else f"{ACTOR}.loss_agg_mode"
        draft.put("ppo.value.mean", _mean(draft, name), name)
    top_k = options.whole("actor_rollout_ref.rollout.top_k", least=-1)
    draft.put("rollout.top_k", max(top_k, 0), "actor_rollout_ref.rollout.top_k")
    _put_correction(draft)
    _put_penalty(draft)


def _put_clips(draft: Draft, kind: str) -> None:
    options, plain = draft.options, f"{ACTOR}.clip_ratio"
    names = [f"{plain}_low", f"{plain}_high"]
    low, high = (name if name in options and options.value(name) is not None else plain for name in names)
    if not options.is_default(plain) and not all(name in options for name in names):
        draft.differs(plain, "it holds here; in verl clip_ratio_low and clip_ratio_high, 0.2 by default, precede it")
    put_clip(draft, options.number(low), options.number(high), (low, high))
    if kind == "clipped":
        draft.put("ppo.policy.dual_clip", options.number(f"{ACTOR}.clip_ratio_c"), f"{ACTOR}.clip_ratio_c")


def _mean(draft: Draft, name: str) -> str:
    theirs = str(draft.options.value(name))
    if theirs == "seq-mean-token-sum":
        draft.differs(name, "sums of tokens are divided by rollout.max_response_tokens here: a factor of the loss")
    return str(draft.options.choice(name, VERL_MEANS))


def _put_correction(draft: Draft) -> None:
    options, name = draft.options, "algorithm.rollout_correction.rollout_is"
    bypass = "algorithm.rollout_correction.bypass_mode"
    if options.flag(bypass):
        draft.put("actor.old_logprobs", "rollout", bypass)
        if options.text(name) is not None:
            draft.differs(name, "with the engines' log-probabilities as old ones the ratio has that weight already")
        return
    level = options.text(name)
    if level is None:
        return
    bounds = [float(part) for part in str(options.value(f"{name}_threshold")).split("_") if _is_number(part)]
    if level != "token" or not bounds:
        draft.differs(name, "no weights here; ppo.policy.importance has weights of tokens")
        return
    if len(bounds) > 1:
        importance = {"type": "icepop", "low": bounds[0], "high": bounds[1]}
    else:
        importance = {"type": "truncated", "cap": bounds[0]}
    draft.put("ppo.policy.importance", importance, name, f"{name}_threshold")


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _put_penalty(draft: Draft) -> None:
    """In the reward, in the loss, or none: then the coefficient is 0."""
    options = draft.options
    in_reward, in_loss = options.flag("algorithm.use_kl_in_reward"), options.flag(f"{ACTOR}.use_kl_loss")
    if in_reward and in_loss:
        draft.differs(f"{ACTOR}.use_kl_loss", "the penalty is in the reward or in the loss here: in the reward")
    where = "loss" if in_loss and not in_reward else "reward"
    option = f"{ACTOR}.kl_loss_type" if where == "loss" else "algorithm.kl_penalty"
    coefficient = options.number("algorithm.kl_ctrl.kl_coef" if in_reward else f"{ACTOR}.kl_loss_coef")
    if in_reward and coefficient > 0 and options.value("algorithm.kl_ctrl.type") == "adaptive":
        target, horizon = options.number("algorithm.kl_ctrl.target_kl"), options.whole("algorithm.kl_ctrl.horizon")
        controller = {"type": "adaptive", "initial": coefficient, "target": target, "horizon": horizon}
        sources = [f"algorithm.kl_ctrl.{name}" for name in ("type", "kl_coef", "target_kl", "horizon")]
        draft.put("ppo.kl.controller", controller, *sources)
        draft.differs("algorithm.kl_ctrl.target_kl", "nats per response here (verl measures the mean of a token)")
    else:
        fixed = coefficient if in_reward or in_loss else 0.0
        sources = ["algorithm.kl_ctrl.kl_coef", "algorithm.use_kl_in_reward"]
        loss = [f"{ACTOR}.kl_loss_coef", f"{ACTOR}.use_kl_loss"]
        draft.put("ppo.kl.controller", {"type": "fixed", "coefficient": fixed}, *(loss if in_loss else sources))
    said = str(options.value(option))
    theirs = said.removesuffix("+")
    estimator = VERL_ESTIMATORS.get(theirs, "k1" if where == "reward" else "k2")
    if where == "loss" and said.endswith("+"):
        estimator = "k2"  # `+` keeps the value, which a loss has no use for, and takes k2's gradient
    elif theirs not in VERL_ESTIMATORS:
        draft.differs(option, f"{theirs} is {estimator} here")
    flag = "algorithm.use_kl_in_reward" if where == "reward" else f"{ACTOR}.use_kl_loss"
    put_kl_form(draft, where, estimator, (flag, option))
