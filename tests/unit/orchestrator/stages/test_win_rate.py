"""A win rate as the gold score: a judge on loopback compares responses with those of another run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checks.win_rate_inputs import check_opponent
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.loading import validate_root
from orchestrator.data.prompts import Questions
from orchestrator.data.row_files import Where
from orchestrator.errors import ConfigError, TetrarchError
from orchestrator.stages.win_rate import VERDICTS, Compare, comparing
from roles import http_service
from roles.batch import Rollouts
from tests.unit.orchestrator.fakes import prompts_of, rollouts_of
from tests.unit.orchestrator.stages.judge_server import JudgeServer, chat, in_letters, judging, text_of

CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "BACKOFF_S", 0.01)


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    with judging(in_letters) as server:
        yield server


def configured(folder: Path, url: str, rows: Any = None, **more: Any) -> EvaluationRun:
    rows = [{"prompt": "p", "completion": "four"}, {"prompt": CHAT, "completion": "to"}] if rows is None else rows
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asks = {"type": "endpoint", "url": url, "model": "m", "patience_s": 0.1, **more}
    said = {"type": "win_rate", "against": str(folder / "other.jsonl"), "asks": asks, "question": "Which is shorter?"}
    data = {
        "run_dir": str(folder / "run"),
        "actor": {"model": {"path": "m"}},
        "reward": {"type": "remote", "urls": ["http://127.0.0.1:1"]},
        "prompts": {"train": {"path": "rows.jsonl"}, "max_tokens": 8},
        "rollout": {"prompts_per_step": 1, "max_response_tokens": 8},
        "evaluation": {"judge": said},
    }
    return validate_root(EvaluationRun, data)


def compare_of(config: EvaluationRun) -> Compare:
    compare = comparing(config)
    assert compare is not None
    return compare


def answered(*responses: str) -> Rollouts:
    rollouts = rollouts_of(prompts_of(len(responses)), 0)
    rollouts.responses[:] = responses
    rollouts.columns["messages"] = [None] * (len(responses) - 1) + [CHAT]
    return rollouts


def test_the_judge_prefers_one_of_the_two_and_is_asked_once(tmp_path: Path, judge: JudgeServer) -> None:
    compare = compare_of(configured(tmp_path, judge.url))
    assert compare(answered("seven", "six", "too")) == [1.0, 0.0, 1.0]
    assert len(judge.bodies) == 6 and len({text_of(body) for body in judge.bodies}) == 6
    (shown, _) = sorted(text for body in judge.bodies if "too" in (text := text_of(body)))
    assert shown.startswith("Which is shorter?") and "hi" in shown and "\nto\n" in shown
    assert compare(answered("seven", "six", "too")) == [1.0, 0.0, 1.0] and len(judge.bodies) == 6
    assert (tmp_path / "run" / VERDICTS).read_text().count("\n") == 6


def test_a_judge_that_likes_a_position_or_answers_in_prose_decides_nothing(tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        text = text_of(body)
        return (400, b"too long") if "LONG" in text else chat("Both." if "odd" in text else "A")

    with judging(answer) as judge:
        found = compare_of(configured(tmp_path, judge.url))(answered("even", "odd", "LONG"))
    assert found == [0.5, None, None]


def test_a_judge_that_is_down_is_told_and_what_it_said_is_kept(tmp_path: Path) -> None:
    told = r"evaluation\.judge: the judge failed.*kept in"
    with (
        judging(lambda number, body: in_letters(number, body) if number < 2 else (500, b"broken")) as judge,
        pytest.raises(TetrarchError, match=told),
    ):
        compare_of(configured(tmp_path, judge.url, concurrency=1))(answered("seven", "six", "too"))
    assert (tmp_path / "run" / VERDICTS).read_text().count("\n") == 2


def heldout() -> Questions:
    return Questions([[1], [2]], ["p", "<hi>"], {"messages": [None, CHAT]}, "", where=Where("prompts.heldout.path=h"))


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([{"prompt": "p", "completion": "a"}], "has no response to the prompt of prompts.heldout.path=h: row 1"),
        ([{"prompt": "p", "response": "a"}], "lacks completion; it has prompt, response"),
        ([{"prompt": "p", "completion": 5}], "row 0 has no list of messages"),
    ],
)
def test_another_run_that_does_not_fit_is_refused(tmp_path: Path, rows: Any, part: str) -> None:
    config = configured(tmp_path, "http://127.0.0.1:1/v1/chat/completions", rows)
    with pytest.raises(ConfigError) as caught:
        check_opponent(config, heldout(), 2)
    assert f"evaluation.judge.against={tmp_path}/other.jsonl" in str(caught.value) and part in str(caught.value)


def test_what_fits_is_taken_and_what_is_missing_is_named(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/v1/chat/completions"
    check_opponent(configured(tmp_path, url), heldout(), 2)
    check_opponent(configured(tmp_path, url, [{"prompt": "p", "completion": ""}]), heldout(), 1)
    with pytest.raises(ConfigError, match=r"asks\.api_key_env=NO_SUCH_KEY: the variable is not set"):
        check_opponent(configured(tmp_path, url, api_key_env="NO_SUCH_KEY"), heldout(), 1)
    config = configured(tmp_path, url)
    (tmp_path / "other.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"evaluation\.judge\.against=.*other\.jsonl does not exist"):
        check_opponent(config, heldout(), 1)
