from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from roles.batch_files import save_batch
from tests.unit.roles.test_batch import scored


def test_a_batch_is_saved_without_pickle(tmp_path: Path) -> None:
    batch = scored(1, 3)
    rollouts = replace(batch.rollouts, columns={"id": [7, {"deep": object}]})
    save_batch(replace(batch, rollouts=rollouts), tmp_path / "failed" / "step-000002.safetensors")
    tensors = load_file(tmp_path / "failed" / "step-000002.safetensors")
    whole = {f.name: part for part in (batch, rollouts) for f in fields(part)}
    assert tensors.keys() == whole.keys() - {"rollouts", "prompts", "responses", "columns", "counted", "named"}
    assert all(torch.equal(tensor, getattr(whole[name], name)) for name, tensor in tensors.items())
    texts = json.loads((tmp_path / "failed" / "step-000002.json").read_text())
    assert (texts["prompts"], texts["responses"]) == (rollouts.prompts, rollouts.responses)
    assert texts["columns"]["id"][0] == 7
