"""Rules about keys that may change when a run resumes from a checkpoint: one set for each kind of training.

Each key of a root of the configuration is in one of two lists: it may change, and then the new value counts from the
next step on, or it must stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.role_table import trained_roles
from orchestrator.config.base import BaseConfig
from orchestrator.config.dpo import DPO_QUALITY, DpoRun
from orchestrator.config.retraining import RETRAINED
from orchestrator.config.reward_training import QUALITY, RewardTrainingRun
from orchestrator.config.run import RunConfig
from orchestrator.config.sft import SFT_QUALITY, SftRun
from orchestrator.report.run_files import EVALUATED, EVALUATED_ROWS


@dataclass(frozen=True, slots=True)
class ResumeRules:
    """The rules of one root of the configuration. Keys may name whole sections; `trained` and `frozen` stand for the
    roles of that kind, `reward` also for each member of an ensemble."""

    may_change: frozenset[str]
    stays: Mapping[str, str]
    """Key → why it cannot change."""
    steps: Callable[[Any], int | None] = lambda config: None
    """Steps of the whole run; None if the configuration alone does not determine them."""
    unread: frozenset[str] = frozenset()
    """Keys that these runs do not read, in sections of which they read others: a change is neither refused nor told."""
    leaves: tuple[str, ...] = ()
    """What the end of a run leaves in `run_dir`: trained models, and measurements of them."""


def rules_of(config: BaseConfig) -> ResumeRules:
    """The rules for the runs of `config`."""
    return RESUME_RULES[type(config)]


def _keys(*lists: str) -> frozenset[str]:
    return frozenset(key for keys in lists for key in keys.split())


def _why(reasons: Mapping[str, str]) -> dict[str, str]:
    return {key: why for why, keys in reasons.items() for key in keys.split()}


_WHERE_IT_RUNS = "run_dir model_cache deadlines recovery report checkpoint placement profile"

_PPO = ResumeRules(
    may_change=_keys(
        _WHERE_IT_RUNS,
        """steps row_keepers
evaluation.every evaluation.prompts evaluation.samples evaluation.by evaluation.stop evaluation.benchmarks
evaluation.judge.workers evaluation.judge.timeout_s evaluation.judge.retries evaluation.judge.urls
evaluation.judge.headers evaluation.judge.asks.api_key_env evaluation.judge.asks.headers evaluation.judge.asks.prices
evaluation.judge.asks.concurrency evaluation.judge.asks.timeout_s evaluation.judge.asks.patience_s
retraining.judge.zero retraining.judge.micro_batch_tokens retraining.judge.fused_kernels
retraining.judge.model.trust_remote_code
retraining.judge.workers retraining.judge.timeout_s retraining.judge.retries retraining.judge.urls
retraining.judge.headers retraining.judge.api_key_env retraining.judge.concurrency retraining.judge.patience_s
retraining.judge.prices retraining.prompts retraining.responses_per_prompt retraining.epochs
retraining.groups_per_step retraining.optimizer.learning_rate retraining.optimizer.schedule
retraining.gradient_checkpointing
trained.zero trained.micro_batch_tokens trained.gradient_checkpointing trained.fused_kernels
trained.model.trust_remote_code canary alerts
trained.optimizer.learning_rate trained.optimizer.schedule
frozen.micro_batch_tokens frozen.zero frozen.fused_kernels frozen.model.trust_remote_code
reward.urls reward.headers reward.protocol
reward.workers reward.timeout_s reward.retries environment.workers environment.timeout_s environment.retries
rollout.prompts_per_step rollout.responses_per_prompt rollout.stream_samples rollout.engine
ppo.policy.clip ppo.policy.clip_high ppo.policy.dual_clip ppo.policy.entropy_coefficient ppo.policy.importance
ppo.ptx.coefficient ppo.ptx.sequences_per_mini_batch actor.old_logprobs
ppo.dynamic_sampling ppo.value.clip ppo.value.coefficient ppo.kl.budget ppo.kl.allow_biased
ppo.kl.controller.coefficient ppo.kl.controller.target ppo.kl.controller.horizon
""",
    ),
    stays=_why(
        {
            "the prompts' order and all sampling follow from it": "seed",
            "the models compute with it": "device dtype",
            "the checkpoint holds these adapters, or none": "trained.lora",
            "the trained model started from it": "trained.model critic.initialise_from",
            "the KL is measured against it": "frozen.model reference.share_actor",
            "the reward model in the checkpoint was retrained with it": "retraining retraining.every retraining.judge "
            "retraining.judge.model "
            "retraining.freeze_backbone retraining.pinned retraining.critic_steps retraining.question "
            "retraining.minimum_mass",
            "the position in the prompts would mean another one": "prompts.train prompts.heldout_fraction "
            "prompts.max_tokens prompts.column prompts.tools "
            "prompts.too_long",
            "the position in the rows would mean another one": "ppo.ptx ppo.ptx.data ppo.ptx.max_tokens "
            "ppo.ptx.too_long ppo.ptx.train_on_prompt",
            "evaluations before and after would not be comparable": "prompts.heldout prompts.heldout_sets "
            "evaluation.judge evaluation.decides evaluation.sampling evaluation.sampling.temperature "
            "evaluation.sampling.top_p evaluation.sampling.top_k evaluation.sampling.min_p "
            "evaluation.responses_per_prompt evaluation.passes",
            "the state of the optimizer and its count of steps depend on it": "trained.optimizer.betas "
            "trained.optimizer.epsilon trained.optimizer.weight_decay trained.optimizer.max_gradient_norm ppo.epochs "
            "ppo.mini_batches retraining.optimizer.betas retraining.optimizer.epsilon "
            "retraining.optimizer.weight_decay retraining.optimizer.max_gradient_norm",
            "the mean in the checkpoint was taken with it": "actor.ema_decay",
            "it is spent, or half spent": "critic.warmup ppo.kl.controller.initial",
            "the checkpoint has the state of that controller": "ppo.kl.controller.type",
            "policy and critic have been trained for it": "reward.type reward.text_bridge reward.model reward.path "
            "reward.name reward.members reward.combine environment environment.type environment.path environment.name "
            "environment.max_turns environment.max_tokens environment.cut_turn rollout.max_response_tokens "
            "rollout.min_response_tokens rollout.temperature rollout.top_p rollout.top_k rollout.min_p "
            "rollout.stop rollout.stop_token_ids ppo.advantage "
            "ppo.whiten_advantages ppo.whiten_rewards ppo.score ppo.truncated ppo.kl.where ppo.kl.estimator "
            "ppo.policy.type ppo.policy.mean ppo.value.mean ppo.value.normalise reward.label",
        }
    ),
    steps=lambda config: config.steps,
    leaves=(*trained_roles(), RETRAINED, "actor_ema", EVALUATED, EVALUATED_ROWS),
)

_REWARD_TRAINING = ResumeRules(
    may_change=_keys(
        _WHERE_IT_RUNS,
        """reward_training.output reward_training.model.trust_remote_code reward_training.epochs
