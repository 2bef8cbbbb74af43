"""A sound configuration and its files, of which tests break one thing each, and what the door says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from orchestrator.checks.preparation import (
    prepare_evaluate,
    prepare_reward,
    prepare_reward_service,
    prepare_serve,
    prepare_train,
)
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.loading import validate, validate_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.run import RunConfig
from orchestrator.config.serving import RewardServingRun, ServingRun
from orchestrator.errors import ConfigError

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefgh"]
REWARD = "def score(prompts, responses, *, response_token_ids, finished, columns):\n    return [0.0] * len(prompts)\n"


def model_folder(path: Path, *, reward: bool = False, words: list[str] = WORDS, **sizes: Any) -> Path:
    """What the door looks at: a configuration, a tokenizer, and the headers of small weights."""
    sizes = {"vocab_size": len(words), "max_position_embeddings": 64, "num_attention_heads": 4, "head_dim": 32, **sizes}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_key_value_heads": 2, "num_hidden_layers": 2, **sizes}
    kind: Any = LlamaForSequenceClassification if reward else LlamaForCausalLM
    kind(LlamaConfig(num_labels=1, **sizes)).save_pretrained(path)
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(path)
    return path


class World:
    """A sound configuration in a folder of its own; tests break one thing each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.policy = model_folder(root / "policy")
        self.reward = model_folder(root / "reward", reward=True)
        self.prompts = root / "prompts.jsonl"
        self.prompts.write_text('{"prompt": "a b"}\n{"prompt": "c"}\n')
        self.function = root / "score.py"
        self.function.write_text(REWARD)
        self.run_dir = root / "run"
        self.data: dict[str, Any] = {
            "run_dir": str(self.run_dir),
            "model_cache": str(root / "cache"),
            "steps": 2,
            "prompts": {"train": {"path": str(self.prompts)}, "heldout": {"path": str(self.prompts)}, "max_tokens": 8},
            "actor": {"model": {"path": str(self.policy)}},
            "reward": {"type": "model", "model": {"path": str(self.reward)}},
            "rollout": {"prompts_per_step": 4, "max_response_tokens": 8, "engine": {"kv_cache_gib": 0.01}},
            "reward_training": {
                "output": str(root / "trained"),
                "model": {"path": str(self.policy)},
                "max_tokens": 32,
                "pairs": {"type": "sampled", "judge": {"path": str(self.function)}},
            },
        }

    def set(self, path: str, value: Any) -> None:
        *sections, key = path.split(".")
        section = self.data
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value

    @property
    def config(self) -> RunConfig:
        return validate(self.data)


def check(command: str, world: World) -> None:
    if command == "train":
        prepare_train(world.config, resume=None)
    elif command == "evaluate":
        prepare_evaluate(validate_root(EvaluationRun, world.data))
    elif command == "serve":
        prepare_serve(validate_root(ServingRun, world.data))
    elif command == "serve --reward":
        prepare_reward_service(validate_root(RewardServingRun, world.data))
    else:
        prepare_reward(validate_root(RewardTrainingRun, world.data), None)


def refused(world: World, *parts: str, command: str = "train") -> str:
    with pytest.raises(ConfigError) as caught:
        check(command, world)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    return message


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The folder's tensors after `change`, in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def say(folder: Path, **keys: Any) -> None:
    """Change the folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


PAIRS = "".join(f'{{"prompt": "{prompt}", "chosen": "b", "rejected": "c"}}\n' for prompt in "aeiou")
