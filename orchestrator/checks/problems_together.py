"""Checks that do not depend on one another: all are made, and one ConfigError has what all of them found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from orchestrator.errors import ConfigError

T = TypeVar("T")


class Problems:
    """What checks have found so far."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def of(self, check: Callable[[], T]) -> T | None:
        """The answer of a check; None if it has raised a ConfigError, which is kept for `end`."""
        try:
            return check()
        except ConfigError as error:
            if str(error) not in self._found:
                self._found.append(str(error))
            return None

    def __bool__(self) -> bool:
        return bool(self._found)

    def end(self) -> None:
        """ConfigError with all that was found, if there is anything."""
        if self._found:
            raise ConfigError("\n".join(self._found))
