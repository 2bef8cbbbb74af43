"""verl's overrides → our configuration. A script that starts `verl.trainer.main_ppo`, or a YAML file of its keys, flows
in, a Draft flows out. All roles and the engines are on the same GPUs, as there; FSDP is ZeRO-3.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from orchestrator.config.advantages import CRITIC_FREE
from orchestrator.config.yaml_text import YamlError, parse_yaml
from orchestrator.importing.common_rules import (
    Steps,
    put_evaluation_sampling,
    put_mini_batches,
    put_model,
    put_prompts,
    put_schedule,
    put_top_p_weights,
    warmup_steps,
)
from orchestrator.importing.draft import Draft
from orchestrator.importing.given_options import GivenOptions
from orchestrator.importing.importer import (
    PROGRAMS,
    Imported,
    check_framework,
    file_text,
    flat,
    imported,
    mapping_in,
    words_after,
)
from orchestrator.importing.verl_losses import ACTOR, put_algorithm, put_losses

ROLLOUT, MODEL = "actor_rollout_ref.rollout", "actor_rollout_ref.model"
TOO_LONG = {"error": "error", "left": "truncate", "right": "truncate", "middle": "truncate"}


def import_verl(path: Path) -> Imported:
    """Read a script that starts verl's PPO, or a YAML file of its keys. ConfigError if it is neither."""
    text = file_text(path)
    check_framework(text, "verl", path)
    data = mapping_in(text)
    given = flat(data) if data is not None else overrides_in(words_after(text, PROGRAMS["verl"], path))
    hint = " (such as actor_rollout_ref.model.path=…); name a script that starts verl.trainer.main_ppo"
    return imported(path, "verl", given, verl_draft, hint)


