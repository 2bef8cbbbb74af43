"""The door: everything that can be known to be wrong before any actor starts.

A RunConfig flows in; the prompts that were read on the way flow out, or a ConfigError that names key, value and mend.
The cheap checks come first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from cluster.estimate.memory import GIB
from cluster.estimate.model_size import splits
from cluster.placement.plan import ranks_of, tensor_parallel_size
from cluster.role_table import ENGINES
from orchestrator.checks.functions import check_function, check_functions, check_sendable
from orchestrator.checks.model_support import check_attention, check_cpu_engine, check_weights
from orchestrator.checks.models import (
    ModelFacts,
    check_context,
    check_folder,
    check_reward_head,
    check_same_tokens,
    check_tokenizer,
    model_facts,
)
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.reward_training import RewardTrainingConfig, RewardTrainingRun, SampledPairs
from orchestrator.config.run import RunConfig
from orchestrator.config.sampling import SamplingConfig
from orchestrator.config.schema import section_key
from orchestrator.data.dataset_rows import check_source
from orchestrator.errors import ConfigError
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.resuming import Resume, checkpoint_to_resume
from roles.config.models import ModelConfig

if TYPE_CHECKING:
    from orchestrator.data.preference_pairs import Pairs
    from orchestrator.data.prompts import Questions
    from roles.model_files.weight_check import Use

UNPACKED = ("runtime_resources", "working_dir_files")
"""Where Ray unpacks the working directory of a job, on each node, for as long as the job lives."""

TRAIN_IT = "correct the path, or train it first: tetrarch reward CONFIG"

QUALITY = "reward_quality.json"
"""File in every folder that `tetrarch reward` writes."""

LOGS = "logs"
"""Folder in `run_dir` that a failed start may leave."""


def check_train(config: RunConfig, resume: Resume) -> tuple[Questions, Questions | None]:
    """What `tetrarch train` needs; the training and the held-out prompts that were read on the way."""
    _check_run_dir(config, resume)
    _check_names(config, ["train", "heldout"])
    actor = _check_models(config)
    _check_engine(config, actor)
    from orchestrator.sizes.model_sizes import check_adapters

    check_adapters(config)
    heldout = _scored_questions(config, "heldout", actor) if config.prompts.heldout else None
    return _scored_questions(config, "train", actor), heldout


def check_evaluate(config: EvaluationRun) -> Questions:
    """What `tetrarch evaluate` needs; the held-out prompts that were read on the way."""
    if config.prompts.heldout is None:
        raise ConfigError("prompts.heldout is null; set prompts.heldout.path to the prompts to evaluate on")
    _check_writable(Path(config.run_dir), "run_dir")
    _check_names(config, ["heldout"])
    actor = _check_models(config)
    _check_engine(config, actor)
    return _scored_questions(config, "heldout", actor)


def check_reward(config: RewardTrainingRun) -> Questions | Pairs:
    """What `tetrarch reward` needs; the prompts that pairs are sampled for, or the pairs of a data set."""
    training, policy = config.reward_training, config.policy
    _check_output(training)
    if isinstance(training.pairs, SampledPairs):
        assert policy is not None
        check_function(training.pairs.judge, "reward_training.pairs.judge")
        check_source(policy.prompts.train, "prompts.train")
        check_folder(policy.actor.model, "actor.model")
    else:
        check_source(training.pairs.dataset, "reward_training.pairs.dataset")
    backbone = model_facts(training.model, "reward_training.model", config.model_cache)
    check_tokenizer(backbone)
    check_context(backbone, training.max_tokens, "reward_training.max_tokens")
    check_attention(backbone)
    check_weights(backbone, "value")
    if isinstance(training.pairs, SampledPairs):
        assert policy is not None
        actor = model_facts(policy.actor.model, "actor.model", config.model_cache)
        check_tokenizer(actor)
        check_same_tokens(backbone, actor, "use the actor's model")
        check_context(actor, *_longest(policy))
        check_attention(actor)
        check_weights(actor, "policy")
        _check_engine(policy, actor)
        return _questions(policy, "train", actor)
    from orchestrator.data.preference_pairs import read_pairs  # loads torch

    return read_pairs(training.pairs.dataset, backbone.tokenizer)


def _check_names(config: EvaluationRun, parts: list[str]) -> None:
    """Everything that the configuration names is there; what is not is told in one go."""
    rewards = {f"{section_key(role)}.model" for role in config.reward_models}
    sources = [(part, getattr(config.prompts, part)) for part in parts]
    checks: list[Callable[[], None]] = [
        partial(check_functions, config),
        *(partial(check_source, dataset, f"prompts.{part}") for part, dataset in sources if dataset is not None),
        *(
            partial(check_folder, model, key, TRAIN_IT if key in rewards else "correct the path")
            for key, model in _models(config).items()
        ),
    ]
    found = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            found.append(str(error))
    if found:
        raise ConfigError("\n".join(found))


def _check_run_dir(config: RunConfig, resume: Resume) -> None:
    folder = Path(config.run_dir)
    _check_writable(folder, "run_dir")
    if checkpoint_to_resume(config, resume) is not None:
        return
    found = sorted(entry.name for entry in folder.iterdir() if _is_of_a_run(entry)) if folder.is_dir() else []
    if found:
        stands = Checkpoints(folder / "checkpoints", config.checkpoint.keep).newest() is not None
        raise ConfigError(
            f"run_dir={folder} is not empty (it holds {', '.join(found[:3])}{', …' if len(found) > 3 else ''}); "
            + ("say --resume to go on with that run, " if stands else "no checkpoint is in it: ")
            + "choose another run_dir, or remove it"
        )


def _is_of_a_run(entry: Path) -> bool:
    """Whether something in `run_dir` is more than logs of a failed start, or a reward model that was trained there."""
    if not entry.is_dir():
        return True
    files = [file.relative_to(entry.parent) for file in entry.rglob("*") if file.is_file()]
    return all(file.name != QUALITY for file in files) and any(LOGS not in file.parts for file in files)


def _check_output(training: RewardTrainingConfig) -> None:
    output = Path(training.output)
    _check_writable(output, "reward_training.output")
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"reward_training.output={output} is not empty; remove it, or choose another folder")


def check_lasting(folder: Path, key: str) -> None:
    """ConfigError for a folder that Ray removes after the job."""
    if UNPACKED in pairwise(folder.resolve().parts):
        raise ConfigError(
            f"{key}={folder} lies in the job's own copy of the working directory, and would be lost with it; use an "
            "absolute path on storage that all nodes share"
        )


def _check_writable(folder: Path, key: str) -> None:
    check_lasting(folder, key)
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{key}={folder}: {existing} is a file; choose a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={folder}: {existing} cannot be written to; choose another folder")


def _check_models(config: EvaluationRun) -> ModelFacts:
    """Every model that the roles load; the actor's facts flow out."""
    cache, (longest, sum_of) = config.model_cache, _longest(config)
    run = config if isinstance(config, RunConfig) and config.ppo.uses_critic else None
    actor = model_facts(config.actor.model, "actor.model", cache)
    others: list[tuple[ModelFacts, Use]] = []
    rewards = []
    for role, model in config.frozen_models.items():
        others.append((model_facts(model, f"{role}.model", cache), "policy"))
    for role, scorer in config.reward_models.items():
        key = section_key(role)
        reward = model_facts(scorer.model, f"{key}.model", cache)
        rewards.append(reward)
        check_reward_head(reward)
        if not scorer.text_bridge:
            mend = f"use a reward model with the actor's tokenizer, or set {key}.text_bridge: true"
            check_same_tokens(reward, actor, mend)
            check_context(reward, longest, sum_of)
        elif run and run.critic_model == scorer.model:
            mend = "critic.model is null, so it is the critic too; set critic.initialise_from: policy"
            check_same_tokens(reward, actor, mend)
    if run and run.critic.model is not None:
        critic = model_facts(run.critic.model, "critic.model", cache)
        if run.ppo.value.normalise and critic.head is not None:
            raise ConfigError(
                f"ppo.value.normalise=true is for critics with a new head, and {critic.where} has a trained one, which "
                "speaks in plain units; use a language model's folder, or normalise: false"
            )
        others.append((critic, "value"))
    check_tokenizer(actor)
    check_context(actor, longest, sum_of)
    for other, _ in others:
        check_same_tokens(other, actor, "use a model with the actor's tokenizer")
        check_context(other, longest, sum_of)
    loaded: list[tuple[ModelFacts, Use]] = [*((reward, "reward") for reward in rewards), *others, (actor, "policy")]
    if run and run.critic_model == config.actor.model:
        loaded.append((actor, "value"))
    for facts in {facts.folder: facts for facts, _ in loaded}.values():
        check_attention(facts)
    for facts, use in {(facts.folder, use): (facts, use) for facts, use in loaded}.values():
        check_weights(facts, use)
    return actor


