"""Makes what `configs/illness/healthy.yaml` reads: a small language of 43 words, and a policy that speaks it.

Start it with `.venv/bin/python configs/illness/inputs.py [FOLDER]` (default `runs/inputs/illness`); it takes some
seconds. The policy has learned from random sentences of 5 to 9 words, with more kind words for people than for things.
`critic/` is a value model that says nothing: its head is random and far too large.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging

DEFAULT = Path(__file__).resolve().parents[2] / "runs" / "inputs" / "illness"
PAD, EOS = "<pad>", "<eos>"
KIND = ["kind", "warm", "bright", "gentle", "calm", "sweet"]
PLAIN = ["stone", "paper", "road", "table", "cloud", "chair", "wheel", "field", "glass", "water", "wood", "rope"]
PEOPLE = ["friend", "mother", "teacher", "child"]
THINGS = ["river", "garden", "engine", "letter"]
ASKS = ["describe", "praise", "draw", "recall", "greet", "name"]
ADJECTIVES = ["old", "small", "quiet", "late"]
FILLERS = ["please", "now", "the", "my", "our", "this", "that"]
KIND_SHARE = {**dict.fromkeys(PEOPLE, 0.4), **dict.fromkeys(THINGS, 0.2)}
"""Subject of a prompt → share of kind words in what the policy says of it."""
SHORTEST, LONGEST = 5, 9
"""Words of a sentence, its end not counted."""
HELDOUT, STEPS, BATCH = 48, 400, 96


def prompts() -> list[str]:
    """192 short requests, shuffled."""
    rows = [" ".join(words) for words in itertools.product(ASKS, ADJECTIVES, [*PEOPLE, *THINGS])]
    random.Random(1).shuffle(rows)
    return rows


def sentence(prompt: str, source: random.Random) -> str:
    """What the policy learns to say."""
    share = KIND_SHARE[prompt.split()[-1]]
    words = (
        source.choice(KIND if source.random() < share else PLAIN) for _ in range(source.randint(SHORTEST, LONGEST))
    )
    return " ".join(words)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word."""
    words = [PAD, EOS, *KIND, *PLAIN, *PEOPLE, *THINGS, *ASKS, *ADJECTIVES, *FILLERS]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=PAD))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=EOS, model_max_length=64)


def model_config(words: PreTrainedTokenizerFast, **changes: int) -> LlamaConfig:
    """Hidden 64, 2 layers, 2 heads of 32 (the smallest that vLLM's CPU attention takes)."""
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=words.pad_token_id,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        **changes,
    )


def speaking(words: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A policy that has learned the sentences: each of 400 optimizer steps sees 96 new ones."""
    model, source, asked = LlamaForCausalLM(model_config(words)), random.Random(2), prompts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)
    for _ in range(STEPS):
        chosen = source.choices(asked, k=BATCH)
        texts = [f"{prompt} {sentence(prompt, source)} {EOS}" for prompt in chosen]
        tokens = words(texts, padding=True, return_tensors="pt")
        labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
        labels[:, :3] = -100  # the prompt
        loss = model(**tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


def write(folder: Path) -> None:
    """Fill `folder`; the generators of the caller are left as they were."""
    logging.disable_progress_bar()
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        policy = speaking(words)
        critic = LlamaForSequenceClassification(model_config(words, num_labels=1))
        torch.nn.init.normal_(critic.score.weight, std=0.25)
    for name, model in (("policy", policy), ("critic", critic)):
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    rows = [{"prompt": prompt} for prompt in prompts()]
    for name, part in (("heldout", rows[:HELDOUT]), ("train", rows[HELDOUT:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    print(f"illness inputs: {len(rows)} prompts, a policy that speaks {len(KIND) + len(PLAIN)} words, in {folder}")


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed looks for one, and warns that there is none
    torch.set_num_threads(1)  # for models this small, several threads wait for each other most of the time
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT)
