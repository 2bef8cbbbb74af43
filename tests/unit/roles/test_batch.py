from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from orchestrator.config.ppo import PpoConfig
from roles.batch import Preferences, Prompts, Responses, Rollouts, Scored, Sequences
from roles.rows import Batch
from roles.shares import ActorExperience, CriticExperience
from tests.unit.orchestrator.ppo.whole_batch import to_experience

PROMPT = 2
"""Prompt tokens of each row."""


def rollouts(*response_lengths: int, first_token: int = 10) -> Rollouts:
    lengths = torch.tensor([PROMPT + n for n in response_lengths], dtype=torch.int64)
    width = int(lengths.max())
    columns = torch.arange(width)
    valid = columns < lengths[:, None]
    mask = valid & (columns >= PROMPT)
    size = len(response_lengths)
    return Rollouts(
        token_ids=torch.where(valid, first_token + torch.arange(size)[:, None] * 100 + columns, 0),
        lengths=lengths,
        response_mask=mask,
        rollout_logprobs=torch.where(mask, -1.0 - columns, 0.0),
        turn_rewards=torch.zeros_like(mask, dtype=torch.float32),
        finished=torch.arange(size) % 2 == 0,
        versions=torch.full((size,), 7),
        prompts=[f"prompt {n}" for n in response_lengths],
        responses=[f"response {n}" for n in response_lengths],
        columns={"id": list(response_lengths)},
        counted=[{}] * size,
    )


def scored(*response_lengths: int) -> Scored:
    made = rollouts(*response_lengths)
    zeros = torch.zeros_like(made.rollout_logprobs)
    numbers = torch.arange(len(made), dtype=torch.float32)
    return Scored(made, zeros, zeros, zeros, numbers, torch.zeros(len(made)), [{}] * len(made))


def test_select_takes_rows_in_order_and_cuts_the_padding() -> None:
    batch = rollouts(1, 5, 2)
    picked = batch.select([2, 0])
    assert len(picked) == 2
    assert picked.lengths.tolist() == [4, 3]
    assert picked.token_ids.tolist() == [[210, 211, 212, 213], [10, 11, 12, 0]]
    assert picked.response_mask.sum(1).tolist() == [2, 1]
    assert picked.finished.tolist() == [True, True]
    assert picked.responses == ["response 2", "response 1"]
    assert picked.columns == {"id": [2, 1]}


def test_select_of_no_rows_is_an_empty_batch() -> None:
    empty = rollouts(1, 5).select([])
    assert len(empty) == 0
    assert empty.token_ids.shape[0] == 0
    assert empty.columns == {"id": []}
    assert len(Rollouts.concatenate([empty, rollouts(3)])) == 1


def test_a_selected_batch_does_not_carry_the_whole_one_when_pickled() -> None:
    batch = rollouts(1, 500)
    for part in (batch.select([0]), batch.split([[1], [0]])[1]):
        assert len(pickle.dumps(part)) < len(pickle.dumps(batch)) / 3


def test_pickling_keeps_everything() -> None:
    batch = scored(1, 3)
    again = pickle.loads(pickle.dumps(batch))
    assert type(again) is Scored
    torch.testing.assert_close(again.scores, batch.scores)
    assert again.rollouts.columns == batch.rollouts.columns


def test_what_comes_out_of_shared_memory_can_be_written_to() -> None:
    """Ray hands out arrays of pages that are for reading only; a tensor of them would end the process when written."""
    batch, buffers = scored(3, 1), list[pickle.PickleBuffer]()
    data = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
    back = pickle.loads(data, buffers=[buffer.raw().tobytes() for buffer in buffers])
    back.old_logprobs.add_(1.0)
    back.rollouts.token_ids.fill_(5)
    back.rollouts.response_mask.fill_(True)
    assert batch.old_logprobs.sum() == 0 and len(buffers) >= 7


@pytest.mark.parametrize("large", [2**31 - 1, 2**31, -(2**31), -(2**31) - 1, -(2**63)])
def test_integers_travel_in_four_bytes_where_all_fit(large: int) -> None:
    batch = replace(rollouts(3, 1), versions=torch.tensor([1, large]))
    back = pickle.loads(pickle.dumps(batch))
    assert back.versions.tolist() == [1, large] and back.versions.dtype == torch.int64
    assert len(pickle.dumps(Sequences(torch.zeros(1, 1000, dtype=torch.int64), *_row(1000)))) < 6000