def _models(config: EvaluationRun) -> dict[str, ModelConfig]:
    """Key path → every model that the configuration names for a role."""
    with_critic = isinstance(config, RunConfig) and config.ppo.uses_critic
    named = {
        "actor.model": config.actor.model,
        **{f"{role}.model": model for role, model in config.frozen_models.items()},
        "critic.model": config.critic.model if isinstance(config, RunConfig) and with_critic else None,
        **{f"{section_key(role)}.model": scorer.model for role, scorer in config.reward_models.items()},
    }
    return {key: model for key, model in named.items() if model is not None}


def _longest(config: SamplingConfig) -> tuple[int, str]:
    """Tokens of the longest possible sample, and which keys say so."""
    if config.environment is not None:
        return config.longest_sample, "environment.max_tokens"
    prompt, response = config.prompts.max_tokens, config.rollout.max_response_tokens
    return prompt + response, f"prompts.max_tokens={prompt} + rollout.max_response_tokens={response}"


def _check_engine(config: SamplingConfig, actor: ModelFacts) -> None:
    parallel = tensor_parallel_size(config.placement)
    if actor.heads and actor.kv_heads and not splits(actor.heads, actor.kv_heads, parallel):
        fitting = [n for n in range(1, actor.heads + 1) if splits(actor.heads, actor.kv_heads, n)]
        raise ConfigError(
            f"the engines' tensor_parallel_size={parallel} does not divide the {actor.heads} attention heads "
            f"({actor.kv_heads} of keys and values) of {actor.where}; use {', '.join(map(str, fitting[:5]))}"
        )
    if config.device == "cpu":
        check_cpu_engine(actor, config.rollout.engine.dtype or config.dtype)
        _check_kv_cache(config, actor)


