"""Samples in the making, on environments that answer when the test says so, and an engine that is the test."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Literal

import pytest
import torch

from configs.tiny.inputs import tokenizer
from roles.batch import Prompts, Rollouts
from roles.config.environment import FunctionEnvironment
from roles.errors import EnvironmentFailed, RolloutError
from roles.generation.conversation import Conversations, Limits, Turn
from roles.generation.environment_worker import Said
from roles.generation.turn_format import TurnFormat
from roles.seeds import stable_seed

WORDS = tokenizer()
EOS = WORDS.eos_token_id
FORM = TurnFormat(WORDS)
PAD = 0


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


class Fake:
    """Stands in for `Environments`: answers are set from outside."""

    def __init__(self) -> None:
        self.batches = 0
        self.asked: dict[int, tuple[Future[Said], dict[str, Any], int, list[Said], list[str]]] = {}

    def begin(self) -> None:
        self.batches += 1

    def ask(
        self, row: int, columns: dict[str, Any], seed: int, said: Sequence[Said], responses: Sequence[str]
    ) -> Future[Said]:
        future: Future[Said] = Future()
        self.asked[row] = future, columns, seed, list(said), list(responses)
        return future

    def say(self, row: int, text: str | None, reward: float = 0.0, **named: float) -> None:
        self.asked.pop(row)[0].set_result((None if text is None else user(text), reward, named))


def prompts(rows: int) -> Prompts:
    return Prompts(
        [[]] * rows,
        [""] * rows,
        {"id": list(range(rows))},
        [10 + r for r in range(rows)],
        [20 + r for r in range(rows)],
    )


def start(
    fake: Fake, rows: int = 1, *, tokens: int = 64, turns: int = 4, cut: Literal["end", "continue"] = "end"
) -> Conversations:
    config = FunctionEnvironment(path="e.py", max_tokens=tokens, max_turns=turns, cut_turn=cut)
    return Conversations(prompts(rows), Limits(6, tokens, 12, config), FORM, fake)  # type: ignore[arg-type]


def ids(text: str) -> list[int]:
    return list(WORDS(text, add_special_tokens=False)["input_ids"])


def answer(talk: Conversations, turn: Turn, text: str, *, cut: bool = False) -> list[int]:
    """Generate `text` and EOS (unless cut), each token with the log-probability −1, −2, ….; what was generated."""
    tokens = ids(text) + ([] if cut else [EOS])
    talk.take(turn.row, tokens, [-1.0 - i for i in range(len(tokens))], cut=cut)
    return tokens


def over(talk: Conversations, rows: Sequence[int] = (0,)) -> Rollouts:
    assert talk.open.isdisjoint(rows)
    return talk.rollouts(rows, version=3, pad_token_id=PAD)


def test_a_conversation_has_gaps_and_rewards_on_its_turns() -> None:
    fake = Fake()
    talk = start(fake)
    assert talk.turns(patient=False) == []
    fake.say(0, "ab")
    opening = ids("<bos><user>ab<assistant>")
    (turn,) = talk.turns(patient=False)
    assert turn == Turn(0, opening, 6, 10)
    first = answer(talk, turn, "xy")
    assert turn.token_ids == opening, "the engine may keep it"
    assert fake.asked[0][1:] == ({"id": 0}, 20, [(user("ab"), 0.0, {})], ["xy"])
    fake.say(0, "cd", 0.5, tries=1.0)
    (turn,) = talk.turns(patient=False)
    between = ids("<user>cd<assistant>")
    assert turn == Turn(0, opening + first + between, 6, stable_seed(10, "turn", 1))
    second = answer(talk, turn, "z")
    fake.say(0, None, 2.0, tries=2.0, solved=1.0)
    assert talk.turns(patient=False) == []
    rollouts = over(talk)
    assert rollouts.counted == [{"environment/tries": 3.0, "environment/solved": 1.0}]
    assert rollouts.token_ids.tolist() == [opening + first + between + second]
    parts = [(opening, False), (first, True), (between, False), (second, True)]
    assert rollouts.response_mask.tolist() == [[made for part, made in parts for _ in part]]
    last = [0.0] * (len(first) - 1) + [0.5], [0.0] * (len(second) - 1) + [2.0]
    assert rollouts.turn_rewards.tolist() == [[0.0] * len(opening) + last[0] + [0.0] * len(between) + last[1]]
    numbers = [-1.0 - i for i in range(len(first))], [-1.0 - i for i in range(len(second))]
    assert rollouts.rollout_logprobs.tolist() == [[0.0] * len(opening) + numbers[0] + [0.0] * len(between) + numbers[1]]
    assert rollouts.finished.tolist() == [True] and rollouts.versions.tolist() == [3]
    assert rollouts.prompts == ["<bos><user>ab<assistant>"] and rollouts.responses == ["xy\n[user] cd\nz"]
    said = [*user("ab"), {"role": "assistant", "content": "xy"}, *user("cd"), {"role": "assistant", "content": "z"}]
    assert rollouts.columns == {"id": [0], "messages": [said]}
    assert fake.batches == 1


def test_what_was_sampled_is_never_tokenised_again() -> None:
    """The letters of a merged word, each as a token of its own: the same text, other tokens."""
    fake = Fake()
    talk = start(fake)
    fake.say(0, "a")
    (turn,) = talk.turns(patient=False)
    letters = [token for letter in "the" for token in ids(letter)]
    assert letters != ids("the")
    talk.take(0, [*letters, EOS], [-1.0] * 4, cut=False)
    fake.say(0, "b")
    (turn,) = talk.turns(patient=False)
    assert turn.token_ids == [*ids("<bos><user>a<assistant>"), *letters, EOS, *ids("<user>b<assistant>")]


def test_without_a_seed_every_turn_is_greedy() -> None:
    fake, config = Fake(), FunctionEnvironment(path="e.py", max_tokens=64)
    asked = Prompts([[]], [""], {}, [None], [20])
    talk = Conversations(asked, Limits(6, 64, 12, config), FORM, fake)  # type: ignore[arg-type]
    for _ in range(2):
        fake.say(0, "a")
        (turn,) = talk.turns(patient=False)
        assert turn.seed is None
        answer(talk, turn, "x")


@pytest.mark.parametrize("last", [None, "more"])
def test_max_turns_cut_a_conversation_that_goes_on(last: str | None) -> None:
    fake = Fake()
    talk = start(fake, turns=1)
    fake.say(0, "a")
    answer(talk, talk.turns(patient=False)[0], "x")
    fake.say(0, last, 1.0)
    assert talk.turns(patient=False) == []
    rollouts = over(talk)
    assert rollouts.finished.tolist() == [last is None]
    assert rollouts.turn_rewards.sum() == 1 and rollouts.token_ids[0, -1] == EOS, "nothing follows the last response"


@pytest.mark.parametrize(
    ("cut", "said", "finished"),
    [("end", "more", False), ("end", None, False), ("continue", None, True)],
)
def test_a_cut_response_ends_the_conversation_with_its_reward(
    cut: Literal["end", "continue"], said: str | None, finished: bool
) -> None:
    fake = Fake()
    talk = start(fake, cut=cut)
    fake.say(0, "a")
    answer(talk, talk.turns(patient=False)[0], "xxx", cut=True)
    fake.say(0, said, 1.5)
    assert talk.turns(patient=False) == []
    rollouts = over(talk)
    assert rollouts.finished.tolist() == [finished] and rollouts.turn_rewards.sum() == 1.5


def test_a_cut_response_may_go_on_and_the_template_ends_it() -> None:
    fake = Fake()
    talk = start(fake, cut="continue")
    fake.say(0, "a")
    (turn,) = talk.turns(patient=False)
    answer(talk, turn, "xxx", cut=True)
    fake.say(0, "b")
    (turn,) = talk.turns(patient=False)
    assert turn.token_ids == ids("<bos><user>a<assistant>xxx<eos><user>b<assistant>")


def test_a_conversation_that_is_full_is_cut_before_the_environment_speaks() -> None:
    opening, following = ids("<bos><user>a<assistant>"), ids("<user>b<assistant>")
    room = len(opening) + 2 + len(following)
    for tokens, goes_on in ((room, False), (room + 1, True)):
        fake = Fake()
        talk = start(fake, tokens=tokens)
        fake.say(0, "a")
        answer(talk, talk.turns(patient=False)[0], "x")
        fake.say(0, "b", 1.0)
        turns = talk.turns(patient=False)
        assert [turn.max_tokens for turn in turns] == [1] * goes_on, "what is left bounds the response"
        if not goes_on:
            rollouts = over(talk)
            assert rollouts.lengths.tolist() == [len(opening) + 2] and rollouts.finished.tolist() == [False]


def test_others_go_on_while_one_environment_thinks() -> None:
    fake = Fake()
    talk = start(fake, rows=3)
    fake.say(2, "a")
    fake.say(1, "b")
    assert [turn.row for turn in talk.turns(patient=True)] == [1, 2], "it does not wait for row 0"
    for row in (1, 2):
        answer(talk, Turn(row, [], 6, 0), "x")
        fake.say(row, None)
    assert talk.turns(patient=True) == [] and talk.open == {0}
    assert over(talk, [2, 1]).columns["id"] == [2, 1]
    fake.say(0, "c")
    assert [turn.row for turn in talk.turns(patient=True)] == [0]


def test_a_failed_environment_is_heard_of() -> None:
    fake = Fake()
    talk = start(fake)
    fake.asked[0][0].set_exception(EnvironmentFailed("gone"))
    with pytest.raises(EnvironmentFailed, match="gone"):
        talk.turns(patient=True)


def test_first_messages_that_are_too_long_are_refused() -> None:
    fake = Fake()
    talk = start(fake)
    fake.say(0, "0123456789")
    with pytest.raises(EnvironmentFailed, match=r"13 tokens, more than prompts\.max_tokens=12"):
        talk.turns(patient=False)


def test_without_an_environment_a_sample_has_one_turn() -> None:
    asked = Prompts([[5, 6], [7]], ["p", "q"], {"id": [0, 1]}, [10, 11], [0, 0])
    talk = Conversations(asked, Limits(6, 64, 0, None), FORM, None)
    assert talk.turns(patient=True) == [Turn(0, [5, 6], 6, 10), Turn(1, [7], 6, 11)]
    answer(talk, Turn(1, [], 6, 0), "xyz", cut=True)
    assert talk.open == {0}
    answer(talk, Turn(0, [], 6, 0), "x")
    rollouts = over(talk, [0, 1])
    assert rollouts.token_ids.tolist() == [[5, 6, *ids("x"), EOS], [7, *ids("xyz")]]
    assert rollouts.response_mask.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert rollouts.finished.tolist() == [True, False] and rollouts.responses == ["x", "xyz"]
    assert not rollouts.turn_rewards.any() and rollouts.columns == {"id": [0, 1]} and rollouts.prompts == ["p", "q"]
    with pytest.raises(RolloutError, match="more than the 6 that"):
        Conversations(asked, Limits(5, 6, 0, None), FORM, None)
    assert torch.equal(asked_again(asked), rollouts.token_ids)


def asked_again(asked: Prompts) -> torch.Tensor:
    """The same once more: the prompts were not changed."""
    talk = Conversations(asked, Limits(6, 64, 0, None), FORM, None)
    answer(talk, Turn(0, [], 6, 0), "x")
    answer(talk, Turn(1, [], 6, 0), "xyz", cut=True)
    return over(talk, [0, 1]).token_ids
