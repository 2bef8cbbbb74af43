"""The servers under requests that are made from their own OpenAPI schema: answered as the schema says, or refused with
the reason; never with status 500."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import given
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from orchestrator.config.serving import ServingConfig
from orchestrator.groups.recovery import Recovery
from orchestrator.stages.http_routes import policy_app
from orchestrator.stages.prompt_reader import PromptReader
from orchestrator.stages.reward_http import RewardDesk, reward_app
from orchestrator.stages.serving_desk import Desk
from tests.unit.fuzz.commands import examples
from tests.unit.orchestrator.stages.served import EchoEngines, Letters, length, working


@pytest.fixture(scope="module")
def policy() -> Iterator[FastAPI]:
    with working(Desk(EchoEngines(), length, Letters().decode, most=9)) as desk:
        reader = PromptReader(Letters(), 60, 40)  # type: ignore[arg-type]
        yield policy_app(desk, reader, ServingConfig(), Recovery(), temperature=0.7, top_p=1.0)


@pytest.fixture(scope="module")
def reward() -> FastAPI:
    return reward_app(RewardDesk(length), ServingConfig(), Recovery())


def operations(app: FastAPI) -> Iterator[schemathesis.APIOperation]:
    for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        yield found.ok()


def asked(case: schemathesis.Case) -> None:
    # lengths and the combinations of fields are checked by the routes, which the schema cannot say
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


@pytest.mark.parametrize("app", ["policy", "reward"])
def test_every_edge_of_the_schema(app: str, request: pytest.FixtureRequest) -> None:
    for operation in operations(request.getfixturevalue(app)):
        schema = operation.schema
        for case in schema.iter_coverage_cases(
            operation, generation_modes=list(GenerationMode), generation_config=schema.config.generation
        ):
            asked(case)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("app", ["policy", "reward"])
def test_requests_at_random(app: str, mode: GenerationMode, request: pytest.FixtureRequest) -> None:
    for operation in operations(request.getfixturevalue(app)):
        if operation.method == "post":
            examples(60)(given(case=operation.as_strategy(generation_mode=mode))(asked))()
