"""The viewer over HTTP: requests of the page flow in, answers flow out as JSON. It only reads.

Requests under any other name than this machine's own are refused, so that no page of a stranger can ask (DNS
rebinding), and the page may load and run nothing but its own files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response

from orchestrator.report.page import own_file
from orchestrator.report.run_files import finite
from orchestrator.viewer.answers import MOST_ROWS, SamplePlace, ViewerAnswers
from orchestrator.viewer.errors import NotThere
from orchestrator.viewer.sample_query import Condition, SampleQuery
from orchestrator.viewer.shelf import Shelf

HOSTS = ["127.0.0.1", "localhost"]
"""Names by which a browser on this machine, or through a tunnel to it, asks."""
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy. Plotly styles what it draws, so styles may stand in the page; scripts may not."""
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATIC = ("viewer.css", "common.js", "page.js", "curves.js", "samples.js", "sample.js", "everywhere.js")
"""Files of this folder that the page loads."""
REPORT_STATIC = ("colours.css", "report.js")
"""Files of the report that it loads too."""

Word = Annotated[str, Field(max_length=1000)]
"""What a request says, such as a name."""
Names = Annotated[list[Word], Field(max_length=8)]
"""Names of runs, as `/api/runs` has them."""


class ChartsAsked(BaseModel):
    """Which charts."""

    run: Annotated[Names, Field(min_length=1)]
    metric: Annotated[list[Word], Field(max_length=40)] = []
    """Keys of metrics, whose charts come first."""


class SampleAsked(BaseModel):
    """A sample."""

    run: Word
    at: Word
    """`40`: a training step; `e0`: the first evaluation."""
    row: int = Field(ge=0)
    other: Names = []
    """Runs in which the same prompt is looked for, too."""


class QueryAsked(BaseModel):
    """Which samples of a run, in which order."""

    run: Word
    search: Word = ""
    where: Annotated[list[Word], Field(max_length=20)] = []
    """Conditions, such as `score>=0.5`."""
    sort: Word = ""
    descending: bool = False

    @property
    def query(self) -> SampleQuery:
        """ValueError for what is no condition."""
        return SampleQuery(self.search, [Condition.parse(one) for one in self.where], self.sort, self.descending)


class SearchAsked(QueryAsked):
    """Samples of all training steps."""

    before: int | None = Field(default=None, ge=0)
    """The steps before this one are looked through; none: all."""


class SamplesAsked(QueryAsked):
    """A page of samples of one step."""

    at: Word
    offset: int = Field(default=0, ge=0, le=10**9)
    limit: int = Field(default=50, ge=1, le=MOST_ROWS)


class PairsAsked(SamplesAsked):
    """A page of samples beside those of another run."""

    other: Word
    other_at: Word


class PlainJson(JSONResponse):
    """JSON of ASCII characters, with `null` for what is not finite."""

    def render(self, content: Any) -> bytes:
        return json.dumps(finite(content), allow_nan=False).encode()


def viewer_app(shelf: Shelf) -> FastAPI:
    """The application."""
    app = FastAPI(title="Tetrarch", default_response_class=PlainJson, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.exception_handler(NotThere)(_refusal(404))
    app.exception_handler(ValueError)(_refusal(400))
    app.exception_handler(OSError)(_refusal(500))  # such as a file that a run has removed while it was read

    @app.middleware("http")
    async def guarded(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    routes = ViewerRoutes(ViewerAnswers(shelf))
    app.get("/", response_class=HTMLResponse)(routes.page)
    app.get("/static/{name}")(routes.static)
    app.get("/api/runs")(routes.runs)
    app.get("/api/run")(routes.run)
    app.get("/api/charts")(routes.charts)
    app.get("/api/samples")(routes.samples)
    app.get("/api/search")(routes.search)
    app.get("/api/sample")(routes.sample)
    app.get("/api/same-prompt")(routes.same_prompt)
    app.get("/api/pairs")(routes.pairs)
    return app


class ViewerRoutes:
    """What answers each path."""

    def __init__(self, answers: ViewerAnswers) -> None:
        self._answers = answers

    def page(self) -> str:
        """The page."""
        return _file("viewer.html")

    def static(self, name: str) -> Response:
        """Style and scripts, by their names alone."""
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        if name == "plotly.js":
            from plotly.offline import get_plotlyjs

            return Response(get_plotlyjs(), media_type=kind, headers={"Cache-Control": "max-age=86400"})
        if name not in (*STATIC, *REPORT_STATIC):
            raise HTTPException(404, f"{name} is no file of the viewer")
        return Response(own_file(name) if name in REPORT_STATIC else _file(name), media_type=kind)

    def runs(self) -> Any:
        """All runs."""
        return self._answers.runs()

    def run(self, run: str) -> Any:
        """The head of a run."""
        return self._answers.run(run)

    def charts(self, asked: Annotated[ChartsAsked, Query()]) -> Any:
        """Figures for Plotly."""
        return self._answers.charts(asked.run, asked.metric)

    def samples(self, asked: Annotated[SamplesAsked, Query()]) -> Any:
        """A page of a step's samples."""
        place = SamplePlace.parse(asked.run, asked.at)
        return self._answers.samples(place, asked.query, asked.offset, asked.limit)

    def search(self, asked: Annotated[SearchAsked, Query()]) -> Any:
        """The steps with samples that are asked for."""
        return self._answers.search(asked.run, asked.query, asked.before)

    def sample(self, asked: Annotated[SampleAsked, Query()]) -> Any:
        """One sample."""
        return self._answers.sample(SamplePlace.parse(asked.run, asked.at), asked.row)

    def same_prompt(self, asked: Annotated[SampleAsked, Query()]) -> Any:
        """The samples to the same prompt."""
        return self._answers.same_prompt(SamplePlace.parse(asked.run, asked.at), asked.row, asked.other)

    def pairs(self, asked: Annotated[PairsAsked, Query()]) -> Any:
        """A page of the samples of two runs, paired by prompt."""
        one, other = SamplePlace.parse(asked.run, asked.at), SamplePlace.parse(asked.other, asked.other_at)
        return self._answers.pairs(one, other, asked.query, asked.offset, asked.limit)


def _file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _refusal(status: int) -> Callable[[Request, Exception], JSONResponse]:
    def refused(request: Request, error: Exception) -> JSONResponse:
        message = str(error) if isinstance(error, OSError) else error.args[0] if error.args else type(error).__name__
        return PlainJson({"error": {"message": str(message)}}, status_code=status, headers=HEADERS)

    return refused
