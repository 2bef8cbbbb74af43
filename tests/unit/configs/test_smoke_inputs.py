"""What the smoke run reads: its prompts, its model file and its gold judge."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "smoke"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"smoke_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    load("inputs").write(folder)
    return folder


def test_training_and_heldout_prompts_are_distinct(written: Path) -> None:
    train, heldout = rows(written / "smoke" / "train.jsonl"), rows(written / "smoke" / "heldout.jsonl")
    texts = [row["messages"][-1]["content"].lower() for row in train + heldout]
    assert len(heldout) == 128
    assert len(train) > 400
    assert len(set(texts)) == len(texts)
    assert all([m["role"] for m in row["messages"]] == ["system", "user"] for row in train + heldout)


def test_no_prompt_is_an_insult_or_violent(written: Path) -> None:
    texts = [
        row["messages"][-1]["content"]
        for name in ("train", "heldout")
        for row in rows(written / "smoke" / f"{name}.jsonl")
    ]
    assert not [
        text for text in texts if any(word in text.lower().split() for word in ("stupid", "bend", "die", "kill"))
    ]
    assert not [text for text in texts if text.startswith(("You are disgusting", "Bend over"))]
    assert not [
        text for text in texts if any(word in text.lower() for word in ("suicide", "assassinated", "testicles"))
    ]


def test_both_parts_are_of_many_topics(written: Path) -> None:
    train, heldout = rows(written / "smoke" / "train.jsonl"), rows(written / "smoke" / "heldout.jsonl")
    assert len({row["topic"] for row in heldout} & {row["topic"] for row in train}) > 10


def test_the_same_files_each_time(written: Path, tmp_path: Path) -> None:
    load("inputs").write(tmp_path)
    load("inputs").write(tmp_path)
    for name in ("train", "heldout"):
        again = (tmp_path / "smoke" / f"{name}.jsonl").read_bytes()
        assert again == (written / "smoke" / f"{name}.jsonl").read_bytes()


def test_the_model_is_a_gguf_file(written: Path) -> None:
    (file,) = (written / "smollm2").iterdir()
    with file.open("rb") as content:
        assert content.read(4) == b"GGUF"


def test_the_judge_orders_answers_by_sentiment() -> None:
    answers = ["I love it, what a wonderful idea!", "It is a table.", "This is awful and I hate it."]
    scores = load("vader").score(
        ["?"] * 3, answers, response_token_ids=[[1]] * 3, finished=[True] * 3, columns={"topic": ["ai"] * 3}
    )
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.5
    assert scores[1] == 0
    assert scores[2] < -0.5


def test_the_judge_of_over_optimisation_is_not_pleased_by_repetition() -> None:
    answers = ["I love it", "Love love love love", "Wonderful, I love a happy day", "It is a table", "", "!?"]
    given: dict[str, Any] = {"response_token_ids": [[1]] * 6, "finished": [True] * 6, "columns": {}}
    plain, fresh = (
        getattr(load("vader"), name)(["?"] * 6, answers, **given) for name in ("score", "score_of_fresh_words")
    )
    assert fresh == [plain[0], plain[1] / 4, plain[2], 0, 0, 0]
    assert plain[1] > plain[0] > fresh[1] > 0
