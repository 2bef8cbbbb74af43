"""A reward over HTTP, in the two protocols that `roles.reward_service` speaks as a client: texts flow in, scores flow
out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Annotated, Any, Self

import torch
from fastapi import FastAPI, HTTPException
from pydantic import Field, model_validator

from cluster.errors import ClusterError, RankFailure
from cluster.ranks.failures import Death
from orchestrator.config.serving import ServingConfig
from orchestrator.errors import RewardRestarted
from orchestrator.groups.recovery import Recovery
from orchestrator.stages.http_app import make_app
from orchestrator.stages.http_bodies import Body
from orchestrator.stages.serving_desk import SCORE_TRIES
from roles.batch import Responses
from roles.packing import right_padded
from roles.text.messages import LONE_SURROGATE

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class ScoreBody(Body):
    """Our own protocol: what a reward function is given."""

    prompts: list[str]
    responses: list[str]
    response_token_ids: list[list[TokenId]] | None = None
    """The policy's tokens: a reward function gets them; a reward model reads the texts with its own tokenizer."""
    finished: list[bool] | None = None
    """Whether each response has ended itself; None: all have."""
    columns: dict[str, list[Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_entry_per_row(self) -> Self:
        fields: dict[str, list[Any] | None] = {
            "responses": self.responses,
            "response_token_ids": self.response_token_ids,
        }
        fields |= {"finished": self.finished, **{f"columns.{name}": rows for name, rows in self.columns.items()}}
        for name, rows in fields.items():
            if rows is not None and len(rows) != len(self.prompts):
                raise ValueError(f"{name} has {len(rows)} entries for {len(self.prompts)} prompts")
        return self


class QueryBody(Body):
    """OpenRLHF's protocol: prompt and response in one text, which ends with the end mark if the response has ended."""

    query: list[str]
    prompts: list[str] | None = None
    """Not read: they are in `query`."""
    labels: list[Any] | None = None
    """The column `labels` for a reward function."""

    @model_validator(mode="after")
    def _a_label_per_row(self) -> Self:
        if self.labels and len(self.labels) != len(self.query):
            raise ValueError(f"labels has {len(self.labels)} entries for {len(self.query)} queries")
        return self


class RewardDesk:
    """Scores one request after the other, for any number of threads."""

    def __init__(self, score: Callable[[Responses], list[float]]) -> None:
        self._score, self._lock = score, threading.Lock()
        self.broken: BaseException | None = None
        """Why nothing can be scored any more."""
        self.scored = 0
        """Responses so far."""

    def __call__(self, responses: Responses) -> list[float]:
        """A score for each row. HTTPException says why there is none. A reward that is started again is asked again."""
        if not len(responses):
            return []
        with self._lock:
            scores = self._scores(responses, SCORE_TRIES)
        self.scored += len(scores)
        return scores

    def _scores(self, responses: Responses, tries: int) -> list[float]:
        while True:
            tries -= 1
            try:
                return self._score(responses)
            except RewardRestarted as error:
                if not tries:
                    raise HTTPException(502, f"the reward failed: {str(error).splitlines()[0]}") from None
            except RankFailure as error:
                if isinstance(error, Death):
                    self.broken = error
                raise HTTPException(502, f"the reward failed: {str(error).splitlines()[0]}") from None
            except ClusterError as error:
                self.broken = error
                raise HTTPException(503, "the reward does not answer") from None
            except Exception as error:  # a chat template is a program: it raises what it likes
                raise HTTPException(400, f"the rows cannot be read: {error}") from None


def reward_app(desk: RewardDesk, serving: ServingConfig, recovery: Recovery) -> FastAPI:
    """The application: `POST /score` and `POST /get_reward`."""
    gauges = {"tetrarch_scored_responses": ("Responses that have been scored", lambda: desk.scored)}
    app = make_app("Tetrarch reward", serving, gauges, recovery)

    @app.post("/score")
    async def score(body: ScoreBody) -> dict[str, list[float]]:
        """Our own protocol."""
        _check_characters([*body.prompts, *body.responses])
        return {"scores": await asyncio.to_thread(desk, _rows(body))}

    @app.post("/get_reward")
    async def get_reward(body: QueryBody) -> dict[str, list[float]]:
        """OpenRLHF's protocol."""
        _check_characters(body.query)
        size = len(body.query)
        columns = {"labels": body.labels} if body.labels else {}
        rows = ScoreBody(prompts=body.query, responses=[""] * size, finished=[False] * size, columns=columns)
        return {"rewards": await asyncio.to_thread(desk, _rows(rows))}

    return app


def _rows(body: ScoreBody) -> Responses:
    """What scorers read; the tokens are those of the responses alone."""
    size = len(body.prompts)
    ids = body.response_token_ids or [[] for _ in range(size)]
    token_ids, _ = right_padded([row or [0] for row in ids]) if ids else (torch.zeros(0, 0, dtype=torch.int64), None)
    lengths = torch.tensor([len(row) for row in ids], dtype=torch.int64)
    return Responses(
        token_ids=token_ids,
        lengths=lengths,
        response_mask=torch.arange(token_ids.shape[1]) < lengths.unsqueeze(1),
        finished=torch.tensor([True] * size if body.finished is None else body.finished, dtype=torch.bool),
        prompts=body.prompts,
        responses=body.responses,
        columns=body.columns,
    )


def _check_characters(texts: list[str]) -> None:
    row = next((row for row, text in enumerate(texts) if LONE_SURROGATE.search(text)), None)
    if row is not None:
        raise HTTPException(400, f"text {row} has half of a surrogate pair, which is no character")
