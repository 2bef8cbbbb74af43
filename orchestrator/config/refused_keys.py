"""Keys of other systems that are refused on purpose, with the reason. Pure."""

from __future__ import annotations

_DEPENDS = (
    "refused: it changes each token's probability by what the response has said so far; the actor's and the "
    "reference's log-probabilities are those without it, so ratios and KL would not be those of the sampled policy"
)
_INSTEAD = "leave it out; let the reward function score {}, as `alerts.repeated_text` warns of repeated text"

REFUSED = {
    "rollout.repetition_penalty": f"{_DEPENDS}; {_INSTEAD.format('repetition')}",
    "rollout.presence_penalty": f"{_DEPENDS}; {_INSTEAD.format('repetition')}",
    "rollout.frequency_penalty": f"{_DEPENDS}; {_INSTEAD.format('repetition')}",
    "rollout.bad_words": f"{_DEPENDS}; leave it out; let the reward function score responses that hold such words",
}
"""Key path → why it is refused, and what to do."""
