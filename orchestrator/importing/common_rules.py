"""What the frameworks say in like ways: mini-batches, schedules, KL penalties, clips, paths of data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from orchestrator.config.rules.ppo_rules import BIASED_KL, LARGEST_GSPO_CLIP
from orchestrator.errors import ConfigError
from orchestrator.importing.draft import UNSAID, Draft
from orchestrator.importing.given_options import GivenOptions

Each = Mapping[str, tuple[object, str]]
"""Key of ours → its value and the option that says it."""
MOST_SAMPLES = 10_000_000
SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
}
"""Names of transformers → ours."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How long a run is."""

    ppo: int
    """PPO steps."""
    epochs: int
    mini_batches: int
    frozen: int = 0
    """PPO steps that train only the critic."""

    def optimizer(self, role: str) -> int:
        """Optimizer steps of a role."""
        return (self.ppo - self.frozen * (role == "actor")) * self.epochs * self.mini_batches


def put_model(draft: Draft, key: str, option: str) -> None:
    """A model that a run cannot do without."""
    path = draft.options.text(option)
    if path is None:
        draft.to_set(key, "a Hugging Face folder or a hub name")
    draft.put(key, path or UNSAID, option)


def put_mini_batches(draft: Draft, samples: int, each: int, ranks: int, option: str) -> int:
    """Optimizer steps of a pass over `samples`, where theirs take `each` samples: equal parts, a sample a rank."""
    if samples > MOST_SAMPLES:
        raise ConfigError(f"a step of {samples} samples is more than any run has ({MOST_SAMPLES}); correct the batch")
    most = max(min(samples // each, samples // ranks), 1)
    made = next(n for n in range(most, 0, -1) if samples % n == 0)
    draft.put("ppo.mini_batches", made, option)
    if samples != made * each:
        why = f"optimizer steps have equal numbers of samples here: {samples // made} of the {samples} of a step"
        draft.differs(option, f"{why}, in place of {each}")
    return made


def put_schedule(
    draft: Draft, role: str, kind: str, steps: Steps, *, warmup: int, floor: float, options: tuple[str, str, str]
) -> None:
    """The learning rate of a role; `options`: those of the kind, the warm-up and the floor."""
    key = f"{role}.optimizer.schedule"
    if kind not in SCHEDULES:
        draft.differs(options[0], f"{kind} is cosine here, which falls to the floor and stays there")
    ours = SCHEDULES.get(kind, "cosine")
    draft.put(f"{key}.type", ours, options[0])
    draft.put(f"{key}.warmup_steps", max(min(warmup, steps.optimizer(role) - 1), 0), options[1])
    if ours != "constant" and floor:
        draft.put(f"{key}.floor", floor, options[2])


def warmup_steps(ratio: float, steps: Steps, role: str) -> int:
    """Optimizer steps of a share of the run."""
    return math.ceil(ratio * steps.optimizer(role))


def put_kl_form(draft: Draft, where: str, estimator: str, options: tuple[str, str]) -> None:
    """Where the KL penalty goes and how it is estimated; what we warn of is their choice."""
    draft.put("ppo.kl.where", where, options[0])
    draft.put("ppo.kl.estimator", estimator, options[1])
    if (where, estimator) in BIASED_KL:
        draft.put("ppo.kl.allow_biased", True)
        draft.because("ppo.kl.allow_biased", BIASED_KL[where, estimator])


def put_clip(draft: Draft, low: float, high: float, options: tuple[str, str]) -> None:
    """The bounds of the ratio, and what says each; GSPO's is a mean over a response, which hardly moves."""
    gspo = draft.data["ppo"]["policy"]["type"] == "gspo"
    if gspo and low > LARGEST_GSPO_CLIP:
        why = f"{low:g} clips no mean over a response (the paper has 3e-4); {LARGEST_GSPO_CLIP:g} here"
        draft.differs(options[0], why)
    draft.put("ppo.policy.clip", min(low, LARGEST_GSPO_CLIP) if gspo else low, *options[: 1 + (high == low)])
    if high != low:
        draft.put("ppo.policy.clip_high", high, options[1])


def put_dynamic_sampling(draft: Draft, option: str, rounds: int, *sources: str) -> None:
    """Other prompts in place of those that teach nothing; `rounds`: how often they are drawn, as `sources` say."""
    if not draft.options.flag(option):
        return
    several = draft.data["rollout"]["responses_per_prompt"] > 1
    if not several or draft.data["ppo"]["advantage"]["type"] == "remax":
        draft.missing(option, "it compares several responses to a prompt, and remax has another baseline")
        return
    draft.put("ppo.dynamic_sampling.rounds", max(rounds, 2), option, *sources)
    why = "prompts whose responses all have the same score are left out, and fill the batch if there are still too few"
    draft.differs(option, f"{why} after so many rounds (ppo.dynamic_sampling.rounds)")


def put_top_p_weights(draft: Draft, top_p: str, top_k: int) -> None:
    """Tokens of a cut distribution need weights here, where the other framework trains on them as they are."""
    importance = draft.data["ppo"]["policy"].get("importance", {"type": "none"})
    cut = draft.options.number(top_p) < 1 or top_k > 0
    if cut and importance["type"] in ("none", "reject"):
        draft.put("ppo.policy.importance", {"type": "truncated"})
        draft.because("ppo.policy.importance.type", "samples of a cut distribution are weighted here")
        draft.differs(top_p, "samples of a cut distribution get importance weights here (ppo.policy.importance)")


def put_evaluation_sampling(draft: Draft, said: Mapping[str, tuple[float, list[str]]], number: str) -> None:
    """How held-out prompts are answered, and how often.

    Args:
        said: key of `evaluation.sampling` → its value, and the options that say it; with `temperature`.
        number: the option that says how many responses a prompt gets.
    """
    temperature, times = said["temperature"][0], draft.options.whole(number)
    if temperature == 0:
        draft.put("evaluation.sampling.temperature", 0, *said["temperature"][1])
        for option in (name for key, (_, names) in said.items() if key != "temperature" for name in names):
            draft.moot(option, "held-out prompts are answered with the most likely tokens")
        if times > 1:
            draft.moot(number, "the most likely tokens are the same every time")
        draft.put("evaluation.responses_per_prompt", 1, *([] if times > 1 else [number]))
        return
    usual = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    training = {key: draft.data["rollout"].get(key, usual[key]) for key in usual}
    if {**usual, **{key: value for key, (value, _) in said.items()}} == training:
        draft.put("evaluation.sampling", None, *(name for _, names in said.values() for name in names))
    else:
        for key, (value, names) in said.items():
            draft.put(f"evaluation.sampling.{key}", value, *names)
    draft.put("evaluation.responses_per_prompt", times, number)


def put_prompts(draft: Draft, paths: list[str], option: str, *, part: str = "train", each: Each | None = None) -> None:
    """One data set, or several that are joined; `each`: keys of every one of them, such as its split."""
    if not paths:
        draft.to_set(f"prompts.{part}.path", "a file, a folder or a hub name")
    put_sources(draft, f"prompts.{part}", paths or [UNSAID], option, each)
    if part == "heldout":
        draft.put("evaluation.prompts", None)
        draft.because("evaluation.prompts", f"all of them, as in {draft.options.table.framework}")


def put_sources(draft: Draft, key: str, paths: list[str], option: str, each: Each | None = None) -> None:
    """The data sets of a section; `each`: keys of every one of them."""
    first, *others = paths
    draft.put(f"{key}.path", first, option)
    for number, path in enumerate(others, start=2):
        draft.put(f"{key}.mixed_with.source_{number}.path", path, option)
    for source in ("", *(f".mixed_with.source_{number}" for number in range(2, len(others) + 2))):
        for name, (value, *sources) in (each or {}).items():
            draft.put(f"{key}{source}.{name}", value, *sources)


def shares_of(options: GivenOptions, option: str) -> list[float]:
    """A list of numbers with commas between them."""
    shares = [share.strip() for share in (options.text(option) or "").split(",")]
    if not all(re.fullmatch(r"[0-9]*\.?[0-9]+", share) for share in shares):
        raise ConfigError(f"{options.said(option)}={', '.join(shares)} is no list of numbers; correct it")
    return [float(share) for share in shares]


def put_shares(draft: Draft, key: str, shares: list[float], option: str) -> None:
    """Shares of the data sets of a section, in their order."""
    section = reduce(lambda data, part: data[part], key.split("."), draft.data)
    sources = ["", *(f".mixed_with.{name}" for name in section.get("mixed_with", {}))]
    if len(shares) != len(sources):
        raise ConfigError(f"{draft.options.said(option)} has {len(shares)} shares for {len(sources)} data sets")
    for source, share in zip(sources, shares, strict=True):
        draft.put(f"{key}{source}.weight", share, option)
    draft.differs(option, "rows of a data set that has more than its share are left out; there the others are repeated")


def put_run_dir(draft: Draft, path: str | None, option: str) -> None:
    """Where the run leaves its files."""
    if path is None or "$" in path:
        draft.to_set("run_dir", "the folder of everything that the run leaves behind")
        draft.put("run_dir", "runs/imported", option)
        draft.because("run_dir", "to be said")
        return
    draft.put("run_dir", path, option)


def lora_targets(value: object) -> str | list[str]:
    """`all-linear`, or names of layers."""
    names = value if isinstance(value, list) else [value]
    return "all-linear" if names in ([], ["all-linear"], [None]) else [str(name) for name in names]
