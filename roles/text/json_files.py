"""The small JSON files of a model folder. A file flows in, an object flows out, or a ModelError with file and fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from roles.errors import ModelError


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in `file`. No key of it may be there twice, because programs differ in which value they take."""
    try:
        if not file.is_file():
            raise ModelError(f"{file} is not a file; fetch it anew")
        data = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: _object(file, pairs))
    except OSError as error:
        raise ModelError(
            f"{file} cannot be read: {error.strerror}; correct its permissions, or fetch it anew"
        ) from None
    except RecursionError:
        raise ModelError(f"{file} cannot be read: its values are nested too deeply; fetch it anew") from None
    except ValueError as error:  # no JSON, no UTF-8, an integer of thousands of digits
        raise ModelError(f"{file} cannot be read: {error}; fetch it anew") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file} is not a JSON object; fetch it anew")
    return data


def _object(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ModelError(f"{file} has the key {twice!r} twice; remove the one that is not meant")
    return found
