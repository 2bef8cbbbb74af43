"""The whole configuration of a run. A YAML file and `key.path=value` overrides flow in, a frozen RunConfig flows out.

Imports neither torch, ray, vllm nor deepspeed, so that a file can be checked on a laptop.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config import Deadlines, LocalPlacement, PlacementConfig
from roles.config import (
    ActorConfig,
    CriticConfig,
    Dtype,
    FunctionReward,
    ModelConfig,
    OptimizerConfig,
    PolicyLossConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
    Section,
    ValueLossConfig,
)


class DatasetConfig(Section):
    """Rows that the `datasets` library can load."""

    path: str
    """A hub name, a `.jsonl`, `.json` or `.parquet` file, or a directory."""
    name: str | None = None
    """A hub data set's configuration."""
    split: str = "train"
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many rows."""


class PromptsConfig(Section):
    """What the policy is asked."""

    train: DatasetConfig
    heldout: DatasetConfig | None = None
    """Prompts that are never trained on, for `evaluation`."""
    max_tokens: int = Field(ge=1)
    """Longest prompt, in tokens, after the chat template."""
    too_long: Literal["error", "skip", "truncate"] = "error"
    """A longer prompt ends the run, is left out (counted), or loses its first tokens (counted)."""


class Gae(Section):
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438)."""

    type: Literal["gae"] = "gae"
    gamma: float = Field(default=1.0, ge=0, le=1)
    lambda_: float = Field(default=0.95, ge=0, le=1, alias="lambda")


AdvantageConfig = Annotated[Gae, Field()]


class FixedKl(Section):
    """A constant KL coefficient."""

    type: Literal["fixed"] = "fixed"
    coefficient: float = Field(default=0.05, ge=0)


class AdaptiveKl(Section):
    """Ziegler et al. (arXiv 1909.08593, section 2.2): times
    1 + clip(KL/target - 1, ±0.2)·samples/horizon each step."""

    type: Literal["adaptive"]
    initial: float = Field(default=0.05, gt=0)
    target: float = Field(gt=0)
    """Nats a response, summed over its tokens."""
    horizon: int = Field(default=10_000, ge=1)
    """Samples."""


KlController = Annotated[FixedKl | AdaptiveKl, Field(discriminator="type")]


class KlConfig(Section):
    """The penalty for leaving the reference, in the per-token reward, where k1 alone has the intended optimum."""

    controller: KlController = FixedKl()
    estimator: Literal["k1"] = "k1"
    """log π − log π_ref of the sampled token. k2 and k3 in the reward have another optimum and are refused."""


class ScoreTruncated(Section):
    """A response cut by the length limit is scored like any other."""

    type: Literal["score"] = "score"


class PenaliseTruncated(Section):
    """EOS trick of the N+ details: a response without EOS gets a fixed score."""

    type: Literal["penalty"]
    score: float = -1.0


class MaskTruncated(Section):
    """A truncated response is not trained on."""

    type: Literal["mask"]


class BootstrapTruncated(Section):
    """The critic's value of the cut state stands for what would have followed; the score is added as usual."""

    type: Literal["bootstrap"]


TruncationConfig = Annotated[
    ScoreTruncated | PenaliseTruncated | MaskTruncated | BootstrapTruncated, Field(discriminator="type")
]


class PpoConfig(Section):
    """Proximal policy optimisation (Schulman et al., arXiv 1707.06347) with the N+ details (arXiv 2403.17031)."""

    epochs: int = Field(default=4, ge=1)
    """Passes over a batch."""
    mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps a pass; must divide the samples of a step."""
    policy: PolicyLossConfig = PolicyLossConfig()
    value: ValueLossConfig = ValueLossConfig()
    advantage: AdvantageConfig = Gae()
    whiten_advantages: bool = True
    """Over the valid tokens of the global batch; biased variance."""
    whiten_rewards: bool = False
    """Scale only: rewards keep their mean."""
    kl: KlConfig = KlConfig()
    truncated: TruncationConfig = ScoreTruncated()
    critic_warmup_steps: int = Field(default=0, ge=0)
    """PPO steps at the start in which only the critic is trained."""


class EvaluationConfig(Section):
    """What is measured on the held-out prompts before, after and every so many steps."""

    every: int = Field(default=0, ge=0)
    """PPO steps between evaluations; 0: only before the first and after the last."""
    prompts: int = Field(default=128, ge=1)
    """Of the held-out ones, from the first."""
    judge: FunctionReward | None = None
    """A gold scorer with the reward function's signature; null: the proxy score alone."""
    samples: int = Field(default=3, ge=0)
    """Responses shown side by side."""


