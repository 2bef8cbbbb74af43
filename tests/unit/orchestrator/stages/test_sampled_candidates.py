"""`tetrarch label` on prompts alone: a policy without engines samples responses, a judge on loopback compares them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from configs.tiny.inputs import tokenizer, write
from orchestrator.commands.app import app
from orchestrator.stages import asked_model, labelling
from roles.judge_engine import EngineAnswer, EngineQuestion
from tests.unit.orchestrator.stages.judge_server import in_letters, judging

WORDS = tokenizer()
PROMPTS = [{"prompt": f"q{n}"} for n in range(4)]


class Policy:
    """An engine; with another seed it says more."""

    def __init__(self) -> None:
        self.asked: list[EngineQuestion] = []

    def answers(self, share: list[EngineQuestion]) -> Iterator[EngineAnswer]:
        self.asked += share
        seeds = sorted({question.reply.seed or 0 for question in self.asked})
        for question in share:
            silent = WORDS.decode(question.token_ids) == "q3"
            text = "red" if silent else f" red {'x' * (1 + seeds.index(question.reply.seed or 0))}"
            yield EngineAnswer(question.row, WORDS(text, add_special_tokens=False)["input_ids"], {}, cut=silent)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write(folder)
    return folder


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Policy:
    engines = Policy()

    @contextmanager
    def started(config: Any, models: Any, tell: Any) -> Iterator[Policy]:
        yield engines

    monkeypatch.setattr(asked_model, "judge_engines", started)
    monkeypatch.setattr(labelling.ORDERS, "listen", lambda: None)
    return engines


def label(folder: Path, inputs: Path, url: str, *more: str, **section: Any) -> Result:
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    sampled = {"model": {"path": str(inputs / "policy")}, "responses": 3, "max_tokens": 60, "response_tokens": 20}
    said = {"output": str(folder / "out"), "data": {"path": str(folder / "prompts.jsonl")}}
    said |= {
        "judge": {"type": "endpoint", "url": url, "model": "m", "patience_s": 0.1},
        "candidates": sampled | section,
    }
    (folder / "label.yaml").write_text(yaml.safe_dump({"labelling": said, "model_cache": str(folder / "cache")}))
    return CliRunner().invoke(app, ["label", str(folder / "label.yaml"), *more])


def test_prompts_alone_become_pairs_and_nothing_is_sampled_twice(tmp_path: Path, inputs: Path, policy: Policy) -> None:
    with judging(in_letters) as judge:
        result = label(tmp_path, inputs, judge.url)
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
        assert [row["prompt"] for row in rows] == ["q0"] * 3 + ["q1"] * 3 + ["q2"] * 3
        assert {(row["chosen"], row["rejected"]) for row in rows} == {
            (" red xx", " red x"),
            (" red xxx", " red x"),
            (" red xxx", " red xx"),
        }
        (kept,) = map(json.loads, (tmp_path / "out/left-out.jsonl").read_text().splitlines())
        assert kept == {"prompt": "q3", "responses": ["red"], "reason": "1 different response in 3 samples"}
        assert "12 responses sampled, 3 of them cut" in result.output and "1 prompt whose responses" in result.output
        assert {question.reply.max_tokens for question in policy.asked} == {20} and len(policy.asked) == 12
        asked = len(judge.bodies)
        assert label(tmp_path, inputs, judge.url).exit_code == 0
        assert len(policy.asked) == 12 and len(judge.bodies) == asked
        assert label(tmp_path, inputs, judge.url, responses=4).exit_code == 0 and len(policy.asked) == 16
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["candidates"] == {"responses": 16, "cut": 4, "alike": 1}


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"responses": 1}, "labelling.candidates.responses=1, but a judge compares two or more"),
        ({"max_tokens": 20}, "labelling.candidates.max_tokens=20 leaves no room for a prompt"),
        ({"max_tokens": 512}, "labelling.candidates.max_tokens=512"),
        ({"model": {"path": "no/such"}}, "labelling.candidates.model.path=no/such"),
        ({"max_tokens": 21}, "a prompt too long for labelling.candidates.max_tokens"),
        ({"engine": {"block_size": 33}}, "labelling.candidates.engine.block_size=33"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    tmp_path: Path, inputs: Path, policy: Policy, section: dict[str, Any], part: str
) -> None:
    result = label(tmp_path, inputs, "http://127.0.0.1:9/v1/chat/completions", **section)
    assert result.exit_code == 2 and part in " ".join(result.output.split()), result.output
    assert policy.asked == []
