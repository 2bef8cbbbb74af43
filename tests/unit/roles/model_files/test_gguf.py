"""What a GGUF file says of its model arrives in the folder, or the file is refused by the key that would be lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig

from roles.config.models import ModelConfig
from roles.errors import ModelError
from roles.model_files.conversion import resolve_model
from roles.model_files.gguf_file import complete
from roles.model_files.gguf_header import GgufFile
from roles.text.tokenizer import filler, load_tokenizer
from tests.unit.roles.model_files.test_conversion import LETTERS, TOKENS, llama, write_gguf

Say = Callable[[gguf.GGUFWriter], None]


def converted(root: Path, say: Say = lambda writer: None, **options: Any) -> Path:
    """The folder that a file becomes."""
    (root / "source").mkdir(exist_ok=True)
    write_gguf(root / "source" / "tiny.gguf", say, **options)
    return resolve_model(ModelConfig(path=str(root / "source"), gguf_file="tiny.gguf"), root / "cache")


def refused(root: Path, message: str, say: Say = lambda writer: None, **options: Any) -> None:
    with pytest.raises(ModelError, match=message):
        converted(root, say, **options)
    assert not [folder for folder in (root / "cache").iterdir() if not folder.name.startswith("unfinished")]


def frequencies(config: LlamaConfig) -> torch.Tensor:
    """Of rotary positions, and what cosines are multiplied by: as a model of `config` has them."""
    rotary = AutoModelForCausalLM.from_config(config).model.rotary_emb
    return torch.cat([rotary.inv_freq, torch.tensor([rotary.attention_scaling])])


def with_rope(**parameters: Any) -> LlamaConfig:
    """The tiny model with other `rope_parameters`."""
    config = llama()
    config.max_position_embeddings = 64
    config.rope_parameters = {"rope_theta": 10000.0, **parameters}
    return config


def linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)
    writer.add_rope_scaling_finetuned(True)


def yarn_with_betas(writer: gguf.GGUFWriter) -> None:
    yarn(writer)
    writer.add_float32("llama.rope.scaling.yarn_beta_fast", 8.0)
    writer.add_float32("llama.rope.scaling.yarn_beta_slow", 2.0)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("say", "parameters"),
    [
        (linear, {"rope_type": "linear", "factor": 4.0}),
        (lambda writer: writer.add_rope_scaling_factor(2.0), {"rope_type": "linear", "factor": 2.0}),
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.NONE), {"rope_type": "default"}),
        (lambda writer: writer.add_rope_scaling_orig_ctx_len(16), {"rope_type": "default"}),
        (yarn, YARN),
        (yarn_with_betas, {**YARN, "beta_fast": 8.0, "beta_slow": 2.0}),
    ],
)
def test_rope_scaling_arrives(tmp_path: Path, say: Say, parameters: dict[str, Any]) -> None:
    config = AutoConfig.from_pretrained(converted(tmp_path, say))
    assert torch.equal(frequencies(config), frequencies(with_rope(**parameters)))
    assert ("yarn" in str(config.rope_parameters)) == (parameters["rope_type"] == "yarn")


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), r"llama\.rope\.scaling\.type='longrope'"),
        (lambda w: (yarn(w), w.add_rope_scaling_attn_factors(1.5)), r"llama\.rope\.scaling\.attn_factor=1\.5"),
        (lambda w: (yarn(w), w.add_rope_scaling_yarn_log_mul(0.1)), r"llama\.rope\.scaling\.yarn_log_multiplier=0\.1"),
        (lambda w: (linear(w), w.add_float32("llama.rope.scaling.yarn_beta_fast", 8.0)), r"yarn_beta_fast=8\.0"),
        (lambda w: w.add_float32("llama.rope.scale_linear", 2.0), r"llama\.rope\.scale_linear=2\.0"),
        (
            lambda w: w.add_rope_dimension_count(4),
            r"weights of other shapes than it says: .*q_proj.weight \(32, 32\), not \(16, 32\)",
        ),
        (lambda w: (w.add_key_length(8), w.add_rope_dimension_count(4)), r"llama\.rope\.dimension_count=4"),
        (lambda w: w.add_value_length(16), r"weights of other shapes than it says"),
        (lambda w: w.add_sliding_window(16), r"llama\.attention\.sliding_window=16"),
        (lambda w: w.add_clamp_kqv(3.0), r"llama\.attention\.clamp_kqv=3\.0"),
        (lambda w: w.add_logit_scale(0.5), r"llama\.logit_scale=0\.5"),
        (lambda w: w.add_causal_attention(False), r"llama\.attention\.causal=False"),
        (lambda w: w.add_expert_count(8), r"llama\.expert_count=8"),
        (lambda w: w.add_string("tokenizer.ggml.pre", "deepseek-llm"), r"tokenizer\.ggml\.pre='deepseek-llm'"),
        (lambda w: w.add_type("adapter"), r"holds a adapter, not a model"),
        (
            lambda w: (w.add_uint16("split.no", 0), w.add_uint16("split.count", 3)),
            r"part 1 of 3 .*split\.count=3.*--merge",
        ),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_its_key(tmp_path: Path, say: Say, message: str) -> None:
    refused(tmp_path, message, say)


def test_keys_without_effect_pass(tmp_path: Path) -> None:
    def say(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", 1)
        writer.add_expert_count(0)
        writer.add_causal_attention(True)
        writer.add_key_length(8)
        writer.add_value_length(8)
        writer.add_rope_dimension_count(8)
        writer.add_name("tiny")

    converted(tmp_path, say)


def llama_3(config: LlamaConfig) -> np.ndarray[Any, Any]:
    """The factors that llama.cpp writes for `config`: undivided frequencies by divided ones."""
    plain = with_rope(rope_type="default", rope_theta=config.rope_parameters["rope_theta"])
    plain.head_dim = config.head_dim
    factors = frequencies(plain)[:-1] / frequencies(config)[:-1]
    return factors.numpy().astype(np.float32)


@pytest.mark.parametrize(
    ("theta", "width", "parameters"),
    [
        (500000.0, 128, {"factor": 8.0, "original_max_position_embeddings": 8192}),
        (500000.0, 64, {"factor": 32.0, "original_max_position_embeddings": 8192}),
        (10000.0, 32, {"factor": 8.0, "original_max_position_embeddings": 64}),
        (10000.0, 64, {"factor": 4.0, "original_max_position_embeddings": 300, "low_freq_factor": 2.0}),
        (10000.0, 64, {"factor": 4.0, "original_max_position_embeddings": 100, "high_freq_factor": 9.0}),
        (10000.0, 8, {"factor": 8.0, "original_max_position_embeddings": 64}),
        (10000.0, 8, {"factor": 8.0, "original_max_position_embeddings": 200}),
        (10000.0, 8, {"factor": 8.0, "original_max_position_embeddings": 20}),
    ],
)
def test_llama_3s_frequency_factors_become_parameters(
    tmp_path: Path, theta: float, width: int, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they were made of: the frequencies are the same."""
    factors = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": theta}
    config = with_rope(**{**factors, **parameters})
    config.head_dim = width
    divided = llama_3(config)
    file = GgufFile(tmp_path, "llama", {"llama.rope.freq_base": theta}, ("rope_freqs.weight",))
    monkeypatch.setattr(
        "roles.model_files.gguf_rope._read", lambda file, name: torch.tensor(divided, dtype=torch.float64)
    )
    plain = with_rope(rope_type="default")
    plain.head_dim = width
    made = complete(plain, file)
    torch.testing.assert_close(frequencies(made), frequencies(config), rtol=1e-5, atol=0)
    assert made.rope_parameters["factor"] == pytest.approx(parameters["factor"])


