"""What the engine tests share: settings of an engine on the tiny model, prompts for it, its log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roles.batch import Prompts, Rollouts
from roles.config.rollout import EngineConfig, RolloutConfig
from roles.rollout_setup import RolloutSetup
from tests.integration.tiny_model import EOS, PAD, VOCABULARY

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def engine_setup(
    model: Path, *, tensor_parallel: int = 1, dtype: str = "float32", index: int = 0, **rollout: Any
) -> RolloutSetup:
    """Up to 16 generated tokens per prompt."""
    engine = EngineConfig(kv_cache_gib=0.05, max_sequences=16)
    config = RolloutConfig(prompts_per_step=1, engine=engine, **{"max_response_tokens": 16} | rollout)
    return RolloutSetup(
        model_path=str(model),
        device="cpu",
        dtype=dtype,  # type: ignore[arg-type]
        seed=0,
        rollout=config,
        max_model_tokens=128,
        pad_token_id=PAD,
        stop_token_ids=(EOS,),
        index=index,
        tensor_parallel_size=tensor_parallel,
    )


def make_prompts(rows: int, *, seed: int = 0) -> Prompts:
    """Ragged; rows 0 and 1 share 64 tokens, two blocks of the prefix cache."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(3, VOCABULARY, (5 + 9 * row % 60,), generator=generator).tolist() for row in range(rows)]
    shared = torch.randint(3, VOCABULARY, (64,), generator=generator).tolist()
    tokens[0], tokens[1] = shared + tokens[0], shared + tokens[1]
    return Prompts(
        token_ids=tokens,
        texts=[f"prompt {row}" for row in range(rows)],
        columns={"row": list(range(rows))},
        seeds=[1000 * seed + row for row in range(rows)],
        environment_seeds=[2000 * seed + row for row in range(rows)],
    )


def gap(rollouts: Rollouts, logprobs: Tensor) -> Tensor:
    """|rollout_logprobs − logprobs| of all generated tokens, flat."""
    return (rollouts.rollout_logprobs - logprobs)[rollouts.response_mask].abs()
