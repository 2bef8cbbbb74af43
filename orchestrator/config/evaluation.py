"""Measuring the policy on held-out prompts: the section `evaluation`, and what `tetrarch evaluate` reads."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Literal

from pydantic import Field, field_validator

from cluster.role_table import ACTOR, ENGINES, REFERENCE, REWARD, ROLES
from orchestrator.config.labelling import QUESTION, EndpointJudge
from orchestrator.config.sampling import SamplingConfig
from orchestrator.config.schema import section_key
from roles.config.models import FrozenRole, ModelConfig, ReferenceConfig
from roles.config.rewards import (
    EnsembleReward,
    EnvironmentReward,
    FunctionReward,
    ModelReward,
    OneReward,
    RemoteReward,
    RewardConfig,
)
from roles.config.section import PathText, Section


class GoldStop(Section):
    """Keeps the models of the evaluation with the highest mean gold score, and ends the run when it stays the highest.

    The proxy score cannot be chosen: it is what training raises, and goes on rising when the gold score falls (Gao et
    al., arXiv 2210.10760)."""

    on: Literal["gold"] = "gold"
    """The score that is watched: the judge's."""
    patience: int | None = Field(default=2, ge=1)
    """The run ends after so many evaluations in a row without a new highest score; null: it does all its steps."""


class WinRate(Section):
    """A win rate: the gold score of a response is the probability that a judge finds it better than another run's
    response to the same prompt, asked in both orders."""

    type: Literal["win_rate"]
    """A judge that compares with another run."""
    against: PathText
    """The other run's responses: `evaluated.jsonl`, which its `tetrarch evaluate` leaves in its `run_dir`, or other
    rows with `prompt` and `completion`."""
    asks: EndpointJudge
    """Who compares; its `answer_tokens`, `patience_s` and the like are as for `tetrarch label`."""
    question: str = Field(default=QUESTION, min_length=1)
    """What the judge is told before a prompt and two responses."""
    minimum_mass: float = Field(default=0.1, ge=0, le=1)
    """The judge abstains where the tokens A and B together are less probable than this; the response then counts as
    equally good (0.5)."""


class BenchmarksConfig(Section):
    """Tasks of EleutherAI's lm-evaluation-harness for the policy. The package `lm-eval` must be installed."""

    tasks: list[str] = Field(min_length=1)
    """Names of tasks, such as `[hellaswag, arc_easy]`; the data of those that come with lm-eval is on the model hub."""
    task_folder: PathText | None = None
    """A folder of tasks of your own, in lm-eval's YAML; null: none."""
    examples: int | None = Field(default=None, ge=1)
    """Examples of each task, from the first one on; null: all."""
    few_shot: int | None = Field(default=None, ge=0)
    """Solved examples before each question; null: as the task says."""
    chat: bool = False
    """Ask through the policy's chat template."""
    batch_size: int = Field(default=8, ge=1)
    """Requests that the model reads at the same time."""
    limit_s: float = Field(default=43200.0, gt=0)
    """Seconds in which lm-eval must have done all tasks; then it is ended, and the command fails."""


class EvaluationSampling(Section):
    """How the responses of an evaluation are sampled, in place of `rollout`."""

    temperature: float = Field(ge=0, le=100)
    """Divides the logits; 0: the most likely token every time. Otherwise at least 0.01, vLLM's own limit."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample only from the most likely tokens that together have this probability; 1: from all."""
    top_k: int = Field(default=0, ge=0)
    """Sample only from this number of most likely tokens; 0: from all."""
    min_p: float = Field(default=0.0, ge=0, lt=1)
    """Sample only from tokens that are at least this share as likely as the likeliest one; 0: from all."""


