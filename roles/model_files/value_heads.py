"""The head of a reward model or critic, under the names that libraries give it. Pure, except `read_head`.

The names and shapes of a folder's weights and its config.json flow in; the one linear layer from a hidden state to a
number flows out, or None for a folder without one, such as a language model's.

    score.weight, score.bias                      transformers; the bias in …ForTokenClassification and N+ models
    classifier.weight, classifier.bias            …ForTokenClassification of GPT-2, GPT-NeoX and others
    value_head.weight                             OpenRLHF, which keeps another name in `value_head_prefix`
    v_head.weight, v_head.summary.weight, ….bias  TRL's AutoModelForCausalLMWithValueHead
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from roles.config.models import Pooling
from roles.errors import ModelError
from roles.model_files.weight_files import Stored

if TYPE_CHECKING:
    from torch import Tensor, nn

USUAL_HEAD = "score"
"""The name that transformers' sequence classifiers know, and under which heads are saved here."""

HEAD_NAMES = (
    USUAL_HEAD,
    "classifier",
    "value_head",
    "v_head",
    "v_head.summary",
    "reward_head",
    "regression_head",
    "scalar_head",
)
"""Names of modules that are a value head."""


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer with one output; such as `Head("v_head.summary", has_bias=True)`."""

    name: str
    has_bias: bool

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the head's tensors in the folder."""
        return (f"{self.name}.weight", f"{self.name}.bias") if self.has_bias else (f"{self.name}.weight",)

    @property
    def usual(self) -> bool:
        """Whether transformers reads the whole head."""
        return self.name == USUAL_HEAD and not self.has_bias


def find_head(stored: Mapping[str, Stored], config: Mapping[str, Any]) -> Head | None:
    """The head among the weights `stored`; ModelError if there are two, or if it has more than one output."""
    pooling = config.get("score_pooling", "last")
    if pooling not in get_args(Pooling):
        raise ModelError(
            f"config.json says score_pooling={pooling!r}, not {' or '.join(get_args(Pooling))}; correct it"
        )
    said = config.get("value_head_prefix")
    names = dict.fromkeys((*HEAD_NAMES, *((said,) if isinstance(said, str) else ())))
    found = [name for name in names if f"{name}.weight" in stored]
    if not found:
        return None
    if len(found) > 1:
        raise ModelError(
            f"the folder has {len(found)} heads ({', '.join(f'{name}.weight' for name in found)}); remove the tensors "
            "of those that are not meant"
        )
    name, shape = found[0], stored[f"{found[0]}.weight"].shape
    if len(shape) != 2:
        raise ModelError(f"the folder's head {name}.weight has the shape {shape}, not [1, hidden_size]")
    if shape[0] != 1:
        raise ModelError(
            f"the folder has {shape[0]} labels ({name}.weight has {shape[0]} rows); a model of values or rewards has "
            "one (num_labels=1)"
        )
    return Head(name, f"{name}.bias" in stored)


def read_head(head: Head, stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The head's `weight` and, if there is one, `bias`, as stored in the folder."""
    import torch
    from safetensors import safe_open

    tensors = {}
    for name in head.weights:
        file = stored[name].file
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                tensors[name.rpartition(".")[2]] = opened.get_tensor(name)
        else:
            tensors[name.rpartition(".")[2]] = torch.load(file, weights_only=True, mmap=True)[name]
    return tensors


def normalisation(config: Mapping[str, Any]) -> tuple[float, float]:
    """(scale, shift) of a folder's numbers, from its config.json: the score is `number * scale - shift`.

    Tetrarch writes `score_scale` and `score_shift`. OpenRLHF writes the `mean` and `std` of a reward model's numbers;
    the score is (number - mean) / std unless `normalize_reward` is false.
    """
    ours = {key: config[key] for key in ("score_scale", "score_shift") if config.get(key) is not None}
    theirs = {key: config[key] for key in ("mean", "std") if config.get(key) is not None}
    for key, value in {**ours, **theirs}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelError(f"config.json says {key}={value!r}, which is not a number; correct or remove it")
    if ours or not theirs or config.get("normalize_reward") is False:
        return float(ours.get("score_scale", 1.0)), float(ours.get("score_shift", 0.0))
    if len(theirs) == 1 or theirs["std"] <= 0:
        raise ModelError(
            f"config.json says {', '.join(f'{key}={value}' for key, value in theirs.items())}, of mean and std that a "
            "reward model's numbers are normalised by; give both, std above 0, or remove them"
        )
    return 1 / theirs["std"], theirs["mean"] / theirs["std"]


def linear_head(model: Any) -> nn.Linear:
    """The layer `score` of a transformers sequence classifier; ModelError for an architecture with another head."""
    from torch import nn

    head = getattr(model, USUAL_HEAD, None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ModelError(f"{type(model).__name__} has no linear head `score` with one output; use another architecture")
    return head


def give_head(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Replace the head of a transformers sequence classifier by `tensors` (from `read_head`), with its bias.

    The layer is a new one: loading under ZeRO-3 has left this rank a share of the old one, and shards it again later.
    """
    from torch import nn

    old = linear_head(model)
    head = nn.Linear(old.in_features, 1, bias="bias" in tensors, device="meta")
    for name, tensor in tensors.items():
        setattr(head, name, nn.Parameter(tensor.to(old.weight.dtype, copy=True)))
    model.score = head
