"""Between HTTP and the roles: jobs flow in from any thread, texts and scored answers flow out to who handed them in.

The driver's main thread calls `work` again and again: it hands new jobs to the engines and takes what they have
generated. A second thread scores the finished responses meanwhile. Each job is told its answers, or why there are none.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from cluster.errors import RankFailure
from cluster.ranks.failures import Death
from orchestrator.errors import RewardRestarted
from orchestrator.stages.serving_jobs import Job, Refused, ScoredAnswer, Told, responses_of
from roles.batch import Responses
from roles.serving_engine import NewTokens, WantedResponse

IDLE_S = 0.5
"""Seconds for which a round waits for a job if there is nothing to do."""
UNANSWERED = {
    "failed": Refused(503, "the engines failed that were generating the answer; ask again"),
    "refused": Refused(500, "not tried again: engines have failed, each time that they answered this very prompt"),
}
"""Why a response has ended without an answer → what is told."""
SCORE_TRIES = 2
"""How often a reward that dies or hangs is asked for the scores of a job, the second time for this job alone."""


class Engines(Protocol):
    """What generates."""

    def advance(self, wanted: Sequence[WantedResponse], dropped: Sequence[str]) -> list[NewTokens]:
        """Work for a moment on what is under way and on `wanted`, but no more on `dropped`."""

    def reload(self, folder: str) -> None:
        """Go over to the weights in `folder`; nothing may be under way."""

    @property
    def loads_older(self) -> bool:
        """Whether an engine still loads a folder from before the latest `reload`."""


class Desk:
    """All jobs under way."""

    def __init__(
        self,
        engines: Engines,
        score: Callable[[Responses], list[float]] | None,
        decode: Callable[[Sequence[int]], str],
        most: int,
    ) -> None:
        """`score`: None where nothing scores. `most`: jobs that are taken at the same time."""
        self._engines, self._score, self._decode, self._most = engines, score, decode, most
        self._change = threading.Condition()
        self._arrived: list[Job] = []
        self._open: set[Job] = set()
        self._gone: set[Job] = set()
        self._running: dict[str, tuple[Job, int]] = {}
        self._names = itertools.count()
        self._to_score: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._broken: BaseException | None = None
        self._fresh: str | None = None
        self.closing = False
        """Whether no more jobs are taken."""
        self.generated = 0
        """Tokens so far."""
        self.version = 0
        """How often the weights have been renewed."""
        if score is not None:
            threading.Thread(target=self._keep_scoring, name="scoring", daemon=True).start()

    @property
    def open(self) -> int:
        """Jobs that have not been answered."""
        return len(self._open)

    @property
    def settled(self) -> bool:
        """Whether all engines have the weights of the latest `renew`, and read no others."""
        return self._fresh is None and not self._engines.loads_older

    @property
    def scores(self) -> bool:
        """Whether answers have scores."""
        return self._score is not None

    def take(self, job: Job) -> Refused | None:
        """Hand in a job; or the reason why it is not taken."""
        with self._change:
            if self.closing or self._broken:
                return Refused(503, "the server is shutting down; ask again later")
            if len(self._open) >= self._most:
                return Refused(503, f"serving.max_requests={self._most} requests are under way; ask again later")
            self._open.add(job)
            self._arrived.append(job)
            self._change.notify()
        return None

    def drop(self, job: Job) -> None:
        """Nobody waits for the job any more."""
        with self._change:
            if job in self._open:
                self._gone.add(job)
                self._change.notify()

    def renew(self, folder: str) -> None:
        """Go over to the weights in `folder` when the responses under way have ended; new jobs wait until then."""
        self._fresh = folder

    def work(self) -> None:
        """One round: hand new jobs to the engines, and take what they have generated."""
        arrived, gone = self._news()
        if self._broken:
            raise self._broken
        dropped = [name for name, (job, _) in self._running.items() if job in gone]
        for name in dropped:
            del self._running[name]
        for job in gone:
            self._end(job)
        wanted = [one for job in arrived if job not in gone for one in self._wanted(job)]
        for new in self._engines.advance(wanted, dropped):  # also without work: it finds an engine that has died
            if new.name in self._running:
                self._grow(*self._running[new.name], new)
        if self._fresh and not self._running:
            folder, self._fresh = self._fresh, None
            self._engines.reload(folder)
            self.version += 1

    def refuse_all(self, why: Refused) -> None:
        """Tell every open job that it will not be answered."""
        with self._change:
            self.closing = True
            jobs = list(self._open)
        for job in jobs:
            self._end(job, why)

    def _news(self) -> tuple[list[Job], set[Job]]:
        """New jobs, and those that were dropped; waits a moment if there is nothing to do."""
        with self._change:
            if not (self._running or self._gone or self._arrived or self._fresh or self._broken):
                self._change.wait(IDLE_S)
            gone, self._gone = self._gone, set()
            if self._fresh:  # they wait for the new weights
                self._arrived = [job for job in self._arrived if job not in gone]
                return [], gone
            arrived, self._arrived = self._arrived, []
        return arrived, gone

    def _wanted(self, job: Job) -> list[WantedResponse]:
        wish, number, found = job.wish, next(self._names), []
        for row in range(wish.responses):
            name = f"{number}.{row}"
            self._running[name] = (job, row)
            job.token_ids[row] = []
            found.append(
                WantedResponse(
                    name, job.prompt.token_ids, wish.max_tokens, wish.temperature, wish.top_p, seed=wish.seed + row
                )
            )
        return found

    def _grow(self, job: Job, row: int, new: NewTokens) -> None:
        if new.finish in UNANSWERED:
            del self._running[new.name]
            self._end(job, UNANSWERED[new.finish])
            with self._change:
                self._gone.add(job)  # its other responses
            return
        job.token_ids[row] += new.token_ids
        self.generated += len(new.token_ids)
        if job.streams:
            text = self._decode(job.token_ids[row])
            if new.finish or not text.endswith("\ufffd"):  # the rest of a character is to come
                job.tell(text[job.sent :])
                job.sent = len(text)
        if new.finish is None:
            return
        del self._running[new.name]
        job.finishes[row] = new.finish
        if len(job.finishes) == job.wish.responses:
            if self._score is not None and job.wish.scored:
                self._to_score.put(job)
            else:
                self._answer(job, None)

    def _answer(self, job: Job, scores: Sequence[float] | None) -> None:
        answers = []
        for row in range(job.wish.responses):
            tokens, score = job.token_ids[row], None if scores is None else scores[row]
            answers.append(ScoredAnswer(self._decode(tokens), len(tokens), job.finishes[row], score))
        self._end(job, answers)

    def _end(self, job: Job, told: Told | None = None) -> None:
        with self._change:
            if job not in self._open:
                return
            self._open.remove(job)
        if told is not None:
            job.tell(told)

    def _keep_scoring(self) -> None:
        assert self._score is not None
        while True:
            jobs = [self._to_score.get()]
            while not self._to_score.empty():
                jobs.append(self._to_score.get())
            try:
                self._score_some(jobs, self._score)
            except BaseException as error:
                return self._break(error)

    def _score_some(self, jobs: list[Job], score: Callable[[Responses], list[float]], tries: int = SCORE_TRIES) -> None:
        try:
            scores = score(responses_of(jobs, self._decode))
        except (RankFailure, RecursionError, RewardRestarted) as error:  # columns may be nested too deep to be sent
            if isinstance(error, Death):
                raise
            restarted = isinstance(error, RewardRestarted)
            if len(jobs) == 1 and not (restarted and tries > 1):
                return self._end(jobs[0], Refused(502, f"the reward failed: {str(error).splitlines()[0]}"))
            for job in jobs:  # only the one that the reward cannot read fails
                self._score_some([job], score, tries - restarted)
            return
        for job in jobs:
            own, scores = scores[: job.wish.responses], scores[job.wish.responses :]
            self._answer(job, own)

    def _break(self, error: BaseException) -> None:
        with self._change:
            self._broken = error
            self._change.notify()
