"""Token ids → the text of each, by the run's own tokenizer: `tokenizer.json` of the policy that the run has left, or of
the one that it starts from (of a GGUF file or an adapter: what it was converted to). No model code runs, and nothing is
downloaded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from orchestrator.report.run_files import RunRecord

TOKENIZER = "tokenizer.json"


class TokenTexts:
    """Reads each tokenizer once."""

    def __init__(self) -> None:
        self._read = dict[tuple[Path, int], Tokenizer]()
        self._lock = threading.Lock()

    def of(
        self, run_dir: Path, record: RunRecord | None, ids: Sequence[int], text: str | None
    ) -> list[tuple[str, bool]] | None:
        """Text of each token and whether it is a special one, such as the end of a turn; None if the run's tokenizer is
        not here. Of tokens that are parts of one character the last has it. `text`: of all tokens but special ones."""
        tokenizer = next(filter(None, map(self._opened, _places(run_dir, record))), None)
        if tokenizer is None:
            # Converted models are known by the name of their folder alone: what they say is compared.
            converted = filter(None, map(self._opened, _converted(run_dir, record)))
            tokenizer = next((one for one in converted if one.decode(list(ids)) == text), None)
        if tokenizer is None:
            return None
        special = {number for number, one in tokenizer.get_added_tokens_decoder().items() if one.special}
        stream = DecodeStream(skip_special_tokens=False)
        return [(_text(tokenizer, stream, token), token in special) for token in ids]

    def _opened(self, file: Path) -> Tokenizer | None:
        if not file.is_file():
            return None
        key = file, file.stat().st_mtime_ns
        with self._lock:
            if key not in self._read:
                try:
                    self._read[key] = Tokenizer.from_file(str(file))
                except Exception:  # tokenizers raises no other type for a damaged file
                    return None
            return self._read[key]


def _text(tokenizer: Tokenizer, stream: Any, token: int) -> str:
    try:
        return stream.step(tokenizer, token) or ""
    except Exception:  # a token that the tokenizer does not have
        return f"⟨{token}⟩"


def _places(run_dir: Path, record: RunRecord | None) -> list[Path]:
    """Where the tokenizer is, if it is there."""
    found = [run_dir / "actor" / TOKENIZER]
    model, base, _ = _told(run_dir, record)
    if record is None or not model:
        return found
    found.append(base / model / TOKENIZER)
    return found if (base / model).is_dir() else [*found, *_downloaded(model, record)]


def _converted(run_dir: Path, record: RunRecord | None) -> list[Path]:
    """Tokenizers of models that were converted from a folder of that name, the latest first."""
    model, base, cache = _told(run_dir, record)
    if not model or not cache:
        return []
    name = (base / model).resolve().name
    folders = [folder for folder in (base / cache).glob("*-*") if folder.name.startswith(f"{name}-")]
    return sorted(
        (folder / TOKENIZER for folder in folders), key=lambda file: file.parent.stat().st_mtime, reverse=True
    )


def _told(run_dir: Path, record: RunRecord | None) -> tuple[str, Path, str]:
    """Of the configuration: the policy's model, the folder in which its paths begin, the folder of converted models."""
    try:
        config = yaml.safe_load(record.config_yaml if record else "") or {}
        model, told = config["actor"]["model"]["path"], Path(config["run_dir"])
    except (yaml.YAMLError, LookupError, TypeError):
        return "", Path(), ""
    home = run_dir.resolve()
    # Paths of a configuration begin where the run was started, of which the run's own folder is known.
    base = Path(*home.parts[: -len(told.parts)]) if home.parts[-len(told.parts) :] == told.parts else Path()
    return str(model), base, str(config.get("model_cache", ""))


def _downloaded(model: str, record: RunRecord) -> list[Path]:
    """The tokenizer of a model of the hub, if the hub's cache on this machine has it."""
    from huggingface_hub import try_to_load_from_cache

    commits = [told.partition("@")[2] for told in record.state.models.values() if told.startswith(f"{model}@")]
    try:
        file = try_to_load_from_cache(model, TOKENIZER, revision=next(iter(commits), None))
    except ValueError:  # a path that is no name of the hub
        return []
    return [Path(file)] if isinstance(file, str) else []
