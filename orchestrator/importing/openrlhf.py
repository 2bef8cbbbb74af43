"""OpenRLHF's options → our configuration. A script or a YAML file of its keys flows in, a Draft flows out.

The options are those of `openrlhf.cli.train_ppo_ray`, by their dotted names or by the flat ones before 0.11; what
becomes of each is in `openrlhf.yaml`.
"""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.config.advantages import CRITIC_FREE
from orchestrator.importing.common_rules import (
    Steps,
    lora_targets,
    put_evaluation_sampling,
    put_mini_batches,
    put_model,
    put_prompts,
    put_run_dir,
    put_schedule,
    put_shares,
    put_top_p_weights,
    shares_of,
    warmup_steps,
)
from orchestrator.importing.draft import UNSAID, Draft
from orchestrator.importing.given_options import GivenOptions, after_dashes
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
from orchestrator.importing.openrlhf_losses import put_advantage, put_kl, put_policy_loss, put_ptx, put_scores
from orchestrator.importing.openrlhf_placement import put_placement, ranks

ALL_ROWS = 100_000_000
"""Their limit of prompts that is none."""


def draft_of(options: GivenOptions) -> Draft:
    """Everything that the options say."""
    draft = Draft(options)
    _say_where(draft)
    draft.take_table()
    put_advantage(draft)
    critic = draft.data["ppo"]["advantage"]["type"] not in CRITIC_FREE
    if not critic:
        draft.without("critic", "the advantages need no critic")
    _say_reward(draft)
    _say_models(draft, critic)
    _say_prompts(draft)
    steps = _say_steps(draft, critic)
    put_policy_loss(draft)
    put_kl(draft)
    put_scores(draft, critic)
    put_ptx(draft)
    put_top_p_weights(draft, "rollout.top_p", 0)
    _say_training(draft, ("actor", "critic") if critic else ("actor",), steps)
    _say_memory(draft, ("actor", "critic") if critic else ("actor",))
    _say_evaluation(draft)
    put_placement(draft, critic)
    return draft


def _say_where(draft: Draft) -> None:
    options = draft.options
    put_run_dir(draft, options.text("ckpt.output_dir"), "ckpt.output_dir")
    draft.put("device", "cuda")
    draft.put("dtype", "bfloat16", "ds.param_dtype")
    if options.value("ds.param_dtype") != "bf16" or not options.flag("bf16"):
        draft.differs("ds.param_dtype" if "ds.param_dtype" in options else "bf16", "models are bfloat16 here")
    every = options.whole("ckpt.save_steps", least=-1)
    draft.put("checkpoint.every", max(every, 0), "ckpt.save_steps")
    if every <= 0:
        draft.put("checkpoint.minutes", 0, "ckpt.save_steps")
    draft.put("checkpoint.keep", max(options.whole("ckpt.max_num", least=-1), 1), "ckpt.max_num")


def _say_reward(draft: Draft) -> None:
    options = draft.options
    urls = [url.strip() for url in (options.text("reward.remote_url") or "").split(",") if url.strip()]
    if options.text("train.agent_func_path"):
        draft.put("reward.type", "environment", "train.agent_func_path")
        return
    if not urls:
        draft.put("reward.type", "model")
        paths = (options.text("reward.model_name_or_path") or "").split(",")
        put_model(draft, "reward.model.path", "reward.model_name_or_path")
        draft.put("reward.model.path", paths[0] or UNSAID, "reward.model_name_or_path")
        if len(paths) > 1:
            draft.differs("reward.model_name_or_path", "the first model; for several use reward: {type: ensemble}")
        draft.moot("data.label_key", "a reward model reads no labels")
        return
    label = options.text("data.label_key")
    if all(url.startswith(("http://", "https://")) for url in urls):
        service = {"type": "remote", "protocol": "openrlhf", "urls": urls, "timeout_s": 180, "retries": 4}
        draft.put("reward", service, "reward.remote_url")
        draft.because("reward.timeout_s", "as OpenRLHF waits")
        draft.because("reward.retries", "as OpenRLHF tries")
        if label:
            draft.put("reward.label", label, "data.label_key")
        return
    draft.put("reward.type", "function", "reward.remote_url")
    draft.put("reward.path", urls[0], "reward.remote_url")
    draft.put("reward.name", "reward_func", "reward.remote_url")
    draft.put("reward.protocol", "openrlhf", "reward.remote_url")
    if label:
        draft.put("reward.label", label, "data.label_key")


def _say_models(draft: Draft, critic: bool) -> None:
    options = draft.options
    put_model(draft, "actor.model.path", "actor.model_name_or_path")
    if not critic:
        draft.moot("critic.model_name_or_path", "the advantages need no critic")
        return
    if options.text("critic.model_name_or_path"):
        draft.put("critic.model.path", options.text("critic.model_name_or_path"), "critic.model_name_or_path")
    elif draft.data["reward"]["type"] != "model":
        draft.put("critic.initialise_from", "policy", "critic.model_name_or_path")


