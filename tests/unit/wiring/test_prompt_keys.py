"""Keys of the data: which prompts the engine is asked, and which held-out ones are measured, by whom."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.prompts import is_held_out
from orchestrator.errors import ConfigError
from tests.unit.wiring.base import short_run
from tests.unit.wiring.stage import Seen

PROVES = (
    *(f"prompts.{part}.{key}" for part in ("train", "heldout", "heldout_sets") for key in ("path", "split", "limit")),
    "prompts.max_tokens",
    "prompts.column",
    "prompts.heldout_fraction",
    "prompts.tools",
    "ppo.dynamic_sampling.rounds",
    "prompts.too_long=*",
    "evaluation.every",
    "evaluation.decides",
    "evaluation.sampling.*",
    "evaluation.prompts",
    "evaluation.samples",
    "evaluation.responses_per_prompt",
    "evaluation.passes",
    "evaluation.by",
    "evaluation.judge<function>",
    "evaluation.judge<function>.path",
    "evaluation.judge<function>.name",
)

WHOLE_PASS = {"rollout.prompts_per_step": 9, "rollout.responses_per_prompt": 1}


def asked(folder: Path, changes: Mapping[str, Any]) -> list[list[int]]:
    """The prompts of a step that is a whole pass, sorted."""
    batch = short_run(folder, {**WHOLE_PASS, **changes}).llms[0].batches[0]
    return sorted(answer.prompt for answer in batch)


def words(first: int, rows: range = range(9)) -> list[list[int]]:
    """As `tiny.write` has written them."""
    return sorted([first + row] * (2 + row % 3) for row in rows)


def test_the_path_names_the_prompts(folder: Path) -> None:
    assert asked(folder, {}) == words(3)
    assert asked(folder, {"prompts.train.path": str(folder / "other.jsonl")}) == words(12)


@pytest.mark.parametrize("change", [{"prompts.train.limit": 3}, {"prompts.train.split": "train[:3]"}])
def test_limit_and_split_leave_the_first_rows(folder: Path, change: dict[str, Any]) -> None:
    assert asked(folder, {**change, "rollout.prompts_per_step": 3}) == words(3, range(3))


def test_what_becomes_of_long_prompts(folder: Path) -> None:
    """Rows 2, 5 and 8 have four tokens."""
    with pytest.raises(ConfigError, match=r"prompts.max_tokens=3"):
        asked(folder, {"prompts.max_tokens": 3, "prompts.too_long": "error"})
    short = [prompt for prompt in words(3) if len(prompt) <= 3]
    skipped = {"prompts.max_tokens": 3, "prompts.too_long": "skip", "rollout.prompts_per_step": 6}
    assert asked(folder, skipped) == short
    cut = {"prompts.max_tokens": 3, "prompts.too_long": "truncate"}
    assert asked(folder, cut) == sorted(prompt[:3] for prompt in words(3))


def test_the_column_is_the_prompt(folder: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat"
    shutil.copytree(folder / "policy", chat)
    (chat / "chat_template.jinja").write_text("w39 {% for m in messages %}{{ m['content'] }}{% endfor %} w38")
    row = {"prompt": "w5 w6", "messages": [{"role": "user", "content": "w7"}], "prompt_token_ids": [8, 9, 10]}
    file = tmp_path / "three.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(9)))
    given = {"prompts.train.path": str(file), "actor.model.path": str(chat)}
    for column, expected in (("prompt", [5, 6]), ("messages", [39, 7, 38]), ("prompt_token_ids", [8, 9, 10])):
        assert asked(folder, {**given, "prompts.column": column}) == [expected] * 9


def test_the_tools_are_those_of_the_column(folder: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat"
    shutil.copytree(folder / "policy", chat)
    template = (
        "{% for t in tools or [] %}{{ t['w'] }} {% endfor %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    (chat / "chat_template.jinja").write_text(template)
    row = {"messages": [{"role": "user", "content": "w7"}], "one": [{"w": "w5"}], "other": [{"w": "w6"}]}
    file = tmp_path / "tools.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(9)))
    given = {"prompts.train.path": str(file), "actor.model.path": str(chat)}
    for column, expected in ((None, [7]), ("one", [5, 7]), ("other", [6, 7])):
        assert asked(folder, {**given, "prompts.tools": column}) == [expected] * 9


def test_what_is_held_out_of_the_training_prompts_is_measured_and_not_trained_on(folder: Path) -> None:
    for fraction in (0.3, 0.6):
        split = {"prompts.heldout": None, "prompts.heldout_fraction": fraction, "evaluation": {"prompts": 9}}
        batches = short_run(folder, {**split, "rollout.prompts_per_step": 3}).llms[0].batches
        held, first = ([answer.prompt for answer in batch] for batch in batches[:2])
        out = [is_held_out(text, fraction) for text in TEXTS]
        assert held == [tokens for tokens, away in zip(TOKENS, out, strict=True) if away]
        assert all(prompt in TOKENS and prompt not in held for prompt in first)


TOKENS = [[3 + row] * (2 + row % 3) for row in range(9)]
TEXTS = [" ".join(f"w{token}" for token in tokens) for tokens in TOKENS]
HELDOUT = {"path": "heldout.jsonl"}
JUDGE = "def {name}(prompts, responses, *, response_token_ids, finished, columns): return [{value}] * len(prompts)\n"


def measured(folder: Path, changes: Mapping[str, Any]) -> Seen:
    heldout = {"prompts.heldout": {"path": str(folder / "heldout.jsonl")}, "evaluation": {"prompts": 4, "samples": 2}}
    return short_run(folder, {**heldout, **changes})


def test_the_heldout_prompts_are_measured_as_often_and_as_many_as_said(folder: Path) -> None:
    seen = measured(folder, {})
    assert [result.label for result in seen.report.evaluations] == ["before", "after"]
    assert {(result.prompts, len(result.samples)) for result in seen.report.evaluations} == {(4, 2)}
    assert [answer.prompt for answer in seen.llms[0].batches[0]] == [[20 + row] * (2 + row % 3) for row in range(4)]
    seen = measured(folder, {"evaluation": {"prompts": 3, "samples": 1, "every": 2}, "steps": 5})
    assert [result.step for result in seen.report.evaluations] == [0, 2, 4, 5]
    assert {(result.prompts, len(result.samples)) for result in seen.report.evaluations} == {(3, 1)}
    assert {len(samples) for samples in seen.report.samples} == {1}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompts.heldout.path": "other.jsonl"}, [[12] * 2, [13] * 3, [14] * 4, [15] * 2]),
        ({"prompts.heldout.limit": 2}, [[20] * 2, [21] * 3]),
        ({"prompts.heldout.split": "train[1:3]"}, [[21] * 3, [22] * 4]),
    ],
)
def test_which_prompts_are_held_out(folder: Path, change: dict[str, Any], expected: list[list[int]]) -> None:
    changes = {key: str(folder / value) if key.endswith("path") else value for key, value in change.items()}
    seen = measured(folder, changes)
    assert [answer.prompt for answer in seen.llms[0].batches[0]] == expected


def test_each_named_set_is_measured_and_one_of_them_decides(folder: Path) -> None:
    def asked_of(sets: dict[str, Any], **more: Any) -> tuple[Seen, list[list[list[int]]]]:
        seen = measured(folder, {"prompts.heldout_sets": sets, "evaluation": {"prompts": 4, "samples": 1, **more}})
        return seen, [[answer.prompt for answer in batch] for batch in seen.llms[0].batches]

    other = {"path": str(folder / "other.jsonl")}
    plain, few, part = [[20] * 2, [21] * 3, [22] * 4, [23] * 2], [[12] * 2, [13] * 3], [[14] * 4, [15] * 2]
    sets = {"few": {**other, "limit": 2}, "part": {**other, "split": "train[2:4]"}}
    seen, batches = asked_of(sets)
    assert batches[:3] == [few, part, plain], "the one that decides is the last"
    assert [(one.label, one.name, one.prompts, one.decides) for one in seen.report.evaluations[:3]] == [
        ("before", "few", 2, False),
        ("before", "part", 2, False),
        ("before", "", 4, True),
    ]
    assert [one.name for one in seen.report.evaluations[3:]] == ["few", "part", ""]
    seen, batches = asked_of(sets, decides="few")
    assert batches[:3] == [plain, part, few]
    assert [one.name for one in seen.report.evaluations if one.decides] == ["few", "few"]


SAMPLED = {"temperature": 1.3, "top_p": 0.8, "top_k": 5, "min_p": 0.1}


def test_evaluations_are_sampled_as_they_say_and_training_as_the_rollout(folder: Path) -> None:
    for name, value in SAMPLED.items():
        said = {"temperature": 0.5, name: value}
        seen = measured(folder, {"evaluation": {"prompts": 4, "sampling": said}})
        before, training, after = seen.llms[0].batches
        assert {getattr(answer.params, name) for answer in (*before, *after)} == {value}
        assert {(answer.params.temperature, answer.params.top_p, answer.params.top_k) for answer in training} == {
            (0.7, 1.0, 0)
        }
        assert {answer.params.seed for answer in before} == {answer.params.seed for answer in after} != {None}
        assert [result.kl for result in seen.report.evaluations] == [None, None]
    greedy = measured(folder, {"evaluation": {"prompts": 4, "sampling": {"temperature": 0}}})
    before, training, _ = greedy.llms[0].batches
    assert {(answer.params.temperature, answer.params.seed) for answer in before} == {(0.0, None)}
    assert {answer.params.temperature for answer in training} == {0.7}
    assert greedy.report.steps[0]["objective/kl"] == measured(folder, {}).report.steps[0]["objective/kl"]


def test_the_judge_is_the_one_that_is_named(folder: Path, tmp_path: Path) -> None:
    for file, name, value in (("a.py", "score", 1.5), ("a.py", "stern", -2.0), ("b.py", "score", 4.0)):
        (tmp_path / "a.py").write_text(JUDGE.format(name="score", value=1.5) + JUDGE.format(name="stern", value=-2.0))
        (tmp_path / "b.py").write_text(JUDGE.format(name="score", value=4.0))
        judge = {"type": "function", "path": str(tmp_path / file), "name": name}
        seen = measured(folder, {"evaluation.judge": judge})
        assert [result.gold.mean for result in seen.report.evaluations] == [value, value]
        assert seen.report.steps[0]["score/mean"] not in (1.5, -2.0, 4.0)


def test_prompts_are_drawn_until_there_is_a_spread_or_the_rounds_are_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "same.py").write_text(JUDGE.format(name="score", value=1.0))
    same = {"reward": {"type": "function", "path": str(tmp_path / "same.py")}, "critic.model": None, "critic": {}}
    grpo = {"ppo.advantage": {"type": "grpo"}, "ppo.value": {}, "rollout.responses_per_prompt": 2}
    for rounds in (None, 2, 3):
        sampling = {"ppo.dynamic_sampling": rounds and {"rounds": rounds}}
        seen = short_run(folder, {**grpo, **same, **sampling})
        assert len(seen.llms[0].batches) == len(seen.report.steps) * (rounds or 1)
        assert [step.get("sampling/rounds") for step in seen.report.steps] == [rounds] * len(seen.report.steps)


def test_how_often_a_heldout_prompt_is_answered_and_what_is_told_of_it(folder: Path, tmp_path: Path) -> None:
    head = "def score(prompts, responses, *, response_token_ids, finished, columns):"
    (tmp_path / "judge.py").write_text(f"{head} return [float(value) for value in columns['id']]\n")
    judged = {"prompts": 4, "samples": 2, "judge": {"type": "function", "path": str(tmp_path / "judge.py")}}
    plain = measured(folder, {"evaluation": judged})
    assert not plain.report.evaluations[0].passed and not plain.report.evaluations[0].by
    several = {**judged, "responses_per_prompt": 2, "passes": 2.0, "by": "id"}
    seen = measured(folder, {"evaluation": several})
    (first, second), before = (seen.report.evaluations, plain.llms[0].batches[0])
    asked = seen.llms[0].batches[0]
    assert [answer.prompt for answer in asked[::2]] == [answer.prompt for answer in before]
    assert [answer.prompt for answer in asked[1::2]] == [answer.prompt for answer in before]
    seeds = [answer.params.seed for answer in asked]
    assert seeds[::2] == [answer.params.seed for answer in before] and len({*seeds}) == 8
    assert (first.prompts, first.gold_values, first.passed["1"].mean) == (4, [0.0, 1.0, 2.0, 3.0], 0.5)
    assert {name: one.mean for name, one in second.by.items()} == {"0": 0.0, "1": 1.0, "2": 2.0, "3": 3.0}
    stricter = measured(folder, {"evaluation": {**several, "passes": 3.0}}).report.evaluations[0]
    assert stricter.passed["1"].mean == 0.25
