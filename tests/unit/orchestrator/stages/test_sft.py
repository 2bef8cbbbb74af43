"""The schedule of fine-tuning, and how a step is shared out over ranks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.config.sft import SftConfig
from orchestrator.data.demonstrations import SftData
from orchestrator.stages.policy_from_data import PolicyTraining, write_ends
from orchestrator.stages.sft import _shares
from roles.rollout_setup import stop_token_ids
from roles.shares import Demonstrations
from tests.unit.orchestrator.fakes import Answers


def config(**changes: int) -> SftConfig:
    return SftConfig.model_validate({"output": "o", "model": {"path": "m"}, "data": {"path": "d"}, **changes})


def demonstrations(count: int) -> SftData:
    tokens = torch.ones(count, 3, dtype=torch.long)
    mask = torch.tensor([[False, True, True]]).expand(count, 3)
    return SftData(Demonstrations(tokens, torch.full((count,), 3), mask, torch.arange(count)), None, (), "")


def test_every_epoch_is_a_fresh_permutation_of_all_demonstrations() -> None:
    data = demonstrations(10)
    steps = data.schedule(config(epochs=2, samples_per_step=4), seed=0)
    assert [len(step) for step in steps] == [4, 4, 2] * 2
    first, second = (list(itertools.chain(*steps[epoch * 3 : epoch * 3 + 3])) for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    again, other = (data.schedule(config(epochs=2, samples_per_step=4), seed=seed) for seed in (0, 1))
    assert steps == again != other


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_a_step_is_shared_out_by_tokens(ranks: int) -> None:
    lengths = torch.tensor([5, 2, 9, 3])
    mask = torch.arange(9) < lengths[:, None]
    mask[:, 0] = False
    step = Demonstrations(torch.ones(4, 9, dtype=torch.long), lengths, mask, torch.tensor([7, 8, 9, 10]))
    shares = _shares(step, ranks)
    assert len(shares) == ranks
    assert sorted(row for share in shares for row in share.experience.rows.tolist()) == [7, 8, 9, 10]
    for share in shares:
        assert share.steps == [list(range(len(share.experience)))]


@pytest.mark.parametrize("known", [2, [2, 3]])
def test_engines_end_where_the_policy_has_learned_to_end(tmp_path: Path, known: int | list[int]) -> None:
    file = tmp_path / "generation_config.json"
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    file.write_text(json.dumps({"eos_token_id": known, "bos_token_id": 1}))
    assert write_ends(tmp_path, {}) == write_ends(tmp_path, {2: "</s>"}) == []
    assert write_ends(tmp_path, {2: "</s>", 7: "<|im_end|>"}) == ["<|im_end|>"]
    assert stop_token_ids(tmp_path, 2) == ((2, 7) if known == 2 else (2, 3, 7))
    assert json.loads(file.read_text())["bos_token_id"] == 1
    file.unlink()
    assert write_ends(tmp_path, {7: "<|im_end|>"}) == ["<|im_end|>"] and stop_token_ids(tmp_path, None) == (2, 7)


def test_the_saved_folder_has_what_the_data_taught(tmp_path: Path) -> None:
    def save_model(method: Any, folder: str) -> Answers:
        Path(folder).mkdir()
        Path(folder, "config.json").write_text(json.dumps({"eos_token_id": 2}))
        return Answers([])

    said = list[str]()
    run: Any = SimpleNamespace(
        trainer=SimpleNamespace(call=save_model),
        section=SimpleNamespace(chat_template=None),
        data=SimpleNamespace(ends={7: "<|im_end|>"}),
        config=SimpleNamespace(deadlines=SimpleNamespace(save_s=1.0)),
        report=SimpleNamespace(note=said.append),
        quality=None,
        quality_file="quality.json",
    )
    PolicyTraining._save(run, tmp_path / "policy")
    assert stop_token_ids(tmp_path / "policy", 2) == (2, 7) and "<|im_end|>" in said[0]
