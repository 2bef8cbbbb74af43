"""JSON over HTTP to services of others: a body flows in, what was read of the answer flows out; or ServiceFailed.

Secrets in headers and URLs stay out of every message. An address is reached as `roles.proxies` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx
from pydantic import SecretStr

from roles.functions.child import CallFailed
from roles.proxies import proxy_of
from roles.redaction import without_credentials

T = TypeVar("T")

SECRET_CHARACTERS = 8
"""Words of a header's value that are as long are hidden by themselves too (`Bearer` is not)."""

BACKOFF_S = 0.25
"""Pause before the first retry of a request; doubles each time, up to MAX_BACKOFF_S."""

MAX_BACKOFF_S = 8.0

LONGEST_WAIT_S = 60.0
"""Longest pause that a service gets if it asks for one."""

PASSING = (408, 429)
"""Statuses below 500 after which the same request may succeed: too slow, too many."""


class ServiceFailed(CallFailed):
    """One request failed."""

    def __init__(self, message: str, status: int | None = None, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; None if there was no answer."""
        self.wait_s = wait_s
        """Seconds that the service asks to wait."""

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status is None or self.status in PASSING or self.status >= 500


class GaveUp(Exception):
    """A request failed as often as it may."""

    def __init__(self, failures: Sequence[CallFailed]) -> None:
        super().__init__("\n".join(f"  {failure}" for failure in failures))
        self.failures = failures


class HttpService:
    """Posts JSON to the URLs of one service."""

    def __init__(self, urls: Sequence[str], headers: Mapping[str, SecretStr], timeout_s: float) -> None:
        self._urls, self._timeout_s = urls, timeout_s
        self._headers = {name: value.get_secret_value() for name, value in headers.items()}
        said = "authorization" in map(str.lower, self._headers)
        self._auth = httpx.Auth() if said else httpx.USE_CLIENT_DEFAULT
        """Nothing more than the headers where they say who asks; otherwise the user in a URL says it."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[httpx.AsyncClient]:
        """Context with connections for `post`."""
        headers = {"content-type": "application/json", **self._headers}
        transport = httpx.AsyncHTTPTransport()
        async with httpx.AsyncClient(
            headers=headers, timeout=None, transport=transport, mounts=self._proxies()
        ) as client:
            yield client

    def _proxies(self) -> dict[str, httpx.AsyncHTTPTransport]:
        """For the URLs that the environment has a proxy for. httpx itself would ask it for this machine too, and cannot
        read every `no_proxy`."""
        found = {}
        for url in self._urls:
            proxy = proxy_of(url)
            if proxy is not None:
                try:
                    found[url.partition("?")[0]] = httpx.AsyncHTTPTransport(proxy=proxy)
                except (ValueError, ImportError, httpx.InvalidURL) as error:
                    raise GaveUp([ServiceFailed(self._unusable(url, proxy, error))]) from None
        return found

    def _unusable(self, url: str, proxy: str, error: Exception) -> str:
        said = f"{url}: the environment's proxy {proxy} cannot be used: {error}; correct it, or name the host in"
        return self.redacted(f"{said} no_proxy")

    async def post(
        self, client: httpx.AsyncClient, body: bytes, read: Callable[[httpx.Response], T], *, to: int = 0
    ) -> T:
        """One request to the URL number `to`. `read` may raise CallFailed."""
        url = self._urls[to % len(self._urls)]
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await client.post(url, content=body, auth=self._auth)
            if response.status_code != httpx.codes.OK:
                said, wait_s = short(self.redacted(response.text)), _wait_s(response)
                raise ServiceFailed(f"HTTP {response.status_code} {said}", response.status_code, wait_s)
            return read(response)
        except TimeoutError:
            raise ServiceFailed(self.redacted(f"{url}: no answer within {self._timeout_s:g} s")) from None
        except ServiceFailed as error:
            raise ServiceFailed(self.redacted(f"{url}: {error}"), error.status, error.wait_s) from None
        except (httpx.HTTPError, httpx.InvalidURL, CallFailed) as error:
            raise ServiceFailed(self.redacted(f"{url}: {error or type(error).__name__}")) from None

    def redacted(self, text: str) -> str:
        """Text without the headers' values (nor their longer words) and without secrets in URLs."""
        for value in self._headers.values():
            words = [word for word in value.split() if len(word) >= SECRET_CHARACTERS]
            for secret in filter(None, [value, *words]):
                text = text.replace(secret, "**********")
        return without_credentials(text)


async def persistently(
    attempt: Callable[[int], Awaitable[T]], may_retry: Callable[[int, ServiceFailed, float], bool]
) -> T:
    """The first answer of `attempt(number)`; GaveUp if `may_retry` forbids another attempt.

    Args:
        may_retry: is asked with the number of failures, the last one, and the pause before the next attempt in seconds.
    """
    failures: list[CallFailed] = []
    while True:
        try:
            return await attempt(len(failures))
        except ServiceFailed as error:
            failures.append(error)
            pause = max(min(BACKOFF_S * 2 ** (len(failures) - 1), MAX_BACKOFF_S), min(error.wait_s, LONGEST_WAIT_S))
            if not may_retry(len(failures), error, pause):
                raise GaveUp(failures) from None
        await asyncio.sleep(pause)


def short(text: str, size: int = 200) -> str:
    """The beginning of a text, in one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= size else f"{flat[:size]}…"


def _wait_s(response: httpx.Response) -> float:
    """What the header `retry-after` says, if it says seconds."""
    said = response.headers.get("retry-after", "")
    return float(said) if said.isascii() and said.isdigit() and len(said) < 8 else 0.0
