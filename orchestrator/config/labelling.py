"""AI feedback: the section `labelling`, and what `tetrarch label` reads."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cluster.role_table import ENGINES
from orchestrator.config.base import BaseConfig
from orchestrator.config.data import PromptsConfig, RecordsConfig
from orchestrator.config.sampling import SamplingConfig
from roles.config.models import ActorConfig, ModelConfig
from roles.config.rollout import EngineConfig, RolloutConfig
from roles.config.section import PathText, Section
from roles.config.service import Headers, ServiceUrl

CHAT, COMPLETIONS = "/chat/completions", "/completions"
"""Ends of the addresses that are asked in OpenAI's two protocols."""

QUESTION = (
    "Below are a prompt and two responses to it. Which response is more helpful, honest and harmless? "
    "Neither the length of the responses nor the order in which they are shown matters."
)
"""What a judge is told by default."""


class SampledCandidates(Section):
    """Responses that a policy gives to each prompt on the vLLM engines, before the judge starts; responses in the rows
    are not read."""

    model: ModelConfig
    """The policy."""
    engine: EngineConfig = EngineConfig()
    """Settings of each vLLM engine."""
    responses: int = Field(default=4, ge=1)
    """Samples of each prompt; equal ones are compared once. With a constitution the first one is revised."""
    temperature: float = Field(default=1.0, ge=0.01, le=2)
    """Of the samples."""
    max_tokens: int = Field(default=2048, ge=2)
    """Longest prompt with its response, tokens; longer prompts are left out (counted)."""
    response_tokens: int = Field(default=512, ge=1)
    """Most tokens of a response; a longer one is cut (counted)."""


class PriceConfig(Section):
    """What an endpoint charges, in any currency, per million tokens."""

    prompt: float = Field(ge=0)
    """Of what is sent."""
    completion: float = Field(ge=0)
    """Of what is answered."""


class ModelJudge(Section):
    """A language model on the vLLM engines, asked for the probabilities of the tokens A and B."""

    type: Literal["model"]
    """A model folder."""
    model: ModelConfig
    """The judge."""
    engine: EngineConfig = EngineConfig()
    """Settings of each vLLM engine."""
    max_tokens: int = Field(default=4096, ge=2)
    """Longest question with its answer, tokens; longer ones are refused (counted)."""


class EndpointJudge(Section):
    """A server with OpenAI's protocol."""

    type: Literal["endpoint"]
    """A server."""
    url: ServiceUrl
    """The whole address: `https://host/v1/chat/completions`, or `https://host/v1/completions` for a base model."""
    model: str = Field(min_length=1)
    """Name of the model that is asked for."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_]\w*$")
    """Environment variable that holds the key, which is sent as `Authorization: Bearer KEY`; null: no key."""
    headers: Headers = Field(default_factory=dict)
    """More headers; never logged. Space around a value is cut off."""
    top_logprobs: int = Field(default=20, ge=0, le=20)
    """Most likely tokens whose probabilities are asked for; 0: the server gives none, and the letter alone counts."""
    answer_tokens: int = Field(default=16, ge=1)
    """Most tokens of the answer to a comparison; a model that reasons first needs hundreds."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at the same time."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds for one request, from connecting to the last byte of the answer."""
    patience_s: float = Field(default=300.0, ge=0)
    """Seconds in which a request is tried again that got no answer, or the status 408, 429 or 500 and above; then the
    command stops and keeps what was labelled. Any other status is not tried again."""
    prices: PriceConfig | None = None
    """What the tokens cost; needed for `budget.money`."""

    @model_validator(mode="after")
    def _known_protocol(self) -> Self:
        if not self.url.partition("?")[0].endswith(COMPLETIONS):
            raise ValueError(f"url must end in {CHAT} or {COMPLETIONS}, the routes of OpenAI's protocol; add it")
        return self


class AskingBudgetConfig(Section):
    """What may be spent on the answers in `OUTPUT-run`, those of earlier commands included. Nothing is asked that could
    exceed it."""

    requests: int | None = Field(default=None, ge=1)
    """Answered questions; null: any number."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens of questions and answers; null: any number."""
    money: float | None = Field(default=None, gt=0)
    """In the currency of the prices; null: any sum."""


