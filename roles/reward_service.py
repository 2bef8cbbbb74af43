"""A reward that services give over HTTP.

Responses flow in, float32 scores `[batch]` and named numbers flow out. A request that fails, times out, or is answered
with the wrong count or a number that is not finite is tried again within the budget, at the next URL; then RewardError
names the URLs. It never becomes a zero.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import httpx
import torch
from torch import Tensor

from roles.batch import Responses
from roles.config.rewards import RemoteReward
from roles.errors import RewardError
from roles.functions.child import CallFailed, times
from roles.http_service import GaveUp, HttpService, ServiceFailed, persistently, short
from roles.reward_call import RowScores, arguments_of, checked_answer, decode_of, openrlhf_arguments
from roles.spans import span
from roles.text.policy_text import PolicyText


class RemoteScorer:
    """Posts the batch to HTTP services: a share to each URL, and a failed share to the next URL."""

    def __init__(self, config: RemoteReward, policy: PolicyText | None = None) -> None:
        """`policy`: whose tokens the responses are; only `protocol: openrlhf` reads them."""
        self._config = config
        self._decode = decode_of(policy)
        self._service = HttpService(config.urls, config.headers, config.timeout_s)

    def score(self, answered: Responses) -> Tensor:
        """float32 `[batch]`: the services' number for each response."""
        return self.row_scores(answered).scores

    def row_scores(self, answered: Responses) -> RowScores:
        """The services' number for each response, and their metrics."""
        size, urls = len(answered), len(self._config.urls)
        bounds = [size * part // urls for part in range(urls + 1)]
        shares = [list(range(a, b)) for a, b in pairwise(bounds) if a < b]
        try:
            scores = asyncio.run(self._score_all([answered.select(rows) for rows in shares]))
        except GaveUp as error:
            raise RewardError(f"remote reward failed {times(len(error.failures))}:\n{error}") from None
        return RowScores.concatenate(scores) if scores else RowScores(torch.zeros(0), [])

    async def _score_all(self, shares: Sequence[Responses]) -> list[RowScores]:
        async with self._service.opened() as client:
            return await asyncio.gather(*(self._share(client, i, share) for i, share in enumerate(shares)))

    async def _share(self, client: httpx.AsyncClient, first: int, share: Responses) -> RowScores:
        """The scores of one share, from the URL number `first` or, after a failure, the ones that follow it."""
        body = self._body(share)

        def read(response: httpx.Response) -> RowScores:
            return checked_answer(self._answer(response), len(share))

        async def attempt(number: int) -> RowScores:
            with span("reward call", rows=len(share), attempt=number + 1):
                return await self._service.post(client, body, read, to=first + number)

        def may_retry(failures: int, error: ServiceFailed, pause: float) -> bool:
            return failures <= self._config.retries

        return await persistently(attempt, may_retry)

    def _body(self, share: Responses) -> bytes:
        try:
            return json.dumps(self._request(share), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            columns, url = ", ".join(share.columns), self._service.redacted(self._config.urls[0])
            raise RewardError(
                f"the batch cannot be sent to {url} as JSON: {error}; remove or convert the column among {columns} of "
                "the prompts that is neither text, number, list nor mapping"
            ) from None

    def _request(self, share: Responses) -> dict[str, Any]:
        if self._config.protocol == "tetrarch":
            return arguments_of(share)
        return openrlhf_arguments(share, self._config.label, self._decode)

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        """`scores` and `metrics`; in OpenRLHF's protocol `rewards` and `extra_logs`."""
        name, more = ("scores", "metrics") if self._config.protocol == "tetrarch" else ("rewards", "extra_logs")
        try:
            said = response.json()
            return {"scores": said[name], "metrics": said.get(more) or {}}
        except (ValueError, LookupError, TypeError, AttributeError):
            said = short(self._service.redacted(response.text))
            raise CallFailed(f'the answer is not {{"{name}": [...]}} but {said}') from None
