"""The run that every case changes a key of: all keys that the plain arithmetic reads are written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.unit.wiring.plain_run import Numbers, Run
from tests.unit.wiring.stage import Seen, trained, with_changes


def base(folder: Path) -> dict[str, Any]:
    """Two steps of two epochs of two optimizer steps each, far from temperature 1 and from every default."""

    def optimizer(rate: float, norm: float) -> dict[str, Any]:
        schedule = {"type": "linear", "warmup_steps": 1}
        rates: dict[str, Any] = {"learning_rate": rate, "betas": [0.8, 0.9], "epsilon": 1e-2, "weight_decay": 0.1}
        return {**rates, "max_gradient_norm": norm, "schedule": schedule}

    def model(name: str) -> dict[str, Any]:
        return {"path": str(folder / name)}

    engine = {"zero": {"stage": 0}, "micro_batch_tokens": 20}
    return {
        "run_dir": str(folder / "run"),
        "model_cache": str(folder / "models"),
        "seed": 3,
        "steps": 2,
        "device": "cpu",
        "dtype": "float32",
        "canary": {"enabled": False},  # the engine is a stand-in: its log-probabilities are made up
        "prompts": {"train": {"path": str(folder / "train.jsonl")}, "max_tokens": 6},
        "actor": {
            **engine,
            "model": model("policy"),
            "optimizer": optimizer(0.02, 0.5),
            "lora": None,
            "ema_decay": None,
            "old_logprobs": "recompute",
        },
        "critic": {
            **engine,
            "model": model("critic"),
            "optimizer": optimizer(0.03, 0.2),
            "lora": None,
            "warmup": {"max_steps": 0, "until_explained_variance": None},
        },
        "reference": {**engine, "model": model("other-policy")},
        "reward": {**engine, "type": "model", "model": model("reward")},
        "rollout": {
            "prompts_per_step": 3,
            "responses_per_prompt": 2,
            "max_response_tokens": 7,
            "min_response_tokens": 0,
            "temperature": 0.7,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
        },
        "ppo": {
            "epochs": 2,
            "mini_batches": 2,
            "policy": {
                "type": "clipped",
                "clip": 0.1,
                "clip_high": None,
                "dual_clip": None,
                "entropy_coefficient": 0.0,
                "mean": "token",
                "importance": {"type": "none"},
            },
            "value": {"clip": 0.1, "coefficient": 0.3, "mean": "token", "normalise": False},
            "advantage": {"type": "gae", "gamma": 0.9, "lambda": 0.8, "critic_lambda": None},
            "whiten_advantages": None,
            "whiten_rewards": False,
            "score": {"normalise": False, "clip": None, "length": {"type": "none"}},
            "kl": {
                "controller": {"type": "fixed", "coefficient": 0.2},
                "where": "reward",
                "estimator": "k1",
                "budget": {"tokens": 50, "warn": None, "slow_down": None, "factor": 0.5, "stop": None},
                "allow_biased": True,
            },
            "truncated": {"type": "score"},
        },
    }


@dataclass(frozen=True)
class Case:
    """`value` in place of what `given` says must change what the plain arithmetic gives, at least in `moves`; the
    program must give the same, before and after."""

    key: str
    """As `leaves` of `schema` writes it."""
    moves: tuple[str, ...]
    """Beginnings of names in `Numbers`."""
    change: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.key


def case(key: str, moves: str, change: Any, given: Mapping[str, Any] | None = None) -> Case:
    """`change`: the key's other value, or a mapping `key.path: value`; `moves`: one or several words."""
    changes = change if isinstance(change, dict) else {key: change}
    return Case(key, tuple(moves.split()), changes, given or {})


ONE_STEP = {
    "steps": 1,
    "ppo.mini_batches": 1,
    "ppo.epochs": 1,
    "actor.optimizer.schedule.warmup_steps": 0,
    "critic.optimizer.schedule.warmup_steps": 0,
}


def short_run(folder: Path, changes: Mapping[str, Any]) -> Seen:
    """One step of one optimizer step: where it matters what the roles are asked, not what they learn."""
    return trained(with_changes(base(folder), {**ONE_STEP, **changes}), folder)


TOLERANCE = 3e-5
"""Of float32 against float64, after eight optimizer steps."""
NOTICEABLE = 20 * TOLERANCE
"""A change of less than this would prove nothing."""

_DONE: dict[str, tuple[Seen, Numbers, Numbers]] = {}


def ran(folder: Path, changes: Mapping[str, Any]) -> tuple[Seen, Numbers, Numbers]:
    """What was seen of the run, its numbers, and those of the plain arithmetic."""
    said = with_changes(base(folder), changes)
    if repr(said) not in _DONE:
        seen = trained(said, folder)
        began = {role: group.began for role, group in seen.groups.items()}
        plain = Run(said, seen.llms[0].batches, began, seen.groups["actor"].beside)
        expected = plain.all_steps()
        assert plain.stopped == (seen.error is not None)
        _DONE[repr(said)] = seen, numbers(seen), expected
    return _DONE[repr(said)]


def numbers(seen: Seen) -> Numbers:
    """What the program's run ended with, and what its steps told."""
    found: dict[str, Tensor] = {}
    for role in ("actor", "critic"):
        if role in seen.groups:
            tensors = seen.groups[role].parameters
            found |= {f"{role} {name}": tensor.detach() for name, tensor in tensors.items() if tensor.requires_grad}
    average = seen.groups["actor"].members[0]._model._average
    if average is not None:
        found |= {f"average {name}": tensor.clone() for name, tensor in average.whole()}
    for step, metrics in enumerate(seen.report.steps):
        found |= {f"{name}@{step}": torch.tensor(value) for name, value in metrics.items()}
    return {name: tensor.double() for name, tensor in found.items()}


def check_same(found: Numbers, expected: Numbers) -> None:
    """All that the plain arithmetic knows is what the program found."""
    for name, tensor in expected.items():
        assert name in found, f"the run tells nothing of {name}"
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-3, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
    weights = {name for name in found if name.startswith(("actor ", "critic ", "average "))}
    assert weights == {name for name in expected if name.startswith(("actor ", "critic ", "average "))}


def check_moved(before: Numbers, after: Numbers, moves: tuple[str, ...]) -> None:
    """Each of `moves` is another by more than what rounding explains."""
    for start in moves:
        names = {name for name in before.keys() | after.keys() if name.startswith(start)}
        assert names, f"nothing is called {start}…"
        assert names - (before.keys() & after.keys()) or any(
            before[name].shape != after[name].shape or float((before[name] - after[name]).abs().max()) > NOTICEABLE
            for name in names
        ), f"{start} did not move: this case proves nothing"


def check(case: Case, folder: Path) -> None:
    """The run is right without the change and with it, and the change matters."""
    _, first, plain_first = ran(folder, case.given)
    check_same(first, plain_first)
    _, second, plain_second = ran(folder, {**case.given, **case.change})
    check_same(second, plain_second)
    check_moved(plain_first, plain_second, case.moves)
