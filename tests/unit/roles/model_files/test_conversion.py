"""From a configured model to a Hugging Face folder: GGUF files, cut layers, the cache, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

from roles.config.models import ModelConfig
from roles.errors import ModelError
from roles.model_files import conversion
from roles.model_files.conversion import resolve_model
from roles.text.tokenizer import load_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = [*"abcdefgh", "Ġ"]
TOKENS = [*SPECIAL, *LETTERS, "ab"]
HIDDEN, HEADS, KEY_HEADS, INNER, LAYERS = 32, 4, 2, 32, 3


def llama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
    )


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp keeps the two halves of a rotary pair side by side; transformers keeps them half a head apart."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    file: Path,
    say: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    tokens: Sequence[str] = TOKENS,
    change: Callable[[dict[str, NDArray[np.float32]]], None] = lambda tensors: None,
    pad: bool = True,
) -> dict[str, torch.Tensor]:
    """A tiny Llama as llama.cpp writes it, its pad equal to its EOS; returns its weights by transformers' names.

    `say` adds keys, `change` changes the tensors (by llama.cpp's names) before they are written. Without `pad` the file
    names no special token but EOS.
    """
    torch.manual_seed(0)
    state = AutoModelForCausalLM.from_config(llama()).state_dict()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(tokens))
    special = [token.startswith("<|") for token in tokens]
    writer.add_token_types([gguf.TokenType.CONTROL if control else gguf.TokenType.NORMAL for control in special])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    if pad:
        writer.add_bos_token_id(1)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
    say(writer)
    tensors = {}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in state.items():
        if name == "lm_head.weight":
            continue
        weight = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, HEADS if "q_proj" in name else KEY_HEADS)
        tensors[names.get_name(name, (".weight",))] = weight
    change(tensors)
    for name, weight in tensors.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return state


def write_folder(folder: Path, *, classifier: bool = False) -> None:
    auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    config = llama()
    if classifier:
        config.num_labels = 1
    auto.from_config(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<|endoftext|>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|endoftext|>").save_pretrained(
        folder
    )


def test_gguf_becomes_an_ordinary_folder_with_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    state = write_gguf(tmp_path / "source" / "tiny.gguf")
    folder = resolve_model(ModelConfig(path=str(tmp_path / "source"), gguf_file="tiny.gguf"), tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, state[name], rtol=0, atol=0, msg=name)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    model.save_pretrained(tmp_path / "again")


def test_gguf_gets_a_pad_of_its_own_without_a_new_embedding_row(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_gguf(tmp_path / "source" / "tiny.gguf")
    folder = resolve_model(ModelConfig(path=str(tmp_path / "source"), gguf_file="tiny.gguf"), tmp_path / "cache")
    tokenizer, model = load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 2)
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (0, 2)
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == len(TOKENS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("abc")["input_ids"]) == ["ab", "c"]


def test_conversion_happens_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_gguf(source / "tiny.gguf")
    config = ModelConfig(path=str(source), gguf_file="tiny.gguf")
    first = resolve_model(config, tmp_path / "cache")
    stamp = (first / "config.json").stat().st_mtime_ns
    assert resolve_model(config, tmp_path / "cache") == first
    assert (first / "config.json").stat().st_mtime_ns == stamp
    os.utime(source / "tiny.gguf", ns=(1, 1))
    assert resolve_model(config, tmp_path / "cache") != first


def test_an_adapter_is_merged_again_when_the_weights_of_its_base_change(tmp_path: Path) -> None:
    """Its base may be what another run leaves; config.json stays as it is."""
    write_folder(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(target_modules=["up_proj"])).save_pretrained(tmp_path / "adapter")
    said = tmp_path / "adapter/adapter_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}))
    config, name = ModelConfig(path=str(tmp_path / "adapter")), "model.norm.weight"
    before = load_file(resolve_model(config, tmp_path / "cache") / "model.safetensors")
    weights = load_file(tmp_path / "base/model.safetensors")
    save_file(weights | {name: weights[name] + 1}, tmp_path / "base/model.safetensors", {"format": "pt"})
    after = load_file(resolve_model(config, tmp_path / "cache") / "model.safetensors")
    assert torch.equal(after[name], before[name] + 1)


def test_a_cut_model_has_the_chat_template_that_is_there_now(tmp_path: Path) -> None:
    write_folder(tmp_path / "model")
    config = ModelConfig(path=str(tmp_path / "model"), layers=1)
    for template in ("one", "two"):
        (tmp_path / "model/chat_template.jinja").write_text(template)
        assert load_tokenizer(resolve_model(config, tmp_path / "cache")).chat_template == template


def test_layers_are_cut_from_a_gguf_file_and_the_whole_is_kept(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    state = write_gguf(tmp_path / "source" / "tiny.gguf")
    config = ModelConfig(path=str(tmp_path / "source"), gguf_file="tiny.gguf", layers=2)
    model = AutoModelForCausalLM.from_pretrained(resolve_model(config, tmp_path / "cache"))
    assert len(model.model.layers) == model.config.num_hidden_layers == 2
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, state[name], rtol=0, atol=0, msg=name)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cut_classifier_keeps_its_head(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", classifier=True)
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    folder = resolve_model(ModelConfig(path=str(tmp_path / "model"), layers=1), tmp_path / "cache")
    cut = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(cut.score.weight, whole.score.weight)
    assert len(cut.model.layers) == 1
    assert load_tokenizer(folder).pad_token == "<|endoftext|>"


def test_a_plain_folder_is_used_as_it_is(tmp_path: Path) -> None:
    write_folder(tmp_path / "model")
    assert resolve_model(ModelConfig(path=str(tmp_path / "model")), tmp_path / "cache") == tmp_path / "model"
    assert not (tmp_path / "cache").exists()


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF is not what follows")
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        resolve_model(ModelConfig(path=str(tmp_path), gguf_file="broken.gguf"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_more_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "model")
    with pytest.raises(ModelError, match=r"layers=9.*has 3"):
        resolve_model(ModelConfig(path=str(tmp_path / "model"), layers=9), tmp_path / "cache")


def test_a_missing_gguf_file_names_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").touch()
    with pytest.raises(ModelError, match=r"'tiny\.gguf' is not in .*other\.gguf"):
        resolve_model(ModelConfig(path=str(tmp_path), gguf_file="tiny.gguf"), tmp_path / "cache")


@pytest.mark.parametrize("path", ["./nowhere", "a/b/c"])
def test_a_missing_folder_is_not_sought_on_the_hub(tmp_path: Path, path: str) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        resolve_model(ModelConfig(path=path), tmp_path / "cache")


def test_a_hub_name_is_downloaded_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def offline(name: str, *, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        if name == "owner/there":
            return str(tmp_path)
        raise ConnectionError("no route")

    monkeypatch.setattr(conversion, "snapshot_download", offline)
    monkeypatch.setattr(
        conversion, "file_text", lambda name, file, revision: asked.append((name, revision)) or ("", None)
    )
    assert resolve_model(ModelConfig(path="owner/there"), tmp_path / "cache") == tmp_path
    with pytest.raises(ModelError, match=r"owner/model is neither a folder nor .*no route"):
        resolve_model(ModelConfig(path="owner/model"), tmp_path / "cache")
    asked.clear()
    with pytest.raises(ModelError, match=r"did not give its revision 0a1b2c \(no route\)"):
        resolve_model(ModelConfig(path="owner/model", revision="0a1b2c"), tmp_path / "cache")
    assert asked == [("owner/model", "0a1b2c")] * 2, "the file that is looked for, and the whole model"


def test_the_base_of_an_adapter_is_of_the_revision_that_the_adapter_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, asked = tmp_path / "adapter", list[tuple[str, str | None]]()
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").touch()
    found = conversion.source_folder

    def noted(path: str, revision: str | None = None) -> Path:
        asked.append((path, revision))
        if path == "owner/base":
            raise ModelError("far enough")
        return found(path, revision)

    monkeypatch.setattr(conversion, "source_folder", noted)
    said = {"base_model_name_or_path": "owner/base", "peft_type": "LORA"}
    for revision in ("0a1b2c", None):
        (adapter / "adapter_config.json").write_text(json.dumps({**said, "revision": revision}))
        with pytest.raises(ModelError, match="far enough"):
            resolve_model(ModelConfig(path=str(adapter)), tmp_path / "cache")
        assert asked[-1] == ("owner/base", revision)
    (adapter / "adapter_config.json").write_text(json.dumps({**said, "revision": "../x"}))
    with pytest.raises(ModelError, match=r"the revision '\.\./x', which is none of the hub"):
        resolve_model(ModelConfig(path=str(adapter)), tmp_path / "cache")
