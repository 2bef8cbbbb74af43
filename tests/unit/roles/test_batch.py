from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from roles.batch import Experience, Prompts, Rollouts, Scored, save_batch

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
    )


def scored(*response_lengths: int) -> Scored:
    made = rollouts(*response_lengths)
    zeros = torch.zeros_like(made.rollout_logprobs)
    return Scored(
        **{name: getattr(made, name) for name in made.__dataclass_fields__},
        old_logprobs=zeros,
        reference_logprobs=zeros,
        values=zeros,
        scores=torch.arange(len(made), dtype=torch.float32),
        disagreement=torch.zeros(len(made)),
    )


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
    assert len(pickle.dumps(batch.select([0]))) < len(pickle.dumps(batch)) / 3


def test_pickling_keeps_everything() -> None:
    batch = scored(1, 3)
    again = pickle.loads(pickle.dumps(batch))
    assert type(again) is Scored
    torch.testing.assert_close(again.scores, batch.scores)
    assert again.columns == batch.columns


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3]], [[3], [1, 0], [2]], [[0, 1, 2, 3], []]])
def test_concatenate_undoes_split(parts: list[list[int]]) -> None:
    batch = scored(4, 1, 6, 2)
    joined = Scored.concatenate(batch.split(parts))
    order = [row for part in parts for row in part]
    expected = batch.select(order)
    for name in Scored.__dataclass_fields__:
        ours, wanted = getattr(joined, name), getattr(expected, name)
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(ours, wanted, rtol=0, atol=0)
        else:
            assert ours == wanted


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
    with pytest.raises(ValueError, match=r"Experience\.returns"):
        Experience(
            token_ids=batch.token_ids,
            lengths=batch.lengths,
            response_mask=batch.response_mask,
            rows=torch.arange(2),
            old_logprobs=batch.values,
            rollout_logprobs=batch.values,
            reference_logprobs=batch.values,
            values=batch.values,
            advantages=batch.values,
            returns=batch.scores,
        )


def test_a_batch_is_saved_without_pickle(tmp_path: Path) -> None:
    batch = replace(scored(1, 3), columns={"id": [7, {"deep": object}]})
    save_batch(batch, tmp_path / "failed" / "step-000002.safetensors")
    tensors = load_file(tmp_path / "failed" / "step-000002.safetensors")
    assert tensors.keys() == {f.name for f in fields(batch)} - {"prompts", "responses", "columns"}
    assert all(torch.equal(tensor, getattr(batch, name)) for name, tensor in tensors.items())
    texts = json.loads((tmp_path / "failed" / "step-000002.json").read_text())
    assert (texts["prompts"], texts["responses"]) == (batch.prompts, batch.responses)
    assert texts["columns"]["id"][0] == 7


def test_a_batch_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        rollouts(1).lengths = torch.zeros(1)  # type: ignore[misc]
