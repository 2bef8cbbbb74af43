"""Files of prompts for tests, and what is read of them. `write` and `tokenizer` are in `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from orchestrator.config.loading import validate
from orchestrator.config.run import RunConfig
from orchestrator.data.prompts import PromptSource, heldout_prompts, read_questions
from roles.batch import Prompts

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "user", ":", "bot"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}bot :{% endif %}"
)


Write = Callable[[list[dict[str, Any]]], Path]


def configuration(path: Path | str, **changes: Any) -> RunConfig:
    prompts = {
        "train": {"path": str(path)},
        "heldout": {"path": str(path)},
        "max_tokens": 8,
        **changes.pop("prompts", {}),
    }
    data = {
        "run_dir": "runs/x",
        "steps": 1,
        "prompts": prompts,
        "actor": {"model": {"path": "policy"}},
        "reward": {"type": "model", "model": {"path": "reward"}},
        "rollout": {"prompts_per_step": 4, "max_response_tokens": 4},
    }
    return validate({**data, **changes})


def source_of(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> PromptSource:
    return PromptSource(read_questions(config.prompts, "train", tokenizer), config.seed)


def heldout(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> Prompts:
    questions = read_questions(config.prompts, "heldout", tokenizer)
    return heldout_prompts(questions, config.evaluation.prompts, config.seed)


LETTERS = [{"prompt": letter, "topic": i} for i, letter in enumerate("abcdefg")]


def drawn(source: PromptSource, steps: int, prompts: int = 3) -> list[str]:
    return [text for _ in range(steps) for text in source.next(prompts, 1).texts]
