"""A language model that answers questions on a vLLM engine: token ids flow in, answers flow out as they are ready; for
a question whose answer is one of a few tokens, the probabilities of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from roles.errors import RolloutError
from roles.generation.sampling import Reply, reply_sampling
from roles.rollout_setup import RolloutSetup, prepare_process, start_engine


@dataclass(frozen=True, slots=True)
class EngineQuestion:
    """A question: `EngineQuestion(7, [5, 6, 9], Reply(max_tokens=1, candidates=(65, 66)))`."""

    row: int
    """What the caller knows it by."""
    token_ids: list[int]
    reply: Reply


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """An answer: `EngineAnswer(7, [66], {65: -2.3, 66: -0.1}, cut=True)`."""

    row: int
    token_ids: list[int]
    logprobs: dict[int, float]
    """Candidate → its log-probability as the first token, at temperature 1; empty without candidates."""
    cut: bool
    """Whether the answer has reached its most tokens."""


class JudgeEngine:
    """One vLLM instance that answers questions."""

    def __init__(self, setup: RolloutSetup) -> None:
        prepare_process(setup)
        self._setup = setup
        self._engine = start_engine(setup)

    def answers(self, questions: Sequence[EngineQuestion]) -> Iterator[EngineAnswer]:
        """Answer all questions, each as soon as it is ready."""
        open_rows = set()
        try:
            for question in questions:
                how = reply_sampling(question.reply, self._setup.stop_token_ids)
                self._engine.add_request(str(question.row), {"prompt_token_ids": question.token_ids}, how)
                open_rows.add(str(question.row))
            candidates = {str(question.row): question.reply.candidates for question in questions}
            while open_rows:
                for output in self._engine.step():
                    open_rows.remove(output.request_id)
                    yield self._answer(output, candidates[output.request_id])
                if open_rows and not self._engine.has_unfinished_requests():
                    raise RolloutError(f"engine {self._setup.index} lost the questions {sorted(open_rows)}")
        finally:
            if open_rows:  # the caller gave up, or the engine failed
                self._engine.abort_request(list(open_rows))

    def _answer(self, output: Any, candidates: Sequence[int]) -> EngineAnswer:
        answer = output.outputs[0]
        if answer.finish_reason not in ("stop", "length"):
            raise RolloutError(
                f"engine {self._setup.index} ended question {output.request_id} with {answer.finish_reason!r}"
            )
        first = answer.logprobs[0] if candidates else {}
        found = {token: float(first[token].logprob) for token in candidates}
        return EngineAnswer(int(output.request_id), list(answer.token_ids), found, answer.finish_reason == "length")
