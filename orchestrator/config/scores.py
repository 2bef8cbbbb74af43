"""From scores to rewards: the sections `ppo.score` and `ppo.truncated`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roles.config.section import Section


class ScoreTruncated(Section):
    """A response cut by the length limit is scored like any other."""

    type: Literal["score"] = "score"
    """Like any other."""


class PenaliseTruncated(Section):
    """EOS trick of the N+ details: a response without EOS gets a fixed score."""

    type: Literal["penalty"]
    """A fixed score."""
    score: float = -1.0
    """The score that replaces the reward's own."""


class MaskTruncated(Section):
    """A truncated response is not trained on. An optimizer step with no other responses is left out, also of the
    learning rate's schedule, which then does not come to its end."""

    type: Literal["mask"]
    """Left out of both losses."""


class BootstrapTruncated(Section):
    """The critic's value of the cut state stands for what would have followed; the score is added as usual."""

    type: Literal["bootstrap"]
    """Continued by the critic."""


TruncationConfig = Annotated[
    ScoreTruncated | PenaliseTruncated | MaskTruncated | BootstrapTruncated, Field(discriminator="type")
]


class NoLengthPenalty(Section):
    """Length costs nothing."""

    type: Literal["none"] = "none"
    """Nothing."""


class LinearLength(Section):
    """Every generated token costs the same price."""

    type: Literal["linear"]
    """A price per token."""
    per_token: float = Field(gt=0)
    """Price of one generated token, in units of the score."""


class SoftOverlong(Section):
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13): nothing at first, then rising."""

    type: Literal["soft_overlong"]
    """Rising towards the longest."""
    longest: int = Field(ge=1)
    """Length in tokens at which the penalty has its full size."""
    buffer: int = Field(ge=1)
    """Number of tokens before `longest` over which the penalty rises."""
    penalty: float = Field(default=1.0, gt=0)
    """Full size of the penalty, in units of the score."""


LengthPenalty = Annotated[NoLengthPenalty | LinearLength | SoftOverlong, Field(discriminator="type")]


class ScoreConfig(Section):
    """What becomes of a score before it is a reward: normalised, clipped, less the length penalty, in this order."""

    normalise: bool = False
    """By mean and standard deviation of the scores of all batches so far (saved with the checkpoint). What an
    environment pays for a turn is divided by that deviation, too."""
    clip: float | None = Field(default=None, gt=0)
    """Scores are clipped to ± this; null: they are not clipped."""
    length: LengthPenalty = NoLengthPenalty()
    """What long responses cost; by default nothing."""
