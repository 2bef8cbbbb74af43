"""YAML as users mean it. Text flows in, plain Python values flow out (and back).

PyYAML follows YAML 1.1, where `1e-5` is text, `on` and `no` are booleans, `1:30` is 90 and `010` is 8. This loader
reads scalars as YAML 1.2 (core schema) does, refuses a key that stands twice in one mapping, and never quotes the text
in its errors, because the text may hold a secret.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import yaml

_SCALARS: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
]
"""(tag, pattern of the whole scalar, its first characters) of each plain scalar; the rest is text. Earlier lines
win."""


MOST_DIGITS = 100
"""Most digits of an integer: Python refuses to print one of more than 4300 digits in a message."""


MOST_VALUES = 100_000
"""Most values of a text with its aliases written out, of which there may be more than memory holds."""


class YamlError(ValueError):
    """The text is not YAML, or has a key twice; the message names the line."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and without duplicate keys."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise YamlError(f"with its aliases (*name) written out it has more than {MOST_VALUES} values; use fewer")
        return node

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                first = seen[key.value]
                raise YamlError(f"line {line}: `{key.value}` already stands at line {first}; keep one of the two")
            seen[key.value] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except (YamlError, yaml.YAMLError):
            raise
        except (ValueError, KeyError, AttributeError, TypeError):  # `!!int abc`, `!!bool maybe`, `!!timestamp x`
            kind = node.tag.rpartition(":")[2]
            raise YamlError(f"line {node.start_mark.line + 1}: the value cannot be read as {kind}") from None
        if isinstance(value, str) and "\0" in value:
            raise YamlError(f"line {node.start_mark.line + 1}: a text holds a NUL character, which no path or name has")
        return value


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values in `node` with its aliases written out, those to what they stand in excepted."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 1
        parts = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    if len(text) > MOST_DIGITS:
        line = node.start_mark.line + 1
        raise YamlError(f"line {line}: an integer of {len(text)} characters is too long")
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = node.value.replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    _compiled = re.compile(rf"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(_tag, _compiled, ["" if c == "\0" else c for c in _first])
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse_yaml(text: str) -> Any:
    """The value of the YAML `text`; YamlError if it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise YamlError("mappings or lists are nested too deeply; no key needs more than ten levels") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(f"{where}{error.problem or error.context}{_beginning(error)}") from None
    except yaml.reader.ReaderError as error:
        raise YamlError(f"character {error.position + 1} of the text: {error.reason}") from None
    except yaml.YAMLError as error:
        raise YamlError(f"not YAML: {type(error).__name__}") from None


def _beginning(error: yaml.MarkedYAMLError) -> str:
    """Where that began which the error ended: an open quote is found only at the end of the file. Or the fix."""
    if "'\\t'" in (error.problem or ""):
        return "; indent with spaces"
    begun = error.context_mark
    if begun is None or error.problem_mark is None or begun.line == error.problem_mark.line:
        return ""
    return f" {error.context} that begins at line {begun.line + 1}, column {begun.column + 1}"


def to_yaml(value: Any) -> str:
    """YAML text of plain values, in their order, which `parse_yaml` reads back as equal values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which this loader would read as something else."""


_Dumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *_Loader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}
