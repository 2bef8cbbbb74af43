"""OpenRLHF's algorithm: advantages, the policy's loss, KL and scores → the section `ppo`."""

from __future__ import annotations

from typing import Any

from orchestrator.config.advantages import VARIANTS
from orchestrator.config.ppo import DynamicSampling
from orchestrator.importing.common_rules import (
    put_clip,
    put_dynamic_sampling,
    put_kl_form,
    put_shares,
    put_sources,
    shares_of,
)
from orchestrator.importing.draft import Draft

OUR_ADVANTAGES = {
    "gae": "gae",
    "reinforce": "reinforce++",
    "reinforce_baseline": "reinforce++-baseline",
    "rloo": "rloo",
    "group_norm": "grpo",
    "dr_grpo": "dr_grpo",
    "flash_reinforce": "reinforce++",
}
LEVEL, MODE, GATING, THRESHOLD = (
    f"algo.advantage.is_correction_{name}" for name in ("level", "mode", "gating", "threshold")
)


def put_advantage(draft: Draft) -> None:
    """The estimator with what it knows of γ and λ."""
    options, estimator = draft.options, "algo.advantage.estimator"
    kind = options.choice(estimator, OUR_ADVANTAGES)
    draft.put("ppo.advantage.type", kind, estimator)
    if kind in ("gae", "reinforce++"):
        draft.put("ppo.advantage.gamma", options.number("algo.advantage.gamma"), "algo.advantage.gamma")
    else:
        draft.moot("algo.advantage.gamma", f"{kind} discounts nothing, as in OpenRLHF")
    if kind == "gae":
        draft.put("ppo.advantage.lambda", options.number("algo.advantage.lambd"), "algo.advantage.lambd")
    else:
        draft.moot("algo.advantage.lambd", f"{kind} has no lambda")
    if options.value(estimator) == "flash_reinforce":
        draft.differs(estimator, "reinforce++ here, which also divides the advantages by their deviation")
    put_dynamic_sampling(draft, "algo.dynamic_filtering_enable", DynamicSampling().rounds)


def put_policy_loss(draft: Draft) -> None:
    """The clipped surrogate or GSPO, with its additions."""
    options = draft.options
    kind = options.choice("actor.policy_loss_type", {"ppo": "clipped", "gspo": "gspo"})
    draft.put("ppo.policy.type", kind, "actor.policy_loss_type")
    pair = "actor.eps_clip_low_high"
    low, high = [options.number("actor.eps_clip")] * 2
    if options.value(pair) is not None:
        low, high = (*options.numbers(pair), high)[:2]
    put_clip(draft, low, high, (pair if pair in options else "actor.eps_clip",) * 2)
    modes = {"token-mean": "token", "seq-mean-token-mean": "sequence"}
    mean = "sequence" if kind == "gspo" else options.choice("actor.loss_agg_mode", modes)
    draft.put("ppo.policy.mean", mean, "actor.policy_loss_type" if kind == "gspo" else "actor.loss_agg_mode")
    draft.put("ppo.policy.entropy_coefficient", options.optional("actor.entropy_coef") or 0.0, "actor.entropy_coef")
    if options.optional("actor.dual_clip") is not None:
        if kind == "clipped":
            draft.put("ppo.policy.dual_clip", options.number("actor.dual_clip"), "actor.dual_clip")
        else:
            draft.missing("actor.dual_clip", "GSPO has one bound here")
    importance = _importance(draft)
    if kind == "gspo" and importance:
        draft.missing(_corrected(draft), "GSPO's ratio is to the actor's own log-probabilities here")
    elif importance:
        new, old = (LEVEL, MODE, THRESHOLD), ("enable_vllm_is_correction", "use_icepop", "vllm_is_truncated_threshold")
        sources = new if _corrected(draft) == LEVEL else (*old, "vllm_is_correction_type")
        draft.put("ppo.policy.importance", importance, *sources)


def _corrected(draft: Draft) -> str:
    return "enable_vllm_is_correction" if "enable_vllm_is_correction" in draft.options else LEVEL


def _importance(draft: Draft) -> dict[str, Any] | None:
    """The correction for what the engines sampled, if there is one: TIS, IcePop, or whole responses left out."""
    options = draft.options
    if options.flag("enable_vllm_is_correction"):  # before 0.11
        bounds = options.numbers("vllm_is_truncated_threshold")
        kind = "icepop" if options.flag("use_icepop") else str(options.value("vllm_is_correction_type"))
        level, mode = ("seq", "mask") if kind == "seq-mask-tis" else ("token", "mask" if kind == "icepop" else "clip")
        bounds = bounds if len(bounds) > 1 or mode == "clip" else [0.5, 5.0]
        option = "vllm_is_truncated_threshold"
    else:
        level, mode, bounds = str(options.value(LEVEL)), str(options.value(MODE)), options.numbers(THRESHOLD)
        option = THRESHOLD
    if level not in ("token", "seq"):
        return None
    if options.value(GATING) != "ratio":
        draft.missing(GATING, "the ratio alone decides (ppo.policy.importance)")
        return None
    low, high = (0.0, bounds[0]) if len(bounds) == 1 else bounds[:2]
    if mode == "clip":
        if low > 0:
            draft.differs(option, f"weights are bounded by {high:g} from above only")
        return {"type": "truncated", "cap": high}
    if level == "seq":
        draft.differs(LEVEL, "the tokens of the responses that stay have weight 1 here")
        return {"type": "reject", "low": low, "high": high}
    return {"type": "icepop", "low": low, "high": high}


