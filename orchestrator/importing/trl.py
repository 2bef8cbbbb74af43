"""TRL's PPO options → our configuration. A command line of its scripts, or PPOConfig as YAML or JSON, flows in; a Draft
flows out. All roles are on the same GPUs, as there, and the engines too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from orchestrator.importing.common_rules import (
    Steps,
    lora_targets,
    put_kl_form,
    put_mini_batches,
    put_prompts,
    put_run_dir,
    put_schedule,
    warmup_steps,
)
from orchestrator.importing.draft import Draft
from orchestrator.importing.given_options import GivenOptions, after_dashes
from orchestrator.importing.importer import PROGRAMS, Imported, around, check_framework, file_text, imported, mapping_in

PROCESSES = "num_processes"
PPO_MARKS = frozenset(
    {"sft_model_path", "reward_model_path", "num_ppo_epochs", "cliprange", "kl_coef", "response_length"}
)
"""Options that only PPO has."""
NEVER_CLIPPED = 1e6


def import_trl(path: Path) -> Imported:
    """Read a script that starts a PPO script of TRL's, or its options as YAML or JSON. ConfigError if it is neither."""
    text = file_text(path)
    check_framework(text, "trl", path)
    given = mapping_in(text)
    if given is None:
        before, words = around(text, PROGRAMS["trl"], path)
        launcher = {name: value for name, value in after_dashes(before).items() if name in (PROCESSES, "config_file")}
        given = {**launcher, **after_dashes(words)}
    hint = " PPO (such as sft_model_path); name YAML or JSON of PPOConfig, or a script that starts ppo.py"
    return imported(path, "trl", given if PPO_MARKS & given.keys() else {}, trl_draft, hint)


def trl_draft(options: GivenOptions) -> Draft:
    """Everything that the options say."""
    draft = Draft(options)
    draft.take_table()
    _say_run(draft)
    _say_models_of_trl(draft)
    _say_prompts_of_trl(draft)
    steps = _say_batches(draft)
    _say_losses(draft)
    for role in ("actor", "critic"):
        _say_optimizer(draft, role, steps)
    _say_cards(draft)
    return draft


def _say_run(draft: Draft) -> None:
    options = draft.options
    put_run_dir(draft, options.text("output_dir"), "output_dir")
    cpu = options.flag("use_cpu")
    draft.put("device", "cpu" if cpu else "cuda", "use_cpu")
    half = options.value("bf16") in (None, True, "true", "True") and not options.flag("fp16") and not cpu
    draft.put("dtype", "bfloat16" if half else "float32", "bf16", "fp16", "dtype")
    if options.flag("fp16"):
        draft.differs("fp16", "weights are bfloat16 or float32 here")
    elif half:
        draft.differs("bf16", "the weights too are bfloat16 here; TRL keeps them in dtype and computes in bfloat16")
    every = options.number("save_steps") if options.value("save_strategy") == "steps" else 0
    draft.put("checkpoint.every", int(every) if every >= 1 else 0, "save_strategy", "save_steps")
    if every < 1:
        draft.put("checkpoint.minutes", 0, "save_strategy", "save_steps")
    if options.value("save_total_limit") is not None:
        draft.put("checkpoint.keep", options.whole("save_total_limit"), "save_total_limit")


def _say_models_of_trl(draft: Draft) -> None:
    options = draft.options
    only_name = "model_name_or_path" in options and "sft_model_path" not in options
    name = "model_name_or_path" if only_name else "sft_model_path"
    draft.put("actor.model.path", options.text(name), name)
    draft.moot("model_name_or_path", "TRL takes only its tokenizer; the policy is sft_model_path")
    draft.put("reward.type", "model")
    draft.put("reward.model.path", options.text("reward_model_path"), "reward_model_path")
    if options.flag("trust_remote_code"):
        for role in ("actor", "reward"):
            draft.put(f"{role}.model.trust_remote_code", True, "trust_remote_code")
    if options.flag("use_peft"):
        draft.put("actor.lora.rank", options.whole("lora_r"), "use_peft", "lora_r")
        draft.put("actor.lora.alpha", options.number("lora_alpha"), "lora_alpha")
        draft.put("actor.lora.targets", lora_targets(options.value("lora_target_modules")), "lora_target_modules")


def _say_prompts_of_trl(draft: Draft) -> None:
    options = draft.options
    paths = [path] if (path := options.text("dataset_name")) else []
    each: dict[str, tuple[object, str]] = {"split": (options.text("dataset_train_split"), "dataset_train_split")}
    held: dict[str, tuple[object, str]] = {"split": (options.text("dataset_test_split"), "dataset_test_split")}
    if options.text("dataset_config"):
        each["name"] = held["name"] = (options.text("dataset_config"), "dataset_config")
    put_prompts(draft, paths, "dataset_name", each=each)
    if paths and options.value("eval_strategy") != "no":
        put_prompts(draft, paths, "dataset_name", part="heldout", each=held)
        every = options.optional("eval_steps") or 0
        draft.put("evaluation.every", int(every), "eval_steps", "eval_strategy")
    draft.put("prompts.max_tokens", 512)
    draft.put("prompts.too_long", "skip")
    draft.because("prompts.max_tokens", "as TRL's scripts filter")
    draft.because("prompts.too_long", "as TRL's scripts do")


