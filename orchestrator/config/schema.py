"""The configuration's schema as a tree of keys: which sections, tags and fields there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, SecretStr
from pydantic.fields import FieldInfo

from cluster.role_table import row_of
from roles.config.section import usable_path

Location = tuple[int | str, ...]

WRITTEN = ("run_dir", "model_cache")
"""Keys of paths that every run makes itself."""


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """The position of a key in the schema."""

    path: str
    """Key path as a user writes it: `reward.urls[0]`; no union tags."""
    parents: tuple[type[BaseModel], ...]
    """The sections that may contain the last key (several while a union's `type` is unknown)."""
    field: FieldInfo | None
    """The last key's field; None for an unknown key."""


def key_of(name: str, field: FieldInfo) -> str:
    """The key of a field in the YAML."""
    return field.alias or name


def section_key(role: str) -> str:
    """Key path of a role's section: `reward.members.helpful` for `reward.helpful`."""
    base, _, member = role.partition(".")
    return f"{base}.members.{member}" if member else row_of(role).section


def sections_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The sections that an annotation allows: one, several in a union, none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(section for argument in get_args(annotation) for section in sections_in(argument))


def tag_of(section: type[BaseModel]) -> str:
    """The value of `type` for a variant of a union."""
    (tag,) = get_args(section.model_fields["type"].annotation)
    return str(tag)


def is_secret(annotation: Any) -> bool:
    """Whether the annotation contains a SecretStr."""
    return annotation is SecretStr or any(is_secret(argument) for argument in get_args(annotation))


def locate(location: Location, root: type[BaseModel]) -> KeyPlace:
    """The place of one of pydantic's locations, which contain a union's tag as if it were a key."""
    path, union, named = "", False, False
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
        if not sections:  # a key of a plain mapping, such as a header: the field stays the same
            continue
        if named:  # a name of the user's, such as a member of an ensemble: a section of the field stands below it
            named, union = False, len(sections) > 1
            continue
        parents = sections
        field = field_of(sections, part)
        sections = sections_in(field.annotation) if field else ()
        union = field is not None and field.discriminator is not None
        named = field is not None and get_origin(field.annotation) is dict
    return KeyPlace(path, parents, field)


def all_keys(root: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key path of the schema, outer ones first, including all variants of unions."""
    deeper: list[tuple[type[BaseModel], str]] = []
    for name, field in root.model_fields.items():
        path = prefix + key_of(name, field)
        yield path
        if get_origin(field.annotation) is not dict:  # a mapping's keys are names chosen by the user
            deeper.extend((section, path) for section in sections_in(field.annotation))
    for section, path in deeper:
        yield from all_keys(section, f"{path}.")


def secret_keys(section: type[BaseModel]) -> set[str]:
    """The names of all keys that hold a secret, wherever they stand."""
    found: set[str] = set()
    for name, field in section.model_fields.items():
        found |= {key_of(name, field)} if is_secret(field.annotation) else set()
        found = found.union(*map(secret_keys, sections_in(field.annotation)))
    return found


def paths_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Key and value of every path in a section of the configuration."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            inner, place = getattr(value, name), f"{key}.{key_of(name, field)}" if key else key_of(name, field)
            if isinstance(inner, str) and _is_path(field):
                yield place, inner
            else:
                yield from paths_in(inner, place)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from paths_in(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from paths_in(inner, f"{key}[{number}]")


def _is_path(field: FieldInfo) -> bool:
    """Whether the field holds a path, or a path or null."""
    variants = [getattr(variant, "__metadata__", ()) for variant in get_args(field.annotation)]
    kinds = [*field.metadata, *(kind for metadata in variants for kind in metadata)]
    return any(isinstance(kind, AfterValidator) and kind.func is usable_path for kind in kinds)


def inputs_in(config: BaseModel, output: str) -> Iterator[tuple[str, str]]:
    """Key and value of every path that a command reads: all but `output`, the key of what it makes, and `WRITTEN`."""
    return ((key, path) for key, path in paths_in(config) if key not in (*WRITTEN, output))


def field_of(sections: tuple[type[BaseModel], ...], key: str) -> FieldInfo | None:
    """The field that a key stands for in the first of `sections` that has it; None if none has."""
    for section in sections:
        for name, field in section.model_fields.items():
            if key_of(name, field) == key:
                return field
    return None
