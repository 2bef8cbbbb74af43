"""pydantic's errors about a configuration as one line per problem: key path, value, fix.

The details of a ValidationError flow in, lines flow out. Values of secret fields and of unknown keys are never shown.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.config.foreign_keys import FOREIGN_KEYS
from orchestrator.config.schema import KeyPlace, all_keys, field_of, is_secret, key_of, locate, sections_in, tag_of
from roles.redaction import without_credentials

SECRET_SHOWN = "**********"
MOST_KEYS = 8
"""Most keys that a message lists."""


def problem_lines(errors: Sequence[Any], root: type[BaseModel]) -> list[str]:
    """One line for each of pydantic's error details, in the order of the schema; `root` has every key there is."""
    return [_line(details, root) for details in errors]


def unknown_keys(value: Any, place: KeyPlace, root: type[BaseModel]) -> list[str]:
    """One line for each key that no variant of the section at `place` knows, where `type` does not say which it is."""
    variants = sections_in(place.field.annotation) if place.field else ()
    if not isinstance(value, dict) or not variants:
        return []
    found: list[str] = []
    for key, inner in value.items():
        field = field_of(variants, key)
        path = f"{place.path}.{key}"
        if field is None:
            found.append(f"{path}: unknown key; {nearest_key(path, variants, root)}")
        elif get_origin(field.annotation) is not dict:  # there, the keys are the user's
            found += unknown_keys(inner, KeyPlace(path, variants, field), root)
    return found


def nearest_key(path: str, sections: tuple[type[BaseModel], ...], root: type[BaseModel]) -> str:
    """The fix for an unknown key: one of that name inside its section (of `ppo.kl.coefficient`:
    `ppo.kl.controller.coefficient`), else the nearest in its section, inside it, or anywhere; else all keys of its
    section."""
    around, _, key = path.rpartition(".")
    everywhere = list(all_keys(root))
    below = [known for known in everywhere if around and known.startswith(f"{around}.")]
    fields = [item for section in sections for item in section.model_fields.items()]
    here = list(dict.fromkeys(key_of(name, field) for name, field in fields))
    first = path.partition(".")[0]
    if first in root.model_fields and len(sections_in(root.model_fields[first].annotation)) > 1:
        # A section of several types: what only another type has is no help.
        everywhere = [known for known in everywhere if known.partition(".")[0] != first or "." not in known]
    near = (
        _near(key, below, cutoff=1)
        or _near(key, here, cutoff=0.6)
        or _near(key, below, cutoff=0.8)
        or _near(key, everywhere, cutoff=0.8)
    )
    return f"did you mean `{near}`?" if near else f"known here: {', '.join(here)}"


def _near(key: str, paths: list[str], cutoff: float) -> str | None:
    """The first of the paths whose last key is the nearest to `key`."""
    names = [path.rpartition(".")[2] for path in paths]
    close = difflib.get_close_matches(key, names, n=1, cutoff=cutoff)
    return paths[names.index(close[0])] if close else None


def _line(details: Any, root: type[BaseModel]) -> str:
    kind, place = details["type"], locate(details["loc"], root)
    key = place.path.rpartition(".")[2]
    if kind == "extra_forbidden":
        return f"{place.path}: {_unknown(place, key, root)}"
    if kind == "missing":
        about = f" ({_first_sentence(place.field)})" if place.field and place.field.description else ""
        return f"{place.path}: missing; add it{about}"
    if kind == "value_error":  # raised by our own validators, whose messages name key, value and fix themselves
        return str(details["ctx"]["error"])
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _tag_line(details, place)
    shown = SECRET_SHOWN if place.field and is_secret(place.field.annotation) else show(details["input"])
    separator = ": " if shown in ("a mapping", "a list") else "="
    given = f"{place.path}{separator}{shown}" if place.path else f"the file holds {shown}"
    return f"{given}: {_fix(kind, details)}"


def _unknown(place: KeyPlace, key: str, root: type[BaseModel]) -> str:
    if place.path in all_keys(root):  # the key belongs to another variant of the union
        return _of_another_type(place, key, root)
    if key in FOREIGN_KEYS:
        return FOREIGN_KEYS[key]
    return f"unknown key; {nearest_key(place.path, place.parents, root)}"


def _of_another_type(place: KeyPlace, key: str, root: type[BaseModel]) -> str:
    """The fix for a key that only other variants of the union have."""
    section, here = place.path.rpartition(".")[0], place.parents[0]
    around = locate(tuple(section.split(".")), root).field
    variants = sections_in(around.annotation) if around else ()
    owners = [
        tag_of(variant) for variant in variants if key in (key_of(*item) for item in variant.model_fields.items())
    ]
    known = [key_of(name, field) for name, field in here.model_fields.items()]
    close = difflib.get_close_matches(key, known, n=1)
    fix = f"did you mean `{close[0]}`? or" if close else "delete it, or"
    has = f" (which has {', '.join(known)})" if len(known) <= MOST_KEYS else ""
    return (
        f"a key of type {' or '.join(owners)}, but {section}.type is {tag_of(here)}{has}; {fix} use {section}.type: "
        f"{owners[0]} and its keys"
    )


def _tag_line(details: Any, place: KeyPlace) -> str:
    variants = sections_in(place.field.annotation) if place.field else ()
    known = ", ".join(tag_of(variant) for variant in variants)
    if details["type"] == "union_tag_not_found":
        return f"{place.path}.type: missing; add it: one of {known}"
    tag = str(details["ctx"]["tag"])
    close = difflib.get_close_matches(tag, known.split(", "), n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return f"{place.path}.type={show(tag)}: must be one of {known}{hint}"


_FIXES = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text; put it in quotes if it is",
    "model_type": "must be a mapping of keys (`key: value` lines)",
    "model_attributes_type": "must be a mapping of keys (`key: value` lines)",
    "dict_type": "must be a mapping of keys (`key: value` lines)",
    "list_type": "must be a list ([a, b])",
    "tuple_type": "must be a list ([a, b])",
    "too_short": "must have at least {min_length} entries, has {actual_length}",
    "too_long": "must have at most {max_length} entries, has {actual_length}",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_short": "must not be empty",
    "invalid_key": "keys must be text; put it in quotes",
    "string_unicode": "must be text of whole characters",
}
"""pydantic's kind of error → the fix; the braces are filled from its context."""

_ALSO_CALLED = {"gpu": "cuda", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
"""Choices under another name, which may be nearer to the wrong one in letters."""


def _fix(kind: str, details: Any) -> str:
    context = details.get("ctx", {})
    if kind == "literal_error":
        known = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        given = _ALSO_CALLED.get(str(details["input"]).lower(), str(details["input"]))
        close = difflib.get_close_matches(given, known.split(", "), n=1)
        return f"must be one of {known}" + (f"; did you mean `{close[0]}`?" if close else "")
    if kind == "too_short" and context["actual_length"] == 0:
        return "must not be empty; add an entry"
    if kind in _FIXES:
        return _FIXES[kind].format(**context)
    return str(details["msg"])


def show(value: Any) -> str:
    """A value for a message: shortened, and only the type of a mapping or list."""
    if isinstance(value, dict):
        return "a mapping" if value else "{}"
    if isinstance(value, (list, tuple)) and not all(isinstance(entry, (int, float)) for entry in value):
        return "a list"
    text = without_credentials(json.dumps(value, ensure_ascii=False, default=str))
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # for half of a surrogate pair: "\\ud800"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first_sentence(field: FieldInfo | None) -> str:
    text = (field.description or "") if field else ""
    return " ".join(text.split()).split(". ")[0].rstrip(".")
