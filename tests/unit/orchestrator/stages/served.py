"""A served policy without models: engines that echo the prompt, a reward that counts letters, a desk that works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from orchestrator.stages import serving_desk
from orchestrator.stages.serving_desk import Desk
from roles.batch import Responses
from roles.serving_engine import Finish, NewTokens, WantedResponse

EOS = 2


class EchoEngines:
    """Response r to a prompt is its tokens r times, a token a round, and EOS; or it is cut."""

    def __init__(self) -> None:
        self.left: dict[str, list[int]] = {}
        self.wanted: list[WantedResponse] = []
        self.dropped: list[str] = []
        self.reloaded: list[tuple[str, int]] = []
        """(folder, responses under way then)."""
        self.given_up = set[str]()
        """Responses that no engine goes on with."""
        self.why: Finish = "failed"
        self.loads_older = False
        self.gate = threading.Event()
        """While it is not set, nothing is generated."""
        self.gate.set()

    def advance(self, wanted: Sequence[WantedResponse], dropped: Sequence[str]) -> list[NewTokens]:
        self.wanted += wanted
        self.dropped += dropped
        for one in wanted:
            times = int(one.name.partition(".")[2]) + 1
            self.left[one.name] = [*one.token_ids * times, EOS][: one.max_tokens]
        for name in dropped:
            self.left.pop(name, None)
        if not self.gate.wait(0.02):
            return []
        return [self._grow(name) for name in list(self.left)]

    def _grow(self, name: str) -> NewTokens:
        if name in self.given_up:
            del self.left[name]
            return NewTokens(name, [], self.why)
        token, *rest = self.left[name]
        if rest:
            self.left[name] = rest
            return NewTokens(name, [token], None)
        del self.left[name]
        return NewTokens(name, [token], "stop" if token == EOS else "length")

    def reload(self, folder: str) -> None:
        self.reloaded.append((folder, len(self.left)))


class Letters:
    """A tokenizer: a token is a character."""

    chat_template = "yes"
    eos_token_id = EOS

    def __len__(self) -> int:
        return 0x10000

    def __call__(self, texts: Any, add_special_tokens: bool = True) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": [ord(c) for c in texts]}
        return {"input_ids": [[ord(c) for c in text] for text in texts]}

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(token) for token in token_ids if token != EOS)

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        return "".join(f"<{message['content']}>" for message in messages)


def length(responses: Responses) -> list[float]:
    """Longer is better."""
    return [float(len(response)) for response in responses.responses]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@contextmanager
def working(desk: Desk) -> Iterator[Desk]:
    """A thread calls `work` as the driver does."""
    end, errors = threading.Event(), list[Exception]()

    def work() -> None:
        try:
            while not end.is_set():
                desk.work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    with patch.object(serving_desk, "IDLE_S", 0.02):
        thread.start()
        try:
            yield desk
        finally:
            end.set()
            thread.join(60)
    if errors:
        raise errors[0]
