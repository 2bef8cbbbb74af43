"""Keys of the retraining of a reward model during PPO, from the YAML file to its weights, beside plain torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.config.labelling import EndpointJudge
from orchestrator.data.judge_prompts import JudgeAnswer
from orchestrator.stages.asked_endpoint import AskedEndpoint
from roles.batch import Preferences, Sequences
from roles.reward_model import RewardModel
from roles.reward_trainer import RewardTrainer
from roles.zero.setup import ModelSetup
from tests.unit.wiring.base import base, check_moved, check_same
from tests.unit.wiring.plain import Rows, classifier
from tests.unit.wiring.plain_preferences import Trainer
from tests.unit.wiring.plain_run import Numbers
from tests.unit.wiring.stage import Seen, stage, trained, with_changes

PROVES = (
    "retraining.every",
    "retraining.judge<model>",
    "retraining.judge<model>.model.path",
    "retraining.judge<function>",
    "retraining.judge<function>.path",
    "retraining.judge<function>.name",
    "retraining.prompts",
    "retraining.responses_per_prompt",
    "retraining.epochs",
    "retraining.groups_per_step",
    "retraining.optimizer.*",
    "retraining.freeze_backbone",
    "retraining.pinned",
    "retraining.critic_steps",
)
JUDGE = """
def score(prompts, responses, *, response_token_ids, finished, columns):
    return [float(sum(ids) % 7) for ids in response_token_ids]
def other(prompts, responses, *, response_token_ids, finished, columns):
    return [float(ids[0]) for ids in response_token_ids]
"""


def retraining_base(folder: Path) -> dict[str, Any]:
    (folder / "gold.py").write_text(JUDGE)
    (folder / "lengths.py").write_text(JUDGE.replace("sum(ids) % 7", "len(ids)"))
    said = {**base(folder), "steps": 4}
    return {
        **said,
        "retraining": {
            "every": 1,
            "judge": {"type": "function", "path": str(folder / "gold.py"), "name": "score"},
            "prompts": 3,
            "responses_per_prompt": 3,
            "epochs": 2,
            "groups_per_step": 2,
            "optimizer": said["critic"]["optimizer"],
            "freeze_backbone": False,
            "pinned": 4,
            "critic_steps": 0,
        },
    }


_DONE: dict[str, tuple[Numbers, Numbers]] = {}


def ran(folder: Path, changes: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Numbers, Numbers]:
    """The program's numbers, and those of plain torch on the comparisons that it learned from."""
    said = with_changes(retraining_base(folder), changes)
    if repr(said) not in _DONE:
        _DONE[repr(said)] = run_once(said, folder, monkeypatch)
    return _DONE[repr(said)]


