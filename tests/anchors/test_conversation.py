"""Anchor: conversations with gaps in the mask, whose optimum soft dynamic programming knows exactly.

With γ = 1, k1 in the reward and a uniform reference, V_t(place) = β·log Σ_y π_ref(y)·exp((r + V_{t+1})/β)
over all responses y of a turn, and π*(y) is that sum's share of y. The environment's tokens are in no loss and no KL.
Through the whole system: the command, Ray, vLLM, ZeRO-3.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.anchors import walk
from tests.anchors.conftest import Row

ROOT = Path(__file__).resolve().parents[2]
SPECIAL = ["<pad>", "<bos>", "<eos>"]
TOKENS = [*SPECIAL, *walk.LETTERS, *walk.PLACES]
BETA = 0.2
RESPONSE = 1
"""Tokens of a turn. With more, a letter that the policy says is taken for a place by so small a model, for long."""

CONFIG = f"""
steps: 150
prompts: {{train: {{path: FOLDER/tasks.jsonl}}, max_tokens: 4}}
environment: {{path: {Path(walk.__file__)}, max_turns: {walk.TURNS}, max_tokens: 16, cut_turn: continue}}
reward: {{type: environment}}
actor:
  model: {{path: FOLDER/policy}}
  optimizer: {{learning_rate: 1.0e-3}}
critic:
  model: {{path: FOLDER/policy}}
  optimizer: {{learning_rate: 1.0e-3}}
rollout:
  prompts_per_step: 256
  max_response_tokens: {RESPONSE}
  engine: {{kv_cache_gib: 0.1, max_sequences: 256}}
ppo:
  epochs: 4
  advantage: {{type: gae, lambda: 1.0}}
  kl: {{controller: {{type: fixed, coefficient: {BETA}}}}}
report: {{html: false, tensorboard: false}}
placement: {{type: local, actor: {{ranks: 2}}}}
run_dir: FOLDER/run
"""


def write_inputs(folder: Path) -> None:
    """A random Llama whose zeroed head makes every token equally likely, and tasks that are all alike."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(TOKENS),
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LlamaForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder / "policy")
    fast.save_pretrained(folder / "policy")
    (folder / "tasks.jsonl").write_text('{"task": 1}\n' * 256)


def responses() -> list[tuple[float, list[str]]]:
    """Every response of a turn: its probability under the uniform reference, and the letters that are its text."""
    found = []
    for length in range(1, RESPONSE + 1):
        for tokens in itertools.product(TOKENS, repeat=length):
            ended = "<eos>" in tokens[:-1]
            whole = length == RESPONSE or tokens[-1] == "<eos>"
            if whole and not ended:
                found.append((len(TOKENS) ** -length, [token for token in tokens if token not in SPECIAL]))
    return found


def optimum() -> tuple[float, float, float]:
    """J*, the expected score and KL(π*‖π_ref) of a whole conversation."""
    every = responses()
    assert sum(chance for chance, _ in every) == pytest.approx(1)
    best = {place: (0.0, 0.0, 0.0) for place in walk.PLACES}  # after the last turn
    for _ in range(walk.TURNS):
        now = {}
        for place in walk.PLACES:
            total, scores, kls, weights = [], [], [], []
            for chance, letters in every:
                future = best[walk.leads(place, letters)]
                paid = walk.pay(place, letters)
                total.append(paid + future[0])
                weights.append(chance * math.exp(total[-1] / BETA))
                scores.append(paid + future[1])
                kls.append(future[2])
            z = sum(weights)
            shares = [weight / z for weight in weights]
            own = sum(p * math.log(p / chance) for p, (chance, _) in zip(shares, every, strict=True))
            score = sum(p * x for p, x in zip(shares, scores, strict=True))
            kl = own + sum(p * x for p, x in zip(shares, kls, strict=True))
            now[place] = (BETA * math.log(z), score, kl)
        best = now
    objective, score, kl = (statistics.mean(best[place][i] for place in walk.PLACES) for i in range(3))
    assert objective == pytest.approx(score - BETA * kl)
    return objective, score, kl


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_conversations_reach_the_soft_optimum(tmp_path: Path, reached: Row) -> None:
    """Two ranks train the actor. J, score and KL: means over the last tenth of the run, where the rate falls to 0."""
    write_inputs(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    command = [sys.executable, "-m", "orchestrator", "train", str(tmp_path / "run.yaml")]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert {step["response/truncated_fraction"] for step in steps} == {0.0}
    objective, score, kl = optimum()
    last = steps[-len(steps) // 10 :]
    for name, key, exact, share in (
        ("J", "reward/mean", objective, 0.02),
        ("score", "score/mean", score, 0.03),
        ("KL", "objective/kl", kl, 0.05),
    ):
        reached("own: conversation", name, statistics.mean(step[key] for step in last), exact, share * exact)