class LabellingConfig(Section):
    """Preferences from a judge (RLAIF, arXiv 2309.00267), or critique and revision (Constitutional AI, arXiv
    2212.08073)."""

    output: PathText
    """Folder of `pairs.jsonl` and `summary.json`; with a constitution also of `demonstrations.jsonl`."""
    data: RecordsConfig
    """Prompts with two or more `responses`, or with `chosen` and `rejected` (whose order is not read). With a
    constitution one response (`completion`) is enough, and without any the judge gives the first one itself. With
    `candidates` prompts are enough."""
    candidates: SampledCandidates | None = None
    """A policy that responds to the prompts; null: the rows have the responses."""
    judge: Annotated[ModelJudge | EndpointJudge, Field(discriminator="type")]
    """Who compares, or who criticises and revises."""
    question: str = Field(default=QUESTION, min_length=1)
    """What the judge is told before a prompt and two responses."""
    pairs_per_prompt: int | None = Field(default=None, ge=1)
    """Compared pairs of the responses to one prompt, drawn at random; null: all."""
    minimum_mass: float = Field(default=0.1, ge=0, le=1)
    """The judge abstains where the tokens A and B together are less probable than this."""
    minimum_probability: float = Field(default=0.5, ge=0.5, lt=1)
    """A pair is left out (undecided) unless one response is better with a higher probability than this."""
    constitution: PathText | None = None
    """A YAML file with `principles`, each with a `critique` and a `revision` request: responses are criticised and
    revised, and not compared. null: responses are compared."""
    revisions: int = Field(default=1, ge=1)
    """Rounds of critique and revision, each by a principle drawn at random."""
    reply_tokens: int = Field(default=512, ge=1)
    """Most tokens of a critique, a revision or a first response."""
    temperature: float = Field(default=0.7, ge=0.01, le=2)
    """Of critiques, revisions and first responses. Comparisons are read from probabilities at temperature 1."""
    budget: AskingBudgetConfig = AskingBudgetConfig()
    """When the command stops."""


ANSWERS = "answers.jsonl"
"""File in `run_dir` with every answer of the judge."""
SAMPLES = "candidates.jsonl"
"""File in `run_dir` with every response that was sampled."""


class LabellingRun(BaseConfig):
    """What `tetrarch label` reads."""

    folder_key: ClassVar[str] = "labelling.output"

    labelling: LabellingConfig
    """Responses to label: at least the output, the data and the judge."""

    @property
    def model_roles(self) -> tuple[str, ...]:
        on_engines = isinstance(self.labelling.judge, ModelJudge) or self.labelling.candidates is not None
        return (ENGINES,) if on_engines else ()

    @property
    def answer_tokens(self) -> int:
        """Most tokens of the answer to a comparison; a model judge is only asked for the first one."""
        judge = self.labelling.judge
        return 1 if isinstance(judge, ModelJudge) else judge.answer_tokens

    @property
    def engines(self) -> SamplingConfig | None:
        """The judge's engines as those of a policy; None if the judge is an endpoint."""
        labelling, judge = self.labelling, self.labelling.judge
        if not isinstance(judge, ModelJudge):
            return None
        return self._answering(judge, 1 if labelling.constitution is None else labelling.reply_tokens)

    @property
    def sampling(self) -> SamplingConfig | None:
        """The engines of the policy that gives the candidates; None if the rows have responses."""
        candidates = self.labelling.candidates
        return None if candidates is None else self._answering(candidates, candidates.response_tokens)

    def _answering(self, section: ModelJudge | SampledCandidates, reply: int) -> SamplingConfig:
        return SamplingConfig(
            **{name: getattr(self, name) for name in BaseConfig.model_fields},
            prompts=PromptsConfig(train=self.labelling.data, max_tokens=section.max_tokens - reply),
            actor=ActorConfig(model=section.model),
            rollout=RolloutConfig(prompts_per_step=1, max_response_tokens=reply, engine=section.engine),
        )


class Principle(Section):
    """One rule of a constitution."""

    critique: str = Field(min_length=1)
    """Asks for what is wrong with a response."""
    revision: str = Field(min_length=1)
    """Asks for a better response."""


class Constitution(Section):
    """The file that `labelling.constitution` names."""

    principles: list[Principle] = Field(min_length=1)
    """The rules."""
