"""A judge behind OpenAI's protocol: questions flow in, answers flow out as they come, several requests at a time."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx
from pydantic import SecretStr

from orchestrator.config.labelling import CHAT, EndpointJudge
from orchestrator.data.judge_prompts import LETTERS, JudgeAnswer, JudgeQuestion, bare, completion_text, letter_of
from orchestrator.stages.asking import JudgeDown, Refusal
from roles.functions.child import CallFailed
from roles.http_service import GaveUp, HttpService, ServiceFailed, persistently, short
from roles.redaction import without_credentials

REFUSED = (400, 413, 422)
"""Statuses that concern the question, not the server."""

Found = tuple[int, JudgeAnswer | Refusal]


class AskedEndpoint:
    """The judge at one address."""

    def __init__(self, config: EndpointJudge, api_key: str | None) -> None:
        key = {} if api_key is None else {"authorization": SecretStr(f"Bearer {api_key}")}
        self._config, self._chat = config, config.url.partition("?")[0].endswith(CHAT)
        self._service = HttpService([config.url], {**key, **config.headers}, config.timeout_s)

    @property
    def name(self) -> str:
        """Address and model."""
        return f"{without_credentials(self._config.url)} {self._config.model} {self._config.top_logprobs}"

    def answers(self, questions: Sequence[JudgeQuestion]) -> Iterator[Found]:
        """As `Judge` says; a request that is under way when the server fails is still waited for."""
        with asyncio.Runner() as runner:
            stream = self._stream(questions)
            while (found := runner.run(_next(stream))) is not None:
                yield found

    async def _stream(self, questions: Sequence[JudgeQuestion]) -> AsyncIterator[Found]:
        waiting, running = iter(enumerate(questions)), set[asyncio.Task[Found]]()
        failure: GaveUp | None = None
        try:
            async with self._service.opened() as client:
                while True:
                    while failure is None and len(running) < self._config.concurrency and (item := next(waiting, None)):
                        running.add(asyncio.create_task(self._ask(client, *item)))
                    if not running:
                        break
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        error = task.exception()
                        if error is None:
                            yield task.result()
                        elif isinstance(error, GaveUp):
                            failure = error
                        else:
                            raise error
        except GaveUp as error:
            failure = error
        if failure is not None:
            raise JudgeDown(self._told(failure))

    def _told(self, failure: GaveUp) -> str:
        count, last = len(failure.failures), failure.failures[-1]
        return f"the judge failed {count} times in {self._config.patience_s:g} s: {last}" if count > 1 else str(last)

    async def _ask(self, client: httpx.AsyncClient, number: int, question: JudgeQuestion) -> Found:
        body, until = self._body(question), time.monotonic() + self._config.patience_s

        async def attempt(_: int) -> JudgeAnswer:
            return await self._service.post(client, body, lambda response: self._answer(response, question))

        def may_retry(failures: int, error: ServiceFailed, pause: float) -> bool:
            return error.passing and time.monotonic() + pause < until

        try:
            return number, await persistently(attempt, may_retry)
        except GaveUp as error:
            last = error.failures[-1]
            if isinstance(last, ServiceFailed) and last.status in REFUSED:
                return number, Refusal(str(last))
            raise

    def _body(self, question: JudgeQuestion) -> bytes:
        body: dict[str, Any] = {
            "model": self._config.model,
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
        }
        if self._chat:
            body["messages"] = question.messages
            body |= {"tools": list(question.tools), "tool_choice": "none"} if question.tools else {}
        else:
            body["prompt"] = completion_text(question)
        if question.letters and self._config.top_logprobs:
            top = self._config.top_logprobs
            body |= {"logprobs": True, "top_logprobs": top} if self._chat else {"logprobs": top}
        return json.dumps(body).encode()

    def _answer(self, response: httpx.Response, question: JudgeQuestion) -> JudgeAnswer:
        try:
            said = response.json()
            choice, usage = said["choices"][0], said.get("usage") or {}
            text = (choice["message"]["content"] if self._chat else choice["text"]) or ""
            letters = letter_probabilities(text, _positions(choice.get("logprobs"))) if question.letters else None
            return JudgeAnswer(
                text=self._service.redacted(text),
                letters=letters,
                prompt_tokens=int(usage.get("prompt_tokens", question.most_prompt_tokens)),
                completion_tokens=int(usage.get("completion_tokens", question.max_tokens)),
                cut=choice.get("finish_reason") == "length",
            )
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            text = short(self._service.redacted(response.text))
            raise CallFailed(f"no answer in OpenAI's format but {text}") from None


def letter_probabilities(text: str, positions: Sequence[tuple[str, dict[str, float]]]) -> tuple[float, float] | None:
    """Probabilities of A and B where the answer's letter stands; None without log-probabilities. Prose has neither.

    Args:
        positions: each token of the answer, with log-probabilities of the most likely tokens in its place.
    """
    if not positions:
        return None
    letter = letter_of(text)
    for token, likely in positions:
        if letter is not None and bare(token) == letter:
            sums = {one: sum(math.exp(p) for name, p in likely.items() if bare(name) == one) for one in LETTERS}
            if not all(math.isfinite(mass) for mass in sums.values()):
                raise ValueError("a log-probability is not a number")
            return sums["A"], sums["B"]
    return 0.0, 0.0


def _positions(logprobs: Any) -> list[tuple[str, dict[str, float]]]:
    """The log-probabilities of an answer in either protocol."""
    if not logprobs:
        return []
    if logprobs.get("content") is not None:
        places = [[at, *at.get("top_logprobs", ())] for at in logprobs["content"]]
        return [(own["token"], {t["token"]: float(t["logprob"]) for t in [own, *top]}) for own, *top in places]
    tokens, own = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    tops = logprobs.get("top_logprobs") or [{}] * len(tokens)
    return [
        (token, {token: float(p), **{name: float(value) for name, value in (top or {}).items()}})
        for token, p, top in zip(tokens, own, tops, strict=True)
    ]


async def _next(stream: AsyncIterator[Found]) -> Found | None:
    return await anext(stream, None)
