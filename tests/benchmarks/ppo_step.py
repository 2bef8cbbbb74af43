"""Seconds per PPO step, samples per second and the phases, on a randomly initialised Llama: `make bench`.

Hidden 256, 4 layers, vocabulary 512; 32 prompts of 16 tokens; responses of exactly 64 and of exactly 256 tokens; 1 and
4 epochs; a neural reward and a critic of the same size; float32 and bfloat16. Beside each figure: the floor (the
arithmetic of the passes alone, at the speed that a matrix product of this model's shape reaches on this machine).

    .venv/bin/python tests/benchmarks/ppo_step.py [--steps 4] [--only float32/64/1]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.utils import logging

from configs.tiny.inputs import tokenizer
from orchestrator.config.loading import validate
from orchestrator.data.prompts import PromptSource, read_questions
from orchestrator.groups.build import resolve_models
from orchestrator.groups.stage_roles import training_roles
from orchestrator.ppo.kl import make_controller
from orchestrator.ppo.step import TrainState, train_step
from orchestrator.run.phase_clock import Clock

PROMPTS, PROMPT_TOKENS, VOCABULARY, HIDDEN, LAYERS = 32, 16, 512, 256, 4
CASES = list(itertools.product(("float32", "bfloat16"), (64, 256), (1, 4)))
"""dtype, tokens of a response, epochs."""


def write_models(folder: Path) -> int:
    """`policy/`, `reward/` and `prompts.jsonl` in `folder`; the policy's parameters without the input embedding."""
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    torch.manual_seed(0)
    policy = LlamaForCausalLM(config)
    config.num_labels = 1
    for name, model in (("policy", policy), ("reward", LlamaForSequenceClassification(config))):
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, len(words), (PROMPTS, PROMPT_TOKENS), generator=generator).tolist()
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt_token_ids": row}) + "\n" for row in ids))
    return sum(p.numel() for name, p in policy.named_parameters() if "embed_tokens" not in name)


def configuration(folder: Path, dtype: str, response: int, epochs: int, steps: int) -> dict[str, Any]:
    """A run of the benchmark."""
    trained = {"optimizer": {"learning_rate": 1e-5}, "micro_batch_tokens": 4096}
    return {
        "run_dir": str(folder / f"{dtype}-{response}-{epochs}"),
        "steps": steps,
        "dtype": dtype,
        "prompts": {"train": {"path": str(folder / "prompts.jsonl")}, "max_tokens": PROMPT_TOKENS},
        "actor": {"model": {"path": str(folder / "policy")}, **trained},
        "critic": trained,
        "reward": {"type": "model", "model": {"path": str(folder / "reward")}},
        "rollout": {
            "prompts_per_step": PROMPTS,
            "max_response_tokens": response,
            "min_response_tokens": response,
            "engine": {"kv_cache_gib": 0.5, "max_sequences": PROMPTS},
        },
        "ppo": {"epochs": epochs, "mini_batches": 1},
        "placement": {"type": "local", "rollout": {"threads": 2}, "actor": {"threads": 2}},
    }


def measure(config_data: dict[str, Any], warm_up: int = 1) -> dict[str, float]:
    """Medians over the steps after the warm-up."""
    config = validate(config_data)
    models = resolve_models(config, config.model_roles)
    questions = read_questions(config.prompts, "train", models.tokenizer)
    state = TrainState(PromptSource(questions, config.seed), make_controller(config.ppo.kl.controller))
    rows = []
    with training_roles(config, models) as roles:
        for _ in range(config.steps):
            clock = Clock(lambda phase: None)
            train_step(roles, state.prompts.next(PROMPTS, 1), state, config, clock, lambda scored: None)
            rows.append(clock.metrics(roles.cluster.usage().busy))
    return {key: statistics.median(row[key] for row in rows[warm_up:]) for key in rows[0]}


def product_rate(dtype: torch.dtype) -> float:
    """FLOP/s of this model's widest matrix product, all cores: the best within a second, for others may be at work."""
    left, right = torch.randn(2048, HIDDEN).to(dtype), torch.randn(HIDDEN, 4 * HIDDEN).to(dtype)
    ends, best = time.perf_counter() + 1.0, float("inf")
    while time.perf_counter() < ends:
        best = min(best, _seconds(left, right))
    return 2 * 2048 * HIDDEN * 4 * HIDDEN / best


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    began = time.perf_counter()
    left @ right
    return time.perf_counter() - began


def floor(parameters: int, rate: float, response: int, epochs: int) -> float:
    """Seconds of arithmetic: generating, four scoring passes, `epochs` x 3 passes of actor and critic."""
    tokens = PROMPTS * (PROMPT_TOKENS + response)
    passes = 1 + 4 + 2 * 3 * epochs
    return 2 * parameters * tokens * passes / rate


def _case(text: str) -> tuple[str, int, int]:
    dtype, response, epochs = text.split("/")
    return dtype, int(response), int(epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=4, help="PPO steps of each case, 2 or more; the first is not counted"
    )
    parser.add_argument("--only", type=_case, help="one case, as dtype/response/epochs")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    print(f"{'case':>20} {'s/step':>7} {'floor':>6} {'samples/s':>9}  phases (s)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters, rates = write_models(folder), dict[str, float]()
        for dtype, response, epochs in [arguments.only] if arguments.only else CASES:
            case = f"{dtype}/{response}/{epochs}"
            if dtype not in rates:
                rates[dtype] = product_rate(getattr(torch, dtype))
            least = floor(parameters, rates[dtype], response, epochs)
            figures = measure(configuration(folder, dtype, response, epochs, arguments.steps))
            whole = figures.pop("time/step_s")
            phases = " ".join(f"{key[5:-2]} {seconds:.2f}" for key, seconds in figures.items())
            print(f"{case:>20} {whole:7.2f} {least:6.2f} {PROMPTS / whole:9.1f}  {phases}", flush=True)


if __name__ == "__main__":
    main()