def _say_prompts(draft: Draft) -> None:
    options = draft.options
    paths = [path.strip() for path in (options.text("data.prompt_dataset") or "").split(",") if path.strip()]
    each: dict[str, tuple[object, str]] = {"split": (options.text("data.prompt_split"), "data.prompt_split")}
    if options.whole("data.max_samples") < ALL_ROWS:
        each["limit"] = (options.whole("data.max_samples"), "data.max_samples")
    put_prompts(draft, paths, "data.prompt_dataset", each=each)
    if any("@" in path for path in paths):
        draft.differs("data.prompt_dataset", "NAME@FOLDER is read as a name; set prompts.train.path to the folder")
    if len(paths) > 1 and "data.prompt_probs" in options:
        put_shares(draft, "prompts.train", shares_of(options, "data.prompt_probs"), "data.prompt_probs")
    else:
        draft.moot("data.prompt_probs", "there is one data set")
    _say_lengths(draft)
    if options.text("train.agent_func_path"):
        _say_environment(draft)
        return
    draft.put("prompts.too_long", "truncate")
    draft.because("prompts.too_long", "as OpenRLHF does")
    draft.put("prompts.column", options.text("data.input_key"), "data.input_key")
    if options.flag("data.apply_chat_template"):
        why = "a column of chats goes through the chat template; texts do not: make them [{role: user, content: TEXT}]"
        draft.differs("data.apply_chat_template", why)


