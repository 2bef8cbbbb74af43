"""The one table of all metric names. Read by the reports (captions, units) and by the test of the README's table.

A key of `metrics.jsonl` that is not here is refused by `orchestrator.report`: whoever adds a metric describes it here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number in `metrics.jsonl` means."""

    key: str
    unit: str
    """Empty: a plain number. `fraction` is between 0 and 1 and shown as a percentage."""
    description: str


_ALL = (
    Metric("step", "", "PPO steps done, this one included"),
    Metric("score/mean", "", "The reward's score of a whole response, all turns together, mean over the batch"),
    Metric("score/std", "", "Standard deviation of the scores (biased)"),
    Metric("score/disagreement", "", "Of an ensemble: standard deviation between its members, mean over the batch"),
    Metric("reward/mean", "", "Score minus the KL penalty, summed over a response, mean over the trained responses"),
    Metric("objective/kl", "nats", "KL to the reference (k1), summed over a response, mean over responses"),
    Metric("objective/kl_per_token", "nats/token", "The same, mean over all generated tokens"),
    Metric("objective/entropy", "nats/token", "Entropy of the policy at the generated tokens, during the update"),
    Metric("policy/loss", "", "Policy loss (`ppo.policy.type`) without KL and entropy, mean over the update"),
    Metric("policy/approx_kl", "nats/token", "KL from the policy that sampled to the updated one (k3)"),
    Metric("policy/clip_fraction", "fraction", "Tokens whose loss the clipped ratio decided"),
    Metric(
        "policy/ratio_first_minibatch",
        "",
        "Mean probability ratio of the first mini-batch: 1 but for rounding (1e-5 in float32, 1e-3 in bfloat16)",
    ),
    Metric(
        "policy/importance_mean",
        "",
        "Mean weight of a token for vLLM's distribution differing from the trainer's; 1 without a correction",
    ),
    Metric("policy/gradient_norm", "", "Global L2 norm of the actor's gradient before clipping, mean over the update"),
    Metric("value/loss", "", "Half the squared error of the critic (clipped), mean over the update"),
    Metric("value/clip_fraction", "fraction", "Tokens whose loss the clipped value decided"),
    Metric(
        "value/explained_variance",
        "",
        "Share of the returns' variance that the critic foresaw before the update: 1 is perfect, 0 is no help",
    ),
    Metric("value/gradient_norm", "", "Global L2 norm of the critic's gradient before clipping, mean over the update"),
    Metric("advantage/mean", "", "Advantages before whitening, mean over the trained tokens"),
    Metric("advantage/std", "", "Their standard deviation (biased)"),
    Metric("response/length_mean", "tokens", "Generated tokens a response, EOS included"),
    Metric("response/length_p50", "tokens", "Half of the responses have at most so many generated tokens"),
    Metric("response/length_p90", "tokens", "Nine of ten have at most so many"),
    Metric("response/length_p99", "tokens", "99 of 100 have at most so many"),
    Metric("response/length_max", "tokens", "The longest response of the batch, for which generation waits"),
    Metric("prompt/length_mean", "tokens", "Tokens of a sample that the policy did not generate, mean over the batch"),
    Metric("response/turns_mean", "", "Turns of the policy in a conversation; 1 without an environment"),
    Metric("response/truncated_fraction", "fraction", "Responses that the length limit cut"),
    Metric("kl/coefficient", "", "Weight of the KL penalty in this step"),
    Metric("lr/actor", "", "Learning rate of the actor at the last optimizer step"),
    Metric("lr/critic", "", "Learning rate of the critic at the last optimizer step"),
    Metric("engine/logprob_gap_mean", "nats/token", "|vLLM's - the trainer's| log-probability of a token, mean"),
    Metric("engine/logprob_gap_max", "nats/token", "The largest such gap of the batch"),
    Metric("weights/version", "", "Version of the weights that the engines hold after this step"),
    Metric("time/generate_s", "s", "Generation, with the scoring that already runs beside it"),
    Metric("time/score_s", "s", "Scoring passes that were still running after the last response"),
    Metric("time/experience_s", "s", "Rewards, advantages and mini-batches, on the driver"),
    Metric("time/update_s", "s", "Optimizer steps of critic and actor, side by side"),
    Metric("time/push_s", "s", "Weight transfer to the engines"),
    Metric("time/step_s", "s", "The whole step, without checkpoint and evaluation"),
    Metric("time/driver_s", "s", "The step's time in which no engine was at work"),
    Metric("tokens/generated_per_s", "tokens/s", "Generated tokens of the batch divided by the time of generation"),
    Metric("memory/gpu_generate_gib", "GiB", "Most in use on the fullest GPU while generating, by all processes"),
    Metric("memory/gpu_score_gib", "GiB", "The same during the scoring passes after the last response"),
    Metric("memory/gpu_update_gib", "GiB", "The same during the update"),
    Metric("memory/gpu_push_gib", "GiB", "The same during the weight transfer"),
    Metric("memory/gpu_rank_allocated_gib", "GiB", "Most that tensors of one rank of a role held on its GPU"),
    Metric("memory/gpu_rank_reserved_gib", "GiB", "Most that torch held for one rank of a role, tensors included"),
    Metric("memory/gpu_engine_allocated_gib", "GiB", "Most that tensors of one vLLM engine held on a GPU"),
    Metric("memory/gpu_engine_reserved_gib", "GiB", "Most that torch held for one vLLM engine"),
    Metric("gpu/utilization", "fraction", "Share of the step in which a kernel was running, mean over GPUs"),
    *(
        Metric(f"mfu/{role}_{phase}", "fraction", f"Share of its GPUs' peak arithmetic that {text} reached")
        for role, phase, text in (
            ("actor", "score", "the actor's log-probabilities"),
            ("critic", "score", "the critic's values"),
            ("reference", "score", "the reference's log-probabilities"),
            ("reward", "score", "the reward's scores"),
            ("actor", "update", "the actor's update"),
            ("critic", "update", "the critic's update"),
        )
    ),
    Metric("memory/host_peak_gib", "GiB", "Most host memory in use so far, all processes of the run together"),
)

METRICS: dict[str, Metric] = {metric.key: metric for metric in _ALL}
"""By key, in the README's order."""

LENGTH_QUANTILES = {
    "response/length_p50": 0.5,
    "response/length_p90": 0.9,
    "response/length_p99": 0.99,
    "response/length_max": 1.0,
}
"""Metric → share of the responses that are no longer."""

PHASES: tuple[str, ...] = tuple(
    key for key in METRICS if key.startswith("time/") and key not in ("time/step_s", "time/driver_s")
)
"""The keys that a step's time is split into; the step's whole and the driver's share overlap them."""


def check_known(keys: list[str]) -> None:
    """ValueError if a key is not in the table."""
    unknown = [key for key in keys if key not in METRICS]
    if unknown:
        raise ValueError(f"metric {', '.join(unknown)} is not described; add it to orchestrator/metrics.py")


def phase_name(key: str) -> str:
    """`time/generate_s` → `generate`."""
    return key.removeprefix("time/").removesuffix("_s")


def metrics_table_markdown() -> str:
    """The README's table: key, unit, meaning."""
    rows = [f"| `{m.key}` | {m.unit} | {_cell(m.description)} |" for m in METRICS.values()]
    return "\n".join(["| key | unit | meaning |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
