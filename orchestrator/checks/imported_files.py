"""Imports the files of reward functions before the start, in processes of their own, while other checks go on.

Functions flow in; nothing flows out, or a ConfigError that names key, file, line and what was raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from orchestrator.errors import ConfigError
from roles.config.rewards import FunctionReward
from roles.functions import child_program
from roles.functions.child import Child, LoadFailed, LoadUnfinished

IMPORT_S = 6.0
"""Seconds in which a file is imported here; one that takes longer is left to the run, which waits for minutes."""


@contextmanager
def imported(functions: Mapping[str, FunctionReward]) -> Iterator[None]:
    """Context at whose end every file has been imported. `functions`: key path → a function whose file is there."""
    if not functions:
        yield
        return
    with ThreadPoolExecutor(len(functions)) as pool:
        trying = [pool.submit(_try, key, function) for key, function in functions.items()]
        yield
        for tried in trying:
            tried.result()


def _try(key: str, function: FunctionReward) -> None:
    try:
        with closing(Child(child_program, function.path, function.name, load_s=IMPORT_S)):
            return
    except LoadUnfinished:
        return
    except LoadFailed as error:
        file = re.escape(str(Path(function.path).resolve()))
        lines = re.findall(rf'File "{file}", line (\d+)', str(error))
        where = f"{key}.path={function.path}{f', line {lines[-1]}' if lines else ''}"
        raise ConfigError(f"{where} cannot be imported: {str(error).splitlines()[0]}; correct it") from None
