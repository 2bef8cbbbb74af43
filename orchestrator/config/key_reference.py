"""All configuration keys as Markdown tables: the schema flows in, text flows out.

    python -m orchestrator.config.key_reference       writes them into configs/README.md, and configs/schema.json

Example of a row: `rollout.top_p`, number > 0, ≤ 1, unit –, default `1.0`, "Sample from the most likely tokens …".
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from orchestrator.config.roots import ROOTS, AnyConfig, json_schema
from orchestrator.config.schema import key_of, sections_in, tag_of

HEADING = "## All keys"
README = Path("configs/README.md")
SCHEMA = README.with_name("schema.json")

UNITS = {
    "*_s": "seconds",
    "checkpoint.minutes": "minutes",
    "*_gib": "GiB",
    "placement*.price_per_hour": "per hour",
    "*_tokens": "tokens",
    "*.longest": "tokens",
    "*.buffer": "tokens",
    "*.per_token": "score per token",
    "*.penalty": "score",
    "ppo.truncated.score": "score",
    "ppo.score.clip": "score",
    "ppo.kl.controller.target": "nats per response",
    "ppo.kl.controller.horizon": "samples",
    "ppo.kl.controller.initial": "reward per nat",
    "ppo.kl.controller.coefficient": "reward per nat",
    "ppo.kl.budget.factor": "",
    "ppo.kl.budget.tokens": "tokens",
    "ppo.kl.budget.*": "nats per response",
    "canary.limit": "nats per token",
    "steps": "PPO steps",
    "checkpoint.every": "PPO steps",
    "evaluation.every": "PPO steps",
    "retraining.every": "PPO steps",
    "retraining.critic_steps": "PPO steps",
    "critic.warmup.max_steps": "PPO steps",
    "*.warmup_steps": "optimizer steps",
    "*.epochs": "passes",
}
"""Pattern of keys → unit; the first matching pattern counts, and keys that match none are plain numbers."""

SOURCES = re.compile(r"arXiv \d{4}\.\d{5}")


def reference() -> str:
    """The tables of all keys in Markdown: one for the plain keys and one for each section."""
    plain = [key for key, field in AnyConfig.model_fields.items() if not sections_in(field.annotation)]
    parts = [_table("General", plain)]
    parts += [_table(f"`{key}`", [key]) for key in AnyConfig.model_fields if key not in plain]
    return "\n".join(parts)


def updated(readme: str) -> str:
    """The README with the tables as its last section."""
    begin = readme.find(HEADING)
    before = readme[:begin] if begin >= 0 else readme.rstrip() + "\n\n"
    return f"{before}{HEADING}\n\n{INTRODUCTION}\n{reference()}"


INTRODUCTION = """\
Written from the schema by `python -m orchestrator.config.key_reference`; `tetrarch config --reference` prints it. A key
that only one type of a section has is followed by that type. A file may hold the sections of several commands: each
reads its own.
"""


def _table(title: str, keys: list[str]) -> str:
    readers = [command for command, root in ROOTS.items() if set(keys) <= root.model_fields.keys()]
    by = f"Read by `tetrarch {'`, `tetrarch '.join(readers)}`.\n\n" if title != "General" else _general(keys)
    rows = [row for key in keys for row in _rows(key, AnyConfig.model_fields[key], "", ())]
    head = "| key | value | unit | default | meaning | source |\n|---|---|---|---|---|---|\n"
    return f"### {title}\n\n{by}{head}{''.join(rows)}"


def _general(keys: list[str]) -> str:
    own = [key for key in keys if not all(key in root.model_fields for root in ROOTS.values())]
    return f"Read by every command, but for `{'`, `'.join(own)}`, which only `tetrarch train` reads.\n\n"


def _rows(path: str, field: FieldInfo, variant: str, around: tuple[type[BaseModel], ...]) -> Iterator[str]:
    sections = sections_in(field.annotation)
    if not sections:
        yield _row(path, variant, _type(field), _default(field), field.description or "")
        return
    if set(sections) <= set(around):  # members of an ensemble are rewards themselves
        yield _row(path, variant, "name → one of the types above", _default(field), field.description or "")
        return
    named = get_origin(field.annotation) is dict
    shape = "name → section" if named else "section"
    nullable = " or null" if NoneType in get_args(field.annotation) else ""
    yield _row(path, variant, shape + nullable, _default(field), field.description or "")
    inner = f"{path}.NAME" if named else path
    for section in sections:
        tag = f" ({tag_of(section)})" if len(sections) > 1 else ""
        if tag:
            yield _row(f"{inner}.type: {tag_of(section)}", variant, "", "", inspect.getdoc(section) or "")
        for name, own in section.model_fields.items():
            if not tag or name != "type":
                yield from _rows(f"{inner}.{key_of(name, own)}", own, variant + tag, sections)


def _row(path: str, variant: str, kind: str, default: str, meaning: str) -> str:
    text = " ".join(meaning.split()).replace("|", "\\|")
    sources = list(dict.fromkeys(SOURCES.findall(text)))
    if "N+ details" in text and "arXiv 2403.17031" not in sources:
        sources.append("arXiv 2403.17031")
    unit = next((unit for pattern, unit in UNITS.items() if fnmatchcase(path, pattern)), "") if kind else ""
    return f"| `{path}`{variant} | {kind} | {unit} | {default} | {text} | {', '.join(sources)} |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"`type: {value.type}`" if hasattr(value, "type") and field.discriminator else ""
    return f"`{json.dumps(value)}`"


def _type(field: FieldInfo) -> str:
    """Type of a key in words, with its bounds."""
    signs = {Gt: (">", "gt"), Ge: ("≥", "ge"), Lt: ("<", "lt"), Le: ("≤", "le")}
    bounds = [
        f"{sign} {_short(getattr(bound, name))}"
        for bound in field.metadata
        for kind, (sign, name) in signs.items()
        if type(bound) is kind
    ]
    name, null, _ = _name(field.annotation).partition(" or null")
    return f"{name} {', '.join(bounds)}".strip() + null


def _short(number: float) -> str:
    return f"{number:g}" if number < 1e6 else str(int(number))


def _name(annotation: Any) -> str:
    plain = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "`true` or `false`",
        NoneType: "null",
        Any: "value",
    }
    if annotation in plain:
        return plain[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_name(argument) for argument in arguments)
    if origin is dict:
        return f"name → {_name(arguments[1])}"
    if origin in (list, tuple):
        return f"list of {_name(arguments[0])}s"
    return "secret text" if annotation is SecretStr else "section"


def schema_text() -> str:
    """The JSON Schema as `configs/schema.json` has it, for editors."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")
