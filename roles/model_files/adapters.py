"""A folder with a PEFT adapter → the whole model: the adapter's own base with its changes merged into the weights."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from roles.errors import ModelError
from roles.model_files.config_json import first_line
from roles.model_files.folders import ADAPTER_CONFIG, TOKENIZER_FILES
from roles.model_files.writing import write_model
from roles.text.json_files import read_json_object
from roles.text.tokenizer import load_tokenizer


def merge_adapter(folder: Path, base: Path, trust_remote_code: bool, made: Path) -> None:
    """Write the model in `base` with the adapter in `folder` merged into it to `made`, in the base's dtype."""
    from peft import PeftModel

    owner = folder if any(os.path.isfile(folder / name) for name in TOKENIZER_FILES) else base
    tokenizer = load_tokenizer(owner, trust_remote_code=trust_remote_code)
    classifier = read_json_object(folder / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS"
    auto: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    changes = {"num_labels": 1} if classifier else {}
    try:
        model = auto.from_pretrained(base, dtype="auto", trust_remote_code=trust_remote_code, **changes)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))  # as the adapter's trainer did
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    except Exception as error:  # of PEFT's and transformers' own kinds
        raise ModelError(
            f"its adapter does not fit its base model {base} ({first_line(error)}); correct base_model_name_or_path in "
            f"{ADAPTER_CONFIG}, or merge it yourself (merge_and_unload) and name that folder"
        ) from error
    write_model(merged, made)
    tokenizer.save_pretrained(made)
