"""Models and optimizers of the roles: the sections `actor`, `critic` and `reference`. Imports no engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roles.config.section import PathText, Section


class ModelConfig(Section):
    """A transformers model."""

    path: PathText
    """A Hugging Face folder, a folder that holds `gguf_file` or a PEFT adapter, or a hub name."""
    revision: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    """Commit, tag or branch of a hub name; only a commit never changes. null: what is newest when it is fetched. The
    commit that was read is in `run.json`. The base of an adapter is of the `revision` in its adapter_config.json;
    without one it is what is newest too, and `run.json` has its commit as `KEY (base)`."""
    gguf_file: str | None = None
    """Name of a GGUF file in `path`; it is converted once to a Hugging Face folder in `model_cache`."""
    layers: int | None = Field(default=None, ge=1)
    """Number of decoder layers to keep, from the first (a small backbone for a reward model); null: all."""
    trust_remote_code: bool = False
    """Run code from the model folder. Only for sources that you trust."""


class ScheduleConfig(Section):
    """Learning rate over the optimizer steps of the run."""

    type: Literal["constant", "linear", "cosine"] = "linear"
    """`linear` and `cosine` fall to 0 at the last optimizer step (the N+ details, arXiv 2403.17031)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps during which the learning rate rises linearly from 0."""
    floor: float = Field(default=0.0, ge=0, lt=1)
    """Share of the peak that `linear` and `cosine` fall to, in place of 0."""


class OptimizerConfig(Section):
    """AdamW."""

    learning_rate: float = Field(default=1e-6, gt=0, lt=1)
    """Peak of the schedule."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay rates of the running means of gradient and squared gradient."""
    epsilon: float = Field(default=1e-5, gt=0, lt=1)
    """1e-5 as in the N+ details (arXiv 2403.17031), not PyTorch's 1e-8."""
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decoupled, as a factor of the learning rate (arXiv 1711.05101)."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Global L2 norm to which gradients are clipped."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the optimizer steps of the run."""


class ZeroConfig(Section):
    """DeepSpeed ZeRO."""

    stage: Literal[0, 1, 2, 3] = 3
    """0 shards nothing over the group's ranks, 1 the optimizer state, 2 also the gradients, 3 also the parameters."""
    offload_optimizer: bool = False
    """Keep the optimizer state in host memory (GPUs only)."""
    sleep: bool = False
    """Between the updates of a trained role, move its gradients and optimizer state to pinned host memory, so that
    other roles can use the card (GPUs only, stage 3)."""
    offload_parameters: bool = False
    """Keep the parameter shards in host memory (GPUs only, stage 3)."""


class FrozenRole(Section):
    """A model that is not trained."""

    model: ModelConfig | None = None
    """null: the model of another role (see the role's own section)."""
    zero: ZeroConfig = ZeroConfig()
    """How the group's ranks share the model."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one packed forward pass on one rank; a single sample that is longer has a pass of its own."""
    fused_kernels: bool = True
    """On GPUs, run norms, rotary embedding and gated activations as one kernel each (Liger's), where they have been
    compared with the architecture's own layers on a card: EXAONE 4, Gemma 1 to 3, Granite, Llama, Mistral, OLMo 2, 3,
    Phi-3, Qwen2, Qwen3 (both dense), SmolLM3. Less memory and time, other rounding."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685): only they are trained, and the value head of a critic."""

    rank: int = Field(default=16, ge=1)
    """Rank of an adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """The output of an adapter is multiplied by alpha / rank."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get an adapter, such as `[q_proj, v_proj]`; or all linear layers of the decoder,
    except the experts of a mixture."""


class TrainedRole(FrozenRole):
    """A model that is trained."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    lora: LoraConfig | None = None
    """Train only adapters; null: train all weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


Pooling = Literal["last", "mean"]
"""How a reward model's number is read from its tokens: at the last token, or as the mean over all tokens."""


OldLogprobs = Literal["recompute", "first_pass", "rollout"]
"""Where the log-probabilities of the policy before its update come from."""


class ActorConfig(TrainedRole):
    """The policy."""

    model: ModelConfig
    """The policy to train; the only model that has no default."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep a running mean of the weights, written to `run_dir/actor_ema`. Each optimizer step keeps this share of the
    mean and takes the rest from the new weights. null: no mean is kept."""
    old_logprobs: OldLogprobs = "recompute"
    """With which log-probabilities the updated policy's are compared. `recompute`: the actor's, of a forward pass
    before the update. `first_pass`: the actor's, of the update's own forward pass, if the update is one optimizer step:
    the same numbers. `rollout`: the engines', with which the tokens were sampled. The last two save that forward pass;
    the KL penalty in the reward then uses the engines' numbers, and the check of their weights 16 samples a step."""


class WarmupConfig(Section):
    """PPO steps at the start that train only the critic, on responses of the unchanged policy."""

    max_steps: int = Field(default=0, ge=0)
    """Largest number of warm-up steps, counted among the run's `steps`; 0: no warm-up."""
    until_explained_variance: float | None = Field(default=None, gt=0, lt=1)
    """End the warm-up at the first batch of whose returns the critic explains this share of the variance before it is
    trained on them; that batch is the actor's first. null: end after `max_steps`."""


class CriticConfig(TrainedRole):
    """The value model: a Hugging Face folder, such as a run leaves in `run_dir/critic`; or `model: null`."""

    initialise_from: Literal["reward", "policy"] = "reward"
    """What `model: null` means. `reward`: the reward model (needs `reward.type: model`). `policy`: the actor's model
    with a new value head, which gives 0 everywhere at first."""
    warmup: WarmupConfig = WarmupConfig()
    """Steps that train only the critic, before the actor is trained."""


class ReferenceConfig(FrozenRole):
    """The frozen policy that the KL penalty is measured against. `model: null`: the actor's model."""

    share_actor: bool = False
    """Only with `actor.lora`: the reference is the actor without its adapters, on the actor's ranks."""
