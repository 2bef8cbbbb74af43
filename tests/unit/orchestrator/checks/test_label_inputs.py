"""The door of `tetrarch label`: what is refused before anything is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.tiny.inputs import write
from orchestrator.checks.label_inputs import prepare_label, read_constitution
from orchestrator.config.labelling import LabellingRun
from orchestrator.config.loading import validate_root
from orchestrator.errors import ConfigError

Checked = Callable[..., Any]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write(folder)
    return folder


@pytest.fixture
def checked(inputs: Path, tmp_path: Path) -> Checked:
    """Check a configuration that differs from a sound one in some keys of `labelling`."""

    def run(**changes: Any) -> Any:
        judge = {"type": "model", "model": {"path": str(inputs / "policy")}, "max_tokens": 256}
        judge["engine"] = {"kv_cache_gib": 0.01}
        data = {"path": str(inputs / "pairs.jsonl"), "limit": 3}
        labelling = {"output": str(tmp_path / "out"), "data": data, "judge": judge, **changes}
        said = {"labelling": labelling, "model_cache": str(tmp_path / "cache")}
        return prepare_label(validate_root(LabellingRun, said))

    return run


def refused(checked: Checked, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        checked(**changes)
    return str(caught.value)


def endpoint(**changes: Any) -> dict[str, Any]:
    return {"type": "endpoint", "url": "http://h/v1/completions", "model": "m", **changes}


def test_a_sound_configuration_gives_what_is_asked_about(checked: Checked) -> None:
    found = checked()
    assert len(found.records) == 3 and all(len(record.responses) == 2 for record in found.records)
    assert found.constitution is None and found.api_key is None
    assert checked(judge=endpoint()).summary == "labelling.data: 3 rows, 3 used, 0 left out"


def test_the_key_comes_from_the_environment(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " sk-1 \n")
    assert checked(judge=endpoint(api_key_env="MY_KEY")).api_key == "sk-1"
    monkeypatch.setenv("MY_KEY", "sk-\u20ac1")
    told = refused(checked, judge=endpoint(api_key_env="MY_KEY"))
    assert "labelling.judge.api_key_env=MY_KEY" in told and "sk-" not in told
    assert "is not set; export it" in refused(checked, judge=endpoint(api_key_env="NO_SUCH_KEY"))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"judge": endpoint(url="http://h/v1")}, "url must end in /chat/completions or /completions"),
        ({"judge": endpoint(url="http://h:x/completions")}, "must be an address such as"),
        ({"judge": endpoint(), "budget": {"money": 5}}, "labelling.budget.money=5.0, but labelling.judge.prices=null"),
        ({"budget": {"money": 5}}, "labelling.judge.type=model has no prices"),
        ({"judge": endpoint(top_logprobs=21)}, "top_logprobs=21"),
        ({"minimum_probability": 0.4}, "minimum_probability=0.4"),
        ({"data": {"path": "no/such.jsonl"}}, "labelling.data.path=no/such.jsonl does not exist"),
    ],
)
def test_wrong_values_are_named(checked: Checked, changes: dict[str, Any], part: str) -> None:
    assert part in refused(checked, **changes)


def test_the_model_must_be_able_to_judge(checked: Checked, inputs: Path, tmp_path: Path) -> None:
    model, engine = {"path": str(inputs / "policy")}, {"kv_cache_gib": 0.01}
    judge = {"type": "model", "model": model, "engine": engine, "max_tokens": 512}
    assert "labelling.judge.max_tokens=512" in refused(checked, judge=judge)
    tight = {**judge, "max_tokens": 256, "engine": {"kv_cache_gib": 1e-6}}
    assert "labelling.judge.engine.kv_cache_gib=1e-06" in refused(checked, judge=tight)
    blocks = {**judge, "max_tokens": 256, "engine": {**engine, "block_size": 33}}
    assert "labelling.judge.engine.block_size=33 is not a multiple of 32" in refused(checked, judge=blocks)
    (tmp_path / "rules.yaml").write_text("principles: [{critique: a, revision: b}]\n")
    long = {"judge": {**judge, "max_tokens": 64}, "constitution": str(tmp_path / "rules.yaml"), "reply_tokens": 64}
    assert "leaves no room for a question" in refused(checked, **long)
    assert "labelling.judge.model.path=no/such" in refused(checked, judge={**judge, "model": {"path": "no/such"}})


def test_a_judge_whose_tokenizer_cannot_answer_is_refused(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.data.judge_prompts.letter_tokens", lambda tokenizer, letter: [])
    assert "its tokenizer has no token for A and B" in refused(checked)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("principles: [{critique: a}]", "principles[0].revision: missing"),
        ("principles: []", "principles"),
        ("rules: []", "principles: missing"),
        ("principles: [{critique: a, revision: b, name: c}]", "name: unknown key"),
        ("- a", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("", "must be a mapping"),
    ],
)
def test_a_constitution_that_cannot_be_read_is_named(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_constitution(file)
    assert f"labelling.constitution={file}" in str(caught.value) and part in str(caught.value)


def test_a_constitution_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*No such file"):
        read_constitution(tmp_path / "none.yaml")


def test_responses_of_several_messages_are_not_revised(checked: Checked, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("principles: [{critique: a, revision: b}]\n")
    turns = [{"role": "assistant", "content": text} for text in "ab"]
    rows: list[dict[str, Any]] = [{"prompt": "q", "responses": [turns]}, {"prompt": "q", "responses": ["a"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = str(tmp_path / "rules.yaml")
    found = checked(data={"path": str(tmp_path / "rows.jsonl")}, constitution=rules, judge=endpoint())
    assert len(found.records) == 1 and "1 left out: a response of several messages" in found.summary
