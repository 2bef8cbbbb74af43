"""The declarations of the metrics of trainings on data: reward models (also during PPO), fine-tuning, preferences.

They are a part of `orchestrator.metrics`.
"""

from __future__ import annotations

from orchestrator.metric_types import Chart, Metric, Shown

_ACCURACY = Chart("Accuracy", reach=(0.5, 1.0))
_DPO_LOSS, _DPO_REWARDS = Chart("Preference loss of the policy"), Chart("Rewards of a preference")
_DPO_KL = Chart("KL to the start model")
_SFT, _SFT_LOSS = Chart("Cross-entropy", low=0.0), Shown("loss", "{:.4f}")
_RETRAINED, _PINNED = Chart("Loss of the retrained reward", low=0.0), Chart("Score of the pinned responses")
_GRADIENTS = Chart("Gradient norm", low=0.0)

TRAINING_METRICS = (
    Metric(
        "preference/loss",
        "",
        "Loss of a preference pair (Bradley-Terry), mean over the comparisons of the step",
        Chart("Preference loss", low=0.0),
        shown=Shown("loss", "{:.3f}"),
    ),
    Metric(
        "preference/accuracy",
        "fraction",
        "Comparisons of the step that the model ordered rightly before it was trained on them",
        _ACCURACY,
        "training",
        shown=Shown("accuracy", "{:.0%}"),
    ),
    Metric(
        "preference/heldout_accuracy",
        "fraction",
        "Held-out comparisons that the model orders rightly, at the end of an epoch",
        _ACCURACY,
        "held out",
        shown=Shown("held out", "{:.1%}"),
    ),
    Metric("preference/heldout_accuracy_low", "fraction", "Lower end of its 95 % interval", _ACCURACY, "held out, low"),
    Metric(
        "preference/heldout_accuracy_high", "fraction", "Upper end of its 95 % interval", _ACCURACY, "held out, high"
    ),
    Metric(
        "preference/heldout_calibration_error",
        "fraction",
        "How far the model's probabilities of a pair's order are from how often it is right, held out (ECE, 10 bins)",
        Chart("Calibration error", low=0.0),
    ),
    Metric("preference/gradient_norm", "", "Global L2 norm of the gradient before clipping", _GRADIENTS),
    Metric("retraining/comparisons", "", "Fresh comparisons from which the reward model learns again before the step"),
    Metric(
        "retraining/accuracy",
        "fraction",
        "Fresh comparisons that the reward model orders as the judge does, before it learns from them",
        _ACCURACY,
        "fresh comparisons",
    ),
    Metric(
        "retraining/loss", "", "Bradley-Terry loss of a fresh comparison, mean over the optimizer steps", _RETRAINED
    ),
    Metric("retraining/gradient_norm", "", "Global L2 norm of the reward model's gradient before clipping, mean"),
    Metric(
        "retraining/pinned_mean_before", "", "Mean score of the pinned responses before it learns", _PINNED, "before"
    ),
    Metric("retraining/pinned_mean", "", "The same after it has learned", _PINNED, "after"),
    Metric("retraining/pinned_std_before", "", "Standard deviation of their scores before (biased)"),
    Metric("retraining/pinned_std", "", "The same after"),
    Metric(
        "retraining/pinned_rank_correlation",
        "",
        "Spearman's rank correlation of their scores before and after: 1 if the order is the same",
        Chart("Order of the pinned responses", low=-1.0, reach=(1.0,)),
    ),
    Metric("sft/loss", "nats/token", "Cross-entropy, mean over the tokens of the step", _SFT, "training", _SFT_LOSS),
    Metric("sft/heldout_loss", "nats/token", "The same of the samples that are held out", _SFT, "held out"),
    Metric("sft/heldout_perplexity", "", "Exponential of the loss of the samples that are held out"),
    Metric("sft/tokens", "tokens", "Tokens that the step trained on"),
    Metric("sft/gradient_norm", "", "Global L2 norm of the gradient before clipping", _GRADIENTS),
    Metric(
        "dpo/loss", "", "`dpo.loss`, mean over the samples of the step", _DPO_LOSS, "training", Shown("loss", "{:.4f}")
    ),
    Metric(
        "dpo/accuracy",
        "fraction",
        "Pairs whose chosen response has the higher reward (a tie is half of one); labelled responses whose reward "
        "is on the right side of the KL",
        _ACCURACY,
        "training",
        Shown("accuracy", "{:.0%}"),
    ),
    Metric(
        "dpo/chosen_reward",
        "",
        "β·(log π - log π_ref) of the chosen or desirable responses, mean; without a reference their log-probability "
        "per token, scaled as in the loss",
        _DPO_REWARDS,
        "chosen",
    ),
    Metric("dpo/rejected_reward", "", "The same of the rejected or undesirable responses", _DPO_REWARDS, "rejected"),
    Metric("dpo/margin", "", "Chosen reward minus rejected reward", shown=Shown("margin", "{:+z.3f}")),
    Metric(
        "dpo/kl",
        "nats",
        "log π_ref - log π of a response of the step, mean: the KL of the reference to the policy, if the responses "
        "are the reference's own",
        _DPO_KL,
        "training",
    ),
    Metric("dpo/mismatched_kl", "nats", "KTO's estimate of the KL to the reference", _DPO_KL, "KTO's estimate"),
    Metric("dpo/heldout_loss", "", "Loss of what is held out", _DPO_LOSS, "held out"),
    Metric(
        "dpo/heldout_accuracy",
        "fraction",
        "Accuracy on what is held out",
        _ACCURACY,
        "held out",
        Shown("held out", "{:.1%}"),
    ),
    Metric("dpo/heldout_chosen_reward", "", "Rewards of the chosen or desirable responses that are held out"),
    Metric("dpo/heldout_rejected_reward", "", "The same of the rejected or undesirable ones"),
    Metric("dpo/heldout_margin", "", "Their difference"),
    Metric("dpo/heldout_kl", "nats", "`dpo/kl` of the responses that are held out", _DPO_KL, "held out"),
    Metric("dpo/heldout_mismatched_kl", "nats", "KTO's estimate from the responses that are held out"),
    Metric("dpo/gradient_norm", "", "Global L2 norm of the gradient before clipping", _GRADIENTS),
)