def test_frequency_factors_of_a_file_arrive(tmp_path: Path) -> None:
    parameters = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 8.0}
    config = with_rope(**parameters, original_max_position_embeddings=64)
    folder = converted(tmp_path, change=lambda tensors: tensors.update({"rope_freqs.weight": llama_3(config)}))
    made = AutoConfig.from_pretrained(folder)
    torch.testing.assert_close(frequencies(made), frequencies(config), rtol=1e-5, atol=0)
    assert "rope_freqs" not in str(AutoModelForCausalLM.from_pretrained(folder).state_dict().keys())


@pytest.mark.parametrize(
    ("factors", "say", "message"),
    [
        ([1.0, 3.0, 2.0, 4.0], lambda w: None, r"rope_freqs\.weight, whose factors are not Llama 3's"),
        ([1.0, 2.0], lambda w: None, r"rope_freqs\.weight of 2 numbers for 4 frequencies"),
        ([1.0, 1.0, 2.0, 4.0], yarn, r"rope_freqs\.weight beside llama\.rope\.scaling\.type=yarn"),
    ],
)
def test_other_frequency_factors_are_refused(tmp_path: Path, factors: Sequence[float], say: Say, message: str) -> None:
    tensor = np.array(factors, np.float32)
    refused(tmp_path, message, say, change=lambda tensors: tensors.update({"rope_freqs.weight": tensor}))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("blk.0.attn_q.bias", r"1 tensors that its model has not: blk\.0\.attn_q\.bias"),
        ("rope_factors_long.weight", r"tensors that its model has not: rope_factors_long\.weight"),
        ("blk.3.attn_q.weight", r"tensors that its model has not: blk\.3\.attn_q\.weight"),
    ],
)
def test_a_tensor_too_many_is_named(tmp_path: Path, extra: str, message: str) -> None:
    refused(tmp_path, message, change=lambda tensors: tensors.update({extra: np.ones(4, np.float32)}))


