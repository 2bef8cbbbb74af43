"""The actor's generating half while it serves: requests flow in at any time, tokens flow out as they are generated.

One call is a short round of the engine: it takes new requests, lets the engine work on all of them, and returns what
has been generated. Between two rounds nothing runs, so weights can be loaded there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from roles.errors import RolloutError
from roles.generation.conversation import Turn
from roles.generation.sampling import sampling
from roles.rollout_setup import RolloutSetup, prepare_process, start_engine

Finish = Literal["stop", "length", "failed", "refused"]
"""Why a response ended: with a stop token, at its longest, since engines failed that generated it, or before it began,
since engines have failed with its prompt."""


@dataclass(frozen=True, slots=True)
class WantedResponse:
    """A response to generate: `WantedResponse("7.0", [5, 6], max_tokens=16, temperature=1.0, top_p=1.0, seed=3)`."""

    name: str
    """Unique among the responses under way."""
    token_ids: list[int]
    """The prompt, and what the response has of tokens already."""
    max_tokens: int
    temperature: float
    """0: the most likely tokens."""
    top_p: float
    seed: int
    begun: int = 0
    """Number of tokens at the end of `token_ids` that are the response's. The next ones are drawn anew."""


@dataclass(frozen=True, slots=True)
class NewTokens:
    """What a response has grown by: `NewTokens("7.0", [8, 2], "stop")`."""

    name: str
    token_ids: list[int]
    finish: Finish | None
    """None: it goes on."""


@dataclass(frozen=True, slots=True)
class EngineWork:
    """What changes for one engine: `EngineWork([WantedResponse("7.0", …)], ["6.1"])`."""

    wanted: Sequence[WantedResponse]
    """Responses to begin."""
    dropped: Sequence[str]
    """Names of responses that nobody waits for any more."""


class ServingEngine:
    """One vLLM instance that answers requests as they come."""

    def __init__(self, setup: RolloutSetup) -> None:
        prepare_process(setup)
        self._setup = setup
        self._engine = start_engine(setup)

    def advance(self, work: EngineWork, slice_s: float) -> list[NewTokens]:
        """Begin the wanted responses, give up the dropped ones, and work until a response ends or `slice_s` seconds
        have passed."""
        if work.dropped:
            self._engine.abort_request(list(work.dropped))
        for response in work.wanted:
            self._add(response)
        until, grown, ended = time.monotonic() + slice_s, dict[str, NewTokens](), False
        while self._engine.has_unfinished_requests() and not ended and (not grown or time.monotonic() < until):
            for output in self._engine.step():
                new = self._grown(output, grown.get(output.request_id))
                grown[new.name] = new
                ended = ended or new.finish is not None
        return list(grown.values())

    def reload(self, folder: str, dropped: Sequence[str]) -> None:
        """Give up the dropped responses and go over to the weights in `folder`, of the same architecture. No other
        response may be under way."""
        if dropped:
            self._engine.abort_request(list(dropped))
        if self._engine.has_unfinished_requests():
            raise RolloutError(f"engine {self._setup.index} is generating; let it finish before it loads new weights")
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self._engine.reset_prefix_cache()

    def _add(self, response: WantedResponse) -> None:
        seed = response.seed + response.begun if response.temperature else None
        turn = Turn(0, response.token_ids, response.max_tokens - response.begun, seed)
        rollout = self._setup.rollout
        said = {"temperature": response.temperature or 1.0, "top_p": response.top_p}
        said["min_response_tokens"] = max(rollout.min_response_tokens - response.begun, 0)
        how = sampling(rollout.model_copy(update=said), self._setup.stop_token_ids, turn, stream=True)
        self._engine.add_request(response.name, {"prompt_token_ids": response.token_ids}, how)

    def _grown(self, output: Any, before: NewTokens | None) -> NewTokens:
        answer = output.outputs[0]
        finish: Any = answer.finish_reason
        if finish not in (None, "stop", "length"):
            raise RolloutError(f"engine {self._setup.index} ended response {output.request_id} with {finish!r}")
        tokens = [*(before.token_ids if before else ()), *answer.token_ids]
        return NewTokens(output.request_id, tokens, finish)
