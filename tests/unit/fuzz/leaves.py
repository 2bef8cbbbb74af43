"""Every leaf of the configuration's schema, in a file that is sound around it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from orchestrator.config.roots import AnyConfig
from orchestrator.config.schema import key_of, sections_in, tag_of

Path = tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """A key, and the sections around it that the sound file has in another variant: path → content."""

    path: Path
    around: tuple[tuple[Path, BaseModel | dict[str, Any]], ...] = ()

    def __str__(self) -> str:
        return ".".join(self.path)

    def placed_in(self, data: dict[str, Any]) -> dict[str, Any]:
        """A copy of `data` with the sections around the key."""
        data = copy.deepcopy(data)
        for path, content in self.around:
            section: Any = data
            for key in path[:-1]:
                section = section[key]
            section[path[-1]] = copy.deepcopy(content)
        return data


def leaves(section: type[BaseModel] = AnyConfig, data: Any = None, before: Leaf | None = None) -> Iterator[Leaf]:
    """All keys below `section`, whose content in the sound file is `data`."""
    before = before or Leaf(())
    for name, field in section.model_fields.items():
        key = key_of(name, field)
        path = (*before.path, key)
        yield Leaf(path, before.around)
        variants, given = sections_in(field.annotation), data.get(key) if isinstance(data, dict) else None
        inner = (*path, "one") if get_origin(field.annotation) is dict else path
        for variant in variants:
            fits = isinstance(given, dict) and inner == path
            fits = fits and (field.discriminator is None or given.get("type") == tag_of(variant))
            content = given if fits else minimal(variant)
            added = () if fits else ((path, {"one": content} if inner != path else content),)
            yield from leaves(variant, content, Leaf(inner, (*before.around, *added)))


def minimal(section: type[BaseModel]) -> dict[str, Any]:
    """What the section cannot do without."""
    needed = {key_of(name, field): field for name, field in section.model_fields.items() if field.is_required()}
    tag = {"type": tag_of(section)} if _is_variant(section) else {}
    return tag | {key: _plausible(field.annotation) for key, field in needed.items() if key not in tag}


def _is_variant(section: type[BaseModel]) -> bool:
    return "type" in section.model_fields and len(get_args(section.model_fields["type"].annotation)) == 1


def _plausible(annotation: Any) -> Any:
    if sections := sections_in(annotation):
        return {"one": minimal(sections[0])} if get_origin(annotation) is dict else minimal(sections[0])
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if get_origin(annotation) in (list, tuple):
        return [_plausible(get_args(annotation)[0])]
    if get_origin(annotation) is dict:
        return {"one": _plausible(get_args(annotation)[1])}
    return {int: 2, float: 0.5, bool: False}.get(annotation, "x")
