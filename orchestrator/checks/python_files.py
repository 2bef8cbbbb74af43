"""The user's Python files, parsed and never run. A path and a name flow in; what the file binds to the name flows out,
or a ConfigError that names key, file, line and fix."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import ConfigError


def defined(file: str, name: str, key: str, fix: str) -> ast.stmt:
    """Where the Python file's top level binds `name`; the ConfigError ends with `fix` if it does not."""
    path, where = Path(file), f"{key}.path={file}"
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "does not exist"
        raise ConfigError(f"{where} {kind}; name a Python file that defines {name}")
    module = _parsed(path, where)
    _check_imports(module, path, where)
    found = _top_level(module)
    if name not in found:
        known = sorted(name for name, node in found.items() if isinstance(node, ast.FunctionDef | ast.ClassDef))
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"did you mean `{near[0]}`?" if near else fix
        raise ConfigError(f"{key}.name={name} is not defined in {file}; {fix}")
    return found[name]


def _parsed(path: Path, where: str) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ConfigError(f"{where} is not Python{line}: {error.args[0]}; correct it") from None
    except (RecursionError, MemoryError):
        raise ConfigError(f"{where} holds an expression that is nested too deeply; split it") from None
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}; correct its permissions") from None


def _check_imports(module: ast.Module, path: Path, where: str) -> None:
    """What the file imports whenever it is imported itself is installed here, or stands beside it."""
    for line, name in _imports(module):
        if not name:
            raise ConfigError(
                f"{where} cannot be loaded: line {line} imports relatively, but no package is around it; import by name"
            )
        beside = (path.parent / name).is_dir() or any(path.parent.glob(f"{name}.*"))
        if name not in sys.modules and not beside and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"{where} cannot be loaded: line {line} imports `{name}`, which is neither installed here nor beside "
                "the file; install it, or correct the name"
            )


def _imports(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every import of the module's own body; "" of a relative one."""
    for node in module.body:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "" if node.level else (node.module or "").partition(".")[0]


def _top_level(module: ast.Module) -> dict[str, ast.stmt]:
    """Every name that the module's top level binds, also inside `if` and `try`."""
    found: dict[str, ast.stmt] = {}
    queue: list[ast.stmt] = list(module.body)
    while queue:
        node = queue.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0]: node for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            queue += [inner for inner in ast.walk(node) if isinstance(inner, ast.stmt) and inner is not node]
    return found
