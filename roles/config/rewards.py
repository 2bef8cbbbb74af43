"""Where the score of a response comes from: the section `reward`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from roles.config.models import FrozenRole, ModelConfig
from roles.config.section import PathText, Section
from roles.config.service import Headers, ServiceUrl

RewardProtocol = Literal["tetrarch", "openrlhf"]
"""How a reward that is no model is asked: as here, or as in OpenRLHF."""


class ModelReward(FrozenRole):
    """A frozen reward model: a sequence-classification folder with one label, in the group `reward`."""

    type: Literal["model"] = "model"
    """A neural reward model."""
    model: ModelConfig
    """The reward model, such as `tetrarch reward` leaves in `reward_training.output`."""
    text_bridge: bool = False
    """Decode responses to text and encode them with the reward model's tokenizer; needed if the tokenizers differ."""


def _check_label(label: str | None, protocol: RewardProtocol) -> None:
    if label is not None and protocol != "openrlhf":
        raise ValueError(f"label={label} is for protocol: openrlhf only; with {protocol} all columns are given")


class FunctionReward(Section):
    """A Python function, in processes of its own.

    `score(prompts, responses, *, response_token_ids, finished, columns) -> list[float]`, or with named numbers beside
    the scores `-> {"scores": list[float], "metrics": {name: list[float]}}`.
    """

    type: Literal["function"] = "function"
    """A Python function."""
    path: PathText
    """The Python file."""
    name: str = Field(default="score", pattern=r"^[A-Za-z_]\w*$")
    """The function in it."""
    protocol: RewardProtocol = "tetrarch"
    """How it is called. `openrlhf`, as OpenRLHF's `reward_func`: `name(queries, prompts, labels)` with lists of one
    response, answered by its reward, or by `{"rewards": ...}` (also with `"extra_logs": {name: number}`)."""
    label: str | None = Field(default=None, min_length=1)
    """Column of the prompts that protocol `openrlhf` gives as `labels`; null: empty texts."""
    workers: int = Field(default=1, ge=1)
    """Processes that share the batch."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds for one call."""
    retries: int = Field(default=2, ge=0)
    """Calls after the first failed one, before the run fails with an error that names the reward."""

    @model_validator(mode="after")
    def _label_is_sent(self) -> Self:
        _check_label(self.label, self.protocol)
        return self


class RemoteReward(Section):
    """A reward over HTTP: POST of JSON, answered by a score for each response."""

    type: Literal["remote"]
    """A service over HTTP."""
    protocol: RewardProtocol = "tetrarch"
    """What is sent and answered. `tetrarch`: the function's arguments, `{"scores": [...]}`, and
    `"metrics": {name: [...]}` for numbers beside the scores. `openrlhf`, as services for OpenRLHF's `remote_rm_url`
    have it: `{"query": [prompt and response, with their special tokens], "prompts": [...], "labels": [...]}`,
    `{"rewards": [...]}`, and `"extra_logs": {name: [...]}`."""
    label: str | None = Field(default=None, min_length=1)
    """Column of the prompts that protocol `openrlhf` sends as `labels`; null: empty texts."""
    urls: list[ServiceUrl] = Field(min_length=1)
    """Tried in turn; the batch is spread over them."""
    headers: Headers = Field(default_factory=dict)
    """Sent with each request (an authorization token, say); never logged. Space around a value is cut off."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds for one request, from connecting to the last byte of the answer."""
    retries: int = Field(default=2, ge=0)
    """Requests after the first failed one, each to the next URL, before the run fails with an error that names the
    reward."""

    @model_validator(mode="after")
    def _label_is_sent(self) -> Self:
        _check_label(self.label, self.protocol)
        return self


OneReward = Annotated[ModelReward | FunctionReward | RemoteReward, Field(discriminator="type")]


class MeanScore(Section):
    """The mean of the members' scores."""

    type: Literal["mean"] = "mean"
    """The mean."""


class WorstScore(Section):
    """The lowest of the members' scores (Coste et al., arXiv 2310.02743)."""

    type: Literal["worst"]
    """The lowest."""


class CautiousScore(Section):
    """The mean minus a multiple of the standard deviation: a response on which the members disagree scores lower."""

    type: Literal["mean_minus_std"]
    """The mean minus a multiple of the standard deviation."""
    factor: float = Field(default=1.0, gt=0)
    """Factor of the standard deviation between the members (biased)."""


class WeightedScore(Section):
    """A sum of the members' scores with weights."""

    type: Literal["weighted"]
    """A weighted sum."""
    weights: dict[str, float]
    """Name of a member → its weight. The weights need not add up to 1."""


class EnsembleReward(Section):
    """Several rewards at once. Each member is a role of its own, `reward.NAME`; in a placement of groups it lives where
    `roles` names it, or with the others where `roles` says `reward`."""

    type: Literal["ensemble"]
    """Several rewards at once."""
    members: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], OneReward] = Field(min_length=1)
    """Name of a member → its reward."""
    combine: Annotated[MeanScore | WorstScore | CautiousScore | WeightedScore, Field(discriminator="type")] = (
        MeanScore()
    )
    """How the members' scores become one score."""


class EnvironmentReward(Section):
    """Only the rewards of the section `environment`. Any other `reward.type` adds to them."""

    type: Literal["environment"]
    """The environment's own rewards."""


RewardConfig = Annotated[
    ModelReward | FunctionReward | RemoteReward | EnsembleReward | EnvironmentReward, Field(discriminator="type")
]
