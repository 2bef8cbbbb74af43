"""Folders of models whose generation_config.json transformers loads with a warning and refuses to save."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from roles.config.models import ModelConfig
from roles.model_files.conversion import resolve_model
from roles.models.networks import PolicyModel
from roles.zero.model_folder import write_folder
from tests.unit.roles.model_files import test_conversion as models
from tests.unit.roles.zero.test_sharded import SETUP

ENDS = {"bos_token_id": 1, "eos_token_id": [2, 0]}
REFUSED: list[dict[str, Any]] = [
    {"temperature": 0.9, "top_p": 0.6},  # as in vicuna-7b-v1.5, without `do_sample`
    {"pad_token_id": -1},
    {"length_penalty": 1.2},
    {"output_attentions": True},
]


def says(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
    del found["transformers_version"]
    return found


@pytest.mark.parametrize("refused", REFUSED)
def test_a_trained_policy_is_saved_with_the_generation_configuration_that_it_was_loaded_with(
    refused: dict[str, Any], tmp_path: Path
) -> None:
    models.write_folder(tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text(json.dumps(ENDS | refused))
    model = PolicyModel.load(tmp_path / "model").model
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        model.generation_config.save_pretrained(tmp_path / "refused")
    setup = replace(SETUP, model_path=str(tmp_path / "model"))
    weights = {name: weight.detach() + 1 for name, weight in model.named_parameters()}
    for again in ("saved", "saved again"):
        write_folder(model, weights, tmp_path / again, setup)
        assert says(tmp_path / again) == ENDS | refused
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(weight, weights[name]) for name, weight in saved.named_parameters())


@pytest.mark.parametrize("made", ["cut", "merged"])
def test_a_model_is_converted_with_the_generation_configuration_that_it_was_loaded_with(
    made: str, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "model", tmp_path / "adapter"
    models.write_folder(base)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["up_proj"])).save_pretrained(
        adapter
    )
    said = adapter / "adapter_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"base_model_name_or_path": str(base)}))
    (base / "generation_config.json").write_text(json.dumps(ENDS | REFUSED[0]))
    config = ModelConfig(path=str(base), layers=1) if made == "cut" else ModelConfig(path=str(adapter))
    assert says(resolve_model(config, tmp_path / "cache")) == ENDS | REFUSED[0]