def test_what_nobody_reads_does_not_travel() -> None:
    """Neither padding, nor numbers outside of the response, nor zeros."""
    width = 4000
    batch = rollouts(1, width)
    numbers = torch.where(batch.response_mask, torch.tensor([[-0.5], [-1.0]]), 7.0)
    batch = replace(batch, token_ids=batch.token_ids + 1, rollout_logprobs=numbers)
    back = pickle.loads(data := pickle.dumps(batch))
    inside = torch.arange(PROMPT + width) < batch.lengths[:, None]
    assert torch.equal(back.token_ids, batch.token_ids * inside)
    assert torch.equal(back.rollout_logprobs, numbers * batch.response_mask)
    same(replace(back, token_ids=batch.token_ids, rollout_logprobs=numbers), batch)
    sent = 4 * (width + 1 + 2 * PROMPT) + 4 * (width + 1) + 2 * (width + PROMPT) // 8
    assert sent < len(data) < sent + 2000, "the ids, the log-probabilities and a bit a token"


@pytest.mark.parametrize("number", [-0.0, float("nan"), 1e-45])
def test_only_true_zeros_are_left_out(number: float) -> None:
    batch = replace(rollouts(3), turn_rewards=torch.tensor([[0.0, 0.0, number, 0.0, 0.0]]))
    back = pickle.loads(pickle.dumps(batch)).turn_rewards
    assert torch.equal(back.view(torch.int32), batch.turn_rewards.view(torch.int32))


def _row(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([width]), torch.ones(1, width, dtype=torch.bool)


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3]], [[3], [1, 0], [2]], [[0, 1, 2, 3], []]])
def test_concatenate_undoes_split(parts: list[list[int]]) -> None:
    batch = scored(4, 1, 6, 2)
    joined = Scored.concatenate(batch.split(parts))
    order = [row for part in parts for row in part]
    expected = batch.select(order)
    same(joined, expected)


def same(ours: Batch, wanted: Batch) -> None:
    """Field by field, to the bit."""
    assert type(ours) is type(wanted)
    for f in fields(ours):
        own, other = getattr(ours, f.name), getattr(wanted, f.name)
        if isinstance(own, Batch):
            same(own, other)
        elif isinstance(own, torch.Tensor):
            torch.testing.assert_close(own, other, rtol=0, atol=0)
        else:
            assert own == other


def test_concatenate_pads_tokens_with_the_pad_token_and_numbers_with_zero() -> None:
    joined = Rollouts.concatenate([rollouts(1), rollouts(3)], pad_token_id=99)
    assert joined.token_ids.tolist() == [[10, 11, 12, 99, 99], [10, 11, 12, 13, 14]]
    assert joined.rollout_logprobs[0].tolist() == [0, 0, -3, 0, 0]
    assert joined.response_mask.dtype == torch.bool


def test_concatenate_needs_something() -> None:
    with pytest.raises(ValueError, match="zero batches of Rollouts"):
        Rollouts.concatenate([])


def test_concatenate_refuses_different_columns() -> None:
    with pytest.raises(ValueError, match="different columns"):
        Rollouts.concatenate([rollouts(1), replace(rollouts(1), columns={"other": [1]})])


def test_prompts_select_and_concatenate() -> None:
    prompts = Prompts([[1, 2], [3]], ["a", "b"], {"label": ["x", "y"]}, [11, 12], [21, 22])
    picked = prompts.select([1])
    assert (picked.token_ids, picked.texts, picked.columns, picked.seeds) == ([[3]], ["b"], {"label": ["y"]}, [12])
    joined = Prompts.concatenate([picked, prompts])
    assert joined.token_ids == [[3], [1, 2], [3]]
    assert joined.columns == {"label": ["y", "x", "y"]}
    assert len(joined) == 3


@pytest.mark.parametrize(
    "bad",
    [
        {"texts": ["a"]},
        {"seeds": [1, 2, 3]},
        {"environment_seeds": [1]},
        {"columns": {"label": ["x"]}},
    ],
)
def test_prompts_with_ragged_fields_are_refused(bad: dict[str, object]) -> None:
    good = {
        "token_ids": [[1], [2]],
        "texts": ["a", "b"],
        "columns": {"label": ["x", "y"]},
        "seeds": [1, 2],
        "environment_seeds": [3, 4],
    }
    with pytest.raises(ValueError, match="different number"):
        Prompts(**{**good, **bad})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {"token_ids": b.token_ids.int()}, "token_ids must be torch.int64"),
        (lambda b: {"token_ids": b.token_ids[0]}, r"must be \[batch, time\]"),
        (lambda b: {"lengths": b.lengths[:1]}, "lengths must be"),
        (lambda b: {"lengths": b.lengths + 9}, "more than the 5 columns"),
        (lambda b: {"lengths": b.lengths - 1}, "True on padding"),
        (lambda b: {"response_mask": b.response_mask.float()}, "response_mask must be torch.bool"),
        (lambda b: {"rollout_logprobs": b.rollout_logprobs.double()}, "rollout_logprobs must be torch.float32"),
        (lambda b: {"rollout_logprobs": b.rollout_logprobs[:, 1:]}, "rollout_logprobs must be"),
        (lambda b: {"turn_rewards": b.turn_rewards.double()}, "turn_rewards must be torch.float32"),
        (lambda b: {"finished": b.finished[:1]}, "finished must be"),
        (lambda b: {"versions": b.versions.int()}, "versions must be"),
        (lambda b: {"responses": ["one"]}, "responses has 1 entries for 2 rows"),
        (lambda b: {"prompts": []}, "prompts has 0 entries for 2 rows"),
        (lambda b: {"columns": {"id": [1]}}, "columns.*has 1 entries for 2 rows"),
    ],
)
def test_malformed_rollouts_are_refused(change: Callable[[Rollouts], dict[str, object]], message: str) -> None:
    batch = rollouts(1, 3)
    with pytest.raises(ValueError, match=message):
        replace(batch, **change(batch))


