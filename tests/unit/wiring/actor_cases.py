"""Keys that change how the actor is trained, or what the reference and the engines are asked."""

from __future__ import annotations

from pathlib import Path

from tests.unit.wiring.base import Case, case

TRUNCATED = {"type": "truncated", "cap": 1.2}
ICEPOP = {"type": "icepop", "low": 0.7, "high": 1.4}
REJECT = {"type": "reject", "low": 0.9, "high": 1.2}
LORA = {"rank": 2, "alpha": 3.0, "targets": ["q_proj", "down_proj"]}


def with_lora(**changes: object) -> dict[str, object]:
    return {"actor.lora": {**LORA, **changes}}


def actor_cases(folder: Path) -> list[Case]:
    policy, optimizer, schedule = "ppo.policy", "actor.optimizer", "actor.optimizer.schedule"
    other = {"path": str(folder / "other-policy")}
    in_loss = {"ppo.kl.where": "loss", "ppo.kl.estimator": "k2"}

    def once(old_logprobs: str) -> dict[str, object]:
        """An update of one optimizer step."""
        return {"actor.old_logprobs": old_logprobs, "ppo.epochs": 1, "ppo.mini_batches": 1}

    key = "ppo.ptx"
    data = {"path": str(folder / "texts.jsonl"), "split": "train", "limit": None}
    texts = {"data": data, "coefficient": 0.5, "sequences_per_mini_batch": 3, "train_on_prompt": False}
    ptx = {key: {**texts, "max_tokens": 9, "too_long": "error"}}
    short, cut = ({key: {**texts, "max_tokens": 5, "too_long": kind}} for kind in ("skip", "truncate"))

    def importance(**said: object) -> dict[str, object]:
        return {f"{policy}.importance": said}

    return [
        case("actor.model.path", "actor", {"actor.model.path": other["path"]}, {"reference.model": other}),
        case(f"{optimizer}.learning_rate", "actor", 0.005),
        case(f"{optimizer}.betas", "actor", [0.5, 0.99]),
        case(f"{optimizer}.epsilon", "actor", 1e-1),
        case(f"{optimizer}.weight_decay", "actor", 0.6),
        case(f"{optimizer}.max_gradient_norm", "actor", 0.05),
        case(f"{schedule}.type=constant", "actor", {f"{schedule}.type": "constant"}),
        case(f"{schedule}.type=linear", "actor", {f"{schedule}.type": "linear"}, {f"{schedule}.type": "constant"}),
        case(f"{schedule}.type=cosine", "actor", {f"{schedule}.type": "cosine"}),
        case(f"{schedule}.warmup_steps", "actor", 4),
        case(f"{schedule}.floor", "actor", 0.5),
        case("actor.ema_decay", "average", 0.6, {"actor.ema_decay": 0.9}),
        case("actor.old_logprobs=rollout", "actor critic", {"actor.old_logprobs": "rollout"}),
        case("actor.old_logprobs=recompute", "actor critic", {"actor.old_logprobs": "recompute"}, once("rollout")),
        case("actor.old_logprobs=recompute", "critic", {"actor.old_logprobs": "recompute"}, once("first_pass")),
        case("actor.old_logprobs=first_pass", "actor", {"actor.old_logprobs": "first_pass"}, once("rollout")),
        case("actor.old_logprobs=first_pass", "actor critic", {"actor.old_logprobs": "first_pass"}, once("recompute")),
        case("actor.lora.rank", "actor", with_lora(rank=4), with_lora()),
        case("actor.lora.alpha", "actor", with_lora(alpha=12.0), with_lora()),
        case("actor.lora.targets", "actor", with_lora(targets=["v_proj"]), with_lora()),
        case("actor.lora.targets=all-linear", "actor", with_lora(targets="all-linear"), with_lora()),
        case("reference.model.path", "actor", {"reference.model.path": str(folder / "policy")}),
        case("reference.share_actor", "actor", {"reference": {"share_actor": True, "model": None}}, with_lora()),
        case("rollout.temperature", "actor", 1.4),
        case("rollout.min_response_tokens", "actor", 1, {f"{policy}.entropy_coefficient": 0.1}),
        case("rollout.min_response_tokens", "actor", 1, in_loss),
        case("rollout.max_response_tokens", "actor", 9, {f"{policy}.mean": "constant"}),
        case("rollout.responses_per_prompt", "actor", 4),
        case("rollout.prompts_per_step", "actor", 4),
        case("steps", "actor", 3),
        case("seed", "actor", 4),
        case("ppo.epochs", "actor", 3),
        case("ppo.mini_batches", "actor", 3),
        case(f"{policy}.type=gspo", "actor", {f"{policy}.type": "gspo", f"{policy}.clip": 0.02}),
        case(f"{policy}.type=cispo", "actor", {f"{policy}.type": "cispo"}),
        case(f"{policy}.type=clipped", "actor", {f"{policy}.type": "clipped"}, {f"{policy}.type": "cispo"}),
        case(f"{policy}.clip", "actor", 0.02),
        case(f"{policy}.clip_high", "actor", 0.4),
        case(f"{policy}.dual_clip", "actor", 1.05),
        case(f"{policy}.entropy_coefficient", "actor", 0.3),
        case(f"{policy}.mean=sequence", "actor", {f"{policy}.mean": "sequence"}),
        case(f"{policy}.mean=constant", "actor", {f"{policy}.mean": "constant"}),
        case(f"{policy}.mean=token", "actor", {f"{policy}.mean": "token"}, {f"{policy}.mean": "sequence"}),
        case(f"{policy}.importance<none>", "actor", importance(type="none"), importance(**TRUNCATED)),
        case(f"{policy}.importance<truncated>", "actor", importance(**TRUNCATED)),
        case(
            f"{policy}.importance<truncated>.cap", "actor", {f"{policy}.importance.cap": 3.0}, importance(**TRUNCATED)
        ),
        case(f"{policy}.importance<icepop>", "actor", importance(**ICEPOP)),
        case(f"{policy}.importance<icepop>.low", "actor", {f"{policy}.importance.low": 0.95}, importance(**ICEPOP)),
        case(f"{policy}.importance<icepop>.high", "actor", {f"{policy}.importance.high": 4.0}, importance(**ICEPOP)),
        case(f"{policy}.importance<reject>", "actor", importance(**REJECT)),
        case(f"{policy}.importance<reject>.low", "actor", {f"{policy}.importance.low": 0.1}, importance(**REJECT)),
        case(f"{policy}.importance<reject>.high", "actor", {f"{policy}.importance.high": 9.0}, importance(**REJECT)),
        case(f"{key}.coefficient", "actor ptx/loss@1", {f"{key}.coefficient": 3.0}, ptx),
        case(f"{key}.sequences_per_mini_batch", "actor ptx/tokens", {f"{key}.sequences_per_mini_batch": 1}, ptx),
        case(f"{key}.data.path", "actor ptx/loss", {f"{key}.data.path": str(folder / "other-texts.jsonl")}, ptx),
        case(f"{key}.data.split", "actor ptx/loss", {f"{key}.data.split": "train[4:]"}, ptx),
        case(f"{key}.data.limit", "actor ptx/loss", {f"{key}.data.limit": 2}, ptx),
        case(f"{key}.train_on_prompt", "actor ptx/tokens", {f"{key}.train_on_prompt": True}, ptx),
        case(f"{key}.max_tokens", "actor ptx/tokens", {f"{key}.max_tokens": 4}, short),
        case(f"{key}.too_long=skip", "actor ptx/loss", {f"{key}.too_long": "skip"}, cut),
        case(f"{key}.too_long=truncate", "actor ptx/loss", {f"{key}.too_long": "truncate"}, short),
        case("actor.lora.rank", "actor ptx/loss", {**with_lora(rank=4), **ptx}, with_lora()),
        case("ppo.kl.where=loss", "actor", in_loss),
        case("ppo.kl.where=reward", "actor", {"ppo.kl.where": "reward"}, in_loss),
        case("ppo.kl.estimator=k3", "actor", {"ppo.kl.estimator": "k3"}, in_loss),
        case("ppo.kl.estimator=k2", "actor critic", {"ppo.kl.estimator": "k2"}),
        case("ppo.kl.estimator=k1", "actor", {"ppo.kl.estimator": "k1"}, in_loss),
    ]
