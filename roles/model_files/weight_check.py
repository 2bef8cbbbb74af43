"""Checks that a folder's weights belong to the model of its config.json: names and shapes, on the meta device, and the
numbers of tied weights that are stored twice.

A folder and what a role makes of it flow in; nothing flows out, or a ModelError that names the weights that are
missing, unexpected, or of another shape. The common case is a comparison with the names that `save_pretrained` writes.
Where a folder has other names (older ones, without the prefix of the base model), transformers' own loader decides,
with tensors without numbers, so that its rules for tied, renamed, fused and ignored weights hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import LoadStateDictConfig

from roles.errors import ModelError
from roles.model_files.config_json import first_line, read_config
from roles.model_files.quiet import quiet
from roles.model_files.tied_weights import refuse_untied
from roles.model_files.value_heads import USUAL_HEAD, find_head, linear_head
from roles.model_files.weight_files import Stored, is_mask, stored_weights

Use = Literal["policy", "reward", "value"]
"""How a role uses a folder: as a language model, as a reward model with its head, or as a model of values or rewards
that may get a new head (a critic; a reward model in training)."""

Shapes = Mapping[str, tuple[int, ...]]

KIND: dict[Use, str] = {
    "policy": "causal language model",
    "reward": "reward model",
    "value": "language model or reward model",
}


class NoSuchClass(ModelError):
    """transformers has no class of the kind that a role needs for this architecture."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How the weights of a folder differ from those that a model reads, by name."""

    missing: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()
    other_shape: frozenset[str] = frozenset()
    """Each with both shapes, ready to be shown."""


def check_weights(folder: Path, use: Use, *, trust_remote_code: bool = False) -> None:
    """Raise ModelError unless the folder has exactly the weights that the role `use` reads.

    A model of values has no use for a language model's head, but may have one.
    """
    stored = stored_weights(folder)
    config = read_config(folder, trust_remote_code=trust_remote_code)
    shapes = {name: tensor.shape for name, tensor in stored.items() if not is_mask(name, tensor.shape)}
    if use == "policy":
        reader = _ModelReader(AutoModelForCausalLM, config, trust_remote_code)
        _refuse(reader.compare(shapes), use)
        refuse_untied(reader.stored_twice(stored))
        return
    head = find_head(stored, config.to_dict())
    config.num_labels = 1
    reader = _ModelReader(AutoModelForSequenceClassification, config, trust_remote_code)
    linear_head(reader.model)
    own = (f"{USUAL_HEAD}.weight",)
    if head is not None:
        width = shapes[head.weights[0]]
        shapes = {name: shape for name, shape in shapes.items() if name not in head.weights} | {own[0]: width}
    elif use == "value":
        shapes[own[0]] = reader.written[own[0]]
    difference = reader.compare(shapes, _ModelReader(AutoModelForCausalLM, config, trust_remote_code))
    _refuse(difference, use)


def _reason(error: Exception, config: PretrainedConfig) -> str:
    """The first line of the error; for a missing entry the key, if the configuration says why it was looked for."""
    rope = config.get_text_config().to_dict().get("rope_parameters")
    if isinstance(error, KeyError) and isinstance(rope, dict) and error.args[:1] == (rope.get("rope_type"),):
        known = ", ".join(["default", *ROPE_INIT_FUNCTIONS])
        return f"rope_type={rope['rope_type']!r} of its rope_parameters (or rope_scaling) is none of {known}"
    return first_line(error)


