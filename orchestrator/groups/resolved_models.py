"""The model folders of the roles: a configuration flows in, folders that can be loaded flow out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cluster.role_table import ACTOR
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.sampling import SamplingConfig
from roles.model_files.conversion import resolve_model
from roles.text.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class Models:
    """The Hugging Face folders that the roles load."""

    actor: Path
    of: dict[str, Path]
    """Role → its model folder."""
    tokenizer: PreTrainedTokenizerBase
    """The actor's tokenizer; all token ids in a batch are its."""


def resolve_models(config: SamplingConfig, roles: Collection[str]) -> Models:
    """The model folders of the actor and of `roles`; converts a GGUF file or cuts layers once, if the keys say so."""
    cache = Path(config.model_cache)
    models = {ACTOR: config.actor.model}
    if isinstance(config, EvaluationRun):
        models |= {role: model for role in roles if (model := config.model_of(role)) is not None}
    folders = {model: resolve_model(model, cache) for model in dict.fromkeys(models.values())}
    of = {role: folders[model] for role, model in models.items()}
    trusted = config.actor.model.trust_remote_code
    return Models(of[ACTOR], of, load_tokenizer(of[ACTOR], trust_remote_code=trusted))