def _say_lengths(draft: Draft) -> None:
    """They bound prompt and response together, if need be; here each has its own bound."""
    options = draft.options
    longest = options.whole("data.max_len")
    said = next((name for name in ("generate_max_len", "rollout.max_new_tokens") if options.value(name)), None)
    if "prompt_max_len" in options or "generate_max_len" in options:  # before 0.11 both had a limit of 1024
        response = options.whole("generate_max_len") if "generate_max_len" in options else 1024
        prompt = options.whole("prompt_max_len") if "prompt_max_len" in options else 1024
    else:
        response = options.whole(said) if said else max(longest // 2, 1)
        prompt = max(longest - response, 1)
    draft.put("prompts.max_tokens", prompt, "prompt_max_len" if "prompt_max_len" in options else "data.max_len")
    draft.put("rollout.max_response_tokens", response, said or "data.max_len")
    if said is None and "prompt_max_len" not in options:
        why = f"one limit of prompt and response together there, two here: {prompt} + {response} tokens"
        draft.differs("data.max_len", why)


def _say_environment(draft: Draft) -> None:
    for option in ("data.input_key", "data.label_key", "data.apply_chat_template"):
        draft.moot(option, "an environment gets all columns, and makes the prompts of them")
    draft.put("environment.path", draft.options.text("train.agent_func_path"), "train.agent_func_path")
    longest = draft.data["prompts"]["max_tokens"] + draft.data["rollout"]["max_response_tokens"]
    draft.put("environment.max_tokens", longest, "data.max_len")
    why = "its class has to become one with reset(columns) -> messages and step(response) -> (messages or None, reward)"
    draft.to_set("environment.path", why)


def _say_steps(draft: Draft, critic: bool) -> Steps:
    options = draft.options
    prompts, each = options.whole("rollout.batch_size"), options.whole("rollout.n_samples_per_prompt")
    episodes, rows = options.whole("train.num_episodes"), options.whole("data.max_samples")
    frozen = max(options.whole("critic.freezing_steps", least=-1), 0) if critic else 0
    steps = max(episodes * rows // prompts, 1)
    if rows >= ALL_ROWS:
        steps = 1 + frozen
        draft.put("steps", steps, "train.num_episodes")
        draft.to_set("steps", f"rows of the data set x {episodes} / {prompts} prompts of a step; the warm-ups follow")
    else:
        draft.put("steps", steps, "data.max_samples", "train.num_episodes")
        draft.because("steps", f"{rows} rows x {episodes} / {prompts} prompts; fewer, if the data set has fewer rows")
    mini = put_mini_batches(
        draft, prompts * each, options.whole("train.batch_size"), ranks(draft, critic), "train.batch_size"
    )
    if frozen:
        frozen = min(frozen, steps - 1)
        draft.put("critic.warmup.max_steps", frozen, "critic.freezing_steps")
    elif not critic:
        draft.moot("critic.freezing_steps", "the advantages need no critic")
    return Steps(steps, options.whole("train.max_epochs"), mini, frozen)


def _say_training(draft: Draft, roles: tuple[str, ...], steps: Steps) -> None:
    options = draft.options
    for role in roles:
        names = (f"{role}.lr_scheduler", f"{role}.lr_warmup_ratio", f"{role}.min_lr_ratio")
        kind = str(options.value(names[0]))
        put_schedule(
            draft,
            role,
            kind,
            steps,
            warmup=0 if kind == "constant" else warmup_steps(options.number(names[1]), steps, role),
            floor=options.number(names[2]) if "min_lr" in kind else 0.0,
            options=names,
        )
        tokens = options.whole("train.max_tokens_per_gpu") if options.flag("train.dynamic_batch_enable") else None
        if tokens:
            draft.put(f"{role}.micro_batch_tokens", tokens, "train.max_tokens_per_gpu")
        draft.put(
            f"{role}.gradient_checkpointing",
            options.flag("actor.gradient_checkpointing_enable"),
            "actor.gradient_checkpointing_enable",
        )
        if options.number("ds.lora.rank"):
            targets = lora_targets(options.value("ds.lora.target_modules"))
            draft.put(f"{role}.lora.rank", options.whole("ds.lora.rank"), "ds.lora.rank")
            draft.put(f"{role}.lora.alpha", options.number("ds.lora.alpha"), "ds.lora.alpha")
            draft.put(f"{role}.lora.targets", targets, "ds.lora.target_modules")
    if options.flag("train.enable_ema"):
        if "lora" in draft.data["actor"]:
            draft.missing("train.enable_ema", "means are of whole weights, not of adapters")
        else:
            draft.put("actor.ema_decay", options.number("train.ema_beta"), "train.ema_beta")


def _say_memory(draft: Draft, roles: tuple[str, ...]) -> None:
    options = draft.options
    stage = options.whole("ds.zero_stage", least=0)
    offload, sleep = options.flag("ds.adam_offload") and stage > 0, options.flag("ds.enable_sleep")
    for role in roles:
        draft.put(f"{role}.zero.stage", stage, "ds.zero_stage")
        draft.put(f"{role}.zero.offload_optimizer", offload, "ds.adam_offload")
        draft.put(f"{role}.zero.sleep", sleep and stage == 3 and not offload, "ds.enable_sleep")
    if sleep and (stage != 3 or offload):
        draft.differs("ds.enable_sleep", "only optimizers that ZeRO-3 keeps on the cards sleep here")
    frozen = {"reference": "ref.offload", "reward": "reward.offload"}
    if draft.data["reward"]["type"] != "model":
        frozen.pop("reward")
        draft.moot("reward.offload", "the reward is no model")
    for role, option in frozen.items():
        draft.put(f"{role}.zero.stage", 3 if stage == 3 else 0, "ds.zero_stage")
        draft.put(f"{role}.zero.offload_parameters", options.flag(option) and stage == 3, option)
        if options.flag(option) and stage != 3:
            draft.missing(option, "parameters are kept on the host with ZeRO-3 only")
    together = options.flag("train.colocate_all") and not options.flag("train.async_enable")
    if options.flag("vllm.enable_sleep") and not together:
        draft.moot("vllm.enable_sleep", "the engines share no card")
    draft.put("rollout.engine.sleep", int(options.flag("vllm.enable_sleep") and together), "vllm.enable_sleep")


def _say_evaluation(draft: Draft) -> None:
    options = draft.options
    paths = [path.strip() for path in (options.text("eval.dataset") or "").split(",") if path.strip()]
    every = options.whole("eval.steps", least=-1)
    if not paths:
        if every > 0:
            draft.moot("eval.steps", "there is no held-out data set (prompts.heldout)")
        return
    each = {"split": (options.text("eval.split"), "eval.split")}
    put_prompts(draft, paths, "eval.dataset", part="heldout", each=each)
    draft.put("evaluation.every", max(every, 0), "eval.steps")
    temperature = options.number("eval.temperature"), ["eval.temperature"]
    top_p = options.number("rollout.top_p"), list[str]()
    put_evaluation_sampling(draft, {"temperature": temperature, "top_p": top_p}, "eval.n_samples_per_prompt")


def import_openrlhf(path: Path) -> Imported:
    """Read a YAML file of OpenRLHF's keys, or a script that starts its PPO. ConfigError if it is neither."""
    text = file_text(path)
    check_framework(text, "openrlhf", path)
    data = mapping_in(text)
    if data is not None:
        given = {name.replace("-", "_"): value for name, value in flat(data).items()}
    else:
        given = dict(after_dashes(words_after(text, PROGRAMS["openrlhf"], path)))
    sharded = any(name.startswith("fsdp") for name in given)
    given = {re.sub(r"^fsdp\.", "ds.", name): value for name, value in given.items()}
    if sharded and not {"zero_stage", "ds.zero_stage"} & given.keys():
        given["ds.zero_stage"] = 3  # FSDP shards parameters, as ZeRO-3 does
    hint = (
        " (such as actor.num_nodes or --actor.num_nodes); name a YAML file of them, or a script that starts "
        "openrlhf.cli.train_ppo_ray"
    )
    return imported(path, "openrlhf", given, draft_of, hint)
