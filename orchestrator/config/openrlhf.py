"""OpenRLHF's options → our configuration. A file flows in (YAML of its keys, or a script with its command line); YAML
and the names of all that could not be carried over flow out.

The keys are those of `openrlhf.cli.train_ppo_ray`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import OpenRlhfPlacement
from orchestrator.config.advantages import CRITIC_FREE, Gae
from orchestrator.config.yaml_text import YamlError, parse_yaml, to_yaml
from orchestrator.errors import ConfigError

PLACEMENT = frozenset(OpenRlhfPlacement.model_fields) - {"type", "pool", "cpus_per_rank"}

RENAMED = {
    "pretrain": "actor.model.path",
    "reward_pretrain": "reward.model.path",
    "critic_pretrain": "critic.model.path",
    "save_path": "run_dir",
    "prompt_data": "prompts.train.path",
    "prompt_split": "prompts.train.split",
    "max_samples": "prompts.train.limit",
    "prompt_max_len": "prompts.max_tokens",
    "generate_max_len": "rollout.max_response_tokens",
    "rollout_batch_size": "rollout.prompts_per_step",
    "n_samples_per_prompt": "rollout.responses_per_prompt",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "vllm_gpu_memory_utilization": "rollout.engine.gpu_memory_utilization",
    "enforce_eager": "rollout.engine.enforce_eager",
    "enable_prefix_caching": "rollout.engine.prefix_caching",
    "max_epochs": "ppo.epochs",
    "eps_clip": "ppo.policy.clip",
    "value_clip": "ppo.value.clip",
    "gamma": "ppo.advantage.gamma",
    "lambd": "ppo.advantage.lambda",
    "actor_learning_rate": "actor.optimizer.learning_rate",
    "critic_learning_rate": "critic.optimizer.learning_rate",
    "seed": "seed",
}
"""Keys that mean the same under another name."""

BOTH = {
    "zero_stage": "zero.stage",
    "adam_offload": "zero.offload_optimizer",
    "deepspeed_enable_sleep": "zero.sleep",
    "gradient_checkpointing": "gradient_checkpointing",
    "max_norm": "optimizer.max_gradient_norm",
    "l2": "optimizer.weight_decay",
}
"""Keys that hold for actor and critic alike."""

OUR_ADVANTAGES = {
    "gae": "gae",
    "reinforce": "reinforce++",
    "reinforce_baseline": "reinforce++-baseline",
    "rloo": "rloo",
    "group_norm": "grpo",
    "dr_grpo": "dr_grpo",
}
"""Theirs → ours."""

DONE_ANYWAY = frozenset({"packing_samples", "flash_attn", "bf16", "apply_chat_template", "vllm_sync_backend"})
"""What we do whether it is asked for or not (packing, flash attention on GPUs, bfloat16, the chat template)."""


NEEDED = (
    *("run_dir", "steps", "prompts.train.path", "prompts.max_tokens", "actor.model.path", "reward.model.path"),
    *("rollout.prompts_per_step", "rollout.max_response_tokens"),
)
"""What a configuration has to say."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A configuration in the making."""

    text: str
    """YAML."""
    left_out: tuple[str, ...]
    """Keys that have no counterpart here."""
    to_fill: tuple[str, ...]
    """Key paths that OpenRLHF does not know, or that the file did not say, and that a run needs."""


def import_file(path: Path) -> Imported:
    """Read `path`. ConfigError if it holds neither keys nor a command line of OpenRLHF."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    options = _options(text)
    if not KNOWN_OPTIONS & options.keys():
        raise ConfigError(
            f"{path} holds no option of OpenRLHF (such as actor_num_nodes or --actor_num_nodes); name a YAML file of "
            "them, or a script that starts openrlhf.cli.train_ppo_ray"
        )
    return convert(options)


def convert(options: dict[str, Any]) -> Imported:
    """Options by name (`actor_num_nodes`) → our configuration."""
    data: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16"}
    _set(data, "reward.type", "model")
    for name, value in options.items():
        if name in RENAMED:
            _set(data, RENAMED[name], value)
        elif name in BOTH:
            _set(data, f"actor.{BOTH[name]}", value)
            _set(data, f"critic.{BOTH[name]}", value)
    carried = set(KNOWN_OPTIONS)
    for name, compute in _COMPUTED.items():
        if name in options and not compute(data, options):
            carried.discard(name)
    if options.get("bf16") is False:
        carried.discard("bf16")
    data["placement"] = {"type": "openrlhf"} | {name: options[name] for name in options if name in PLACEMENT}
    return Imported(
        text=to_yaml(data),
        left_out=tuple(sorted(name for name in options if name not in carried)),
        to_fill=tuple(key for key in _needed(data) if not _has(data, key)),
    )


def _needed(data: dict[str, Any]) -> tuple[str, ...]:
    """Without a reward model a critic has to come from elsewhere, if there is one."""
    if data["reward"]["type"] == "model":
        return NEEDED
    rest = tuple(key for key in NEEDED if key != "reward.model.path")
    advantage = data.get("ppo", {}).get("advantage", {}).get("type", Gae().type)
    return rest if advantage in CRITIC_FREE else (*rest, "critic.model.path")


def _options(text: str) -> dict[str, Any]:
    """Of a YAML mapping, else of `--name value` and `--flag` in a script."""
    try:
        data = parse_yaml(text)
    except YamlError:
        data = None
    if isinstance(data, dict):
        return {str(name).replace("-", "_"): value for name, value in data.items()}
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")]
    try:
        words = [word for line in lines for word in shlex.split(line, comments=True)]
    except ValueError as error:
        raise ConfigError(f"the script cannot be split into words: {error}") from None
    starts = [number for number, word in enumerate(words) if re.fullmatch(r"openrlhf\.cli\.\w+", word)]
    words = words[starts[-1] + 1 :] if starts else words
    found: dict[str, Any] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        if re.match(r"--[a-z]", word):
            name, _, value = word[2:].partition("=")
            given = value or (following if not following.startswith("--") else "true")
            found[name.replace("-", "_")] = parse_yaml(given) if _plain(given) else given
    return found


def _plain(text: str) -> bool:
    return re.fullmatch(r"[\w.+-]+", text) is not None


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a key path; sections on the way are made."""
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
    data[last] = value


