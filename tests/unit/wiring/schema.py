"""Every leaf of the configuration, and which of them change no number that a run computes."""

from __future__ import annotations

import types
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

NO_NUMBERS = {
    "run_dir": "where a run writes",
    "model_cache": "where converted models are kept",
    "device=*": "the same arithmetic elsewhere: `make test-gpu`",
    "*.zero.*": "how ranks share a model: test_gradient_is_plain_torch_s_for_any_micro_batch_and_ranks",
    "*.micro_batch_tokens": "what is computed at a time: the same test, and every run here has several micro-batches",
    "*.fused_kernels": "the same arithmetic on a GPU: test_fused_kernels.py, `make test-gpu`",
    "*.gradient_checkpointing": "activations are computed again: test_gradient_checkpointing_changes_no_gradient",
    "*.workers": "who answers, not what: test_reward_function.py, test_environments.py",
    "*judge.protocol=*": "how the function is asked, as the reward's: test_reward_keys.py",
    "*judge.label": "what the function is given, as the reward's: test_reward_keys.py",
    "*.timeout_s": "how long an answer is waited for; what fails ends the run",
    "*.retries": "how often; what fails ends the run",
    "row_keepers": "where samples are: test_kept_batch.py",
    "rollout.stream_samples": "how many rows are scored at a time",
    "rollout.engine.gpu_memory_utilization": "memory",
    "rollout.engine.sleep=*": "memory",
    "ppo.kl.budget.warn": "a line in the log",
    "ppo.kl.allow_biased": "lets a configuration through: test_loading.py",
    "checkpoint.*": "what is saved: test_run.py, test_checkpoint.py",
    "report.*": "what is written: test_reporter.py, test_sample_files.py, test_other_wiring.py",
    "profile.*": "what is recorded, of a step that stays the same: test_profiler.py",
    "evaluation.stop.*": "which models are left, and when a run ends: test_gold_stop.py, test_best_models.py",
    "alerts.*": "what a run says, and when it goes back or ends: test_alert_rules.py, test_way_back.py",
    "canary.*": "ends a run, and changes none: test_canary.py",
    "reward_training.output": "where the model goes",
    "pipeline.*": "which commands run, each with a configuration of its own: test_pipeline_stages.py, test_pipeline.py",
    "placement*": "who sits where: test_plan.py; numbers do not depend on the number of ranks",
    "deadlines.*": "how long is waited",
    "recovery.*": "which failures end a run: test_engine_fleet.py",
    "prompts.*.name": "a hub data set's configuration: there is no hub in a test",
    "reward_training.pairs<dataset>.dataset.name": "a hub data set's configuration: there is no hub in a test",
    **dict.fromkeys(
        ("*.mixed_with.*", "*.data*.weight", "*.heldout*.weight", "*.train.weight", "*.columns"),
        "which rows there are: test_samples.py",
    ),
    **dict.fromkeys(("*.chat", "*.system", "*.bad_rows=*"), "how rows are read: test_samples.py"),
    **dict.fromkeys(
        ("sft.data.name", "sft.heldout.name", "dpo.data.name", "dpo.heldout.name", "ppo.ptx.data.name"),
        "a hub data set's configuration: there is no hub in a test",
    ),
    "serving.*": "who may ask for what: test_http_routes.py, test_serving.py",
    **dict.fromkeys(("sft.output", "dpo.output"), "where the model goes"),
    **dict.fromkeys(("sft.chat_template", "dpo.chat_template"), "how chats are written: test_demonstrations.py"),
    **dict.fromkeys(
        ("sft.too_long=error", "dpo.too_long=error", "ppo.ptx.too_long=error"), "ends a run: test_demonstrations.py"
    ),
    **dict.fromkeys(
        (
            *("labelling.[!cj]*", "labelling.constitution", "labelling.candidates.[!m]*"),
            *("labelling.judge<endpoint>*", "labelling.judge<model>", "labelling.judge<model>.[!m]*"),
        ),
        "what is asked, counted and written: test_labelling.py, test_judge_tasks.py, test_asking_budget.py",
    ),
    "evaluation.judge<function>.protocol=*": "how the function is asked, as the reward's: test_reward_keys.py",
    "evaluation.judge<function>.label": "what the function is given, as the reward's: test_reward_keys.py",
    "evaluation.judge<remote>*": "asked as the reward's: test_reward_keys.py",
    "evaluation.judge<win_rate>*": "asked as by `tetrarch label`: test_win_rate.py, test_labelling.py",
    "evaluation.benchmarks.*": "what another program measures: test_benchmarks.py",
    "retraining.judge<function>.protocol=*": "how the function is asked, as the reward's: test_reward_keys.py",
    "retraining.judge<function>.label": "what the function is given, as the reward's: test_reward_keys.py",
    "retraining.judge<model>.text_bridge": "how it reads the text, as the reward does: test_reward_keys.py",
    "retraining.judge<remote>*": "asked as the reward's: test_reward_keys.py",
    "retraining.judge<endpoint>*": "asked as by `tetrarch label`: test_retraining.py, test_labelling.py",
    "retraining.question": "what an endpoint is told: test_an_endpoint_labels_what_the_reward_model_learns",
    "retraining.minimum_mass": "when an endpoint abstains: the same test",
    "labelling.judge<model>.max_tokens": "which questions are refused: test_asked_model.py",
    "labelling.candidates.max_tokens": "which prompts are left out: test_candidates.py",
}
"""Pattern of keys → why no number depends on them."""


def leaves(section: type[BaseModel], before: str = "") -> Iterator[str]:
    """`a.b.key`; `a.b<type>` for each variant of a union and `a.b<type>.key` in it; `a.key=value` where the choice is
    between names."""
    for name, field in section.model_fields.items():
        key, variants = before + (field.alias or name), list(sections_in(field.annotation))
        for variant in variants:
            tag = choices(variant.model_fields["type"].annotation)[0] if len(variants) > 1 else ""
            if tag:
                yield f"{key}<{tag}>"
            yield from leaves(variant, f"{key}<{tag}>." if tag else f"{key}.")
        if variants or (name == "type" and len(choices(field.annotation)) == 1):
            continue
        named = choices(field.annotation)
        yield from (f"{key}={choice}" for choice in named) if named else (key,)
        if named and any(get_origin(part) is tuple for part in parts(field.annotation)):
            yield key


def parts(annotation: Any) -> Iterator[Any]:
    """What a union is made of, or the one thing that is there."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from parts(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from parts(part)
    else:
        yield annotation


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field may hold, a mapping's values included."""
    for part in parts(annotation):
        if get_origin(part) is dict:
            yield from sections_in(get_args(part)[1])
        elif isinstance(part, type) and issubclass(part, BaseModel):
            yield part


def choices(annotation: Any) -> list[Any]:
    """The names that a field may have."""
    return [choice for part in parts(annotation) if get_origin(part) is Literal for choice in get_args(part)]


def reason(key: str) -> str | None:
    """Why no number depends on `key`."""
    return next((why for pattern, why in NO_NUMBERS.items() if fnmatchcase(key, pattern)), None)
