"""Architectures that roles or engines cannot run are refused before anything starts, by name and with a fix."""

from __future__ import annotations

import ast
import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from orchestrator.checks.model_support import (
    HEAD_SIZES,
    OWN_HEAD_ALWAYS,
    OWN_HEAD_NEVER,
    UNREAD,
    check_attention,
    check_cpu_engine,
    check_engine_class,
    check_engine_weights,
)
from orchestrator.checks.models import ModelFacts, check_context
from orchestrator.errors import ConfigError
from roles.config.models import ModelConfig
from tests.integration import architectures


def facts(folder: Path, config: dict[str, Any] | None = None) -> ModelFacts:
    return ModelFacts("actor.model", ModelConfig(path=str(folder)), folder, config or {})


@pytest.mark.parametrize(("name", "why"), [("Bloom", "2 of the 2 layers")])
def test_attention_that_packed_sequences_cannot_have(tmp_path: Path, name: str, why: str) -> None:
    architectures.config(name).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"actor\.model\.path={tmp_path}: .*{why}"):
        check_attention(facts(tmp_path))


@pytest.mark.parametrize("name", ["Llama", "Qwen3Moe", "GPT2", "DeepseekV3", "Gemma2", "GptOss"])
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


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("PhimoeForCausalLM", "leaves the bias of its head out"),
        ("PhiMoEForCausalLM", "leaves the bias of its head out"),
        ("GptOssForCausalLM", "no push reaches it"),
    ],
)
def test_an_architecture_that_vllm_has_otherwise_everywhere_is_refused_by_name(
    tmp_path: Path, name: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name}: vLLM 0.32 .*{why}.*use another model"):
        check_engine_class(facts(tmp_path, {"architectures": [name]}))
    check_engine_class(facts(tmp_path, {"architectures": ["LlamaForCausalLM"]}))
    check_engine_class(facts(tmp_path, {"architectures": None}))


WINDOWS = {"use_sliding_window": True, "num_hidden_layers": 4}


@pytest.mark.parametrize(
    ("kind", "layers", "mixed"),
    [
        ("qwen2", {"max_window_layers": 1}, True),
        ("qwen2", {"max_window_layers": 0}, False),
        ("qwen2", {"max_window_layers": 4}, False),
        ("qwen2", {"max_window_layers": 1, "use_sliding_window": False}, False),
        ("qwen3", {"max_window_layers": 3}, True),
        ("qwen3", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, True),
        ("qwen3", {"max_window_layers": 1, "layer_types": ["sliding_attention"] * 4}, False),
        ("qwen2_moe", {}, True),
        ("qwen2_moe", {"max_window_layers": 0}, False),
        ("qwen2_moe", {"use_sliding_window": False, "layer_types": ["full_attention", "sliding_attention"] * 2}, False),
        ("qwen3_moe", {"max_window_layers": 1}, False),
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"] * 2}, False),
    ],
)
def test_a_qwen_has_windows_in_all_layers_or_in_none(
    tmp_path: Path, kind: str, layers: dict[str, Any], mixed: bool
) -> None:
    model = facts(tmp_path, {"model_type": kind} | WINDOWS | layers)
    if not mixed:
        check_engine_class(model)
        return
    with pytest.raises(ConfigError, match=rf"windows in some of its 4 layers, and vLLM 0\.32 runs a {kind} with"):
        check_engine_class(model)


def test_a_key_that_vllm_does_not_read_is_refused_with_its_value(tmp_path: Path) -> None:
    stable = {"architectures": ["StableLmForCausalLM"]}
    check_engine_class(facts(tmp_path, stable))
    check_engine_class(facts(tmp_path, stable | {"use_parallel_residual": False}))
    with pytest.raises(ConfigError, match=r"with use_parallel_residual=True, .* \(it computes as with False\)"):
        check_engine_class(facts(tmp_path, stable | {"use_parallel_residual": True}))


