"""The child process in which a reward function runs, so that a function that hangs or crashes can be ended.

Runs as `python child_program.py FILE NAME`. Pickled keyword arguments flow in on stdin. Pickled
`("scores", {"scores": list[float], "metrics": {name: list}})` or `("error", text)` flow out on stdout, after a first
`("ready", "")`. What the function prints goes to stderr. Imports only the standard library, so that the process costs
no more than the function's own imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pickle
import reprlib
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, BinaryIO

METRIC_NAME = r"[A-Za-z0-9][\w.@/-]{0,59}"
"""Pattern of the names that the user's code may give to numbers beside its scores and rewards."""

LARGEST_FLOAT32 = 3.4028234663852886e38

RAISED = (Exception, SystemExit)
"""What a call of the user's code may raise: `sys.exit` ends the call, not the process."""

Message = tuple[str, Any]
Answer = Callable[[Callable[..., Any], dict[str, Any]], Message]
"""(the function or class in the file, a request) → the message that is sent back."""


def load(path: Path, name: str) -> Callable[..., Any]:
    """The object `name` of the Python file `path`; the file can import modules beside it."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("user_function", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function: Callable[..., Any] = getattr(module, name)
    return function


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> Message:
    """The function's scores as floats, or its traceback."""
    try:
        if "query" in arguments:
            return "scores", _one_by_one(function, arguments)
        prompts, responses = arguments.pop("prompts"), arguments.pop("responses")
        return "scores", _read(function(prompts, responses, **arguments))
    except RAISED:
        return "error", traceback.format_exc()


def _read(answer: Any) -> dict[str, Any]:
    """A list of scores, or `{"scores": list, "metrics": {name: list}}`."""
    if not (isinstance(answer, Mapping) and "scores" in answer):
        return {"scores": _floats(answer), "metrics": {}}
    others = [key for key in answer if key not in ("scores", "metrics")]
    if others:
        raise ValueError(f"the function returned the key {others[0]!r} beside `scores`; put its numbers in `metrics`")
    return {"scores": _floats(answer["scores"]), "metrics": _metrics(answer.get("metrics") or {})}


def _metrics(named: Mapping[Any, Any]) -> dict[str, list[Any]]:
    """Name → numbers as floats; what is no number is left as it is, for an error that shows it."""
    if not isinstance(named, Mapping):
        raise TypeError(f"the metrics are {reprlib.repr(named)}, not a mapping of names to lists of numbers")
    return {str(name): [_plain(value) for value in values] for name, values in named.items()}


def _plain(value: Any) -> Any:
    try:
        return value if value is None or isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        return repr(value)


def _one_by_one(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The rewards of a function for OpenRLHF, which gives it one response at a time, and its `extra_logs`."""
    scores: list[float] = []
    named: list[dict[str, Any]] = []
    for query, prompt, label in zip(arguments["query"], arguments["prompts"], arguments["labels"], strict=True):
        answer = function([query], [prompt], [label])
        reward = answer["rewards"] if isinstance(answer, Mapping) else answer
        [score] = _floats(reward) if isinstance(reward, (list, tuple)) else [float(reward)]
        scores.append(score)
        logs = (answer.get("extra_logs") if isinstance(answer, Mapping) else None) or {}
        several = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in logs.items()}
        named.append({name: values[0] for name, values in _metrics(several).items()})
        if named[-1].keys() != named[0].keys():
            said = f"{sorted(named[-1])}, and those of response 0 {sorted(named[0])}"
            raise ValueError(f"the extra_logs of response {len(named) - 1} are {said}; give the same names to all")
    return {"scores": scores, "metrics": {name: [row[name] for row in named] for name in (named[0] if named else {})}}


def is_finite_float32(number: float) -> bool:
    """Whether a score or reward is a finite number where it is kept: 1e300 is not."""
    return abs(number) <= LARGEST_FLOAT32


def _floats(scores: Any) -> list[float]:
    """The numbers of a list, or of anything that has an order: an array, a tensor, a generator."""
    if isinstance(scores, (str, bytes, Mapping, Set)):
        raise TypeError(f"the function returned {reprlib.repr(scores)}, not a list of numbers")
    found = list(scores)
    texts = [row for row, score in enumerate(found) if isinstance(score, (str, bytes))]
    if texts:
        raise ValueError(f"score {texts[0]} is the text {reprlib.repr(found[texts[0]])}, not a number")
    return [float(score) for score in found]


def serve(path: Path, name: str, requests: BinaryIO, answers: BinaryIO, answer: Answer) -> None:
    """Answer requests until stdin is closed."""
    try:
        function = load(path, name)
    except BaseException:  # a module may raise SystemExit too, and the parent must be told
        return send(answers, ("error", traceback.format_exc()))
    send(answers, ("ready", ""))
    with contextlib.suppress(EOFError):
        while True:
            send(answers, answer(function, pickle.load(requests)))


def send(answers: BinaryIO, message: Message) -> None:
    """Send one message and flush it."""
    pickle.dump(message, answers)
    answers.flush()


def die_with_parent() -> None:
    """Let the kernel end this process with its parent, even if the function never returns (Linux only)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main(answer: Answer) -> None:
    """Use stdin and stdout for messages, and give the function an empty stdin and stderr as its stdout."""
    die_with_parent()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    serve(Path(sys.argv[1]).resolve(), sys.argv[2], requests, answers, answer)


if __name__ == "__main__":
    main(call)
