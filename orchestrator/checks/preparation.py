"""Checks everything that can be checked before any actor starts, and reads the data.

One function per command: its configuration flows in, the prompts or pairs that it works on flow out; or one ConfigError
that names key, value and fix of everything that is wrong. The cheap checks come first: what needs them is checked when
they have passed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.checks.benchmark_inputs import check_benchmarks
from orchestrator.checks.bridges import check_bridges
from orchestrator.checks.engine_fit import check_engine, longest_sample
from orchestrator.checks.functions import (
    check_function,
    check_reward_functions,
    functions_of,
    reward_functions,
)
from orchestrator.checks.heads import check_pooling, check_reward_head
from orchestrator.checks.imported_files import imported
from orchestrator.checks.model_support import check_attention, check_weights
from orchestrator.checks.models import (
    check_context,
    check_folder,
    check_same_tokens,
    check_tokenizer,
    model_facts,
)
from orchestrator.checks.problems_together import Problems
from orchestrator.checks.prompt_inputs import TRAIN_IT, check_names, heldout_parts, read_heldout, read_prompt_rows
from orchestrator.checks.role_models import check_role_models
from orchestrator.checks.run_folders import check_output, check_run_dir, check_writable
from orchestrator.checks.win_rate_inputs import check_opponent
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.labelling import EndpointJudge
from orchestrator.config.reward_training import QUALITY, RewardTrainingRun, SampledPairs
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key
from orchestrator.config.serving import RewardServingRun, ServingRun
from orchestrator.data.dataset_rows import check_source
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.endpoint_key import endpoint_key
from orchestrator.run.ensemble_runs import MemberRun, member_runs, sampled_comparisons
from orchestrator.run.learned_data import LearnedData
from orchestrator.run.resuming import Resume, checkpoint_to_resume
from roles.config.rewards import FunctionReward

if TYPE_CHECKING:
    from orchestrator.data.ppo_data import PpoData
    from orchestrator.data.preference_pairs import Pairs
    from orchestrator.data.prompts import Questions
    from roles.batch import Preferences


def prepare_train(config: RunConfig, resume: Resume) -> PpoData:
    """Check what `tetrarch train` needs; returns the data that was read on the way."""
    problems = Problems()
    checkpoint = problems.of(lambda: check_run_dir(config, resume))
    names = config.prompts.heldout_names
    check_names(config, [*dict.fromkeys(["train", *heldout_parts(config, names)])], problems)
    ptx = config.ppo.ptx
    if ptx is not None:
        problems.of(partial(check_source, ptx.data, f"{ptx.key}.data"))
    judge = config.retraining.judge if config.retraining is not None else None
    if isinstance(judge, EndpointJudge):
        problems.of(lambda: endpoint_key(judge, "retraining.judge"))
    problems.of(lambda: check_cards(config.device))
    problems.end()
    with imported(functions_of(config)):
        actor = check_role_models(config, problems)
        problems.of(lambda: check_engine(config, actor))
        from orchestrator.sizes.model_sizes import check_adapters

        problems.of(lambda: check_adapters(config))
        from orchestrator.data.demonstrations import read_ptx  # these load torch
        from orchestrator.data.ppo_data import PpoData
        from orchestrator.data.prompts import with_overlap

        heldout = read_heldout(config, names, actor, problems)
        training = problems.of(lambda: read_prompt_rows(config, "train", actor))
        if ptx is not None:
            problems.of(partial(check_context, actor, ptx.max_tokens, f"{ptx.key}.max_tokens"))
        texts = problems.of(partial(read_ptx, ptx, actor.tokenizer)) if ptx else None
        problems.end()
        assert training is not None
        data = PpoData(training, {name: with_overlap(one, training) for name, one in heldout.items()}, texts)
        if checkpoint is not None:
            _check_positions(config, data, checkpoint)
        check_bridges(config, [training, *heldout.values()])
        for questions in heldout.values():
            check_opponent(config, questions, config.evaluation.prompts)
        return data


def _check_positions(config: RunConfig, data: PpoData, checkpoint: Checkpoint) -> None:
    """The prompts, and the rows of the pre-training loss, are those of the checkpoint that the run goes on from."""
    from orchestrator.data.demonstrations import PtxSource  # loads torch
    from orchestrator.data.prompts import PromptSource

    try:
        PromptSource(data.training, config.seed).load_state_dict(checkpoint.state["prompts"])
        if data.ptx is not None:
            PtxSource(data.ptx, config.seed).load_state_dict(checkpoint.state["ptx"])
    except CheckpointError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from error
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"{checkpoint.path} does not say where in the data it was written: another version of Tetrarch has written "
            f"it; resume with that one, or start anew with another {config.folder_key}"
        ) from error


def prepare_evaluate(
    config: EvaluationRun, *, names: Sequence[str] | None = None, every: bool = False
) -> dict[str, Questions]:
    """Check what `tetrarch evaluate` needs; returns the held-out prompts by the names of their sets.

    Args:
        names: the sets that are wanted; None: all.
        every: all prompts will be answered.
    """
    if not config.prompts.evaluable:
        raise ConfigError(
            "prompts.heldout is null; set prompts.heldout.path to the prompts to evaluate on, or "
            "prompts.heldout_fraction to a share of prompts.train"
        )
    problems = Problems()
    problems.of(lambda: check_writable(Path(config.run_dir), "run_dir"))
    problems.of(lambda: check_benchmarks(config.evaluation.benchmarks))
    wanted = config.prompts.heldout_names if names is None else names
    check_names(config, heldout_parts(config, wanted), problems)
    problems.of(lambda: check_cards(config.device))
    problems.end()
    with imported(functions_of(config)):
        actor = check_role_models(config, problems)
        problems.of(lambda: check_engine(config, actor))
        heldout = read_heldout(config, wanted, actor, problems)
        problems.end()
        check_bridges(config, heldout.values())
        for questions in heldout.values():
            check_opponent(config, questions, len(questions) if every else config.evaluation.prompts)
        return heldout


def prepare_serve(config: ServingRun) -> None:
    """What `tetrarch serve` needs."""
    problems = Problems()
    problems.of(lambda: check_writable(Path(config.run_dir), "run_dir"))
    check_names(config, [], problems)
    problems.of(lambda: check_cards(config.device))
    problems.end()
    with imported(functions_of(config)):
        actor = check_role_models(config, problems)
        problems.of(lambda: check_engine(config, actor))
        problems.end()


def prepare_reward_service(config: RewardServingRun) -> None:
    """What `tetrarch serve --reward` needs."""
    if not config.scorers:
        raise ConfigError("reward.type=environment scores nothing by itself; use a model, a function or an ensemble")
    check_writable(Path(config.run_dir), "run_dir")
    check_reward_functions(config.scorers)
    with imported(reward_functions(config.scorers)):
        if config.reward_models:
            check_cards(config.device)
        for role, scorer in config.reward_models.items():
            key = f"{section_key(role)}.model"
            check_folder(scorer.model, key, TRAIN_IT)
            facts = model_facts(scorer.model, key, config.model_cache)
            check_tokenizer(facts)
            check_reward_head(facts)
            check_attention(facts)
            check_weights(facts, "reward")


def prepare_best_of_n(config: ServingRun) -> Questions:
    """What `tetrarch best-of-n` needs; the prompts that were read on the way."""
    if config.environment is not None:
        raise ConfigError("tetrarch best-of-n compares single responses, not conversations; set environment=null")
    names = [config.deciding_set] if config.prompts.evaluable else None
    questions = next(iter(prepare_evaluate(config, names=names, every=True).values()))
    from orchestrator.checks.columns import check_kept_columns  # loads torch

    check_kept_columns(questions)
    return questions


def prepare_reward(config: RewardTrainingRun, resume: Resume) -> Questions | Pairs:
    """Check what `tetrarch reward` needs; returns the prompts for which pairs are sampled, or the pairs of a data
    set."""
    training, policy, judges = config.reward_training, config.policy, dict[str, FunctionReward]()
    runs = [(run.config, _check_reward_run(run)) for run in member_runs(config, resume)]
    problems, wanted = Problems(), training.pairs
    if isinstance(wanted, SampledPairs):
        assert policy is not None
        judges["reward_training.pairs.judge"] = judge = wanted.judge
        problems.of(lambda: check_function(judge, "reward_training.pairs.judge"))
        problems.of(lambda: check_source(policy.prompts.train, "prompts.train"))
        problems.of(lambda: check_folder(policy.actor.model, "actor.model"))
    else:
        problems.of(partial(check_source, wanted.dataset, "reward_training.pairs.dataset"))
    problems.of(lambda: check_folder(training.model, "reward_training.model"))
    problems.of(lambda: check_cards(config.device))
    problems.end()
    with imported(judges):
        backbone = model_facts(training.model, "reward_training.model", config.model_cache)
        check_tokenizer(backbone)
        check_context(backbone, training.max_tokens, "reward_training.max_tokens")
        check_attention(backbone)
        check_weights(backbone, "value")
        check_pooling(backbone, training.pooling)
        if isinstance(training.pairs, SampledPairs):
            assert policy is not None
            actor = model_facts(policy.actor.model, "actor.model", config.model_cache)
            check_tokenizer(actor)
            check_same_tokens(backbone, actor, "use the actor's model")
            check_context(actor, *longest_sample(policy))
            check_attention(actor)
            check_weights(actor, "policy")
            check_engine(policy, actor)
            sampled = sampled_comparisons(config)
            if sampled.is_file() and any(checkpoint for _, checkpoint in runs):
                from orchestrator.data.comparisons import kept  # loads torch

                _check_comparisons(runs, kept(sampled))
            return read_prompt_rows(policy, "train", actor)
        from orchestrator.data.preference_pairs import read_pairs  # loads torch

        pairs = read_pairs(training.pairs.dataset, backbone.tokenizer)
        _check_comparisons(runs, pairs.preferences)
        return pairs


def _check_reward_run(run: MemberRun) -> Checkpoint | None:
    """The folders of a training are free, or it can go on there; the checkpoint from which it goes on."""
    if run.done:
        return checkpoint_to_resume(run.config, run.resume)
    check_output(run.config.reward_training.output, "reward_training.output", QUALITY, run.resume)
    return check_run_dir(run.config, run.resume)


def _check_comparisons(runs: Sequence[tuple[RewardTrainingRun, Checkpoint | None]], preferences: Preferences) -> None:
    """There are enough to hold some out, and they are those of the checkpoints that the trainings go on from."""
    from orchestrator.data.comparisons import digest, schedule, split  # loads torch

    found = digest(preferences)
    for config, checkpoint in runs:
        training = config.reward_training
        comparisons = split(preferences, training, config.seed)
        steps = len(schedule(comparisons.training, training, config.training_seed))
        check_learned(LearnedData.comparisons(found, steps), checkpoint)


def check_learned(learned: LearnedData, checkpoint: Checkpoint | None) -> None:
    """The run can go on from the checkpoint, if there is one, with this data."""
    if checkpoint is None:
        return
    try:
        learned.check(checkpoint)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def check_cards(device: str) -> None:
    """Where Ray will be started on this machine, it has a card for `device: cuda`."""
    if device != "cuda" or os.environ.get("RAY_ADDRESS"):
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda, but torch finds no GPU on this machine, and RAY_ADDRESS names no cluster; use device=cpu, "
            "export RAY_ADDRESS=HEAD:6379, or look with `tetrarch doctor`"
        )
