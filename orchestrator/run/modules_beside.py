"""The Python files that run with a user's file: a path flows in, the file and what it imports from beside it flow out.

They are parsed, and never run: what is imported by a computed name is not found.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def with_imported(file: Path) -> list[Path]:
    """`file` and, sorted, the modules beside it that it imports, at any place and through each other; of a package all
    of its modules."""
    found, waiting = {file}, [file]
    while waiting:
        for name in _imports(waiting.pop()):
            beside = [file.parent / f"{name}.py", *_modules(file.parent / name)]
            new = [path for path in beside if path.is_file() and path not in found]
            found.update(new)
            waiting += new
    return sorted(found)


def _modules(package: Path) -> Iterator[Path]:
    """Of a folder of modules, and those of such folders in it: a folder of data is not searched."""
    if package.is_dir() and (modules := sorted(package.glob("*.py"))):
        yield from modules
        for inner in sorted(package.iterdir()):
            yield from _modules(inner)


def _imports(file: Path) -> Iterator[str]:
    """The top-level name of every absolute import; none of a file that cannot be read."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
