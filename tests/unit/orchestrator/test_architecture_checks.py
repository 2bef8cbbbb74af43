"""Architectures that roles or engines cannot run are refused before anything starts, by name and with a fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.architecture_checks import check_attention, check_cpu_engine
from orchestrator.errors import ConfigError
from orchestrator.model_checks import ModelFacts
from roles.config import ModelConfig
from tests.integration import architectures


def facts(folder: Path, config: dict[str, Any] | None = None) -> ModelFacts:
    return ModelFacts("actor.model", ModelConfig(path=str(folder)), folder, config or {})


@pytest.mark.parametrize(("name", "why"), [("Gemma2", "softcap"), ("GptOss", "s_aux"), ("Bloom", "2 of the 2 layers")])
def test_attention_that_packed_sequences_cannot_have(tmp_path: Path, name: str, why: str) -> None:
    architectures.config(name).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"actor\.model\.path={tmp_path}: .*{why}"):
        check_attention(facts(tmp_path))


@pytest.mark.parametrize("name", ["Llama", "Qwen3Moe", "GPT2", "DeepseekV3"])
def test_attention_that_they_can_have(tmp_path: Path, name: str) -> None:
    architectures.config(name).save_pretrained(tmp_path)
    check_attention(facts(tmp_path))


def test_latent_attention_on_cpu_has_one_size_and_one_dtype(tmp_path: Path) -> None:
    deepseek = facts(tmp_path, {"kv_lora_rank": 512, "qk_rope_head_dim": 64})
    check_cpu_engine(deepseek, "bfloat16")
    with pytest.raises(ConfigError, match=r"= 576\).*dtype is float32; set rollout\.engine\.dtype: bfloat16"):
        check_cpu_engine(deepseek, "float32")
    with pytest.raises(ConfigError, match=r"= 48\).*use device: cuda or another model"):
        check_cpu_engine(facts(tmp_path, {"kv_lora_rank": 32, "qk_rope_head_dim": 16}), "bfloat16")


def test_an_architecture_that_vllm_computes_otherwise_on_cpu_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Ernie4_5_MoeForCausalLM: vLLM's CPU build chooses other experts"):
        check_cpu_engine(facts(tmp_path, {"architectures": ["Ernie4_5_MoeForCausalLM"]}), "float32")
    check_cpu_engine(facts(tmp_path, {"architectures": ["LlamaForCausalLM"]}), "float32")
