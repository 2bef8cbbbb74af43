"""What a user may say about the roles: models, optimizers, rollouts, rewards.

Imports no engine; read by `orchestrator.config.run`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

Dtype = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


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


class ModelReward(FrozenRole):
    """A frozen reward model: a sequence-classification folder with one label, in the group `reward`."""

    type: Literal["model"] = "model"
    """A neural reward model."""
    model: ModelConfig
    """The reward model, such as `tetrarch reward` leaves in `reward_training.output`."""
    text_bridge: bool = False
    """Decode to text and encode again with the reward model's own tokenizer; needed where the tokenizers differ."""


class FunctionReward(Section):
    """A Python function, in Ray actors of its own.

    `score(prompts, responses, *, response_token_ids, finished, columns) -> list[float]`.
    """

    type: Literal["function"] = "function"
    """A Python function."""
    path: str = Field(min_length=1)
    """The Python file."""
    name: str = Field(default="score", pattern=r"^[A-Za-z_]\w*$")
    """The function in it."""
    workers: int = Field(default=1, ge=1)
    """Ray actors that share the batch."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one call."""
    retries: int = Field(default=2, ge=0)
    """Calls after the first failed one, before the run fails by name."""


class RemoteReward(Section):
    """A reward over HTTP: POST of the function's arguments as JSON, answered by `{"scores": [...]}`."""

    type: Literal["remote"]
    """A service over HTTP."""
    urls: list[Annotated[str, Field(pattern=r"^https?://")]] = Field(min_length=1)
    """Tried in turn; the batch is spread over them."""
    headers: dict[str, SecretStr] = {}
    """Sent with each request (an authorization token, say); never logged. Space around a value is cut off."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one request, from connecting to the last byte of the answer."""
    retries: int = Field(default=2, ge=0)
    """Requests after the first failed one, each to the next URL, before the run fails by name."""

    @field_validator("headers")
    @classmethod
    def _printable(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        stripped = {name: SecretStr(value.get_secret_value().strip()) for name, value in headers.items()}
        bad = [name for name, value in stripped.items() if not value.get_secret_value().isprintable()]
        if bad:
            raise ValueError(
                f"the value of {', '.join(bad)} has a line break or control character; write it in one line"
            )
        return stripped


OneReward = Annotated[ModelReward | FunctionReward | RemoteReward, Field(discriminator="type")]


class MeanScore(Section):
    """The mean of the members' scores."""

    type: Literal["mean"] = "mean"
    """The mean."""


class WorstScore(Section):
    """The lowest of the members' scores (Coste et al., arXiv 2310.02743)."""

    type: Literal["worst"]
    """The lowest."""


class CautiousScore(Section):
    """The mean less a multiple of the standard deviation: where the members disagree, less is believed."""

    type: Literal["mean_minus_std"]
    """The mean, less doubt."""
    factor: float = Field(default=1.0, gt=0)
    """How often the standard deviation between the members (biased) is taken off."""


class WeightedScore(Section):
    """A sum of the members' scores with weights."""

    type: Literal["weighted"]
    """A weighted sum."""
    weights: dict[str, float]
    """Of each member, by name; they need not add up to 1."""


class EnsembleReward(Section):
    """Several rewards at once. Each member is a role of its own, `reward.NAME`; in a placement of groups it lives where
    `roles` names it, or with the others where `roles` says `reward`."""

    type: Literal["ensemble"]
    """Several at once."""
    members: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], OneReward] = Field(min_length=1)
    """By name."""
    combine: Annotated[MeanScore | WorstScore | CautiousScore | WeightedScore, Field(discriminator="type")] = (
        MeanScore()
    )
    """What the members' scores become."""


class EnvironmentReward(Section):
    """What the section `environment` pays, and nothing else. Any other reward is added to it."""

    type: Literal["environment"]
    """The environment's own rewards."""


RewardConfig = Annotated[
    ModelReward | FunctionReward | RemoteReward | EnsembleReward | EnvironmentReward, Field(discriminator="type")
]


class EngineConfig(Section):
    """One vLLM engine."""

    dtype: Dtype | None = None
    """null: the run's `dtype`. float32 on both sides makes vLLM's log-probabilities agree to about 4e-6."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory of the KV cache on CPU, GiB."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes (weights and KV cache)."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens a KV block; on CPU a multiple of 32; null lets us choose (32 on CPU, vLLM's own on GPUs)."""
    max_sequences: int = Field(default=256, ge=1)
    """Responses generated at once."""
    enforce_eager: bool | None = None
    """Without graph compilation; null: true on CPU (it starts faster), false on GPUs."""
    sleep: Literal[0, 1, 2] = 0
    """Between generating and the next push, on GPUs that others share: 0 stays awake, 1 moves the weights to the host,
    2 drops them (the push brings new ones)."""
    prefix_caching: bool = True
    """Share the KV cache of equal prompt beginnings; dropped with the old weights at every push."""


class RolloutConfig(Section):
    """How the policy is sampled."""

    prompts_per_step: int = Field(ge=1)
    """Prompts of one PPO step."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """Samples of each prompt; a step has prompts_per_step x responses_per_prompt samples."""
    max_response_tokens: int = Field(ge=1)
    """A response that has not ended after so many tokens is cut (*truncated*)."""
    min_response_tokens: int = Field(default=0, ge=0)
    """EOS is forbidden before so many tokens (benchmarks set it to the maximum), also in old, new and reference
    log-probabilities and the entropy: all are of the distribution without it."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    """Also divides the logits of old, new and reference log-probabilities alike. vLLM raises what is below 0.01."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the most likely tokens that hold this much probability; 1 is off."""
    top_k: int = Field(default=0, ge=0)
    """0 is off."""
    stream_samples: int = Field(default=0, ge=0)
    """Score each so many samples of an engine as soon as they are generated; 0: all that it made, when its last one is
    done. If the engines sleep, the samples of all of them are scored at once."""
    engine: EngineConfig = EngineConfig()
    """Each vLLM engine."""
