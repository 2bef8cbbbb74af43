"""A reward that services give over HTTP.

Responses flow in, float32 scores `[batch]` flow out. A request that fails, times out, or is answered with the wrong
count or a number that is not finite is tried again within the budget, at the next URL; then RewardError names the URLs.
It never becomes a zero.
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
from roles.proxies import proxy_of
from roles.redaction import without_credentials
from roles.reward_call import arguments_of, checked_scores, openrlhf_arguments

SECRET_CHARACTERS = 8
"""Words of a header's value that are as long are hidden by themselves too (`Bearer` is not)."""

BACKOFF_S = 0.25
"""Pause before the first retry of an HTTP request; doubles each time, up to MAX_BACKOFF_S."""

MAX_BACKOFF_S = 8.0


class RemoteScorer:
    """Posts the batch to HTTP services: a share to each URL, and a failed share to the next URL."""

    def __init__(self, config: RemoteReward) -> None:
        self._config = config
        self._headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        said = "authorization" in map(str.lower, self._headers)
        self._auth = httpx.Auth() if said else httpx.USE_CLIENT_DEFAULT
        """Nothing more than the headers where they say who asks; otherwise the user in a URL says it."""

    def score(self, answered: Responses) -> Tensor:
        """float32 `[batch]`: the services' number for each response."""
        size, urls = len(answered), len(self._config.urls)
        bounds = [size * part // urls for part in range(urls + 1)]
        shares = [list(range(a, b)) for a, b in pairwise(bounds) if a < b]
        scores = asyncio.run(self._score_all([answered.select(rows) for rows in shares]))
        return torch.cat(scores) if scores else torch.zeros(0)

    async def _score_all(self, shares: Sequence[Responses]) -> list[Tensor]:
        headers = {"content-type": "application/json", **self._headers}
        async with httpx.AsyncClient(
            headers=headers, timeout=None, transport=httpx.AsyncHTTPTransport(), mounts=self._proxies()
        ) as client:
            return await asyncio.gather(*(self._share(client, i, share) for i, share in enumerate(shares)))

    def _proxies(self) -> dict[str, httpx.AsyncHTTPTransport]:
        """For the URLs that the environment has a proxy for. httpx itself would ask it for this machine too, and cannot
        read every `no_proxy`."""
        found = {}
        for url in self._config.urls:
            proxy = proxy_of(url)
            if proxy is not None:
                try:
                    found[url.partition("?")[0]] = httpx.AsyncHTTPTransport(proxy=proxy)
                except (ValueError, ImportError, httpx.InvalidURL) as error:
                    raise RewardError(
                        self._redacted(
                            f"{url}: the environment's proxy {proxy} cannot be used: {error}; correct it, "
                            "or name the host in no_proxy"
                        )
                    ) from None
        return found

    async def _share(self, client: httpx.AsyncClient, first: int, share: Responses) -> Tensor:
        """The scores of one share, from the URL number `first` or, after a failure, the ones that follow it."""
        body, failures = self._body(share), []
        for attempt in range(self._config.retries + 1):
            url = self._config.urls[(first + attempt) % len(self._config.urls)]
            if attempt:
                await asyncio.sleep(min(BACKOFF_S * 2 ** (attempt - 1), MAX_BACKOFF_S))
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    response = await client.post(url, content=body, auth=self._auth)
                return checked_scores(self._scores(response), len(share))
            except TimeoutError:
                failures.append(f"{url}: no answer within {self._config.timeout_s:g} s")
            except (httpx.HTTPError, httpx.InvalidURL, CallFailed) as error:
                failures.append(f"{url}: {error or type(error).__name__}")
        told = "\n".join(f"  {failure}" for failure in failures)
        raise RewardError(self._redacted(f"remote reward failed {times(len(failures))}:\n{told}"))

    def _body(self, share: Responses) -> bytes:
        try:
            return json.dumps(self._request(share), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            columns = ", ".join(share.columns)
            raise RewardError(
                f"the batch cannot be sent to {self._redacted(self._config.urls[0])} as JSON: {error}; remove or "
                f"convert the column among {columns} of the prompts that is neither text, number, list nor mapping"
            ) from None

    def _request(self, share: Responses) -> dict[str, Any]:
        if self._config.protocol == "tetrarch":
            return arguments_of(share)
        return openrlhf_arguments(share, self._config.label)

    def _scores(self, response: httpx.Response) -> Any:
        if response.status_code != httpx.codes.OK:
            raise CallFailed(f"HTTP {response.status_code} {_short(self._redacted(response.text))}")
        name = "scores" if self._config.protocol == "tetrarch" else "rewards"
        try:
            return response.json()[name]
        except (ValueError, KeyError, TypeError):
            raise CallFailed(
                f'the answer is not {{"{name}": [...]}} but {_short(self._redacted(response.text))}'
            ) from None

    def _redacted(self, text: str) -> str:
        """Text without the headers' values (nor their longer words) and without secrets in URLs."""
        for value in self._headers.values():
            words = [word for word in value.split() if len(word) >= SECRET_CHARACTERS]
            for secret in filter(None, [value, *words]):
                text = text.replace(secret, "**********")
        return without_credentials(text)


def _short(text: str, size: int = 200) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= size else f"{flat[:size]}…"
