"""Seconds per PPO step, samples per second and the phases, on a randomly initialised Llama: `make bench`.

Hidden 256, 4 layers, vocabulary 512; 32 prompts of 16 tokens; responses of exactly 64 and of exactly 256 tokens; 1 and
4 epochs; a neural reward and a critic of the same size; float32 and bfloat16. Beside each figure: the floor (the
arithmetic of the passes alone, at the speed that a matrix product of this model's shape reaches on this machine).

    .venv/bin/python -m tests.benchmarks.ppo_step [--steps 4] [--only float32/64/1] [--peer]

With `--peer` (`make bench PEER=1`), each case beside TRL's `PPOTrainer` (`trl_step.py`): both are started, take a step
that is not counted, and then turns, `--steps` each; medians, and the median of each pair's ratio.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.utils import logging

from configs.tiny.inputs import tokenizer
from orchestrator.config.loading import validate
from orchestrator.data.prompts import PromptSource, read_questions
from orchestrator.groups.resolved_models import resolve_models
from orchestrator.groups.stage_roles import training_roles
from orchestrator.ppo.kl import make_controller
from orchestrator.ppo.state import TrainState
from orchestrator.ppo.step import train_step
from orchestrator.run.phase_clock import Clock

PROMPTS, PROMPT_TOKENS, VOCABULARY, HIDDEN, LAYERS = 32, 16, 512, 256, 4
MICRO_BATCH_TOKENS, RATE = 4096, 1e-5
HEADING = f"{'samples/s':>9}  phases (s)"
TRL = ("-m", "tests.benchmarks.trl_step")
PEER_S = 600.0
"""Longest start, and longest step, of TRL."""
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
    trained = {"optimizer": {"learning_rate": RATE}, "micro_batch_tokens": MICRO_BATCH_TOKENS}
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


Step = Callable[[], dict[str, float]]
"""Takes one PPO step, and tells its seconds by phase."""


@contextmanager
def running(config_data: dict[str, Any]) -> Iterator[Step]:
    """Our roles, started."""
    config = validate(config_data)
    models = resolve_models(config, config.model_roles)
    questions = read_questions(config.prompts, "train", models.tokenizer)
    state = TrainState(PromptSource(questions, config.seed), make_controller(config.ppo.kl.controller))
    with training_roles(config, models) as roles:

        def step() -> dict[str, float]:
            clock = Clock(lambda phase: None)
            train_step(roles, state.prompts.next(PROMPTS, 1), state, config, clock, lambda scored: None)
            return clock.metrics(roles.cluster.usage().busy)

        yield step


def measure(step: Step, steps: int, warm_up: int = 1) -> dict[str, float]:
    """Medians over the steps after the warm-up."""
    rows = [step() for _ in range(steps)]
    return {key: statistics.median(row[key] for row in rows[warm_up:]) for key in rows[0]}


@contextmanager
def peer(folder: Path, case: str, steps: int) -> Iterator[Callable[[], float]]:
    """TRL in a process of its own; each call takes one step, and tells its seconds."""
    read, write = os.pipe()
    command = [sys.executable, *TRL, str(folder), case, str(steps), str(write)]
    log = folder / "trl.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, pass_fds=[write], text=True
        )
    os.close(write)

    def step() -> float:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: what it has said is told below
            print("go", file=process.stdin, flush=True)
        ready, _, _ = select.select([read], [], [], PEER_S)
        told = os.read(read, 64) if ready else b""
        if not told:
            raise RuntimeError(f"TRL took no step within {PEER_S:.0f} s, or ended:\n{log.read_text()[-3000:]}")
        return float(told)

    try:
        yield step
    finally:
        process.kill()
        process.wait()
        os.close(read)


def compare(ours: Step, theirs: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    """Seconds of our step and of the peer's, in turns, either first by turns; the first is not counted."""
    pairs = []
    for number in range(rounds + 1):
        if number % 2:
            other, own = theirs(), ours()
        else:
            own, other = ours(), theirs()
        pairs.append((own["time/step_s"], other))
    return pairs[1:]


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


def case_of(text: str) -> tuple[str, int, int]:
    """Of `dtype/response tokens/epochs`."""
    dtype, response, epochs = text.split("/")
    return dtype, int(response), int(epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="PPO steps of each case after a first, not counted one")
    parser.add_argument("--only", type=case_of, help="one case, as dtype/response/epochs")
    parser.add_argument("--peer", action="store_true", help="beside TRL's PPOTrainer")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    print(f"{'case':>20} {'s/step':>7} {'floor':>6} ", f"{'TRL':>7} {'ratio':>6}  load" if arguments.peer else HEADING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters, rates = write_models(folder), dict[str, float]()
        for dtype, response, epochs in [arguments.only] if arguments.only else CASES:
            case, steps = f"{dtype}/{response}/{epochs}", arguments.steps + 1
            if dtype not in rates:
                rates[dtype] = product_rate(getattr(torch, dtype))
            least = floor(parameters, rates[dtype], response, epochs)
            with running(configuration(folder, dtype, response, epochs, steps)) as step:
                if arguments.peer:
                    with peer(folder, case, steps) as theirs:
                        whole, told = _beside(compare(step, theirs, arguments.steps))
                else:
                    whole, told = _alone(measure(step, steps))
            print(f"{case:>20} {whole:7.2f} {least:6.2f}  {told}", flush=True)


def _alone(figures: dict[str, float]) -> tuple[float, str]:
    whole = figures.pop("time/step_s")
    phases = " ".join(f"{key[5:-2]} {seconds:.2f}" for key, seconds in figures.items())
    return whole, f"{PROMPTS / whole:9.1f}  {phases}"


def _beside(pairs: list[tuple[float, float]]) -> tuple[float, str]:
    whole, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    return whole, f"{other:7.2f} {ratio:6.2f}  {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