def _say_batches(draft: Draft) -> Steps:
    options = draft.options
    ranks = _ranks(draft)
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    prompts = options.whole(names[0]) * options.whole(names[1]) * ranks
    draft.put("rollout.prompts_per_step", prompts, *names, PROCESSES)
    if options.value("total_episodes") is not None:
        steps = math.ceil(options.whole("total_episodes") / prompts)
        draft.put("steps", steps, "total_episodes")
        draft.moot("num_train_epochs", "total_episodes says it")
    else:
        steps = 1
        draft.put("steps", steps, "num_train_epochs")
        epochs = options.number("num_train_epochs")
        draft.to_set("steps", f"rows of the data set x {epochs:g} / {prompts} prompts of a step; the warm-ups follow")
    parts, accumulated = options.whole("num_mini_batches"), options.whole(names[1])
    of_device = options.whole(names[0])
    micro_batches = parts * math.ceil(max(of_device * accumulated // parts, 1) / of_device)
    made = put_mini_batches(draft, prompts, max(prompts * accumulated // micro_batches, 1), ranks, "num_mini_batches")
    if parts > 1 and accumulated > 1:
        why = f"a pass has {micro_batches} micro-batches, and TRL takes an optimizer step every {accumulated}"
        draft.because("ppo.mini_batches", f"{why} (gradient_accumulation_steps)")
    return Steps(steps, options.whole("num_ppo_epochs"), made)


def _ranks(draft: Draft) -> int:
    options = draft.options
    said = next((name for name in (PROCESSES, "world_size") if options.value(name) is not None), None)
    if said is None:
        draft.to_set("placement.actor_num_gpus_per_node", "how many processes accelerate starts; the batch follows")
    return options.whole(said, most=10_000) if said else 1


def _say_losses(draft: Draft) -> None:
    options = draft.options
    draft.put("ppo.kl.controller", {"type": "fixed", "coefficient": options.number("kl_coef")}, "kl_coef")
    put_kl_form(draft, "reward", str(options.value("kl_estimator")), ("kl_estimator", "kl_estimator"))
    if options.optional("missing_eos_penalty"):
        why = "the score of a response without EOS loses it there; here such a response has a fixed score"
        draft.differs("missing_eos_penalty", f"{why} (ppo.truncated.score)")
        penalty = {"type": "penalty", "score": -options.number("missing_eos_penalty")}
        draft.put("ppo.truncated", penalty, "missing_eos_penalty")


def _say_optimizer(draft: Draft, role: str, steps: Steps) -> None:
    options = draft.options
    betas = [options.number("adam_beta1"), options.number("adam_beta2")]
    draft.put(f"{role}.optimizer.betas", betas, "adam_beta1", "adam_beta2")
    draft.put(f"{role}.optimizer.max_gradient_norm", NEVER_CLIPPED)
    draft.because(f"{role}.optimizer.max_gradient_norm", "TRL's PPO clips no gradient")
    draft.moot("max_grad_norm", "TRL's PPO clips no gradient")
    each = steps.epochs * steps.mini_batches
    given = options.number("warmup_steps")
    rising = int(given) * each if given >= 1 else warmup_steps(given or options.number("warmup_ratio"), steps, role)
    names = ("lr_scheduler_type", "warmup_steps", "lr_scheduler_kwargs")
    put_schedule(draft, role, str(options.value(names[0])), steps, warmup=rising, floor=0.0, options=names)


def _say_cards(draft: Draft) -> None:
    """All roles and the engines share the cards; on CPUs, this machine."""
    ranks = _ranks(draft)
    if draft.data["device"] == "cpu":
        for role in ("actor", "critic", "reference", "reward"):
            draft.put(f"placement.{role}.ranks", ranks, PROCESSES, "world_size")
        return
    placement: dict[str, Any] = {"type": "openrlhf", "colocate_all_models": True}
    nodes = next(n for n in range(1, ranks + 1) if ranks % n == 0 and ranks // n <= 8)
    for name in ("actor", "critic", "ref", "reward"):
        placement |= {f"{name}_num_nodes": nodes, f"{name}_num_gpus_per_node": ranks // nodes}
    placement |= {"vllm_num_engines": ranks, "vllm_tensor_parallel_size": 1}
    draft.put("placement", placement, PROCESSES, "world_size")
    draft.put("rollout.engine.gpu_memory_utilization", 0.4)
    draft.because("rollout.engine.gpu_memory_utilization", "the engines share the cards with all roles")
    draft.put("rollout.engine.sleep", 1)
    draft.because("rollout.engine.sleep", "the engines share the cards with all roles")
