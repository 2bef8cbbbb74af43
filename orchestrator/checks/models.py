"""Checks of models before the start: folders, weights, tokenizers and sizes.

A ModelConfig flows in, a ModelFacts flows out; or a ConfigError that names key, value and fix. Only small files are
read (configuration, tokenizer, the headers of the weights); a GGUF file is converted, or a hub's model fetched, if that
has not been done before, because both are needed next.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data.dataset_rows import is_hub_name
from orchestrator.display_text import printable
from orchestrator.errors import ConfigError
from orchestrator.sizes.families import FAMILIES
from roles.config.models import ModelConfig
from roles.config.section import Dtype
from roles.errors import ModelError
from roles.model_files.config_json import config_json, context_of, read_config, text_part
from roles.model_files.folders import ADAPTER_CONFIG, TOKENIZER_FILES, folder_of, is_adapter, what_it_is
from roles.model_files.value_heads import Head, find_head, normalisation
from roles.model_files.weight_files import refuse_quantised, stored_weights
from roles.text.json_files import read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTH_DEPENDENT = ("longrope", "su", "dynamic")
"""Scalings of rotary positions that transformers changes for a whole pass when one of its sequences is longer than
those of the first training; `su` is an older name of `longrope`."""

LONGEST_PATH = 200
"""Characters of a path that errors show."""

BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class ModelFacts:
    """The facts in the small files of a usable model folder."""

    key: str
    """Key path of the model's section."""
    source: ModelConfig
    folder: Path
    """The Hugging Face folder."""
    config: dict[str, Any]
    """The contents of `config.json`."""

    @property
    def where(self) -> str:
        """The model's name in errors."""
        return f"{self.key}.path={self.source.path}"

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the folder."""
        from roles.text.tokenizer import load_tokenizer

        try:
            return load_tokenizer(self.folder, trust_remote_code=self.source.trust_remote_code)
        except ModelError as error:
            raise ConfigError(f"{self.where}: {error}") from None

    @cached_property
    def head(self) -> Head | None:
        """The head of a reward model or critic; None if there is none, as in a language model."""
        try:
            normalisation(self.config)
            return find_head(stored_weights(self.folder), self.config)
        except ModelError as error:
            raise ConfigError(f"{self.where}: {error}") from None

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens; None for an architecture without a limit."""
        return context_of(self.text)

    @property
    def short(self) -> int | None:
        """Longest sequence whose rotary positions do not depend on its length; None: those of no sequence do."""
        said = self.text.get("rope_parameters") or self.text.get("rope_scaling") or {}
        for rope in [said, *(part for part in said.values() if isinstance(part, dict))]:
            if rope.get("rope_type", rope.get("type")) in LENGTH_DEPENDENT:
                given = rope.get("original_max_position_embeddings")
                found = given or self._number("original_max_position_embeddings", "max_position_embeddings")
                return found if isinstance(found, int) else None
        return None

    @property
    def vocabulary(self) -> int | None:
        """Number of rows of the embedding."""
        return self._number("vocab_size")

    @property
    def layers(self) -> int | None:
        """Number of decoder layers in the folder, before any are cut."""
        return self._number("num_hidden_layers", "n_layer")

    @property
    def heads(self) -> int | None:
        """Number of attention heads."""
        return self._number("num_attention_heads", "n_head")

    @property
    def kv_heads(self) -> int | None:
        """Number of heads of keys and values."""
        return self._number("num_key_value_heads", "num_attention_heads", "n_head")

    @property
    def head_size(self) -> int | None:
        """Width of one attention head."""
        hidden, family = self._number("hidden_size", "n_embd"), FAMILIES.get(self.text.get("model_type", ""))
        said = self._number("head_dim") or (family and family.defaults.get("head_dim"))
        return said or (hidden // self.heads if hidden and self.heads else None)

    def kv_bytes_per_token(self, dtype: Dtype) -> int | None:
        """Bytes of one token's KV cache over all layers; None if the configuration does not say, or has sliding
        windows."""
        if not self.layers or not self.head_size or not self.kv_heads or self.text.get("sliding_window"):
            return None
        return 2 * self.layers * self.kv_heads * self.head_size * BYTES[dtype]

    def _number(self, *keys: str) -> int | None:
        return next((self.text[key] for key in keys if isinstance(self.text.get(key), int)), None)

    @property
    def text(self) -> Mapping[str, Any]:
        """The language model's part of the configuration, in a model of several parts."""
        return text_part(self.config)


def check_folder(model: ModelConfig, key: str, fix: str = "correct the path") -> None:
    """The quick check that all files exist. `fix`: what to do if they do not."""
    folder = folder_of(model.path)
    if os.path.isdir(folder):
        if model.revision is not None:
            raise ConfigError(
                f"{key}.revision={model.revision} is of a model on the hub, and {shown(model.path)} is a folder here; "
                "leave it out"
            )
        _check_files(folder, model, key)
    elif not is_hub_name(model.path):
        kind = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        raise ConfigError(f"{key}.path={shown(model.path)} {kind}; {fix}")


def model_facts(model: ModelConfig, key: str, cache: str) -> ModelFacts:
    """The full check, after a conversion or download if that is needed."""
    check_folder(model, key)
    folder = folder_of(model.path)
    if model.gguf_file is not None or not os.path.isdir(folder) or is_adapter(folder):
        folder = _resolved(model, key, cache)
        _check_files(folder, model.model_copy(update={"gguf_file": None}), key)
    try:
        facts = ModelFacts(key, model, folder, config_json(folder))
        read_config(folder, trust_remote_code=model.trust_remote_code)
    except ModelError as error:
        raise ConfigError(f"{key}.path={model.path}: {error}") from None
    if model.layers is not None and facts.layers is not None and model.layers > facts.layers:
        raise ConfigError(
            f"{key}.layers={model.layers}, but {model.path} has {facts.layers}; lower it, or set it to null"
        )
    return facts


def _resolved(model: ModelConfig, key: str, cache: str) -> Path:
    from roles.model_files.conversion import resolve_model

    try:
        return resolve_model(model.model_copy(update={"layers": None}), Path(cache))
    except ModelError as error:
        raise ConfigError(f"{key}.path={model.path}: {error}") from None


def _check_files(folder: Path, model: ModelConfig, key: str) -> None:
    where = f"{key}.path={model.path}"
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigError(f"{where} may not be read by this user; correct its permissions")
    if model.gguf_file is not None:
        _check_gguf(folder, model.gguf_file, key)
        return
    if is_adapter(folder):
        return
    if not os.path.isfile(folder / "config.json"):
        raise ConfigError(f"{where} has no config.json; {what_it_is(folder, key)}")
    if os.path.isfile(folder / ADAPTER_CONFIG):
        raise ConfigError(
            f"{where} has a whole model and an adapter ({ADAPTER_CONFIG}), and programs differ in which they read; "
            "remove the one that is not meant"
        )
    if not any(os.path.isfile(folder / name) for name in TOKENIZER_FILES):
        raise ConfigError(f"{where} has no tokenizer (tokenizer.json); save it there with tokenizer.save_pretrained")
    try:
        refuse_quantised(stored_weights(folder))
    except ModelError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_gguf(folder: Path, name: str, key: str) -> None:
    file = folder / name
    if not os.path.isfile(file):
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        near = difflib.get_close_matches(name, ggufs, n=1, cutoff=0.0)
        fix = f"did you mean {near[0]}?" if near else "the folder has no GGUF file at all"
        raise ConfigError(f"{key}.gguf_file={name} is not in {folder}; {fix}")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ConfigError(f"{key}.gguf_file={name} is not a GGUF file; fetch it anew")


def shown(path: str) -> str:
    """A path that a message can hold."""
    return printable(path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}… ({len(path)} characters)")


def check_context(model: ModelFacts, longest: int, said_by: str) -> None:
    """Raise ConfigError if `longest` tokens, which the keys `said_by` determine, are more than the model reads."""
    said = said_by if "=" in said_by else f"{said_by}={longest}"
    if model.short is not None and longest > model.short:
        raise ConfigError(
            f"{said} is {longest} tokens, and beyond {model.short} {model.where} scales its rotary positions otherwise "
            "(longrope, dynamic): transformers for all samples of a pass if one is so long, vLLM for all; lower them"
        )
    if model.context is not None and longest > model.context:
        raise ConfigError(
            f"{said} is {longest} tokens, more than the {model.context} that {model.where} can read; lower them, or "
            "use a model with a longer context"
        )


def check_tokenizer(model: ModelFacts) -> None:
    """A response must be able to end."""
    tokenizer = model.tokenizer
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{model.where}: the tokenizer has no EOS token; set eos_token in its tokenizer_config.json")
    check_vocabulary(model)
    for name in ("generation_config.json", "config.json"):
        if os.path.lexists(model.folder / name):
            _check_ends(model, name)


def _check_ends(model: ModelFacts, name: str) -> None:
    """The tokens that end a response, as a file of the model says, have embeddings."""
    try:
        ends = read_json_object(model.folder / name).get("eos_token_id")
    except ModelError as error:
        raise ConfigError(f"{model.where}: {error}") from None
    for end in ends if isinstance(ends, list) else [] if ends is None else [ends]:
        if type(end) is not int or not 0 <= end < (model.vocabulary or end + 1):
            raise ConfigError(
                f"{model.where}: {name} says eos_token_id={ends!r}, but a token is a whole number from 0 to "
                f"{(model.vocabulary or 1) - 1}; correct it"
            )


def check_vocabulary(model: ModelFacts) -> None:
    """Raise ConfigError unless every token of the tokenizer has an embedding."""
    tokens = len(model.tokenizer)
    if model.vocabulary is not None and model.vocabulary < tokens:
        raise ConfigError(
            f"{model.where}: the tokenizer has {tokens} tokens, but the model only {model.vocabulary} embeddings; "
            "resize them (model.resize_token_embeddings), or save the tokenizer that belongs to the model"
        )


def check_same_tokens(other: ModelFacts, actor: ModelFacts, fix: str) -> None:
    """Raise ConfigError unless both tokenizers give every word the same id."""
    if other.folder == actor.folder:
        return
    check_vocabulary(other)
    mine, theirs = actor.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if mine == theirs:
        return
    moved = min((t for t in mine if mine[t] != theirs.get(t)), key=mine.__getitem__, default=None)
    example = f"e.g. {moved!r} is {mine[moved]} and {theirs.get(moved)}" if moved is not None else "it has more tokens"
    raise ConfigError(
        f"{other.where} has another tokenizer than {actor.where} ({len(theirs)} and {len(mine)} tokens; {example}); "
        f"{fix}"
    )
