"""A model in the configuration → a Hugging Face folder that every engine opens unchanged.

In: a `ModelConfig` (a folder, a hub name, or a folder with a GGUF file or an adapter; with all layers or the first
ones). Out: the path of an ordinary folder. A converted model is made once, in a cache folder, and appears there
complete or not at all, so that several processes may ask for the same model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PretrainedConfig,
)

from roles.config.models import ModelConfig
from roles.errors import ModelError
from roles.model_files.adapters import merge_adapter
from roles.model_files.config_json import config_json, first_line
from roles.model_files.folders import ADAPTER_CONFIG, base_of, base_revision, files_of_model, folder_of, is_adapter
from roles.model_files.gguf_file import check_tensors, complete
from roles.model_files.gguf_header import GgufFile
from roles.model_files.gguf_tokenizer import gguf_tokenizer
from roles.model_files.hub import NOT_FOUND, file_text
from roles.model_files.quiet import quiet
from roles.model_files.value_heads import find_head, give_head, read_head
from roles.model_files.weight_check import few
from roles.model_files.weight_files import stored_weights
from roles.model_files.writing import write_model
from roles.text.tokenizer import load_tokenizer

FORMAT = 2
"""Version of the conversion, a part of cached folders' names; raise it when the conversion changes."""


def resolve_model(config: ModelConfig, cache: Path) -> Path:
    """The Hugging Face folder of `config`: found, downloaded, converted or cut; the last two are kept under `cache`.

    Raises:
        ModelError: the model does not exist or cannot be read.
    """
    folder = source_folder(config.path, config.revision)
    if config.gguf_file is None and is_adapter(folder):
        folder = _merged(folder, cache, config.trust_remote_code)
    if config.gguf_file is not None:
        file = folder / config.gguf_file
        if not file.is_file():
            raise ModelError(
                f"gguf_file={config.gguf_file!r} is not in {folder}; name one of {_names(folder, '*.gguf')}"
            )
        folder = _made_once(cache, [file], {}, lambda made: _convert_gguf(file, made))
    if config.layers is not None:
        layers, trust = config.layers, config.trust_remote_code
        sources = files_of_model(folder)
        folder = _made_once(cache, sources, {"layers": layers}, lambda made: _cut(folder, layers, trust, made))
    return folder


def source_folder(path: str, revision: str | None = None) -> Path:
    """The local folder of `path`; downloaded if `path` is a hub name, of which `revision` may name a commit."""
    folder = folder_of(path)
    if os.path.isdir(folder):
        return folder.resolve()
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(
            f"there is no model folder {path}; correct `path` (a folder, or a hub name like `owner/model`)"
        )
    _, missing = file_text(path, "config.json", revision)
    try:
        ignored = ["*.gguf", "*.onnx", "*.msgpack", "*.h5", "original/*"]
        cached = missing not in (None, NOT_FOUND)
        return Path(snapshot_download(path, revision=revision, ignore_patterns=ignored, local_files_only=cached))
    except Exception as error:  # the hub client raises a dozen kinds; each means that the model is not available
        what = f"its revision {revision}" if revision else "it"
        raise ModelError(
            f"{path} is neither a folder nor a model in the hub's cache on this machine (HF_HOME), and the hub did not "
            f"give {what} ({missing or first_line(error)}); correct the name, or fetch it where the hub answers (hf "
            "download NAME --local-dir FOLDER) and name that folder"
        ) from error


def _merged(folder: Path, cache: Path, trust_remote_code: bool) -> Path:
    """The whole model of the adapter in `folder`."""
    name = base_of(folder)
    beside = folder_of(name)
    if beside.resolve() == folder:
        raise ModelError(f"it is an adapter that names itself as its base model ({ADAPTER_CONFIG}); correct it")
    try:
        named = ModelConfig(path=str(beside), revision=base_revision(folder), trust_remote_code=trust_remote_code)
        base = resolve_model(named, cache)
    except ModelError as error:
        raise ModelError(
            f"it is an adapter of {name} (base_model_name_or_path in {ADAPTER_CONFIG}), of which: {error}; write there "
            "where the base model is"
        ) from error
    config_json(base)  # not quantised, say
    sources = [*files_of_model(folder), *files_of_model(base)]
    return _made_once(cache, sources, {}, lambda made: merge_adapter(folder, base, trust_remote_code, made))


