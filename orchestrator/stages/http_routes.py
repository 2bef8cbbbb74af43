"""The routes of a served policy: requests flow in, jobs flow to the desk, answers flow out as JSON or as a stream."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from orchestrator.config.serving import ServingConfig
from orchestrator.groups.recovery import Recovery
from orchestrator.stages.http_app import make_app
from orchestrator.stages.http_bodies import ChatBody, CompletionBody, GenerateBody, OpenAIBody
from orchestrator.stages.prompt_reader import PromptReader, Unreadable
from orchestrator.stages.serving_desk import Desk
from orchestrator.stages.serving_jobs import Job, PromptRead, Refused, ScoredAnswer, Told, Wish

PAGE = Path(__file__).with_name("serving_page.html")
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""What a route may answer besides JSON."""
CLIENT_POLL_S = 0.5
"""Seconds after which a request that waits looks whether its client is still there."""
GONE = Refused(499, "the client has gone")


def policy_app(
    desk: Desk, reader: PromptReader, serving: ServingConfig, recovery: Recovery, *, temperature: float, top_p: float
) -> FastAPI:
    """The application. `temperature`, `top_p`: where a request does not say them."""
    gauges = {
        "tetrarch_requests_under_way": ("Requests that have not been answered", lambda: desk.open),
        "tetrarch_generated_tokens": ("Tokens that have been generated", lambda: desk.generated),
        "tetrarch_weights_version": ("How often the weights have been renewed", lambda: desk.version),
    }
    app = make_app("Tetrarch", serving, gauges, recovery)
    routes = Routes(desk, reader, serving, temperature=temperature, top_p=top_p)
    app.get("/", response_class=HTMLResponse)(routes.page)
    app.post("/generate")(routes.generate)
    app.get("/v1/models")(routes.models)
    app.post("/v1/completions", response_model=None, responses=STREAM)(routes.completions)
    app.post("/v1/chat/completions", response_model=None, responses=STREAM)(routes.chat)
    return app


