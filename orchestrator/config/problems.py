"""What pydantic found wrong with a configuration, as one line a problem: key path, value, mend.

A ValidationError flows in, lines flow out. Called by `orchestrator.config.loading`. Values of secret fields, and of
keys that nobody knows, are never shown.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from roles.redaction import without_credentials

Location = tuple[int | str, ...]

HIDDEN = "**********"
MOST_KEYS = 8
"""Keys that a message lists."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the schema a problem is."""

    path: str
    """As a user writes it: `reward.urls[0]`; no union tags."""
    parents: tuple[type[BaseModel], ...]
    """The sections that may stand around the last key (several while a union's `type` is unknown)."""
    field: FieldInfo | None
    """The last key's field; None if nobody knows the key."""


def problem_lines(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line for each problem, in the order of the schema."""
    return [_line(details, root) for details in error.errors()]


def key_of(name: str, field: FieldInfo) -> str:
    """The key that stands in the YAML for a field."""
    return field.alias or name


def sections_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The sections that an annotation allows: one, several in a union, none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(section for argument in get_args(annotation) for section in sections_in(argument))


def tag_of(section: type[BaseModel]) -> str:
    """What `type` says for a variant of a union."""
    (tag,) = get_args(section.model_fields["type"].annotation)
    return str(tag)


def is_secret(annotation: Any) -> bool:
    """True if the annotation holds a SecretStr."""
    return annotation is SecretStr or any(is_secret(argument) for argument in get_args(annotation))


def locate(location: Location, root: type[BaseModel]) -> Place:
    """The place of one of pydantic's locations, which name the union's tag as if it were a key."""
    path, union = "", False
    field: FieldInfo | None = None
    parents: tuple[type[BaseModel], ...] = (root,)
    sections = parents
    for part in location:
        if union:
            union = False
            tagged = tuple(section for section in sections if tag_of(section) == part)
            if tagged:
                sections = tagged
                continue
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        path += f".{part}" if path else part
        if not sections:  # a key of a plain mapping, such as a header: the field stays
            continue
        parents = sections
        field = _field(sections, part)
        sections = sections_in(field.annotation) if field else ()
        union = field is not None and field.discriminator is not None
    return Place(path, parents, field)


def nearest_key(key: str, sections: tuple[type[BaseModel], ...], root: type[BaseModel], but: str = "") -> str:
    """The mend for an unknown key: the nearest one here, else the same name outside the section `but`, else all that
    are known here."""
    here = [key_of(name, field) for section in sections for name, field in section.model_fields.items()]
    close = difflib.get_close_matches(key, here, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    everywhere = [path for path in all_keys(root) if path.partition(".")[0] != but or "." not in path]
    names = [path.rpartition(".")[2] for path in everywhere]
    similar = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    if similar:
        return f"did you mean `{everywhere[names.index(similar[0])]}`?"
    return f"known here: {', '.join(dict.fromkeys(here))}"


def all_keys(root: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key path of the schema, the outer ones first, all variants of a union included."""
    deeper: list[tuple[type[BaseModel], str]] = []
    for name, field in root.model_fields.items():
        path = prefix + key_of(name, field)
        yield path
        if get_origin(field.annotation) is not dict:  # there, a name of the user's stands between
            deeper.extend((section, path) for section in sections_in(field.annotation))
    for section, path in deeper:
        yield from all_keys(section, f"{path}.")


def _field(sections: tuple[type[BaseModel], ...], key: str) -> FieldInfo | None:
    for section in sections:
        for name, field in section.model_fields.items():
            if key_of(name, field) == key:
                return field
    return None


def _line(details: Any, root: type[BaseModel]) -> str:
    kind, place = details["type"], locate(details["loc"], root)
    key = place.path.rpartition(".")[2]
    if kind == "extra_forbidden":
        return f"{place.path}: {_unknown(place, key, root)}"
    if kind == "missing":
        about = f" ({_first_sentence(place.field)})" if place.field and place.field.description else ""
        return f"{place.path}: missing; add it{about}"
    if kind == "value_error":  # raised by our own validators, whose messages name key, value and mend themselves
        return str(details["ctx"]["error"])
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _tag_line(details, place)
    shown = HIDDEN if place.field and is_secret(place.field.annotation) else show(details["input"])
    separator = ": " if shown in ("a mapping", "a list") else "="
    given = f"{place.path}{separator}{shown}" if place.path else f"the file holds {shown}"
    return f"{given}: {_mend(kind, details)}"


def _unknown(place: Place, key: str, root: type[BaseModel]) -> str:
    if place.path in all_keys(root):  # of another variant of the union
        return _of_another_type(place, key, root)
    return f"unknown key; {nearest_key(key, place.parents, root, but=place.path.partition('.')[0])}"


def _of_another_type(place: Place, key: str, root: type[BaseModel]) -> str:
    """The mend for a key that only other variants of the union have."""
    section, here = place.path.rpartition(".")[0], place.parents[0]
    around = locate(tuple(section.split(".")), root).field
    variants = sections_in(around.annotation) if around else ()
    owners = [
        tag_of(variant) for variant in variants if key in (key_of(*item) for item in variant.model_fields.items())
    ]
    known = [key_of(name, field) for name, field in here.model_fields.items()]
    close = difflib.get_close_matches(key, known, n=1)
    mend = f"did you mean `{close[0]}`? or" if close else "delete it, or"
    has = f" (which has {', '.join(known)})" if len(known) <= MOST_KEYS else ""
    return (
        f"a key of type {' or '.join(owners)}, but {section}.type is {tag_of(here)}{has}; {mend} use {section}.type: "
        f"{owners[0]} and its keys"
    )


def _tag_line(details: Any, place: Place) -> str:
    variants = sections_in(place.field.annotation) if place.field else ()
    known = ", ".join(tag_of(variant) for variant in variants)
    if details["type"] == "union_tag_not_found":
        return f"{place.path}.type: missing; add it: one of {known}"
    tag = str(details["ctx"]["tag"])
    close = difflib.get_close_matches(tag, known.split(", "), n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return f"{place.path}.type={show(tag)}: must be one of {known}{hint}"


_MENDS = {
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
}
"""pydantic's kind of error → what to do; the braces are filled from its context."""


def _mend(kind: str, details: Any) -> str:
    context = details.get("ctx", {})
    if kind == "literal_error":
        known = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        close = difflib.get_close_matches(str(details["input"]), known.split(", "), n=1)
        return f"must be one of {known}" + (f"; did you mean `{close[0]}`?" if close else "")
    if kind == "too_short" and context["actual_length"] == 0:
        return "must not be empty; add an entry"
    if kind in _MENDS:
        return _MENDS[kind].format(**context)
    return str(details["msg"])


def show(value: Any) -> str:
    """A value as it may stand in a message: short, and no more of a mapping or list than that it is one."""
    if isinstance(value, dict):
        return "a mapping" if value else "{}"
    if isinstance(value, (list, tuple)) and not all(isinstance(entry, (int, float)) for entry in value):
        return "a list"
    text = without_credentials(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first_sentence(field: FieldInfo | None) -> str:
    text = (field.description or "") if field else ""
    return " ".join(text.split()).split(". ")[0].rstrip(".")