def test_malformed_scores_and_experience_are_refused() -> None:
    batch = scored(1, 3)
    with pytest.raises(ValueError, match=r"Scored\.scores must be torch.float32 \(2,\)"):
        replace(batch, scores=batch.scores[:1])
    with pytest.raises(ValueError, match=r"Scored\.values"):
        replace(batch, values=batch.values.to(torch.bfloat16))
    tokens = (batch.rollouts.token_ids, batch.rollouts.lengths, batch.rollouts.response_mask, torch.arange(2))
    with pytest.raises(ValueError, match=r"CriticExperience\.returns"):
        CriticExperience(*tokens, values=batch.values, returns=batch.scores)
    with pytest.raises(ValueError, match=r"ActorExperience\.advantages"):
        ActorExperience(*tokens, *[batch.values] * 3, advantages=batch.scores)


def test_a_batch_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        rollouts(1).lengths = torch.zeros(1)  # type: ignore[misc]


def test_a_part_of_rollouts_has_the_fields_that_are_read() -> None:
    batch = replace(rollouts(1, 3), columns={"id": [1, 3], "messages": ["a", "b"]})
    assert {f.name for f in fields(Sequences.of(batch))} == {"token_ids", "lengths", "response_mask"}
    everything, one = Responses.of(batch), Responses.of(batch, ["messages", "none of ours"])
    assert everything.columns == batch.columns and one.columns == {"messages": ["a", "b"]}
    assert (one.prompts, one.finished.tolist()) == (batch.prompts, batch.finished.tolist())


FLAGS, COUNTS = {"response_mask", "finished"}, {"token_ids", "lengths", "versions", "rows", "groups"}


def example_of(kind: type) -> dict[str, Any]:
    """The rows in the type's docstring, as its fields."""
    shown = dict(re.findall(r"^ {8}(\w+) += (.+)$", kind.__doc__ or "", re.MULTILINE))
    found = {name: ast.literal_eval(text) for name, text in shown.items()}
    if kind is Prompts:
        return found
    types = {name: torch.bool if name in FLAGS else torch.int64 if name in COUNTS else torch.float32 for name in found}
    texts = ("prompts", "responses", "columns", "counted", "named")
    return {n: value if n in texts else torch.tensor(value, dtype=types[n]) for n, value in found.items()}


def test_the_examples_are_what_the_code_makes_of_them() -> None:
    """Each type takes the three rows of its docstring; parts and experience are those of the rollouts and scores."""
    made = {kind: kind(**example_of(kind)) for kind in (Prompts, Rollouts, Sequences, Responses, Preferences)}
    made |= {kind: kind(**example_of(kind)) for kind in (ActorExperience, CriticExperience)}
    assert {len(batch) for batch in made.values()} == {3}
    same(Sequences.of(made[Rollouts]), made[Sequences])
    same(Responses.of(made[Rollouts]), made[Responses])
    scored = Scored(made[Rollouts], **example_of(Scored))
    ppo = PpoConfig.model_validate({"advantage": {"type": "gae", "lambda": 1.0}, "whiten_advantages": False})
    experience, _ = to_experience(scored, 0.1, ppo)
    for ours in (experience.actor, experience.critic):
        for f in fields(ours):
            torch.testing.assert_close(getattr(ours, f.name), getattr(made[type(ours)], f.name))
    assert made[Preferences].comparisons().tolist() == [[1, 0]]


def test_comparisons_are_all_pairs_of_different_ranks_in_a_group() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in (0, 1, 2, 17):
        groups = torch.randint(0, 4, (rows,), generator=generator)
        ranks = torch.randint(0, 3, (rows,), generator=generator).float()
        tokens = torch.zeros((rows, 2), dtype=torch.int64)
        made = Preferences(tokens, torch.full((rows,), 2), groups, ranks, torch.ones(rows))
        assert made.comparisons().tolist() == [
            [better, worse]
            for better in range(rows)
            for worse in range(rows)
            if groups[better] == groups[worse] and ranks[better] > ranks[worse]
        ]
