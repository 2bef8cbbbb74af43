"""Where the score of a response comes from: the section `reward`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator

from roles.config.models import FrozenRole, ModelConfig
from roles.config.section import Section


class ModelReward(FrozenRole):
    """A frozen reward model: a sequence-classification folder with one label, in the group `reward`."""

    type: Literal["model"] = "model"
    """A neural reward model."""
    model: ModelConfig
    """The reward model, such as `tetrarch reward` leaves in `reward_training.output`."""
    text_bridge: bool = False
    """Decode to text and encode again with the reward model's own tokenizer; needed where the tokenizers differ."""


class FunctionReward(Section):
    """A Python function, in Ray actors of its own.

    `score(prompts, responses, *, response_token_ids, finished, columns) -> list[float]`.
    """

    type: Literal["function"] = "function"
    """A Python function."""
    path: str = Field(min_length=1)
    """The Python file."""
    name: str = Field(default="score", pattern=r"^[A-Za-z_]\w*$")
    """The function in it."""
    workers: int = Field(default=1, ge=1)
    """Ray actors that share the batch."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one call."""
    retries: int = Field(default=2, ge=0)
    """Calls after the first failed one, before the run fails by name."""


class RemoteReward(Section):
    """A reward over HTTP: POST of the function's arguments as JSON, answered by `{"scores": [...]}`."""

    type: Literal["remote"]
    """A service over HTTP."""
    urls: list[Annotated[str, Field(pattern=r"^https?://")]] = Field(min_length=1)
    """Tried in turn; the batch is spread over them."""
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Sent with each request (an authorization token, say); never logged. Space around a value is cut off."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one request, from connecting to the last byte of the answer."""
    retries: int = Field(default=2, ge=0)
    """Requests after the first failed one, each to the next URL, before the run fails by name."""

    @field_validator("headers")
    @classmethod
    def _printable(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        stripped = {name: SecretStr(value.get_secret_value().strip()) for name, value in headers.items()}
        bad = [name for name, value in stripped.items() if not value.get_secret_value().isprintable()]
        if bad:
            raise ValueError(
                f"the value of {', '.join(bad)} has a line break or control character; write it in one line"
            )
        return stripped


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
    """The mean less a multiple of the standard deviation: where the members disagree, less is believed."""

    type: Literal["mean_minus_std"]
    """The mean, less doubt."""
    factor: float = Field(default=1.0, gt=0)
    """How often the standard deviation between the members (biased) is taken off."""


class WeightedScore(Section):
    """A sum of the members' scores with weights."""

    type: Literal["weighted"]
    """A weighted sum."""
    weights: dict[str, float]
    """Of each member, by name; they need not add up to 1."""


class EnsembleReward(Section):
    """Several rewards at once. Each member is a role of its own, `reward.NAME`; in a placement of groups it lives where
    `roles` names it, or with the others where `roles` says `reward`."""

    type: Literal["ensemble"]
    """Several at once."""
    members: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], OneReward] = Field(min_length=1)
    """By name."""
    combine: Annotated[MeanScore | WorstScore | CautiousScore | WeightedScore, Field(discriminator="type")] = (
        MeanScore()
    )
    """What the members' scores become."""


class EnvironmentReward(Section):
    """What the section `environment` pays, and nothing else. Any other reward is added to it."""

    type: Literal["environment"]
    """The environment's own rewards."""


RewardConfig = Annotated[
    ModelReward | FunctionReward | RemoteReward | EnsembleReward | EnvironmentReward, Field(discriminator="type")
]
