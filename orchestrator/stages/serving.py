"""Serve the policy over HTTP: a checked configuration flows in, the engines and the reward answer until the command is
told to end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import typer

from cluster.errors import DeadlineExceeded, RankFailure
from cluster.ranks.calls import wait_all
from cluster.ranks.failures import Death
from cluster.role_table import ACTOR
from cluster.runtime.orders import ORDERS
from orchestrator.config.base import BaseConfig
from orchestrator.config.serving import RewardServingRun, ServingRun
from orchestrator.errors import RewardRestarted, TetrarchError
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.resolved_models import Models, resolve_models
from orchestrator.groups.reward import Reward
from orchestrator.groups.reward_alone import reward_alone
from orchestrator.groups.serving_roles import serving_roles
from orchestrator.run.checkpoint import TRAINED
from orchestrator.stages.http_routes import policy_app
from orchestrator.stages.http_server import answering, listening, url_of
from orchestrator.stages.prompt_reader import PromptReader
from orchestrator.stages.reward_http import RewardDesk, reward_app
from orchestrator.stages.served_weights import ServedWeights
from orchestrator.stages.serving_desk import Desk
from orchestrator.stages.serving_jobs import Refused
from roles.batch import Responses

C = TypeVar("C", bound=BaseConfig)

WATCH_S = 1.0
"""Seconds between two looks for newer weights."""
REWARD_POLL_S = 0.1
"""Seconds between two looks whether the reward still lives, and whether to end."""
SERVING_FOLDER = "serve"
"""Folder in `run_dir` of logs and weights: a run that trains there may write its own meanwhile."""


def serve(config: ServingRun) -> None:
    """`tetrarch serve`: answer with the actor in `run_dir/actor`, or before a run with the one it starts from."""
    trained, place = Path(config.run_dir) / ACTOR, Path(config.run_dir) / SERVING_FOLDER
    with (
        listening(config.serving) as found,  # first: a port in use is told before anything starts
        ServedWeights(trained, place) as weights,
    ):
        watch = WeightWatch(config.run_dir) if config.serving.reload else None
        models = policy_to_serve(config)
        typer.echo(f"starting the roles, to serve {models.actor}", err=True)
        models = replace(models, actor=weights.take()) if models.actor == trained else models
        ORDERS.listen()
        with serving_roles(apart(config), models, partial(typer.echo, err=True)) as roles:
            tokenizer = models.tokenizer
            reader = PromptReader(tokenizer, config.longest_sample, config.rollout.max_response_tokens)
            recovery, score_s = roles.policy.recovery, config.deadlines.score_s
            score = scorer(roles.reward, score_s, recovery) if roles.reward.members else None
            desk = Desk(
                roles.policy,
                score,
                lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
                config.serving.max_requests,
            )
            sampled = {"temperature": config.rollout.temperature, "top_p": config.rollout.top_p}
            app = policy_app(desk, reader, config.serving, recovery, **sampled)
            with answering(app, found):
                typer.echo(f"serving at {url_of(found)} (Ctrl-C ends it)")
                work_until_told(desk, watch, weights, config.deadlines.grace_s)


def serve_reward(config: RewardServingRun) -> None:
    """`tetrarch serve --reward`: score what others have generated."""
    with listening(config.serving) as found:
        typer.echo("starting the reward", err=True)
        ORDERS.listen()
        with reward_alone(apart(config), partial(typer.echo, err=True)) as (reward, recovery):
            desk = RewardDesk(scorer(reward, config.deadlines.score_s, recovery))
            with answering(reward_app(desk, config.serving, recovery), found):
                url = url_of(found)
                typer.echo(f"serving at {url}: /score, and /get_reward for OpenRLHF (Ctrl-C ends it)")
                ORDERS.grace_s = config.deadlines.grace_s
                ORDERS.hold()
                while ORDERS.told is None:
                    if desk.broken:
                        raise desk.broken
                    time.sleep(REWARD_POLL_S)
        ORDERS.release()


class WeightWatch:
    """Notices weights that a run writes to `run_dir/actor`."""

    def __init__(self, run_dir: str) -> None:
        self._file = Path(run_dir) / ACTOR / TRAINED
        self._seen, self._looked = self._written(), time.monotonic()

    def newer(self) -> str | None:
        """The folder of weights that were not there before; None while there are none. Looks once in WATCH_S."""
        if time.monotonic() - self._looked < WATCH_S:
            return None
        self._looked, now = time.monotonic(), self._written()
        if now in (None, self._seen):
            return None
        self._seen = now
        return str(self._file.parent)

    def _written(self) -> tuple[int, str] | None:
        """When the policy was written, and its step; None if there is none."""
        try:
            return self._file.stat().st_mtime_ns, self._file.read_text(encoding="utf-8")
        except OSError:
            return None


def policy_to_serve(config: ServingRun) -> Models:
    """The model folders of the policy and of what scores it."""
    models = resolve_models(config, tuple(config.scorers))
    trained = Path(config.run_dir) / ACTOR
    return replace(models, actor=trained) if (trained / TRAINED).is_file() else models


def apart(config: C) -> C:
    """The same with a folder for logs that no training writes to."""
    return config.model_copy(update={"run_dir": str(Path(config.run_dir) / SERVING_FOLDER)})


def scorer(reward: Reward, deadline_s: float, recovery: Recovery) -> Callable[[Responses], list[float]]:
    """Responses → scores. A reward that dies or hangs is started again, and RewardRestarted says so.

    A reward that then scores what it has scored before (at first: a made-up response) is sound: the failure was that of
    what it was asked, and is not one of those that the server survives within an hour. Otherwise one client could end
    it for all.
    """
    scored = [short_response()]  # one row: later the latest

    def once(responses: Responses) -> list[float]:
        running = reward.start(responses)
        wait_all([own.call for own in running.spreads], deadline_s)
        values: list[float] = running.result(deadline_s)[0].tolist()
        if not all(map(math.isfinite, values)):
            raise RankFailure("a score is not finite")  # JSON has no such number
        return values

    def score(responses: Responses) -> list[float]:
        try:
            values = once(responses)
        except (Death, DeadlineExceeded) as error:  # another failure is that of what it was asked
            recovery.revive(error)
            prove_sound()
            raise RewardRestarted(str(error)) from error
        scored[:] = [responses.select([0])]
        return values

    def prove_sound() -> None:
        try:
            once(scored[0])
        except (Death, DeadlineExceeded) as error:
            recovery.revive(error)
        except RankFailure:  # up, but not sound
            return
        else:
            recovery.forgive("frozen_failures_per_hour")

    return score


def short_response() -> Responses:
    """A response that nobody has asked to be scored: no column comes with it."""
    return Responses(
        token_ids=torch.zeros(1, 2, dtype=torch.int64),
        lengths=torch.tensor([2]),
        response_mask=torch.tensor([[False, True]]),
        finished=torch.tensor([True]),
        prompts=["a"],
        responses=["b"],
        columns={},
    )


def work_until_told(desk: Desk, watch: WeightWatch | None, weights: ServedWeights, grace_s: float) -> None:
    """Until SIGTERM or Ctrl-C; then what is under way is finished within the grace."""
    ORDERS.grace_s = grace_s
    ORDERS.hold()
    loaded = desk.version
    try:
        while ORDERS.told is None or desk.open:
            desk.closing = ORDERS.told is not None
            folder = watch.newer() if watch else None
            if folder:
                try:
                    taken = weights.take()
                except TetrarchError as error:
                    typer.echo(f"the old weights are served on, until they are written once more: {error}", err=True)
                else:
                    typer.echo(f"going over to the weights in {folder}", err=True)
                    desk.renew(str(taken))
            desk.work()
            if desk.version != loaded and desk.settled:
                loaded = desk.version
                weights.keep_newest()
    finally:
        desk.refuse_all(Refused(503, "the server is shutting down; ask again later"))
    ORDERS.release()
