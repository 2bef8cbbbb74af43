"""Preferences that a known reward makes, for the losses whose optimum is known, through `tetrarch dpo`.

One prompt, responses of one token. Every two tokens are compared; the soft label of the pair is the Bradley–Terry
probability of the reward, from which the optima of both losses follow.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.anchors.conftest import Row
from tests.anchors.system import PROMPT, VOCABULARY, Trained, save_policy, start
from tests.anchors.test_bandit import TABLE

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

BETA = 0.5
PREFERRED = torch.sigmoid(TABLE.double()[:, None] - TABLE.double())
"""float64 `[vocab, vocab]`: probability that the first token is preferred to the second."""


def learned(folder: Path, loss: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[vocab]` of the trained policy and of the reference."""
    policy = save_policy(folder / "policy", spread=0.5)
    rows = [
        {"prompt": f"t{PROMPT}", "chosen": f"t{a}", "rejected": f"t{b}", "chosen_probability": float(PREFERRED[a, b])}
        for a, b in combinations(range(VOCABULARY), 2)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dpo = {
        "output": str(folder / "run" / "actor"),
        "model": {"path": str(policy)},
        "data": {"path": str(folder / "pairs.jsonl")},
        "heldout_fraction": 0.0,
        "loss": {"type": loss, "beta": BETA},
        "epochs": 60,
        "samples_per_step": 256,
        "micro_batch_tokens": 2048,
        "max_tokens": 2,  # the prompt and one token: what would end the response is cut
        "too_long": "truncate",
        "optimizer": {"learning_rate": 2e-3, "schedule": {"type": "linear"}},
    }
    start("dpo", folder / "dpo.yaml", {"dpo": dpo, "model_cache": str(folder / "cache"), "report": {"html": False}})
    mine, reference = Trained(policy, folder / "run").policy(torch.zeros(1, 1, dtype=torch.long))
    return mine[0, 0], reference[0, 0]


def distance(policy: Tensor, best: Tensor) -> float:
    """Total variation."""
    return float((policy.exp() - best.exp()).abs().sum() / 2)


def test_dpo_reaches_the_tilted_reference(tmp_path: Path, reached: Row) -> None:
    policy, reference = learned(tmp_path, "sigmoid")
    best = (reference + TABLE.double() / BETA).log_softmax(-1)
    assert distance(reference, best) > 0.2
    reached("own: DPO on the bandit", "TV", distance(policy, best), 0.0, 0.02)


def test_ipo_reaches_its_own_optimum(tmp_path: Path, reached: Row) -> None:
    """π_ref·exp(p/β)/Z, where p is how often a token is preferred to one drawn uniformly (arXiv 2310.12036)."""
    policy, reference = learned(tmp_path, "ipo")
    best = (reference + PREFERRED.mean(1) / BETA).log_softmax(-1)
    assert distance(reference, best) > 0.1
    reached("own: IPO on the bandit", "TV", distance(policy, best), 0.0, 0.02)