class CheckpointConfig(Section):
    """State that a run resumes from."""

    every: int = Field(default=0, ge=0)
    """PPO steps between checkpoints; 0: only after the last step."""
    keep: int = Field(default=2, ge=1)
    """Newest whole ones that stay."""


class ReportConfig(Section):
    """What a run writes beside `metrics.jsonl`."""

    tensorboard: bool = True
    html: bool = True


class PairDataset(Section):
    """Preference pairs from a data set with columns `prompt` (or `messages`), `chosen`, `rejected`."""

    type: Literal["dataset"]
    dataset: DatasetConfig


class SampledPairs(Section):
    """The policy's own responses to the training prompts, ranked by a judge (synthetic gold, arXiv 2210.10760)."""

    type: Literal["sampled"]
    judge: FunctionReward
    responses_per_prompt: int = Field(default=4, ge=2)
    """The best and the worst of them make a pair, unless the judge calls them equal."""
    prompts: int | None = Field(default=None, ge=1)
    """Training prompts to use; null is all."""


PairsConfig = Annotated[PairDataset | SampledPairs, Field(discriminator="type")]


class RewardTrainingConfig(Section):
    """`tetrarch reward`: a reward model from preference pairs with the Bradley–Terry loss."""

    output: str
    """Folder of the trained model; point `reward.model.path` at it."""
    model: ModelConfig
    """Backbone."""
    pairs: PairsConfig
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    epochs: int = Field(default=1, ge=1)
    pairs_per_step: int = Field(default=16, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5)
    max_tokens: int = Field(default=1024, ge=2)
    """Prompt + response; longer pairs are left out (counted)."""
    minimum_accuracy: float = Field(default=0.0, ge=0, lt=1)
    """Held-out pair accuracy below which the command fails."""


class RunConfig(Section):
    """One run."""

    run_dir: str
    """Everything the run leaves behind goes here."""
    seed: int = Field(default=1, ge=0)
    steps: int = Field(ge=1)
    """PPO steps."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Dtype = "float32"
    """Of the models' weights and activations; losses, values and log-probabilities are float32 always."""
    model_cache: str = "runs/models"
    """Where converted models (GGUF, cut layers) are kept."""
    prompts: PromptsConfig
    actor: ActorConfig
    critic: CriticConfig = CriticConfig()
    reference: ReferenceConfig = ReferenceConfig()
    reward: RewardConfig
    rollout: RolloutConfig
    ppo: PpoConfig = PpoConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    report: ReportConfig = ReportConfig()
    reward_training: RewardTrainingConfig | None = None
    placement: PlacementConfig = LocalPlacement()
    deadlines: Deadlines = Deadlines()

    @property
    def samples_per_step(self) -> int:
        """Rows of one PPO batch."""
        return self.rollout.prompts_per_step * self.rollout.responses_per_prompt

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.samples_per_step % self.ppo.mini_batches:
            raise ValueError(
                f"ppo.mini_batches={self.ppo.mini_batches} does not divide the {self.samples_per_step} samples of "
                "a step (rollout.prompts_per_step x rollout.responses_per_prompt); choose a divisor"
            )
        filtered = self.rollout.top_p < 1 or self.rollout.top_k > 0
        if filtered and self.ppo.policy.importance.type == "none":
            raise ValueError(
                f"rollout.top_p={self.rollout.top_p}, top_k={self.rollout.top_k} sample another distribution than the "
                "actor's; set ppo.policy.importance: {type: truncated}, or top_p: 1 and top_k: 0"
            )
        return self