reward_training.optimizer.learning_rate reward_training.optimizer.schedule reward_training.micro_batch_tokens
reward_training.fused_kernels
reward_training.minimum_accuracy
""",
    ),
    stays=_why(
        {
            "the order of the comparisons follows from it": "seed reward_training.groups_per_step",
            "the models compute with it": "device dtype",
            "the trained model started from it": "reward_training.model reward_training.freeze_backbone "
            "reward_training.pooling",
            "the comparisons were made with it": "reward_training.pairs prompts actor rollout environment",
            "the comparisons were set aside with it": "reward_training.heldout_fraction reward_training.max_tokens",
            "the members differ by it": "reward_training.ensemble",
            "the state of the optimizer depends on it": "reward_training.optimizer.betas "
            "reward_training.optimizer.epsilon reward_training.optimizer.weight_decay "
            "reward_training.optimizer.max_gradient_norm",
        }
    ),
    unread=_keys(
        """prompts.heldout prompts.heldout_sets actor.old_logprobs
actor.model.trust_remote_code actor.zero actor.micro_batch_tokens actor.optimizer actor.lora
actor.gradient_checkpointing actor.ema_decay rollout.prompts_per_step rollout.responses_per_prompt
rollout.stream_samples rollout.engine
"""
    ),
    leaves=(QUALITY,),
)


def _policy_training(section: str, objective: str, made: str) -> ResumeRules:
    """The rules of a training that makes a policy of a data set.

    Args:
        objective: keys of the section that say what is minimised.
        made: a file in every folder that it writes.
    """

    def keys(names: str) -> str:
        return " ".join(f"{section}.{name}" for name in names.split())

    return ResumeRules(
        may_change=_keys(
            _WHERE_IT_RUNS,
            keys(
                "output model.trust_remote_code epochs optimizer.learning_rate optimizer.schedule zero "
                "micro_batch_tokens gradient_checkpointing fused_kernels evaluate_every"
            ),
        ),
        stays=_why(
            {
                "the order of the data follows from it": f"seed {keys('samples_per_step')}",
                "the models compute with it": "device dtype",
                "the checkpoint holds these adapters, or none": keys("lora"),
                "the trained model started from it": keys("model"),
                "the model was trained on it": keys("data max_tokens too_long chat_template"),
                "the model was trained with it": keys(objective),
                "evaluations before and after would not be comparable": keys("heldout heldout_fraction"),
                "the state of the optimizer depends on it": keys(
                    "optimizer.betas optimizer.epsilon optimizer.weight_decay optimizer.max_gradient_norm"
                ),
            }
        ),
        leaves=(made,),
    )


RESUME_RULES: dict[type[BaseConfig], ResumeRules] = {
    RunConfig: _PPO,
    RewardTrainingRun: _REWARD_TRAINING,
    SftRun: _policy_training("sft", "train_on_prompt", SFT_QUALITY),
    DpoRun: _policy_training("dpo", "loss", DPO_QUALITY),
}
"""Root → its rules."""