def _whole(options: dict[str, Any], name: str) -> int:
    """A count that we calculate with."""
    value = options[name]
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value} is not a positive whole number; write the number in place of a variable")
    return value


def _has(data: dict[str, Any], key: str) -> bool:
    inner: Any = data
    for part in key.split("."):
        if not isinstance(inner, dict) or part not in inner:
            return False
        inner = inner[part]
    return True


def _mini_batches(data: dict[str, Any], options: dict[str, Any]) -> bool:
    """OpenRLHF counts samples of an optimizer step; we count optimizer steps of a pass, all of one size."""
    if "rollout_batch_size" not in options:
        return False
    each = _whole(options, "n_samples_per_prompt") if "n_samples_per_prompt" in options else 1
    samples, step = _whole(options, "rollout_batch_size") * each, _whole(options, "train_batch_size")
    _set(data, "ppo.mini_batches", max(samples // step, 1))
    return samples % step == 0


def _kl(data: dict[str, Any], options: dict[str, Any]) -> bool:
    """Adaptive where a target is given and not switched off, as there."""
    initial, target = options.get("init_kl_coef", 0.01), options.get("kl_target")
    if target is None or options.get("adap_kl_ctrl") is False:
        _set(data, "ppo.kl.controller", {"type": "fixed", "coefficient": initial})
        return False
    horizon = options.get("kl_horizon", 10_000)
    _set(data, "ppo.kl.controller", {"type": "adaptive", "initial": initial, "target": target, "horizon": horizon})
    return True


def _fixed_kl(data: dict[str, Any], options: dict[str, Any]) -> bool:
    """The coefficient is carried over in either case."""
    _kl(data, options)
    return True


def _no_adaptive_kl(data: dict[str, Any], options: dict[str, Any]) -> bool:
    """Switched off, it is carried over; switched on, if there is a target."""
    return _kl(data, options) or options["adap_kl_ctrl"] is False


def _warm_up(data: dict[str, Any], options: dict[str, Any]) -> bool:
    """-1 is none there, 0 here."""
    steps = options["freezing_actor_steps"]
    if steps != -1:
        _set(data, "critic.warmup.max_steps", _whole(options, "freezing_actor_steps"))
    return True


def _advantages(data: dict[str, Any], options: dict[str, Any]) -> bool:
    """Those that both have."""
    ours = OUR_ADVANTAGES.get(str(options["advantage_estimator"]))
    if ours is None:
        return False
    _set(data, "ppo.advantage.type", ours)
    return True


def _remote(data: dict[str, Any], options: dict[str, Any]) -> bool:
    """A service in place of a reward model."""
    urls = str(options["remote_rm_url"]).split(",")
    if not all(url.startswith(("http://", "https://")) for url in urls):
        return False  # a Python file, whose function has another form
    data["reward"] = {"type": "remote", "urls": urls}
    return True


def _steps(data: dict[str, Any], options: dict[str, Any]) -> bool:
    """Passes over the prompts → PPO steps, where the number of prompts is said."""
    if "max_samples" not in options or "rollout_batch_size" not in options:
        return "num_episodes" not in options
    passes = _whole(options, "num_episodes") if "num_episodes" in options else 1
    _set(data, "steps", max(passes * _whole(options, "max_samples") // _whole(options, "rollout_batch_size"), 1))
    return True


def _column(data: dict[str, Any], options: dict[str, Any]) -> bool:
    """The column is called `prompt` or `messages` here; another name has to be changed in the data."""
    if options["input_key"] not in ("prompt", "messages"):
        return False
    _set(data, "prompts.column", options["input_key"])
    return True


def _sleep(data: dict[str, Any], options: dict[str, Any]) -> bool:
    _set(data, "rollout.engine.sleep", 1 if options["vllm_enable_sleep"] else 0)
    return True


def _save_steps(data: dict[str, Any], options: dict[str, Any]) -> bool:
    """-1 is never there, 0 here."""
    every = options["save_steps"]
    _set(data, "checkpoint.every", 0 if every == -1 else _whole(options, "save_steps"))
    return True


_COMPUTED: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "train_batch_size": _mini_batches,
    "init_kl_coef": _fixed_kl,
    "kl_target": _kl,
    "kl_horizon": _kl,
    "adap_kl_ctrl": _no_adaptive_kl,
    "advantage_estimator": _advantages,
    "freezing_actor_steps": _warm_up,
    "remote_rm_url": _remote,
    "max_samples": _steps,
    "num_episodes": _steps,
    "input_key": _column,
    "vllm_enable_sleep": _sleep,
    "save_steps": _save_steps,
}
"""Keys whose value takes another form; each function says whether it could be carried over."""

KNOWN_OPTIONS = PLACEMENT | RENAMED.keys() | BOTH.keys() | _COMPUTED.keys() | DONE_ANYWAY
