"""A vLLM engine on a tiny random model: what it samples, and what it says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from roles.batch import Prompts, Rollouts
from roles.config.environment import FunctionEnvironment
from roles.errors import EnvironmentFailed, RolloutError
from roles.rollout import RolloutEngine
from tests.integration.engines import ENVIRONMENT, engine_setup, gap, make_prompts
from tests.integration.hosted import Host, hosts
from tests.integration.tiny_model import EOS, PAD, save_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


ENVIRONMENT_FILE = """
import pathlib
import time

ENDED = pathlib.Path(__file__).parent / "ended"

class Env:
    def reset(self, columns, seed):
        self.row, self.turns = columns["row"], 0
        if self.row == 0:
            ENDED.write_text("")
        return self.say(" ".join(f"w{3 + (seed + i) % 100}" for i in range(40)))

    def step(self, response):
        self.turns += 1
        if self.row == "bad":
            raise OSError("the game is broken")
        if self.row == 0 and self.turns == 3:
            self.wait_for_others()
        elif self.turns == 3:
            with ENDED.open("a") as file:
                file.write(f"{self.row} ")
        words = len(response.split())
        return None if self.turns == 3 else self.say(f"w{3 + words} w7 w{90 + self.turns}"), words / 4

    def wait_for_others(self):
        deadline = time.monotonic() + 60
        while len(ENDED.read_text().split()) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)

    def say(self, text):
        return [{"role": "user", "content": text}]
"""


@pytest.fixture(scope="module")
def engines(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Temperature 0.7 with groups of four; temperature 1 with all responses as long as they may be; conversations of
    three turns, in which row 0 has a slow environment: it answers for the last time when two others have ended."""
    file = tmp_path_factory.mktemp("environment") / "env.py"
    file.write_text(ENVIRONMENT_FILE)
    walk = FunctionEnvironment(path=str(file), max_tokens=128, cut_turn="continue", retries=1, workers=2)
    setups = [
        engine_setup(model, temperature=0.7, stream_samples=4),
        engine_setup(model, min_response_tokens=16),
        replace(engine_setup(model, stream_samples=1), environment=walk, max_prompt_tokens=40),
    ]
    with hosts(tmp_path_factory.mktemp("logs"), RolloutEngine, [[setup] for setup in setups], ENVIRONMENT) as started:
        yield started


def expected_logprobs(model: Path, rollouts: Rollouts, temperature: float, forbidden: int | None = None) -> Tensor:
    """float32 `[batch, time]` by transformers, row by row without padding; without the forbidden token."""
    from transformers import AutoModelForCausalLM

    causal = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    out = torch.zeros_like(rollouts.rollout_logprobs)
    with torch.no_grad():
        for row, length in enumerate(rollouts.lengths.tolist()):
            ids = rollouts.token_ids[row, :length]
            logits = causal(ids[None]).logits[0, :-1] / temperature
            if forbidden is not None:
                logits[:, forbidden] = -torch.inf
            out[row, 1:length] = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return out


def generate(engine: Host, prompts: Prompts, version: int = 0) -> Rollouts:
    return cast(Rollouts, engine.call("generate", prompts, version))


def test_rollouts_are_padded_masked_and_marked(engines: list[Host]) -> None:
    prompts = make_prompts(10)
    rollouts = generate(engines[0], prompts)
    assert rollouts.prompts == prompts.texts and rollouts.columns == prompts.columns
    assert rollouts.versions.tolist() == [0] * 10
    for row, prompt in enumerate(prompts.token_ids):
        length = int(rollouts.lengths[row])
        ids = rollouts.token_ids[row].tolist()
        assert ids[: len(prompt)] == prompt and set(ids[length:]) <= {PAD}
        where = rollouts.response_mask[row].nonzero().flatten().tolist()
        assert where == list(range(len(prompt), length))
        response = ids[len(prompt) : length]
        assert bool(rollouts.finished[row]) == (response[-1] == EOS) and EOS not in response[:-1]
        assert rollouts.finished[row] or len(response) == 16
        assert rollouts.responses[row] == " ".join({1: "<s>", PAD: "<pad>"}.get(i, f"w{i}") for i in response if i > 2)
    assert (rollouts.rollout_logprobs[~rollouts.response_mask] == 0).all()
    assert (rollouts.rollout_logprobs[rollouts.response_mask] < 0).all()
    assert 0 < int(rollouts.finished.sum()) < 10, "the seeds are such that both endings occur"


