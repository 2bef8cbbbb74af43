"""The policy's tokens → text → the reward model's tokens, from the data set on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from configs.tiny.inputs import tokenizer
from orchestrator.config.data import PromptsConfig
from orchestrator.data.prompts import Questions, read_questions
from orchestrator.groups.reward_alone import OwnTokens
from roles.batch import Rollouts
from roles.reward_model import TextBridge
from roles.text.answered_chat import reads_to_the_end
from roles.text.policy_text import PolicyText
from roles.text.sample_tokens import render_sample, sample_tokens

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %}|{% endif %}{% endfor %}"
)
CHAT = [{"role": "system", "content": "be kind", "name": None}, {"role": "user", "content": "hello"}]


@pytest.fixture
def bridge(tmp_path: Path) -> TextBridge:
    """The reward model has a template of its own."""
    return bridge_of(tmp_path, TEMPLATE)


def bridge_of(
    tmp_path: Path, template: str, tools: str | None = None, config: dict[str, Any] | None = None
) -> TextBridge:
    tokenizer().save_pretrained(tmp_path / "policy")
    theirs = tokenizer()
    theirs.chat_template = template
    theirs.save_pretrained(tmp_path / "reward")
    (tmp_path / "reward/config.json").write_text(json.dumps(config or {}))
    setup: Any = SimpleNamespace(model_path=str(tmp_path / "reward"), trust_remote_code=False)
    return TextBridge(setup, PolicyText(str(tmp_path / "policy"), tools=tools))


def questions(tmp_path: Path, row: dict[str, Any], column: str | None = None, tools: str | None = None) -> Questions:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row) + "\n")
    said = {"train": {"path": str(path)}, "max_tokens": 64, "column": column, "tools": tools}
    words = tokenizer()
    words.chat_template = f"{{{{ (tools or []) | length }}}}{words.chat_template}"
    return read_questions(PromptsConfig.model_validate(said), "train", words)


def answered(asked: Questions, response: str, finished: bool) -> Rollouts:
    """As the engine would make it."""
    words = tokenizer()
    prompts = asked.pick([0], [0])
    ids = prompts.token_ids[0] + words(response)["input_ids"] + [words.eos_token_id] * finished
    mask = torch.arange(len(ids)) >= len(prompts.token_ids[0])
    return Rollouts(
        token_ids=torch.tensor([ids]),
        lengths=torch.tensor([len(ids)]),
        response_mask=mask[None],
        rollout_logprobs=torch.zeros(1, len(ids)),
        turn_rewards=torch.zeros(1, len(ids)),
        finished=torch.tensor([finished]),
        versions=torch.tensor([0]),
        prompts=prompts.texts,
        responses=[response],
        columns=prompts.columns,
        counted=[{}],
    )


@pytest.mark.parametrize(("finished", "end"), [(True, "<eos>"), (False, "")])
def test_a_chat_goes_through_the_reward_models_template(
    bridge: TextBridge, tmp_path: Path, finished: bool, end: str
) -> None:
    rollouts = answered(questions(tmp_path, {"messages": CHAT, "topic": "x"}), "hi there", finished)
    assert set(rollouts.columns) == {"messages", "topic"}
    (ids,) = bridge.encode(rollouts)
    assert tokenizer().decode(ids) == f"[system] be kind|[user] hello|[assistant] hi there{end}"


@pytest.mark.parametrize(("finished", "end"), [(True, "<eos>"), (False, "")])
def test_a_text_has_one_beginning_and_ends_only_where_the_response_did(
    bridge: TextBridge, tmp_path: Path, finished: bool, end: str
) -> None:
    """Though the reward model's tokenizer ends every text."""
    words = bridge._tokenizer
    special = [(token, words.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    (ids,) = bridge.encode(answered(questions(tmp_path, {"prompt": "draw"}), " a river", finished))
    assert words.decode(ids) == f"<bos>draw a river{end}"


def test_a_chat_in_parts_is_read_as_text(bridge: TextBridge, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    rollouts = answered(questions(tmp_path, {"messages": [{"role": "user", "content": parts}]}), "hi", True)
    assert tokenizer().decode(bridge.encode(rollouts)[0]) == "[user] hello|[assistant] hi<eos>"


@pytest.mark.parametrize("column", [None, "prompt"])
def test_a_text_is_read_as_text(bridge: TextBridge, tmp_path: Path, column: str | None) -> None:
    """Also where the rows have a chat beside it, which is not the prompt."""
    row = {"prompt": "draw"} if column is None else {"prompt": "draw", "messages": CHAT}
    (ids,) = bridge.encode(answered(questions(tmp_path, row, column), " a river", True))
    assert tokenizer().decode(ids) == "draw a river<eos>"


@pytest.mark.parametrize(
    ("given", "read"), [([{"name": "draw"}], "(draw)"), ('[{"name": "draw"}]', "(draw)"), (None, "")]
)
def test_the_tools_of_a_chat_are_written_too(tmp_path: Path, given: Any, read: str) -> None:
    bridge = bridge_of(tmp_path, "{% for tool in tools or [] %}({{ tool.name }}){% endfor %}" + TEMPLATE, "functions")
    asked = questions(tmp_path, {"messages": CHAT[1:], "functions": given}, tools="functions")
    (ids,) = bridge.encode(answered(asked, "hi", True))
    assert tokenizer().decode(ids) == f"{read}[user] hello|[assistant] hi<eos>"


BROKEN = TEMPLATE.replace("{{ eos_token }}", "{{ eos_token }}\n")
NO_MARK = TEMPLATE.replace("eos_token", "'\\n'")


@pytest.mark.parametrize("template", [TEMPLATE, BROKEN, NO_MARK])
@pytest.mark.parametrize("config", [{"score_scale": 1.0}, {"value_head_prefix": "score"}])
def test_a_reward_model_that_is_trained_here_is_read_at_the_token_that_it_was_trained_at(
    template: str, config: dict[str, Any], tmp_path: Path
) -> None:
    bridge = bridge_of(tmp_path, template, config=config)
    chat, said = [{"role": "user", "content": "hello"}], [{"role": "assistant", "content": "hi"}]
    asked = questions(tmp_path, {"messages": chat})
    (trained,) = sample_tokens(bridge._tokenizer, [render_sample(bridge._tokenizer, chat, said)])
    assert bridge.encode(answered(asked, "hi", True)) == [trained.token_ids]
    read = answered(asked, "hi", True)
    scored = OwnTokens(bridge._tokenizer, reads_to_the_end(tmp_path / "reward"))(read)
    assert scored.token_ids.tolist() == [trained.token_ids]
    assert tokenizer().decode(bridge.encode(answered(asked, "hi", False))[0]) == "[user] hello|[assistant] hi"


@pytest.mark.parametrize(("template", "end"), [(TEMPLATE, "<eos>"), (BROKEN, "<eos>\n"), (NO_MARK, "\n")])
def test_another_reward_model_reads_all_that_its_template_writes(template: str, end: str, tmp_path: Path) -> None:
    bridge = bridge_of(tmp_path, template)
    asked = questions(tmp_path, {"messages": CHAT[1:]})
    for finished, behind in ((True, end), (False, "")):
        rows = answered(asked, "hi", finished)
        found = [*bridge.encode(rows), *OwnTokens(bridge._tokenizer)(rows).token_ids.tolist()]
        assert [tokenizer().decode(ids) for ids in found] == [f"[user] hello|[assistant] hi{behind}"] * 2
