"""What a user may say about the roles: models, optimizers, rollouts, rewards.

Imports no engine; read by `orchestrator.config.run`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roles.config.section import Section


class ModelConfig(Section):
    """A transformers model."""

    path: str = Field(min_length=1)
    """A Hugging Face folder, or a folder that holds `gguf_file`, or a hub name."""
    gguf_file: str | None = None
    """Name of a GGUF file in `path`; it is converted once to a Hugging Face folder in `model_cache`."""
    layers: int | None = Field(default=None, ge=1)
    """Keep only the first so many decoder layers (a cheap backbone for a reward model); null keeps all."""
    trust_remote_code: bool = False
    """Run code that the model folder brings. Only for sources that you trust."""


class ScheduleConfig(Section):
    """Learning rate over the optimizer steps of the run."""

    type: Literal["constant", "linear", "cosine"] = "linear"
    """`linear` and `cosine` fall to 0 at the last optimizer step (the N+ details, arXiv 2403.17031)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps in which the rate rises linearly from 0."""


class OptimizerConfig(Section):
    """AdamW."""

    learning_rate: float = Field(default=1e-6, gt=0, lt=1)
    """Peak of the schedule."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay of the running means of gradient and squared gradient."""
    epsilon: float = Field(default=1e-5, gt=0, lt=1)
    """1e-5 as in the N+ details (arXiv 2403.17031), not PyTorch's 1e-8."""
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decoupled, as a factor of the learning rate (arXiv 1711.05101)."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Global L2 norm to which gradients are clipped."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate moves."""


class ZeroConfig(Section):
    """DeepSpeed ZeRO."""

    stage: Literal[0, 1, 2, 3] = 3
    """3 shards parameters, gradients and optimizer state over the group's ranks."""
    offload_optimizer: bool = False
    """Keep the optimizer state in host memory (GPUs only)."""
    sleep: bool = False
    """Of a trained role: between its updates, gradients and optimizer state move to pinned host memory, so that others
    have the card (GPUs only, stage 3)."""
    offload_parameters: bool = False
    """Keep the parameter shards in host memory (GPUs only, stage 3)."""


class FrozenRole(Section):
    """A model that only answers."""

    model: ModelConfig | None = None
    """null: the model of another role; the role's own section says which."""
    zero: ZeroConfig = ZeroConfig()
    """How the group's ranks share the model."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one packed forward pass on one rank; a longer single sample is a micro-batch of its own."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685): they alone are trained, and the value head of a critic."""

    rank: int = Field(default=16, ge=1)
    """Width of an adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """An adapter's share is multiplied by alpha / rank."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get one, such as `[q_proj, v_proj]`; or all of the decoder's (the experts of a
    mixture are none)."""


class TrainedRole(FrozenRole):
    """A model that is trained."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    lora: LoraConfig | None = None
    """Train adapters alone; null: all weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


Pooling = Literal["last", "mean"]
"""Where a reward model's number is read: at the last token, or as the mean over all tokens."""


class ActorConfig(TrainedRole):
    """The policy."""

    model: ModelConfig
    """The one model that has no other to fall back to."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep a running mean of the weights, of which each optimizer step leaves so much as it was; the run leaves it in
    `run_dir/actor_ema`. null: none is kept."""


class WarmupConfig(Section):
    """PPO steps at the start that train the critic alone, on responses of the policy as it was."""

    max_steps: int = Field(default=0, ge=0)
    """At most so many of the run's `steps`; 0 is no warm-up."""
    until_explained_variance: float | None = Field(default=None, gt=0, lt=1)
    """End it at the first batch of whose returns the critic explains so much before it is trained on them; that batch
    is the actor's first. null: after `max_steps`."""


class CriticConfig(TrainedRole):
    """The value model: a Hugging Face folder, such as a run leaves in `run_dir/critic`; or `model: null`."""

    initialise_from: Literal["reward", "policy"] = "reward"
    """Of `model: null`: the reward model (needs `reward.type: model`), or the actor's with a new value head,
    which says 0 everywhere at first."""
    warmup: WarmupConfig = WarmupConfig()
    """Steps before the actor is trained."""


class ReferenceConfig(FrozenRole):
    """The frozen policy that the KL penalty is measured against. `model: null` is the actor's."""

    share_actor: bool = False
    """With `actor.lora`: no model of its own, but the actor's without its adapters, on the actor's ranks."""
