"""A task whose optimum is known, as `tetrarch train` sees it: a small model, a prompt, a reward function, a YAML file.

Everything between the command and the trained folders is the whole system; the optimum and what was reached are
computed here, from the trained model's own probabilities.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from orchestrator.config.yaml_text import to_yaml
from roles.models.networks import ValueModel
from roles.packing import pack

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 32
"""Tokens that can be drawn."""
PROMPT = 0
"""The one token of the one prompt."""
PAD, END = VOCABULARY, VOCABULARY + 1
"""What the tokenizer must have besides; the policy never draws them, so nothing but its limit ends a response."""
NEVER = -100.0


def save_policy(folder: Path, *, spread: float, eos: int = END) -> Path:
    """A Llama of one layer; the logits of what can be drawn have about the standard deviation `spread`.

    `eos` ends a response; by default nothing does. All states have a large first coordinate in common, on which the
    logits of padding and `END` are so low that their probability is 0.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=PAD,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        model.model.embed_tokens.weight[:, 0] = 5.0
        model.lm_head.weight.normal_(0, spread / config.hidden_size**0.5)
        model.lm_head.weight[[PAD, END]] = 0.0
        model.lm_head.weight[[PAD, END], 0] = NEVER
    model.save_pretrained(folder)
    words = {f"t{i}": i for i in range(VOCABULARY)} | {"<pad>": PAD, "<end>": END}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token=next(word for word, number in words.items() if number == eos),
    ).save_pretrained(folder)
    return folder


def start(command: str, file: Path, config: dict[str, Any]) -> None:
    """Write the configuration, and run `tetrarch COMMAND` on it."""
    file.write_text(to_yaml(config))
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", command, str(file)],
        cwd=ROOT,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Task:
    """One run of `tetrarch train` on one prompt."""

    folder: Path
    """Empty; everything goes there."""
    reward: str
    """Body of `def of(ids: list[int], finished: bool) -> float`."""
    tokens: int
    """Longest response."""
    spread: float
    """Of the reference's logits."""
    eos: int = END
    steps: int = 150
    responses: int = 256
    learning_rate: float = 1e-3
    epochs: int = 4
    sampling: dict[str, float] = field(default_factory=dict)
    """Further keys of the section `rollout`."""

    def train(self, **sections: Any) -> Trained:
        """Run it, with some keys of the configuration as given."""
        folder = self.folder
        save_policy(folder / "policy", spread=self.spread, eos=self.eos)
        (folder / "prompts.jsonl").write_text(json.dumps({"prompt_token_ids": [PROMPT]}) + "\n")
        (folder / "reward.py").write_text(
            f"def of(ids, finished):\n    {self.reward}\n\n\n"
            "def score(prompts, responses, *, response_token_ids, finished, columns):\n"
            "    return [float(of(*row)) for row in zip(response_token_ids, finished, strict=True)]\n"
        )
        start("train", folder / "task.yaml", self._config() | sections)
        return Trained(folder / "policy", folder / "run")

    def _config(self) -> dict[str, Any]:
        trained = {"learning_rate": self.learning_rate, "schedule": {"type": "linear"}}
        model = {"path": str(self.folder / "policy")}
        return {
            "run_dir": str(self.folder / "run"),
            "steps": self.steps,
            "prompts": {"train": {"path": str(self.folder / "prompts.jsonl")}, "max_tokens": 1},
            "actor": {"model": model, "optimizer": trained},
            "critic": {"model": model, "optimizer": trained},
            "reward": {"type": "function", "path": str(self.folder / "reward.py")},
            "rollout": {
                "prompts_per_step": 1,
                "responses_per_prompt": self.responses,
                "max_response_tokens": self.tokens,
                "engine": {"kv_cache_gib": 0.1},
                **self.sampling,
            },
            "ppo": {"epochs": self.epochs},
            "report": {"tensorboard": False, "html": False},
        }


def ppo(beta: float | None = None, epochs: int = 4, **more: Any) -> dict[str, Any]:
    """The section `ppo`, with a fixed KL coefficient if one is given."""
    kl = {} if beta is None else {"kl": {"controller": {"type": "fixed", "coefficient": beta}}}
    return {"epochs": epochs, **kl, **more}


@dataclass(frozen=True)
class Trained:
    """What a run left behind."""

    reference: Path
    run_dir: Path

    def logprobs(self, folder: Path, responses: Tensor) -> Tensor:
        """float64 `[batch, time, VOCABULARY]`: the model's next-token log-probabilities before each response token."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        prompt = torch.full((len(responses), 1), PROMPT)
        with torch.no_grad():
            logits = model(torch.cat([prompt, responses], 1)[:, :-1]).logits
        wide: Tensor = logits.double().log_softmax(-1)[..., :VOCABULARY]
        return wide

    def policy(self, responses: Tensor) -> tuple[Tensor, Tensor]:
        """Of the trained policy and of the reference: see `logprobs`."""
        return self.logprobs(self.run_dir / "actor", responses), self.logprobs(self.reference, responses)

    def sample(self, count: int, tokens: int) -> Tensor:
        """Responses of the trained policy, int64 `[count, tokens]`; what comes after an EOS is drawn all the same."""
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(self.run_dir / "actor", dtype=torch.float32)
        drawn = torch.full((count, 1), PROMPT)
        with torch.no_grad():
            for _ in range(tokens):
                probabilities = model(drawn).logits[:, -1].softmax(-1)
                drawn = torch.cat([drawn, torch.multinomial(probabilities, 1)], 1)
        return drawn[:, 1:]

    @property
    def value(self) -> float:
        """The critic's of the prompt."""
        critic = ValueModel.load(self.run_dir / "critic")
        packed = pack(torch.tensor([[PROMPT]]), torch.tensor([1]))
        with torch.no_grad():
            return float(critic(packed=packed, positions=torch.tensor([0])))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Of every step."""
        return [json.loads(line) for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]