def put_kl(draft: Draft) -> None:
    """Adaptive where a target is given and not switched off."""
    options, initial = draft.options, draft.options.number("algo.kl.init_coef")
    target = options.optional("algo.kl.target")
    switched_off = "adap_kl_ctrl" in options and options.value("adap_kl_ctrl") in (False, ["false"], "false")
    if target is None or initial <= 0 or switched_off:
        draft.put("ppo.kl.controller", {"type": "fixed", "coefficient": max(initial, 0.0)}, "algo.kl.init_coef")
        draft.moot("algo.kl.target", "the coefficient is 0, or adaption is switched off")
        for option in ("algo.kl.horizon", "adap_kl_ctrl"):
            draft.moot(option, "without a target the coefficient is fixed")
    else:
        horizon = options.whole("algo.kl.horizon")
        controller = {"type": "adaptive", "initial": initial, "target": target, "horizon": horizon}
        sources = ("algo.kl.init_coef", "algo.kl.target", "algo.kl.horizon", "adap_kl_ctrl")
        draft.put("ppo.kl.controller", controller, *sources)
        draft.differs("algo.kl.target", "nats per response here (OpenRLHF measures the mean of a token)")
    estimator = str(options.value("algo.kl.estimator"))
    where = "loss" if options.flag("algo.kl.use_loss") else "reward"
    if options.flag("algo.kl.unbiased_gradient") and where == "loss":
        draft.differs("algo.kl.unbiased_gradient", "k2 here, whose gradient it is but for the weights of old samples")
        estimator = "k2"
    elif where == "reward":
        draft.moot("algo.kl.unbiased_gradient", "the KL is in the reward")
    put_kl_form(draft, where, estimator, ("algo.kl.use_loss", "algo.kl.estimator"))
    if where == "reward" and initial > 0 and VARIANTS[draft.data["ppo"]["advantage"]["type"]].compares_responses:
        why = "rewards are compared here, KL penalty included; OpenRLHF compares scores, and subtracts it afterwards"
        draft.differs("algo.advantage.estimator", why)


def put_scores(draft: Draft, critic: bool) -> None:
    """What becomes of a score, and of a critic's error."""
    options = draft.options
    if critic:
        draft.put("ppo.value.clip", options.optional("critic.value_clip"), "critic.value_clip")
        draft.put("ppo.value.coefficient", 1.0)
        draft.because("ppo.value.coefficient", "OpenRLHF has no factor")
    else:
        draft.moot("critic.value_clip", "the advantages need no critic")
        draft.moot("critic.save_value_network", "the advantages need no critic")
    _put_normalised(draft)
    low, high = options.numbers("reward.clip_range", least=2)[:2]
    if -low == high and high > 0:
        draft.put("ppo.score.clip", float(high), "reward.clip_range")
    else:
        draft.missing("reward.clip_range", "scores are clipped to a range around 0, the same on both sides")
    buffer, longest = options.optional("reward.overlong_buffer_len"), draft.data["rollout"]["max_response_tokens"]
    if buffer:
        full = options.number("reward.overlong_penalty_factor")
        penalty = {"type": "soft_overlong", "longest": longest, "buffer": min(int(buffer), longest), "penalty": full}
        draft.put("ppo.score.length", penalty, "reward.overlong_buffer_len", "reward.overlong_penalty_factor")
    else:
        draft.moot("reward.overlong_penalty_factor", "there is no overlong_buffer_len")
    cut = options.optional("reward.stop_properly_penalty_coef")
    if cut is not None and cut <= 0:
        draft.put("ppo.truncated", {"type": "penalty", "score": cut}, "reward.stop_properly_penalty_coef")
    elif cut is not None and cut < 1:
        draft.missing("reward.stop_properly_penalty_coef", "a response cut by the limit gets a fixed score, or its own")


def _put_normalised(draft: Draft) -> None:
    name = "reward.normalize_enable"
    if draft.data["reward"]["type"] != "model":
        draft.moot(name, "OpenRLHF normalises the scores of reward models only")
        return
    draft.put("ppo.score.normalise", draft.options.flag(name), name)
    if draft.options.flag(name):
        why = "by mean and deviation of the run's scores so far, not by those in the reward model's config.json"
        draft.differs(name, why)


def put_ptx(draft: Draft) -> None:
    """PPO-ptx, which 0.11 has no more: a row of text for each sample of an optimizer step."""
    options, key = draft.options, "ppo.ptx"
    paths = [path.strip() for path in (options.text("pretrain_data") or "").split(",") if path.strip()]
    if not paths or not options.number("ptx_coef"):
        draft.moot("pretrain_data", "ptx_coef is 0")
        for option in ("ptx_coef", "pretrain_data_probs", "pretrain_split"):
            draft.moot(option, "there is no pretrain_data, or ptx_coef is 0")
        return
    text = options.text("data.input_key")
    each: dict[str, tuple[object, str]] = {"split": (options.text("pretrain_split"), "pretrain_split")}
    if text not in (None, "text"):
        each["columns"] = ({"text": text}, "data.input_key")
    put_sources(draft, f"{key}.data", paths, "pretrain_data", each)
    if len(paths) > 1 and "pretrain_data_probs" in options:
        put_shares(draft, f"{key}.data", shares_of(options, "pretrain_data_probs"), "pretrain_data_probs")
    else:
        draft.moot("pretrain_data_probs", "there is one data set")
    draft.put(f"{key}.coefficient", options.number("ptx_coef"), "ptx_coef")
    draft.put(f"{key}.sequences_per_mini_batch", options.whole("train.batch_size"), "train.batch_size")
    longest = draft.data["prompts"]["max_tokens"] + draft.data["rollout"]["max_response_tokens"]
    draft.put(f"{key}.max_tokens", longest)
    draft.put(f"{key}.too_long", "truncate")
    draft.because(f"{key}.too_long", "as OpenRLHF does")
