"""A judge behind OpenAI's protocol, in a thread: it prefers the longer response, and answers as it is told."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any] | None
"""Status and content; None: the connection is closed without an answer."""

SURE = 0.8
"""Probability of the judge's letter; the other one has 0.1."""


class JudgeServer:
    """Remembers what it is asked; `answer` makes a reply of the number of the request and its body."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answered: list[str] = []
        """What was asked and answered, in the order in which it came."""
        self.most_at_a_time, self._now, self._lock = 0, 0, threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with judge._lock:
                    number = len(judge.bodies)
                    judge.bodies.append(body)
                    judge.headers.append({k.lower(): v for k, v in self.headers.items()})
                    judge._now += 1
                    judge.most_at_a_time = max(judge.most_at_a_time, judge._now)
                try:
                    self._reply(answer(number, body), body)
                finally:
                    with judge._lock:
                        judge._now -= 1

            def _reply(self, reply: Reply, body: dict[str, Any]) -> None:
                if reply is None:
                    self.close_connection = True
                    return
                status, content = reply
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                if status == 200:
                    judge.answered.append(text_of(body))
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/chat/completions"


@contextmanager
def judging(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[JudgeServer]:
    judge = JudgeServer(answer)
    threading.Thread(target=judge.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield judge
    judge.server.shutdown()
    judge.server.server_close()


def text_of(body: dict[str, Any]) -> str:
    """What is asked."""
    return str(body["prompt"]) if "prompt" in body else str(body["messages"][-1]["content"])


def longer(body: dict[str, Any]) -> str:
    """The letter of the longer response that is shown."""
    shown = re.findall(r"<response [AB]>\n(.*?)\n</response [AB]>", text_of(body), re.DOTALL)
    return "A" if len(shown[0]) > len(shown[1]) else "B"


def chat(text: str, logprobs: Any = None, finish: str = "stop", usage: bool = True) -> tuple[int, Any]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": logprobs}
    counts = {"usage": {"prompt_tokens": 50, "completion_tokens": 2}} if usage else {}
    return 200, {"choices": [choice], **counts}


def in_letters(number: int, body: dict[str, Any]) -> Reply:
    """A letter without probabilities."""
    return chat(longer(body))


def in_probabilities(number: int, body: dict[str, Any]) -> Reply:
    """A letter with probabilities, some of them of the letter after a space."""
    letter = longer(body)
    other = "AB".replace(letter, "")
    top = {letter: SURE - 0.1, f" {letter}": 0.1, other: 0.1, "I": 0.05}
    tokens = [{"token": token, "logprob": math.log(p)} for token, p in top.items()]
    return chat(letter, {"content": [{**tokens[0], "top_logprobs": tokens}]})


def in_prose(number: int, body: dict[str, Any]) -> Reply:
    return chat("A good answer is hard to find, but both have merits.")