def test_a_row_depends_on_its_seed_and_not_on_its_neighbours(engines: list[Host]) -> None:
    prompts = make_prompts(10)
    first = generate(engines[0], prompts)
    again = generate(engines[0], prompts)
    assert torch.equal(first.token_ids, again.token_ids)
    for rows in ([7, 2], [5]):
        some = generate(engines[0], prompts.select(rows))
        assert torch.equal(some.token_ids, first.select(rows).token_ids)
    reseeded = Prompts(
        prompts.token_ids, prompts.texts, prompts.columns, [seed + 77 for seed in prompts.seeds], prompts.seeds
    )
    assert not torch.equal(generate(engines[0], reseeded).lengths, first.lengths)


def test_logprobs_are_those_of_the_distribution_that_was_sampled(model: Path, engines: list[Host]) -> None:
    cool = generate(engines[0], make_prompts(10))
    assert gap(cool, expected_logprobs(model, cool, 0.7)).max() < 1e-5
    plain = generate(engines[1], make_prompts(10))
    assert gap(plain, expected_logprobs(model, plain, 1.0, forbidden=EOS)).max() < 1e-5


def test_without_a_seed_the_most_likely_token_is_taken(model: Path, engines: list[Host]) -> None:
    """What ReMax compares with."""
    from transformers import AutoModelForCausalLM

    causal = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    rollouts = generate(engines[0], make_prompts(4).greedy(2))
    assert len(rollouts) == 2
    for row, length in enumerate(rollouts.lengths.tolist()):
        ids = rollouts.token_ids[row, :length]
        with torch.no_grad():
            best = causal(ids[None]).logits[0, :-1].argmax(-1)
        mask = rollouts.response_mask[row, 1:length]
        assert torch.equal(best[mask], ids[1:][mask])


def test_a_minimum_forbids_the_end(engines: list[Host]) -> None:
    rollouts = generate(engines[1], make_prompts(10))
    assert rollouts.response_mask.sum(1).tolist() == [16] * 10


@pytest.mark.slow
def test_a_response_ends_with_the_stop_that_it_keeps(model: Path, engines: list[Host], tmp_path: Path) -> None:
    """Each row is that of an engine without stops, up to the first one."""
    prompts, text, token = make_prompts(10), "w4", 50
    plain = engine_setup(model, temperature=0.7)
    setups = [engine_setup(model, temperature=0.7, stop=(text,)), replace(plain, stop_token_ids=(EOS, token))]
    with hosts(tmp_path, RolloutEngine, [[setup] for setup in setups], ENVIRONMENT) as (by_text, by_token):
        stopped, ended = generate(by_text, prompts), generate(by_token, prompts)
    decode, cut = AutoTokenizer.from_pretrained(model).decode, [0, 0]
    for row, whole in enumerate(tokens_of(generate(engines[0], prompts))):
        ends = [
            next((n for n in range(1, len(whole)) if text in decode(whole[:n])), len(whole)),
            next((n for n in range(1, len(whole)) if whole[n - 1] == token), len(whole)),
        ]
        for which, rollouts in enumerate((stopped, ended)):
            assert tokens_of(rollouts)[row] == whole[: ends[which]]
            cut[which] += ends[which] < len(whole)
            assert rollouts.finished[row] or ends[which] == 16
    assert min(cut) > 0, cut


def tokens_of(rollouts: Rollouts) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(rollouts.token_ids, rollouts.response_mask, strict=True)]


def test_streamed_groups_are_the_rows_of_the_whole(engines: list[Host]) -> None:
    prompts = make_prompts(10)
    whole = generate(engines[0], prompts)
    groups = cast(list[tuple[int, Rollouts]], engines[0].call("stream", prompts, 0))
    assert sorted(group.columns["row"] for _, group in groups) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for first, group in groups:
        assert first == group.columns["row"][0]
        assert torch.equal(group.token_ids, whole.select(group.columns["row"]).token_ids)


