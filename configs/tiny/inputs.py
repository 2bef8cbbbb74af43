"""Makes what `configs/tiny.yaml` reads: a tokenizer, two randomly initialised Llamas, prompts. Nothing is downloaded.

Start it with `.venv/bin/python configs/tiny/inputs.py [FOLDER]` (default `runs/inputs/tiny`); the tests call `write`.
The same files come out each time: `policy/` (causal LM), `reward/` (sequence classification with one label),
`train.jsonl` and `heldout.jsonl` with the columns `prompt` and `subject`, and comparisons for `tetrarch reward` in
`pairs.jsonl`: a response of lower-case letters is preferred to one of digits. `guess-train.jsonl` and
`guess-heldout.jsonl` have the columns `low` and `high` of a game in `guess.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging

DEFAULT = Path(__file__).resolve().parents[2] / "runs" / "inputs" / "tiny"
VOCABULARY = 320
CONTEXT = 256
PAD, BOS, EOS, USER, ASSISTANT = SPECIAL = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REQUESTS = ["tell me about", "what is", "draw", "where is", "do you like", "who made"]
QUALITIES = ["red", "old", "small", "quiet", "warm", "round", "kind", "late"]
SUBJECTS = ["river", "garden", "engine", "letter"]
HELDOUT = 32
HELDOUT_GAMES = 8


def prompts() -> list[dict[str, str]]:
    """192 short requests, every sixth of them held out: those come first."""
    rows = [
        {"prompt": f"{request} the {quality} {subject}", "subject": subject}
        for request, quality, subject in itertools.product(REQUESTS, QUALITIES, SUBJECTS)
    ]
    heldout = rows[::6]
    return heldout + [row for row in rows if row not in heldout]


def pairs() -> list[dict[str, str]]:
    """A comparison for each training prompt."""
    source = random.Random(1)

    def words(letters: str) -> str:
        return " ".join("".join(source.choices(letters, k=source.randint(2, 5))) for _ in range(source.randint(1, 4)))

    return [
        {"prompt": row["prompt"], "chosen": words(string.ascii_lowercase), "rejected": words(string.digits)}
        for row in prompts()[HELDOUT:]
    ]


def games() -> list[dict[str, int]]:
    """Every pair of two digits, the smaller one first; the last ones are held out."""
    rows = [{"low": low, "high": high} for low, high in itertools.combinations(range(10), 2)]
    random.Random(1).shuffle(rows)
    return rows


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: no text is unknown to it. Pad, BOS and EOS are three different tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((row["prompt"] for row in prompts()), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=CONTEXT,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model_config(words: PreTrainedTokenizerFast, **changes: int) -> LlamaConfig:
    """Hidden 64, 2 layers, 4 heads of 32 (the smallest that vLLM's CPU attention takes), 2 of keys and values."""
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        **changes,
    )


def write(folder: Path) -> None:
    """Fill `folder`; the generators of the caller are left as they were."""
    logging.disable_progress_bar()
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        policy = LlamaForCausalLM(model_config(words))
        torch.manual_seed(2)
        reward = LlamaForSequenceClassification(model_config(words, num_labels=1))
        # Final hidden states have a norm of √64, so scores spread by about 1.
        torch.nn.init.normal_(reward.score.weight, std=64**-0.5)
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    rows = prompts()
    files: dict[str, Sequence[Mapping[str, object]]] = {
        "heldout": rows[:HELDOUT],
        "train": rows[HELDOUT:],
        "pairs": pairs(),
        "guess-train": games()[:-HELDOUT_GAMES],
        "guess-heldout": games()[-HELDOUT_GAMES:] * 8,
    }
    for name, part in files.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    print(f"tiny inputs: {len(rows)} prompts, a policy and a reward model of {parameters:,} parameters, in {folder}")


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed looks for one, and warns that there is none
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT)
