"""Architectures at the door: whether roles and engines can run a model, before any of them starts.

A ModelFacts flows in, nothing or a ConfigError flows out. No weight is read.
"""

from __future__ import annotations

from orchestrator.errors import ConfigError
from orchestrator.model_checks import ModelFacts
from roles.errors import ModelError


def check_attention(model: ModelFacts) -> None:
    """The trainer's roles read packed sequences: every layer must attend through transformers' interface."""
    # These load torch: not before the quick checks have passed.
    from transformers import AutoConfig

    from roles.attention import check_architecture

    trust = model.source.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(model.folder, trust_remote_code=trust)
        check_architecture(config, trust_remote_code=trust)
    except (ModelError, ValueError, OSError) as error:
        raise ConfigError(f"{model.where}: {error}") from None
