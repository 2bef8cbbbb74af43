"""Model folders of two thousand parameters, and the prompts to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging

VOCABULARY = 40
PAD, BEGINS, ENDS = 0, 1, 2
CONTEXT = 64

POLICIES = ("policy", "other-policy")
CLASSIFIERS = ("reward", "other-reward", "critic", "other-critic")


def write(folder: Path) -> None:
    """Policies and classifiers of different weights, with one tokenizer; prompts, and texts of 4 to 6 tokens."""
    logging.disable_progress_bar()
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        for number, name in enumerate((*POLICIES, *CLASSIFIERS)):
            torch.manual_seed(number)
            kind: Any = LlamaForCausalLM if name in POLICIES else LlamaForSequenceClassification
            model = kind(model_config())
            if name in CLASSIFIERS:
                torch.nn.init.normal_(model.score.weight, std=0.3)
            model.save_pretrained(folder / name)
            words.save_pretrained(folder / name)
    for name, first, rows in (("train", 3, 9), ("heldout", 20, 5), ("other", 12, 9)):
        lines = [{"prompt": " ".join(f"w{first + row}" for _ in range(2 + row % 3)), "id": row} for row in range(rows)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, first in (("texts", 10), ("other-texts", 24)):
        rows = [{"prompt": f"w{first + n} w4", "completion": " w5" + f" w{first + n}" * (n % 3)} for n in range(7)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def model_config() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=BEGINS,
        eos_token_id=ENDS,
        pad_token_id=PAD,
        initializer_range=0.3,
        num_labels=1,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<s>": BEGINS, "</s>": ENDS} | {f"w{number}": number for number in range(3, VOCABULARY)}
    by_word = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    by_word.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=by_word, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=CONTEXT
    )