def _made_once(cache: Path, sources: list[Path], options: dict[str, int], make: Callable[[Path], None]) -> Path:
    """The folder under `cache` that `make` fills from the files `sources`; made again if one of them has changed."""
    stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in sources]
    key = json.dumps([FORMAT, transformers.__version__, stamps, options], sort_keys=True)
    target = cache / f"{sources[0].parent.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="unfinished-", dir=cache))
    try:
        with quiet():
            make(made)
        made.chmod(0o755)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, and its folder has the same contents
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _convert_gguf(file: Path, made: Path) -> None:
    """Dequantise `file` to float32 and write it to `made` with its tokenizer and a pad token of its own."""
    gguf = GgufFile.read(file)
    try:
        tokenizer = gguf_tokenizer(gguf)
        config = complete(AutoConfig.from_pretrained(file.parent, gguf_file=file.name), gguf)
        config.pad_token_id = tokenizer.pad_token_id  # the architecture's default may lie beyond this vocabulary
        check_tensors(config, gguf)
        model, report = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError, AssertionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"transformers cannot read {file} ({error}); use a GGUF file of a supported architecture"
        ) from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"]]
    if wrong:
        raise ModelError(f"{file} lacks weights, or has others than its model: {few(wrong)}; fetch it anew")
    foreign = ("quantization_config", "_model_name_or_path")
    plain = type(config).from_dict({k: v for k, v in model.config.to_dict().items() if k not in foreign})
    plain.architectures = [type(model).__name__]
    with torch.device("meta"):  # a model loaded from GGUF cannot be saved, so its weights move to a new one
        whole = AutoModelForCausalLM.from_config(plain, dtype=torch.float32)
    loaded, wanted = model.state_dict(), whole.state_dict()
    sizes = [
        f"{name} {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
        for name, tensor in loaded.items()
        if tensor.shape != wanted[name].shape
    ]
    if sizes:
        raise ModelError(f"{file} has weights of other shapes than it says: {few(sizes)}; fetch it anew")
    whole.load_state_dict(loaded, assign=True)
    whole.tie_weights()
    whole.generation_config = GenerationConfig(
        bos_token_id=plain.bos_token_id, eos_token_id=_ends(plain, gguf), pad_token_id=plain.pad_token_id
    )
    whole.save_pretrained(made)
    tokenizer.save_pretrained(made)


def _ends(config: PretrainedConfig, gguf: GgufFile) -> int | list[int]:
    """Token ids that end a response: EOS, and the token that ends a turn if the file has one."""
    turn = gguf.metadata.get("tokenizer.ggml.eot_token_id", config.eos_token_id)
    return config.eos_token_id if turn == config.eos_token_id else [config.eos_token_id, turn]


def _cut(folder: Path, layers: int, trust_remote_code: bool, made: Path) -> None:
    """Write the model in `folder` with only its first `layers` decoder layers to `made`, in the folder's dtype."""
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"the model in {folder} cannot be read: {error}") from error
    if layers > config.num_hidden_layers:
        raise ModelError(f"layers={layers}, but the model in {folder} has {config.num_hidden_layers}; use fewer")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]
    stored = stored_weights(folder)
    head = find_head(stored, config.to_dict())
    auto = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
    if head is not None:
        config.num_labels = 1
    model = auto.from_pretrained(folder, config=config, dtype="auto", trust_remote_code=trust_remote_code)
    if head is not None and not head.usual:
        give_head(model, read_head(head, stored))
    write_model(model, made)
    tokenizer.save_pretrained(made)


def _names(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))
