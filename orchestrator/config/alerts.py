"""What a run warns of, goes back for, or ends for: the section `alerts`.

Each rule watches numbers of `metrics.jsonl`. What the rules mean and what people do then is in
`orchestrator.run.alert_rules`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr
from pydantic_core import PydanticCustomError

from roles.config.section import Section
from roles.config.service import Headers, reachable


class AlertRule(Section):
    """One rule."""

    steps: int = Field(default=3, ge=1)
    """Number of steps in a row in which the numbers must be bad before the rule fires."""
    on_alert: Literal["warn", "rollback", "stop"] = "warn"
    """`warn`: say it, once. `rollback`: go back to the last good checkpoint, with smaller learning rates. `stop`: save
    a checkpoint and end the run, with exit code 4."""


class AtOnce(AlertRule):
    """A rule that does not wait."""

    steps: int = Field(default=1, ge=1)
    """Number of steps in a row in which the numbers must be bad before the rule fires."""


class PolicyUpdateAlert(AtOnce):
    """The policy changes too much in one step."""

    limit: float = Field(default=0.1, gt=0)
    """Above this `policy/approx_kl`."""


class EntropyAlert(AlertRule):
    """The policy's entropy collapses."""

    limit: float = Field(default=0.2, gt=0, lt=1)
    """Below this share of the mean entropy of the first five steps."""


class ExplainedVarianceAlert(AlertRule):
    """The critic does worse than no critic. Steps in which only the critic is trained do not count."""

    limit: float = Field(default=0.0, lt=1)
    """Below this `value/explained_variance`."""


class TruncatedAlert(AlertRule):
    """Almost all responses are cut by the length limit."""

    limit: float = Field(default=0.99, gt=0, le=1)
    """At or above this `response/truncated_fraction`."""


class TruncatedRiseAlert(AlertRule):
    """More and more responses are cut by the length limit."""

    limit: float = Field(default=0.3, gt=0, lt=1)
    """Above the mean share of the first five steps by more than this."""


class LengthAlert(AlertRule):
    """The length of the responses drifts."""

    limit: float = Field(default=2.0, gt=1)
    """Longer than so many times the mean length of the first five steps, or shorter than one part in so many."""


class RepeatedTextAlert(AlertRule):
    """The responses repeat themselves."""

    limit: float = Field(default=0.2, gt=0, lt=1)
    """`response/repeated_fraction` is above its mean in the first five steps by more than this."""


class SpreadAlert(AlertRule):
    """The responses to the same prompt get the same score, so that nothing can be learned from comparing them."""

    limit: float = Field(default=0.9, gt=0, le=1)
    """At or above this share of prompts without any spread (`score/flat_groups`)."""


class SaturatedAlert(AlertRule):
    """All responses get nearly the same score."""

    limit: float = Field(default=0.1, gt=0, lt=1)
    """`score/std` is below this share of its mean in the first five steps."""


class GradientNormAlert(AtOnce):
    """A gradient of the actor or the critic explodes."""

    limit: float = Field(default=10.0, gt=1)
    """Above so many times the median norm of the 20 steps before."""


class LossAlert(AtOnce):
    """The critic's loss explodes."""

    limit: float = Field(default=10.0, gt=1)
    """Above so many times the median `value/loss` of the 20 steps before."""


class LogprobGapAlert(AlertRule):
    """The engines sample from another distribution than the one that is trained."""

    limit: float = Field(default=0.05, gt=0)
    """Above this `engine/logprob_gap_mean`. The section `canary` ends a run at a gap of its own."""


class GoldAlert(Section):
    """The proxy score rises while the gold score falls (over-optimisation). `evaluation.stop` ends the run for it."""

    limit: float = Field(default=2.0, ge=0)
    """Standard errors of the difference by which the gold score is below that of the best evaluation."""
    evaluations: int = Field(default=2, ge=1)
    """Number of evaluations in a row after the best one for which that must hold, while their proxy score is higher."""


class NotFiniteAlert(Section):
    """A loss, a gradient, or what a trained model or an engine computes is NaN or infinite."""

    on_alert: Literal["rollback", "stop"] = "stop"
    """`stop`: the run ends with exit code 1, as by any error, and the batch is kept. `rollback`: as of the rules."""


def _secret_address(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    if text and set(text) == {"*"}:  # in the configuration of a checkpoint, which holds no secret
        return url
    if not text.startswith(("http://", "https://")):
        raise PydanticCustomError("url", "must begin with http:// or https://")
    reachable(text)
    return url


class WebhookConfig(Section):
    """Where alerts are sent to as JSON, in the background: `{"run", "step", "rule", "action", "text"}`. A failure is
    told once, and ends nothing."""

    secret_url: Annotated[SecretStr, AfterValidator(_secret_address)]
    """The address, which is never shown: who knows it may write there. Not on a command line."""
    headers: Headers = Field(default_factory=dict)
    """Sent with each alert, such as `{authorization: Bearer …}`; never shown."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Seconds in which an alert must have been taken; at its end the run waits for those under way, as long at most."""


class AlertsConfig(Section):
    """Rules over the metrics of a run; null in place of a rule turns it off. Each is told once in a run."""

    kl: AtOnce | None = AtOnce()
    """The policy is far from the reference: `ppo.kl.budget.warn` is passed."""
    policy_update: PolicyUpdateAlert | None = PolicyUpdateAlert()
    """The policy changes too much in one step."""
    entropy: EntropyAlert | None = EntropyAlert()
    """The policy's entropy collapses."""
    explained_variance: ExplainedVarianceAlert | None = ExplainedVarianceAlert()
    """The critic does worse than no critic."""
    truncated: TruncatedAlert | None = TruncatedAlert()
    """Almost all responses are cut."""
    truncated_rise: TruncatedRiseAlert | None = TruncatedRiseAlert()
    """More and more responses are cut."""
    length: LengthAlert | None = LengthAlert()
    """The length of the responses drifts."""
    repeated_text: RepeatedTextAlert | None = RepeatedTextAlert()
    """The responses repeat themselves."""
    spread: SpreadAlert | None = SpreadAlert()
    """The responses to the same prompt get the same score."""
    saturated: SaturatedAlert | None = SaturatedAlert()
    """All responses get nearly the same score."""
    gradient_norm: GradientNormAlert | None = GradientNormAlert()
    """A gradient explodes."""
    loss: LossAlert | None = LossAlert()
    """The critic's loss explodes."""
    logprob_gap: LogprobGapAlert | None = LogprobGapAlert()
    """The engines sample from another distribution than the one that is trained."""
    gold: GoldAlert | None = GoldAlert()
    """The proxy score rises while the gold score falls."""
    not_finite: NotFiniteAlert = NotFiniteAlert()
    """A number is NaN or infinite."""
    rollbacks: int = Field(default=2, ge=0)
    """Number of times that the run goes back; at the next one it ends as with `stop`."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    """What the learning rates of actor and critic are multiplied by each time that the run goes back."""
    webhook: WebhookConfig | None = None
    """Where alerts are sent to besides; null: nowhere."""
