"""Random models that stand for real ones in memory and time, with a tokenizer of 49152 made-up words.

`write(folder, "135m")` makes `folder/policy` and `folder/reward`, in bfloat16. Nothing is downloaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

VOCABULARY = 49152
PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int | None = None


SHAPES = {
    "tiny": Shape(64, 128, 2, 2, 1),  # for a look at what runs, not at figures
    "135m": Shape(576, 1536, 30, 9, 3),  # SmolLM2-135M
    "1b": Shape(2048, 8192, 16, 32, 8),  # Llama-3.2-1B, with fewer words
    "7b": Shape(4096, 11008, 32, 32, 32),  # Llama-2-7B
}


def write(folder: Path, name: str, device: str = "cuda") -> Path:
    """`folder/policy` and `folder/reward`; prompts in `folder/train.jsonl`. What is there is kept."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    if (folder / "train.jsonl").exists():
        return folder
    shape = SHAPES[name]
    for kind, factory in (("policy", LlamaForCausalLM), ("reward", LlamaForSequenceClassification)):
        config = LlamaConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            vocab_size=VOCABULARY,
            tie_word_embeddings=name != "7b",
            max_position_embeddings=8192,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
            **({"num_labels": 1} if kind == "reward" else {}),
        )
        torch.manual_seed(0)
        with torch.device(device):
            torch.set_default_dtype(torch.bfloat16)
            try:
                model = factory(config)
            finally:
                torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder / kind)
        _tokenizer().save_pretrained(folder / kind)
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
    prompts = [{"prompt": " ".join(f"w{(7 * row + word) % 1000 + 3}" for word in range(16))} for row in range(256)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    return folder


def _tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS} | {f"w{i}": i for i in range(3, VOCABULARY)}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
