"""What a script's variables hold while it is read, and whole-number arithmetic with them. Pure."""

from __future__ import annotations

import ast
import operator
import re

GLUE = "\0"
"""Stands for a space in what only a run could tell, which stays one word."""
LARGEST_EXPANSION = 2_000_000
"""Characters that all expansions of a script may have together; one that doubles a variable in each line has more."""
OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class ScriptError(ValueError):
    """The text is no script that a shell would read."""


def as_one_word(unknown: str) -> str:
    """What only a run could tell, without the spaces that would split it."""
    return re.sub(r"\s", GLUE, unknown)


class Variables:
    """Name → values: one, or as many as a list has."""

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {"HOME": ["~"]}
        self._left = LARGEST_EXPANSION

    def get(self, name: str) -> list[str] | None:
        """The values; None of a variable that the script does not set."""
        values = self._values.get(name)
        self._left -= sum(map(len, values or ()))
        if self._left < 0:
            raise ScriptError(f"its variables hold more than {LARGEST_EXPANSION} characters")
        return values

    def set(self, name: str, values: list[str], more: bool = False) -> None:
        """Give a variable its values; `more`: after those of the list that it has."""
        self._values[name] = (self.get(name) or []) + values if more else values

    def calculated(self, text: str) -> str | None:
        """The whole number that `(A + 2) * $B` is; None if only a run of the script could tell."""
        plain = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda name: "".join(self.get(name[1]) or "?"), text)
        try:
            return str(_calculated(ast.parse(plain.strip(), mode="eval").body))
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
            return None


def _calculated(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            return int(OPERATIONS[type(op)](_calculated(left), _calculated(right)))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_calculated(operand)
    raise ValueError("not whole-number arithmetic")
