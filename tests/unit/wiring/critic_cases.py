"""Keys that change how the critic is trained, or when."""

from __future__ import annotations

from pathlib import Path

from tests.unit.wiring.base import Case, case

LORA = {"rank": 2, "alpha": 3.0, "targets": ["q_proj", "down_proj"]}


def with_lora(**changes: object) -> dict[str, object]:
    return {"critic.lora": {**LORA, **changes}}


def critic_cases(folder: Path) -> list[Case]:
    value, optimizer, schedule = "ppo.value", "critic.optimizer", "critic.optimizer.schedule"
    unnamed = {"critic.model": None, "critic.initialise_from": "reward"}
    fresh = {"critic.model": None, "critic.initialise_from": "policy"}
    # this critic explains .18 of the first batch
    late = {
        "critic.warmup.max_steps": 1,
        "critic.model.path": str(folder / "other-critic"),
        "ppo.advantage": {"type": "gae", "gamma": 0.5, "lambda": 1.0, "critic_lambda": None},
        "ppo.kl.controller.coefficient": 0.0,
        "ppo.score": {"normalise": False, "clip": 0.001, "length": {"type": "linear", "per_token": 3.0}},
    }
    return [
        case("critic.model.path", "critic", {"critic.model.path": str(folder / "other-critic")}),
        case("critic.initialise_from=reward", "critic", unnamed),
        case("critic.initialise_from=policy", "critic", fresh, unnamed),
        case(f"{optimizer}.learning_rate", "critic", 0.005),
        case(f"{optimizer}.betas", "critic", [0.5, 0.99]),
        case(f"{optimizer}.epsilon", "critic", 1e-1),
        case(f"{optimizer}.weight_decay", "critic", 0.6),
        case(f"{optimizer}.max_gradient_norm", "critic", 0.02),
        case(f"{schedule}.type=constant", "critic", {f"{schedule}.type": "constant"}),
        case(f"{schedule}.type=linear", "critic", {f"{schedule}.type": "linear"}, {f"{schedule}.type": "constant"}),
        case(f"{schedule}.type=cosine", "critic", {f"{schedule}.type": "cosine"}),
        case(f"{schedule}.warmup_steps", "critic", 4),
        case(f"{schedule}.floor", "critic", 0.5),
        case("critic.lora.rank", "critic", with_lora(rank=4), with_lora()),
        case("critic.lora.alpha", "critic", with_lora(alpha=12.0), with_lora()),
        case("critic.lora.targets", "critic", with_lora(targets=["v_proj"]), with_lora()),
        case("critic.lora.targets=all-linear", "critic", with_lora(targets="all-linear"), with_lora()),
        case("critic.warmup.max_steps", "actor", 1),
        case(
            "critic.warmup.until_explained_variance",
            "actor lr/actor@0",
            {"critic.warmup.until_explained_variance": 0.1},
            late,
        ),
        case(
            "critic.warmup.until_explained_variance",
            "actor",
            {"critic.warmup.until_explained_variance": 0.5},
            {**late, "critic.warmup.until_explained_variance": 0.1},
        ),
        case(f"{value}.clip", "critic", 0.01),
        case(f"{value}.coefficient", "critic", 0.05),
        case(f"{value}.mean=sequence", "critic", {f"{value}.mean": "sequence"}),
        case(f"{value}.mean=constant", "critic", {f"{value}.mean": "constant"}),
        case(f"{value}.mean=token", "critic", {f"{value}.mean": "token"}, {f"{value}.mean": "sequence"}),
        case(f"{value}.normalise", "critic", {f"{value}.normalise": True}, fresh),
    ]
