"""The declarations of all metrics: what each number in `metrics.jsonl` means, and where the reports show it.

A metric is declared once, here. The reports' charts, captions and lines and the table of the documentation follow from
the declarations of the metrics that a run has. Metrics that a run names itself are in `orchestrator.known_metrics`.
"""

from __future__ import annotations

from cluster.role_table import ROLES, trained_roles, working_in
from orchestrator.healing_metrics import HEALING_METRICS
from orchestrator.metric_types import KL_BANDS, KL_BANDS_PER_TOKEN, Chart, Fact, Metric, Shown
from orchestrator.training_metrics import TRAINING_METRICS

RESPONSE_LENGTH = "response/length_mean"
"""Key of the metric to which bands are scaled."""

_SCORE = Chart("Score")
_CLIPPED = Chart("Clip fraction", low=0.0)
_GRADIENTS = Chart("Gradient norm", low=0.0)
_LOGPROB_GAP = Chart("Log-probability gap", logarithmic=True)
_LEARNING_RATES = Chart("Learning rates", low=0.0)
_PHASES = Chart("Seconds by phase", stacked=True)

_ALL = (
    Metric("step", "", "Steps done, this one included"),
    Metric(
        "score/mean",
        "",
        "The reward's score of a whole response, all turns together, mean over the batch",
        _SCORE,
        shown=Shown("score", "{:+z.3f}", deviation="score/std"),
    ),
    Metric("score/std", "", "Standard deviation of the scores (biased)"),
    Metric(
        "score/flat_groups",
        "fraction",
        "Prompts all of whose responses got the same score; missing with one response to a prompt",
        Chart("Prompts without spread", low=0.0),
    ),
    Metric("score/disagreement", "", "Of an ensemble: standard deviation between its members, mean over the batch"),
    Metric(
        "reward/mean", "", "Score minus the KL penalty, summed over a response, mean over the trained responses", _SCORE
    ),
    Metric(
        "objective/kl",
        "nats",
        "KL to the reference (k1), summed over a response, mean over responses",
        Chart("KL to the reference", reach=(0.0, 6.3)),
        shown=Shown("KL", "{:z.2f}"),
        bands=KL_BANDS,
    ),
    Metric(
        "objective/kl_per_token",
        "nats/token",
        "The same, mean over all generated tokens",
        Chart("KL to the reference per token"),
        bands=KL_BANDS_PER_TOKEN,
    ),
    Metric(
        "objective/entropy",
        "nats/token",
        "Entropy of the policy at the generated tokens, during the update",
        Chart("Entropy"),
        shown=Shown("entropy", "{:.2f}"),
    ),
    Metric("policy/loss", "", "Policy loss (`ppo.policy.type`) without KL and entropy, mean over the update"),
    Metric(
        "policy/approx_kl",
        "nats/token",
        "KL from the policy that sampled to the updated one (k3)",
        Chart("Policy update", low=0.0),
    ),
    Metric(
        "policy/clip_fraction",
        "fraction",
        "Tokens whose loss the clipped ratio decided",
        _CLIPPED,
        shown=Shown("clipped", "{:.1%}", line="nothing"),
    ),
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
    Metric(
        "policy/gradient_norm",
        "",
        "Global L2 norm of the actor's gradient before clipping, mean over the update",
        _GRADIENTS,
    ),
    Metric(
        "ptx/loss",
        "nats/token",
        "Cross-entropy of the rows of `ppo.ptx`, without its coefficient, as their optimizer steps found the weights",
        Chart("Pre-training loss"),
        shown=Shown("pre-training loss", "{:.3f}"),
    ),
    Metric("ptx/tokens", "tokens", "Tokens of these rows that were trained on, all optimizer steps together"),
    Metric(
        "value/loss",
        "",
        "Half the squared error of the critic (clipped), mean over the update",
        Chart("Value loss", low=0.0),
    ),
    Metric("value/clip_fraction", "fraction", "Tokens whose loss the clipped value decided", _CLIPPED),
    Metric(
        "value/explained_variance",
        "",
        "Share of the returns' variance that the critic foresaw before the update: 1 is perfect, 0 is no help",
        Chart("Explained variance", reach=(0.0, 1.0)),
        shown=Shown("explained variance", "{:z.2f}", line="nothing"),
    ),
    Metric(
        "value/gradient_norm",
        "",
        "Global L2 norm of the critic's gradient before clipping, mean over the update",
        _GRADIENTS,
    ),
    *TRAINING_METRICS,
    Metric("advantage/mean", "", "Advantages before whitening, mean over the trained tokens"),
    Metric("advantage/std", "", "Their standard deviation (biased)"),
    Metric(
        RESPONSE_LENGTH,
        "tokens",
        "Generated tokens per response, EOS included",
        Chart("Response length"),
        shown=Shown("length", "{:.1f}"),
    ),
    Metric(
        "response/length_p50", "tokens", "Half of the responses have at most so many generated tokens", quantile=0.5
    ),
    Metric("response/length_p90", "tokens", "Nine of ten have at most so many", quantile=0.9),
    Metric("response/length_p99", "tokens", "99 of 100 have at most so many", quantile=0.99),
    Metric(
        "response/length_max", "tokens", "The longest response of the batch, for which generation waits", quantile=1.0
    ),
    Metric("prompt/length_mean", "tokens", "Tokens of a sample that the policy did not generate, mean over the batch"),
    Metric("response/turns_mean", "", "Turns of the policy in a conversation; 1 without an environment"),
    Metric(
        "response/truncated_fraction",
        "fraction",
        "Responses that the length limit cut",
        Chart("Truncated responses", low=0.0),
        shown=Shown("truncated", "{:.0%}"),
    ),
    Metric(
        "response/repeated_fraction",
        "fraction",
        "Sequences of four tokens that occurred before in the same response",
        Chart("Repeated text", low=0.0),
    ),
    Metric("sampling/rounds", "", "Rounds in which prompts were drawn for this step (`ppo.dynamic_sampling`)"),
    Metric(
        "sampling/left_out_fraction",
        "fraction",
        "Generated samples that are not trained on, because the scores of their group have no spread",
        Chart("Samples left out", low=0.0),
    ),
    Metric("sampling/score_mean", "", "Score of all generated samples, also of those that are left out"),
    Metric("kl/coefficient", "", "Weight of the KL penalty in this step", Chart("KL coefficient", low=0.0)),
    Metric("lr/actor", "", "Learning rate of the actor at the last optimizer step", _LEARNING_RATES),
    Metric("lr/critic", "", "Learning rate of the critic at the last optimizer step", _LEARNING_RATES),
    Metric("lr/reward", "", "Learning rate of the reward model in training", _LEARNING_RATES),
    Metric(
        "engine/logprob_gap_mean",
        "nats/token",
        "|vLLM's - the trainer's| log-probability of a token, mean",
        _LOGPROB_GAP,
    ),
    Metric("engine/logprob_gap_max", "nats/token", "The largest such gap of the batch", _LOGPROB_GAP),
    Metric("weights/version", "", "Version of the weights that the engines hold after this step"),
    *HEALING_METRICS,
    Metric(
        "time/generate_s",
        "s",
        "Generation, with the scoring that already runs beside it",
        _PHASES,
        "generate",
        doing="generating responses",
    ),
    Metric(
        "time/score_s",
        "s",
        "Scoring passes that were still running after the last response",
        _PHASES,
        "score",
        doing="scoring",
    ),
    Metric(
        "time/experience_s",
        "s",
        "Rewards, advantages and mini-batches, on the driver",
        _PHASES,
        "experience",
        doing="estimating advantages",
    ),
    Metric(
        "time/update_s",
        "s",
        "Optimizer steps; of critic and actor side by side",
        _PHASES,
        "update",
        doing="training",
    ),
    Metric("time/push_s", "s", "Weight transfer to the engines", _PHASES, "push", doing="pushing the weights"),
    Metric(
        "time/evaluate_s",
        "s",
        "Passes over held-out data inside a step",
        _PHASES,
        "evaluate",
        doing="testing on held-out data",
    ),
    Metric(
        "time/label_s",
        "s",
        "Responses for the retraining of the reward model, and the judge's labels",
        _PHASES,
        "label",
        doing="sampling and labelling responses for the reward model",
    ),
    Metric(
        "time/retrain_s", "s", "Retraining of the reward model", _PHASES, "retrain", doing="retraining the reward model"
    ),
    Metric(
        "time/step_s",
        "s",
        "The whole step, without checkpoint and evaluation",
        shown=Shown("time a step", "{:.1f} s", line="value"),
        facts=(Fact("Time in steps", "sum"), Fact("Median step", "median")),
    ),
    Metric("time/driver_s", "s", "The step's time in which no engine was at work"),
    Metric(
        "tokens/generated_per_s",
        "tokens/s",
        "Generated tokens of the batch divided by the time of generation",
        Chart("Throughput", low=0.0),
        facts=(Fact("Generated", "median"),),
    ),
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
            *((role, "score", f"the {role}'s {ROLES[role].answers}") for role in sorted(working_in("score"))),
            *((role, "update", f"the {role}'s update") for role in trained_roles()),
        )
    ),
    Metric(
        "memory/host_peak_gib",
        "GiB",
        "Most host memory in use so far, all processes of the run together",
        facts=(Fact("Peak host memory", "max"),),
    ),
)

METRICS: dict[str, Metric] = {metric.key: metric for metric in _ALL}
"""Key → metric, in the README's order."""

LENGTH_QUANTILES = {metric.key: metric.quantile for metric in _ALL if metric.quantile is not None}
"""Key of a metric → share of the responses that are not longer."""


MEASURED = ("time/", "tokens/", "memory/", "gpu/", "mfu/", "healing/")
"""Begins the metrics that depend on the machine and its clock; the others are the same when a run is repeated."""


def is_measured(key: str) -> bool:
    """Whether a metric depends on the machine and its clock."""
    return key.startswith(MEASURED)


def metrics_table_markdown() -> str:
    """The README's table: key, unit, meaning."""
    rows = [f"| `{m.key}` | {m.unit} | {_cell(m.description)} |" for m in METRICS.values()]
    return "\n".join(["| key | unit | meaning |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