class EvaluationConfig(Section):
    """What is measured on the held-out prompts, and when."""

    every: int = Field(default=0, ge=0)
    """PPO steps between evaluations; 0: only before the first step and after the last."""
    prompts: int | None = Field(default=128, ge=1)
    """Number of held-out prompts that are answered, from the first row on; of several sources from the first row of
    each on, in their shares. null: all."""
    decides: str | None = None
    """Name of the set of `prompts.heldout_sets` whose score compares the steps of a run (`evaluation.stop`,
    `checkpoint.keep_best`, `tetrarch export --best`, the report's first table). null: `prompts.heldout`, or the only
    set."""
    sampling: EvaluationSampling | None = None
    """How the responses are sampled, such as `{temperature: 0}` for the most likely ones; then no KL is told, since
    `objective/kl` is that of what is trained. null: as in training, by `rollout`."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """Responses to each of them. Scores, KL and length are means over a prompt's responses, and their errors those of
    independent prompts."""
    passes: float | None = None
    """A response passes with this score or more (the gold score, if there is a judge): pass@k is reported, for
    k = 1, 2, 4 … `responses_per_prompt`. null: it is not."""
    by: str | None = Field(default=None, min_length=1)
    """Column by whose values the score is reported too, such as `source`; null: none."""
    judge: FunctionReward | RemoteReward | WinRate | None = Field(default=None, discriminator="type")
    """What gives the gold score: a function with the reward function's signature, a service (such as a stronger reward
    model behind `tetrarch serve --reward`), or a win rate; null: only the reward's own score is reported."""
    stop: GoldStop | None = None
    """The run leaves the models of its best evaluation by the judge's score, and may end early; null: those of the last
    step."""
    samples: int = Field(default=3, ge=0)
    """Number of responses that are shown side by side."""
    benchmarks: BenchmarksConfig | None = None
    """What `tetrarch evaluate` runs after its own measurements; null: nothing. Not read in training."""

    @field_validator("judge", mode="before")
    @classmethod
    def _function_unless_it_says(cls, judge: Any) -> Any:
        return {"type": "function", **judge} if isinstance(judge, dict) and "type" not in judge else judge


def scorers_of(reward: RewardConfig) -> dict[str, OneReward]:
    """Scorers by role: `reward`, or `reward.NAME` for each member of an ensemble; none if the environment gives all
    rewards."""
    if isinstance(reward, EnvironmentReward):
        return {}
    if isinstance(reward, EnsembleReward):
        return {f"reward.{name}": member for name, member in reward.members.items()}
    return {REWARD: reward}


class EvaluationRun(SamplingConfig):
    """What `tetrarch evaluate` reads: the policy, the reference it is compared with, and what scores it."""

    reference: ReferenceConfig = ReferenceConfig()
    """The frozen policy."""
    reward: RewardConfig
    """What is maximised."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured on held-out prompts."""

    @property
    def deciding_set(self) -> str:
        """Name of the set of held-out prompts whose score compares the steps of a run; there must be one."""
        said = self.evaluation.decides
        return self.prompts.heldout_names[0] if said is None else said

    @property
    def model_roles(self) -> tuple[str, ...]:
        return (ENGINES, self.reference_role, *self.reward_models)

    @property
    def reference_role(self) -> str:
        """The role on whose ranks the reference runs."""
        return ACTOR if self.reference.share_actor else REFERENCE

    @property
    def scorers(self) -> dict[str, OneReward]:
        """Scorers by role: `reward`, or `reward.NAME` for each member of an ensemble; none if the environment gives
        all rewards."""
        return scorers_of(self.reward)

    @property
    def judge(self) -> FunctionReward | RemoteReward | None:
        """The gold scorer that has ranks; None if there is none, or a win rate, which the driver asks for."""
        judge = self.evaluation.judge
        return None if isinstance(judge, WinRate) else judge

    @property
    def reward_models(self) -> dict[str, ModelReward]:
        """The scorers that are models, by role."""
        return {role: scorer for role, scorer in self.scorers.items() if isinstance(scorer, ModelReward)}

    @property
    def frozen_models(self) -> dict[str, ModelConfig]:
        """Role → model, for the frozen roles that have their own model and read what the policy reads."""
        rows = [ROLES[role] for role in dict.fromkeys((REFERENCE, *self.model_roles)) if role in ROLES]
        sections = {row.name: self.section(row.name) for row in rows if row.frozen and not row.value_head}
        return {role: section.model for role, section in sections.items() if section.model is not None}

    @property
    def sharded(self) -> dict[str, FrozenRole]:
        """Key path → section of every model but the engines'; the reference may run on the ranks of the actor, which
        has no section of its own then."""
        roles = (role for role in self.model_roles if role not in (ACTOR, ENGINES))
        return {section_key(role): self.section(role) for role in roles}

    def section(self, role: str) -> Any:
        """The section of a role; None if there is no such role in this run."""
        return self.scorers[role] if role in self.scorers else attrgetter(ROLES[role].section)(self)

    def model_of(self, role: str) -> ModelConfig | None:
        """The model that a role starts from; None if it has none. A frozen role without a key for it has the actor's
        model."""
        section = self.section(role)
        return section.model or self.actor.model if isinstance(section, FrozenRole) else None