@pytest.mark.parametrize("lost", ["blk.1.ffn_up.weight", "token_embd.weight", "output_norm.weight"])
def test_a_lost_tensor_is_named(tmp_path: Path, lost: str) -> None:
    names = {
        "blk.1.ffn_up.weight": r"layers\.1\.mlp\.up_proj",
        "token_embd.weight": "embed",
        "output_norm.weight": "norm",
    }
    refused(tmp_path, rf"lacks weights of its model: .*{names[lost]}", change=lambda tensors: tensors.pop(lost))


def test_a_tensor_of_another_shape_and_a_cut_file(tmp_path: Path) -> None:
    def narrow(tensors: dict[str, Any]) -> None:
        tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"][:16]

    refused(tmp_path, r"other shapes than it says: .*up_proj\.weight \(16, 32\), not \(32, 32\)", change=narrow)
    file = tmp_path / "source" / "tiny.gguf"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ModelError, match=r"is not a whole GGUF file"):
        GgufFile.read(file)


# Tokens

LLAMA_3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", *LETTERS, "ab"]
"""As many as in the model, none of them `<|endoftext|>`."""


def test_a_byte_level_vocabulary_needs_no_endoftext(tmp_path: Path) -> None:
    """transformers adds it, beyond the embeddings."""
    folder = converted(tmp_path, tokens=LLAMA_3)
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == len(TOKENS) == AutoConfig.from_pretrained(folder).vocab_size
    assert tokenizer.convert_ids_to_tokens(range(len(LLAMA_3))) == LLAMA_3
    assert tokenizer.convert_ids_to_tokens(tokenizer("abc<|eot_id|>")["input_ids"]) == ["ab", "c", "<|eot_id|>"]
    assert tokenizer.decode(tokenizer("ab c")["input_ids"], skip_special_tokens=True) == "ab c"
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|eot_id|>", "<|end_of_text|>")
    assert tokenizer.pad_token == "<|begin_of_text|>"


def test_bos_pads_where_nothing_else_can(tmp_path: Path) -> None:
    words = ["x", "<|bos|>", "<|eos|>", *LETTERS, "ab"]
    tokenizer = load_tokenizer(converted(tmp_path, lambda writer: writer.add_bos_token_id(1), tokens=words, pad=False))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|bos|>", "<|eos|>")


def test_a_vocabulary_in_which_nothing_can_pad(tmp_path: Path) -> None:
    """As GPT-2's: nothing reads padding."""
    tokenizer = load_tokenizer(converted(tmp_path, tokens=["x", "y", "<|eos|>", *LETTERS, "ab"], pad=False))
    assert (tokenizer.eos_token, filler(tokenizer)) == ("<|eos|>", tokenizer.eos_token_id)


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (True, True), (False, False), (None, None)])
def test_whether_tokens_are_added_arrives(tmp_path: Path, bos: bool | None, eos: bool | None) -> None:
    def say(writer: gguf.GGUFWriter) -> None:
        if bos is not None and eos is not None:
            writer.add_add_bos_token(bos)
            writer.add_add_eos_token(eos)

    for number, tokens in enumerate((TOKENS, LLAMA_3)):
        (tmp_path / str(number)).mkdir()
        tokenizer = load_tokenizer(converted(tmp_path / str(number), say, tokens=tokens))
        assert tokenizer("abc")["input_ids"] == [1] * bool(bos) + [12, 5] + [2] * bool(eos)


@pytest.mark.parametrize(("kind", "pieces"), [("smollm", ["Ġ", "1", "2", "Ġx"]), ("gpt-2", ["Ġ12", "Ġx"])])
def test_texts_are_split_as_the_file_says(tmp_path: Path, kind: str, pieces: list[str]) -> None:
    tokenizer = load_tokenizer(converted(tmp_path, lambda writer: writer.add_tokenizer_pre(kind)))
    found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(" 12 x")
    assert [piece for piece, _ in found] == pieces


def test_the_end_of_a_turn_ends_a_response_too(tmp_path: Path) -> None:
    folder = converted(tmp_path, lambda writer: writer.add_eot_token_id(1))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 1]
    folder = converted(tmp_path, lambda writer: writer.add_eot_token_id(2))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 2