def tasks(*rows: int | str) -> Prompts:
    seeds = [row if isinstance(row, int) else 50 for row in rows]
    return Prompts([[]] * len(rows), [""] * len(rows), {"row": list(rows)}, [100 + seed for seed in seeds], seeds)


def test_turns_are_conditioned_on_what_the_environment_said(model: Path, engines: list[Host]) -> None:
    rollouts = generate(engines[2], tasks(0, 1, 2, 3, 4))
    assert gap(rollouts, expected_logprobs(model, rollouts, 1.0)).max() < 1e-5
    assert (rollouts.rollout_logprobs[~rollouts.response_mask] == 0).all() and rollouts.finished.all()
    for row, length in enumerate(rollouts.lengths.tolist()):
        mask, ids = rollouts.response_mask[row].int(), rollouts.token_ids[row]
        begins = ((mask[1:] - mask[:-1]) == 1).nonzero().flatten() + 1
        ends = [*((mask[1:] - mask[:-1]) == -1).nonzero().flatten().tolist(), length - 1][:3]
        assert len(begins) == 3 and begins[0] == 40
        words = [len([i for i in ids[a : b + 1].tolist() if i > 2]) for a, b in zip(begins, ends, strict=True)]
        for turn in (0, 1):
            said = ids[ends[turn] + 1 : begins[turn + 1]].tolist()
            assert said == [3 + words[turn], 7, 91 + turn]
        paid = rollouts.turn_rewards[row]
        assert paid.nonzero().flatten().tolist() == [end for end, n in zip(ends, words, strict=True) if n]
        assert float(paid.sum()) == sum(words) / 4


def test_conversations_repeat_and_others_go_on_while_one_waits(engines: list[Host]) -> None:
    whole = generate(engines[2], tasks(0, 1, 2, 3, 4))
    groups = cast(list[tuple[int, Rollouts]], engines[2].call("stream", tasks(0, 1, 2, 3, 4), 0))
    assert sorted(first for first, _ in groups) == [0, 1, 2, 3, 4]
    assert [first for first, _ in groups].index(0) >= 2, "others end while the slow one waits"
    for first, group in groups:
        assert torch.equal(group.token_ids, whole.select([first]).token_ids)


def test_earlier_turns_come_from_the_prefix_cache(engines: list[Host]) -> None:
    generate(engines[2], tasks(7, 8))
    cached, read = map(int, re.findall(r"conversations: (\d+) of (\d+) tokens", engines[2].log.read_text())[-1])
    assert cached / read > 0.5, "of each later turn all whole blocks before it"


def test_an_environment_that_fails_is_named_and_the_engine_goes_on(engines: list[Host]) -> None:
    with pytest.raises(EnvironmentFailed, match=r"turn 1.*'row': 'bad'.*failed 2 times.*the game is broken"):
        generate(engines[2], tasks(1, "bad", 2))
    assert generate(engines[2], tasks(1, 2)).finished.all()


def test_no_rows_give_no_rollouts(engines: list[Host]) -> None:
    none = make_prompts(2).select([])
    assert len(generate(engines[0], none)) == 0
    assert engines[0].call("stream", none, 0) == []


def test_what_cannot_be_answered_is_refused(engines: list[Host]) -> None:
    prompts = make_prompts(2)
    with pytest.raises(RolloutError, match="weights of version 0, not of version 3"):
        generate(engines[0], prompts, version=3)
    long = Prompts([[5] * 113], ["x"], {}, [0], [0])
    with pytest.raises(RolloutError, match=r"113 tokens and .* are more than the 128"):
        generate(engines[0], long)
    with pytest.raises(RolloutError, match="row 1 has no tokens"):
        generate(engines[0], Prompts([[5], []], ["x", ""], {}, [0, 1], [0, 1]))
    assert len(generate(engines[0], prompts)) == 2, "and the engine goes on"


def test_vllm_writes_to_the_log_of_its_process_alone(engines: list[Host], capfd: pytest.CaptureFixture[str]) -> None:
    generate(engines[0], make_prompts(2))
    assert "LlamaForCausalLM" in engines[0].log.read_text()
    assert capfd.readouterr() == ("", "")
