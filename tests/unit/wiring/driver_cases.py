"""Keys that change what the actor and the critic are trained towards: rewards, advantages, the KL coefficient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unit.wiring.base import Case, base, case

LINEAR = {"type": "linear", "per_token": 0.1}
OVERLONG = {"type": "soft_overlong", "longest": 6, "buffer": 5, "penalty": 1.5}
ADAPTIVE = {"type": "adaptive", "initial": 0.4, "target": 0.5, "horizon": 6}
BOTH = "actor critic"


def driver_cases(folder: Path) -> list[Case]:
    return [*_advantages(folder), *_scores(), *_kl(), *_rewards(folder)]


def _advantages(folder: Path) -> list[Case]:
    key = "ppo.advantage"

    def without_critic(kind: str, **said: Any) -> dict[str, Any]:
        # the defaults: a run without a critic takes no other values
        plain = {"clip": 0.2, "coefficient": 0.1, "mean": "token", "normalise": False}
        critic = {"model": None, "lora": None, "warmup": {"max_steps": 0, "until_explained_variance": None}}
        return {key: {"type": kind, **said}, "critic": critic, "ppo.value": plain}

    usual = base(folder)
    with_critic = {key: usual["ppo"]["advantage"], "critic": usual["critic"], "ppo.value": usual["ppo"]["value"]}
    kinds = ("reinforce++-baseline", "rloo", "remax", "grpo", "dr_grpo")
    decayed = without_critic("reinforce++", gamma=0.9)
    return [
        case(f"{key}<gae>", "actor critic", with_critic, without_critic("rloo")),
        case(f"{key}<gae>.gamma", BOTH, {f"{key}.gamma": 0.6}),
        case(f"{key}<gae>.lambda", BOTH, {f"{key}.lambda": 0.3}),
        case(f"{key}<gae>.critic_lambda", "critic", {f"{key}.critic_lambda": 0.2}),
        case(f"{key}<reinforce++>", "actor", decayed),
        case(f"{key}<reinforce++>.gamma", "actor", {f"{key}.gamma": 0.5}, decayed),
        *(case(f"{key}<{kind}>", "actor", without_critic(kind)) for kind in kinds),
        case("rollout.responses_per_prompt", "actor", 4, without_critic("grpo")),
        case("rollout.responses_per_prompt", "actor", 4, without_critic("remax")),
        case("ppo.whiten_advantages", "actor", False),
        case("ppo.whiten_rewards", BOTH, True),
        *(
            case(f"ppo.truncated<{kind}>", BOTH, {"ppo.truncated": {"type": kind, **said}}, given)
            for kind, said, given in (
                ("score", {}, {"ppo.truncated": {"type": "mask"}}),
                ("penalty", {"score": -2.0}, None),
                ("mask", {}, None),
                ("bootstrap", {}, None),
            )
        ),
        case(
            "ppo.truncated<penalty>.score",
            BOTH,
            {"ppo.truncated.score": 1.0},
            {"ppo.truncated": {"type": "penalty", "score": -2.0}},
        ),
    ]


def _scores() -> list[Case]:
    key = "ppo.score"
    linear, overlong = {f"{key}.length": LINEAR}, {f"{key}.length": OVERLONG}
    return [
        case(f"{key}.normalise", BOTH, True),
        case(f"{key}.clip", BOTH, 0.2),
        case(f"{key}.length<none>", BOTH, {f"{key}.length": {"type": "none"}}, linear),
        case(f"{key}.length<linear>", BOTH, linear),
        case(f"{key}.length<linear>.per_token", BOTH, {f"{key}.length.per_token": 0.4}, linear),
        case(f"{key}.length<soft_overlong>", BOTH, overlong),
        case(f"{key}.length<soft_overlong>.longest", BOTH, {f"{key}.length.longest": 5}, overlong),
        case(f"{key}.length<soft_overlong>.buffer", BOTH, {f"{key}.length.buffer": 3}, overlong),
        case(f"{key}.length<soft_overlong>.penalty", BOTH, {f"{key}.length.penalty": 0.2}, overlong),
    ]


def _kl() -> list[Case]:
    key = "ppo.kl"
    adaptive = {f"{key}.controller": ADAPTIVE, "steps": 3}
    slow = {f"{key}.budget.slow_down": 0.5, f"{key}.budget.factor": 0.5}
    return [
        case(f"{key}.controller<fixed>", BOTH, {f"{key}.controller": {"type": "fixed", "coefficient": 0.2}}, adaptive),
        case(f"{key}.controller<fixed>.coefficient", BOTH, {f"{key}.controller.coefficient": 0.5}),
        case(f"{key}.controller<adaptive>", BOTH, adaptive),
        case(f"{key}.controller<adaptive>.initial", BOTH, {f"{key}.controller.initial": 0.1}, adaptive),
        case(f"{key}.controller<adaptive>.target", BOTH, {f"{key}.controller.target": 1.8}, adaptive),
        case(f"{key}.controller<adaptive>.horizon", BOTH, {f"{key}.controller.horizon": 30}, adaptive),
        case(f"{key}.budget.slow_down", "actor", slow),
        case(
            f"{key}.budget.tokens", "actor", {f"{key}.budget.tokens": None}, {**slow, f"{key}.budget.slow_down": 20.0}
        ),
        case(f"{key}.budget.factor", "actor", {f"{key}.budget.factor": 0.1}, slow),
        case(f"{key}.budget.stop", "actor", {f"{key}.budget.stop": 1.0}),
    ]


def _rewards(folder: Path) -> list[Case]:
    def model(name: str) -> dict[str, Any]:
        return {"type": "model", "model": {"path": str(folder / name)}, "zero": {"stage": 0}}

    members = {"first": model("reward"), "second": model("other-reward")}

    def ensemble(**how: Any) -> dict[str, Any]:
        return {"reward": {"type": "ensemble", "members": members, "combine": how}}

    weights, mean = {"first": 0.3, "second": -1.2}, ensemble(type="mean")
    cautious, weighted = ensemble(type="mean_minus_std", factor=0.7), ensemble(type="weighted", weights=weights)
    swapped = {"first": model("other-reward"), "second": model("critic")}
    key = "reward<ensemble>"
    return [
        case("reward<model>", BOTH, {"reward": model("reward")}, mean),
        case("reward<model>.model.path", BOTH, {"reward.model.path": str(folder / "other-reward")}),
        case(key, BOTH, mean),
        case(f"{key}.members<model>", BOTH, {"reward.members": swapped}, mean),
        case(f"{key}.members<model>.model.path", BOTH, {"reward.members": swapped}, weighted),
        case(f"{key}.combine<mean>", BOTH, mean, weighted),
        case(f"{key}.combine<worst>", BOTH, ensemble(type="worst"), mean),
        case(f"{key}.combine<mean_minus_std>", BOTH, cautious, mean),
        case(f"{key}.combine<mean_minus_std>.factor", BOTH, {"reward.combine.factor": 2.0}, cautious),
        case(f"{key}.combine<weighted>", BOTH, weighted, mean),
        case(f"{key}.combine<weighted>.weights", BOTH, {"reward.combine.weights.first": -2.0}, weighted),
    ]
