"""Going on from a checkpoint with another configuration: every key has a rule, and what may not change is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.base import BaseConfig
from orchestrator.config.dpo import DpoRun
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.labelling import LabellingRun
from orchestrator.config.loading import dump_config, load_config, validate
from orchestrator.config.pipeline import PipelineRun
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.roots import ROOTS
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import key_of, sections_in
from orchestrator.config.serving import ServingRun
from orchestrator.config.sft import SftRun
from orchestrator.errors import ConfigError
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.resume_rules import RESUME_RULES
from orchestrator.run.resuming import _names, changes, checkpoint_to_resume, other_layout, take_up, why_not
from tests.unit.orchestrator.run.saved_runs import ROOT, Saved, rewarded, rewarding

RETRAINING = ROOT / "configs/retraining.yaml"
WHOLE = {
    *("deadlines", "report", "checkpoint", "placement", "alerts", "canary", "frozen.zero", "rollout.engine"),
    *("trained.optimizer.schedule", "trained.zero", "trained.lora", "trained.model", "critic.warmup"),
    *("frozen.model", "reward.model", "reward.combine", "prompts.train", "prompts.heldout", "evaluation.judge"),
    "prompts.heldout_sets",
    *("ppo.ptx.data", "ppo.advantage", "ppo.score", "ppo.truncated", "ppo.policy.importance", "ppo.kl.budget"),
}
"""Sections all of whose keys, the future ones too, have the same rule (or one of their own)."""


OF_PAIRS = {
    *("prompts", "actor", "rollout", "environment", "reward_training.pairs"),
    *("prompts.heldout", "actor.zero", "actor.optimizer", "actor.lora", "rollout.engine"),
    *("reward_training.optimizer.schedule", "reward_training.model"),
}
"""The same, where a reward model is trained."""


def schema(section: Any = RunConfig, path: str = "") -> Iterator[tuple[str, bool]]:
    """(key, whether it is a section that is always there) of the whole schema; a member of an ensemble is `m`."""
    for name, field in section.model_fields.items():
        key = f"{path}.{key_of(name, field)}".lstrip(".")
        inner = sections_in(field.annotation)
        members = key == "reward.members"
        yield key, bool(inner) and not members and type(None) not in getattr(field.annotation, "__args__", ())
        for one in inner if key.count("members") < 2 else ():
            yield from schema(one, f"{key}.m" if members else key)


@pytest.mark.parametrize(
    ("root", "whole", "least", "some"),
    [
        (RunConfig, WHOLE, 200, {"reward.members.m.urls", "actor.lora", "ppo.kl.budget.factor"}),
        (
            RewardTrainingRun,
            WHOLE | OF_PAIRS,
            150,
            {"reward_training.pairs.dataset.path", "reward_training.optimizer.betas"},
        ),
        (SftRun, WHOLE | {"sft.data", "sft.heldout", "sft.model", "sft.lora", "sft.zero"}, 70, {"sft.data.path"}),
        (
            DpoRun,
            WHOLE | {f"dpo.{key}" for key in ("data", "heldout", "model", "lora", "zero", "loss")},
            75,
            {"dpo.loss.label_smoothing"},
        ),
    ],
)
def test_every_key_has_one_rule_of_its_own(root: type[BaseConfig], whole: set[str], least: int, some: set[str]) -> None:
    rules = RESUME_RULES[root]
    keys = {key for key, section in schema(root) if not section}
    assert len(keys) > least and some <= keys
    used = set()
    for key in sorted(keys):
        lists = (rules.may_change, rules.stays, rules.unread)
        if rules.unread.isdisjoint(_names(key)):
            why_not(key, rules)  # a KeyError names a key that has no rule
        rule = next(name for name in _names(key) if any(name in rules for rules in lists))
        assert rule in list(_names(key))[:2] or rule in whole, f"{key} has no rule of its own in resume_rules.py"
        used.add(rule)
    assert used == rules.may_change | set(rules.stays) | rules.unread, "rules that no key has"
    assert len(used) == sum(map(len, (rules.may_change, rules.stays, rules.unread))), "two rules for a key"


def test_a_reward_model_that_is_retrained_keeps_what_its_checkpoint_depends_on(tmp_path: Path) -> None:
    retrained = load_config(RETRAINING, [f"run_dir={tmp_path}"])
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=5)
    checkpoints.save(2, {"config": dump_config(retrained)}, lambda folder: None)
    checkpoint = checkpoints.newest()
    assert checkpoint is not None
    for key, value, refused in (
        ("reward.zero.stage", 2, False),
        ("placement.reward.ranks", 2, False),
        ("retraining.optimizer.learning_rate", 1e-4, False),
        ("retraining.judge.workers", 2, False),
        ("retraining.every", 3, True),
        ("retraining", "null", True),
    ):
        found = changes(checkpoint, load_config(RETRAINING, [f"run_dir={tmp_path}", f"{key}={value}"]))
        assert any(change.why_not for change in found) == refused, key


NOT_RESUMED = {EvaluationRun, ServingRun, LabellingRun, PipelineRun}
"""Their commands have no checkpoints: they measure or serve, or go on from files of their own."""


def test_the_runs_of_every_stage_have_rules() -> None:
    assert set(RESUME_RULES) == set(ROOTS.values()) - NOT_RESUMED, "the others have nothing to resume"


def test_what_may_change_is_told_with_both_values(saved: Saved) -> None:
    assert saved.told() == []
    assert saved.told("ppo.kl.controller.coefficient=0.1", "steps=20") == [
        "steps: 6 in the checkpoint, now 20",
        "ppo.kl.controller.coefficient: 0.01 in the checkpoint, now 0.1",
    ]
    assert saved.told(
        "placement.rollout.ranks=1", "reward_training.epochs=9", "actor.optimizer.learning_rate=1e-4"
    ) == [
        "placement.rollout.ranks: 2 in the checkpoint, now 1",
        "actor.optimizer.learning_rate: 0.003 in the checkpoint, now 0.0001",
    ]


ANEW = "weights, moments and schedules are shared out anew over the ranks"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["placement.actor.ranks=1"],
            ["actor: ranks 2, ZeRO stage 3 in the checkpoint, now ranks 1, ZeRO stage 3", ANEW],
        ),
        (["actor.zero.stage=2"], ["actor: ranks 2, ZeRO stage 3 in the checkpoint, now ranks 2, ZeRO stage 2", ANEW]),
        (
            ["placement.rollout.ranks=1", "reference.zero.stage=0"],
            [
                "rollout: engines 2, tensor_parallel_size 1 in the checkpoint, now engines 1, tensor_parallel_size 1",
                "reference: ranks 2, ZeRO stage 3 in the checkpoint, now ranks 2, ZeRO stage 0",
                ANEW,
            ],
        ),
        (
            ["placement.rollout.ranks=1"],
            ["rollout: engines 2, tensor_parallel_size 1 in the checkpoint, now engines 1, tensor_parallel_size 1"],
        ),
        (["actor.micro_batch_tokens=99"], []),
    ],
)
def test_another_layout_is_told_with_what_follows_from_it(saved: Saved, overrides: list[str], told: list[str]) -> None:
    found = checkpoint_to_resume(saved.config(*overrides), "newest")
    assert found is not None
    lines = other_layout(found, saved.config(*overrides))
    assert lines[:-1] == told
    assert not told or "from step 5 on the run agrees with one on the old layout up to rounding" in lines[-1]
    assert take_up(saved.run_dir, found, saved.config(*overrides), "newest")[-len(lines) or 99 :] == lines


def test_another_layout_of_a_reward_models_training_is_told(tmp_path: Path) -> None:
    rewarded(tmp_path)
    found = checkpoint_to_resume(rewarding(tmp_path, "placement.reward.ranks=2"), "newest")
    assert found is not None
    lines = other_layout(found, rewarding(tmp_path, "placement.reward.ranks=2"))
    assert lines[0] == "reward: ranks 1, ZeRO stage 3 in the checkpoint, now ranks 2, ZeRO stage 3" and len(lines) == 3


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=2", "seed: 1 in the checkpoint, now 2; this cannot change: the prompts' order"),
        ("dtype=bfloat16", "dtype: float32 in the checkpoint, now bfloat16"),
        ("ppo.advantage.lambda=0.9", "ppo.advantage.lambda: 0.95 in the checkpoint, now 0.9"),
        ("actor.lora={rank: 4}", "actor.lora: null in the checkpoint, now {"),
        (
            "actor.optimizer.betas=[0.9, 0.999]",
            "actor.optimizer.betas: [0.9, 0.95] in the checkpoint, now [0.9, 0.999]",
        ),
        (
            "ppo.kl.controller={type: adaptive, target: 6}",
            "ppo.kl.controller.type: fixed in the checkpoint, now adaptive",
        ),
    ],
)
def test_what_stays_is_refused_with_both_values_and_the_run_is_as_it_was(
    saved: Saved, override: str, line: str
) -> None:
    (saved.run_dir / "metrics.jsonl").write_text('{"step": 5}\n')
    before = {file: file.stat().st_mtime_ns for file in saved.run_dir.rglob("*")}
    with pytest.raises(ConfigError) as refused:
        saved.told(override)
    assert line in str(refused.value) and "step-000004 has, or start anew" in str(refused.value)
    assert {file: file.stat().st_mtime_ns for file in saved.run_dir.rglob("*")} == before


def test_secrets_are_neither_told_nor_compared(tmp_path: Path) -> None:
    saved = Saved(tmp_path / "run", ())

    def remote(token: str, url: str) -> RunConfig:
        reward = {"type": "remote", "urls": [url], "headers": {"authorization": token}}
        return saved.config(f"reward={json.dumps(reward)}")

    state = {"config": dump_config(remote("first", "http://user:pass@a/score"))}
    saved.checkpoints.save(2, state, lambda folder: None)
    now = remote("second", "http://b/score")
    found = checkpoint_to_resume(now, "newest")
    assert found is not None
    (only,) = map(str, changes(found, now))
    assert only.startswith("reward.urls: [") and not [word for word in ("first", "second", "pass") if word in only]


def test_a_member_of_an_ensemble_has_the_rules_of_a_reward(tmp_path: Path) -> None:
    saved = Saved(tmp_path / "run", ())
    data = saved.config().model_dump(mode="json", by_alias=True)

    def ensemble(**members: Any) -> RunConfig:
        reward = {"type": "ensemble", "members": members, "combine": {"type": "mean"}}
        return validate({**data, "reward": reward})

    function = {"type": "function", "path": "f.py"}
    saved.checkpoints.save(2, {"config": dump_config(ensemble(a=function))}, lambda folder: None)
    checkpoint = saved.checkpoints.newest()
    assert checkpoint is not None
    may = changes(checkpoint, ensemble(a={**function, "workers": 4}))
    assert [str(change) for change in may] == ["reward.members.a.workers: 1 in the checkpoint, now 4"]
    assert [change.why_not for change in may] == [None]
    for other in (ensemble(a={**function, "path": "g.py"}), ensemble(a=function, b=function)):
        assert [change.why_not for change in changes(checkpoint, other)] != [None]


def test_a_checkpoint_that_does_not_say_its_configuration_is_refused(saved: Saved) -> None:
    saved.checkpoints.save(6, {}, lambda folder: None)
    with pytest.raises(ConfigError, match=r"step-000006 does not say .* another version of Tetrarch"):
        saved.told()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "is no mapping of keys"),
        (["x"], "is no mapping"),
        ("- 1", "is no mapping"),
        ("a: [", "is not YAML: line 1"),
    ],
)
def test_a_configuration_of_a_checkpoint_that_is_none_is_refused(saved: Saved, text: object, why: str) -> None:
    saved.checkpoints.save(6, {"config": text}, lambda folder: None)
    with pytest.raises(
        ConfigError, match=rf"the configuration in .*step-000006 {why}.*put manifest\.json back, or remove"
    ):
        saved.told()


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "evaluation.jsonl"])
def test_a_run_whose_reports_cannot_be_read_is_refused_before_it_goes_on(saved: Saved, name: str) -> None:
    (saved.run_dir / name).write_text("[]\n")
    with pytest.raises(ConfigError, match=rf"^run_dir={saved.run_dir}: {saved.run_dir}/{name} is not as a run has"):
        saved.told()


@pytest.mark.parametrize(
    "override",
    [
        "actor.optimizer.learning_rate=1e-4",
        "actor.micro_batch_tokens=64",
        "actor.lora.rank=4",
        "actor.ema_decay=0.9",
        "rollout.prompts_per_step=9",
        "rollout.engine.kv_cache_gib=0.1",
        "prompts.heldout.path=other.jsonl",
    ],
)
def test_what_reward_training_does_not_read_may_change_without_a_word(tmp_path: Path, override: str) -> None:
    rewarded(tmp_path)
    found = checkpoint_to_resume(rewarding(tmp_path, override), "newest")
    assert found is not None and changes(found, rewarding(tmp_path, override)) == []


@pytest.mark.parametrize(
    "override",
    ["actor.model.path=other", "rollout.temperature=0.5", "prompts.train.path=other.jsonl", "prompts.max_tokens=7"],
)
def test_what_the_comparisons_were_made_with_stays(tmp_path: Path, override: str) -> None:
    rewarded(tmp_path)
    with pytest.raises(ConfigError, match="this cannot change: the comparisons were made with it"):
        checkpoint_to_resume(rewarding(tmp_path, override), "newest")
