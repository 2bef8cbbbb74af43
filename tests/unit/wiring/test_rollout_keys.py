"""Keys of sampling: what vLLM's engine is built with and asked for, and what an environment makes of its answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.wiring.base import short_run
from tests.unit.wiring.engines import FakeLLM
from tests.unit.wiring.stage import Seen

PROVES = (
    "seed",
    "dtype=*",
    "rollout.temperature",
    "rollout.top_[pk]",
    "rollout.min_p",
    "rollout.stop",
    "rollout.stop_token_ids",
    "rollout.m??_response_tokens",
    "rollout.engine.dtype=*",
    "rollout.engine.max_sequences",
    "rollout.engine.block_size",
    "rollout.engine.enforce_eager",
    "rollout.engine.prefix_caching",
    "rollout.engine.kv_cache_gib",
    "prompts.max_tokens",
    "environment.path",
    "environment.name",
    "environment.max_*",
    "environment.cut_turn=*",
    "reward<environment>",
)

CORRECTED = {"ppo.policy.importance": {"type": "truncated", "cap": 2.0}}


ASKED = {
    "rollout.temperature": ("temperature", 0.7, 1.3),
    "rollout.top_p": ("top_p", 0.9, 0.8),
    "rollout.top_k": ("top_k", 0, 5),
    "rollout.min_p": ("min_p", 0.0, 0.1),
    "rollout.max_response_tokens": ("max_tokens", 7, 4),
    "rollout.min_response_tokens": ("min_tokens", 0, 2),
}
"""Key → name in vLLM's SamplingParams, and two values."""


@pytest.mark.parametrize("key", ASKED)
def test_a_key_of_the_sampling_reaches_every_request(key: str, folder: Path) -> None:
    name, *values = ASKED[key]
    for value in values:
        (batch,) = short_run(folder, {**CORRECTED, key: value}).llms[0].batches
        assert len(batch) == 6 and {getattr(answer.params, name) for answer in batch} == {value}


def test_what_ends_a_response_is_asked_of_every_request(folder: Path) -> None:
    for stop, tokens in ([], []), (["w5 w6", "w7"], [17]):
        llm = short_run(folder, {"rollout.stop": stop, "rollout.stop_token_ids": tokens}).llms[0]
        asked = [answer.params for batch in llm.batches for answer in batch]
        assert (
            [one.stop for one in asked] == [stop] * 6 == [one.stop for one in asked if one.include_stop_str_in_output]
        )
        assert {one.detokenize for one in asked} == {bool(stop)} == {not llm.arguments.skip_tokenizer_init}
        assert all((17 in one.stop_token_ids) == bool(tokens) and 2 in one.stop_token_ids for one in asked)


BUILT = {
    "rollout.engine.dtype": ("dtype", "bfloat16", "float32", {"dtype": "float32"}),
    "rollout.engine.dtype=null": ("dtype", "bfloat16", "bfloat16", {"dtype": "bfloat16", "rollout.engine.dtype": None}),
    "rollout.engine.max_sequences": ("max_num_seqs", 11, 12, {}),
    "rollout.engine.block_size": ("block_size", 64, 96, {}),
    "rollout.engine.enforce_eager": ("enforce_eager", True, False, {}),
    "rollout.engine.prefix_caching": ("enable_prefix_caching", True, False, {}),
    "rollout.engine.kv_cache_gib": ("kv_cache_memory_bytes", 2, 3, {}),
    "seed": ("seed", 5, 6, {}),
    "rollout.max_response_tokens": ("max_model_len", 4, 5, {}),
    "prompts.max_tokens": ("max_model_len", 8, 9, {}),
}
"""Key → name in vLLM's EngineArgs, two values, and what else is said."""


@pytest.mark.parametrize("key", BUILT)
def test_a_key_of_the_engine_reaches_vllm(key: str, folder: Path) -> None:
    name, first, second, given = BUILT[key]
    for value in (first, second):
        changes = given if key.endswith("=null") else {**given, key: value}
        arguments = short_run(folder, changes).llms[0].arguments
        expected = {
            "kv_cache_memory_bytes": value * 2**30 if name == "kv_cache_memory_bytes" else None,
            "max_model_len": value + (6 if key.startswith("rollout") else 7) if name == "max_model_len" else None,
        }.get(name, value)
        assert getattr(arguments, name) == expected