class Routes:
    """What answers each path."""

    def __init__(
        self, desk: Desk, reader: PromptReader, serving: ServingConfig, *, temperature: float, top_p: float
    ) -> None:
        self._desk, self._reader, self._serving = desk, reader, serving
        self._temperature, self._top_p = temperature, top_p

    async def page(self) -> str:
        """A page to type a prompt and see the answers ranked."""
        return PAGE.read_text(encoding="utf-8")

    async def models(self) -> dict[str, Any]:
        """OpenAI's list of models."""
        model = {"id": self._serving.model_name, "object": "model", "created": 0, "owned_by": "tetrarch"}
        return {"object": "list", "data": [model]}

    async def generate(self, body: GenerateBody, request: Request) -> dict[str, Any]:
        """N responses to a prompt, their scores, and which is the best."""
        count = body.num_return_sequences or self._serving.responses
        prompt = await self._read(body.prompt)
        wish = self._wish(prompt, count, body.max_new_tokens, body, scored=True, columns=body.columns)
        answers = await self._answers(prompt, wish, request)
        scores = [answer.score for answer in answers]
        scored = [score for score in scores if score is not None]
        return {
            "responses": [answer.text for answer in answers],
            "scores": scores if scored else None,
            "best": scores.index(max(scored)) if scored else None,
            "finish_reasons": [answer.finish for answer in answers],
        }

    async def completions(self, body: CompletionBody, request: Request) -> dict[str, Any] | Response:
        """OpenAI's completions."""
        return await self._openai(await self._read(body.prompt), body, body.max_tokens, request, chat=False)

    async def chat(self, body: ChatBody, request: Request) -> dict[str, Any] | Response:
        """OpenAI's chat completions."""
        longest = body.max_completion_tokens or body.max_tokens
        return await self._openai(await self._read(body.messages), body, longest, request, chat=True)

    async def _openai(
        self, prompt: PromptRead, body: OpenAIBody, longest: int | None, request: Request, *, chat: bool
    ) -> dict[str, Any] | Response:
        name, best_of = self._serving.model_name, body.best_of or body.n
        if body.model not in (None, name):
            raise HTTPException(404, f"model={body.model!r} is not served here; use {name!r}")
        if best_of < body.n:
            raise HTTPException(400, f"best_of={best_of} is less than n={body.n}; raise it")
        if best_of > body.n and not self._desk.scores:
            raise HTTPException(400, f"best_of={best_of} needs a reward, and none is configured; leave it out")
        if body.stream and best_of > 1:
            raise HTTPException(400, "stream=true gives one response; leave n and best_of out")
        wish = self._wish(prompt, best_of, longest, body, scored=best_of > body.n)
        head = {"id": secrets.token_hex(12), "created": int(time.time()), "model": name}
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._told(Job(prompt, wish, _unheard, streams=True), request)
            first = await anext(events, GONE)
            if isinstance(first, Refused):
                await events.aclose()
                raise HTTPException(first.status, first.message)
            lines = _lines(first, events, head, prompt, chat=chat, usage=usage)
            return StreamingResponse(lines, media_type="text/event-stream")
        answers = await self._answers(prompt, wish, request)
        best = sorted(answers, key=lambda answer: -(answer.score or 0.0)) if wish.scored else answers
        choices = [_choice(number, answer, chat=chat) for number, answer in enumerate(best[: body.n])]
        kind = "chat.completion" if chat else "text_completion"
        return {**head, "object": kind, "choices": choices, "usage": _usage(prompt, answers)}

    async def _read(self, prompt: str | list[Any]) -> PromptRead:
        try:
            return await asyncio.to_thread(self._reader.read, prompt)
        except Unreadable as error:
            raise HTTPException(400, str(error)) from None

    def _wish(self, prompt: PromptRead, count: int, longest: int | None, body: Any, **others: Any) -> Wish:
        temperature = self._temperature if body.temperature is None else body.temperature
        if 0 < temperature < 0.01:
            raise HTTPException(400, f"temperature={temperature:g} is neither 0 nor at least 0.01; use one of them")
        if count > self._serving.max_responses:
            raise HTTPException(400, f"{count} responses are more than serving.max_responses allows; ask for fewer")
        try:
            most = self._reader.most_new(prompt, longest)
        except Unreadable as error:
            raise HTTPException(400, str(error)) from None
        seed = secrets.randbits(31) if body.seed is None else body.seed
        return Wish(count, most, temperature, self._top_p if body.top_p is None else body.top_p, seed, **others)

    async def _answers(self, prompt: PromptRead, wish: Wish, request: Request) -> list[ScoredAnswer]:
        async with aclosing(self._told(Job(prompt, wish, _unheard), request)) as events:
            async for told in events:
                if isinstance(told, Refused):
                    raise HTTPException(told.status, told.message)
                if isinstance(told, list):
                    return told
        raise HTTPException(GONE.status, GONE.message)

    async def _told(self, job: Job, request: Request) -> AsyncGenerator[Told, None]:
        """What the desk tells the job, until its end; nothing more once the client has gone."""
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[Told]()
        job.tell = lambda told: _tell(loop, heard, told)
        refused = self._desk.take(job)
        if refused is not None:
            yield refused
            return
        until = loop.time() + self._serving.timeout_s
        try:
            while True:
                try:
                    told = await asyncio.wait_for(heard.get(), max(min(CLIENT_POLL_S, until - loop.time()), 0.001))
                except TimeoutError:
                    if loop.time() >= until:
                        yield Refused(504, f"no answer within serving.timeout_s={self._serving.timeout_s:g} s")
                        return
                    if await request.is_disconnected():
                        return
                    continue
                yield told
                if not isinstance(told, str):
                    return
        finally:
            self._desk.drop(job)


def _tell(loop: asyncio.AbstractEventLoop, heard: asyncio.Queue[Any], told: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(heard.put_nowait, told)


def _unheard(told: Any) -> None:
    """Until the request waits for it."""


def _choice(number: int, answer: ScoredAnswer, *, chat: bool) -> dict[str, Any]:
    text = {"message": {"role": "assistant", "content": answer.text}} if chat else {"text": answer.text}
    score = {} if answer.score is None else {"score": answer.score}
    return {"index": number, **text, "finish_reason": answer.finish, "logprobs": None, **score}


def _usage(prompt: PromptRead, answers: Sequence[ScoredAnswer]) -> dict[str, int]:
    said, read = sum(answer.tokens for answer in answers), len(prompt.token_ids)
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


async def _lines(
    first: str | list[ScoredAnswer],
    events: AsyncGenerator[Told, None],
    head: dict[str, Any],
    prompt: PromptRead,
    *,
    chat: bool,
    usage: bool,
) -> AsyncIterator[str]:
    """The events of a stream, as OpenAI's clients read them."""
    head = {**head, "object": "chat.completion.chunk" if chat else "text_completion"}

    def line(text: str, finish: str | None = None, role: bool = False) -> str:
        delta = {"delta": ({"role": "assistant"} if role else {}) | {"content": text}} if chat else {"text": text}
        return _data({**head, "choices": [{"index": 0, **delta, "finish_reason": finish, "logprobs": None}]})

    told: Told | None = first
    async with aclosing(events):
        if chat:
            yield line("", role=True)
        while told is not None:
            if isinstance(told, str):
                yield line(told)
            elif isinstance(told, Refused):
                yield _data({"error": {"message": told.message, "type": "server_error", "code": told.status}})
            else:
                yield line("", told[0].finish)
                if usage:
                    yield _data({**head, "choices": [], "usage": _usage(prompt, told)})
            told = await anext(events, None)
        yield "data: [DONE]\n\n"


def _data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
