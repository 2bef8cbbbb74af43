"""Configuration files for tests. `file` and `pairs` in `conftest.py` write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.loading import load_config
from orchestrator.errors import ConfigError

MINIMAL = """
run_dir: runs/x
steps: 10
prompts: {train: {path: prompts.jsonl}, max_tokens: 64}
actor: {model: {path: policy}}
reward: {type: model, model: {path: reward}}
rollout: {prompts_per_step: 8, max_response_tokens: 16}
"""
REMOTE = "reward={type: remote, urls: ['http://me:pass@host/x'], headers: {Authorization: Bearer tok-123}}"
ENVIRONMENT = "{path: env.py, max_tokens: 96}"
PAIRS = """
reward_training:
  output: runs/made/model
  model: {path: backbone}
  pairs: {type: dataset, dataset: {path: pairs.jsonl}}
"""


def problem(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value)