def _check_kv_cache(config: SamplingConfig, actor: ModelFacts) -> None:
    engine, (longest, _) = config.rollout.engine, _longest(config)
    parallel = tensor_parallel_size(config.placement)
    ranks = ranks_of(config.placement, ENGINES) * parallel
    total, memory = ranks * engine.kv_cache_gib, psutil.virtual_memory().total / GIB
    if total > memory:
        raise ConfigError(
            f"rollout.engine.kv_cache_gib={engine.kv_cache_gib:g} for each of {ranks} engine processes is {total:g} "
            f"GiB, but this machine has {memory:.0f} GiB; lower it"
        )
    per_token = actor.kv_bytes_per_token(engine.dtype or config.dtype)
    if per_token is None:
        return
    needed = longest * per_token / parallel / GIB
    if needed > engine.kv_cache_gib:
        raise ConfigError(
            f"rollout.engine.kv_cache_gib={engine.kv_cache_gib:g} does not hold one sample of {longest} tokens, which "
            f"needs {needed:.2g} GiB; raise it"
        )


def _questions(config: SamplingConfig, part: Literal["train", "heldout"], actor: ModelFacts) -> Questions:
    """Read and tokenise the prompts: every row must be usable, or `prompts.too_long` must say what becomes of it."""
    # These load torch: not before the quick checks have passed.
    from orchestrator.checks.environment_tasks import played_tasks
    from orchestrator.data.prompts import read_questions

    if config.environment is not None:
        return played_tasks(config, part, actor.tokenizer)
    return read_questions(config.prompts, part, actor.tokenizer)


def _scored_questions(config: EvaluationRun, part: Literal["train", "heldout"], actor: ModelFacts) -> Questions:
    questions = _questions(config, part, actor)
    check_sendable(config, part, questions.columns)
    return questions
