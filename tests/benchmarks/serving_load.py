"""Load on a served policy: 64 clients, 500 requests to `/v1/completions`; how many were lost, and how long they took.

    .venv/bin/python tests/benchmarks/serving_load.py URL [MODEL]

URL is that of `tetrarch serve` or of plain `vllm serve`. Each request wants 16 tokens after a prompt of its own.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter

import httpx

CLIENTS, REQUESTS, TOKENS = 64, 500, 16


async def load(url: str, model: str) -> str:
    """One line: statuses, seconds of a request, and requests a second."""
    left, seconds, statuses = iter(range(REQUESTS)), list[float](), Counter[str]()

    body = {"model": model, "max_tokens": TOKENS, "temperature": 1}

    async def client() -> None:
        async with httpx.AsyncClient(timeout=120, trust_env=False) as http:
            for number in left:
                began = time.perf_counter()
                try:
                    answer = await http.post(
                        f"{url}/v1/completions", json={**body, "prompt": f"draw the red river {number}"}
                    )
                    statuses[str(answer.status_code)] += 1
                except httpx.HTTPError as error:
                    statuses[type(error).__name__] += 1
                seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    whole = time.perf_counter() - began
    seconds.sort()
    p50, p99 = (seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99))
    told = ", ".join(f"{count} x {status}" for status, count in statuses.items())
    return f"{told}; p50 {p50:.2f} s, p99 {p99:.2f} s, {REQUESTS / whole:.0f} requests/s"


def main() -> None:
    """Print the line."""
    address, *name = sys.argv[1:]
    print(asyncio.run(load(address.rstrip("/"), name[0] if name else "policy")))


if __name__ == "__main__":
    main()
