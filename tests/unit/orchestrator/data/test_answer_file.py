"""Answers on disk: kept one by one, whole after a crash, and never asked for twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.data.answer_file import open_answers
from orchestrator.data.asking_budget import Spending
from orchestrator.data.judge_prompts import JudgeAnswer
from orchestrator.errors import ConfigError

FIRST = JudgeAnswer("A", (0.75, 0.1), 10, 1)
SECOND = JudgeAnswer("prose \ud800 ü\n", None, 20, 5, cut=True)


def test_answers_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "answers.jsonl"
    with open_answers(path) as file:
        assert file.get("1") is None and file.spent == Spending()
        file.add("1", FIRST)
        assert path.read_bytes().endswith(b"\n"), "on the disk at once"
        file.add("2", SECOND)
    with open_answers(path) as file:
        assert (file.get("1"), file.get("2"), file.spent) == (FIRST, SECOND, Spending(2, 30, 6))
        file.add("3", FIRST)
    assert len(path.read_text().splitlines()) == 3


def test_a_question_that_cannot_be_answered_is_remembered_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path) as file:
        file.add_error("2", "engines fail with it")
        file.add("1", FIRST)
    with open_answers(path) as file:
        assert file.errors == {"2": "engines fail with it"} and file.get("2") is None
        assert (file.get("1"), file.spent.requests) == (FIRST, 1), "nothing is spent on it"


@pytest.mark.parametrize("kept", range(1, 40, 7))
def test_a_line_that_a_crash_has_cut_is_removed(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path) as file:
        file.add("1", FIRST)
        size = path.stat().st_size
        file.add("2", SECOND)
    os.truncate(path, size + kept)
    with open_answers(path) as file:
        assert (file.get("1"), file.get("2")) == (FIRST, None)
        file.add("2", SECOND)
    with open_answers(path) as file:
        assert (file.get("1"), file.get("2")) == (FIRST, SECOND)


def test_each_answer_is_waited_for_until_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with open_answers(tmp_path / "answers.jsonl") as file:
        monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
        file.add("1", FIRST)
        file.add("2", SECOND)
    assert len(synced) == 2 and 0 < synced[0] < synced[1] == (tmp_path / "answers.jsonl").stat().st_size


@pytest.mark.parametrize("line", ["{", "[]", '"a"', '{"key": "1"}', '{"key": "1", "letters": [1], "text": "A"}'])
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path) as file:
        file.add("1", FIRST)
    with path.open("a") as more:
        more.write(line + "\n")
    with pytest.raises(ConfigError, match="line 2 is no answer of a judge"), open_answers(path):
        pass
