"""From a file to the user's code: a function, a service and an environment see every value as it is in the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.tiny.inputs import tokenizer
from orchestrator.checks.columns import check_kept_columns, check_sendable
from orchestrator.config.data import PromptsConfig
from orchestrator.config.loading import validate
from orchestrator.data.prompts import PromptSource, Questions, read_questions, read_tasks
from orchestrator.data.row_files import Where
from orchestrator.errors import ConfigError
from roles.batch import Rollouts
from roles.config.environment import FunctionEnvironment
from roles.config.rewards import FunctionReward, RemoteReward
from roles.generation.environments import Environments
from roles.reward_function import FunctionScorer
from roles.reward_service import RemoteScorer
from tests.unit.orchestrator.data.test_row_files import COLUMNS, ROWS, same
from tests.unit.roles.test_reward_service import serving

PARTS = [{"type": "text", "text": "what is "}, {"type": "text", "text": "a river"}]
CHATS = [[{"role": "user", "content": PARTS, "name": None}], [{"role": "user", "content": "draw"}]]
NOTE = """
def score(prompts, responses, *, response_token_ids, finished, columns):
    open({file!r}, "w").write(repr(columns))
    return [0.0] * len(prompts)

class Env:
    def reset(self, columns):
        open({file!r}, "w").write(repr(columns))
        return columns.get("messages") or [{{"role": "user", "content": "hi"}}]
"""


def config_of(folder: Path, rows: list[dict[str, Any]]) -> PromptsConfig:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptsConfig.model_validate({"train": {"path": str(folder / "rows.jsonl")}, "max_tokens": 64})


def answered(questions: Questions) -> Rollouts:
    """As the engines make them, after a draw: rows in another order, each twice."""
    prompts = PromptSource(questions, 3).next(len(questions), 2)
    size = len(prompts)
    mask = torch.tensor([[False, True]] * size)
    return Rollouts(
        token_ids=torch.ones(size, 2, dtype=torch.long),
        lengths=torch.full((size,), 2),
        response_mask=mask,
        rollout_logprobs=torch.zeros(size, 2),
        turn_rewards=torch.zeros(size, 2),
        finished=torch.ones(size, dtype=torch.bool),
        versions=torch.zeros(size, dtype=torch.long),
        prompts=prompts.texts,
        responses=["r"] * size,
        columns=prompts.columns,
        counted=[{}] * size,
    )


def expected_of(rollouts: Rollouts) -> dict[str, list[Any]]:
    """The file's columns, in the order in which the rows were drawn."""
    rows = [COLUMNS["prompt"].index(prompt) for prompt in rollouts.prompts]
    return {name: [column[row] for row in rows] for name, column in COLUMNS.items() if name != "prompt"}


def test_a_function_sees_the_files_values(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(NOTE.format(file=str(tmp_path / "seen")))
    rollouts = answered(read_questions(config_of(tmp_path, ROWS), "train", tokenizer()))
    scorer = FunctionScorer(FunctionReward(path=str(tmp_path / "reward.py")))
    scorer.score(rollouts)
    scorer.close()
    assert (tmp_path / "seen").read_text() == repr(expected_of(rollouts))


def test_a_service_sees_the_files_values(tmp_path: Path) -> None:
    rollouts = answered(read_questions(config_of(tmp_path, ROWS), "train", tokenizer()))
    with serving(lambda request: (200, {"scores": [0.0] * len(request["prompts"])})) as (service,):
        RemoteScorer(RemoteReward(type="remote", urls=[service.url])).score(rollouts)
    assert same(service.requests[0]["columns"], expected_of(rollouts))


def test_an_environment_sees_the_files_values(tmp_path: Path) -> None:
    (tmp_path / "env.py").write_text(NOTE.format(file=str(tmp_path / "seen")))
    tasks = read_tasks(config_of(tmp_path, ROWS), "train")
    player = Environments(FunctionEnvironment(path=str(tmp_path / "env.py"), max_tokens=64, timeout_s=20.0))
    try:
        for number, row in enumerate(ROWS):
            columns = tasks.pick([number], [0]).columns
            player.begin()
            player.ask(0, {name: column[0] for name, column in columns.items()}, 0, [], []).result()
            assert (tmp_path / "seen").read_text() == repr({name: row.get(name) for name in COLUMNS})
    finally:
        player.close()


def test_a_chat_reaches_a_function_as_it_is_in_the_file_and_the_model_as_text(tmp_path: Path) -> None:
    questions = read_questions(config_of(tmp_path, [{"messages": chat} for chat in CHATS]), "train", tokenizer())
    assert same(questions.columns["messages"], CHATS)
    assert questions.texts == ["<bos><user>what is a river<assistant>", "<bos><user>draw<assistant>"]


def test_an_environment_may_begin_with_a_chat_in_parts(tmp_path: Path) -> None:
    (tmp_path / "env.py").write_text(NOTE.format(file=str(tmp_path / "seen")))
    player = Environments(FunctionEnvironment(path=str(tmp_path / "env.py"), max_tokens=64, timeout_s=20.0))
    try:
        player.begin()
        said, *_ = player.ask(0, {"messages": CHATS[0]}, 0, [], []).result()
    finally:
        player.close()
    assert said == [{"role": "user", "content": "what is a river"}]


WHERE = Where("prompts.train.path=rows.jsonl", [("rows.jsonl", 1), ("rows.jsonl", 7)])


@pytest.mark.parametrize(("value", "said"), [(b"x", "bytes"), (float("nan"), "float"), ({"a": [float("inf")]}, "dict")])
def test_what_a_service_cannot_be_sent_is_refused_at_the_door(value: Any, said: str) -> None:
    data: dict[str, Any] = {
        "run_dir": "run",
        "steps": 1,
        "prompts": {"train": {"path": "rows.jsonl"}, "max_tokens": 8},
        "actor": {"model": {"path": "policy"}},
        "critic": {"initialise_from": "policy"},
        "reward": {"type": "remote", "urls": ["http://127.0.0.1:1"]},
        "rollout": {"prompts_per_step": 4, "max_response_tokens": 4},
    }
    columns = {"answer": ["a", "b"], "extra": [1, value]}
    there = r"prompts\.train\.path=rows\.jsonl, line 7: row 1"
    with pytest.raises(ConfigError, match=rf"{there} has {said} in the column `extra`, which reward"):
        check_sendable(validate(data), "train", columns, WHERE)
    check_sendable(validate({**data, "reward": {"type": "function", "path": "reward.py"}}), "train", columns, WHERE)
    check_sendable(validate(data), "train", {"answer": ["a", 2**70, None, {"b": [1.5]}]}, WHERE)
    prompts = Questions([[1], [2]], ["a", "b"], {**columns, "chosen": [b"x", b"y"]}, "", where=WHERE)
    if said == "bytes":  # NaN stands in JSON files as Python writes them
        with pytest.raises(ConfigError, match=rf"{there} has {said} in the column `extra`, which best-of-n"):
            check_kept_columns(prompts)
    prompts.columns["extra"] = ["\ud800", 1]
    with pytest.raises(ConfigError, match=r"row 0 has str in the column `extra`.*write such values as text"):
        check_kept_columns(prompts)
    prompts.columns["extra"] = [1, math.nan]
    check_kept_columns(prompts)
    theirs = {**data, "reward": {**data["reward"], "protocol": "openrlhf", "label": "gold"}}
    with pytest.raises(ConfigError, match=r"reward\.label=gold: prompts\.train has answer, and no such column"):
        check_sendable(validate(theirs), "train", {"answer": ["a"]}, WHERE)
