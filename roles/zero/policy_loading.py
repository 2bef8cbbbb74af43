"""Loads the policy of a role: its ModelSetup flows in, the model that DeepSpeed shards flows out."""

from __future__ import annotations

from roles.models.networks import PolicyModel
from roles.zero.setup import ModelSetup


def load_policy(setup: ModelSetup) -> PolicyModel:
    """The causal language model of `setup`."""
    return PolicyModel.load(
        setup.model_path,
        dtype=setup.torch_dtype,
        gradient_checkpointing=setup.gradient_checkpointing,
        trust_remote_code=setup.trust_remote_code,
    )
