"""A batch as files that are read without unpickling anything: a batch flows in, a safetensors file and its JSON flow
out."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from roles.rows import Batch


def save_batch(batch: Batch, file: Path) -> None:
    """Tensors in `file` (safetensors), everything else beside it as JSON."""
    values = _flat(batch)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}, file)
    texts = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    file.with_suffix(".json").write_text(json.dumps(texts, ensure_ascii=False, indent=1, default=str) + "\n")


def _flat(batch: Batch) -> dict[str, Any]:
    """Fields by name, those of a batch inside it too."""
    own = {f.name: getattr(batch, f.name) for f in fields(batch)}
    inner = [value for value in own.values() if isinstance(value, Batch)]
    flat = {name: value for name, value in own.items() if not isinstance(value, Batch)}
    return {name: value for part in inner for name, value in _flat(part).items()} | flat