def test_the_dtype_is_that_of_every_model(folder: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        seen = short_run(folder, {"dtype": dtype})
        for role in ("actor", "critic", "reference", "reward"):
            assert {tensor.dtype for tensor in seen.groups[role].parameters.values()} == {getattr(torch, dtype)}
            settings = seen.groups[role].members[0]._model._deepspeed.settings
            assert ("bf16" in settings) == (dtype == "bfloat16")
        assert seen.llms[0].arguments.dtype == dtype


def test_the_seed_is_that_of_prompts_and_samples(folder: Path) -> None:
    asked = []
    for seed in (3, 3, 4):
        seen = short_run(folder, {"seed": seed})
        asked.append([(answer.prompt, answer.params.seed) for batch in seen.llms[0].batches for answer in batch])
    assert asked[0] == asked[1]
    assert len({seed for _, seed in asked[0]}) == 6
    assert {seed for _, seed in asked[0]}.isdisjoint(seed for _, seed in asked[2])
    assert [prompt for prompt, _ in asked[0]] != [prompt for prompt, _ in asked[2]]


ENVIRONMENT = """
class Env:
    pays = 0.25
    def reset(self, columns):
        self.turns = 0
        return [{"role": "user", "content": f"w{3 + columns['id']} w30"}]
    def step(self, response):
        self.turns += 1
        return ([{"role": "user", "content": "w31 w32"}] if self.turns < 5 else None), self.pays
class Other(Env):
    pays = 0.75
"""


@pytest.fixture(autouse=True)
def cut_by_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations arrive in any order: whose answers are cut must not depend on it."""
    monkeypatch.setattr(FakeLLM, "cuts", staticmethod(lambda prompt, place: prompt[0] % 3 == 2))


def talked(folder: Path, tmp_path: Path, **changes: Any) -> tuple[dict[int, int], Seen]:
    """Task (the first token of its conversation) → responses in it; and the run. Each third task is always cut."""
    file = tmp_path / "env.py"
    file.write_text(ENVIRONMENT)
    environment = {"path": str(file), "name": "Env", "max_turns": 3, "max_tokens": 60, "cut_turn": "end", **changes}
    all_tasks = {"rollout.prompts_per_step": 9, "rollout.responses_per_prompt": 1}
    seen = short_run(folder, {**all_tasks, "environment": environment, "reward": {"type": "environment"}})
    return dict(Counter(answer.prompt[0] for batch in seen.llms[0].batches for answer in batch)), seen


def paid(seen: Seen) -> float:
    return seen.report.steps[0]["score/mean"]


def test_the_keys_of_the_environment_decide_how_a_conversation_goes(folder: Path, tmp_path: Path) -> None:
    """Tasks 5, 8 and 11 are cut by the engine, and end there (`end`) or do not; each response is paid 0.25."""
    turns, seen = talked(folder, tmp_path)
    assert turns == {task: 1 if task in (5, 8, 11) else 3 for task in range(3, 12)}
    assert paid(seen) == pytest.approx(0.25 * (6 * 3 + 3 * 1) / 9)
    assert {tuple(answer.prompt[:2]) for batch in seen.llms[0].batches for answer in batch} == {
        (task, 30) for task in range(3, 12)
    }, "the environment speaks first"
    turns, _ = talked(folder, tmp_path, max_turns=4)
    assert max(turns.values()) == 4
    through, seen = talked(folder, tmp_path, cut_turn="continue")
    assert set(through.values()) == {3} and paid(seen) == pytest.approx(0.75)
    short, seen = talked(folder, tmp_path, cut_turn="continue", max_tokens=14)
    answers = [answer for batch in seen.llms[0].batches for answer in batch]
    assert min(short.values()) < 3 and all(len(answer.prompt) + answer.params.max_tokens <= 14 for answer in answers)
    _, seen = talked(folder, tmp_path, cut_turn="continue", name="Other")
    assert paid(seen) == pytest.approx(0.75 * 3)
    other = tmp_path / "other.py"
    other.write_text(ENVIRONMENT.replace("0.25", "0.5"))
    _, seen = talked(folder, tmp_path, cut_turn="continue", path=str(other))
    assert paid(seen) == pytest.approx(1.5)
