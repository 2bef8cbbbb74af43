"""The models inside the roles: a policy that gives log-probabilities and a network that gives values.

In: a Hugging Face folder and packed token ids (`roles.packing.Packed`). Out: float32 numbers for the requested tokens.
Both wrap a transformers model as `.model`, run without padding (`roles.models.attention`) and without dropout, and
reach weights only through the forward of the submodule that owns them, so that ZeRO-3 can gather them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from roles.config.models import Pooling
from roles.errors import ModelError
from roles.losses.logprobs import entropy, token_logprobs
from roles.model_files.value_heads import Head, find_head, give_head, linear_head, normalisation, read_head
from roles.model_files.weight_check import few
from roles.model_files.weight_files import Stored, stored_weights
from roles.models.attention import IMPLEMENTATION, Layout
from roles.models.early_end import Forbidden
from roles.models.keywords import KEEPING, pass_on_layout
from roles.models.scoring_head import ScoringHead, has_plain_head
from roles.packing import Packed


class PolicyModel(nn.Module):
    """A causal language model that computes log-probabilities of given tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.scores_in_blocks = has_plain_head(model)
        """Whether logits are computed in blocks; not if the architecture scales or caps them after its head."""
        if self.scores_in_blocks:
            model.set_output_embeddings(ScoringHead(model.get_output_embeddings()))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> Self:
        """The causal language model in the folder `path`. Raises ModelError if a weight is missing."""
        model, report = _load(AutoModelForCausalLM, path, dtype, gradient_checkpointing, trust_remote_code)
        if report["missing_keys"]:
            raise ModelError(
                f"{path} lacks weights of a causal language model: {few(report['missing_keys'])}; use a whole folder"
            )
        if report["unexpected_keys"]:
            raise ModelError(
                f"{path} has weights that a causal language model has not: {few(report['unexpected_keys'])}; use the "
                "folder of a language model"
            )
        return cls(model)

    def forward(
        self,
        *,
        packed: Packed,
        positions: Tensor,
        labels: Tensor,
        temperature: float,
        with_entropy: bool = False,
        forbidden: Forbidden | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probability of `labels[i]` as the token after position `positions[i]`, and the entropy there.

        `positions`: int64 `[n]`, distinct indices into the packed tokens; `labels`: int64 `[n]`. Both answers are
        float32 `[n]` of the distribution at `temperature` without the tokens that are `forbidden` there. Logits are
        computed at those positions only.
        """
        if self.scores_in_blocks:
            hidden = self.model.base_model(**_inputs(packed)).last_hidden_state[0].index_select(0, positions)
            scores: tuple[Tensor, Tensor] = self.model.get_output_embeddings()(
                hidden, labels, temperature, with_entropy, forbidden
            )
            return scores[0], scores[1] if with_entropy else None
        output = self.model(**_inputs(packed), logits_to_keep=positions)
        logits = output.logits[0]
        if len(logits) != len(positions):
            logits = logits.index_select(0, positions)
        if forbidden:
            logits = forbidden.drop(logits.clone())
        logprobs = token_logprobs(logits, labels, temperature)
        return logprobs, entropy(logits, temperature) if with_entropy else None


class ValueModel(nn.Module):
    """A sequence classifier with one label, read at any token: the critic and the reward model."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.score_scale, self.score_shift = normalisation(config.to_dict())
        """The model's raw number is multiplied by `score_scale`, then `score_shift` is subtracted; both are kept in
        config.json."""
        config.score_scale, config.score_shift = self.score_scale, self.score_shift
        for key in ("mean", "std"):
            if hasattr(config, key):  # `score_scale` and `score_shift` replace it from here on
                delattr(config, key)
        self.score_pooling: Pooling = config.score_pooling if hasattr(config, "score_pooling") else "last"
        """`mean`: a score is the mean over all tokens up to its position; `last`: the number at its position."""
        model.score = _Float32Linear(linear_head(model))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        new_head_seed: int | None = None,
        zero_head: bool = False,
        pooling: Pooling | None = None,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> Self:
        """The one-label classifier in the folder `path`, its head under any of the names of
        `roles.model_files.value_heads`; `pooling` in place of the folder's (None: the folder's, or `last`).

        A folder without a head (a causal language model) is refused, unless it may get a new one: with `new_head_seed`
        a reward model's, drawn from N(0, 1/√(d+1)) with zero bias (the N+ details, arXiv 2403.17031); with `zero_head`
        a critic's, all zeros, since drawn numbers would be errors that the value clip lets go only slowly.
        """
        stored, head = _head_of(path)
        model, report = _load(
            AutoModelForSequenceClassification, path, dtype, gradient_checkpointing, trust_remote_code, new_head_seed
        )
        may_be_new = zero_head or new_head_seed is not None or head is not None
        lost = [name for name in report["missing_keys"] if not may_be_new or not name.startswith("score.")]
        if lost:
            raise ModelError(
                f"{path} lacks weights of a sequence classifier: {few(lost)}; "
                "use the folder of a trained reward model (`tetrarch reward CONFIG` makes one)"
            )
        if head is not None and not head.usual:
            give_head(model, read_head(head, stored))
        if pooling is not None:
            model.config.score_pooling = pooling
        values = cls(model)
        if zero_head and head is None:
            _zero(model.score)
        return values

    def rescale(self, mean: float, deviation: float) -> None:
        """Scale the numbers of folders saved from now on: today's number times `deviation` plus `mean`. This
        module's own numbers stay the same."""
        config = self.model.config
        config.score_scale, config.score_shift = self.score_scale * deviation, self.score_shift * deviation - mean

    def forward(self, *, packed: Packed, positions: Tensor) -> Tensor:
        """The centred score of each sequence up to `positions` (int64 `[n]`, indices into the packed tokens):
        float32 `[n]`."""
        output = self.model.base_model(**_inputs(packed))
        hidden = output.last_hidden_state[0]
        if self.score_pooling == "mean":
            numbers = _running_mean(self.model.score(hidden).squeeze(-1), packed).index_select(0, positions)
        else:
            numbers = self.model.score(hidden.index_select(0, positions)).squeeze(-1)
        centred: Tensor = numbers * self.score_scale - self.score_shift
        return centred


def _head_of(path: str | Path) -> tuple[Mapping[str, Stored], Head | None]:
    """The weights in the folder `path` by name, and which of them are a head."""
    try:
        stored, config = stored_weights(Path(path)), PretrainedConfig.get_config_dict(path)[0]
        return stored, find_head(stored, config)
    except (OSError, ModelError) as error:
        raise ModelError(f"the model in {path} cannot be loaded: {error}") from None


def _zero(layer: nn.Module) -> None:
    """Set the weights of `layer` to 0; loading under ZeRO-3 has left this rank its share of them."""
    for parameter in layer.parameters():
        held: Tensor = parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter
        held.data.zero_()


def _running_mean(numbers: Tensor, packed: Packed) -> Tensor:
    """float32 `[tokens]`: at each token the mean of `numbers` `[tokens]` from the first token of its sequence to it."""
    # One sequence at a time: cumulative sums over the whole stream would lose digits and carry a NaN to its neighbours.
    lengths = packed.starts.diff().tolist()
    sums = torch.cat([sequence.cumsum(0) for sequence in numbers.split(lengths)])
    return sums / (packed.position_ids + 1)


class _Float32Linear(nn.Module):
    """A linear layer that computes in float32 whatever its weights are: bfloat16 has too few digits for a value."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def _inputs(packed: Packed) -> dict[str, Any]:
    return {
        "input_ids": packed.token_ids[None],
        "position_ids": packed.position_ids[None],
        "layout": Layout(packed.starts, packed.longest),
        "use_cache": False,
    }


def _load(
    auto: Any,
    path: str | Path,
    dtype: torch.dtype,
    gradient_checkpointing: bool,
    trust_remote_code: bool,
    head_seed: int | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and transformers' report on the names of the weights in its folder."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        usual_range = getattr(config, "initializer_range", None)
        if auto is AutoModelForSequenceClassification:
            config.num_labels = 1
            config.initializer_range = 1 / math.sqrt(config.get_text_config().hidden_size + 1)
        for name in vars(config):
            if "drop" in name and isinstance(getattr(config, name), float):
                setattr(config, name, 0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(head_seed or 0)
            model, report = auto.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation=IMPLEMENTATION,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except KeyError as error:
        if error.args != (IMPLEMENTATION,):
            raise
        raise _own_attention(config.model_type, path) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the model in {path} cannot be loaded: {error}") from error
    if usual_range is not None:
        model.config.initializer_range = usual_range
    attends = model._supports_attention_backend or config.model_type in KEEPING
    if not attends or model._is_stateful:
        raise _own_attention(config.model_type, path)
    _exact_rotary(model)
    pass_on_layout(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, report


def _exact_rotary(model: PreTrainedModel) -> None:
    """Recompute rotary frequencies that loading under ZeRO-3 rounded to bfloat16, which misplaces late tokens."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name.endswith("inv_freq") and buffer.dtype != torch.float32:
                setattr(module, name, getattr(type(module)(config=module.config), name).to(buffer.device))


def _own_attention(model_type: str, path: str | Path) -> ModelError:
    return ModelError(
        f"{path} is a {model_type} model, whose layers mix tokens in a way of their own that cannot keep packed "
        "sequences apart; use an architecture on transformers' attention interface (Llama, Qwen, Mistral, Gemma, Phi, "
        "GPT-NeoX, GPT-2, …)"
    )