def test_keys_that_vllm_does_not_read_are_not_in_its_sources_and_transformers_reads_them() -> None:
    sources = vllm_sources()
    known = {name: kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    for architecture, taken in UNREAD.items():
        config = transformers.CONFIG_MAPPING[known[architecture]]()
        assert {key: getattr(config, key) for key in taken} == taken
        assert not re.findall(rf"\b({'|'.join(taken)})\b", sources[architecture])
        assert set(taken) <= set(
            re.findall(r"config\.(\w+)", inspect.getsource(inspect.getmodule(getattr(transformers, architecture))))
        )


@pytest.mark.parametrize(
    ("name", "tied", "why"),
    [
        ("Olmoe", True, r"OlmoeForCausalLM whose embedding is its head .* no push reaches; store its head .* or use"),
        ("Olmoe", False, None),
        ("Olmoe", None, None),
        ("Cohere2", False, r"Cohere2ForCausalLM with a head of its own .* takes its embedding as head; use another"),
        ("Cohere2", True, None),
        ("Cohere2", None, None),
        ("Llama", True, None),
        ("Llama", False, None),
    ],
)
def test_a_head_that_vllm_ties_or_unties_whatever_the_folder_says_is_refused(
    tmp_path: Path, name: str, tied: bool | None, why: str | None
) -> None:
    said = {} if tied is None else {"tie_word_embeddings": tied}
    model = facts(tmp_path, {"architectures": [f"{name}ForCausalLM"]} | said)
    if why is None:
        check_engine_class(model)
        return
    with pytest.raises(ConfigError, match=why):
        check_engine_class(model)


@pytest.mark.parametrize("name", ["Qwen2", "OPT", "GPT2"])
def test_a_tied_head_without_its_embedding_is_no_policy_for_vllm(tmp_path: Path, name: str) -> None:
    config = architectures.config(name)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model, file = facts(tmp_path, config.to_dict()), tmp_path / "model.safetensors"
    check_engine_weights(model)
    tensors = load_file(file)
    embedding = next(key for key in tensors if key.endswith(("embed_tokens.weight", "wte.weight")))
    save_file({**tensors, "lm_head.weight": tensors[embedding].clone()}, file)
    check_engine_weights(model)
    save_file({"lm_head.weight": tensors.pop(embedding), **tensors}, file)
    with pytest.raises(ConfigError, match=r"stores lm_head\.weight without the embedding .*; save it anew with transf"):
        check_engine_weights(model)


def test_the_heads_are_those_of_vllms_classes() -> None:
    """As they stand in its sources, for the architectures that transformers can tie: without a word of tying in the
    module of a class that makes a head, without a head, or with a head that is tied without a condition."""
    always, never = set(), set()
    for architecture, source in vllm_sources().items():
        name = architecture.removesuffix("ForCausalLM")
        ties = re.search(r"\btie_weights\(|lm_head\.weight = ", source)
        if "ParallelLMHead(" in source and not ties:
            always.add(name)
        elif "ParallelLMHead(" not in source or "tie_word_embeddings" not in source:
            never.add(name)
    never_tied = {"Inkling", "KimiLinear", "NemotronH"}
    assert all(not getattr(transformers, f"{name}ForCausalLM")._tied_weights_keys for name in never_tied)
    assert (always - never_tied, never) == (set(OWN_HEAD_ALWAYS), set(OWN_HEAD_NEVER))


def vllm_sources() -> dict[str, str]:
    """Architecture → the modules of its class in vLLM and of that class's bases, for those that transformers has."""
    (package,) = map(Path, find_spec("vllm").submodule_search_locations)  # type: ignore[union-attr, arg-type]
    models = package / "model_executor/models"
    registry = ast.parse((models / "registry.py").read_text())
    (table,) = (
        node.value
        for node in registry.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_TEXT_GENERATION_MODELS"
    )
    found = {}
    for architecture, (module, _) in ast.literal_eval(table).items():
        if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            continue
        own = module.startswith("vllm.")
        name = module.removeprefix("vllm.").replace(".", "/")
        file = package / name / "nvidia/model.py" if own else models / f"{name}.py"
        source = file.read_text()
        for base, names in re.findall(r"^from \S*\.(\w+) import (\([^)]*\)|.*)", source, re.M):
            if "ForCausalLM" in names:
                source += (models / f"{base}.py").read_text()
        found[architecture] = source
    return found


@pytest.mark.parametrize("name", sorted({*OWN_HEAD_ALWAYS, *OWN_HEAD_NEVER}))
def test_transformers_default_for_them_is_what_vllm_does(name: str) -> None:
    known = {classes: kind for kind, classes in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    config = transformers.CONFIG_MAPPING[known[f"{name}ForCausalLM"]]()
    assert config.get_text_config().tie_word_embeddings == (name in OWN_HEAD_NEVER)


def test_head_sizes_are_those_of_vllms_attention_on_cpu() -> None:
    """As they stand in its source: to import it takes seconds."""
    (package,) = find_spec("vllm").submodule_search_locations  # type: ignore[union-attr, misc]
    source = ast.parse(Path(package, "v1/attention/backends/cpu_attn.py").read_text())
    found = [
        ast.literal_eval(node.body[0].value)  # type: ignore[attr-defined]
        for node in ast.walk(source)
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes"
    ]
    assert found == [list(HEAD_SIZES)]


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}, 16),
        ({"model_type": "qwen3", "hidden_size": 64, "num_attention_heads": 4, "head_dim": 8}, 8),
        ({"model_type": "gpt2", "n_embd": 48, "n_head": 3}, 16),
        ({"model_type": "unknown", "hidden_size": 64, "num_attention_heads": 4}, 16),
    ],
)
def test_heads_of_another_size_are_refused_by_number(tmp_path: Path, config: dict[str, Any], size: int) -> None:
    sizes = {"num_hidden_layers": 2, "n_layer": 2, "intermediate_size": 64, "vocab_size": 50, "n_positions": 64}
    with pytest.raises(ConfigError, match=rf"attention heads of {size} numbers \(head_dim\).*32, 64, 80"):
        check_cpu_engine(facts(tmp_path, sizes | config), "float32")


def test_a_head_that_config_json_leaves_out_is_what_transformers_takes(tmp_path: Path) -> None:
    """128 for Qwen3, whatever its width."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 50}
    check_cpu_engine(facts(tmp_path, {"model_type": "qwen3", "intermediate_size": 64, **sizes}), "float32")


LONG = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [4.0]}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {**LONG, "original_max_position_embeddings": 64}},
        {"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 64},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64},
        {"rope_parameters": {"sliding_attention": {"rope_type": "default"}, "full_attention": LONG}}
        | {"original_max_position_embeddings": 64},
    ],
)
def test_samples_beyond_which_rotary_positions_are_scaled_otherwise_are_refused(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    """A trainer's log-probability of a sample would depend on the other samples of its pass, and an engine's not."""
    model = facts(tmp_path, {"max_position_embeddings": 1024, **config})
    check_context(model, 64, "max_tokens")
    with pytest.raises(ConfigError, match=r"max_tokens=65 is 65 tokens, and beyond 64 actor\.model\.path=.*otherwise"):
        check_context(model, 65, "max_tokens")


def test_rotary_positions_of_one_scaling_are_read_to_the_end_of_the_context(tmp_path: Path) -> None:
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    check_context(facts(tmp_path, {"max_position_embeddings": 1024, "rope_parameters": scaled}), 1024, "max_tokens")
