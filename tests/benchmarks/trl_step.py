"""PPO steps of TRL's `PPOTrainer`, one whenever `ppo_step.py --peer` asks for it: `trl_step.py FOLDER CASE STEPS PIPE`.

The same models, prompts, lengths, epochs, threads and, as near as rows can be had for tokens, micro-batches as ours. In
bfloat16 its weights and its AdamW are bfloat16; ours has float32 masters. Reads a line of stdin before each step, and
writes the seconds of each step as a line to the file descriptor PIPE.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from tests.benchmarks.ppo_step import MICRO_BATCH_TOKENS, PROMPT_TOKENS, PROMPTS, RATE, case_of


class OneByOne(TrainerCallback):  # type: ignore[misc]
    """Waits for stdin before every step and writes its seconds."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._began = 0.0

    def _wait(self) -> None:
        sys.stdin.readline()
        self._began = time.perf_counter()

    def on_train_begin(self, *unused: Any, **more: Any) -> None:
        self._wait()

    def on_step_end(self, *unused: Any, **more: Any) -> None:
        os.write(self._pipe, f"{time.perf_counter() - self._began}\n".encode())
        self._wait()


def trainer(folder: Path, case: str, steps: int, callback: TrainerCallback) -> PPOTrainer:
    """`steps` optimizer steps an epoch of one: as ours, all rows are one mini-batch."""
    dtype, response, epochs = case_of(case)
    rows = max(size for size in (1, 2, 4, 8, 16, 32) if size * (PROMPT_TOKENS + response) <= MICRO_BATCH_TOKENS)
    settings = PPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        seed=0,
        learning_rate=RATE,
        total_episodes=steps * PROMPTS,
        num_ppo_epochs=epochs,
        num_mini_batches=1,
        num_sample_generations=0,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=PROMPTS // rows,
        local_rollout_forward_batch_size=PROMPTS,
        response_length=response,
        temperature=1.0,
    )
    weights = {"dtype": getattr(torch, dtype)}
    prompts = load_dataset("json", data_files=str(folder / "prompts.jsonl"), cache_dir=str(folder), split="train")
    prompts = prompts.rename_column("prompt_token_ids", "input_ids")
    return PPOTrainer(
        args=settings,
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", **weights),
        ref_model=AutoModelForCausalLM.from_pretrained(folder / "policy", **weights),
        reward_model=AutoModelForSequenceClassification.from_pretrained(folder / "reward", **weights),
        value_model=AutoModelForSequenceClassification.from_pretrained(folder / "reward", **weights),
        train_dataset=prompts,
        eval_dataset=prompts,
        callbacks=[callback],
    )


if __name__ == "__main__":
    place, named, count, pipe = sys.argv[1:]
    trainer(Path(place), named, int(count), OneByOne(int(pipe))).train()
