"""What the hub gives, asked within a deadline: looking up a name may take longer than any timeout of a request."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Thread
from typing import TypeVar

HUB_S = 5.0
"""Seconds that the hub has to answer."""
NOT_FOUND = "HTTP 404"
"""Why a file does not come that the hub does not have."""

A = TypeVar("A")


@cache
def file_text(name: str, file: str, revision: str | None = None) -> tuple[str, str | None]:
    """A small file of the hub's model `name`, and why it does not come (None: it came). Asked once. `revision`: a
    commit, tag or branch."""
    from huggingface_hub import constants, get_session, get_token, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return "", "HF_HUB_OFFLINE is set"

    def ask() -> tuple[str, str | None]:
        token = get_token()
        said = {"authorization": f"Bearer {token}"} if token else {}
        answer = get_session().get(
            hf_hub_url(name, file, revision=revision), headers=said, timeout=HUB_S, follow_redirects=True
        )
        return answer.text, None if answer.status_code == 200 else f"HTTP {answer.status_code}"

    return in_time(ask, lambda why: ("", why))


def in_time(ask: Callable[[], A], failed: Callable[[str], A]) -> A:
    """What `ask` answers in `HUB_S` seconds; else what `failed` makes of the reason."""
    answers: list[A] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # the network and the client fail in a dozen ways
            answers.append(failed(str(error) or type(error).__name__))

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(HUB_S)
    return answers[0] if answers else failed(f"no answer in {HUB_S:g} s")
