"""Pairs and labelled responses: which rows make a sample, and what KTO's KL is estimated from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.tiny.inputs import tokenizer
from orchestrator.config.dpo import DpoConfig
from orchestrator.data.preference_samples import DpoData, PreferenceSamples, read_preferences
from orchestrator.errors import ConfigError
from roles.shares import LabelledResponses, PreferencePairs

WORDS = tokenizer()
PAIRS = [{"prompt": f"{n}?", "chosen": "x" * (1 + n), "rejected": "y"} for n in range(8)]
LABELS = [{"prompt": f"{n}?", "completion": "x" * (1 + n), "label": n % 2 == 0} for n in range(8)]
KTO = {"loss": {"type": "kto"}}


def read(folder: Path, rows: list[Any], seed: int = 1, **changes: Any) -> DpoData:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"output": "o", "model": {"path": "m"}, "data": {"path": str(file)}, "heldout_fraction": 0, **changes}
    return read_preferences(DpoConfig.model_validate(config), WORDS, seed)


def texts(samples: PreferenceSamples, column: int) -> list[tuple[str, str]]:
    """Prompt and response of each sample, as the model reads them."""
    found = []
    for row in samples.rows[:, column].tolist():
        ids, mask = samples.responses.token_ids[row], samples.responses.response_mask[row]
        length = int(samples.responses.lengths[row])
        found.append((WORDS.decode(ids[:length][~mask[:length]]), WORDS.decode(ids[mask])))
    return found


def test_a_pair_is_the_prompt_and_both_responses(tmp_path: Path) -> None:
    data = read(tmp_path, PAIRS)
    assert texts(data.training, 0)[2] == ("2?", "xxx<eos>") and texts(data.training, 1)[2] == ("2?", "y<eos>")
    assert "8 pairs to train on, 0 held out" in data.summary
    reference = torch.arange(16).float()
    batch = data.training.batch([5, 0], reference)
    assert isinstance(batch, PreferencePairs) and batch.rows.tolist() == [5, 0]
    assert batch.chosen.reference_logprob.tolist() == [10, 0] and batch.rejected.reference_logprob.tolist() == [11, 1]
    assert batch.tokens.tolist() == (batch.chosen.lengths + batch.rejected.lengths).tolist()
    assert batch.responses.lengths.tolist() == [*batch.chosen.lengths.tolist(), *batch.rejected.lengths.tolist()]


def test_a_soft_label_goes_with_its_pair_into_every_part(tmp_path: Path) -> None:
    rows = [{**row, "chosen_probability": 0.55 + n / 20} for n, row in enumerate(PAIRS)]
    data = read(tmp_path, rows, heldout_fraction=0.25)
    assert data.heldout is not None
    for part in (data.training, data.heldout):
        numbers = [int(prompt[0]) for prompt, _ in texts(part, 0)]
        assert part.certainty.tolist() == pytest.approx([0.55 + n / 20 for n in numbers])
        batch = part.batch([1, 0], torch.zeros(16))
        assert isinstance(batch, PreferencePairs) and torch.equal(batch.certainty, part.certainty[[1, 0]])
    hard = read(tmp_path, PAIRS, heldout_fraction=0.25).training
    assert hard.certainty.tolist() == [1] * 6 and hard.digest() != data.training.digest()


@pytest.mark.parametrize("kind", ["robust", "orpo"])
def test_a_loss_that_reads_no_soft_labels_refuses_them(tmp_path: Path, kind: str) -> None:
    rows = [{**row, "chosen_probability": 0.9} for row in PAIRS]
    with pytest.raises(ConfigError, match=f"dpo.data has soft labels .* which dpo.loss.type={kind} does not read"):
        read(tmp_path, rows, loss={"type": kind})
    assert len(read(tmp_path, PAIRS, loss={"type": kind}).training) == 8


def test_every_two_responses_of_a_ranked_list_that_differ_are_a_pair(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "responses": ["a", "b", "c", "a"], "scores": [1, 3, 1, 2]}]
    samples = read(tmp_path, rows).training
    assert len(samples.responses) == 4, "each response is asked once"
    pairs = [(good[1][0], bad[1][0]) for good, bad in zip(texts(samples, 0), texts(samples, 1), strict=True)]
    assert sorted(pairs) == [("a", "c"), ("b", "a"), ("b", "a"), ("b", "c")]


def test_a_labelled_response_stands_beside_another_one_after_its_prompt(tmp_path: Path) -> None:
    data = read(tmp_path, LABELS, **KTO)
    own, other = texts(data.training, 0), texts(data.training, 1)
    assert own == [(f"{n}?", "x" * (1 + n) + "<eos>") for n in range(8)]
    assert [prompt for prompt, _ in other] == [prompt for prompt, _ in own]
    assert all(mine != theirs for mine, theirs in zip(own, other, strict=True))
    assert sorted(said for _, said in other) == sorted(said for _, said in own), "each response stands once"
    batch = data.training.batch([3, 4], torch.arange(16).float())
    assert isinstance(batch, LabelledResponses) and batch.desirable.tolist() == [False, True]
    assert batch.responses.reference_logprob.tolist() == [3, 4]
    assert batch.mismatched.reference_logprob.tolist() == [11, 12]
    again, seeded = (texts(read(tmp_path, LABELS, seed, **KTO).training, 1) for seed in (1, 2))
    assert other == again != seeded


def test_a_mismatched_response_is_cut_where_a_sample_would_be(tmp_path: Path) -> None:
    data = read(tmp_path, LABELS, max_tokens=7, too_long="truncate", **KTO)
    assert int(data.training.responses.lengths.max()) == 7
    assert bool(data.training.responses.response_mask.any(1).all())


def test_the_weights_of_unbalanced_labels_are_told(tmp_path: Path) -> None:
    rows = [{**row, "label": n < 6} for n, row in enumerate(LABELS)]
    line = "6 desirable and 2 undesirable responses; weighted, 3.00 to 1: KTO's paper advises 1 to 1.33; set "
    assert line + "dpo.loss.desirable_weight between 0.333 and 0.444" in read(tmp_path, rows, **KTO).summary
    balanced = read(tmp_path, rows, loss={"type": "kto", "desirable_weight": 0.4}).summary
    assert "weighted, 1.20 to 1" in balanced and "advises" not in balanced


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    data = read(tmp_path, PAIRS, heldout_fraction=0.25)
    assert data.heldout is not None
    prompts = [{prompt for prompt, _ in texts(part, 0)} for part in (data.training, data.heldout)]
    assert [len(part) for part in prompts] == [6, 2] and not prompts[0] & prompts[1]
    with pytest.raises(ConfigError, match="1 labelled response in heldout; loss kto needs 2"):
        read(tmp_path, LABELS, heldout_fraction=0.125, **KTO)


def test_the_digest_is_of_tokens_and_labels(tmp_path: Path) -> None:
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    turned = [{**row, "label": not row["label"]} for row in LABELS]
    parts = [
        *(read(tmp_path, rows) for rows in (PAIRS, swapped)),
        *(read(tmp_path, r, **KTO) for r in (LABELS, turned)),
    ]
    assert len({data.training.digest() for data in parts}) == 4
    assert read(tmp_path, PAIRS).training.digest() == parts[0].training.digest()