def overrides_in(words: list[str]) -> dict[str, Any]:
    """`key=value` and `+key=value` as Hydra reads them."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and re.fullmatch(r"\+{0,2}[A-Za-z_][\w.]*", name):
            found[name.lstrip("+")] = _hydra_value(value)
    return found


def _hydra_value(text: str) -> Any:
    if text[:1] in "[{" and text:
        try:
            return parse_yaml(text)
        except YamlError:
            return text
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return None if text in ("null", "None") else text


def verl_draft(options: GivenOptions) -> Draft:
    """Everything that the options say."""
    draft = Draft(options)
    draft.take_table()
    put_algorithm(draft)
    critic = draft.data["ppo"]["advantage"]["type"] not in CRITIC_FREE
    if not critic:
        draft.without("critic", "the advantages need no critic")
    roles = ("actor", "critic") if critic else ("actor",)
    _say_files(draft)
    _say_data(draft)
    _say_reward(draft)
    _say_critic_model(draft, critic)
    put_losses(draft, critic)
    put_top_p_weights(draft, f"{ROLLOUT}.top_p", draft.data["rollout"].get("top_k", 0))
    _say_validation(draft)
    steps = _say_length(draft, critic)
    for role in roles:
        _say_role(draft, role, steps)
    _say_placement(draft, critic)
    return draft


def _say_files(draft: Draft) -> None:
    options = draft.options
    folder = options.text("trainer.default_local_dir")
    names = ("trainer.project_name", "trainer.experiment_name")
    made = "/".join(["checkpoints", *(str(options.value(name)) for name in names)])
    if folder is None or "$" in folder:
        draft.put("run_dir", "runs/imported" if "$" in made else made, *names, "trainer.default_local_dir")
    else:
        draft.put("run_dir", folder, "trainer.default_local_dir")
    draft.put("device", "cuda", "trainer.device")
    draft.put("dtype", "bfloat16")
    every = options.whole("trainer.save_freq", least=-1)
    draft.put("checkpoint.every", max(every, 0), "trainer.save_freq")
    if every <= 0:
        draft.put("checkpoint.minutes", 0, "trainer.save_freq")
    if options.value("trainer.max_actor_ckpt_to_keep") is not None:
        draft.put("checkpoint.keep", options.whole("trainer.max_actor_ckpt_to_keep"), "trainer.max_actor_ckpt_to_keep")
    if options.value("data.seed") is not None:
        draft.put("seed", options.whole("data.seed", least=0), "data.seed")
    if options.value(f"{ROLLOUT}.name") not in (None, "vllm"):
        draft.differs(f"{ROLLOUT}.name", "the engines are vLLM's here")


def _paths(options: GivenOptions, name: str) -> list[str]:
    value = options.value(name)
    return [str(path) for path in value] if isinstance(value, list) else [str(value)] if value else []


def _say_data(draft: Draft) -> None:
    options = draft.options
    for part, files, most in (
        ("train", "data.train_files", "data.train_max_samples"),
        ("heldout", "data.val_files", "data.val_max_samples"),
    ):
        each: dict[str, tuple[object, str]] = {}
        if options.whole(most, least=-1) > 0:
            each["limit"] = (options.whole(most), most)
        if part == "train" or files in options:
            put_prompts(draft, _paths(options, files), files, part=part, each=each)
    every = options.whole("trainer.test_freq", least=-1)
    if draft.has("prompts.heldout"):
        draft.put("evaluation.every", max(every, 0), "trainer.test_freq")
    else:
        draft.moot("trainer.test_freq", "there are no held-out prompts")
    long = options.choice("data.truncation", TOO_LONG)
    if options.flag("data.filter_overlong_prompts"):
        long = "skip"
    elif options.value("data.truncation") in ("right", "middle"):
        draft.differs("data.truncation", "a longer prompt loses its first tokens here")
    draft.put("prompts.too_long", long, "data.truncation", "data.filter_overlong_prompts")


def _say_validation(draft: Draft) -> None:
    """By its agent loop: `val_kwargs.temperature` holds, and is 0 by default. A `do_sample` of false says the same."""
    options, own = draft.options, f"{ROLLOUT}.val_kwargs"
    if not draft.has("prompts.heldout"):
        return
    flag, top_k = f"{own}.do_sample", options.whole(f"{own}.top_k", least=-1)
    greedy = flag in options and not options.flag(flag)
    said = {
        "temperature": (0 if greedy else options.number(f"{own}.temperature"), [f"{own}.temperature", flag]),
        "top_p": (options.number(f"{own}.top_p"), [f"{own}.top_p"]),
        "top_k": (max(top_k, 0), [f"{own}.top_k"]),
    }
    put_evaluation_sampling(draft, said, f"{own}.n")


def _say_reward(draft: Draft) -> None:
    options = draft.options
    if options.flag("reward.reward_model.enable") or options.text("reward.reward_model.model_path"):
        draft.put("reward.type", "model", "reward.reward_model.enable")
        put_model(draft, "reward.model.path", "reward.reward_model.model_path")
        draft.put("reward.text_bridge", True)
        draft.because("reward.text_bridge", "as verl: a reward model may have another tokenizer")
        return
    path = options.text("reward.custom_reward_function.path")
    draft.put("reward.type", "function", "reward.custom_reward_function.path")
    draft.put("reward.path", path or "reward.py", "reward.custom_reward_function.path")
    draft.put("reward.name", "score", "reward.custom_reward_function.name")
    draft.put("reward.workers", options.whole("reward.num_workers"), "reward.num_workers")
    name = options.text("reward.custom_reward_function.name") if path else "verl's rule for the data_source"
    why = "a function score(prompts, responses, *, response_token_ids, finished, columns) that asks"
    draft.to_set("reward.path", f"{why} {name} for each response; the columns hold data_source and reward_model")


def _say_critic_model(draft: Draft, critic: bool) -> None:
    options = draft.options
    if not critic:
        return
    path = options.text("critic.model.path")
    if path and path == options.text(f"{MODEL}.path"):
        draft.put("critic.initialise_from", "policy", "critic.model.path")
        return
    draft.put("critic.model.path", path, "critic.model.path")
    trust = "critic.model.trust_remote_code"
    draft.put(trust, options.flag(trust), trust)


def _say_length(draft: Draft, critic: bool) -> Steps:
    options = draft.options
    frozen = options.whole("trainer.critic_warmup", least=0) if critic else 0
    if options.value("trainer.total_training_steps") is not None:
        steps = options.whole("trainer.total_training_steps")
        draft.put("steps", steps, "trainer.total_training_steps")
        draft.moot("trainer.total_epochs", "total_training_steps says it")
    else:
        steps, epochs = 1 + frozen, options.whole("trainer.total_epochs")
        draft.put("steps", steps, "trainer.total_epochs")
        rows = options.whole("data.train_batch_size")
        draft.to_set("steps", f"rows of the data sets x {epochs} / {rows} prompts of a step; the warm-ups follow")
    frozen = min(frozen, steps - 1)
    if frozen:
        draft.put("critic.warmup.max_steps", frozen, "trainer.critic_warmup")
    prompts, each = options.whole("data.train_batch_size"), options.whole(f"{ROLLOUT}.n")
    name = f"{ACTOR}.ppo_mini_batch_size"
    ranks = options.whole("trainer.nnodes") * options.whole("trainer.n_gpus_per_node")
    made = put_mini_batches(draft, prompts * each, options.whole(name) * each, ranks, name)
    return Steps(steps, options.whole(f"{ACTOR}.ppo_epochs"), made, frozen)


def _say_role(draft: Draft, role: str, steps: Steps) -> None:
    """Optimizer, adapters and memory of a trained role."""
    options, own = draft.options, ACTOR if role == "actor" else "critic"
    model = MODEL if role == "actor" else "critic.model"
    memory = f"{ACTOR}.fsdp_config" if role == "actor" else "critic.model.fsdp_config"
    names = (f"{own}.optim.lr_scheduler_type", f"{own}.optim.lr_warmup_steps", f"{own}.optim.min_lr_ratio")
    warmup = options.whole(names[1], least=-1)
    if warmup < 0:
        ratio = f"{own}.optim.lr_warmup_steps_ratio"
        warmup, names = warmup_steps(options.number(ratio), steps, role), (names[0], ratio, names[2])
    put_schedule(
        draft, role, str(options.value(names[0])), steps, warmup=warmup, floor=options.number(names[2]), options=names
    )
    draft.put(f"{role}.optimizer.epsilon", 1e-8)
    draft.because(f"{role}.optimizer.epsilon", "torch's, as in verl")
    if options.number(f"{model}.lora_rank"):
        draft.put(f"{role}.lora.rank", options.whole(f"{model}.lora_rank"), f"{model}.lora_rank")
        draft.put(f"{role}.lora.alpha", options.number(f"{model}.lora_alpha"), f"{model}.lora_alpha")
        targets = options.value(f"{model}.target_modules")
        draft.put(f"{role}.lora.targets", targets, f"{model}.target_modules")
    if options.flag(f"{ACTOR}.use_dynamic_bsz"):
        tokens = f"{own}.ppo_max_token_len_per_gpu"
        draft.put(f"{role}.micro_batch_tokens", options.whole(tokens), tokens)
        frozen = "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu"
        draft.put("reference.micro_batch_tokens", options.whole(frozen), frozen)
    moved = (f"{memory}.optimizer_offload", f"{memory}.grad_offload", f"{memory}.param_offload")
    draft.put(f"{role}.zero.sleep", any(options.flag(name) for name in moved[:2]), *moved[:2])
    draft.missing(
        moved[2], "parameter shards stay on the card (zero.offload_parameters keeps them on the host for good)"
    )


def _say_placement(draft: Draft, critic: bool) -> None:
    options = draft.options
    nodes, each = options.whole("trainer.nnodes"), options.whole("trainer.n_gpus_per_node")
    width = options.whole(f"{ROLLOUT}.tensor_model_parallel_size")
    draft.put("placement.type", "openrlhf")
    draft.put("placement.colocate_all_models", True)
    draft.because("placement.colocate_all_models", "as verl: all roles and the engines on all GPUs")
    present = ["actor", "ref", *["critic"] * critic, *["reward"] * (draft.data["reward"]["type"] == "model")]
    for name in present:
        draft.put(f"placement.{name}_num_nodes", nodes, "trainer.nnodes")
        draft.put(f"placement.{name}_num_gpus_per_node", each, "trainer.n_gpus_per_node")
    draft.put("placement.vllm_num_engines", max(nodes * each // width, 1), f"{ROLLOUT}.tensor_model_parallel_size")
    draft.put("placement.vllm_tensor_parallel_size", width, f"{ROLLOUT}.tensor_model_parallel_size")
    draft.put("rollout.engine.sleep", int(options.flag(f"{ROLLOUT}.free_cache_engine")), f"{ROLLOUT}.free_cache_engine")
