"""A judge's answers on disk, by the hash of what was asked: nothing is asked or paid for twice.

    {"key": "5f0c…", "text": "B", "letters": [0.02, 0.9], "prompt_tokens": 120, "completion_tokens": 1, "cut": false}
    {"key": "81d2…", "error": "engines fail with it"}

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

    def __init__(self, file: BinaryIO, answers: dict[str, JudgeAnswer], errors: dict[str, str]) -> None:
        self._file, self._answers = file, answers
        self.errors = errors
        """Question → why it is never asked again."""
        self.spent = sum(map(spent_on, answers.values()), start=Spending())
        """On all answers in the file."""

    def get(self, key: str) -> JudgeAnswer | None:
        """The answer to a question; None if it has not been answered."""
        return self._answers.get(key)

    def add(self, key: str, answer: JudgeAnswer) -> None:
        """Keep an answer; it is on the disk on return."""
        self._write({"key": key, **asdict(answer)})
        self._answers[key] = answer
        self.spent += spent_on(answer)

    def add_error(self, key: str, error: str) -> None:
        """Keep in mind that a question is not to be asked again; it is on the disk on return."""
        self._write({"key": key, "error": error})
        self.errors[key] = error

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")
        sync_file(self._file)


@contextmanager
def open_answers(path: Path) -> Iterator[AnswerFile]:
    """Context with the answers in `path`, which is made if it is not there. ConfigError for a line that is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        found = [_answer(path, *line) for line in enumerate(data[:whole].splitlines(), start=1)]
        file.truncate(whole)
        sync_file(file)
        sync_folder(path.parent)
        answers = {key: said for key, said in found if isinstance(said, JudgeAnswer)}
        yield AnswerFile(file, answers, {key: said for key, said in found if isinstance(said, str)})


def _answer(path: Path, number: int, line: bytes) -> tuple[str, JudgeAnswer | str]:
    """Key of the question, and the answer or the error."""
    try:
        said: dict[str, Any] = json.loads(line)
        key, error = said.pop("key"), said.pop("error", None)
        if error is not None:
            return str(key), str(error)
        letters = said.pop("letters")
        return str(key), JudgeAnswer(letters=None if letters is None else (letters[0], letters[1]), **said)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(
            f"{path}: line {number} is no answer of a judge; remove the line, and its question is asked again"
        ) from None