class _ModelReader:
    """The weights that a class of transformers reads."""

    def __init__(self, auto: Any, config: PretrainedConfig, trust_remote_code: bool) -> None:
        what = f"{auto.__name__.removeprefix('AutoModel')} of this config.json ({config.model_type})"
        if type(config) not in auto._model_mapping and auto.__name__ not in getattr(config, "auto_map", {}):
            raise NoSuchClass(f"transformers cannot make a model {what}: it has no such class")
        try:
            with torch.device("meta"), quiet():
                self.model = auto.from_config(
                    config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=trust_remote_code
                )
        except Exception as error:  # each architecture raises other exceptions for a wrong configuration
            raise ModelError(
                f"transformers cannot make a model {what}: {_reason(error, config)}; correct it, or use another "
                "architecture"
            ) from None
        self.written: Shapes = _written(self.model, self.model.state_dict())
        """Name → shape of the tensors that `save_pretrained` writes, and of tied weights."""
        tied = {name: tensor for name, tensor in self.model.state_dict().items() if name in self._tied}
        self.tied = frozenset(_written(self.model, tied))

    @property
    def _tied(self) -> dict[str, str]:
        tied: dict[str, str] = self.model.all_tied_weights_keys
        return tied

    def stored_twice(self, stored: Mapping[str, Stored]) -> Iterator[tuple[tuple[str, Stored], tuple[str, Stored]]]:
        """The tied weights that a folder stores beside what they are tied to."""
        prefix = f"{self.model.base_model_prefix}."
        for pair in self._tied.items():
            names = [{name, name.removeprefix(prefix), *self._parts(name)} & stored.keys() for name in pair]
            for tied, source in product(*names):
                yield (tied, stored[tied]), (source, stored[source])

    def compare(self, stored: Shapes, other: _ModelReader | None = None) -> Difference:
        """Differences from `stored`, which may also have every weight that `other` reads."""
        allowed = dict(other.written) | dict(self.written) if other is not None else self.written
        if self.written.keys() - self.tied <= stored.keys() and stored.items() <= allowed.items():
            return Difference()
        mine = self._loaded(stored)
        if other is None or not mine.unexpected:
            return mine
        unexpected = mine.unexpected & other._loaded(stored).unexpected
        return Difference(mine.missing, unexpected, mine.other_shape)

    def _loaded(self, stored: Shapes) -> Difference:
        """Differences that transformers' loader reports, with meta tensors."""
        model = self.model
        tensors = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
        settings = LoadStateDictConfig(
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            weight_mapping=get_model_conversion_mapping(model),
        )
        with quiet():
            report, _ = convert_and_load_state_dict_in_model(model, tensors, settings)
            model.tie_weights(missing_keys=report.missing_keys, recompute_mapping=False)
            model._adjust_missing_and_unexpected_keys(report)
        unexpected = frozenset(self._stored_names(report.unexpected_keys, stored))
        sizes = {name: f"{name} {tuple(has)}, not {tuple(wants)}" for name, has, wants in report.mismatched_keys}
        missing: set[str] = set()
        for name in {*report.missing_keys, *report.conversion_errors, *sizes}:
            parts = self._parts(name) - stored.keys()
            if parts or name not in sizes:
                missing |= parts or {name}
                sizes.pop(name, None)
        return Difference(frozenset(missing), unexpected, frozenset(sizes.values()))

    def _stored_names(self, found: set[str], stored: Shapes) -> set[str]:
        """The names in the folder of weights that transformers has renamed while loading."""
        if found <= stored.keys():
            return found
        conversions = get_model_conversion_mapping(self.model)
        renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
        theirs = {rename_source_key(name, renamings, converters)[0]: name for name in stored}
        return {theirs.get(name, name) for name in found}

    def _parts(self, name: str) -> set[str]:
        """The names in a folder of the tensors that make up one parameter, such as the experts of a layer."""
        tensor = dict(self.model.state_dict())[name]
        return set(_written(self.model, {name: tensor}))


def _written(model: Any, tensors: Mapping[str, Any]) -> Shapes:
    converted: Mapping[str, Any] = revert_weight_conversion(model, dict(tensors))
    return {name: tuple(tensor.shape) for name, tensor in converted.items()}


def _refuse(difference: Difference, use: Use) -> None:
    kind, found = KIND[use], []
    if difference.missing:
        found.append(f"the folder lacks weights of a {kind}: {few(difference.missing)}")
    if difference.unexpected:
        found.append(f"the folder has weights that a {kind} of its config.json has not: {few(difference.unexpected)}")
    if difference.other_shape:
        found.append(f"the folder has weights of other shapes than its config.json says: {few(difference.other_shape)}")
    if found:
        raise ModelError(f"{'; '.join(found)}; {_fix(difference, use)}")


def _fix(difference: Difference, use: Use) -> str:
    if use == "reward" and difference.missing == {f"{USUAL_HEAD}.weight"}:
        return "use the folder of a trained reward model (`tetrarch reward CONFIG` makes one)"
    return "use the whole folder of one model, with the config.json that belongs to it"


def few(names: Iterable[str]) -> str:
    """The first three of `names`, and the number of the others."""
    shown = sorted(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