def run_once(said: Mapping[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Numbers, Numbers]:
    batches: list[Preferences] = []
    told: list[Any] = []

    class Noted(RewardTrainer):
        def update(self, preferences: Preferences) -> Any:
            batches.append(preferences)
            told.append(super().update(preferences))
            return told[-1]

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.groups.build.RewardTrainer", Noted)
        seen = trained(said, folder)
    settings, group = said["retraining"], seen.groups["reward"]
    found = {f"weights {name}": tensor.detach() for name, tensor in group.parameters.items()}
    actor = {f"actor {name}": tensor.detach() for name, tensor in seen.groups["actor"].parameters.items()}
    for step, metrics in enumerate(seen.report.steps):
        own = {name: value for name, value in metrics.items() if name.startswith("retraining/")}
        found |= {f"{name}@{step}": torch.tensor(float(value)) for name, value in own.items()}
    for number, stats in enumerate(told):
        for name in ("loss", "gradient_norm", "learning_rate"):
            found[f"{name}@{number}"] = torch.tensor(getattr(stats, name))
    retrainings = (said["steps"] - 1) // settings["every"]
    most = retrainings * settings["epochs"] * -(-settings["prompts"] // settings["groups_per_step"])
    plain = Trainer({**settings, "model": said["reward"]["model"], "pooling": "last"}, most, group.began)
    expected: Numbers = {}
    for number, batch in enumerate(batches):
        assert len(batch.groups.unique()) <= settings["groups_per_step"]
        expected |= {f"{name}@{number}": torch.tensor(value).double() for name, value in plain.step(batch).items()}
    expected |= {f"weights {name}": tensor.detach() for name, tensor in plain.network.values.items()}
    check_same({name: tensor.double() for name, tensor in found.items()}, expected)
    return {name: tensor.double() for name, tensor in {**found, **actor}.items()}, expected


def cases(folder: Path) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    key, optimizer = "retraining", "retraining.optimizer"
    constant = {f"{optimizer}.schedule.type": "constant"}
    return [
        ("every", "weights", {f"{key}.every": 2}, {}),
        ("judge.path", "weights", {f"{key}.judge.path": str(folder / "lengths.py")}, {}),
        ("judge.name", "weights", {f"{key}.judge.name": "other"}, {}),
        ("prompts", "weights", {f"{key}.prompts": 2}, {}),
        ("responses_per_prompt", "weights", {f"{key}.responses_per_prompt": 2}, {}),
        ("epochs", "weights", {f"{key}.epochs": 1}, {}),
        ("groups_per_step", "weights", {f"{key}.groups_per_step": 1}, {}),
        ("freeze_backbone", "weights", {f"{key}.freeze_backbone": True}, {}),
        ("pinned", "retraining/pinned_mean", {f"{key}.pinned": 6}, {}),
        ("critic_steps", "actor", {f"{key}.critic_steps": 1}, {f"{key}.every": 2}),
        ("learning_rate", "weights", {f"{optimizer}.learning_rate": 0.004}, {}),
        ("betas", "weights", {f"{optimizer}.betas": [0.5, 0.99]}, {}),
        ("epsilon", "weights", {f"{optimizer}.epsilon": 1e-1}, {}),
        ("weight_decay", "weights", {f"{optimizer}.weight_decay": 0.7}, {}),
        ("max_gradient_norm", "weights", {f"{optimizer}.max_gradient_norm": 0.01}, {}),
        ("type=constant", "weights", constant, {}),
        ("type=linear", "weights", {f"{optimizer}.schedule.type": "linear"}, constant),
        ("type=cosine", "weights", {f"{optimizer}.schedule.type": "cosine"}, {}),
        ("warmup_steps", "weights", {f"{optimizer}.schedule.warmup_steps": 0}, {}),
        ("floor", "weights", {f"{optimizer}.schedule.floor": 0.5}, {}),
    ]


NAMES = [name for name, *_ in cases(Path("FOLDER"))]


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_a_key_of_the_retraining_does_what_it_says(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, moves, change, given = cases(folder)[number]
    (first, plain_first), (second, plain_second) = (
        ran(folder, {**given, **more}, monkeypatch) for more in ({}, change)
    )
    check_moved({**plain_first, **first}, {**plain_second, **second}, (moves,))


def test_a_reward_model_that_learns_scores_as_a_frozen_one(folder: Path) -> None:
    """Before it has learned anything."""
    rows = torch.tensor([[3, 9, 4, 5], [8, 3, 0, 0], [4, 4, 6, 0]])
    lengths = torch.tensor([4, 2, 3])
    sequences = Sequences(rows, lengths, torch.arange(4) < lengths[:, None])
    said = retraining_base(folder)
    seen = trained({**said, "steps": 2, "retraining": {**said["retraining"], "epochs": 1}}, folder)
    setup: ModelSetup = seen.groups["reward"].arguments[0][0]
    with stage():
        frozen, learning = RewardModel(setup), RewardTrainer(setup)
        assert torch.equal(frozen.score(sequences), learning.score(sequences))


def test_a_reward_model_labels_what_the_other_learns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a frozen role of its own, and its order is the judge's."""
    learned = []
    for name in ("critic", "reward"):
        engine = {"zero": {"stage": 0}, "micro_batch_tokens": 20}
        judge = {**engine, "type": "model", "model": {"path": str(folder / name)}}
        batches: list[Preferences] = []

        class Noted(RewardTrainer):
            def update(self, preferences: Preferences, batches: list[Preferences] = batches) -> Any:
                batches.append(preferences)
                return super().update(preferences)

        said = retraining_base(folder)
        said = {**said, "steps": 2, "retraining": {**said["retraining"], "judge": judge}}
        with monkeypatch.context() as patched:
            patched.setattr("orchestrator.groups.build.RewardTrainer", Noted)
            seen = trained(said, folder)
        gold = classifier(str(folder / name), seen.groups["labeller"].began)
        for batch in batches:
            rows = Rows(batch.token_ids, batch.lengths, *[torch.zeros(0)] * 3)
            numbers = gold.numbers(rows).gather(1, batch.lengths[:, None] - 1)[:, 0]
            assert torch.allclose(batch.ranks.double(), numbers.double(), atol=1e-4)
        group = seen.groups["labeller"]
        assert batches and not any(tensor.requires_grad for tensor in group.parameters.values())
        learned.append(seen.report.steps[1]["retraining/loss"])
    assert learned[0] != learned[1]


def test_an_endpoint_labels_what_the_reward_model_learns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked with the words of `retraining.question`; a mass below `retraining.minimum_mass` is an abstention."""
    asked: list[str] = []

    class Endpoint(AskedEndpoint):
        def answers(self, questions: Any) -> Any:
            for number, question in enumerate(questions):
                asked.append(question.messages[0]["content"])
                yield number, JudgeAnswer("A", (0.3, 0.1) if number % 2 else (0.1, 0.3))

    judge = {"type": "endpoint", "url": "http://127.0.0.1:9/v1/completions", "model": "gold"}

    def learned(name: str, **more: Any) -> Seen:
        said = retraining_base(folder)
        settings = {**said["retraining"], "judge": judge, "question": "Which?", **more}
        return trained({**said, "steps": 2, "run_dir": str(folder / name), "retraining": settings}, folder)

    monkeypatch.setattr("orchestrator.stages.fresh_labels.AskedEndpoint", Endpoint)
    assert EndpointJudge.model_validate(judge).answer_tokens == 16
    found = learned("asked").report.steps[1]
    assert found["retraining/comparisons"] == 9 and all(text.startswith("Which?\n") for text in asked)
    assert len((folder / "asked" / "answers.jsonl").read_text().splitlines()) == len(asked)
    assert json.loads((folder / "asked" / "answers.jsonl").read_text().splitlines()[0])["letters"] == [0.1, 0.3]
    assert learned("unsure", minimum_mass=0.5).report.steps[1]["retraining/comparisons"] == 0
