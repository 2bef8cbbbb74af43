"""A judge's answers on disk, by the hash of what was asked: nothing is asked or paid for twice.

    {"key": "5f0c…", "text": "B", "letters": [0.02, 0.9], "prompt_tokens": 120, "completion_tokens": 1, "cut": false}

Each answer is on the disk before the next one is taken. A line that a crash has cut is removed when the file is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.data.asking_budget import Spending, spent_on
from orchestrator.data.judge_prompts import JudgeAnswer
from orchestrator.errors import ConfigError
from roles.durable import sync_file, sync_folder


class AnswerFile:
    """The answers in one file, open for more."""

    def __init__(self, file: BinaryIO, answers: dict[str, JudgeAnswer]) -> None:
        self._file, self._answers = file, answers
        self.spent = sum(map(spent_on, answers.values()), start=Spending())
        """On all answers in the file."""

    def get(self, key: str) -> JudgeAnswer | None:
        """The answer to a question; None if it has not been answered."""
        return self._answers.get(key)

    def add(self, key: str, answer: JudgeAnswer) -> None:
        """Keep an answer; it is on the disk on return."""
        self._file.write(json.dumps({"key": key, **asdict(answer)}).encode() + b"\n")
        sync_file(self._file)
        self._answers[key] = answer
        self.spent += spent_on(answer)


@contextmanager
def open_answers(path: Path) -> Iterator[AnswerFile]:
    """Context with the answers in `path`, which is made if it is not there. ConfigError for a line that is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        answers = dict(_answer(path, *line) for line in enumerate(data[:whole].splitlines(), start=1))
        file.truncate(whole)
        sync_file(file)
        sync_folder(path.parent)
        yield AnswerFile(file, answers)


def _answer(path: Path, number: int, line: bytes) -> tuple[str, JudgeAnswer]:
    try:
        said: dict[str, Any] = json.loads(line)
        key, letters = said.pop("key"), said.pop("letters")
        return str(key), JudgeAnswer(letters=None if letters is None else (letters[0], letters[1]), **said)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(
            f"{path}: line {number} is no answer of a judge; remove the line, and its question is asked again"
        ) from None
